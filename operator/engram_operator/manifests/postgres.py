"""A shard's StatefulSet: Postgres under Patroni, and the pooler beside it.

The operator restarts members itself (OnDelete), replicas first. Of a StatefulSet only the template, the number of
members and what becomes of the volumes can change; another selector or another claim the API server refuses. So the
label that changes (the protection) is not in the claim's template but put on the claims: `storage.build_claim`.

Pure.
"""

import json
from collections.abc import Mapping
from typing import Final

from engram_contract.names import PATRONI_PORT, POSTGRES_PORT, PROTECTED_LABEL, SCOPE_LABEL
from engram_contract.spec_cluster import ClusterSpec
from engram_contract.spec_parts import GIB, MIB
from engram_operator.manifests.credentials import TLS_DIR
from engram_operator.manifests.meta import (
    Manifest,
    Owner,
    build_meta,
    quantity_of_bytes,
    quantity_of_millis,
)
from engram_operator.manifests.names import (
    CREDENTIALS_FILE,
    DATA_VOLUME,
    LOCAL_FILE,
    POOLER_FILE,
    TLS_VOLUME,
    ClusterNames,
    ShardNames,
)
from engram_operator.manifests.patroni import DATA_DIR
from engram_operator.manifests.pooler import CONFIG_DIR as POOLER_DIR
from engram_operator.manifests.pooler import SOCKETS_DIR, build_pooler_container
from engram_operator.manifests.restricted import (
    READABLE,
    build_container_security,
    build_http_probe,
    build_mounts,
    build_pod_security,
    build_scratch,
    build_shared_memory,
)
from engram_operator.manifests.scheduling import build_placement
from engram_operator.manifests.site import Site

PATRONI_DIR: Final = "/etc/patroni"
GRACE_S: Final = 30  # a last checkpoint; the end of a namespace must not take a minute
SCRATCH_BYTES: Final = 64 * MIB
SOCKETS_BYTES: Final = MIB


def build_statefulset(
    spec: ClusterSpec, names: ShardNames, labels: Mapping[str, str], owner: Owner, site: Site
) -> Manifest:
    """The shard's members with their volumes."""
    guarded = {**labels, **_protection(spec)}
    pod_labels = {**labels, SCOPE_LABEL: names.scope}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": build_meta(names.namespace, names.scope, guarded, owner),
        "spec": {
            "serviceName": ClusterNames(names.cluster, names.namespace).pods,
            "replicas": spec.replicas + 1,
            "revisionHistoryLimit": 2,
            "podManagementPolicy": "Parallel",  # after a loss of all, the primary may be any of them
            "updateStrategy": {"type": "OnDelete"},
            "persistentVolumeClaimRetentionPolicy": {
                "whenDeleted": spec.storage.reclaim_policy.value,
                "whenScaled": "Retain",
            },
            "selector": {"matchLabels": names.selector},
            "template": {"metadata": {"labels": pod_labels}, "spec": _build_pod(spec, names, site)},
            "volumeClaimTemplates": [_build_claim(spec, labels)],
        },
    }


def _protection(spec: ClusterSpec) -> dict[str, str]:
    return {PROTECTED_LABEL: "true"} if spec.deletion_protection else {}


def _build_claim(spec: ClusterSpec, labels: Mapping[str, str]) -> Manifest:
    storage = spec.storage
    of_class = {"storageClassName": storage.storage_class_name} if storage.storage_class_name else {}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": DATA_VOLUME, "labels": dict(labels)},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": quantity_of_bytes(storage.size_bytes)}},
            **of_class,
        },
    }


def _build_pod(spec: ClusterSpec, names: ShardNames, site: Site) -> Manifest:
    image = {"image": spec.postgres.image or site.postgres_image, "imagePullPolicy": site.image_pull_policy}
    containers = [_build_container(spec, names, image)]
    if spec.pooler.enabled:
        places = {"sockets": SOCKETS_DIR, "pooler": POOLER_DIR, **_tls_place(spec)}
        containers.append(build_pooler_container(image, places))
    return {
        "serviceAccountName": ClusterNames(names.cluster, names.namespace).shards,
        "automountServiceAccountToken": True,  # Patroni's state is in the API server
        "enableServiceLinks": False,  # variables of every Service around, which nobody reads
        "securityContext": build_pod_security(),
        "terminationGracePeriodSeconds": GRACE_S,
        **site.pull_secrets,
        **build_placement(spec, names),
        "containers": containers,
        "volumes": _build_volumes(spec, names),
    }


