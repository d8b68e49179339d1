"""L2: the tenant's memories in its part of Redis, for all its sidecars, and results of its searches.

    {tenant's part}m:{generation}:{id}    a row as the shard stores it, or "" for a while after a write
    {tenant's part}s:{writes}:{digest}    what a search found while the counter of writes was this

Promises
1. Nothing is ever an error: whatever Redis does, it was not there, or was not put there.
2. Nothing is read while the bulletin is not sound or owes a notice, and nothing is put there unless it was sound from
   before the read until then, and the read took less than FILL_S: a tombstone outlives that.
3. Of a tenant whose data are encrypted only sealed memories are put there, and nothing at all in the clear.
4. A memory leaves it when it expires, by the clocks of Redis and of who reads.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from engram_contract.session import Position
from engram_contract.slots import MemoryId
from engram_sidecar.bulletin import Bulletin, key_of
from engram_sidecar.cachedrow import BadRow, parse_row, write_row
from engram_sidecar.clock import monotonic_s
from engram_sidecar.errors import CacheUnavailable
from engram_sidecar.records import Memory
from engram_sidecar.redisdoor import Door
from engram_sidecar.tally import generation_of

FILL_S: Final = 5.0
SEARCH_TTL_S: Final = 300
KEPT_S: Final = 30 * 86_400  # a time of 0 is until Redis evicts it; what nobody asks for in a month goes
MAX_VALUE_BYTES: Final = 1 << 20  # a larger one would hold up whoever asks Redis behind it


@dataclass(frozen=True, slots=True)
class Ticket:
    """What was known before a shard was asked; what it answered may be put into L2 with it."""

    taken_s: float
    writes: int
    doubts: int


class Remote:
    """The door to what is shared. `ttl_s`: how long a memory may stay. `clock`: seconds since 1970.

    `encrypts`: whether the tenant's data are to be encrypted.
    """

    def __init__(
        self,
        door: Door,
        bulletin: Bulletin,
        ttl_s: Callable[[], float],
        encrypts: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self._door = door
        self._bulletin = bulletin
        self._ttl_s = ttl_s
        self._encrypts = encrypts
        self._clock = clock
        self.stores = 0  # memories
        self.misses = 0
        self.undecodable = 0
        self.failures = 0

    def ticket(self) -> Ticket | None:
        """To be taken before L2 or a shard is asked; None while L2 is not to be used."""
        writes = self._bulletin.writes
        if writes is None or self._bulletin.is_owing:
            return None
        return Ticket(monotonic_s(), writes, self._bulletin.doubts)

    async def get(self, asked: Sequence[tuple[MemoryId, Ticket]]) -> list[tuple[Memory, Position | None] | None]:
        """Each memory, sealed as it is stored, and the position behind all that is in it; None if it is not there."""
        kept = await self._read([self._key(memory_id, ticket) for memory_id, ticket in asked])
        return [self._found(memory_id, data) for (memory_id, _), data in zip(asked, kept, strict=True)]

    def _found(self, memory_id: MemoryId, data: bytes | None) -> tuple[Memory, Position | None] | None:
        found = self._parsed(memory_id, data) if data else None
        is_there = found is not None and (found[0].expires is None or found[0].expires.timestamp() > self._clock())
        self.misses += not is_there
        return found if is_there else None

    async def fill(self, memory: Memory, shown: Position | None, ticket: Ticket) -> bool:
        """Whether the memory is there for all now; not if something was written since the ticket, or is there."""
        ttl_s = self._ttl_s() or KEPT_S
        left_s = ttl_s if memory.expires is None else min(ttl_s, memory.expires.timestamp() - self._clock())
        if memory.sealed is None and self._encrypts():
            return False
        is_stored = await self._put(self._key(memory.id, ticket), write_row(memory, shown), left_s, ticket)
        self.stores += is_stored
        return is_stored

    async def get_search(self, digest: str, ticket: Ticket) -> bytes | None:
        """What `fill_search` put there under the digest, if nothing of the tenant was written since."""
        [kept] = await self._read([self._search_key(digest, ticket)])
        return kept

    async def fill_search(self, digest: str, value: bytes, left_s: float, ticket: Ticket) -> None:
        """The value is there for whoever asks before the next write. The caller has sealed what is to be sealed."""
        await self._put(self._search_key(digest, ticket), value, min(left_s, SEARCH_TTL_S), ticket)

    async def _read(self, keys: Sequence[str]) -> list[bytes | None]:
        try:
            return await self._door.mget(keys)
        except CacheUnavailable:
            self.failures += len(keys)
            return [None] * len(keys)

    async def _put(self, key: str, value: bytes, ttl_s: float, ticket: Ticket) -> bool:
        if ttl_s * 1000 < 1 or len(value) > MAX_VALUE_BYTES or not self._holds(ticket):
            return False
        try:
            return await self._door.fill(key, value, int(ttl_s * 1000))
        except CacheUnavailable:
            self.failures += 1
            return False

    def _holds(self, ticket: Ticket) -> bool:
        """Whether what was read under the ticket may be shown to others."""
        now = self.ticket()
        return now is not None and now.doubts == ticket.doubts and now.taken_s - ticket.taken_s < FILL_S

    def _parsed(self, memory_id: MemoryId, data: bytes) -> tuple[Memory, Position | None] | None:
        found = None
        with suppress(BadRow):
            found = parse_row(data)
        if found is None or found[0].id != memory_id or (found[0].sealed is None and self._encrypts()):
            self.undecodable += 1
            return None
        return found

    def _key(self, memory_id: MemoryId, ticket: Ticket) -> str:
        return key_of(self._door.part, generation_of(ticket.writes), memory_id)

    def _search_key(self, digest: str, ticket: Ticket) -> str:
        return f"{self._door.part}s:{ticket.writes:x}:{digest}"
