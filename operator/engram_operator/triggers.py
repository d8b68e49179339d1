"""What triggers what: an event of a watch to the keys that have to be reconciled, or to none.

Promises
1. What a reconcile could act on triggers one; our own status, Patroni's heartbeat and a lease of somebody do not.
2. What is unheard triggers its owner, and if the owner is not known, every cluster of the namespace.

Some bytes are kept per object, never a manifest.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from engram_contract.names import (
    CLUSTER_KIND,
    CLUSTER_LABEL,
    CLUSTERS,
    GROUP,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    ROLE_LABEL,
    TENANT_KIND,
    TENANT_LABEL,
    TENANTS,
    VERSION,
)
from engram_operator.plan.hearing import Place, Watched
from engram_operator.workqueue import Key

OURS: Final = f"{MANAGED_BY_LABEL}={MANAGED_BY}"
MEMORY_CLUSTERS: Final = Watched(GROUP, VERSION, CLUSTERS)
MEMORY_TENANTS: Final = Watched(GROUP, VERSION, TENANTS)
PODS: Final = Watched("", "v1", "pods", OURS)
WATCHED: Final = (
    MEMORY_CLUSTERS,
    MEMORY_TENANTS,
    PODS,
    Watched("apps", "v1", "statefulsets", OURS),
    Watched("", "v1", "configmaps", OURS),
    Watched("", "v1", "persistentvolumeclaims", OURS),
    Watched("", "v1", "secrets", OURS),
    Watched("", "v1", "serviceaccounts", OURS),
    Watched("", "v1", "services", OURS),
    Watched("networking.k8s.io", "v1", "networkpolicies", OURS),
    Watched("policy", "v1", "poddisruptionbudgets", OURS),
    Watched("rbac.authorization.k8s.io", "v1", "rolebindings", OURS),
    Watched("rbac.authorization.k8s.io", "v1", "roles", OURS),
)
TOLD_BY_PATRONI: Final = ("state", "role", "timeline", "pending_restart")  # its position changes with every write

Seen = tuple[Watched, Place]
Json = Mapping[str, Any]


class Triggers:
    """Hands keys to `enqueue`."""

    def __init__(self, enqueue: Callable[[Key], None]) -> None:
        self._enqueue = enqueue
        self._marks: dict[Seen, int] = {}
        self._owners: dict[Seen, Key] = {}
        self._tenants: dict[Key, Key] = {}  # each with its cluster

    def hear(self, watched: Watched, event: str | None, manifest: Json) -> None:
        """Enqueues whom an event concerns, if it says something new."""
        metadata = manifest["metadata"]
        seen = (watched, (metadata.get("namespace", ""), metadata["name"]))
        if event == "DELETED":
            self._marks.pop(seen, None)
        else:
            mark = hash(json.dumps(mark_of(watched, manifest), sort_keys=True, default=str))
            if event is not None and self._marks.get(seen) == mark:
                return
            self._marks[seen] = mark
        key = owner_of(watched, manifest)
        if key is None:
            return
        self._owners[seen] = key
        self._enqueue(key)
        for other in self._neighbours(watched, event, key, manifest):
            self._enqueue(other)
        if event == "DELETED":
            self._owners.pop(seen, None)

    def miss(self, watched: Watched, place: Place) -> None:
        """Enqueues whom an object concerns that its watch did not deliver."""
        key = self._owners.get((watched, place)) or _itself(watched, place)
        for each in (key,) if key is not None else self._clusters_in(place[0]):
            self._enqueue(each)

    def look_at(self, namespace: str) -> None:
        """Enqueues the tenants of a namespace in which pods came or went."""
        for tenant in sorted((key for key in self._tenants if key.namespace == namespace), key=lambda key: key.name):
            self._enqueue(tenant)

    def _neighbours(self, watched: Watched, event: str | None, key: Key, manifest: Json) -> Iterable[Key]:
        """A cluster concerns its tenants, and a tenant its cluster."""
        if watched == MEMORY_CLUSTERS:
            return [tenant for tenant, cluster in self._tenants.items() if cluster == key]
        if watched != MEMORY_TENANTS:
            return []
        reference = (manifest.get("spec") or {}).get("clusterRef") or {}
        cluster = Key(CLUSTER_KIND, reference.get("namespace") or key.namespace, str(reference.get("name")))
        if event == "DELETED":
            self._tenants.pop(key, None)
        else:
            self._tenants[key] = cluster
        return [cluster]

    def _clusters_in(self, namespace: str) -> Iterable[Key]:
        found = {key for key in self._owners.values() if key.kind == CLUSTER_KIND and key.namespace == namespace}
        return sorted(found, key=lambda each: each.name)


def _itself(watched: Watched, place: Place) -> Key | None:
    """The key of one of our own objects: a new one is unheard before anybody knows an owner."""
    kind = {MEMORY_CLUSTERS: CLUSTER_KIND, MEMORY_TENANTS: TENANT_KIND}.get(watched)
    return None if kind is None else Key(kind, *place)


def owner_of(watched: Watched, manifest: Json) -> Key | None:
    """Whose object it is: itself, or the tenant or cluster that its labels name."""
    metadata = manifest["metadata"]
    namespace, name = metadata.get("namespace", ""), metadata["name"]
    if watched == MEMORY_CLUSTERS:
        return Key(CLUSTER_KIND, namespace, name)
    if watched == MEMORY_TENANTS:
        return Key(TENANT_KIND, namespace, name)
    labels = metadata.get("labels") or {}
    if TENANT_LABEL in labels:
        return Key(TENANT_KIND, namespace, labels[TENANT_LABEL])
    return Key(CLUSTER_KIND, namespace, labels[CLUSTER_LABEL]) if CLUSTER_LABEL in labels else None


def mark_of(watched: Watched, manifest: Json) -> object:
    """What of an object matters to a reconcile; equal marks are no news."""
    metadata = manifest["metadata"]
    status = manifest.get("status") or {}
    usual = (metadata.get("uid"), metadata.get("deletionTimestamp"))
    if watched == MEMORY_CLUSTERS:
        ready = [each.get("status") for each in status.get("conditions") or () if each.get("type") == "ShardsReady"]
        return (*usual, metadata.get("generation"), metadata.get("annotations"), ready)
    if watched == MEMORY_TENANTS:
        return (*usual, metadata.get("generation"), metadata.get("annotations"), status.get("shards"))
    if watched == PODS:
        labels = metadata.get("labels") or {}
        conditions = [(each["type"], each["status"]) for each in status.get("conditions") or ()]
        waiting = [each.get("state") for each in status.get("containerStatuses") or ()]
        said = _told(metadata)
        return (*usual, labels.get(ROLE_LABEL), conditions, waiting, status.get("podIP"), said)
    return (*usual, metadata.get("resourceVersion"))


def _told(metadata: Json) -> object:
    try:
        said = json.loads((metadata.get("annotations") or {}).get("status") or "{}")
        return [said.get(name) for name in TOLD_BY_PATRONI]
    except (ValueError, AttributeError):
        return None
