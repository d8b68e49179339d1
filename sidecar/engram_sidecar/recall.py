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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from math import inf
from typing import Final

from engram_contract.policy import Policy
from engram_contract.session import Position
from engram_contract.slots import MemoryId
from engram_sidecar.bulletin import Bulletin
from engram_sidecar.cache import Cache, CacheView, Ticket
from engram_sidecar.chance import jittered
from engram_sidecar.clock import monotonic_s
from engram_sidecar.consistency import Floors, Level, Session, Source, session_of_request
from engram_sidecar.envelope import Drawer
from engram_sidecar.errors import (
    DeadlineExceeded,
    IdempotencyKeyInUse,
    OutcomeUnknown,
    ShardUnavailable,
    SidecarError,
)
from engram_sidecar.fetching import Fetch
from engram_sidecar.gate import GRACE_S
from engram_sidecar.hearsay import Hearsay
from engram_sidecar.kept import Count, Kept, Recalled, Writing, key_of, order, shown, ttl
from engram_sidecar.loading import Loaded, Loader, Wanted, Ways
from engram_sidecar.loads import Loads
from engram_sidecar.patience import of_request
from engram_sidecar.records import Memory
from engram_sidecar.remote import Remote
from engram_sidecar.remote import Ticket as Shared
from engram_sidecar.timing import recorder
from engram_sidecar.wire import encode, memory_document

LONE_S: Final = 3.0  # so long what was read is shown while nobody tells what others write
DOUBT_S: Final = 30.0  # a statement that got no answer has ended by then, or never will
JITTER_RATIO: Final = 0.1
REFRESH_RATIO: Final = 0.1  # of its time: who asks for an entry so shortly before its end has it read again beside
LONE_REFRESH_S: Final = 2.0
YOUNG_S: Final = 1.0  # what is younger gains nothing from the bulletin's last beat
KEPT_BYTES: Final = 290  # what a Kept takes beside its body, with its source and its tag


@dataclass(frozen=True, slots=True)
class Rules:
    """What is kept by: the policy in force, which shard has a memory, and what opens one that is sealed."""

    policy: Callable[[], Policy]
    shard_of: Callable[[MemoryId], str]
    opened: Callable[[Memory], Awaitable[Memory]]
    opened_quietly: Callable[[Memory], Awaitable[Memory]]  # nobody is told of one that cannot be opened
    unix_s: Callable[[], float]
    on_shed: Callable[[], None]  # told of each read that found too many waiting


