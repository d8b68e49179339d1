"""Reads by id, answered from what was read before where that is exact enough; and what a write makes of what is kept.

    get    kept here? --no--> one load for all who ask meanwhile --> in L2? --no--> the shard --> kept --> each of them
    write  begin: the entry goes, no fill stands --> the shard --> end: it goes again, the other sidecars are told

Promises
1. A session reads what it wrote, and of each memory no older state than it saw (consistency.py says what it may take);
a `strong` read is never answered from here.
2. No answer lacks what others wrote longer ago than its Age: while the bulletin is sound that is the time since its
last beat, else the time since the answer was read, and then nothing older than LONE_S is shown.
3. Where the shard does not answer, what is kept is shown up to the policy's bound on staleness, and said to be stale.
4. After a write whose outcome is unknown nothing of the memory is kept for DOUBT_S: it may still happen.
5. What is kept of a tenant that encrypts is ciphertext, under a key of this process.
6. What a replica answered is kept only if it had reached all that was written here, and all that others told of.

Source: RFC 9211 (Cache-Status); RFC 5861, section 4 (stale-if-error).
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from math import inf
from typing import Final

from engram_contract.policy import Policy
from engram_contract.session import Position
from engram_contract.slots import MemoryId
from engram_sidecar.bulletin import Bulletin
from engram_sidecar.cache import Cache, CacheView, Ticket
from engram_sidecar.chance import jittered
from engram_sidecar.consistency import Floors, Level, Session, Source, begin_session, session_of_request
from engram_sidecar.envelope import Drawer
from engram_sidecar.errors import (
    DeadlineExceeded,
    IdempotencyKeyInUse,
    KeyMissing,
    OutcomeUnknown,
    SealBroken,
    ShardUnavailable,
    SidecarError,
)
from engram_sidecar.hearsay import Hearsay
from engram_sidecar.kept import Count, Kept, Recalled, Writing, key_of, order, ttl
from engram_sidecar.loads import Loads
from engram_sidecar.patience import begin_request
from engram_sidecar.records import Memory
from engram_sidecar.remote import Remote
from engram_sidecar.remote import Ticket as Shared
from engram_sidecar.wire import encode, memory_document

LONE_S: Final = 3.0  # so long what was read is shown while nobody tells what others write
DOUBT_S: Final = 30.0  # a statement that got no answer has ended by then, or never will
JITTER_RATIO: Final = 0.1
REFRESH_RATIO: Final = 0.1  # of its time: who asks for an entry so shortly before its end has it read again beside
LONE_REFRESH_S: Final = 2.0
YOUNG_S: Final = 1.0  # what is younger gains nothing from the bulletin's last beat
KEPT_BYTES: Final = 290  # what a Kept takes beside its body, with its source and its tag


# Asks the shard: the memory as it is stored, None if there is none, and the shard's id.
Load = Callable[[], Awaitable[tuple[Memory | None, str]]]


@dataclass(frozen=True, slots=True)
class Rules:
    """What is kept by: the policy in force, which shard has a memory, and what opens one that is sealed."""

    policy: Callable[[], Policy]
    shard_of: Callable[[MemoryId], str]
    opened: Callable[[Memory], Awaitable[Memory]]
    opened_quietly: Callable[[Memory], Awaitable[Memory]]  # nobody is told of one that cannot be opened
    unix_s: Callable[[], float]


class Recall:
    """The first cache level of one tenant. Moments are on the loop's clock; `unix_s` is Unix time."""

    def __init__(self, floors: Floors, rules: Rules, drawer: Drawer, bulletin: Bulletin, remote: Remote) -> None:
        self.count = Count()
        self._floors = floors
        self._rules = rules
        self._drawer = drawer
        self._bulletin = bulletin
        self._remote = remote
        self._cache: Cache[bytes, Kept] = Cache(0, 0)
        self._loads = Loads[Recalled]()
        self._hearsay = Hearsay(floors)

    @property
    def view(self) -> CacheView:
        """What is kept, for metrics."""
        return self._cache.view

    def adopt(self) -> None:
        """Another map, policy or keyring: nothing is kept of before."""
        caching = self._rules.policy().cache
        self._cache.resize(caching.local_capacity_bytes, caching.local_entries)
        self._hearsay.forget()
        self.flush()

    def doubt(self) -> None:
        """What others told may not have been heard."""
        self._hearsay.doubt(_now_s())
        self.flush()

    def flush(self) -> None:
        """Nothing is kept, and no load under way is."""
        self._cache.flush()
        self._loads.part_all()

    def heard(self, shard: str, ids: Sequence[MemoryId] | None, position: Position | None) -> None:
        """It was told that these memories were written, None: any of the shard's."""
        if ids is None:
            self.flush()
        for memory_id in ids or ():
            self.drop(key_of(memory_id))
        self._hearsay.hear(shard, position, _now_s())

    async def close(self) -> None:
        """Ends what is read beside requests."""
        await self._loads.close()

    # Reads

    async def get(self, memory_id: MemoryId, load: Load) -> Recalled:
        """What is kept, or else loaded. Raises what `load` raises, if nothing may be shown in its stead."""
        key, session = key_of(memory_id), session_of_request()
        if (recalled := self._find(memory_id, key, session, load)) is not None:
            return recalled
        try:
            recalled = await self._loaded(memory_id, session, load)
        except ShardUnavailable:
            recalled = self._stale(key, session)
            if recalled is None:
                raise
            return recalled
        return _shown(recalled, session)

    def _find(self, memory_id: MemoryId, key: bytes, session: Session, load: Load) -> Recalled | None:
        """What is kept, if it is fresh and the session may take it. Shortly before its end it is loaded again."""
        now_s = _now_s()
        kept = self._cache.get(key, now_s)
        if kept is None:
            session.cached("fwd=uri-miss")
            return None
        age_s = self._age_s(kept, now_s)
        if now_s >= kept.fresh_until_s or age_s > self._bound_s(session):
            session.cached("fwd=stale")
            return None
        if not session.may_take(kept.shard, kept.source):
            session.cached("fwd=request")
            return None
        if self._is_due(kept, age_s, now_s):
            self._refresh(memory_id, load)
        session.cached(f"hit{ttl(kept.fresh_until_s - now_s)}")
        session.is_as_old_as(age_s)
        return _shown(Recalled(self.hit(key, kept), kept.tag, kept.shard, kept.source), session)

    def fresh(self, key: bytes) -> tuple[Kept, float, float] | None:
        """What is kept for every session that was never elsewhere, how old it is and how long it lasts, in seconds.

        None as well if it is to be loaded again soon.
        """
        now_s = _now_s()
        kept = self._cache.get(key, now_s)
        if kept is None or not kept.tag:
            return None
        age_s = self._age_s(kept, now_s)
        return None if self._is_due(kept, age_s, now_s) else (kept, age_s, kept.fresh_until_s - now_s)

    def hit(self, key: bytes, kept: Kept) -> bytes:
        """The body of what is kept, which is shown."""
        self.count.hits += 1
        return self._opened(key, kept)

    def _stale(self, key: bytes, session: Session) -> Recalled | None:
        """What is kept, if it is not older than the policy allows."""
        now_s = _now_s()
        kept = self._cache.get(key, now_s)
        if kept is None or not session.may_take(kept.shard, kept.source):
            return None
        age_s = self._age_s(kept, now_s)
        if age_s > self._rules.policy().resilience.staleness_seconds:
            return None
        self.count.stale += 1
        session.cached("hit; ttl=-1; detail=stale")
        session.is_as_old_as(age_s)
        return _shown(Recalled(self._opened(key, kept), kept.tag, kept.shard, kept.source), session)

    def _opened(self, key: bytes, kept: Kept) -> bytes:
        return self._drawer.open(key, kept.body) if kept.is_sealed else kept.body

    async def _loaded(self, memory_id: MemoryId, session: Session, load: Load) -> Recalled:
        """What L2 or the shard says, asked once for all who see the same and ask meanwhile."""
        key = key_of(memory_id)
        has_begun = session.is_plain and key in self._loads
        if has_begun:
            session.cached("fwd=uri-miss; collapsed")
            with suppress(DeadlineExceeded):  # who began it had less time left: it is loaded anew, for this one
                recalled = await self._joined(key, memory_id, load)
                self.count.collapsed += 1
                return recalled
        if session.is_plain and not has_begun:
            recalled = await self._joined(key, memory_id, load)
        else:
            recalled = await self._load(memory_id, load)
        if recalled.source.is_shared:
            self.count.shared += 1
        else:
            self.count.misses += 1
        return recalled

    async def _joined(self, key: bytes, memory_id: MemoryId, load: Load) -> Recalled:
        return await asyncio.shield(self._loads.join(key, partial(self._load, memory_id, load)))

    async def _load(self, memory_id: MemoryId, load: Load) -> Recalled:
        key, session = key_of(memory_id), session_of_request()
        ticket, shared, began_s = self._cache.ticket(key), self._remote.ticket(), _now_s()
        with self._loads.under_way(key):
            found, stored = None, None
            # Who asked the shard of late asks it again: it may have shown what its writer is about to tell.
            if shared is not None and session.is_plain and not self._loads.was_asked(key, began_s):
                found = await self._from_remote(memory_id, shared, began_s)
            if found is None:
                session.sources.clear()
                stored, shard = await load()
                memory = None if stored is None else await self._rules.opened(stored)
                found = memory, shard, session.answered_by(Source(began_s))
                self._loads.note_asked(key, _now_s())
        memory, shard, source = found
        body, tag = (b"", "") if memory is None else (encode(memory_document(memory, shard)), str(memory.etag))
        recalled = Recalled(body, tag, shard, source)
        if self._wins(key, recalled, ticket) and self.may_keep(shard, source):
            self._fill(key, recalled, None if memory is None else memory.expires)
            if stored is not None and shared is not None:
                self._loads.go_on_beside(asyncio.create_task(self._share(stored, shard, source, shared)))
        return recalled

    async def _from_remote(
        self, memory_id: MemoryId, shared: Shared, began_s: float
    ) -> tuple[Memory | None, str, Source] | None:
        """What L2 has, None if nothing that may be shown."""
        found, shard = await self._remote.get(memory_id, shared), self._rules.shard_of(memory_id)
        if found is None or (found[1] is None and shard in self._floors):
            return None
        try:
            memory = await self._rules.opened_quietly(found[0])
        except (KeyMissing, SealBroken):
            self._remote.undecodable += 1
            self._loads.go_on_beside(asyncio.create_task(self._bulletin.tell(shard, [memory_id], None)))
            return None
        session_of_request().cached("fwd=uri-miss; detail=shared")
        return memory, shard, Source(began_s, None, found[1], is_shared=True)

    async def _share(self, stored: Memory, shard: str, source: Source, shared: Shared) -> None:
        """Puts it into L2; what is older there goes, as its writer died before it told, or does not reach Redis."""
        if await self._remote.fill(stored, source.shown, shared):
            return
        there = await self._remote.get(stored.id, shared)
        if there is not None and order(str(stored.etag), str(there[0].etag)) != -1 and stored.etag != there[0].etag:
            await self._bulletin.tell(shard, [stored.id], source.shown)

    def _wins(self, key: bytes, recalled: Recalled, ticket: Ticket) -> bool:
        """Whether this answer is to be kept: not if it may be older than one that was shown meanwhile.

        Answers of several loads cross: one asked the primary early and comes late, another one asked a replica. So each
        that ends spoils those that are still under way, for what is kept and for who would join them; and of two states
        of the memory the later one is kept. That there is none has no place in the order: then nothing is kept.
        """
        is_valid = self._cache.ticket(key) == ticket
        later = self._overtake(key, recalled.tag, _now_s())
        return is_valid and later is not None and later >= 0

    def _overtake(self, key: bytes, tag: str, now_s: float) -> int | None:
        """This state was shown: what is kept or under way and may be older goes. How it stands to what was kept."""
        kept = self._cache.get(key, now_s)
        later = 0 if kept is None or kept.tag == tag else order(tag, kept.tag)
        if later is None or later > 0 or (later == 0 and self._loads.is_under_way(key)):
            self.drop(key)
        return later

    def drop(self, key: bytes) -> bool:
        """Nothing is kept of it, no load under way is, and nobody joins one. Whether something was kept."""
        self._loads.part(key)
        return self._cache.drop(key)

    def may_keep(self, shard: str, source: Source) -> bool:
        """Whether an answer may be shown to others: not what a replica said that may lack what they were told of."""
        return self._hearsay.may_keep(shard, source)

    def saw(self, found: Iterable[Memory]) -> None:
        """A list, a search or a batch showed these: nothing older of them is shown after it."""
        now_s = _now_s()
        for memory in found:
            key = key_of(memory.id)
            self._overtake(key, str(memory.etag), now_s)
            self._loads.note_asked(key, now_s)

    def _fill(self, key: bytes, recalled: Recalled, expires: datetime | None) -> None:
        policy, now_s = self._rules.policy(), _now_s()
        until_s = recalled.source.began_s + (jittered(policy.cache.local_ttl_s, JITTER_RATIO) or inf)
        last_s = until_s + policy.resilience.staleness_seconds
        if expires is not None:
            last_s = min(last_s, now_s + expires.timestamp() - self._rules.unix_s())
        is_sealed = policy.encryption and bool(recalled.body)
        body = self._drawer.seal(key, recalled.body) if is_sealed else recalled.body
        kept = Kept(body, recalled.tag, recalled.shard, recalled.source, min(until_s, last_s), is_sealed)
        ticket = self._cache.ticket(key)
        self.count.stores += self._cache.fill(key, kept, len(body) + KEPT_BYTES, last_s, ticket, now_s)

    def _refresh(self, memory_id: MemoryId, load: Load) -> None:
        """Loads the memory beside the request, for whoever asks next."""
        key = key_of(memory_id)
        if key not in self._loads:
            context = Context()
            context.run(begin_request)
            context.run(begin_session, self._floors)
            load_again = partial(self._load, memory_id, load)
            self._loads.go_on_beside(self._loads.join(key, load_again, context))

    def _age_s(self, kept: Kept, now_s: float) -> float:
        """At most so long ago was written what it lacks: what was told before the last beat would have dropped it."""
        age_s = now_s - kept.source.began_s + kept.source.behind_s
        if age_s > YOUNG_S:
            age_s = min(age_s, now_s - (self._bulletin.sound_s or -inf))
        return max(age_s, 0.0)

    def _bound_s(self, session: Session) -> float:
        bound_s = self._rules.policy().resilience.staleness_seconds
        return min(LONE_S, bound_s) if session.level is Level.EVENTUAL else LONE_S

    def _is_due(self, kept: Kept, age_s: float, now_s: float) -> bool:
        """Whether it is to be loaded again, as its end is near."""
        lasts_s = kept.fresh_until_s - kept.source.began_s
        return now_s > kept.fresh_until_s - lasts_s * REFRESH_RATIO or age_s > LONE_REFRESH_S

    # Writes

    @asynccontextmanager
    async def writing(self, ids: Sequence[MemoryId]) -> AsyncIterator[Writing]:
        """The block writes these memories: what is kept of them goes, now and when it has ended; others are told."""
        keys, writing = [key_of(each) for each in ids], Writing()
        for key in keys:
            self._cache.begin(key)
            self._loads.part(key)
        try:
            yield writing
        except SidecarError as failure:
            # One whose key is in use may have been done by its own first attempt.
            writing.is_unknown = writing.may_have_happened = isinstance(failure, OutcomeUnknown | IdempotencyKeyInUse)
            raise
        except BaseException:
            writing.is_unknown = True
            raise
        finally:
            try:
                if writing.may_have_happened:
                    await self._tell(ids)
            finally:
                until_s = _now_s() + DOUBT_S if writing.is_unknown else None
                for key in keys:
                    self._cache.end(key, until_s)
                    self._loads.part(key)
                if writing.is_unknown:
                    asyncio.get_running_loop().call_later(DOUBT_S, self._tell_beside, ids)

    def _tell_beside(self, ids: Sequence[MemoryId]) -> None:
        """The others are told again, now that it can happen no more."""
        self._loads.go_on_beside(asyncio.create_task(self._tell(ids)))

    async def _tell(self, ids: Sequence[MemoryId]) -> None:
        """The other sidecars know. Whoever leaves meanwhile leaves the rest to the bulletin."""
        by_shard: defaultdict[str, list[MemoryId]] = defaultdict(list)
        for memory_id in ids:
            by_shard[self._rules.shard_of(memory_id)].append(memory_id)
        session = session_of_request()
        # Each has its place among what is to be told before anybody waits.
        tells = [self._bulletin.tell(shard, written, session.position(shard)) for shard, written in by_shard.items()]
        for told in tells:
            await told


def _shown(recalled: Recalled, session: Session) -> Recalled:
    session.met(recalled.source, recalled.shard)
    if recalled.source.look is not None:
        session.is_as_old_as(recalled.source.behind_s)
    if recalled.source.shown is not None and session.level is not Level.EVENTUAL:
        session.reached(recalled.shard, recalled.source.shown)
    return recalled


def _now_s() -> float:
    return asyncio.get_running_loop().time()
