"""What stands between a request and the nodes.

Breakers, one deadline, retries within a budget, the wait for a primary, bulkheads: each in a room of its own.

    pipeline, finder, ledger, borrower --read, write, transaction--> Guard --the same--> Store

Promises
1. An open breaker answers at once (BreakerOpen), with the time after which it is worth trying.
2. Only failures of a node count against it: no answer, a lost connection, an unknown outcome. A refusal is an answer.
3. No question goes on beyond its request's deadline, whatever the driver waits for.
4. A read is repeated within the budget. A write is only if its repetition does no harm (writes.is_repeatable), and what
a repetition cannot do is never said of the write: its outcome stays unknown.
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from math import ceil
from typing import Final

from engram_contract.resilience import Resilience
from engram_sidecar.breaker import Breaker, Limits, Outcome, State, View
from engram_sidecar.budget import Budget
from engram_sidecar.bulkhead import Bulkhead
from engram_sidecar.errors import (
    BreakerOpen,
    DeadlineExceeded,
    NodeRefused,
    OutcomeUnknown,
    ShardUnavailable,
    Shed,
)
from engram_sidecar.failover import Lane
from engram_sidecar.patience import Patience, of_request
from engram_sidecar.store import CONNECTIONS_PER_NODE, Asks, Place, Row, Transaction
from engram_sidecar.writes import is_repeatable

ATTEMPTS: Final = 3
FIRST_PAUSE_S: Final = 0.05
JITTER_RATIO: Final = 0.5
GRACE_S: Final = 0.25  # a driver that gives a connection back may wait for a node that is silent
WATCH_S: Final = 0.5
TELLING_S: Final = 1.0  # who waited shorter than this has not seen that a node does not answer
_UNASKED: Final = (BreakerOpen, NodeRefused, Shed)


class Kind(StrEnum):
    """The kinds of operation that have breakers of their own: one may fail where another does not."""

    STORE = "store"
    RETRIEVE = "retrieve"
    SEARCH = "search"


_RETRIEVES: Final = frozenset({"get_memories", "get_map"})  # every other read looks through many rows


@dataclass(frozen=True, slots=True)
class Shown:
    """A breaker as it is shown: of which node and kind, and its state."""

    shard: str
    node: str
    kind: Kind
    view: View


class Guard:
    """Asks the nodes for requests, as the policy says. `on_retry` is told of each repetition."""

    def __init__(
        self,
        store: Asks,
        resilience: Callable[[], Resilience],
        on_retry: Callable[[Kind], None],
        on_shed: Callable[[Kind], None],
    ) -> None:
        self._store = store
        self._resilience = resilience
        self._on_retry = on_retry
        self._on_shed = on_shed
        self._breakers: defaultdict[Place, dict[Kind, Breaker]] = defaultdict(
            lambda: {kind: Breaker() for kind in Kind}
        )
        self._budgets: defaultdict[str, Budget] = defaultdict(Budget)
        self._lanes: dict[str, Lane] = {}
        self._bulkheads: dict[Place, Bulkhead] = {}
        self._watches: dict[Place, asyncio.Task[None]] = {}

    async def close(self) -> None:
        """Ends the watches of nodes that are away."""
        tasks = list(self._watches.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def breakers(self) -> Iterator[Shown]:
        """The breakers of all nodes that were asked so far."""
        for place, breakers in self._breakers.items():
            for kind, breaker in breakers.items():
                yield Shown(place.shard, place.node.name, kind, breaker.view)

    def forget(self, places: Collection[Place]) -> None:
        """Lets go of what is known of all other places: the map no longer names them."""
        for place in [place for place in self._breakers if place not in places]:
            del self._breakers[place]
            self._bulkheads.pop(place, None)

    async def read(self, place: Place, query: str, *args: object, timeout_s: float) -> list[Row]:
        """The rows of a named query."""
        kind = Kind.RETRIEVE if query in _RETRIEVES else Kind.SEARCH
        patience = self._patience(place)
        for attempt in range(ATTEMPTS):
            try:
                with self._counted(kind):
                    async with self._admitted(place, kind, patience, timeout_s) as left_s:
                        return await self._store.read(place, query, *args, timeout_s=left_s)
            except ShardUnavailable as failure:
                await self._pause(place, kind, patience, attempt, failure)
        raise AssertionError  # the last pause raises

    async def read_once(self, place: Place, query: str, *args: object, timeout_s: float) -> list[Row]:
        """The rows of a named query, asked once, in half of the time that is left: another node can be asked then."""
        kind = Kind.RETRIEVE if query in _RETRIEVES else Kind.SEARCH
        patience, now_s = self._patience(place), _now_s()
        half_s = min(timeout_s, (patience.by_s or now_s) - now_s) / 2
        try:
            async with (
                asyncio.timeout(half_s + GRACE_S),  # the wait for a connection too
                self._admitted(place, kind, patience, half_s) as left_s,
            ):
                return await self._store.read(place, query, *args, timeout_s=left_s)
        except TimeoutError as error:
            raise _late(place, kind) from error

    async def write(self, place: Place, query: str, *args: object, timeout_s: float) -> list[Row]:
        """The rows of a named query that changes something."""
        patience = self._patience(place)
        unknown: OutcomeUnknown | None = None

        async def ask(is_awaited: bool) -> list[Row]:  # noqa: FBT001  as a lane asks
            async with self._admitted(place, Kind.STORE, patience, timeout_s, is_awaited=is_awaited) as left_s:
                return await self._store.write(place, query, *args, timeout_s=left_s)

        for attempt in range(ATTEMPTS):
            try:
                with self._counted(Kind.STORE):
                    rows = await self._lane(place).run(ask, patience, self._resilience())
            except OutcomeUnknown as failure:
                unknown = unknown or failure
                if not is_repeatable(query, args):
                    raise
                await self._pause(place, Kind.STORE, patience, attempt, unknown)
            except Exception as failure:
                if unknown is not None:
                    raise unknown from failure
                raise
            else:
                if unknown is not None and not rows:
                    raise unknown  # its condition does not hold: perhaps because the first attempt was done
                return rows
        raise AssertionError  # the last pause raises

    @asynccontextmanager
    async def transaction(self, place: Place, timeout_s: float) -> AsyncIterator[Transaction]:
        """Several named queries that happen together or not at all."""
        patience = self._patience(place)
        async with AsyncExitStack() as opened:

            async def enter(is_awaited: bool) -> Transaction:  # noqa: FBT001  as a lane asks
                async with AsyncExitStack() as stack:
                    admitted = self._admitted(place, Kind.STORE, patience, timeout_s, is_awaited=is_awaited)
                    left_s = await stack.enter_async_context(admitted)
                    transaction = await stack.enter_async_context(self._store.transaction(place, left_s))
                    opened.push_async_exit(stack.pop_all())
                    return transaction

            with self._counted(Kind.STORE):
                transaction = await self._lane(place).run(enter, patience, self._resilience())
            yield transaction

    def waiting_requests(self) -> dict[tuple[str, str], int]:
        """(shard, node) -> how many requests wait for its connections."""
        return {(place.shard, place.node.name): each.waiting for place, each in self._bulkheads.items()}

    def waiting_writes(self) -> dict[str, int]:
        """Shard -> how many writes wait for its primary."""
        return {shard: len(lane) for shard, lane in self._lanes.items()}

    def _lane(self, place: Place) -> Lane:
        return self._lanes.setdefault(place.shard, Lane(place.shard))

    def _patience(self, place: Place) -> Patience:
        """The request's, which begins if it has not; the question earns its part of a retry."""
        tuned, now_s, patience = self._resilience(), _now_s(), of_request()
        patience.begin(now_s, tuned.deadline_seconds, tuned.failover_seconds)
        self._budgets[place.shard].earn(tuned.retry_percent, now_s)
        return patience

    async def _pause(
        self, place: Place, kind: Kind, patience: Patience, attempt: int, failure: ShardUnavailable
    ) -> None:
        """Returns when the question may be asked again; raises its failure if it may not."""
        now_s = _now_s()
        pause_s = FIRST_PAUSE_S * 2**attempt * (1 + random.uniform(-JITTER_RATIO, JITTER_RATIO))  # noqa: S311
        is_last = attempt + 1 == ATTEMPTS or now_s + pause_s >= (patience.by_s or now_s)
        is_off = self._resilience().retry_percent == 0
        if is_last or is_off or isinstance(failure, _UNASKED) or not self._budgets[place.shard].spend(now_s):
            raise failure
        self._on_retry(kind)
        await asyncio.sleep(pause_s)

    def _limits(self, kind: Kind) -> Limits:
        tuned = self._resilience()
        failures = {
            Kind.STORE: tuned.store_failures,
            Kind.RETRIEVE: tuned.retrieve_failures,
            Kind.SEARCH: tuned.search_failures,
        }
        return Limits(failures[kind], tuned.recovery_seconds)

    @asynccontextmanager
    async def _admitted(
        self, place: Place, kind: Kind, patience: Patience, timeout_s: float, *, is_awaited: bool = False
    ) -> AsyncIterator[float]:
        """The block may ask the node for so many seconds; how that ends is told to the breaker.

        What a write waits for is asked whether the node's recovery is over or not.
        """
        breakers, limits = self._breakers[place], self._limits(kind)
        breaker = breakers[kind]
        if is_awaited:
            breaker.hope(_now_s())
        if wait_s := breaker.wait_s(limits, _now_s()):
            raise _open(place, wait_s)  # at once, and not after a wait for others
        async with self._entered(place, patience):
            began_s = _now_s()
            left_s = min(timeout_s, (patience.by_s or began_s) - began_s)
            admitted = breaker.admit(limits, began_s)
            if admitted is None:
                raise _open(place, breaker.wait_s(limits, began_s))
            outcome = Outcome.WITHDRAWN
            try:
                async with asyncio.timeout(left_s + GRACE_S):
                    yield left_s
                outcome = Outcome.SUCCEEDED
            except TimeoutError as error:
                outcome = Outcome.FAILED
                raise _late(place, kind) from error
            except ShardUnavailable as failure:
                outcome = _told_by(failure, _now_s() - began_s)
                raise
            except Exception:
                outcome = Outcome.SUCCEEDED  # the fence, the quota, a condition: the node answered
                raise
            finally:
                was = breaker.view.state
                breaker.settle(admitted, outcome, limits, _now_s())
                if was is State.HALF_OPEN and breaker.view.state is State.CLOSED:
                    self._hope(place)
                elif breaker.view.state is State.OPEN and place not in self._watches:
                    watch = self._watches[place] = asyncio.create_task(self._watch(place))
                    watch.add_done_callback(lambda _: self._watches.pop(place))

    def _hope(self, place: Place) -> None:
        """Each breaker of the node may try it again."""
        for breaker in self._breakers[place].values():
            breaker.hope(_now_s())

    async def _watch(self, place: Place) -> None:
        """Asks a node that was left alone until it answers, and then lets callers try it before the recovery is over.

        One that answers the first question was there all the time and failed in another way: its recovery stays.
        """
        was_away = False
        while any(breaker.view.state is State.OPEN for breaker in self._breakers.get(place, {}).values()):
            await asyncio.sleep(WATCH_S * (1 + random.uniform(-JITTER_RATIO, JITTER_RATIO)))  # noqa: S311
            try:
                await self._store.read(place, "get_map", timeout_s=TELLING_S)
            except NodeRefused:
                return
            except ShardUnavailable:
                was_away = True
            else:
                if was_away:
                    self._hope(place)
                return

    @asynccontextmanager
    async def _entered(self, place: Place, patience: Patience) -> AsyncIterator[None]:
        """The block is one of few that are at the node."""
        left_s = (patience.by_s or _now_s()) - _now_s()
        if left_s <= 0:
            raise DeadlineExceeded(place.shard, "the request's time is over")
        bulkhead = self._bulkheads.setdefault(place, Bulkhead(place.shard, CONNECTIONS_PER_NODE))
        async with bulkhead.entered(self._resilience().waiting_requests, left_s):
            yield

    @contextmanager
    def _counted(self, kind: Kind) -> Iterator[None]:
        """Tells of a question that found the queue full."""
        try:
            yield
        except Shed:
            self._on_shed(kind)
            raise


def _told_by(failure: ShardUnavailable, took_s: float) -> Outcome:
    """What a failure tells of the node."""
    if isinstance(failure, NodeRefused):
        return Outcome.SUCCEEDED
    if isinstance(failure, DeadlineExceeded) and took_s < TELLING_S:
        return Outcome.WITHDRAWN
    return Outcome.FAILED


def _open(place: Place, wait_s: float) -> BreakerOpen:
    reason = f"node {place.node.name} failed again and again and is left alone"
    return BreakerOpen(place.shard, reason, max(ceil(wait_s), 1))


def _late(place: Place, kind: Kind) -> ShardUnavailable:
    if kind is Kind.STORE:
        return OutcomeUnknown(place.shard, "no answer to the write in time")
    return DeadlineExceeded(place.shard, "no answer in time")


def _now_s() -> float:
    return asyncio.get_running_loop().time()
