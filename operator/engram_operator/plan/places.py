"""Where sidecars dial the shards of a Managed cluster. Pure."""

from engram_contract.names import POOLER_PORT, POSTGRES_PORT
from engram_contract.shardmap import Node
from engram_contract.spec import ClusterSpec, Provider
from engram_operator.manifests.names import ClusterNames


def places_of(spec: ClusterSpec) -> dict[str, Node]:
    """Where sidecars reach the primary of each shard of a Managed cluster, by the Service that follows it."""
    if spec.provider is not Provider.MANAGED:
        return {}
    names = ClusterNames(spec.name, spec.namespace)
    return {
        shard.id: Node(names.shard(shard.id).rw, f"{names.shard(shard.id).rw}.{spec.namespace}.svc", _port(spec))
        for shard in spec.shards
    }


def members_of(spec: ClusterSpec) -> dict[str, tuple[Node, ...]]:
    """Where sidecars reach each member of the shards of a Managed cluster; nothing without replicas.

    By its name in the headless Service: which one is the primary a member says itself, and how far each one is.
    """
    if spec.provider is not Provider.MANAGED or not spec.replicas:
        return {}
    port = _port(spec)
    every = {shard.id: ClusterNames(spec.name, spec.namespace).shard(shard.id) for shard in spec.shards}
    return {
        shard: tuple(Node(names.pod(index), names.host(index), port) for index in range(spec.replicas + 1))
        for shard, names in every.items()
    }


def _port(spec: ClusterSpec) -> int:
    return POOLER_PORT if spec.pooler.enabled else POSTGRES_PORT
