"""Where the members of a shard run: apart from each other, and where the spec says.

Pure.
"""

from typing import Any, Final

from engram_contract.spec_cluster import ClusterSpec
from engram_contract.spec_parts import AntiAffinity, Toleration
from engram_operator.manifests.meta import Manifest
from engram_operator.manifests.names import ShardNames

ZONE: Final = "topology.kubernetes.io/zone"
HOST: Final = "kubernetes.io/hostname"


def build_placement(spec: ClusterSpec, names: ShardNames) -> Manifest:
    """The members of a pod that say where it runs."""
    wanted = spec.scheduling
    placement: Manifest = {"affinity": _build_affinity(wanted.anti_affinity, names)}
    placement["topologySpreadConstraints"] = [
        {
            "maxSkew": 1,
            "topologyKey": ZONE,
            # A wish: in a cluster of one zone, or while a zone is away, members must still start.
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": names.selector},
        }
    ]
    if wanted.node_selector:
        placement["nodeSelector"] = dict(wanted.node_selector)
    if wanted.tolerations:
        placement["tolerations"] = [_build_toleration(each) for each in wanted.tolerations]
    return placement


def _build_affinity(kind: AntiAffinity, names: ShardNames) -> dict[str, Any]:
    term = {"labelSelector": {"matchLabels": names.selector}, "topologyKey": HOST}
    if kind is AntiAffinity.REQUIRED:
        return {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    weighted = {"weight": 100, "podAffinityTerm": term}
    return {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [weighted]}}


def _build_toleration(toleration: Toleration) -> Manifest:
    value = {"value": toleration.value} if toleration.value else {}
    effect = {"effect": toleration.effect.value} if toleration.effect else {}
    return {"key": toleration.key, "operator": toleration.operator.value, **value, **effect}
