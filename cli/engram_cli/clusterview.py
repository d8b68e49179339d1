"""A MemoryCluster as its object tells of it: values that the plugin shows and `-o json` prints. Pure.

Promises
1. What the status does not say is None, an empty text or an empty tuple; nothing is made up for it.
2. `is_ready` is only true if the status speaks of the present spec.
3. `to_json` names its keys as Kubernetes does; a key never changes its meaning, and new ones may come.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from typing import Any, Final

# An operator at work looks at a changed spec within a second or two; what takes longer than this has nobody at work.
OPERATOR_PATIENCE_S: Final = 30.0
STATUS: Final = "status"
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ConditionView:
    """One condition. `status` is True, False or Unknown; `since_s` is Unix seconds."""

    type: str
    status: str
    reason: str
    message: str
    generation: int
    since_s: float | None


@dataclass(frozen=True, slots=True)
class MemberView:
    """One pod of a shard. `lag_bytes` in whole mebibytes, None if nobody knows."""

    name: str
    role: str
    is_ready: bool
    timeline: int | None
    lag_bytes: int | None
    message: str


@dataclass(frozen=True, slots=True)
class ShardView:
    """One shard. `ready` is True, False or Unknown."""

    id: str
    state: str
    ready: str
    primary: str
    slots: int | None
    schema_version: str
    postgres_version: str
    size_bytes: int | None
    message: str
    members: tuple[MemberView, ...]


@dataclass(frozen=True, slots=True)
class OrphanView:
    """What is no longer asked for and cannot go."""

    name: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class ClusterView:
    """One MemoryCluster. `generation` is the spec's, `observed_generation` the status'; None if there is no status."""

    namespace: str
    name: str
    generation: int
    observed_generation: int | None
    asked_at_s: float | None  # when the spec was last written, as far as the object tells
    is_external: bool
    is_paused: bool
    is_plan_only: bool
    is_ending: bool
    phase: str
    ready_shards: str
    tenants: int
    update: str
    plan: tuple[str, ...] | None
    conditions: tuple[ConditionView, ...]
    shards: tuple[ShardView, ...]
    orphans: tuple[OrphanView, ...]

    @property
    def is_current(self) -> bool:
        """Whether the status speaks of the present spec."""
        return self.observed_generation is not None and self.observed_generation >= self.generation

    @property
    def is_ready(self) -> bool:
        """Whether every shard serves as the present spec asks."""
        ready = self.condition("Ready")
        return self.is_current and ready is not None and ready.status == "True" and ready.generation >= self.generation

    def condition(self, kind: str) -> ConditionView | None:
        """The condition of this type, if the status has it."""
        return next((each for each in self.conditions if each.type == kind), None)

    def shard(self, shard_id: str) -> ShardView | None:
        """The shard, if the status names it."""
        return next((each for each in self.shards if each.id == shard_id), None)


def read_cluster(resource: Json) -> ClusterView:
    """The view of a MemoryCluster as the API server gives it, `metadata.managedFields` included if it was asked for."""
    metadata, spec, status = resource["metadata"], resource.get("spec") or {}, resource.get(STATUS) or {}
    plan = status.get("plan")
    return ClusterView(
        namespace=metadata["namespace"],
        name=metadata["name"],
        generation=metadata["generation"],
        observed_generation=status.get("observedGeneration"),
        asked_at_s=_asked_at_s(metadata),
        is_external=spec.get("provider") == "External",
        is_paused=spec.get("paused") is True,
        is_plan_only=spec.get("planOnly") is True,
        is_ending="deletionTimestamp" in metadata,
        phase=status.get("phase") or "",
        ready_shards=status.get("ready") or "",
        tenants=status.get("tenants") or 0,
        update=status.get("update") or "",
        plan=None if plan is None else tuple(plan),
        conditions=tuple(_condition(each) for each in status.get("conditions") or ()),
        shards=tuple(_shard(each) for each in status.get("shards") or ()),
        orphans=tuple(OrphanView(e["name"], e["reason"], e["message"]) for e in status.get("orphans") or ()),
    )


def notices(view: ClusterView, now_s: float) -> Iterator[str]:
    """Why the status may not be the truth of this moment, in sentences."""
    if view.is_current:
        return
    silent_s = 0.0 if view.asked_at_s is None else now_s - view.asked_at_s
    if silent_s < OPERATOR_PATIENCE_S:
        end = "the operator has not looked at it yet"
    else:
        end = f"the operator has not looked at it for {age(silent_s)} and does not seem to be at work"
    if view.observed_generation is None:
        yield f"the cluster has no status: {end}"
    else:
        old = f"the status is of generation {view.observed_generation}"
        yield f"{old}, older than the spec's {view.generation}: {end}"


def age(seconds: float) -> str:
    """A duration as kubectl writes ages: its largest unit, and the next one while that matters."""
    whole = max(0, int(seconds))
    if whole < 120:  # noqa: PLR2004  two minutes, as kubectl has it
        return f"{whole}s"
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if minutes < 120:  # noqa: PLR2004
        return f"{minutes}m"
    return f"{hours}h" if hours < 48 else f"{days}d"  # noqa: PLR2004


def to_json(value: object) -> object:
    """A view as JSON: keys in camelCase without `is_`; a time of day, which ends in `_s`, as Kubernetes writes it."""
    if is_dataclass(value):
        return {_key(each.name): _figure(each.name, getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, tuple | list):
        return [to_json(each) for each in value]
    return value


def cluster_json(view: ClusterView, said: tuple[str, ...]) -> dict[str, object]:
    """The JSON of `status`: the view, the judgements over it, and its notices."""
    whole = to_json(view)
    if not isinstance(whole, dict):
        raise TypeError(whole)
    return {**whole, "current": view.is_current, "ready": view.is_ready, "notices": list(said)}


def seconds_of(moment: object) -> float | None:
    """Unix seconds of a time as Kubernetes or Patroni writes it; None if it is none."""
    try:
        return datetime.fromisoformat(moment).timestamp() if isinstance(moment, str) else None
    except ValueError:
        return None


def _figure(name: str, value: object) -> object:
    if name.endswith("_s") and isinstance(value, float):
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return to_json(value)


def _key(name: str) -> str:
    first, *rest = name.removeprefix("is_").removesuffix("_s").split("_")
    return first + "".join(each.capitalize() for each in rest)


def _asked_at_s(metadata: Json) -> float | None:
    """When the spec was last written; without managed fields, or after the writer left, when the object was made."""
    writes = (
        seconds_of(each.get("time"))
        for each in metadata.get("managedFields") or ()
        if each.get("subresource") != STATUS and "f:spec" in (each.get("fieldsV1") or {})
    )
    moments = [each for each in (*writes, seconds_of(metadata.get("creationTimestamp"))) if each is not None]
    return max(moments, default=None)


def _condition(said: Json) -> ConditionView:
    return ConditionView(
        type=said["type"],
        status=said[STATUS],
        reason=said["reason"],
        message=said["message"],
        generation=said.get("observedGeneration") or 0,
        since_s=seconds_of(said.get("lastTransitionTime")),
    )


def _shard(said: Json) -> ShardView:
    return ShardView(
        id=said["id"],
        state=said.get("state") or "",
        ready=said.get("ready") or "Unknown",
        primary=said.get("primary") or "",
        slots=said.get("slots"),
        schema_version=said.get("schemaVersion") or "",
        postgres_version=said.get("postgresVersion") or "",
        size_bytes=said.get("sizeBytes"),
        message=said.get("message") or "",
        members=tuple(_member(each) for each in said.get("members") or ()),
    )


def _member(said: Json) -> MemberView:
    return MemberView(
        name=said["name"],
        role=said.get("role") or "",
        is_ready=said.get("ready") is True,
        timeline=said.get("timeline"),
        lag_bytes=said.get("lagBytes"),
        message=said.get("message") or "",
    )
