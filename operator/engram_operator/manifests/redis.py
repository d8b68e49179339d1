"""The Managed cache: one small Redis that keeps nothing. What it loses, the next reads fill again.

Users of tenants are made at run time (`ACL SETUSER`): the file has the operator's alone, `ACL LOAD` forgets the others.

Pure. Source: Redis, ACL and key eviction; redis.conf.
"""

import base64
import hashlib
from typing import Final

from engram_contract.names import REDIS_PORT
from engram_contract.spec_cluster import ClusterSpec
from engram_contract.spec_parts import MIB
from engram_operator.manifests.credentials import Credentials, build_secret
from engram_operator.manifests.meta import (
    REDIS,
    Manifest,
    Owner,
    build_labels,
    build_meta,
    quantity_of_bytes,
    quantity_of_millis,
)
from engram_operator.manifests.names import ClusterNames
from engram_operator.manifests.restricted import (
    READABLE,
    build_container_security,
    build_mounts,
    build_pod_security,
    build_scratch,
    build_tcp_probe,
)
from engram_operator.manifests.services import build_service
from engram_operator.manifests.site import Site

ACL_DIR: Final = "/etc/redis-acl"
ACL_FILE: Final = "users.acl"
OPERATOR_USER: Final = "operator"
USED_PERCENT: Final = 80  # of the capacity for keys and values; the rest for fragments and clients' buffers
OVERHEAD_BYTES: Final = 32 * MIB  # Redis itself, empty
CPU_MILLIS: Final = 50
SCRATCH_BYTES: Final = 16 * MIB


def build_redis_secret(names: ClusterNames, owner: Owner, credentials: Credentials) -> Manifest:
    """Who may log in: the operator alone, by the digest of its password; not the user `default`, which has none."""
    digest = hashlib.sha256(credentials.redis.encode()).hexdigest()
    users = f"user default off\nuser {OPERATOR_USER} on #{digest} ~* &* +@all\n"
    return build_secret(_meta(names, owner), {ACL_FILE: base64.b64encode(users.encode()).decode()})


def build_redis_service(names: ClusterNames, owner: Owner) -> Manifest:
    """The cache's address."""
    port = {"name": "redis", "port": REDIS_PORT, "targetPort": REDIS_PORT, "protocol": "TCP"}
    return build_service(_meta(names, owner), _labels(names), [port])


def build_redis(spec: ClusterSpec, names: ClusterNames, owner: Owner, site: Site) -> Manifest:
    """The StatefulSet, which has no volume: its pod's name is always the same, and never there twice."""
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": _meta(names, owner),
        "spec": {
            "serviceName": names.redis,
            "replicas": 1,
            "revisionHistoryLimit": 2,
            "selector": {"matchLabels": _labels(names)},
            "updateStrategy": {"type": "RollingUpdate"},
            "template": {"metadata": {"labels": _labels(names)}, "spec": _build_pod(spec, names, site)},
        },
    }


def _build_pod(spec: ClusterSpec, names: ClusterNames, site: Site) -> Manifest:
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": build_pod_security(),
        "terminationGracePeriodSeconds": 5,  # there is nothing to save
        **site.pull_secrets,
        "containers": [_build_container(spec, site)],
        "volumes": [
            build_scratch("data", SCRATCH_BYTES),
            {"name": "acl", "secret": {"secretName": names.redis, "defaultMode": READABLE}},
        ],
    }


def _build_container(spec: ClusterSpec, site: Site) -> Manifest:
    memory = quantity_of_bytes(spec.cache.capacity_bytes + OVERHEAD_BYTES)
    return {
        "name": "redis",
        "image": site.redis_image,
        "imagePullPolicy": site.image_pull_policy,
        "command": ["redis-server"],
        "args": _arguments(spec),
        "ports": [{"name": "redis", "containerPort": REDIS_PORT, "protocol": "TCP"}],
        # No PING: without a password its answer is an error, and a password has no place in a probe.
        "readinessProbe": build_tcp_probe(REDIS_PORT, period_s=2, tries=2),
        "livenessProbe": build_tcp_probe(REDIS_PORT, period_s=10, tries=6),
        "resources": {
            "requests": {"cpu": quantity_of_millis(CPU_MILLIS), "memory": memory},
            "limits": {"memory": memory},
        },
        "securityContext": build_container_security(),
        "volumeMounts": build_mounts({"data": "/data", "acl": ACL_DIR}, "acl"),
    }


def _arguments(spec: ClusterSpec) -> list[str]:
    """Redis' settings; `save ""` is how it is told to write no snapshots."""
    settings = {
        "port": str(REDIS_PORT),
        "dir": "/data",
        "aclfile": f"{ACL_DIR}/{ACL_FILE}",
        "maxmemory": str(spec.cache.capacity_bytes * USED_PERCENT // 100),
        "maxmemory-policy": "allkeys-lru",
        "appendonly": "no",
        "save": "",
    }
    return [word for name, value in settings.items() for word in (f"--{name}", value)]


def _meta(names: ClusterNames, owner: Owner) -> Manifest:
    return build_meta(names.namespace, names.redis, _labels(names), owner)


def _labels(names: ClusterNames) -> dict[str, str]:
    return build_labels(names.cluster, REDIS)
