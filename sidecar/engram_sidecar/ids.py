"""Ids for the memories of one request, by one map and one moment. Pure: both are given, and so is chance."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from engram_contract.placement import Traits, named_id, routing_key, slot_for_new
from engram_contract.shardmap import NoActiveShard, ShardMap
from engram_contract.slots import MemoryId, slot_of, uuid7
from engram_sidecar.errors import ShardUnavailable
from engram_sidecar.records import Draft


@dataclass(frozen=True, slots=True)
class Ids:
    """Makes ids at `now_s` (Unix time)."""

    shard_map: ShardMap
    now_s: float
    random_bytes: Callable[[int], bytes]

    def id_of(self, draft: Draft) -> MemoryId:
        """The id of a named memory. Raises ValueError for a draft without a key."""
        if draft.name is None:
            raise ValueError(draft)
        return named_id(self.shard_map.strategy, self.shard_map.tenant, draft.name)

    def new_id(self, draft: Draft) -> MemoryId:
        """A new id in the slot that the strategy says. Raises ShardUnavailable if no shard takes new memories."""
        return MemoryId(self._slot(draft), uuid7(int(self.now_s * 1000), self.random_bytes(10)))

    def _slot(self, draft: Draft) -> int:
        try:
            return slot_for_new(self.shard_map, self._routing_key(draft, self.now_s))
        except NoActiveShard as error:
            names = ", ".join(shard.id for shard in self.shard_map.shards)
            raise ShardUnavailable(names, "no shard is Active, so new memories have nowhere to go", 30) from error

    def _routing_key(self, draft: Draft, at_s: float) -> bytes:
        traits = Traits(draft.user, draft.content, draft.type, datetime.fromtimestamp(at_s, UTC))
        return routing_key(self.shard_map.strategy, self.shard_map.tenant, traits)


@dataclass(frozen=True, slots=True)
class HomeIds(Ids):
    """Ids for a request that may be repeated: new memories go to their home slots, whatever the state of the shards.

    There a repetition looks for them. `placed_s`: the Unix time that the strategy `Time` goes by.
    """

    placed_s: float

    def _slot(self, draft: Draft) -> int:
        return slot_of(self._routing_key(draft, self.placed_s))


def month_of(at_s: float) -> tuple[int, int]:
    """Year and month of a moment of Unix time."""
    at = datetime.fromtimestamp(at_s, UTC)
    return at.year, at.month
