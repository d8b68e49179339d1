"""What happens when a MemoryTenant is deleted: with Retain nothing; with Delete all that it stored goes first.

    finalizer (set only with reclaimPolicy Delete) --> every shard: role, rows, own database --> cache --> keys
        --> finalizer gone

Each part may be repeated, so a crash anywhere goes on from there. A cluster that is gone, or is going, holds nothing
that could be asked: the finalizer is let go, so no namespace waits for what can never come, and an Event says so.
"""

from typing import Any, Final

from engram_contract.names import ERASE_FINALIZER
from engram_contract.spec import ClusterSpec, ReclaimPolicy
from engram_operator.clients import cache, tenancy
from engram_operator.clients.kube import MEMORY_TENANTS, SECRETS, Kube, Manifest
from engram_operator.leadership import Term
from engram_operator.manifests.tenant import key_secret
from engram_operator.plan.observed import Observed
from engram_operator.reconcile.hands import login
from engram_operator.reconcile.observe import cache_of
from engram_operator.reconcile.writing import left_s, remove

FIELD_MANAGER: Final = "engram-operator-finalizer"


def has_finalizer(resource: Manifest) -> bool:
    """Whether the object waits for us before it goes."""
    return ERASE_FINALIZER in (resource["metadata"].get("finalizers") or ())


def wants_finalizer(resource: Manifest) -> bool:
    """Whether its memories are to go with it."""
    return bool((resource.get("spec") or {}).get("reclaimPolicy") == ReclaimPolicy.DELETE.value)


async def mark(kube: Kube, term: Term, resource: Manifest, *, is_wanted: bool) -> None:
    """The finalizer is there or not; those of others stay. Raises ApiConflict if somebody wrote the object since.

    Not a server-side apply: that takes nothing away which somebody else, such as a restored backup, wrote too.
    """
    metadata = resource["metadata"]
    present = metadata.get("finalizers") or []
    operations: list[dict[str, Any]] = [
        {"op": "test", "path": "/metadata/uid", "value": metadata["uid"]},
        {"op": "replace", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]},
    ]
    if is_wanted and present:
        operations.append({"op": "add", "path": "/metadata/finalizers/-", "value": ERASE_FINALIZER})
    elif is_wanted:
        operations.append({"op": "add", "path": "/metadata/finalizers", "value": [ERASE_FINALIZER]})
    else:
        operations.append({"op": "remove", "path": f"/metadata/finalizers/{present.index(ERASE_FINALIZER)}"})
    await kube.patch(
        MEMORY_TENANTS,
        metadata["name"],
        operations,
        FIELD_MANAGER,
        namespace=metadata["namespace"],
        timeout_s=left_s(term),
    )


async def erase(kube: Kube, term: Term, cluster: ClusterSpec, seen: Observed, role: str, database: str) -> int | None:
    """The number of memories that went from all shards. Raises OperatorError at the first that cannot be asked.

    None if it is not known, as some shards were done by a try before, of which nothing is kept.
    """
    erased: list[int | None] = []
    for shard in cluster.shards:
        left_s(term)
        admin = await login(kube, cluster, seen, shard.id)
        erased.append(await tenancy.erase_tenant(admin, database, role))
    redis = await cache_of(kube, cluster, seen)
    if redis is not None:
        await cache.erase_user(redis, role)
    await _remove_keys(kube, term, cluster, role)
    known = [number for number in erased if number is not None]
    return sum(known) if len(known) == len(erased) else None


async def _remove_keys(kube: Kube, term: Term, cluster: ClusterSpec, role: str) -> None:
    """The keys go last."""
    secret = await kube.find(SECRETS, cluster.namespace, key_secret(cluster.name, role))
    if secret is not None:
        await remove(kube, term, {**secret, "apiVersion": "v1", "kind": "Secret"}, FIELD_MANAGER)
