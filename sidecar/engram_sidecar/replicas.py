"""Reads go to a replica where the request's session allows it, and to the primary otherwise.

    pipeline, finder --> Replicas --a read that a replica may answer--> a replica, once --> else the primary
                             |                    '--late--> beside it another replica, else the primary, once
                             '----everything else-----------------------------------------> the primary

Promises
1. A replica that fails, is late or does not own what is asked for costs a part of the request's time, and no error.
A late one (hedging.py) is not waited for alone, if the budget of retries has room: the first right answer counts.
2. What answers as the primary is one: out of recovery, and on no older timeline than a node of the shard told.
3. Each answer raises its session to what it showed: the statement that reads says how far its node was, and never less
than that. (What is known before a read is a bound from below, and would let the next read show an older state.)
4. An eventual read of a replica raises nothing: its session asked for no more.
5. Of two questions for one read only the one whose answer is given tells its session anything. The other one is
withdrawn, and no breaker hears of it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from engram_contract.session import UNKNOWN, Position
from engram_sidecar.clock import monotonic_s
from engram_sidecar.consistency import Level, Session, Source, session_of_request
from engram_sidecar.errors import ShardUnavailable, SlotMoved
from engram_sidecar.guard import Guard
from engram_sidecar.hedging import Lateness
from engram_sidecar.lookout import Chosen, Lookout
from engram_sidecar.store import Place, Row, Transaction

log = logging.getLogger(__name__)
POSITIONED: Final = frozenset({"get_memories", "list_memories", "search_memories"})
SPREAD: Final = POSITIONED | {"count_lexemes", "tenant_size"}
_PADDED: Final = frozenset({"list_memories", "search_memories"})  # without an answer one row of nulls
PRIMARY_ATTEMPTS: Final = 2

Answer = TypeVar("Answer")


class Replicas:
    """Asks the guard.

    `on_read` is told of each read that a replica might have answered, and whether one did; `on_hedge` of each that was
    asked of a second node, and whether that one's answer was given.
    """

    def __init__(
        self,
        guard: Guard,
        lookout: Lookout,
        renew: Callable[[Place], Awaitable[None]],
        on_read: Callable[[bool, Level], None],
        on_hedge: Callable[[bool], None],
    ) -> None:
        self._guard = guard
        self._lookout = lookout
        self._renew = renew
        self._on_read = on_read
        self._on_hedge = on_hedge
        self._lateness = Lateness()
        self._withdrawn: set[asyncio.Task[_Shown | None]] = set()  # until they have ended

    async def read(self, place: Place, query: str, *args: object, timeout_s: float) -> list[Row]:
        """The rows of a named query; `place` is the primary."""
        session_of_request().met()
        if query not in SPREAD:
            return await self._guard.read(place, query, *args, timeout_s=timeout_s)
        session, question = session_of_request(), _Question(place, query, args, timeout_s)
        shown = await self._of_replica(question, session)
        self._on_read(shown is not None and shown.is_by_replica, session.level)
        if shown is None:
            shown = await self._of_primary(question, session)
        else:
            self._guard.earn(place.shard)
        shown.tell(session)
        return [row for row in shown.rows if row["id"] is not None] if query in _PADDED else shown.rows

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

    async def _of_replica(self, question: "_Question", session: Session) -> "_Shown | None":
        """What a replica answers, or the primary in the stead of a late one; None if it has to be asked."""
        if session.level is Level.STRONG or not session.has_replicas(question.place.shard):
            return None
        chosen = await self._lookout.choose(question.place.shard, session)
        if chosen is None:
            return None
        began_s, tasks = monotonic_s(), [asyncio.create_task(self._ask(self._guard.read_once, question, chosen))]
        try:
            await asyncio.wait(tasks, timeout=self._lateness.late_s(question.kind, began_s))
            if tasks[0].done() or not self._guard.may_hedge(question.place.shard):
                return await tasks[0]
            tasks.append(asyncio.create_task(self._ask_elsewhere(question, chosen, session)))
            first, shown = await _first_shown(tasks)
            self._on_hedge(first is tasks[1])
            if first is tasks[1]:
                self._observe(question, chosen.place, monotonic_s() - began_s)
            return shown
        finally:
            self._withdraw(task for task in tasks if not task.done())

    async def _ask(self, ask: "_Ask", question: "_Question", chosen: Chosen) -> "_Shown | None":
        """What a replica answers, asked once; None if it does not."""
        began_s = monotonic_s()
        try:
            rows = await ask(chosen.place, question.query, *question.args, timeout_s=question.timeout_s)
        except (ShardUnavailable, SlotMoved):
            return None
        self._observe(question, chosen.place, monotonic_s() - began_s)
        if question.query not in POSITIONED:
            return _Shown(rows, question.place.shard, Source(began_s, behind_s=chosen.behind_s))
        look, position = Position(chosen.look.timeline or 0, chosen.look.lsn), _position(rows[0], chosen)
        return _Shown(rows, question.place.shard, Source(began_s, look, position, chosen.behind_s))

    async def _ask_elsewhere(self, question: "_Question", asked: Chosen, session: Session) -> "_Shown | None":
        """What another replica than `asked` answers, else the primary, asked once; None if it does not."""
        other = self._lookout.choose_other(question.place.shard, session, asked)
        if other is not None:
            return await self._ask(self._guard.read_once, question, other)
        try:
            return await self._ask_primary(self._guard.read_once, question, session)
        except (ShardUnavailable, SlotMoved):
            return None

    async def _of_primary(self, question: "_Question", session: Session) -> "_Shown":
        for _ in range(PRIMARY_ATTEMPTS):
            shown = await self._ask_primary(self._guard.read, question, session)
            if shown is not None:
                return shown
            await self._renew(question.place)
        raise ShardUnavailable(question.place.shard, "the node is not the primary")

    async def _ask_primary(self, ask: "_Ask", question: "_Question", session: Session) -> "_Shown | None":
        """What the primary answers; None if it is none."""
        shard, ticket, began_s = question.place.shard, session.ticket(), monotonic_s()
        rows = await ask(question.place, question.query, *question.args, timeout_s=question.timeout_s)
        if question.query not in POSITIONED or not session.has_replicas(shard):
            return _Shown(rows, shard, Source(began_s), is_by_replica=False)
        head = rows[0]
        if head["is_replica"] or head["timeline"] < self._lookout.timeline(shard):
            return None
        position = Position(head["timeline"], head["seen_lsn"])
        return _Shown(rows, shard, Source(began_s, None, position), ticket, is_by_replica=False)

    def _observe(self, question: "_Question", place: Place, seconds: float) -> None:
        self._lateness.observe(question.kind, seconds, monotonic_s())
        self._lookout.observe(place, seconds)

    def _withdraw(self, tasks: "Iterable[asyncio.Task[_Shown | None]]") -> None:
        """Nobody waits for these; a driver may take until the node's answer to give its connection back."""
        for task in tasks:
            task.cancel()
            self._withdrawn.add(task)
            task.add_done_callback(self._forget)

    def _forget(self, task: "asyncio.Task[_Shown | None]") -> None:
        self._withdrawn.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.warning("a withdrawn read failed", extra={"reason": type(task.exception()).__name__})


