"""One reconcile of a MemoryCluster: observe, decide, act, report.

    fetch --> gone? --> parse --> observe --> plan --> (paused, planOnly: show) or act --> status --> Outcome

Level-triggered: it asks what is, never what happened. A status that says what it said before is not written.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from engram_contract.names import API_VERSION, CLUSTER_KIND, CLUSTER_LABEL
from engram_contract.spec import BadSpec, ClusterSpec
from engram_operator.clients.kube import MEMORY_CLUSTERS, OWNED, Kube, Manifest
from engram_operator.controller import Outcome
from engram_operator.errors import ApiNotFound
from engram_operator.events import About, Recorder
from engram_operator.leadership import Leadership
from engram_operator.manifests.dcs import find_orphans
from engram_operator.manifests.site import Site
from engram_operator.metrics import OperatorMetrics
from engram_operator.plan.cluster import TOLD_S, Plan, plan_cluster
from engram_operator.plan.observed import Observed
from engram_operator.plan.report import Round, build_status, refused_status
from engram_operator.plan.steps import Apply, ReloadFiles
from engram_operator.reconcile.execute import execute, preview
from engram_operator.reconcile.hands import hands_for, refresh_certificates, serving_age_s
from engram_operator.reconcile.observe import observe_cluster
from engram_operator.reconcile.writing import delete, write_status
from engram_operator.workqueue import Key

SOON_S: Final = 0.5  # after something was done: its effects are seen by then, and the next step is due
ENDING_S: Final = 5.0  # between looks at the members of a cluster that is gone
FRESH_S: Final = 30.0  # between looks while a certificate is new
SHOWN_S: Final = 30.0  # how old a plan may be that is only shown

log = logging.getLogger(__name__)


class ClusterReconciler:
    """Reconciles MemoryClusters while we lead. `wall_clock` gives Unix seconds."""

    def __init__(
        self,
        kube: Kube,
        leadership: Leadership,
        site: Site,
        recorder: Recorder,
        metrics: OperatorMetrics,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._kube = kube
        self._leadership = leadership
        self._site = site
        self._recorder = recorder
        self._metrics = metrics
        self._conditions: dict[Key, dict[str, str]] = {}  # of each cluster, as they were reported last
        self._wall_clock = wall_clock

    async def reconcile(self, key: Key) -> Outcome:
        """What one run came to. Raises OperatorError."""
        try:
            resource = await self._kube.fetch(MEMORY_CLUSTERS, key.namespace, key.name)
        except ApiNotFound:
            self._gone(key)
            return await self._sweep(key)
        if "deletionTimestamp" in resource["metadata"]:
            self._gone(key)
            return Outcome("gone")  # its objects go with it; nothing outside is ours to clean
        try:
            spec = ClusterSpec.from_resource(resource)
        except BadSpec as error:
            await self._report(resource, refused_status(resource, str(error), self._wall_clock()))
            return Outcome("refused", waits=(str(error),))
        seen = await observe_cluster(self._kube, resource, spec, self._wall_clock)
        plan = plan_cluster(spec, seen, self._site)
        ended = await self._carry_out(spec, seen, plan)
        await self._report(resource, build_status(spec, seen, plan, ended))
        await self._tell(resource, ended)
        outcome = _outcome(spec, plan, ended)
        # The kubelet brings a new certificate within two minutes, of which nobody tells; then Postgres is to read it.
        is_due = outcome.again_s is None and serving_age_s(spec, seen) <= TOLD_S
        return replace(outcome, again_s=FRESH_S) if is_due else outcome

    def _gone(self, key: Key) -> None:
        self._conditions.pop(key, None)
        self._metrics.set_clusters(self._conditions.values())

    async def _sweep(self, key: Key) -> Outcome:
        """What members make in their last moment, when what they had is gone already, goes after them."""
        selector = f"{CLUSTER_LABEL}={key.name}"
        config_maps = await self._kube.fetch_labelled(OWNED["ConfigMap"], key.namespace, selector)
        if not any(find_orphans(config_maps, ())):
            return Outcome("gone")
        pods = await self._kube.fetch_labelled(OWNED["Pod"], key.namespace, selector)
        claims = await self._kube.fetch_labelled(OWNED["PersistentVolumeClaim"], key.namespace, selector)
        if pods or any("deletionTimestamp" in each["metadata"] for each in claims):
            return Outcome("waiting", ENDING_S, waits=("its members and their volumes are ending",))
        orphans = list(find_orphans(config_maps, claims))
        for each in orphans:
            await delete(self._kube, self._leadership.held(), "ConfigMap", each["metadata"])
        return Outcome("gone", done=tuple(f"remove ConfigMap {each['metadata']['name']}" for each in orphans))

    async def _carry_out(self, spec: ClusterSpec, seen: Observed, plan: Plan) -> Round:
        if spec.paused or spec.plan_only:
            return preview(plan.tracks)
        ended = await execute(hands_for(self._kube, self._leadership.held(), spec, seen), plan.tracks)
        for name in await refresh_certificates(spec, seen):
            log.info("certificate read anew", extra={"pod": name})
        return ended

    async def _report(self, resource: Manifest, status: dict[str, Any]) -> None:
        """The status is as given; a write only if it was not."""
        key = Key(CLUSTER_KIND, resource["metadata"]["namespace"], resource["metadata"]["name"])
        self._conditions[key] = {each["type"]: each["status"] for each in status["conditions"]}
        self._metrics.set_clusters(self._conditions.values())
        kind = (MEMORY_CLUSTERS, CLUSTER_KIND)
        await write_status(self._kube, self._leadership.held(), kind, resource, status)

    async def _tell(self, resource: Manifest, ended: Round) -> None:
        """Events for people: what was done, and what somebody should look at."""
        about = About.of({"apiVersion": API_VERSION, "kind": CLUSTER_KIND} | resource)
        for step in ended.done:
            if not isinstance(step, Apply):  # the log has those
                await self._recorder.record(about, "Normal", type(step).__name__, str(step))
        for fault in ended.faults:
            await self._recorder.record(about, "Warning", fault.reason, fault.message)


def _outcome(spec: ClusterSpec, plan: Plan, ended: Round) -> Outcome:
    waits = tuple(f"{track}: {wait.message}" for track, wait in ended.waits)
    waits += tuple(f"{track}: {note.message}" for track, note in ended.notes)
    again_s = min((wait.seconds for _, wait in ended.waits), default=None)
    if ended.done:
        # What was asked of Patroni shows when the kubelet has brought the files, not at once.
        again_s = again_s if all(isinstance(step, ReloadFiles) for step in ended.done) else SOON_S
        return Outcome("acted", again_s, tuple(map(str, ended.done)), waits)
    if (spec.paused or spec.plan_only) and plan.lines:
        return Outcome("waiting", SHOWN_S, (), ("paused" if spec.paused else "planOnly",))
    return Outcome("waiting" if waits else "settled", again_s, (), waits)
