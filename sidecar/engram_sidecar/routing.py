"""Which shards and nodes a request asks. Pure: map and request in, places out.

What is answered here is the primary's place; replicas.py may ask a replica instead. A place is taken from the map anew
for every request; nothing here remembers.
"""

from engram_contract.placement import user_slot
from engram_contract.shardmap import Shard, ShardMap, ShardState, Strategy
from engram_sidecar.errors import ShardReadOnly, ShardUnavailable
from engram_sidecar.records import Selection
from engram_sidecar.store import Place

MAINTENANCE = "maintenance"


def primary(shard: Shard) -> Place:
    """The place of a shard's primary."""
    return Place(shard.id, shard.nodes[0], shard.database)


def members(shard: Shard) -> dict[str, Place]:
    """The places of a shard's nodes by their own names; none if it has no replicas."""
    return {node.name: Place(shard.id, node, shard.database) for node in shard.members}


def home(shard_map: ShardMap) -> Place:
    """Where the tenant's sidecars report themselves and record the audit: the primary of slot 0's owner."""
    return primary(shard_map.shard_of(0))


def place_to_read(shard_map: ShardMap, slot: int) -> Place:
    """Where a memory of the slot is read; raises ShardUnavailable during maintenance."""
    shard = shard_map.shard_of(slot)
    if shard.state is ShardState.MAINTENANCE:
        raise ShardUnavailable(shard.id, MAINTENANCE, retry_after_s=30)
    return primary(shard)


def place_to_write(shard_map: ShardMap, slot: int) -> Place:
    """Where a memory of the slot is changed; raises ShardReadOnly, or ShardUnavailable during maintenance."""
    shard = shard_map.shard_of(slot)
    if shard.state is ShardState.READONLY:
        raise ShardReadOnly(shard.id)
    return place_to_read(shard_map, slot)


def shards_to_search(shard_map: ShardMap, selection: Selection) -> tuple[Shard, ...]:
    """The shards that may hold memories of the selection: one where the user tells, else all that own a slot."""
    if selection.user is not None and shard_map.strategy is Strategy.USER and not shard_map.scattered:
        return (shard_map.shard_of(user_slot(shard_map.tenant, selection.user)),)
    return tuple(shard for shard in shard_map.shards if shard_map.slots_of(shard.id))