class _Ask(Protocol):
    """Asks a node for the rows of a named query."""

    async def __call__(self, place: Place, query: str, *args: object, timeout_s: float) -> list[Row]: ...


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked of a shard; `place` is its primary."""

    place: Place
    query: str
    args: tuple[object, ...]
    timeout_s: float

    @property
    def kind(self) -> tuple[str, str]:
        """Reads of one kind take about as long."""
        return self.place.shard, self.query


@dataclass(frozen=True, slots=True)
class _Shown:
    """An answer, and what it tells its session: nothing, until it is the one that is given."""

    rows: list[Row]
    shard: str
    source: Source
    ticket: int | None = None
    is_by_replica: bool = True

    def tell(self, session: Session) -> None:
        """The session saw it. An eventual read of a replica raises nothing."""
        shown = self.source.shown
        session.met(self.source, self.shard)
        if self.is_by_replica or shown is not None:
            session.is_as_old_as(self.source.behind_s)
        if shown is not None and not (self.is_by_replica and session.level is Level.EVENTUAL):
            session.reached(self.shard, shown, self.ticket)


_Asked = asyncio.Task[_Shown | None]


async def _first_shown(tasks: Sequence[_Asked]) -> tuple[_Asked, _Shown | None]:
    """The first of the questions that has an answer, and that; the first of them all and None if none has."""
    pending = set(tasks)
    while pending:
        _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done() and (shown := task.result()) is not None:
                return task, shown
    return tasks[0], None


def _position(row: Row, chosen: Chosen) -> Position:
    """One behind all that the statement saw; of a replica that was promoted meanwhile, as a primary tells it."""
    timeline = row["timeline"] or chosen.look.timeline
    return Position(timeline, row["seen_lsn"]) if timeline else UNKNOWN
