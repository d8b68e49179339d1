"""What `engram up` will do, decided from the manifests and what the data directory remembers. Pure.

Promises
1. Nothing that a data directory holds becomes unreachable: what would make it so is refused with one line.
2. A map never goes back: the newest one known, in a file or in any shard, is the one that is restated.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from engram_cli.errors import Misuse
from engram_cli.pgsettings import HOST
from engram_cli.state import LocalState, ShardRecord, TenantRecord
from engram_contract import names
from engram_contract.shardmap import NoActiveShard, Node, Shard, ShardMap, Strategy, first_map
from engram_contract.spec import ClusterSpec, Provider, TenantSpec
from engram_operator.plan import maps

PORT_STEP: Final = 10  # room between two tenants' ports for what a sidecar may open later
HIGHEST_PORT: Final = 65_535


class Start(StrEnum):
    """What a shard needs before it answers."""

    INITIALIZE = "making an empty Postgres"
    START = "starting"
    RESTART = "restarting with new parameters"
    ADOPT = "already running"


@dataclass(frozen=True, slots=True)
class ShardSeen:
    """A shard as it was found: does it have data, does it run, were its settings others."""

    has_data: bool
    is_running: bool
    settings_changed: bool


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a tenant's sidecar listens."""

    http_port: int
    admin_port: int


def check_manifests(cluster: ClusterSpec, tenants: Iterable[TenantSpec]) -> None:
    """Nothing; raises Misuse for what local mode must not pretend to do."""
    if cluster.provider is not Provider.MANAGED:
        raise Misuse(f"spec.provider: local mode runs its own Postgres; {cluster.provider} databases need a cluster")
    if cluster.plan_only:
        raise Misuse("spec.planOnly: local mode has no plan to show; remove the field to run")
    selector = cluster.access.namespace_selector
    residencies = {shard.residency for shard in cluster.shards}
    for tenant in tenants:
        if tenant.residency not in residencies:
            places = ", ".join(sorted(residencies))
            raise Misuse(
                f"tenant {_label(tenant)}: spec.residency: no shard is in {tenant.residency}; there is {places}"
            )
        if selector is None and tenant.namespace != cluster.namespace:
            raise Misuse(
                f"tenant {_label(tenant)}: the cluster {cluster.namespace}/{cluster.name} takes no tenants of other "
                "namespaces: set spec.access.namespaceSelector of the cluster"
            )


def plan_state(
    old: LocalState | None, cluster: ClusterSpec, tenants: Iterable[TenantSpec], version: int, new_uid: str
) -> LocalState:
    """What the data directory shall remember; raises Misuse if the manifests do not fit what it holds."""
    records = tuple(TenantRecord(each.namespace, each.name, each.isolation) for each in tenants)
    if old is None:
        shards = tuple(ShardRecord(each.id) for each in cluster.shards)
        return LocalState(_label(cluster), new_uid, version, cluster.strategy, shards, records)
    _refuse_another_cluster(old, cluster, version)
    for record in records:
        before = old.tenant(record.label)
        if before is not None and before.isolation != record.isolation:
            raise Misuse(
                f"tenant {record.label}: spec.isolation: is {record.isolation}, but its memories lie in a database of "
                f"isolation {before.isolation}; it cannot change"
            )
    kept = [each for each in old.tenants if each.label not in {record.label for record in records}]
    return replace(old, tenants=(*records, *(replace(each, http_port=None, admin_port=None) for each in kept)))


def left_out(state: LocalState, tenants: Iterable[TenantSpec]) -> tuple[str, ...]:
    """Tenants that have a place in the data directory and stand in no manifest."""
    present = {_label(each) for each in tenants}
    return tuple(each.label for each in state.tenants if each.label not in present)


