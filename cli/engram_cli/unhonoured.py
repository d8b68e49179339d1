"""What a manifest asks for and local mode does not do, each in one sentence: nothing is ignored silently. Pure.

Promises: every field of both kinds stands either in HONOURED or in a gap; a unit test walks the dataclasses for it.
A gap is said when the manifest asks for it, which for some fields its default already does.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from engram_cli.pgsettings import refused_parameters
from engram_contract.spec import CacheProvider, ClusterSpec, LabelSelector, ReclaimPolicy, TenantSpec
from engram_contract.spec_parts import Resources, Scheduling, Storage, UpdatePolicy
from engram_contract.spec_tenant import SidecarSpec, Watchdog


@dataclass(frozen=True, slots=True)
class ClusterGap:
    """Fields of a MemoryCluster (with all below them), when they are asked for, and what to say."""

    paths: tuple[str, ...]
    is_asked: Callable[[ClusterSpec], bool]
    sentence: str


@dataclass(frozen=True, slots=True)
class TenantGap:
    """Fields of a MemoryTenant (with all below them), when they are asked for, and what to say."""

    paths: tuple[str, ...]
    is_asked: Callable[[TenantSpec], bool]
    sentence: str


HONOURED: Final = frozenset(
    {
        "MemoryCluster.shards",
        "MemoryCluster.shardingStrategy",
        "MemoryCluster.shardOverrides.id",
        "MemoryCluster.shardOverrides.state",
        "MemoryCluster.shardOverrides.weight",
        "MemoryCluster.shardOverrides.residency",
        "MemoryCluster.postgres.version",
        "MemoryCluster.postgres.parameters",
        "MemoryCluster.cache.local",
        "MemoryCluster.postgres.tls.enabled",  # Postgres listens on this machine's loopback alone
        # Refused where they are set: see localplan.check_manifests.
        "MemoryCluster.provider",
        "MemoryCluster.external",
        "MemoryCluster.planOnly",
        "MemoryTenant.plan",
        "MemoryTenant.quota.memories",
        "MemoryTenant.quota.storage",
        "MemoryTenant.quota.requestsPerSecond",  # what it says itself; a plan's rate is for a cluster
        "MemoryTenant.clusterRef",
        "MemoryTenant.isolation",
        "MemoryTenant.residency",
        "MemoryTenant.resilience",
    }
)

CLUSTER_GAPS: Final = (
    ClusterGap(("replicas",), lambda spec: spec.replicas > 0, "each shard is one Postgres without replicas"),
    ClusterGap(
        ("storage",),
        lambda spec: spec.storage != Storage(),
        "a shard takes what the disk has",
    ),
    ClusterGap(
        ("postgres.resources",),
        lambda spec: spec.postgres.resources != Resources(),
        "no CPU or memory is set aside or limited",
    ),
    ClusterGap(
        ("postgres.image",),
        lambda spec: spec.postgres.image is not None,
        "Postgres comes from a Python package, not an image",
    ),
    ClusterGap(("scheduling",), lambda spec: spec.scheduling != Scheduling(), "there is only this machine"),
    ClusterGap(
        ("updatePolicy",),
        lambda spec: spec.update_policy is not UpdatePolicy.ON_CHANGE,
        "a newer version comes with the next start",
    ),
    ClusterGap(("pooler",), lambda spec: spec.pooler.enabled, "there is no PgBouncer: sidecars connect to Postgres"),
    ClusterGap(
        ("cache.provider", "cache.url", "cache.secretRef", "cache.capacity", "cache.ttl"),
        lambda spec: spec.cache.provider is not CacheProvider.NONE,
        "there is no Redis",
    ),
    ClusterGap(("backup",), lambda spec: not spec.backup.suspend, "no backups are made"),
    ClusterGap(
        ("retention",),
        lambda spec: spec.retention.archive_after_s > 0 or spec.retention.delete_after_s > 0,
        "old memories are neither archived nor deleted; a memory's own ttl_s counts",
    ),
    ClusterGap(
        ("access",),
        lambda spec: spec.access.namespace_selector not in (None, LabelSelector()),
        "namespaces have no labels here: tenants of every namespace are admitted",
    ),
    ClusterGap(
        ("deletionProtection",), lambda spec: spec.deletion_protection, "nothing protects the data directory from rm"
    ),
    ClusterGap(("paused",), lambda spec: spec.paused, "`engram up` runs it nonetheless"),
)

TENANT_GAPS: Final = (
    TenantGap(
        ("encryption",),
        lambda spec: spec.encryption.enabled,
        "memories are encrypted, and their keys lie beside them in the data directory: keys.json",
    ),
    TenantGap(("audit",), lambda spec: spec.audit.enabled, "no audit log is kept"),
    TenantGap(
        ("retention",),
        lambda spec: spec.retention_s > 0,
        "memories leave every answer when it is over, but the space they take is not freed",
    ),
    TenantGap(("compliance",), lambda spec: bool(spec.compliance), "NONE of the frameworks' duties is fulfilled"),
    TenantGap(
        ("allowedAgents",),
        lambda spec: bool(spec.allowed_agents),
        "every process of this machine that reaches the port may be any agent",
    ),
    TenantGap(("embedding",), lambda spec: spec.embedding is not None, "search is lexical: no vectors are made"),
    TenantGap(
        ("reclaimPolicy",),
        lambda spec: spec.reclaim_policy is not ReclaimPolicy.RETAIN,
        "a tenant that is taken out of the manifests keeps its memories",
    ),
    TenantGap(("watchdog",), lambda spec: spec.watchdog != Watchdog(), "there are no pods to watch"),
    TenantGap(("sidecar",), lambda spec: spec.sidecar != SidecarSpec(), "the sidecar is as new as this program"),
)


def gaps_of(cluster: ClusterSpec, tenants: Iterable[TenantSpec]) -> Iterator[str]:
    """The sentences to be said; one that holds for several tenants is said once, with their names."""
    for gap in CLUSTER_GAPS:
        if gap.is_asked(cluster):
            yield f"spec.{gap.paths[0]}: {gap.sentence}"
    for name in refused_parameters(dict(cluster.postgres.parameters)):
        yield f"spec.postgres.parameters.{name}: local mode sets it itself"
    listed = tuple(tenants)
    for each in TENANT_GAPS:
        asking = [f"{spec.namespace}/{spec.name}" for spec in listed if each.is_asked(spec)]
        if asking:
            yield f"{_named(asking)}: spec.{each.paths[0]}: {each.sentence}"


def _named(labels: list[str]) -> str:
    shown = 3
    more = f" and {len(labels) - shown} more" if len(labels) > shown else ""
    return f"{'tenant' if len(labels) == 1 else 'tenants'} {', '.join(labels[:shown])}{more}"
