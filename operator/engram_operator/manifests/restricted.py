"""Pods and containers within Pod Security `restricted`: no root, no rights, nothing writable but what is mounted.

Pure. Source: Kubernetes Pod Security Standards.
"""

from collections.abc import Mapping
from typing import Final

from engram_operator.manifests.meta import Manifest, quantity_of_bytes

UID: Final = 999  # `postgres` and `redis` of the official images
READABLE: Final = 0o440  # by the group, which fsGroup makes ours; Postgres refuses a key that others can read


def build_pod_security() -> Manifest:
    """Who the pod's processes are, and whose its volumes."""
    return {
        "runAsNonRoot": True,
        "runAsUser": UID,
        "runAsGroup": UID,
        "fsGroup": UID,
        "fsGroupChangePolicy": "OnRootMismatch",  # a walk over a full volume takes minutes
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def build_container_security() -> Manifest:
    """What a container may do: nothing beyond its user's rights."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


def build_mounts(places: Mapping[str, str], *read_only: str) -> list[Manifest]:
    """The mounts of volumes by name, some of them only to be read."""
    return [
        {"name": name, "mountPath": path, **({"readOnly": True} if name in read_only else {})}
        for name, path in places.items()
    ]


def build_scratch(name: str, limit_bytes: int) -> Manifest:
    """An empty volume that goes with the pod. Bounded: it lies on the node's own disk."""
    return {"name": name, "emptyDir": {"sizeLimit": quantity_of_bytes(limit_bytes)}}


def build_shared_memory(name: str, limit_bytes: int) -> Manifest:
    """An empty volume in memory, which counts as the pod's."""
    return {"name": name, "emptyDir": {"medium": "Memory", "sizeLimit": quantity_of_bytes(limit_bytes)}}


def build_tcp_probe(port: int, *, period_s: int, tries: int) -> Manifest:
    """Whether something listens."""
    return {"tcpSocket": {"port": port}, "periodSeconds": period_s, "failureThreshold": tries, "timeoutSeconds": 2}


def build_http_probe(path: str, port: int, *, period_s: int, tries: int, timeout_s: int) -> Manifest:
    """Whether the answer is 200."""
    return {
        "httpGet": {"path": path, "port": port, "scheme": "HTTP"},
        "periodSeconds": period_s,
        "failureThreshold": tries,
        "timeoutSeconds": timeout_s,
    }
