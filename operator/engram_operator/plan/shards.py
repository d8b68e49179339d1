"""Which shards a cluster should have now: those asked for, less what needs a move of slots first. Pure.

Promises
1. A shard that owns slots, or of which nobody can tell, stays; it is reported as an orphan with its reason.
2. A shard that no map of any tenant names is not made once maps are there: it would stand empty and look like capacity.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from engram_contract.spec import ClusterSpec
from engram_operator.plan.observed import Database, Observed, Silence, TenantSeen
from engram_operator.plan.steps import Note


@dataclass(frozen=True, slots=True)
class Orphan:
    """What is no longer asked for and stays."""

    name: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Shards:
    """What becomes of each shard id: kept as asked, kept although not asked for, or removed."""

    kept: tuple[str, ...]
    orphans: tuple[Orphan, ...]
    removed: tuple[str, ...]
    notes: tuple[Note, ...]

    @property
    def all_kept(self) -> tuple[str, ...]:
        """Every shard that is looked after, orphans too."""
        return (*self.kept, *(each.name for each in self.orphans))


def plan_shards(spec: ClusterSpec, seen: Observed) -> Shards:
    """The verdict on every shard that is asked for or present."""
    wanted = [shard.id for shard in spec.shards]
    present = seen.shards_present()
    named = {shard for tenant in seen.tenants for shard in tenant.slots}
    refused = [each for each in wanted if named and each not in named and each not in present]
    orphans, removed = [], []
    for shard in (each for each in present if each not in wanted):
        orphan = _orphan(shard, seen.tenants, seen.databases)
        if orphan is None:
            removed.append(shard)
        else:
            orphans.append(orphan)
    return Shards(
        tuple(each for each in wanted if each not in refused),
        tuple(orphans),
        tuple(removed),
        (*_refusal(spec, refused, named), *_stays(spec, orphans)),
    )


def _orphan(shard: str, tenants: Iterable[TenantSeen], databases: Mapping[str, Database | Silence]) -> Orphan | None:
    slots = sum(tenant.slots.get(shard, 0) for tenant in tenants)
    if slots:
        return Orphan(shard, "OwnsSlots", f"{shard} owns {slots} slots of tenants; they have to move first")
    told = databases.get(shard, Silence("it has not been asked"))
    if isinstance(told, Silence):
        return Orphan(shard, "NotAsked", f"whether {shard} owns slots is not known: {told.reason}")
    if told.owned_slots:
        return Orphan(
            shard, "OwnsSlots", f"{shard} says that it owns {told.owned_slots} slots; they have to move first"
        )
    return None


def _refusal(spec: ClusterSpec, refused: list[str], named: set[str]) -> tuple[Note, ...]:
    if not refused:
        return ()
    message = (
        f"spec.shards is {spec.shards_count}, but the tenants' maps know {', '.join(sorted(named))} alone: "
        f"{', '.join(refused)} would own no slot, and moving slots is not there yet"
    )
    return (Note("ReshardNeeded", message),)


def _stays(spec: ClusterSpec, orphans: list[Orphan]) -> tuple[Note, ...]:
    if not orphans:
        return ()
    said = "; ".join(each.message for each in orphans)
    return (Note("ShardsNotEmpty", f"spec.shards is {spec.shards_count}, but {said}"),)
