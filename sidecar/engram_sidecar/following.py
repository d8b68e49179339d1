"""Questions by the map in force, or by a newer one that a shard knows.

A shard that does not own the slot (SlotMoved) is asked for its map; with a newer one the question starts over, at most
MAP_ATTEMPTS times.
"""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from engram_contract.shardmap import ShardMap
from engram_sidecar import routing
from engram_sidecar.config import InForce
from engram_sidecar.errors import ShardUnavailable, SlotMoved
from engram_sidecar.store import Asks

MAP_ATTEMPTS: Final = 3

Answer = TypeVar("Answer")


class Follower:
    """Asks by the map, and takes over newer ones."""

    def __init__(self, store: Asks, in_force: InForce, timeout_s: float) -> None:
        self._store = store
        self._in_force = in_force
        self._timeout_s = timeout_s

    async def ask(self, attempt: Callable[[ShardMap], Awaitable[Answer]]) -> Answer:
        """The attempt's answer with the map in force, or a newer one. Raises ShardUnavailable for a slot that moves."""
        last = SlotMoved("")
        for _ in range(MAP_ATTEMPTS):
            shard_map = self._in_force.config.shard_map
            try:
                return await attempt(shard_map)
            except SlotMoved as moved:
                last = moved
                await self.learn(shard_map, moved.shard)
        raise ShardUnavailable(last.shard, "the slot is moving") from last

    async def learn(self, shard_map: ShardMap, shard: str) -> None:
        """Takes over the shard's map if it is newer than ours."""
        rows = await self._store.read(routing.primary(shard_map.shard(shard)), "get_map", timeout_s=self._timeout_s)
        if rows:
            self._in_force.offer(ShardMap.from_json(rows[0]["map"]))
