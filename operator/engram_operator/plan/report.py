"""The status of a MemoryCluster: what was seen and what the round came to, as conditions and figures. Pure.

Promises
1. `Ready` is True only if every shard serves with all its members and nothing of this generation is left to do.
2. A time in a condition changes only with its status; figures are rounded. So an unchanged world is an equal status.
3. What nobody could ask is Unknown or absent, never the last thing known.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from engram_contract.names import ROTATE_ANNOTATION
from engram_contract.spec import ClusterSpec, Provider
from engram_operator.manifests.names import ClusterNames
from engram_operator.plan.cluster import Plan
from engram_operator.plan.conditions import MAX_MESSAGE_CHARS, Verdict, build_condition
from engram_operator.plan.members import SYNC_ROLE, Leader, Member, lag_bytes, primary_of
from engram_operator.plan.observed import Database, Observed
from engram_operator.plan.steps import Note, Step, Wait

MIB: Final = 1 << 20
MAX_PLAN_LINES: Final = 256
MAX_LINE_CHARS: Final = 512
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Round:
    """What was done of a plan, and what it ended at, by track."""

    done: tuple[Step, ...] = ()
    waits: tuple[tuple[str, Wait], ...] = ()
    notes: tuple[tuple[str, Note], ...] = ()
    is_complete: bool = True  # False if a plan was only shown

    @property
    def faults(self) -> tuple[Wait | Note, ...]:
        """What somebody should look at."""
        return (*(each for _, each in self.notes), *(each for _, each in self.waits if each.is_fault))


def build_status(spec: ClusterSpec, seen: Observed, plan: Plan, ended: Round) -> Json:
    """The whole status."""
    shards = [_shard(spec, shard_id, seen, ended) for shard_id in plan.shards.all_kept]
    serving = sum(each["ready"] == "True" for each in shards if each["id"] in plan.shards.kept)
    verdicts = tuple(_verdicts(spec, plan, ended, shards))
    status: Json = {
        "observedGeneration": seen.metadata["generation"],
        "phase": _phase(spec, ended, verdicts, seen),
        "ready": f"{serving}/{spec.shards_count}",
        "mapEpoch": max((each.epoch for each in seen.tenants), default=0),
        "tenants": len(seen.tenants),
        "update": plan.update[:MAX_MESSAGE_CHARS],
        "shards": shards,
        "orphans": [
            {"name": each.name, "reason": each.reason, "message": each.message[:MAX_MESSAGE_CHARS]}
            for each in plan.shards.orphans
        ],
        "conditions": [build_condition(each, seen.resource, seen.now_s) for each in verdicts],
    }
    if spec.plan_only or spec.paused:
        status["plan"] = [each[:MAX_LINE_CHARS] for each in plan.lines[:MAX_PLAN_LINES]]
    rotation = _rotation(seen, ended)
    return status | ({"rotation": rotation} if rotation else {})


def refused_status(resource: Mapping[str, Any], reason: str, now_s: float) -> Json:
    """The status of a cluster whose spec this operator does not understand."""
    verdicts = (Verdict("Ready", "BadSpec", reason, holds=False), Verdict("Degraded", "BadSpec", reason, holds=True))
    return {
        "observedGeneration": resource["metadata"]["generation"],
        "phase": "Refused",
        "conditions": [build_condition(each, resource, now_s) for each in verdicts],
    }


def _verdicts(spec: ClusterSpec, plan: Plan, ended: Round, shards: list[Json]) -> Iterator[Verdict]:
    waiting = [each for _, each in ended.waits]
    faults = ended.faults
    left = bool(ended.done or waiting or faults or (not ended.is_complete and plan.lines))
    down = [each["id"] for each in shards if each["ready"] != "True"]
    serves = not down
    if serves and not left:
        yield Verdict("Ready", "Ready", f"all {spec.shards_count} shards serve with all their members", holds=True)
    else:
        first = next(iter(faults or waiting), None)
        stopped = "Paused" if spec.paused else "PlanOnly" if spec.plan_only else "Working"
        reason = first.reason if first else "ShardsNotReady" if down else stopped
        message = (
            first.message if first else f"{', '.join(down)} do not serve" if down else "; ".join(map(str, ended.done))
        )
        yield Verdict("Ready", reason, message or "the plan is not carried out", holds=False)
    is_moving = bool(ended.done or any(not each.is_fault for each in waiting))
    moving = "; ".join((*map(str, ended.done), *(each.message for each in waiting if not each.is_fault)))
    yield Verdict(
        "Progressing", "Working" if is_moving else "Settled", moving or "nothing is left to do", holds=is_moving
    )
    said = "; ".join(each.message for each in faults)
    yield Verdict(
        "Degraded", faults[0].reason if faults else "AsExpected", said or "nothing is wrong", holds=bool(faults)
    )
    all_serve = "all shards serve" if serves else f"not serving: {', '.join(down)}"
    yield Verdict("ShardsReady", "AllServe" if serves else "SomeDoNot", all_serve, holds=serves)
    yield _backup(spec)
    yield Verdict("ReshardingActive", "NoMove", "no slots are moving", holds=False)
    held = "nothing is written while spec.paused is set" if spec.paused else "the operator works on the cluster"
    yield Verdict("Paused", "Asked" if spec.paused else "NotAsked", held, holds=spec.paused)


def _backup(spec: ClusterSpec) -> Verdict:
    if spec.backup.s3 is None and spec.backup.local is None:
        return Verdict(
            "BackupHealthy", "NoTarget", "spec.backup names neither s3 nor local: there is no backup", holds=False
        )
    return Verdict("BackupHealthy", "NotYet", "this version makes no backups yet", holds=None)


def _phase(spec: ClusterSpec, ended: Round, verdicts: tuple[Verdict, ...], seen: Observed) -> str:
    holds = {each.type: each.holds for each in verdicts}
    if spec.paused:
        return "Paused"
    if spec.plan_only:
        return "PlanOnly"
    if holds["Ready"]:
        return "Ready"
    if any(isinstance(each, Note) for each in ended.faults):
        return "Blocked"
    if holds["Degraded"]:
        return "Degraded"
    return "Updating" if seen.status.get("phase") not in (None, "Creating") else "Creating"


def _shard(spec: ClusterSpec, shard_id: str, seen: Observed, ended: Round) -> Json:
    told = seen.databases.get(shard_id)
    members = seen.members(shard_id)
    leader = seen.leader(ClusterNames(spec.name, spec.namespace).shard(shard_id).scope)
    primary = primary_of(members, leader)
    states = {shard.id: shard.state.value for shard in spec.shards}
    external = spec.provider is Provider.EXTERNAL
    is_ready = isinstance(told, Database) and told.is_current and not told.faults and (external or primary is not None)
    wait = next((each for track, each in ended.waits if track == shard_id), None)
    status: Json = {
        "id": shard_id,
        "state": states.get(shard_id, "Active"),
        "ready": str(is_ready),
        "slots": sum(each.slots.get(shard_id, 0) for each in seen.tenants),
        "message": wait.message[:MAX_MESSAGE_CHARS] if wait else "",
    }
    if not external:
        status |= {
            "primary": primary.name if primary else "",
            "readyReplicas": sum(each.is_healthy and each.name != leader.name for each in members),
            "members": [_member(each, lag_bytes(each, primary, leader), leader) for each in members],
        }
    if isinstance(told, Database):
        status |= {
            "postgresVersion": told.server_version,
            "schemaVersion": told.schema_version,
            "vectors": told.has_vector,
            "sizeBytes": told.size_bytes,
        }
    return status


def _member(member: Member, lag: int | None, leader: Leader) -> Json:
    status: Json = {
        "name": member.name,
        "role": SYNC_ROLE if member.name in leader.sync else member.role,
        "ready": member.is_healthy,
        "message": member.trouble[:MAX_MESSAGE_CHARS],
    }
    if member.timeline is not None:
        status["timeline"] = member.timeline
    if lag is not None:
        status["lagBytes"] = lag // MIB * MIB
    return status


def _rotation(seen: Observed, ended: Round) -> str:
    """The request for new credentials that is carried out: the present one once nothing is left of it."""
    asked = seen.annotations.get(ROTATE_ANNOTATION, "")
    before = str(seen.status.get("rotation") or "")
    made = seen.credentials
    is_left = made is None or made.rotation != asked or bool(made.superuser_previous or ended.done)
    return before if is_left else asked
