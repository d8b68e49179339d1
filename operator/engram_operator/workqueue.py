"""The work queue: which key is reconciled next, and when.

    absent --add, add_after--> queued --due, a worker is free--> in flight --ends--> absent or queued again
                               queued --add--> due now           in flight --add--> in flight, and queued when it ends

Promises
1. An add is never lost: after it, `work` begins once more for the key, also if the key is in flight.
2. No key is in flight twice at a time, and no more than `workers` keys are.
3. The key that is due longest goes first; keys of one moment go in the order in which they came.

Must never: keep what is to be done. A key is a name; whoever reconciles it looks anew. Source: client-go's workqueue.
"""

import asyncio
import heapq
import math
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Final

from engram_operator.life import until_one_ends

SPREAD: Final = 0.2  # of a pause, to either side: a thousand keys of one start do not come back in one moment
SLACK: Final = 64  # replaced entries of the heap that are borne, beside as many as there are keys


@dataclass(frozen=True, slots=True)
class Key:
    """One object to reconcile."""

    kind: str
    namespace: str
    name: str


Work = Callable[[Key], Awaitable[float | None]]


def spread(seconds: float) -> float:
    """The pause, a fifth longer or shorter by chance."""
    return seconds * random.uniform(1 - SPREAD, 1 + SPREAD)  # noqa: S311  nothing is secret here


class WorkQueue:
    """Keys and when they are due (seconds of `clock`). `jitter` spreads the pauses that `work` asks for."""

    def __init__(self, clock: Callable[[], float], jitter: Callable[[float], float] = spread) -> None:
        self._clock = clock
        self._jitter = jitter
        self._due: dict[Key, tuple[float, int]] = {}  # what is queued; a key in flight may be queued for its next run
        self._heap: list[tuple[float, int, Key]] = []  # the same, in order, and entries that were replaced since
        self._in_flight: set[Key] = set()
        self._order = count()
        self._changed = asyncio.Event()

    def add(self, key: Key) -> None:
        """Makes the key due now; one that is due already keeps its place."""
        self.add_after(key, 0.0)

    def add_after(self, key: Key, seconds: float) -> None:
        """Makes the key due in so many seconds, or earlier if it is queued for earlier."""
        due = (self._clock() + max(seconds, 0.0), next(self._order))
        if key in self._due and self._due[key] <= due:
            return
        self._due[key] = due
        if key not in self._in_flight:
            self._push(key)

    async def run(self, work: Work, workers: int) -> None:
        """Runs `work` for every due key until it raises, which it must do only if the process is to end.

        What `work` returns is after how many seconds it wants to run again; None if only an add is to bring it back.
        """
        await until_one_ends([self._serve(work) for _ in range(workers)])

    def depth(self) -> int:
        """How many keys are due and not in flight. O(keys)."""
        return len(self._overdue())

    def oldest_s(self) -> float:
        """For how long the oldest of them is due; 0 if there is none. O(keys)."""
        return max(self._overdue(), default=0.0)

    def _overdue(self) -> list[float]:
        now_s = self._clock()
        waiting = [due_s for key, (due_s, _) in self._due.items() if key not in self._in_flight]
        return [now_s - due_s for due_s in waiting if due_s <= now_s]

    async def _serve(self, work: Work) -> None:
        while True:
            key = await self._take()
            try:
                again_s = await work(key)
            finally:
                self._end(key)
            if again_s is not None:
                self.add_after(key, self._jitter(again_s))

    async def _take(self) -> Key:
        """The next due key, in flight from now on; waits until there is one."""
        while (pause_s := self._pause_s()) > 0:
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(None if math.isinf(pause_s) else pause_s):
                    await self._changed.wait()
        key = heapq.heappop(self._heap)[2]
        del self._due[key]
        self._in_flight.add(key)
        return key

    def _pause_s(self) -> float:
        """Seconds until the first key is due, infinite without one; drops entries that were replaced on the way."""
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][:2]:
            heapq.heappop(self._heap)
        return self._heap[0][0] - self._clock() if self._heap else math.inf

    def _end(self, key: Key) -> None:
        self._in_flight.remove(key)
        if key in self._due:
            self._push(key)

    def _push(self, key: Key) -> None:
        if len(self._heap) > 2 * len(self._due) + SLACK:
            self._heap = [(*self._due[each], each) for each in self._due.keys() - self._in_flight - {key}]
            heapq.heapify(self._heap)
        heapq.heappush(self._heap, (*self._due[key], key))
        self._changed.set()
