"""Patroni's own ConfigMaps, as far as the operator has a hand in them: that they go with the cluster, and a switchover.

Patroni makes `-leader`, `-failover` and `-sync` itself and owns all that stands in them. Where the volumes go with the
cluster these get its owner, to go too. Where volumes are retained they stay: without `-sync` a replica that is behind
could lead the next cluster of this name. Pure.
Source: Patroni 4.1, `patroni/dcs/kubernetes.py` (manual_failover: the annotations leader and member of `-failover`).
"""

from collections.abc import Iterator, Mapping

from engram_contract.names import CLUSTER_LABEL, SCOPE_LABEL, SHARD_LABEL
from engram_operator.manifests.meta import Manifest

MADE_BY_PATRONI = ("leader", "failover", "sync")


def build_dcs_owners(
    scope: str, statefulset: Manifest, objects: Mapping[tuple[str, str], Manifest]
) -> Iterator[Manifest]:
    """Those of the scope's ConfigMaps that are there, with their StatefulSet's owner; with none if they are kept."""
    metadata = statefulset["metadata"]
    is_kept = statefulset["spec"]["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Retain"
    for part in MADE_BY_PATRONI:
        name = f"{scope}-{part}"
        live = objects.get(("ConfigMap", name))
        # Where nothing is to go, only an owner of before is taken away.
        if live is None or (is_kept and not live["metadata"].get("ownerReferences")):
            continue
        owned = {} if is_kept else {"ownerReferences": metadata["ownerReferences"]}
        place = {"name": name, "namespace": metadata["namespace"]}
        yield {"apiVersion": "v1", "kind": "ConfigMap", "metadata": place | owned}


def build_switchover(namespace: str, cluster: str, scope: str, primary: str, candidate: str) -> Manifest:
    """The request to Patroni, which takes its annotations away when it is done or refused."""
    labels = {CLUSTER_LABEL: cluster, SHARD_LABEL: scope.removeprefix(f"{cluster}-"), SCOPE_LABEL: scope}
    annotations = {"leader": primary, "member": candidate}
    metadata = {"name": f"{scope}-failover", "namespace": namespace, "labels": labels, "annotations": annotations}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}
