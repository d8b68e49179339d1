"""What every object of a cluster has: its labels, its owner, its metadata; and amounts as the API server stores them.

Promises
1. What a builder of this room gives is what the API server gives back, field by field: no null, nothing empty that the
   server drops, no amount in another form. So an object that differs was changed, by a new spec or by a stranger.
2. The same arguments give the same dict, in the same order.

Pure. Source: Kubernetes API conventions (labels, owner references, the canonical form of quantities).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from engram_contract.names import (
    API_VERSION,
    CLUSTER_KIND,
    CLUSTER_LABEL,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    SHARD_LABEL,
)

Manifest = dict[str, Any]

NAME_LABEL: Final = "app.kubernetes.io/name"
INSTANCE_LABEL: Final = "app.kubernetes.io/instance"
COMPONENT_LABEL: Final = "app.kubernetes.io/component"
POSTGRES: Final = "postgres"  # the components
REDIS: Final = "redis"
CLUSTER: Final = "cluster"  # what belongs to no component alone

_BINARY: Final = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_DECIMAL: Final = ("", "k", "M", "G", "T", "P", "E")


@dataclass(frozen=True, slots=True)
class Owner:
    """The MemoryCluster with which its objects are deleted."""

    namespace: str
    name: str
    uid: str

    @property
    def reference(self) -> Manifest:
        """The controlling owner. It blocks nothing: a delete in the foreground must not wait for volumes to go."""
        return {
            "apiVersion": API_VERSION,
            "kind": CLUSTER_KIND,
            "name": self.name,
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": False,
        }


def digest_of(value: Manifest) -> str:
    """Sixteen hex digits of a manifest or a part of one; the order of keys does not count."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def build_labels(cluster: str, component: str, shard: str | None = None) -> dict[str, str]:
    """The labels of an object; of one shard, or of the whole cluster."""
    of_shard = {} if shard is None else {SHARD_LABEL: shard}
    return {
        NAME_LABEL: "engram",
        INSTANCE_LABEL: cluster,
        COMPONENT_LABEL: component,
        MANAGED_BY_LABEL: MANAGED_BY,
        CLUSTER_LABEL: cluster,
        **of_shard,
    }


def build_meta(namespace: str, name: str, labels: Mapping[str, str], owner: Owner | None = None) -> Manifest:
    """The metadata. Without an owner the object outlives its cluster."""
    owned = {} if owner is None else {"ownerReferences": [owner.reference]}
    return {"name": name, "namespace": namespace, "labels": dict(labels), **owned}


def quantity_of_bytes(amount_bytes: int) -> str:
    """The bytes as the API server writes them: 10737418240 is `10Gi`, 10000000 is `10M`."""
    if amount_bytes % 1024 == 0:
        return _scaled(amount_bytes, 1024, _BINARY)
    return _scaled(amount_bytes, 1000, _DECIMAL)


def quantity_of_millis(amount_millis: int) -> str:
    """Thousandths of a CPU as the API server writes them: 1000 is `1`, 1500 is `1500m`."""
    if amount_millis % 1000:
        return f"{amount_millis}m"
    return _scaled(amount_millis // 1000, 1000, _DECIMAL)


def _scaled(number: int, base: int, suffixes: Sequence[str]) -> str:
    """The number with the largest suffix that leaves it whole."""
    power = 0
    while number and number % base == 0 and power + 1 < len(suffixes):
        number, power = number // base, power + 1
    return f"{number}{suffixes[power]}"
