"""Which shard owns which slots of one tenant: the map that the operator publishes and the sidecars read.

Promises of every ShardMap, however it was made (else BadMap)
1. Every slot, 0 to 16,383, has exactly one owner, and the owner is a shard of the map.
2. Ranges are in order of their slots and neighbours belong to different shards: equal ownership is equal ranges.
3. A shard that owns slots and is not Active makes the map `scattered`, for good: from then on new memories of a user
   may have been put off the user's own slot, so a search by user has to ask every shard.
4. A change raises the epoch by one; input that changes nothing gives the very map, epoch and all.

Placement: slots go by weight to shards that are Active, have a weight above 0 and lie in the tenant's residency. Slots
of a shard that is not Active stay where they are. A map names the shards of its residency, and those that own slots.

Pure; standard library only, no clock. Source: Redis Cluster specification, "Keys distribution model".
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Annotated, Final

from engram_contract.apportion import Move, SlotRange, moves_between, owners_of, ranges_of, rebalanced_owners, shares_of
from engram_contract.kinds import LABEL_PATTERN, MAX_INT64, Items, Text, Whole
from engram_contract.parse import Refused, Section, document_of, read_document, write_document
from engram_contract.slots import SLOTS

MAX_SHARDS: Final = 128
MAX_NODES: Final = 16
MAX_WEIGHT: Final = 1000
MAX_CHARS: Final = 3 << 20  # the largest valid map has 2.9 million; a usual one some thousand
DEFAULT_RESIDENCY: Final = "default"

SHARD_ID: Final = Text(32, LABEL_PATTERN, "lower-case letters, digits and dashes")
RESIDENCY: Final = Text(63, LABEL_PATTERN, "lower-case letters, digits and dashes")
_DATABASE: Final = Text(63, r"^[a-z_][-a-z0-9_]*$", "the name of a database in lower case")
_HOST: Final = Text(253, r"^[!-~]+$", "a host name, an address or the directory of a socket")


class BadMap(Refused):
    """This is no valid map: `path` names the member, `reason` says what is wrong with it."""


class NoActiveShard(ValueError):
    """No shard is Active, has a weight and lies in the residency, so new slots and memories have no place."""


class UnknownShard(LookupError):
    """The map has no shard of this id."""


class ShardState(StrEnum):
    """What a shard is open for: everything, reads only, or nothing."""

    ACTIVE = "Active"
    READONLY = "ReadOnly"
    MAINTENANCE = "Maintenance"


class Strategy(StrEnum):
    """What a memory's slot is made of, beside its tenant."""

    USER = "User"
    CONTENT = "ContentHash"
    TIME = "Time"
    TYPE = "MemoryType"


