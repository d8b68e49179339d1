"""Writes wait here while their shard's primary is away, and go on in order when there is one again.

    PASSING --the primary is away--> WAITING --the first in line got through--> DRAINING --nobody waits--> PASSING
                                       |                                        '-- it is away again --> WAITING
                                        '--------- the wait is over: all are refused, and later ones at once,
                                                   until a write gets through again

Promises
1. Only writes that have not happened wait: nobody was asked, or the node said that it did nothing.
2. While some wait, one asks: the first in line, every PROBE_S seconds. Later ones line up behind.
3. Nobody waits longer than the policy's `failover_seconds`, counted from the beginning of the outage.
4. At most `waiting_writes` wait, with bodies of MAX_WAITING_BYTES in all: who finds no room is told so at once (Shed).
5. They go on in order, at most AT_ONCE at a time and at no more than DRAIN_RATIO times the rate of before the outage
(of now, if the line gets longer all the same): a primary that has just come up is not to fall over what piled up.
Source: Vitess, vtgate buffering (window 10 s, drained in order).
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import islice
from math import ceil
from typing import Final, TypeVar

from engram_contract.resilience import Resilience
from engram_sidecar.chance import jittered
from engram_sidecar.clock import monotonic_s
from engram_sidecar.errors import BreakerOpen, NodeRefused, ShardUnavailable, Shed
from engram_sidecar.gathering import GATHERED
from engram_sidecar.patience import Patience

PROBE_S: Final = 0.25
JITTER_RATIO: Final = 0.2
MAX_WAITING_BYTES: Final = 32 << 20
DRAIN_RATIO: Final = 2.0
AT_ONCE: Final = GATHERED  # they go in one statement; with fewer, a line before a node that takes its time never ends
SLOWEST_DRAIN_PER_S: Final = 20.0  # of a pod that rarely writes
RATE_S: Final = 10.0
LOOK_S: Final = 1.0  # so often a drain looks at the line
RATE_WRITES: Final = 10_000  # moments that are kept; a sidecar stores less in RATE_S

Answer = TypeVar("Answer")
Attempt = Callable[[bool], Awaitable[Answer]]


def is_away(failure: ShardUnavailable) -> bool:
    """True if the failure says that there is no primary now, and that nothing happened."""
    return type(failure) is ShardUnavailable or isinstance(failure, BreakerOpen)


@dataclass(eq=False, slots=True)
class _Waiter:
    """One in line, and whether it may ask."""

    turn: "asyncio.Future[None]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Lane:
    """The line before one shard's primary."""

    def __init__(self, shard: str) -> None:
        self._shard = shard
        self._line: deque[_Waiter] = deque()
        self._waiting_bytes = 0
        self._began_s: float | None = None  # of the outage
        self._is_draining = False
        self._arrivals: deque[float] = deque(maxlen=RATE_WRITES)
        self._pace_s = 0.0
        self._looked_s, self._looked_length = 0.0, 0
        self._at_once = 1
        self._called_s = 0.0
        self._call: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """How many wait, with those that try."""
        return len(self._line)

    async def run(self, attempt: Attempt[Answer], patience: Patience, tuned: Resilience) -> Answer:
        """What the attempt answers, when it gets through. It is told whether it was waited for. Raises its failure."""
        self._arrivals.append(monotonic_s())
        self._at_once = min(AT_ONCE, tuned.waiting_requests + 1)  # they are not to find the node's own queue full
        failure: ShardUnavailable | None = None
        if not self._line:
            try:
                answer = await attempt(False)  # noqa: FBT003  the only argument
            except Exception as error:
                if not isinstance(error, ShardUnavailable) or not is_away(error):
                    self._hear_passing(error)
                    raise
                if not self._may_wait(tuned):
                    raise
                failure = error
            else:
                self._hear_passing(None)
                return answer
        return await self._wait(attempt, patience, tuned, failure)

    async def _wait(
        self, attempt: Attempt[Answer], patience: Patience, tuned: Resilience, failure: ShardUnavailable | None
    ) -> Answer:
        full = len(self._line) >= tuned.waiting_writes
        if full or self._waiting_bytes + patience.size_bytes > MAX_WAITING_BYTES:
            raise Shed(self._shard, "too many writes wait for the primary", max(ceil(tuned.failover_seconds / 2), 1))
        waiter = _Waiter()
        self._line.append(waiter)
        self._waiting_bytes += patience.size_bytes
        if self._line[0] is waiter:
            waiter.turn.set_result(None)
        elif self._is_draining:
            self._call_soon()
        try:
            return await self._try(attempt, waiter, patience, tuned, failure)
        finally:
            self._waiting_bytes -= patience.size_bytes
            self._leave(waiter)

    async def _try(
        self,
        attempt: Attempt[Answer],
        waiter: _Waiter,
        patience: Patience,
        tuned: Resilience,
        failure: ShardUnavailable | None,
    ) -> Answer:
        """The answer, once it is this one's turn and the primary is there. What it waits is added to its patience."""
        since_s = monotonic_s()
        while True:
            await self._reach(waiter, patience, tuned)
            if not self._is_draining and self._line[0] is not waiter:  # it went away again: one asks
                waiter.turn = asyncio.get_running_loop().create_future()
                continue
            if failure is not None and not self._is_draining:
                await asyncio.sleep(jittered(PROBE_S, JITTER_RATIO))
            if not self._is_draining and monotonic_s() >= self._end_s(tuned):
                raise failure or self._gone()
            patience.extend(monotonic_s() - since_s)
            since_s = monotonic_s()
            self._call_soon()
            try:
                answer = await attempt(True)  # noqa: FBT003  the only argument
            except Exception as error:
                if not isinstance(error, ShardUnavailable) or not is_away(error):
                    self._is_draining = self._hear(error) or self._is_draining
                    raise
                if monotonic_s() >= patience.latest_s:
                    raise
                failure = error
                if self._is_draining:
                    self._is_draining, self._began_s = False, monotonic_s()
            else:
                self._is_draining = self._hear(None)
                return answer

    async def _reach(self, waiter: _Waiter, patience: Patience, tuned: Resilience) -> None:
        """Returns when it is this one's turn. Raises ShardUnavailable when the wait is over."""
        while not waiter.turn.done():
            until_s = patience.latest_s if self._is_draining else self._end_s(tuned)
            if monotonic_s() >= min(until_s, patience.latest_s):
                raise self._gone()
            # The end may be put off meanwhile: whoever drains waits as long as the request may take.
            await asyncio.wait([waiter.turn], timeout=min(until_s, patience.latest_s) - monotonic_s())

    def _hear_passing(self, failure: Exception | None) -> None:
        """What was sent before others began to wait tells nothing of the primary now."""
        if not self._line:
            self._hear(failure)

    def _hear(self, failure: Exception | None) -> bool:
        """True if the primary answered, so that the outage is over; a refusal is an answer."""
        has_answered = not isinstance(failure, ShardUnavailable) or isinstance(failure, NodeRefused)
        if has_answered:
            self._began_s = None
        return has_answered

    def _may_wait(self, tuned: Resilience) -> bool:
        """True within the wait for a primary; an outage that has no beginning yet begins now."""
        if self._began_s is None:
            self._began_s = monotonic_s()
            self._pace_s, self._looked_length = self._pace(), tuned.waiting_writes
        return monotonic_s() < self._end_s(tuned)

    def _pace(self) -> float:
        """Seconds between two writes of a drain, by what came lately."""
        now_s = monotonic_s()
        recent = sum(at_s > now_s - RATE_S for at_s in self._arrivals)
        first_s = max(self._arrivals[0], now_s - RATE_S)
        return 1 / max(recent / max(now_s - first_s, 1.0) * DRAIN_RATIO, SLOWEST_DRAIN_PER_S)

    def _end_s(self, tuned: Resilience) -> float:
        return (self._began_s or monotonic_s()) + tuned.failover_seconds

    def _leave(self, waiter: _Waiter) -> None:
        self._line.remove(waiter)
        if not self._line:
            self._is_draining = False
        self._call_soon()

    def _call_soon(self) -> None:
        """The next one gets its turn when the pace allows it."""
        if self._call is None and self._line:
            wait_s = self._called_s + self._pace_s - monotonic_s() if self._is_draining else 0.0
            self._call = asyncio.get_running_loop().call_later(max(wait_s, 0.0), self._call_next)

    def _call_next(self) -> None:
        self._call = None
        for waiter in islice(self._line, self._at_once if self._is_draining else 1):
            if not waiter.turn.done():
                waiter.turn.set_result(None)
                due_s, now_s = self._called_s + self._pace_s, monotonic_s()
                self._called_s = due_s if 0 <= now_s - due_s < self._pace_s else now_s  # timers come a little late
                self._look(now_s)
                return

    def _look(self, now_s: float) -> None:
        """A line that gets longer while it drains would never end: it goes by the rate of now, if that is higher."""
        if self._is_draining and now_s - self._looked_s >= LOOK_S:
            if len(self._line) > self._looked_length:
                self._pace_s = min(self._pace_s, self._pace())
            self._looked_s, self._looked_length = now_s, len(self._line)

    def _gone(self) -> ShardUnavailable:
        return ShardUnavailable(self._shard, "the primary is away")
