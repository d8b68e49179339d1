"""Patroni's own ConfigMaps, as far as the operator has a hand in them: that they go with the cluster, and a switchover.

Patroni makes `-leader`, `-failover` and `-sync` itself and owns all that stands in them. Where the volumes go with the
cluster these get its owner, to go too. Where volumes are retained they stay: without `-sync` a replica that is behind
could lead the next cluster of this name. A member that ends after its lock has gone may make the lock once more,
without an owner: that one is an orphan. Pure.
Source: Patroni 4.1, `patroni/dcs/kubernetes.py` (manual_failover: the annotations leader and member of `-failover`).
"""

from collections.abc import Iterable, Iterator, Mapping

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


def find_orphans(config_maps: Iterable[Manifest], claims: Iterable[Manifest]) -> Iterator[Manifest]:
    """Those of a cluster that is gone which nothing would ever remove: no owner, and no volume that they belong to."""
    kept = {each["metadata"]["labels"].get(SHARD_LABEL) for each in claims}
    for each in config_maps:
        metadata = each["metadata"]
        is_patronis = metadata["name"].rpartition("-")[2] in MADE_BY_PATRONI and SCOPE_LABEL in metadata["labels"]
        if is_patronis and not metadata.get("ownerReferences") and metadata["labels"].get(SHARD_LABEL) not in kept:
            yield each


def build_switchover(namespace: str, cluster: str, scope: str, primary: str, candidate: str) -> Manifest:
    """The request to Patroni, which takes its annotations away when it is done or refused."""
    labels = {CLUSTER_LABEL: cluster, SHARD_LABEL: scope.removeprefix(f"{cluster}-"), SCOPE_LABEL: scope}
    annotations = {"leader": primary, "member": candidate}
    metadata = {"name": f"{scope}-failover", "namespace": namespace, "labels": labels, "annotations": annotations}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}