def select_tenants(tenants: Iterable[TenantSpec], wanted: Iterable[str]) -> tuple[TenantSpec, ...]:
    """The tenants to serve: all, or those wanted as `namespace/name`; raises Misuse for an unknown one."""
    by_label = {_label(each): each for each in tenants}
    if not by_label:
        raise Misuse(f"the manifests hold no {names.TENANT_KIND}: there is nobody to serve")
    for label in wanted:
        if label not in by_label:
            raise Misuse(f"--tenant {label}: the manifests hold {', '.join(by_label)}")
    return tuple(by_label[label] for label in dict.fromkeys(wanted)) or tuple(by_label.values())


def plan_endpoints(tenants: Iterable[TenantSpec], port: int) -> dict[str, Endpoint]:
    """The ports of each tenant, by `namespace/name`: `port` for the first, then steps of ten; admin one above each."""
    labels = [_label(each) for each in tenants]
    last = port + PORT_STEP * (len(labels) - 1) + 1
    if not 1 <= port <= last <= HIGHEST_PORT:
        raise Misuse(
            f"--port {port}: {len(labels)} tenants need the ports {port} to {last}; there are 1 to {HIGHEST_PORT}"
        )
    firsts = (port + PORT_STEP * index for index in range(len(labels)))
    return {label: Endpoint(first, first + 1) for label, first in zip(labels, firsts, strict=True)}


def plan_shard(seen: ShardSeen) -> Start:
    """What the shard needs."""
    if not seen.has_data:
        return Start.INITIALIZE
    if not seen.is_running:
        return Start.START
    return Start.RESTART if seen.settings_changed else Start.ADOPT


def plan_map(tenant: TenantSpec, cluster: ClusterSpec, ports: Mapping[str, int], known: Iterable[ShardMap]) -> ShardMap:
    """The tenant's map: its first one, or the newest known one with what is true of the shards now.

    Raises Misuse if no shard may take the tenant's memories.
    """
    role = names.tenant_role(tenant.namespace, tenant.name)
    database = maps.tenant_database(role, tenant.isolation)
    shards = tuple(
        Shard(each.id, database, (Node(each.id, HOST, ports[each.id]),), each.weight, each.state, each.residency)
        for each in cluster.shards
    )
    try:
        return maps.plan_map(role, cluster.strategy, shards, tenant.residency, known)
    except NoActiveShard as error:
        raise Misuse(f"tenant {_label(tenant)}: spec.residency: {error}") from error


def shares_differ(shard_map: ShardMap) -> bool:
    """True if the slots do not lie as the weights and states now ask: then data would have to move."""
    if all(not shard.takes_slots(shard_map.residency) for shard in shard_map.shards):
        return False
    wanted = first_map(shard_map.tenant, shard_map.strategy, shard_map.shards, shard_map.residency)
    return any(abs(wanted.slots_of(each.id) - shard_map.slots_of(each.id)) > 1 for each in shard_map.shards)


def _refuse_another_cluster(old: LocalState, cluster: ClusterSpec, version: int) -> None:
    if old.cluster != _label(cluster):
        raise Misuse(
            f"the data directory belongs to the cluster {old.cluster}, not to {_label(cluster)}: "
            "choose another --data-dir"
        )
    if old.postgres_version != version:
        raise Misuse(
            f"the data directory holds data of Postgres {old.postgres_version}, not {version}: "
            "local mode does not upgrade data"
        )
    if Strategy(old.strategy) is not cluster.strategy:
        raise Misuse(
            f"spec.shardingStrategy: is {cluster.strategy}, but the stored memories lie by {old.strategy}; "
            "it cannot change"
        )
    have, want = len(old.shards), len(cluster.shards)
    if want > have:
        raise Misuse(f"spec.shards: the data directory has {have} shards, not {want}: resharding is not there yet")
    if want < have:
        raise Misuse(f"spec.shards: the data directory has {have} shards, not {want}: the others hold memories")


def _label(named: ClusterSpec | TenantSpec) -> str:
    return f"{named.namespace}/{named.name}"
