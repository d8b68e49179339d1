"""What stands between a request and the shards: one deadline, retries within a budget, the wait for a primary.

    pipeline, finder, ledger, borrower --read, write, transaction--> Guard --each attempt--> Gate --> Store

Promises
1. A request has one deadline for all that it asks; it begins with the first question.
2. A read is repeated, or asked of two nodes, within the budget. A write is repeated only if that does no harm
(writes.is_repeatable), or if it carries an idempotency key; what a repetition cannot do is never said of the write: its
outcome stays unknown.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from math import inf
from typing import Final, TypeVar

from engram_contract.resilience import Resilience
from engram_sidecar.budget import Budget
from engram_sidecar.chance import jittered
from engram_sidecar.clock import monotonic_s
from engram_sidecar.errors import BreakerOpen, NodeRefused, OutcomeUnknown, ShardUnavailable, Shed
from engram_sidecar.failover import Lane
from engram_sidecar.gate import JITTER_RATIO, Gate, Kind, kind_of
from engram_sidecar.patience import Patience, of_request
from engram_sidecar.store import Place, Row, Transaction
from engram_sidecar.writes import is_repeatable

ATTEMPTS: Final = 3
FIRST_PAUSE_S: Final = 0.05
_UNASKED: Final = (BreakerOpen, NodeRefused, Shed)


Answer = TypeVar("Answer")


class Guard:
    """Asks the nodes for requests, as the policy says. `on_retry` is told of each repetition."""

    def __init__(
        self,
        gate: Gate,
        resilience: Callable[[], Resilience],
        on_retry: Callable[[Kind], None],
        on_shed: Callable[[Kind], None],
    ) -> None:
        self._gate = gate
        self._resilience = resilience
        self._on_retry = on_retry
        self._on_shed = on_shed
        self._budgets: defaultdict[str, Budget] = defaultdict(Budget)
        self._lanes: dict[str, Lane] = {}

    async def read(self, place: Place, query: str, *args: object, timeout_s: float) -> list[Row]:
        """The rows of a named query."""
        kind, patience = kind_of(query), self._patience(place)
        for attempt in range(ATTEMPTS):
            try:
                with self._counted(kind):
                    return await self._gate.read(patience, place, query, *args, timeout_s=timeout_s)
            except ShardUnavailable as failure:
                await self._pause(place, kind, patience, attempt, failure)
        raise AssertionError  # the last pause raises

    async def read_once(self, place: Place, query: str, *args: object, timeout_s: float) -> list[Row]:
        """The rows of a named query, asked once, in half of the time that is left: another node can be asked then.

        It is a part of a read, which earns its part of a retry once: with `earn`, or with `read`.
        """
        patience, now_s = self._begun(), monotonic_s()
        half_s = min(timeout_s, (patience.by_s or now_s) - now_s) / 2
        return await self._gate.read(Patience(by_s=now_s + half_s), place, query, *args, timeout_s=half_s)

    def earn(self, shard: str) -> None:
        """A read of the shard was made."""
        self._budgets[shard].earn(self._resilience().retry_percent, monotonic_s())

    def may_hedge(self, shard: str) -> bool:
        """True if a read of the shard that is late may be asked again elsewhere; it then counts as repeated."""
        return self._resilience().retry_percent > 0 and self._budgets[shard].spend(monotonic_s())

    async def write(self, place: Place, query: str, *args: object, timeout_s: float) -> list[Row]:
        """The rows of a named query that changes something."""
        patience = self._patience(place)
        unknown: OutcomeUnknown | None = None

        async def ask(is_awaited: bool) -> list[Row]:  # noqa: FBT001  as a lane asks
            return await self._gate.write(patience, place, query, *args, timeout_s=timeout_s, is_awaited=is_awaited)

        for attempt in range(ATTEMPTS):
            try:
                with self._counted(Kind.STORE):
                    rows = await self._lane(place).run(ask, patience, self._resilience())
            except OutcomeUnknown as failure:
                unknown = unknown or failure
                if not is_repeatable(query, args):
                    raise
                await self._pause(place, Kind.STORE, patience, attempt, failure)
            except Exception as failure:
                if unknown is not None:
                    raise unknown from failure
                raise
            else:
                if unknown is not None and not rows:
                    raise unknown  # its condition does not hold: perhaps because the first attempt was done
                return rows
        raise AssertionError  # the last pause raises

    async def repeat(self, place: Place, attempt: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer of a write that happens once, however often it is run: run again where its outcome is unknown."""
        patience = self._patience(place)
        unknown: OutcomeUnknown | None = None
        for number in range(ATTEMPTS):
            try:
                return await attempt()
            except OutcomeUnknown as failure:
                unknown = unknown or failure
                await self._pause(place, Kind.STORE, patience, number, failure)
            except ShardUnavailable as failure:
                if unknown is not None:
                    raise unknown from failure
                raise
        raise AssertionError  # the last pause raises

    @asynccontextmanager
    async def transaction(self, place: Place, timeout_s: float) -> AsyncIterator[Transaction]:
        """Several named queries that happen together or not at all."""
        patience = self._patience(place)
        async with AsyncExitStack() as opened:

            async def enter(is_awaited: bool) -> Transaction:  # noqa: FBT001  as a lane asks
                asked = self._gate.transaction(patience, place, timeout_s, is_awaited=is_awaited)
                return await opened.enter_async_context(asked)

            with self._counted(Kind.STORE):
                transaction = await self._lane(place).run(enter, patience, self._resilience())
            yield transaction

    def waiting_writes(self) -> dict[str, int]:
        """Shard -> how many writes wait for its primary."""
        return {shard: len(lane) for shard, lane in self._lanes.items()}

    def _lane(self, place: Place) -> Lane:
        return self._lanes.setdefault(place.shard, Lane(place.shard))

    def _patience(self, place: Place) -> Patience:
        """The request's, which begins if it has not; the question earns its part of a retry."""
        self.earn(place.shard)
        return self._begun()

    def _begun(self) -> Patience:
        """The request's, which begins if it has not."""
        tuned, patience = self._resilience(), of_request()
        patience.begin(monotonic_s(), tuned.deadline_seconds, tuned.failover_seconds)
        return patience

    async def _pause(
        self, place: Place, kind: Kind, patience: Patience, attempt: int, failure: ShardUnavailable
    ) -> None:
        """Returns when the question may be asked again; raises its failure if it may not.

        Requests that failed together, as one statement, cost the budget one repetition: they go together again.
        """
        if attempt + 1 == ATTEMPTS:
            raise failure
        now_s = monotonic_s()
        if failure.again_s is None:
            is_off = self._resilience().retry_percent == 0 or isinstance(failure, _UNASKED)
            pause_s = jittered(FIRST_PAUSE_S * 2**attempt, JITTER_RATIO)
            failure.again_s = inf if is_off or not self._budgets[place.shard].spend(now_s) else now_s + pause_s
        if failure.again_s >= (patience.by_s or now_s):
            raise failure
        self._on_retry(kind)
        await asyncio.sleep(failure.again_s - now_s)

    @contextmanager
    def _counted(self, kind: Kind) -> Iterator[None]:
        """Tells of a question that found the queue full."""
        try:
            yield
        except Shed:
            self._on_shed(kind)
            raise
