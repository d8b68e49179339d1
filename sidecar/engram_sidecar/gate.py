"""What stands before each node: its breakers, the bulkhead, the deadline, and several requests asked together.

    guard --read, write, transaction--> Gate --the same--> Store

Promises
1. An open breaker, or one whose probe is out, answers at once (BreakerOpen), with the time after which to try again.
2. Only failures of a node count against it: no answer, a lost connection, an unknown outcome. A refusal is an answer.
3. No question goes on beyond its request's deadline, whatever the driver waits for.
4. Puts of single memories go to the node together with those of other requests (gathering.py); each has its own answer,
its own error and its own deadline. (Gets go together before they come here: loading.py.)
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from math import ceil, inf
from typing import Final

from engram_contract.resilience import Resilience
from engram_sidecar.breaker import Breaker, Limits, Outcome, State, View
from engram_sidecar.bulkhead import Bulkhead
from engram_sidecar.chance import jittered
from engram_sidecar.clock import monotonic_s
from engram_sidecar.consistency import join_sessions, session_of_request
from engram_sidecar.errors import (
    BreakerOpen,
    DeadlineExceeded,
    NodeRefused,
    OutcomeUnknown,
    QuotaExceeded,
    ShardUnavailable,
    Shed,
    SidecarError,
    SlotMoved,
)
from engram_sidecar.failover import is_away
from engram_sidecar.gathering import GATHERED, Gatherer
from engram_sidecar.patience import Patience
from engram_sidecar.store import CONNECTIONS_PER_NODE, Asks, Place, Row, Transaction
from engram_sidecar.timing import recorder, shared
from engram_sidecar.together import (
    PUT,
    PUTS,
    Asked,
    puts_arguments,
    puts_rows,
    puts_together,
)

JITTER_RATIO: Final = 0.5
GRACE_S: Final = 0.25  # a driver that gives a connection back may wait for a node that is silent
WATCH_S: Final = 0.5
TELLING_S: Final = 1.0  # who waited shorter than this has not seen that a node does not answer
# What a shard says of a whole statement for the sake of one of its rows.
_OF_ONE: Final = (SlotMoved, QuotaExceeded, NodeRefused)


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


class Gate:
    """Asks nodes, each by itself. Every method takes the patience of the request that asks."""

    def __init__(self, store: Asks, resilience: Callable[[], Resilience]) -> None:
        self._store = store
        self._resilience = resilience
        self._breakers: defaultdict[Place, dict[Kind, Breaker]] = defaultdict(
            lambda: {kind: Breaker() for kind in Kind}
        )
        self._bulkheads: dict[Place, Bulkhead] = {}
        self._watches: dict[Place, asyncio.Task[None]] = {}
        self._puts = Gatherer(self._put_together, GATHERED)

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

    def waiting_requests(self) -> dict[tuple[str, str], int]:
        """(shard, node) -> how many requests wait for its connections."""
        return {
            (place.shard, place.node.name): each.waiting + self._puts.waiting(place)
            for place, each in self._bulkheads.items()
        }

    async def read(self, patience: Patience, place: Place, query: str, *args: object, timeout_s: float) -> list[Row]:
        """The rows of a named query."""
        kind = kind_of(query)
        async with self._admitted(place, kind, patience, timeout_s) as left_s:
            return await self._store.read(place, query, *args, timeout_s=left_s)

    async def write(
        self, patience: Patience, place: Place, query: str, *args: object, timeout_s: float, is_awaited: bool
    ) -> list[Row]:
        """The rows of a named query that changes something; `is_awaited`: the request waits for a primary."""
        if query == PUT:
            return await self._together(place, _asked(args, patience, timeout_s, is_awaited=is_awaited))
        async with self._admitted(place, Kind.STORE, patience, timeout_s, is_awaited=is_awaited) as left_s:
            return await self._store.write(place, query, *args, timeout_s=left_s)

    @asynccontextmanager
    async def transaction(
        self, patience: Patience, place: Place, timeout_s: float, *, is_awaited: bool
    ) -> AsyncIterator[Transaction]:
        """Several named queries that happen together or not at all."""
        async with (
            self._admitted(place, Kind.STORE, patience, timeout_s, is_awaited=is_awaited) as left_s,
            self._store.transaction(place, left_s) as transaction,
        ):
            yield transaction

    async def _together(self, place: Place, asked: Asked) -> list[Row]:
        """The rows of one request's put, which the node is asked for together with others."""
        if self._puts.waiting(place) >= self._resilience().waiting_requests:
            raise Shed(place.shard, "too many requests wait for the node")
        try:
            async with asyncio.timeout_at(asked.by_s + GRACE_S):
                return await self._puts.answer(place, asked)
        except TimeoutError as error:
            # One that was not sent is no more than late.
            raise _late(place, Kind.STORE if asked.is_out else Kind.RETRIEVE) from error

    async def _put_together(self, place: Place, asked: Sequence[Asked]) -> list[list[Row] | Exception]:
        first, others = puts_together(asked)
        answers: dict[int, list[Row] | Exception] = {}
        try:
            answers = dict(zip(map(id, first), await self._put_all(place, first), strict=True))
        except _OF_ONE as failure:
            if len(first) == 1:
                answers[id(first[0])] = failure
            else:
                others = [*first, *others]
        except SidecarError as failure:
            answers = {id(each): failure for each in first}
        for each in others:
            try:
                [answers[id(each)]] = await self._put_all(place, [each])
            except SidecarError as failure:
                answers[id(each)] = failure
        return [answers[id(each)] for each in asked]

    async def _put_all(self, place: Place, asked: Sequence[Asked]) -> list[list[Row]]:
        """The rows of puts that happen together."""
        is_awaited = any(each.is_awaited for each in asked)
        join_sessions([each.session for each in asked])
        with shared([each.recorder for each in asked]):
            async with self._admitted(place, Kind.STORE, _patience_of(asked), inf, is_awaited=is_awaited) as left_s:
                for each in asked:
                    each.is_out = True
                if len(asked) == 1:
                    return [await self._store.write(place, PUT, *asked[0].arguments, timeout_s=left_s)]
                rows = await self._store.write(place, PUTS, *puts_arguments(asked), timeout_s=left_s)
        return puts_rows(asked, rows)

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
            breaker.hope(monotonic_s())
        if breaker.refuses(limits, monotonic_s()):
            raise _open(place, breaker.wait_s(limits, monotonic_s()))  # at once, and not after a wait for others
        async with self._entered(place, patience):
            began_s = monotonic_s()
            left_s = min(timeout_s, (patience.by_s or began_s) - began_s)
            admitted = breaker.admit(limits, began_s)
            if admitted is None:
                raise _open(place, breaker.wait_s(limits, began_s))
            outcome, is_gone = Outcome.WITHDRAWN, False
            try:
                async with asyncio.timeout(left_s + GRACE_S):
                    yield left_s
                outcome = Outcome.SUCCEEDED
            except TimeoutError as error:
                outcome = Outcome.FAILED
                raise _late(place, kind) from error
            except ShardUnavailable as failure:
                outcome, is_gone = _told_by(failure, monotonic_s() - began_s), is_away(failure)
                raise
            except Exception:
                outcome = Outcome.SUCCEEDED  # the fence, the quota, a condition: the node answered
                raise
            finally:
                was = breaker.view.state
                breaker.settle(admitted, outcome, limits, monotonic_s())
                if was is State.HALF_OPEN and breaker.view.state is State.CLOSED:
                    self._hope(place)
                elif breaker.view.state is State.OPEN and place not in self._watches:
                    watch = self._watches[place] = asyncio.create_task(self._watch(place, was_away=is_gone))
                    watch.add_done_callback(lambda _: self._watches.pop(place))

    def _hope(self, place: Place) -> None:
        """Each breaker of the node may try it again."""
        for breaker in self._breakers[place].values():
            breaker.hope(monotonic_s())

    async def _watch(self, place: Place, *, was_away: bool) -> None:
        """Asks a node that was left alone until it answers, and then lets callers try it before the recovery is over.

        One that was not away, and answers the first question, failed in another way: its recovery stays.
        """
        while any(breaker.view.state is State.OPEN for breaker in self._breakers.get(place, {}).values()):
            await asyncio.sleep(jittered(WATCH_S, JITTER_RATIO))
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
        left_s = (patience.by_s or monotonic_s()) - monotonic_s()
        if left_s <= 0:
            raise DeadlineExceeded(place.shard, "the request's time is over")
        bulkhead = self._bulkheads.setdefault(place, Bulkhead(place.shard, CONNECTIONS_PER_NODE))
        async with bulkhead.entered(self._resilience().waiting_requests, left_s):
            yield


def kind_of(query: str) -> Kind:
    """The kind of a named query that reads."""
    return Kind.RETRIEVE if query in _RETRIEVES else Kind.SEARCH


def _patience_of(asked: Sequence[Asked]) -> Patience:
    """That of requests that ask together: until the last of them is out of it."""
    return Patience(by_s=max(each.by_s for each in asked))


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


def _asked(arguments: tuple[object, ...], patience: Patience, timeout_s: float, *, is_awaited: bool = False) -> Asked:
    """The question of the request that this task answers."""
    now_s = monotonic_s()
    by_s = min(patience.by_s or now_s, now_s + timeout_s)
    return Asked(arguments, by_s, session_of_request(), recorder(), is_awaited)
