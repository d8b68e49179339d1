"""What a MemoryTenant needs on its shards and beside its pods, in order. Pure.

    role and database on every shard --> the map in every shard --> Secret and ConfigMap beside the pods

So a file never names what a shard does not know. A shard in Maintenance is left alone: its slots wait with it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from engram_contract.names import POOLER_PORT, POSTGRES_PORT, TENANT_LABEL, tenant_objects, tenant_role
from engram_contract.shardmap import BadMap, NoActiveShard, Node, Shard, ShardMap, ShardState
from engram_contract.spec import ClusterSpec, Provider, TenantSpec
from engram_operator.manifests.names import ClusterNames
from engram_operator.manifests.tenant import build_tenant_config, build_tenant_secret
from engram_operator.plan.conditions import Verdict, build_condition
from engram_operator.plan.drift import plan_apply
from engram_operator.plan.maps import plan_map, tenant_database
from engram_operator.plan.observed import Silence
from engram_operator.plan.steps import Manifest, PrepareTenant, PublishMap, Step, Wait


@dataclass(frozen=True, slots=True)
class OnShard:
    """What one shard knows of the tenant. `mark` is that of the role's password."""

    is_current: bool
    mark: str
    shard_map: ShardMap | None


@dataclass(frozen=True, slots=True)
class TenantObserved:
    """The tenant, its cluster, and what the shards and its own objects say. `places` are dialled by sidecars."""

    resource: Manifest
    shards: Mapping[str, OnShard | Silence]
    places: Mapping[str, Node]
    secret: Manifest | None
    config: Manifest | None
    known: tuple[ShardMap, ...]  # from the ConfigMap
    passwords: tuple[str, ...]
    mark: str
    ca: str


@dataclass(frozen=True, slots=True)
class TenantPlan:
    """The steps, and the map that they are about; None if there can be none."""

    steps: tuple[Step, ...]
    shard_map: ShardMap | None


def plan_tenant(tenant: TenantSpec, cluster: ClusterSpec, seen: TenantObserved) -> TenantPlan:
    """Everything that is due for a tenant."""
    role = tenant_role(tenant.namespace, tenant.name)
    database = tenant_database(role, tenant.isolation)
    strangers = [each for each in (seen.secret, seen.config) if each is not None and not _is_ours(each, tenant.name)]
    if strangers:
        message = f"{tenant_objects(tenant.name)} is there and is not this tenant's: delete or rename it"
        return TenantPlan((Wait("NameTaken", message, 10.0, is_fault=True),), None)
    known = (*seen.known, *(each.shard_map for each in _told(seen) if each.shard_map is not None))
    silent = {name: each.reason for name, each in seen.shards.items() if isinstance(each, Silence)}
    if not known and silent:
        # Who knows the newest map may be the one that is silent: a first map over it would be a second truth.
        return TenantPlan((_silence(silent),), None)
    shards = tuple(
        Shard(each.id, database, (seen.places[each.id],), each.weight, each.state, each.residency)
        for each in cluster.shards
        if each.id in seen.places
    )
    try:
        shard_map = plan_map(role, cluster.strategy, shards, tenant.residency, known)
    except NoActiveShard as error:
        return TenantPlan((Wait("NoActiveShard", f"spec.residency: {error}", 60.0, is_fault=True),), None)
    except BadMap as error:
        return TenantPlan((Wait("ShardMissing", f"the cluster's shards: {error}", 10.0, is_fault=True),), None)
    return TenantPlan(tuple(_steps(tenant, seen, role, database, shard_map)), shard_map)


def _steps(tenant: TenantSpec, seen: TenantObserved, role: str, database: str, shard_map: ShardMap) -> Iterator[Step]:
    served = [shard for shard in shard_map.shards if shard.state is not ShardState.MAINTENANCE]
    silent: dict[str, str] = {}
    for shard in served:
        told = seen.shards.get(shard.id, Silence("it is not there yet"))
        if isinstance(told, Silence):
            silent[shard.id] = told.reason
        elif not told.is_current or told.mark != seen.mark:
            yield PrepareTenant(shard.id, database, role)
    for shard in served:
        known = seen.shards.get(shard.id)
        if isinstance(known, OnShard) and known.shard_map != shard_map:
            yield PublishMap(shard.id, shard_map)
    if silent:
        yield _silence(silent)
        return
    uid = seen.resource["metadata"]["uid"]
    for manifest, live in (
        (build_tenant_secret(tenant, uid, role, seen.passwords, seen.ca), seen.secret),
        (build_tenant_config(tenant, uid, shard_map), seen.config),
    ):
        step = plan_apply(manifest, live)
        if step is not None:
            yield step


def _is_ours(manifest: Manifest, name: str) -> bool:
    return bool((manifest["metadata"].get("labels") or {}).get(TENANT_LABEL) == name)


def _told(seen: TenantObserved) -> Iterator[OnShard]:
    return (each for each in seen.shards.values() if isinstance(each, OnShard))


def _silence(silent: Mapping[str, str]) -> Wait:
    said = "; ".join(f"{shard}: {reason}" for shard, reason in sorted(silent.items()))
    return Wait("ShardSilent", said, 5.0, is_fault=True)


def places_of(spec: ClusterSpec) -> dict[str, Node]:
    """Where sidecars reach the primary of each shard of a Managed cluster, by the Service that follows it."""
    if spec.provider is not Provider.MANAGED:
        return {}
    names = ClusterNames(spec.name, spec.namespace)
    port = POOLER_PORT if spec.pooler.enabled else POSTGRES_PORT
    return {
        shard.id: Node(names.shard(shard.id).rw, f"{names.shard(shard.id).rw}.{spec.namespace}.svc", port)
        for shard in spec.shards
    }


def refused_tenant_status(resource: Manifest, reason: str, now_s: float) -> dict[str, Any]:
    """The status of a tenant whose spec this operator does not understand. Its map stands: sidecars go on with it."""
    verdict = Verdict("Ready", "BadSpec", reason, holds=False)
    return {
        **(resource.get("status") or {}),
        "observedGeneration": resource["metadata"]["generation"],
        "phase": "Refused",
        "conditions": [build_condition(verdict, resource, now_s)],
    }


def build_tenant_status(
    tenant: TenantSpec, resource: Manifest, plan: TenantPlan, waits: tuple[Wait, ...], now_s: float
) -> dict[str, Any]:
    """The whole status."""
    role = tenant_role(tenant.namespace, tenant.name)
    waiting = next(iter(waits), None)
    is_ready = waiting is None and plan.shard_map is not None
    verdict = Verdict(
        "Ready",
        waiting.reason if waiting else "Ready",
        waiting.message if waiting else "sidecars can serve the tenant",
        holds=is_ready,
    )
    status: dict[str, Any] = {
        "observedGeneration": resource["metadata"]["generation"],
        "phase": "Ready" if is_ready else "Waiting",
        "role": role,
        "database": tenant_database(role, tenant.isolation),
        "conditions": [build_condition(verdict, resource, now_s)],
    }
    if plan.shard_map is not None:
        status["mapEpoch"] = plan.shard_map.epoch
        status["shards"] = [
            {"id": shard.id, "slots": plan.shard_map.slots_of(shard.id)} for shard in plan.shard_map.shards
        ]
    return status
