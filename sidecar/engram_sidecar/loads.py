"""What is being read from shards by id: one load of a key for all who ask meanwhile, and which keys were asked of late.

Promises
1. A load goes on when whoever began it leaves; its failure is told to those who wait, and to nobody else.
2. Nothing grows without bound: of each key at most one load is joined, and what was asked is kept for RECENT_S.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context
from typing import Any, Final, Generic, TypeVar

RECENT_S: Final = 5.0

Answer = TypeVar("Answer")


class Loads(Generic[Answer]):
    """The loads of one sidecar. Moments are on the loop's clock."""

    def __init__(self) -> None:
        self._joined: dict[bytes, asyncio.Task[Answer]] = {}
        self._under_way: Counter[bytes] = Counter()
        self._asked_s: dict[bytes, float] = {}  # the oldest first
        self._beside: set[asyncio.Task[Any]] = set()

    def __contains__(self, key: bytes) -> bool:
        """Whether there is a load to join."""
        return key in self._joined

    def join(
        self, key: bytes, load: Callable[[], Coroutine[Any, Any, Answer]], context: Context | None = None
    ) -> "asyncio.Task[Answer]":
        """The load of the key that is under way, or a new one."""
        task = self._joined.get(key)
        if task is None:
            task = self._joined[key] = asyncio.create_task(load(), context=context)
            task.add_done_callback(lambda done: self._ended(key, done))
        return task

    def part(self, key: bytes) -> None:
        """Whoever asks from now on does not join a load that began before."""
        self._joined.pop(key, None)

    def part_all(self) -> None:
        """As `part`, of all keys."""
        self._joined.clear()

    @contextmanager
    def under_way(self, key: bytes) -> Iterator[None]:
        """The block is a load of the key, joined or not."""
        self._under_way[key] += 1
        try:
            yield
        finally:
            self._under_way[key] -= 1
            if not self._under_way[key]:
                del self._under_way[key]

    def is_under_way(self, key: bytes) -> bool:
        """Whether some load of the key has not ended."""
        return key in self._under_way

    def note_asked(self, key: bytes, now_s: float) -> None:
        """The shard was asked for it."""
        self._asked_s.pop(key, None)
        self._asked_s[key] = now_s
        while (oldest := next(iter(self._asked_s))) != key and not self.was_asked(oldest, now_s):
            del self._asked_s[oldest]

    def was_asked(self, key: bytes, now_s: float) -> bool:
        """Whether the shard was asked for it within RECENT_S."""
        return self._asked_s.get(key, 0.0) > now_s - RECENT_S

    def go_on_beside(self, task: "asyncio.Task[Any]") -> None:
        """Nobody waits for it."""
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    async def close(self) -> None:
        """Ends what nobody waits for."""
        for task in self._beside:
            task.cancel()
        await asyncio.gather(*self._beside, return_exceptions=True)

    def _ended(self, key: bytes, task: "asyncio.Task[Answer]") -> None:
        if self._joined.get(key) is task:
            del self._joined[key]
        if not task.cancelled():
            task.exception()  # whoever waited was told; who left is not concerned
