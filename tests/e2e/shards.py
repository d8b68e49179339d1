"""Shards made by hand on a cluster: the Postgres image under Patroni, with what the operator will make of a cluster.

Pure but for `create_shard`: a builder gives plain dicts. The pods keep to Pod Security `restricted`.
"""

import base64
import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

from tests.e2e.cluster import Cluster, holds
from tests.e2e.releases import image

Json = dict[str, Any]
PASSWORD: Final = "of-one-test-namespace"  # noqa: S105
POSTGRES_PORT: Final = 5432
PATRONI_PORT: Final = 8008
UID: Final = 999
RESTRICTED: Final = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
RESTRICTED_POD: Final = {
    "runAsNonRoot": True,
    "runAsUser": UID,
    "runAsGroup": UID,
    "fsGroup": UID,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def create_shard(cluster: Cluster, namespace: str, name: str, members: int) -> None:
    """The shard's members are ready and one of them is the primary."""
    apply(cluster, build_shard(namespace, name, members))
    cluster.wait_until(f"{members} ready members of {name}", lambda: len(ready(cluster, namespace, name)) == members)
    cluster.wait_until(f"a primary of {name}", lambda: primary(cluster, namespace, name))


def apply(cluster: Cluster, manifests: Iterable[Json]) -> None:
    """The objects are as given."""
    whole = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
    cluster.kubectl("apply", "--server-side", "-f", "-", input=json.dumps(whole))


def pods(cluster: Cluster, namespace: str, name: str) -> list[Json]:
    """The shard's pods as they are now."""
    path = f"/api/v1/namespaces/{namespace}/pods"
    found: list[Json] = cluster.request("GET", path, labelSelector=f"shard={name}")[1]["items"]
    return found


def ready(cluster: Cluster, namespace: str, name: str) -> list[str]:
    """The names of the members that Patroni calls ready."""
    return [pod["metadata"]["name"] for pod in pods(cluster, namespace, name) if holds(pod, "Ready")]


def primary(cluster: Cluster, namespace: str, name: str) -> Json | None:
    """The pod that Patroni labelled primary, if it is not on its way out."""
    for pod in pods(cluster, namespace, name):
        if pod["metadata"]["labels"].get("role") == "primary" and "deletionTimestamp" not in pod["metadata"]:
            return pod
    return None


def build_shard(namespace: str, name: str, members: int) -> Iterator[Json]:
    """Everything that one shard is made of."""

    def meta(of: str, **more: object) -> Json:
        return {"name": of, "namespace": namespace, **more}

    yield {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta(name)}
    # Patroni keeps its state in ConfigMaps and its role in the label of its own pod.
    rule = {"apiGroups": [""], "resources": ["configmaps", "pods"]}
    verbs = ["create", "get", "list", "patch", "update", "watch", "delete", "deletecollection"]
    rbac = "rbac.authorization.k8s.io"
    yield {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": meta(name), "rules": [{**rule, "verbs": verbs}]}
    yield {
        "apiVersion": f"{rbac}/v1",
        "kind": "RoleBinding",
        "metadata": meta(name),
        "roleRef": {"apiGroup": rbac, "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
    }
    port = {"name": "postgres", "port": POSTGRES_PORT}
    of_primary, of_all = {"shard": name, "role": "primary"}, {"shard": name}
    yield {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta(f"{name}-rw"),
        "spec": {"selector": of_primary, "ports": [port], "publishNotReadyAddresses": True},
    }
    yield {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta(f"{name}-pods"),
        "spec": {"clusterIP": "None", "selector": of_all, "ports": [port], "publishNotReadyAddresses": True},
    }
    secret = {key: base64.b64encode(PASSWORD.encode()).decode() for key in ("superuser", "replication")}
    yield {"apiVersion": "v1", "kind": "Secret", "metadata": meta(name), "data": secret}
    config = {"patroni.yaml": json.dumps(build_patroni())}
    yield {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta(name), "data": config}
    yield {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": meta(name),
        "spec": {
            "serviceName": f"{name}-pods",
            "podManagementPolicy": "Parallel",
            "replicas": members,
            "selector": {"matchLabels": of_all},
            "template": {"metadata": {"labels": of_all}, "spec": build_pod(name)},
            "volumeClaimTemplates": [
                {
                    "apiVersion": "v1",
                    "kind": "PersistentVolumeClaim",
                    "metadata": {"name": "data"},
                    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
                }
            ],
        },
    }


def build_patroni() -> Json:
    """Patroni's configuration: what every member shares."""
    return {
        "bootstrap": {
            "dcs": {
                "ttl": 20,  # Patroni's minimum
                "loop_wait": 5,
                "retry_timeout": 5,
                "failsafe_mode": True,
                "synchronous_mode": True,
                "ignore_slots": [{"type": "logical", "plugin": "pgoutput"}],
                "postgresql": {"use_pg_rewind": True, "parameters": {"max_connections": 100}},
            },
            "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, "data-checksums"],
        },
        "postgresql": {
            "listen": f"0.0.0.0:{POSTGRES_PORT}",
            "bin_dir": "/opt/postgres/bin",
            "data_dir": "/data/postgres",
            "pgpass": "/tmp/pgpass",  # noqa: S108  a volume of the pod
            "authentication": {"superuser": {"username": "postgres"}, "replication": {"username": "replicator"}},
            "parameters": {"unix_socket_directories": "/tmp"},  # noqa: S108
            "pg_hba": [
                "local all all trust",
                "host all all all scram-sha-256",
                "host replication replicator all scram-sha-256",
            ],
        },
    }


def build_pod(name: str) -> Json:
    """The pod of one member."""

    def field(variable: str, path: str) -> Json:
        return {"name": variable, "valueFrom": {"fieldRef": {"fieldPath": path}}}

    def password(variable: str, key: str) -> Json:
        return {"name": variable, "valueFrom": {"secretKeyRef": {"name": name, "key": key}}}

    env = [
        field("POD_IP", "status.podIP"),
        field("PATRONI_NAME", "metadata.name"),
        field("PATRONI_KUBERNETES_NAMESPACE", "metadata.namespace"),
        field("PATRONI_KUBERNETES_POD_IP", "status.podIP"),
        password("PATRONI_SUPERUSER_PASSWORD", "superuser"),
        password("PATRONI_REPLICATION_PASSWORD", "replication"),
        {"name": "PATRONI_SCOPE", "value": name},
        {"name": "PATRONI_KUBERNETES_SCOPE_LABEL", "value": "shard"},
        {"name": "PATRONI_KUBERNETES_LABELS", "value": json.dumps({"shard": name})},
        {"name": "PATRONI_POSTGRESQL_CONNECT_ADDRESS", "value": f"$(POD_IP):{POSTGRES_PORT}"},
        {"name": "PATRONI_RESTAPI_LISTEN", "value": f"0.0.0.0:{PATRONI_PORT}"},
        {"name": "PATRONI_RESTAPI_CONNECT_ADDRESS", "value": f"$(POD_IP):{PATRONI_PORT}"},
    ]
    mounts = {"data": "/data", "config": "/etc/patroni", "tmp": "/tmp"}  # noqa: S108
    container = {
        "name": "postgres",
        "image": image("postgres"),
        "imagePullPolicy": "IfNotPresent",
        "args": ["/etc/patroni/patroni.yaml"],
        "env": env,
        "ports": [{"name": "postgres", "containerPort": POSTGRES_PORT}],
        "readinessProbe": {"httpGet": {"path": "/readiness", "port": PATRONI_PORT}, "periodSeconds": 2},
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": RESTRICTED,
        "volumeMounts": [{"name": volume, "mountPath": path} for volume, path in mounts.items()],
    }
    return {
        "serviceAccountName": name,
        "securityContext": RESTRICTED_POD,
        "terminationGracePeriodSeconds": 30,
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": name}}, {"name": "tmp", "emptyDir": {}}],
    }
