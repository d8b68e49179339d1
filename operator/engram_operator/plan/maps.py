"""The next map of a tenant: its first, or the newest one known with what is true of the shards now. Pure.

A map never goes back: whoever knows the newest, a shard or the tenant's ConfigMap, is believed.
"""

from collections.abc import Iterable

from engram_contract import names
from engram_contract.policy import Isolation
from engram_contract.shardmap import Shard, ShardMap, Strategy, first_map, restated


def tenant_database(role: str, isolation: Isolation) -> str:
    """The database of a tenant on each shard: its own if Strict, else the one that tenants share."""
    return role if isolation is Isolation.STRICT else names.SHARED_DATABASE


def plan_map(
    role: str, strategy: Strategy, shards: Iterable[Shard], residency: str, known: Iterable[ShardMap]
) -> ShardMap:
    """The tenant's map. Raises NoActiveShard if no shard may take its memories, BadMap if an owner is missing."""
    newest = max(known, key=lambda each: each.epoch, default=None)
    if newest is None:
        return first_map(role, strategy, shards, residency)
    return restated(newest, shards, residency)
