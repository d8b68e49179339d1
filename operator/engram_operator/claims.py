"""The look for pods that no tenant's status can name, because it is not clear whose they are.

    what pods without a sidecar name, by namespace --> doubtful namespaces --> their pods --> metric, Events

Promises
1. While every pod's tenant is clear it asks for nothing, or for the tenants' metadata alone.
2. At most MAX_NAMESPACES are looked at and told at a time, each with its number; SHOWN pods of each get an Event, once.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Final

from engram_contract.names import INJECT_LABEL
from engram_operator.clients.kube import MEMORY_TENANTS, NAMESPACES, OWNED, Kube
from engram_operator.events import About, Recorder
from engram_operator.metrics import OperatorMetrics
from engram_operator.plan.unclaimed import Unclaimed, find_unclaimed, is_doubtful
from engram_operator.plan.watchdog import SHOWN

MAX_NAMESPACES: Final = 100  # series of the metric; whoever has more of them has one reason for all

log = logging.getLogger(__name__)


class Claims:
    """Tells of pods without a tenant. `wall_clock` gives Unix seconds."""

    def __init__(
        self, kube: Kube, recorder: Recorder, metrics: OperatorMetrics, wall_clock: Callable[[], float]
    ) -> None:
        self._kube = kube
        self._recorder = recorder
        self._metrics = metrics
        self._wall_clock = wall_clock
        self._told: frozenset[tuple[str, str]] = frozenset()  # uid and reason, as long as it goes on

    async def look(self, asked: Mapping[str, Collection[str]]) -> None:
        """One look. `asked` has what pods without a sidecar name, by namespace. Raises ApiError, LostLease."""
        tenants = await self._tenants() if asked else {}
        doubtful = [
            namespace
            for namespace, names in sorted(asked.items())
            if any(is_doubtful(namespace, named, tenants.get(namespace, ())) for named in names)
        ]
        if len(doubtful) > MAX_NAMESPACES:
            log.warning("too many namespaces with pods of no tenant", extra={"namespaces": len(doubtful)})
        found = {each: await self._find(each, tenants.get(each, ())) for each in doubtful[:MAX_NAMESPACES]}
        self._metrics.set_unclaimed({namespace: len(pods) for namespace, pods in found.items() if pods})
        await self._tell(found)

    async def _tenants(self) -> Mapping[str, Collection[str]]:
        """The names of all tenants, by namespace."""
        found: dict[str, set[str]] = {}
        async for metadata in self._kube.fetch_metadata(MEMORY_TENANTS, ""):
            found.setdefault(metadata["namespace"], set()).add(metadata["name"])
        return found

    async def _find(self, name: str, tenants: Collection[str]) -> tuple[Unclaimed, ...]:
        namespace = await self._kube.find(NAMESPACES, None, name)
        if namespace is None:
            return ()
        is_wide = (namespace["metadata"].get("labels") or {}).get(INJECT_LABEL) == "true"
        pods = await self._kube.fetch_labelled(OWNED["Pod"], name, "" if is_wide else f"{INJECT_LABEL}=true")
        return find_unclaimed(name, tenants, pods, is_wide=is_wide, now_s=self._wall_clock())

    async def _tell(self, found: Mapping[str, tuple[Unclaimed, ...]]) -> None:
        """An Event on the first of each namespace, where its author looks."""
        shown = [(namespace, pod) for namespace, pods in found.items() for pod in pods[:SHOWN]]
        for namespace, pod in shown:
            if (pod.uid, pod.reason) not in self._told:
                about = About("v1", "Pod", namespace, pod.name, pod.uid)
                await self._recorder.record(about, "Warning", "NoTenant", f"it asks for a memory, but {pod.reason}")
        self._told = frozenset((pod.uid, pod.reason) for _, pod in shown)
