"""A shard's addresses, and how many of its members may be taken away at a time.

Sidecars dial members by their headless names: a breaker and an LSN belong to a node. -rw and -ro are for people.

Pure.
"""

from collections.abc import Mapping
from typing import Any

from engram_contract.names import (
    CLUSTER_LABEL,
    PATRONI_PORT,
    POOLER_PORT,
    POSTGRES_PORT,
    PRIMARY_ROLE,
    ROLE_LABEL,
)
from engram_contract.spec_cluster import ClusterSpec
from engram_operator.manifests.meta import COMPONENT_LABEL, POSTGRES, Manifest, Owner, build_labels, build_meta
from engram_operator.manifests.names import ClusterNames, ShardNames
from engram_operator.manifests.patroni import REPLICA_ROLE


def build_services(
    spec: ClusterSpec, names: ShardNames, labels: Mapping[str, str], owner: Owner
) -> tuple[Manifest, ...]:
    """The primary, and the replicas."""
    ports = _ports(spec)
    primary, replicas = names.selector | {ROLE_LABEL: PRIMARY_ROLE}, names.selector | {ROLE_LABEL: REPLICA_ROLE}
    return (
        build_service(build_meta(names.namespace, names.rw, labels, owner), primary, ports),
        build_service(build_meta(names.namespace, names.ro, labels, owner), replicas, ports),
    )


def build_headless(spec: ClusterSpec, names: ClusterNames, owner: Owner) -> Manifest:
    """Every member of every shard by its name, also before it is ready: how else would it join."""
    meta = build_meta(names.namespace, names.pods, build_labels(names.cluster, POSTGRES), owner)
    selector = {CLUSTER_LABEL: names.cluster, COMPONENT_LABEL: POSTGRES}
    ports = [*_ports(spec), _port("patroni", PATRONI_PORT)]
    return build_service(meta, selector, ports, clusterIP="None", publishNotReadyAddresses=True)


def _ports(spec: ClusterSpec) -> list[Manifest]:
    return [_port("postgres", POSTGRES_PORT), *([_port("pooler", POOLER_PORT)] if spec.pooler.enabled else [])]


def build_service(meta: Manifest, selector: Mapping[str, str], ports: list[Manifest], **more: Any) -> Manifest:  # noqa: ANN401  members of any shape
    """A Service of the pods with these labels."""
    spec = {"selector": dict(selector), "ports": ports, **more}
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}


def _port(name: str, number: int) -> Manifest:
    return {"name": name, "port": number, "targetPort": number, "protocol": "TCP"}


def build_disruption_budget(names: ShardNames, labels: Mapping[str, str], owner: Owner) -> Manifest:
    """One member at a time. Also of a shard that has but one: a node must be possible to drain."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": build_meta(names.namespace, names.scope, labels, owner),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": names.selector}},
    }
