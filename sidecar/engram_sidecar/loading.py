"""Reads by id that L1 has no answer to: of L2 or else of the shard, those of several requests in one question.

    begin --> L2, if the request may have what is there --found--> settled
                 '--not there--> the shard, with all of the same need --> settled

Promises
1. Each read gets its own answer or its own error; what has no answer in L2 does not hold up what has.
2. Requests of one question need to see the same: those of sessions that were never elsewhere, by their level; any
other session asks alone.
3. At most GATHERED memories of a shard are in a question; who finds too many waiting before it is shed.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from engram_contract.session import Position
from engram_contract.slots import MemoryId
from engram_sidecar.cache import Ticket
from engram_sidecar.clock import monotonic_s
from engram_sidecar.consistency import Floors, Level, Session, Source, take_up
from engram_sidecar.errors import KeyMissing, SealBroken, Shed, SidecarError
from engram_sidecar.fetching import Fetch, Fetched
from engram_sidecar.gathering import GATHERED, Gatherer
from engram_sidecar.kept import Recalled, order
from engram_sidecar.patience import begin_request
from engram_sidecar.records import Memory
from engram_sidecar.remote import Remote
from engram_sidecar.remote import Ticket as Shared
from engram_sidecar.timing import Recorder, shared

REMOTE_GATHERED: Final = 8  # values in one answer of Redis at most: all of them come in time, or none


# Of which shard, and what its reads need to see: as much as any session of this level, or what this one has to.
Whose = tuple[str, Level | Session]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a read came to: the memory in the clear, None if there is none. `stored`: as the shard has it, if asked."""

    memory: Memory | None
    shard: str
    source: Source
    stored: Memory | None = None


@dataclass(slots=True, eq=False)
class Wanted:
    """A read under way. `by_s`: until when it waits. `shared`, `ticket`: by which it may be kept in L2 and L1."""

    id: MemoryId
    key: bytes
    shard: str
    session: Session
    by_s: float
    recorder: Recorder | None
    shared: Shared | None
    asks_remote: bool  # it may be answered by L2
    ticket: Ticket
    future: "asyncio.Future[Recalled]"


@dataclass(frozen=True, slots=True)
class Ways:
    """What a loader asks and tells. `most_waiting` reads wait for a shard; `on_shed` is told of each beyond.

    `fetch` asks the shards. `opened`: what is sealed in the clear; `opened_quietly`: nobody is told if it cannot be.
    `forget`: what L2 has of a memory of the shard, up to a position, is of no use.
    """

    fetch: Fetch
    opened: Callable[[Memory], Awaitable[Memory]]
    opened_quietly: Callable[[Memory], Awaitable[Memory]]
    forget: Callable[[str, MemoryId, Position | None], None]
    most_waiting: Callable[[], int]
    on_shed: Callable[[], None]


class Loader:
    """Loads for one tenant. `settle` is told of each read's end: what was loaded, or why nothing was."""

    def __init__(
        self, floors: Floors, ways: Ways, remote: Remote, settle: Callable[[Wanted, Loaded | BaseException], None]
    ) -> None:
        self._floors = floors
        self._ways = ways
        self._remote = remote
        self._settle = settle
        self._of_remote = Gatherer[str, Wanted, Loaded | None](self._ask_remote, REMOTE_GATHERED)
        self._of_shards = Gatherer[Whose, Wanted, Loaded | None](self._ask_shard, GATHERED)

    def waiting(self) -> Counter[str]:
        """Shard -> how many reads wait to be asked of it."""
        waiting = Counter[str]()
        for (shard, _), count in self._of_shards.lengths():
            waiting[shard] += count
        return waiting

    def begin(self, wanted: Wanted) -> None:
        """Asks for it; `settle` is told, later."""
        if wanted.shared is not None and wanted.asks_remote:
            self._of_remote.ask_for("", wanted).add_done_callback(partial(self._came, wanted))
        else:
            self._go_to_shard(wanted)

    async def share(self, stored: Memory, shard: str, shown: Position | None, ticket: Shared) -> bool:
        """Puts it into L2, and whether it is there then.

        What is older there goes: who wrote this died before it told, or does not reach Redis.
        """
        if await self._remote.fill(stored, shown, ticket):
            return True
        [there] = await self._remote.get([(stored.id, ticket)])
        if there is None:
            return False
        if there[0].etag == stored.etag:
            return True
        if order(str(stored.etag), str(there[0].etag)) != -1:
            self._ways.forget(shard, stored.id, shown)
        return False

    async def close(self) -> None:
        """Ends what is asked."""
        await asyncio.gather(self._of_remote.close(), self._of_shards.close())

    def _go_to_shard(self, wanted: Wanted) -> None:
        if sum(self._of_shards.waiting((wanted.shard, level)) for level in Level) >= self._ways.most_waiting():
            self._ways.on_shed()
            self._settle(wanted, Shed(wanted.shard, "too many requests wait for the node"))
            return
        asked = self._of_shards.ask_for((wanted.shard, whose(wanted.session)), wanted)
        asked.add_done_callback(partial(self._came, wanted))
        wanted.future.add_done_callback(lambda ended: asked.cancel() if ended.cancelled() else None)

    def _came(self, wanted: Wanted, answer: "asyncio.Future[Loaded | None]") -> None:
        """An answer of L2, None for nothing, or of the shard."""
        if answer.cancelled():
            self._settle(wanted, asyncio.CancelledError())
        elif (failure := answer.exception()) is not None:
            self._settle(wanted, failure)
        elif (loaded := answer.result()) is None:
            self._go_to_shard(wanted)
        else:
            self._settle(wanted, loaded)

    async def _ask_remote(self, _: str, asked: Sequence[Wanted]) -> list[Loaded | Exception | None]:
        began_s = monotonic_s()
        with shared([each.recorder for each in asked]):
            found = await self._remote.get([(each.id, each.shared) for each in asked if each.shared is not None])
            return [await self._opened_there(each, kept, began_s) for each, kept in zip(asked, found, strict=True)]

    async def _opened_there(
        self, wanted: Wanted, kept: tuple[Memory, Position | None] | None, began_s: float
    ) -> Loaded | None:
        if kept is None or (kept[1] is None and wanted.shard in self._floors):
            return None
        stored, position = kept
        try:
            memory = await self._ways.opened_quietly(stored)
        except (KeyMissing, SealBroken):
            self._remote.undecodable += 1
            self._ways.forget(wanted.shard, wanted.id, None)
            return None
        return Loaded(memory, wanted.shard, Source(began_s, None, position, is_shared=True))

    async def _ask_shard(self, of: Whose, asked: Sequence[Wanted]) -> list[Loaded | Exception | None]:
        _, session = of
        take_up(session if isinstance(session, Session) else Session(self._floors, session))
        begin_request().by_s = max(each.by_s for each in asked)
        with shared([each.recorder for each in asked]):
            fetched = await self._ways.fetch([each.id for each in asked])
            return [await self._opened(each) for each in fetched]

    async def _opened(self, fetched: Fetched | SidecarError) -> Loaded | Exception:
        if isinstance(fetched, SidecarError):
            return fetched
        try:
            memory = None if fetched.memory is None else await self._ways.opened(fetched.memory)
        except (KeyMissing, SealBroken) as refusal:
            return refusal
        return Loaded(memory, fetched.shard, fetched.source, fetched.memory)


def whose(session: Session) -> Level | Session:
    """What reads of sessions that need to see the same have in common."""
    return session.level if session.is_of_here else session
