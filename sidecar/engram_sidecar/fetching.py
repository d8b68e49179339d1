"""Memories by id from the shards that own them, several in one question."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from engram_contract.shardmap import ShardMap
from engram_contract.slots import MemoryId
from engram_sidecar import routing
from engram_sidecar.clock import monotonic_s
from engram_sidecar.config import InForce
from engram_sidecar.consistency import Source, session_of_request
from engram_sidecar.errors import SidecarError, SlotMoved
from engram_sidecar.following import Follower
from engram_sidecar.records import Get, Memory
from engram_sidecar.store import Asks
from engram_sidecar.writes import fetch_memories


@dataclass(frozen=True, slots=True)
class Fetched:
    """A memory as its shard stores it, None if there is none; the shard, and where in it the answer came from."""

    memory: Memory | None
    shard: str
    source: Source


Fetch = Callable[[Sequence[MemoryId]], Awaitable[list[Fetched | SidecarError]]]


class Fetcher:
    """Asks the shards of the map in force for the session of the request."""

    def __init__(self, store: Asks, in_force: InForce, timeout_s: float) -> None:
        self._store = store
        self._in_force = in_force
        self._timeout_s = timeout_s
        self._follower = Follower(store, in_force, timeout_s)

    async def fetch(self, ids: Sequence[MemoryId]) -> list[Fetched | SidecarError]:
        """Each memory, or why there is no answer for it; those of another map, or of several shards, one by one."""
        shard_map = self._in_force.config.shard_map
        try:
            if len({shard_map.shard_of(each.slot).id for each in ids}) == 1:
                return [*await self._fetch(ids, shard_map)]
        except SlotMoved:
            pass
        except SidecarError as failure:
            return [failure] * len(ids)
        return [await self._fetch_alone(each) for each in ids]

    async def _fetch_alone(self, memory_id: MemoryId) -> Fetched | SidecarError:
        try:
            [fetched] = await self._follower.ask(partial(self._fetch, [memory_id]))
        except SidecarError as failure:
            return failure
        return fetched

    async def _fetch(self, ids: Sequence[MemoryId], shard_map: ShardMap) -> list[Fetched]:
        place, began_s = routing.place_to_read(shard_map, ids[0].slot), monotonic_s()
        ask = partial(self._store.read, place, timeout_s=self._timeout_s)
        memories = await fetch_memories(ask, place, [Get(each) for each in ids])
        source = session_of_request().answered_by(Source(began_s))
        return [Fetched(memory, place.shard, source) for memory in memories]
