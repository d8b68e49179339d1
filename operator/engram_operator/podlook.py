"""The look at agents' pods, which no watch covers: where some came or went, the tenants are reconciled.

Why no watch: pods are watched already, by the label of a shard's members; kopf watches a resource once, one selector
cannot say "or", and without a selector every change of every pod of the cluster would come here. What matters comes
and goes seldom, so a list of metadata finds it soon enough.

Promises
1. A pod that came, went, or was changed in what injection goes by has its namespace's tenants reconciled within LOOK_S.
2. A look that fails is told and forgotten; one number is kept per namespace.
3. Pods of which no tenant can tell, because it is not clear whose they are, are handed on (claims.py).
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

from engram_contract.names import INJECT_LABEL, INJECTED_LABEL, SIDECAR_HASH_ANNOTATION, TENANT_ANNOTATION
from engram_operator.admission import wants_memory
from engram_operator.claims import Claims
from engram_operator.clients.kube import NAMESPACES, OWNED, Kube
from engram_operator.errors import ApiError
from engram_operator.plan.unclaimed import named_tenant

LOOK_S: Final = 20.0

log = logging.getLogger(__name__)


class PodLook:
    """Tells `enqueue` each namespace whose agents' pods are others than at the look before."""

    def __init__(self, kube: Kube, enqueue: Callable[[str], None], claims: Claims) -> None:
        self._kube = kube
        self._enqueue = enqueue
        self._claims = claims
        self._marks: Mapping[str, int] = {}

    async def run(self) -> None:
        """Looks for ever."""
        while True:
            try:
                await self._claims.look(await self.look())
            except ApiError as error:
                log.warning("agents' pods not looked at", extra={"reason": str(error)})
            await asyncio.sleep(LOOK_S)

    async def look(self) -> Mapping[str, frozenset[str]]:
        """What pods without a sidecar name as their tenant, by namespace, after one look.

        Raises ApiError; then the next look compares with the one before.
        """
        seen: dict[str, set[int]] = {}
        asked: dict[str, set[str]] = {}
        async for metadata, is_wide in self._pods():
            seen.setdefault(metadata["namespace"], set()).add(hash(_mark(metadata)))
            labels = metadata.get("labels") or {}
            if labels.get(INJECTED_LABEL) != "true" and wants_memory(labels, is_namespace_wide=is_wide):
                asked.setdefault(metadata["namespace"], set()).add(named_tenant(metadata))
        marks = {namespace: hash(frozenset(found)) for namespace, found in seen.items()}
        for namespace in sorted(marks.keys() | self._marks.keys()):
            if marks.get(namespace) != self._marks.get(namespace):
                self._enqueue(namespace)
        self._marks = marks
        return {namespace: frozenset(names) for namespace, names in asked.items()}

    async def _pods(self) -> AsyncIterator[tuple[Mapping[str, Any], bool]]:
        """The metadata of all pods that have a sidecar or may want one, and whether their namespace asks.

        Some come twice.
        """
        for label in (INJECT_LABEL, INJECTED_LABEL):
            async for metadata in self._kube.fetch_metadata(OWNED["Pod"], f"{label}=true"):
                yield metadata, False
        for namespace in await self._kube.fetch_labelled(NAMESPACES, None, f"{INJECT_LABEL}=true"):
            name = namespace["metadata"]["name"]
            async for metadata in self._kube.fetch_metadata(OWNED["Pod"], "", namespace=name):
                yield metadata, True


def _mark(metadata: Mapping[str, Any]) -> tuple[object, ...]:
    annotations = metadata.get("annotations") or {}
    wish = (metadata.get("labels") or {}).get(INJECT_LABEL)
    marks = [annotations.get(name) for name in (SIDECAR_HASH_ANNOTATION, TENANT_ANNOTATION)]
    return metadata["uid"], metadata.get("deletionTimestamp"), wish, *marks
