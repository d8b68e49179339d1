"""MemoryClusters on the test cluster: small ones, what they say of themselves, and SQL in their primaries."""

import json
from typing import Any, Final

from engram_contract.names import API_VERSION, CLUSTER_KIND, CLUSTERS, TENANT_KIND
from tests.e2e.cluster import Cluster, conditions, holds
from tests.e2e.releases import RESTRICTED

Json = dict[str, Any]
# Pods that no node takes, so that they cost nothing; what the operator makes beside them is the same.
NOWHERE: Final[Json] = {"replicas": 0, "scheduling": {"nodeSelector": {"engram.dev/e2e": "nowhere"}}}
ALONE: Final[Json] = {"replicas": 0, "storage": {"reclaimPolicy": "Delete"}}  # one member, gone with its cluster
READY_S: Final = 240.0
SMALL: Final[Json] = {
    "storage": {"size": "256Mi"},
    "postgres": {"resources": {"requests": {"cpu": "50m", "memory": "128Mi"}}},
    "cache": {"provider": "None"},
    "deletionProtection": False,
}


def build_memory(namespace: str, name: str = "memory", **spec: object) -> Json:
    """A MemoryCluster as small as one can be, with what the test asks for on top."""
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": API_VERSION, "kind": CLUSTER_KIND, "metadata": metadata, "spec": merged(SMALL, spec)}


def build_tenant(namespace: str, name: str, cluster: str = "memory", **spec: object) -> Json:
    """A MemoryTenant on it, which may ask as often as tests do."""
    metadata = {"name": name, "namespace": namespace}
    whole = merged({"clusterRef": {"name": cluster}, "quota": {"requestsPerSecond": 100_000}}, spec)
    return {"apiVersion": API_VERSION, "kind": TENANT_KIND, "metadata": metadata, "spec": whole}


def merged(base: Json, over: Json) -> Json:
    """Mappings are merged, everything else is replaced."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def apply(cluster: Cluster, *manifests: Json) -> None:
    """The objects are as given, as a user applies them."""
    cluster.kubectl("apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}))


def restrict(cluster: Cluster, namespace: str) -> None:
    """Only `restricted` pods are taken from now on."""
    cluster.kubectl("label", "namespace", namespace, *(f"{name}={value}" for name, value in RESTRICTED.items()))


def path_of(namespace: str, name: str = "memory") -> str:
    """Where the API server has the MemoryCluster."""
    return f"/apis/{API_VERSION}/namespaces/{namespace}/{CLUSTERS}/{name}"


def fetch(cluster: Cluster, namespace: str, name: str = "memory") -> Json:
    """The MemoryCluster as it is now."""
    return cluster.request("GET", path_of(namespace, name))[1]


def patch(cluster: Cluster, namespace: str, spec: Json, name: str = "memory") -> Json:
    """The MemoryCluster after a change of its spec."""
    status, body = cluster.request("PATCH", path_of(namespace, name), {"spec": spec})
    assert status == 200, body
    return body


def condition(body: Json, kind: str) -> Json:
    """One condition of a resource; empty if it has none."""
    return next((each for each in conditions(body) if each["type"] == kind), {})


def is_ready(body: Json) -> bool:
    """Whether Ready is True for the spec as it is now."""
    told = condition(body, "Ready").get("observedGeneration")
    return holds(body, "Ready") and told == body["metadata"]["generation"]


def wait_ready(cluster: Cluster, namespace: str, name: str = "memory", deadline_s: float = READY_S) -> Json:
    """The MemoryCluster once its present spec is carried out."""
    cluster.wait_until(f"{name} to be Ready", lambda: is_ready(fetch(cluster, namespace, name)), deadline_s=deadline_s)
    return fetch(cluster, namespace, name)


def primary_of(body: Json, shard: str = "s0") -> str:
    """The pod that the status names as the shard's primary."""
    found: str = next(each for each in body["status"]["shards"] if each["id"] == shard)["primary"]
    return found


def sql(cluster: Cluster, namespace: str, pod: str, statement: str, database: str = "postgres") -> str:
    """What Postgres in the pod answers, as its superuser over the pod's own socket."""
    command = ("psql", "-h", "/sockets", "-U", "postgres", "-d", database, "-XAtqc", statement)
    return cluster.kubectl("exec", "-n", namespace, pod, "-c", "postgres", "--", *command).strip()
