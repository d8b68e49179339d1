"""Reads go to a replica where the request's session allows it, and to the primary otherwise.

    pipeline, finder --> Replicas --a read that a replica may answer--> a replica, once --> else the primary
                             '----everything else-----------------------------------------> the primary

Promises
1. A replica that fails, is late or does not own what is asked for costs a part of the request's time, and no error.
2. What answers as the primary is one: out of recovery, and on no older timeline than a node of the shard told.
3. Each answer raises its session to what it showed: the statement that reads says how far its node was, and never less
than that. (What is known before a read is a bound from below, and would let the next read show an older state.)
4. An eventual read of a replica raises nothing: its session asked for no more.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Final, TypeVar

from engram_contract.session import UNKNOWN, Position
from engram_sidecar.consistency import Level, Source, session_of_request
from engram_sidecar.errors import ShardUnavailable, SlotMoved
from engram_sidecar.guard import Guard
from engram_sidecar.lookout import Chosen, Lookout
from engram_sidecar.store import Place, Row, Transaction

POSITIONED: Final = frozenset({"get_memories", "list_memories", "search_memories"})
SPREAD: Final = POSITIONED | {"count_lexemes", "tenant_size"}
_PADDED: Final = frozenset({"list_memories", "search_memories"})  # without an answer one row of nulls
PRIMARY_ATTEMPTS: Final = 2

Answer = TypeVar("Answer")


class Replicas:
    """Asks the guard. `on_read` is told of each read that a replica might have answered, and whether one did."""

    def __init__(
        self,
        guard: Guard,
        lookout: Lookout,
        renew: Callable[[Place], Awaitable[None]],
        on_read: Callable[[bool, Level], None],
    ) -> None:
        self._guard = guard
        self._lookout = lookout
        self._renew = renew
        self._on_read = on_read

    async def read(self, place: Place, query: str, *args: object, timeout_s: float) -> list[Row]:
        """The rows of a named query; `place` is the primary."""
        session_of_request().met()
        if query not in SPREAD:
            return await self._guard.read(place, query, *args, timeout_s=timeout_s)
        rows = await self._of_replica(place, query, args, timeout_s)
        self._on_read(rows is not None, session_of_request().level)
        if rows is None:
            rows = await self._of_primary(place, query, args, timeout_s)
        return [row for row in rows if row["id"] is not None] if query in _PADDED else rows

    async def write(self, place: Place, query: str, *args: object, timeout_s: float) -> list[Row]:
        """The rows of a named query that changes something."""
        session_of_request().met()
        return await self._guard.write(place, query, *args, timeout_s=timeout_s)

    def transaction(self, place: Place, timeout_s: float) -> AbstractAsyncContextManager[Transaction]:
        """Several named queries that happen together or not at all."""
        session_of_request().met()
        return self._guard.transaction(place, timeout_s)

    async def repeat(self, place: Place, attempt: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer of a write that happens once, however often it is run."""
        return await self._guard.repeat(place, attempt)

    async def _of_replica(
        self, place: Place, query: str, args: tuple[object, ...], timeout_s: float
    ) -> list[Row] | None:
        """The rows, None if no replica may answer or none did."""
        session = session_of_request()
        if session.level is Level.STRONG or not session.has_replicas(place.shard):
            return None
        chosen = await self._lookout.choose(place.shard, session)
        if chosen is None:
            return None
        began_s = _now_s()
        try:
            rows = await self._guard.read_once(chosen.place, query, *args, timeout_s=timeout_s)
        except (ShardUnavailable, SlotMoved):
            return None
        self._lookout.observe(chosen.place, _now_s() - began_s)
        session.is_as_old_as(chosen.behind_s)
        if query in POSITIONED:
            shown = _shown(rows[0], chosen)
            session.met(Source(began_s, Position(chosen.look.timeline or 0, chosen.look.lsn), shown, chosen.behind_s))
            if session.level is not Level.EVENTUAL:
                session.reached(place.shard, shown)
        return rows

    async def _of_primary(self, place: Place, query: str, args: tuple[object, ...], timeout_s: float) -> list[Row]:
        session = session_of_request()
        for _ in range(PRIMARY_ATTEMPTS):
            ticket, began_s = session.ticket(), _now_s()
            rows = await self._guard.read(place, query, *args, timeout_s=timeout_s)
            if query not in POSITIONED or not session.has_replicas(place.shard):
                session.met(Source(began_s))
                return rows
            head = rows[0]
            if not head["is_replica"] and head["timeline"] >= self._lookout.timeline(place.shard):
                shown = Position(head["timeline"], head["seen_lsn"])
                session.is_as_old_as(0.0)
                session.met(Source(began_s, None, shown))
                session.reached(place.shard, shown, ticket)
                return rows
            await self._renew(place)
        raise ShardUnavailable(place.shard, "the node is not the primary")


def _shown(row: Row, chosen: Chosen) -> Position:
    """A position behind all that the statement saw; of a replica that was promoted meanwhile, as a primary tells it."""
    timeline = row["timeline"] or chosen.look.timeline
    return Position(timeline, row["seen_lsn"]) if timeline else UNKNOWN


def _now_s() -> float:
    return asyncio.get_running_loop().time()