def _build_container(spec: ClusterSpec, names: ShardNames, image: Manifest) -> Manifest:
    places = {DATA_VOLUME: DATA_DIR, "patroni": PATRONI_DIR, "sockets": SOCKETS_DIR, **_tls_place(spec)}
    scratch = {"tmp": "/tmp", "shm": "/dev/shm"}  # noqa: S108  volumes of the pod
    return {
        "name": "postgres",
        **image,
        "args": [PATRONI_DIR],
        "env": _build_environment(names),
        "ports": [
            {"name": "postgres", "containerPort": POSTGRES_PORT, "protocol": "TCP"},
            {"name": "patroni", "containerPort": PATRONI_PORT, "protocol": "TCP"},
        ],
        **_build_probes(),
        "resources": _build_resources(spec),
        "securityContext": build_container_security(),
        "volumeMounts": build_mounts(places | scratch, "patroni", TLS_VOLUME),
    }


def _tls_place(spec: ClusterSpec) -> dict[str, str]:
    return {TLS_VOLUME: TLS_DIR} if spec.postgres.tls.enabled else {}


def _build_environment(names: ShardNames) -> list[Manifest]:
    """What differs from member to member, and which objects are the shard's."""
    fields = {
        "POD_IP": "status.podIP",
        "PATRONI_NAME": "metadata.name",
        "PATRONI_KUBERNETES_NAMESPACE": "metadata.namespace",
        "PATRONI_KUBERNETES_POD_IP": "status.podIP",
    }
    values = {
        "PATRONI_SCOPE": names.scope,
        "PATRONI_KUBERNETES_SCOPE_LABEL": SCOPE_LABEL,
        "PATRONI_KUBERNETES_LABELS": json.dumps(names.patroni_labels),
        "PATRONI_POSTGRESQL_CONNECT_ADDRESS": f"$(POD_IP):{POSTGRES_PORT}",
        "PATRONI_RESTAPI_CONNECT_ADDRESS": f"$(POD_IP):{PATRONI_PORT}",
    }
    return [
        *(
            {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}
            for name, path in fields.items()
        ),
        *({"name": name, "value": value} for name, value in values.items()),
    ]


def _build_probes() -> Manifest:
    """Ready is the primary, or a replica that streams and is not far behind.

    /liveness speaks of Patroni's loop alone. It is 200 as long as a round began within `ttl` (twice that on a replica),
    and with the API server away the rounds go on, each with an error: an outage restarts nothing. Nor does a recovery,
    however long: Postgres recovers while the loop goes round. A frozen Patroni answers nobody, and is restarted after a
    minute and its grace. Before its first answer Patroni has started no Postgres, and waits for the API server: five
    minutes of that, then a new try, harm nothing.
    """
    return {
        "startupProbe": build_http_probe("/liveness", PATRONI_PORT, period_s=2, tries=150, timeout_s=5),
        "readinessProbe": build_http_probe("/readiness", PATRONI_PORT, period_s=2, tries=3, timeout_s=2),
        "livenessProbe": build_http_probe("/liveness", PATRONI_PORT, period_s=10, tries=6, timeout_s=5),
    }


def _build_resources(spec: ClusterSpec) -> Manifest:
    requests, limits = spec.postgres.resources.requests, spec.postgres.resources.limits
    most = {}
    if limits.cpu_millis is not None:
        most["cpu"] = quantity_of_millis(limits.cpu_millis)
    if limits.memory_bytes is not None:
        most["memory"] = quantity_of_bytes(limits.memory_bytes)
    return {
        "requests": {
            "cpu": quantity_of_millis(requests.cpu_millis),
            "memory": quantity_of_bytes(requests.memory_bytes),
        },
        **({"limits": most} if most else {}),
    }


def _build_volumes(spec: ClusterSpec, names: ShardNames) -> list[Manifest]:
    of_cluster = ClusterNames(names.cluster, names.namespace)
    # Parallel queries meet there. Its pages count as the container's, so it takes no more than the memory asked for.
    shared_bytes = max(MIB, min(GIB, spec.postgres.resources.requests.memory_bytes // 2) // MIB * MIB)
    sources = [
        {"configMap": {"name": names.patroni, "items": [{"key": LOCAL_FILE, "path": LOCAL_FILE}]}},
        {"secret": {"name": of_cluster.patroni, "items": [{"key": CREDENTIALS_FILE, "path": CREDENTIALS_FILE}]}},
    ]
    volumes = [
        {"name": "patroni", "projected": {"defaultMode": READABLE, "sources": sources}},
        build_scratch("sockets", SOCKETS_BYTES),
        build_scratch("tmp", SCRATCH_BYTES),
        build_shared_memory("shm", shared_bytes),
    ]
    if spec.postgres.tls.enabled:
        volumes.append({"name": TLS_VOLUME, "secret": {"secretName": of_cluster.tls, "defaultMode": READABLE}})
    if spec.pooler.enabled:
        items = [{"key": POOLER_FILE, "path": POOLER_FILE}]
        volumes.append(
            {"name": "pooler", "configMap": {"name": names.patroni, "items": items, "defaultMode": READABLE}}
        )
    return volumes