class Recall:
    """The first cache level of one tenant. Moments are on the loop's clock; `unix_s` is Unix time."""

    def __init__(
        self, floors: Floors, rules: Rules, drawer: Drawer, bulletin: Bulletin, remote: Remote, fetch: Fetch
    ) -> None:
        self.count = Count()
        self._floors = floors
        self._rules = rules
        self._drawer = drawer
        self._bulletin = bulletin
        self._remote = remote
        self._cache: Cache[bytes, Kept] = Cache(0, 0)
        self._loads = Loads[Recalled]()
        ways = Ways(fetch, rules.opened, rules.opened_quietly, self._forget_there, self._most_waiting, rules.on_shed)
        self._loader = Loader(floors, ways, remote, self._settle)
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
        self._hearsay.doubt(monotonic_s())
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
        self._hearsay.hear(shard, position, monotonic_s())

    async def close(self) -> None:
        """Ends what is read, and told, beside requests."""
        await asyncio.gather(self._loader.close(), self._loads.close())

    # Reads

    async def get(self, memory_id: MemoryId) -> Recalled:
        """What is kept, or else loaded. Raises what loading raises, if nothing may be shown in its stead."""
        session = session_of_request()
        if (recalled := self.find(memory_id, session)) is not None:
            return recalled
        tuned = self._rules.policy().resilience
        by_s = of_request().begin(monotonic_s(), tuned.deadline_seconds, tuned.failover_seconds)
        try:
            async with asyncio.timeout(by_s + GRACE_S - monotonic_s()):
                return await self._loaded(memory_id, session, by_s)
        except TimeoutError:
            late = DeadlineExceeded(self._rules.shard_of(memory_id), "no answer in time")
            return self.instead(memory_id, session, late)
        except ShardUnavailable as failure:
            return self.instead(memory_id, session, failure)

    def find(self, memory_id: MemoryId, session: Session) -> Recalled | None:
        """What is kept, if it is fresh and the session may take it. Shortly before its end it is loaded again."""
        now_s, key = monotonic_s(), key_of(memory_id)
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
        if self._is_due(kept, age_s, now_s) and key not in self._loads:
            self._refresh(memory_id)
        session.cached(f"hit{ttl(kept.fresh_until_s - now_s)}")
        session.is_as_old_as(age_s)
        return shown(Recalled(self.hit(key, kept), kept.tag, kept.shard, kept.source), session)

    def fresh(self, key: bytes) -> tuple[Kept, float, float] | None:
        """What is kept for every session that was never elsewhere, how old it is and how long it lasts, in seconds.

        None as well if it is to be loaded again soon.
        """
        now_s = monotonic_s()
        kept = self._cache.get(key, now_s)
        if kept is None or not kept.tag:
            return None
        age_s = self._age_s(kept, now_s)
        return None if self._is_due(kept, age_s, now_s) else (kept, age_s, kept.fresh_until_s - now_s)

    def hit(self, key: bytes, kept: Kept) -> bytes:
        """The body of what is kept, which is shown."""
        self.count.hits += 1
        return self._opened(key, kept)

    def instead(self, memory_id: MemoryId, session: Session, failure: ShardUnavailable) -> Recalled:
        """What is kept, if it is not older than the policy allows. Raises the failure if there is nothing to show."""
        now_s, key = monotonic_s(), key_of(memory_id)
        kept = self._cache.get(key, now_s)
        if kept is None or not session.may_take(kept.shard, kept.source):
            raise failure
        age_s = self._age_s(kept, now_s)
        if age_s > self._rules.policy().resilience.staleness_seconds:
            raise failure
        self.count.stale += 1
        session.cached("hit; ttl=-1; detail=stale")
        session.is_as_old_as(age_s)
        return shown(Recalled(self._opened(key, kept), kept.tag, kept.shard, kept.source), session)

    def _opened(self, key: bytes, kept: Kept) -> bytes:
        return self._drawer.open(key, kept.body) if kept.is_sealed else kept.body

    async def _loaded(self, memory_id: MemoryId, session: Session, by_s: float) -> Recalled:
        """What L2 or the shard says, asked once for all who see the same and ask meanwhile."""
        if (load := self.to_join(memory_id, session)) is not None:
            with suppress(DeadlineExceeded):  # who began it had less time left: it is loaded anew, for this one
                return self.came(await asyncio.shield(load), session, is_own=False)
        load = self.load(memory_id, session, by_s)
        return self.came(await (asyncio.shield(load) if session.is_plain else load), session)

    def to_join(self, memory_id: MemoryId, session: Session) -> "asyncio.Future[Recalled] | None":
        """The load of another request that this one may wait for too; to be told to `came` if it comes to something."""
        load = self._loads.to_join(key_of(memory_id)) if session.is_plain else None
        if load is not None:
            session.cached("fwd=uri-miss; collapsed")
        return load

    def load(self, memory_id: MemoryId, session: Session, by_s: float) -> "asyncio.Future[Recalled]":
        """A load of L2 or the shard for this session, which others may join if it is a plain one.

        Its end is to be told to `came`.
        """
        key, shard, now_s = key_of(memory_id), self._rules.shard_of(memory_id), monotonic_s()
        # Who was shown something new by the shard asks it again: its writer may be about to tell.
        may_share = session.is_plain and not self._loads.is_new(key, now_s)
        future: asyncio.Future[Recalled] = asyncio.get_running_loop().create_future()
        session.sources.clear()
        self._loads.begin(key, future, is_joined=session.is_plain)
        ticket, remote = self._cache.ticket(key), self._remote.ticket()
        self._loader.begin(Wanted(memory_id, key, shard, session, by_s, recorder(), remote, may_share, ticket, future))
        return future

    def came(self, recalled: Recalled, session: Session, *, is_own: bool = True) -> Recalled:
        """A request's own load has come, or one that it joined, and is shown to its session."""
        if not is_own:
            self.count.collapsed += 1
        elif recalled.source.is_shared:
            session.cached("fwd=uri-miss; detail=shared")
            self.count.shared += 1
        else:
            self.count.misses += 1
        return shown(recalled, session, is_own=is_own)

    def waiting(self) -> Mapping[str, int]:
        """Shard -> how many reads wait to be asked of it."""
        return self._loader.waiting()

    def _settle(self, wanted: Wanted, loaded: Loaded | BaseException) -> None:
        """A load has ended."""
        self._loads.end(wanted.key)
        if wanted.future.done():
            return
        try:
            ended = self._concluded(wanted, loaded) if isinstance(loaded, Loaded) else loaded
        except Exception as failure:  # noqa: BLE001  whoever waits is told
            ended = failure
        if isinstance(ended, Recalled):
            wanted.future.set_result(ended)
        elif isinstance(ended, asyncio.CancelledError):
            wanted.future.cancel()
        else:
            wanted.future.set_exception(ended)

    def _concluded(self, wanted: Wanted, loaded: Loaded) -> Recalled:
        """The answer, which is kept if it may be."""
        key, memory, shard, source = wanted.key, loaded.memory, loaded.shard, loaded.source
        body, tag = (b"", "") if memory is None else (encode(memory_document(memory, shard)), str(memory.etag))
        if not source.is_shared:
            self._loads.note_shown(key, tag, monotonic_s())
        recalled = Recalled(body, tag, shard, source)
        if self._wins(key, recalled, wanted.ticket) and self.may_keep(shard, source):
            self._fill(key, recalled, None if memory is None else memory.expires)
            if loaded.stored is not None and wanted.shared is not None:
                self._loads.go_on_beside(self._share(loaded.stored, shard, source.shown, wanted.shared))
        return recalled

    async def _share(self, stored: Memory, shard: str, position: Position | None, ticket: Shared) -> None:
        if await self._loader.share(stored, shard, position, ticket):
            self._loads.note_there(key_of(stored.id), str(stored.etag))

    def _most_waiting(self) -> int:
        return self._rules.policy().resilience.waiting_requests

    def _forget_there(self, shard: str, memory_id: MemoryId, position: Position | None) -> None:
        self._loads.go_on_beside(self._bulletin.tell(shard, [memory_id], position))

    def _wins(self, key: bytes, recalled: Recalled, ticket: Ticket) -> bool:
        """Whether this answer is to be kept: not if it may be older than one that was shown meanwhile.

        Answers of several loads cross: one asked the primary early and comes late, another one asked a replica. So each
        that ends spoils those that are still under way, for what is kept and for who would join them; and of two states
        of the memory the later one is kept. That there is none has no place in the order: then nothing is kept.
        """
        is_valid = self._cache.ticket(key) == ticket
        later = self._overtake(key, recalled.tag, monotonic_s())
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
        now_s = monotonic_s()
        for memory in found:
            key, tag = key_of(memory.id), str(memory.etag)
            self._overtake(key, tag, now_s)
            self._loads.note_shown(key, tag, now_s)

    def _fill(self, key: bytes, recalled: Recalled, expires: datetime | None) -> None:
        policy, now_s = self._rules.policy(), monotonic_s()
        if not policy.cache.local_entries:
            return
        until_s = recalled.source.began_s + (jittered(policy.cache.local_ttl_s, JITTER_RATIO) or inf)
        last_s = until_s + policy.resilience.staleness_seconds
        if expires is not None:
            last_s = min(last_s, now_s + expires.timestamp() - self._rules.unix_s())
        is_sealed = policy.encryption and bool(recalled.body)
        body = self._drawer.seal(key, recalled.body) if is_sealed else recalled.body
        kept = Kept(body, recalled.tag, recalled.shard, recalled.source, min(until_s, last_s), is_sealed)
        ticket = self._cache.ticket(key)
        self.count.stores += self._cache.fill(key, kept, len(body) + KEPT_BYTES, last_s, ticket, now_s)

    def _refresh(self, memory_id: MemoryId) -> None:
        """Loads the memory beside the request, for whoever asks next."""
        by_s = monotonic_s() + self._rules.policy().resilience.deadline_seconds
        _ = self.load(memory_id, Session(self._floors), by_s)

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
                until_s = monotonic_s() + DOUBT_S if writing.is_unknown else None
                for key in keys:
                    self._cache.end(key, until_s)
                    self._loads.part(key)
                if writing.is_unknown:
                    asyncio.get_running_loop().call_later(DOUBT_S, self._tell_beside, ids)

    def _tell_beside(self, ids: Sequence[MemoryId]) -> None:
        """The others are told again, now that it can happen no more."""
        self._loads.go_on_beside(self._tell(ids))

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
