"""Who may speak to whom: nothing, then exactly what is needed.

A policy that selects a pod for both ways denies all that no policy allows, so each of the two is also its own default.
What a node sends to its own pods (the kubelet's probes) no policy stops.

Pure.
"""

from collections.abc import Mapping
from typing import Any, Final

from engram_contract.names import (
    CLUSTER_LABEL,
    INJECTED_LABEL,
    PATRONI_PORT,
    POOLER_PORT,
    POSTGRES_PORT,
    REDIS_PORT,
)
from engram_contract.selector import LabelSelector
from engram_contract.spec_cluster import ClusterSpec
from engram_operator.manifests.meta import (
    COMPONENT_LABEL,
    POSTGRES,
    REDIS,
    Manifest,
    Owner,
    build_labels,
    build_meta,
)
from engram_operator.manifests.names import ClusterNames
from engram_operator.manifests.site import Site

DNS_PORT: Final = 53
API_PORTS: Final = (443, 6443)  # its Service's, and the usual one behind it; its address is not known here
NAMESPACE_NAME_LABEL: Final = "kubernetes.io/metadata.name"


def build_shards_policy(spec: ClusterSpec, names: ClusterNames, owner: Owner, site: Site) -> Manifest:
    """Postgres for the sidecars; Postgres and Patroni for each other, because data moves between shards, and for us."""
    served = [POSTGRES_PORT, *([POOLER_PORT] if spec.pooler.enabled else [])]
    members = [{"podSelector": {"matchLabels": _selector(names, POSTGRES)}}]
    among = _ports(POSTGRES_PORT, PATRONI_PORT)
    ingress = [
        {"from": _sidecars(spec), "ports": _ports(*served)},
        {"from": members, "ports": among},
        {"from": [_operator(site)], "ports": among},
    ]
    dns = [{"port": DNS_PORT, "protocol": protocol} for protocol in ("UDP", "TCP")]
    egress = [{"ports": dns}, {"ports": _ports(*API_PORTS)}, {"to": members, "ports": among}]
    return _build_policy(names, owner, (names.shards, POSTGRES), {"ingress": ingress, "egress": egress})


def build_redis_policy(spec: ClusterSpec, names: ClusterNames, owner: Owner, site: Site) -> Manifest:
    """Redis for the sidecars and for us; it calls nobody."""
    ingress = [{"from": [*_sidecars(spec), _operator(site)], "ports": _ports(REDIS_PORT)}]
    return _build_policy(names, owner, (names.redis, REDIS), {"ingress": ingress})


def _build_policy(names: ClusterNames, owner: Owner, which: tuple[str, str], holes: Mapping[str, Any]) -> Manifest:
    name, component = which
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": build_meta(names.namespace, name, build_labels(names.cluster, component), owner),
        "spec": {
            "podSelector": {"matchLabels": _selector(names, component)},
            "policyTypes": ["Ingress", "Egress"],
            **holes,
        },
    }


def _selector(names: ClusterNames, component: str) -> dict[str, str]:
    return {CLUSTER_LABEL: names.cluster, COMPONENT_LABEL: component}


def _sidecars(spec: ClusterSpec) -> list[Manifest]:
    """Pods with a sidecar, here and wherever tenants of this cluster may be."""
    injected = {"podSelector": {"matchLabels": {INJECTED_LABEL: "true"}}}
    elsewhere = spec.access.namespace_selector
    return [injected, *([] if elsewhere is None else [injected | {"namespaceSelector": build_selector(elsewhere)}])]


def _operator(site: Site) -> Manifest:
    return {
        "namespaceSelector": {"matchLabels": {NAMESPACE_NAME_LABEL: site.namespace}},
        "podSelector": {"matchLabels": dict(site.operator_labels)},
    }


def build_selector(selector: LabelSelector) -> Manifest:
    """The selector as Kubernetes spells it. An empty one selects everything; the API server keeps it as it is."""
    built: Manifest = {}
    if selector.match_labels:
        built["matchLabels"] = dict(selector.match_labels)
    if selector.match_expressions:
        built["matchExpressions"] = [
            {
                "key": each.key,
                "operator": each.operator.value,
                **({"values": list(each.values)} if each.values else {}),
            }
            for each in selector.match_expressions
        ]
    return built


def _ports(*numbers: int) -> list[Manifest]:
    return [{"port": number, "protocol": "TCP"} for number in numbers]
