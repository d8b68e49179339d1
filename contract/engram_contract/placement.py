"""Which slot a memory gets: the routing key by strategy, and the way round a shard that takes no new memories.

Promises
1. A named memory (user, namespace, key) is always in the slot that its name says, whatever the states of the shards.
2. A new unnamed memory goes to its home slot while the owner is Active, else to a slot of an Active shard.
3. Under the strategy `User`, every memory of a user is in the user's home slot unless the map says `scattered`.

Source: design "Placement"; requirements 1.1 (missing user: one fixed bucket; missing type: episodic; no time: now).
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime

from engram_contract.names import length_prefixed
from engram_contract.shardmap import NoActiveShard, ShardMap, ShardState, Strategy
from engram_contract.slots import MemoryId, named_uuid, slot_of


@dataclass(frozen=True, slots=True)
class Name:
    """What a keyed memory is called within its tenant. Unique together."""

    user: str | None
    namespace: tuple[str, ...]
    key: str

    def to_bytes(self) -> bytes:
        """The name in a form in which no part reaches into the next; an absent user differs from an empty one."""
        owner = ("user", self.user) if self.user is not None else ("shared",)
        return length_prefixed(*owner, str(len(self.namespace)), *self.namespace, self.key)


@dataclass(frozen=True, slots=True)
class Traits:
    """What the strategies look at when an unnamed memory is created. `created` is in UTC."""

    user: str | None
    content: str
    type: str
    created: datetime


def user_slot(tenant: str, user: str | None) -> int:
    """The home slot of a user; memories without a user share one fixed slot."""
    return slot_of(length_prefixed(tenant, "user", user or ""))


def routing_key(strategy: Strategy, tenant: str, traits: Traits) -> bytes:
    """The bytes whose slot is the home of a new unnamed memory."""
    match strategy:
        case Strategy.USER:
            return length_prefixed(tenant, "user", traits.user or "")
        case Strategy.CONTENT:
            return length_prefixed(tenant, "content", hashlib.sha256(traits.content.encode()).hexdigest())
        case Strategy.TIME:
            return length_prefixed(tenant, "time", traits.created.strftime("%Y-%m"))
        case Strategy.TYPE:
            return length_prefixed(tenant, "type", traits.type)


def named_id(strategy: Strategy, tenant: str, name: Name) -> MemoryId:
    """The id of a keyed memory: from its name alone, beside the user's other memories under the strategy `User`."""
    raw = name.to_bytes()
    if strategy is Strategy.USER and name.user is not None:
        return MemoryId(user_slot(tenant, name.user), named_uuid(tenant, raw))
    return MemoryId(slot_of(length_prefixed(tenant, "name") + raw), named_uuid(tenant, raw))


def slot_for_new(shard_map: ShardMap, key: bytes) -> int:
    """The slot for a new unnamed memory; raises NoActiveShard if no shard takes new memories.

    O(number of ranges) when the home shard is not Active, O(log ranges) otherwise.
    """
    home = slot_of(key)
    if shard_map.shard_of(home).state is ShardState.ACTIVE:
        return home
    open_ranges = [r for r in shard_map.ranges if shard_map.shard(r.shard).state is ShardState.ACTIVE]
    total = sum(r.last - r.first + 1 for r in open_ranges)
    if total == 0:
        reason = "no shard is Active: new memories have nowhere to go"
        raise NoActiveShard(reason)
    nth = int.from_bytes(hashlib.sha256(key).digest()[:8], "big") % total
    for slots in open_ranges:
        size = slots.last - slots.first + 1
        if nth < size:
            return slots.first + nth
        nth -= size
    raise AssertionError  # the ranges were counted above