@dataclass(frozen=True, slots=True)
class Node:
    """One Postgres server of a shard."""

    name: Annotated[str, Text(63)]
    host: Annotated[str, _HOST]
    port: Annotated[int, Whole(1, 65_535)]


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard as a sidecar sees it. The first node leads to the primary: writes go there."""

    id: Annotated[str, SHARD_ID]
    database: Annotated[str, _DATABASE]
    nodes: Annotated[tuple[Node, ...], Items(Section(Node), MAX_NODES, key="name")]
    weight: Annotated[int, Whole(0, MAX_WEIGHT)] = 1
    state: ShardState = ShardState.ACTIVE
    residency: Annotated[str, RESIDENCY] = DEFAULT_RESIDENCY
    # Every server of the shard by its own address, where it has replicas; which is the primary, each says itself.
    members: Annotated[tuple[Node, ...], Items(Section(Node), MAX_NODES, key="name")] = ()

    def __post_init__(self) -> None:
        if not self.nodes:
            raise BadMap("nodes", f"shard {self.id} has none")

    def takes_slots(self, residency: str) -> bool:
        """True if slots may be given to this shard."""
        return self.state is ShardState.ACTIVE and self.weight > 0 and self.residency == residency


@dataclass(frozen=True, slots=True)
class ShardMap:
    """The whole map of one tenant at one epoch."""

    tenant: Annotated[str, Text(63, r"^[a-z_][-a-z0-9_]*$", "the name of a tenant's role")]
    epoch: Annotated[int, Whole(1, MAX_INT64)]
    strategy: Strategy
    shards: Annotated[tuple[Shard, ...], Items(Section(Shard), MAX_SHARDS, key="id")]
    ranges: Annotated[tuple[SlotRange, ...], Items(Section(SlotRange), SLOTS)]
    scattered: bool = False
    residency: Annotated[str, RESIDENCY] = DEFAULT_RESIDENCY
    # The owner of each range, in their order: a look-up in a request is one bisection.
    _owners: tuple[Shard, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= self.epoch <= MAX_INT64:
            raise BadMap("epoch", f"is not within 1 to {MAX_INT64}")
        by_id = {shard.id: shard for shard in self.shards}
        if len(by_id) < len(self.shards):
            raise BadMap("shards", "two shards have the same id")
        _refuse_broken_ranges(self.ranges, by_id)
        object.__setattr__(self, "_owners", tuple(by_id[item.shard] for item in self.ranges))
        resting = next((owner for owner in self._owners if owner.state is not ShardState.ACTIVE), None)
        if resting is not None and not self.scattered:
            raise BadMap("scattered", f"is false, but shard {resting.id} owns slots and is {resting.state}")

    def shard_of(self, slot: int) -> Shard:
        """The owner of a slot, 0 to 16,383. O(log n) in the number of ranges."""
        if not 0 <= slot < SLOTS:
            raise ValueError(f"slot {slot} is not within 0 to {SLOTS - 1}")
        return self._owners[bisect_right(self.ranges, slot, key=_first) - 1]

    def shard(self, shard_id: str) -> Shard:
        """The shard of this id; raises UnknownShard."""
        for shard in self.shards:
            if shard.id == shard_id:
                return shard
        raise UnknownShard(shard_id)

    def ranges_of(self, shard_id: str) -> tuple[SlotRange, ...]:
        """The ranges that a shard owns, in order; none if it owns none or is not in the map."""
        return tuple(item for item in self.ranges if item.shard == shard_id)

    def slots_of(self, shard_id: str) -> int:
        """The number of slots that a shard owns."""
        return sum(item.last - item.first + 1 for item in self.ranges_of(shard_id))

    def to_json(self) -> str:
        """The map as one line of JSON; equal maps give equal texts, and those without members the ones of before."""
        document = document_of(self)
        for shard in document["shards"]:
            if not shard["members"]:
                del shard["members"]
        return write_document(document)

    @classmethod
    def from_json(cls, text: str) -> "ShardMap":
        """The map that `to_json` wrote; members it does not know are passed over. Raises BadMap."""
        try:
            return read_document(cls, text, MAX_CHARS)
        except Refused as refused:
            raise BadMap(refused.path, refused.reason) from None


def first_map(tenant: str, strategy: Strategy, shards: Iterable[Shard], residency: str = DEFAULT_RESIDENCY) -> ShardMap:
    """The map of a new tenant, epoch 1: one range per shard, by weight. Raises NoActiveShard."""
    local = tuple(shard for shard in shards if shard.residency == residency)
    shares = shares_of(SLOTS, _weights(local, residency), {})
    owners = [shard for shard, share in shares.items() for _ in range(share)]
    return ShardMap(tenant, 1, strategy, local, ranges_of(owners), residency=residency)


def restated(old: ShardMap, shards: Iterable[Shard], residency: str | None = None) -> ShardMap:
    """The same ownership with what is true of the shards (and of the tenant's residency) now.

    Raises BadMap if a shard that owns slots is missing: its slots have to move first.
    """
    place = old.residency if residency is None else residency
    owning = {item.shard for item in old.ranges}
    kept = tuple(shard for shard in shards if shard.residency == place or shard.id in owning)
    lost = owning - {shard.id for shard in kept}
    if lost:
        raise BadMap("shards", f"{', '.join(sorted(lost))} still own slots and are missing")
    resting = {shard.id for shard in kept if shard.state is not ShardState.ACTIVE}
    new = replace(old, shards=kept, residency=place, scattered=old.scattered or bool(owning & resting))
    return old if new == old else replace(new, epoch=old.epoch + 1)


def rebalanced(old: ShardMap) -> ShardMap:
    """The slots of all Active shards shared by weight among those that may take some, with the fewest moves.

    An Active shard without weight or outside the residency gives all of its slots away. Raises NoActiveShard.
    """
    movable = [shard.id for shard in old.shards if shard.state is ShardState.ACTIVE]
    owners = rebalanced_owners(owners_of(old.ranges), movable, _weights(old.shards, old.residency))
    ranges = ranges_of(owners)
    return old if ranges == old.ranges else replace(old, ranges=ranges, epoch=old.epoch + 1)


def moves(old: ShardMap, new: ShardMap) -> tuple[Move, ...]:
    """The slots that have another owner in the new map, as the fewest moves. Raises BadMap for maps of two tenants."""
    if old.tenant != new.tenant:
        raise BadMap("tenant", f"{new.tenant} is not {old.tenant}")
    return moves_between(owners_of(old.ranges), owners_of(new.ranges))


def _weights(shards: Iterable[Shard], residency: str) -> dict[str, int]:
    weights = {shard.id: shard.weight for shard in shards if shard.takes_slots(residency)}
    if not weights:
        raise NoActiveShard(f"no shard is Active with a weight above 0 in residency {residency}")
    return weights


def _first(item: SlotRange) -> int:
    return item.first


def _refuse_broken_ranges(ranges: tuple[SlotRange, ...], known: Iterable[str]) -> None:
    known = set(known)
    free, before = 0, None
    for index, item in enumerate(ranges):
        path = f"ranges[{index}]"
        if item.shard not in known:
            raise BadMap(f"{path}.shard", f"{item.shard} is no shard of the map")
        if item.first > free:
            raise BadMap(f"{path}.first", f"slots {free} to {item.first - 1} have no owner")
        if item.first < free:
            raise BadMap(f"{path}.first", f"slot {item.first} has two owners, or the ranges are out of order")
        if item.last < item.first:
            raise BadMap(f"{path}.last", f"{item.last} lies before the first slot, {item.first}")
        if item.shard == before:
            raise BadMap(f"{path}.shard", f"{item.shard} owns the range before too: they are one range")
        free, before = item.last + 1, item.shard
    if free != SLOTS:
        raise BadMap(
            "ranges", f"slots {free} to {SLOTS - 1} have no owner" if free < SLOTS else "end beyond the last slot"
        )
