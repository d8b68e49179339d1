"""Composition root of the operator: the election, what the leader keeps, what a probe may know.

Start: connect, serve probes, elect. End by a signal: stop what writes, give the Lease up, so that another replica leads
at once. End by a lost Lease: LostLease leaves `run_operator`, and the process fails, for a new one to begin clean.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Final

from engram_contract.names import CLUSTER_KIND, TENANT_KIND
from engram_operator.admin import Probes, serving_probes
from engram_operator.certificates import CertificateKeeper, PublicationWatch
from engram_operator.claims import Claims
from engram_operator.clients.kube import CRDS, Kube, connected, fetch_access
from engram_operator.clients.leases import Leases
from engram_operator.controller import Controller
from engram_operator.errors import ApiError
from engram_operator.events import Recorder
from engram_operator.hearing import Hearing
from engram_operator.leadership import Leadership
from engram_operator.life import boot_clock, until_one_ends
from engram_operator.metrics import OperatorMetrics
from engram_operator.plan.hearing import Watched
from engram_operator.plan.readiness import OUR_CRDS, OperatorSeen, crd_fault, liveness_fault, operator_fault
from engram_operator.podlook import PodLook
from engram_operator.reconcile.cluster import ClusterReconciler
from engram_operator.reconcile.tenant import TenantReconciler
from engram_operator.reconcile.watchdog import Watchdog
from engram_operator.settings import OperatorSettings
from engram_operator.triggers import WATCHED, Triggers
from engram_operator.watching import run_watches
from engram_operator.workqueue import WorkQueue

LOOK_S: Final = 10.0
WORKERS: Final = 8  # reconciles at a time: each mostly waits for answers

log = logging.getLogger(__name__)


class CrdWatch:
    """Whether our CRDs are served, asked every LOOK_S; each answer also proves that the API server is there.

    `faults` is None until it was asked once.
    """

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self.faults: tuple[str, ...] | None = None

    async def run(self) -> None:
        """Looks for ever."""
        while True:
            try:
                found = [await self._fault(name) for name in OUR_CRDS]
                self.faults = tuple(fault for fault in found if fault)
            except ApiError as error:
                log.warning("CRDs not looked at", extra={"reason": str(error)})
            await asyncio.sleep(LOOK_S)

    async def _fault(self, name: str) -> str | None:
        return crd_fault(name, await self._kube.find(CRDS, None, name))


class Runtime:
    """What reconciles while we lead: the watches, the proof that they hear, the queue and its workers."""

    def __init__(
        self, settings: OperatorSettings, kubeconfig: str, kube: Kube, leadership: Leadership, metrics: OperatorMetrics
    ) -> None:
        self._kubeconfig = kubeconfig
        self._leadership = leadership
        pod_name = settings.identity.pod_name
        recorder = Recorder(kube, time.time, pod_name, self._check, metrics.count_event_dropped)
        clusters = ClusterReconciler(kube, leadership, settings.site, recorder, metrics)
        watchdog = Watchdog(kube, leadership, settings.injection, recorder, metrics)
        tenants = TenantReconciler(kube, leadership, recorder, watchdog, settings.terms)
        self._queue = WorkQueue(boot_clock)
        reconcilers = {CLUSTER_KIND: clusters.reconcile, TENANT_KIND: tenants.reconcile}
        self._controller = Controller(self._queue, reconcilers, self._check, metrics, boot_clock)
        self._triggers = Triggers(self._queue.add)
        self._pod_look = PodLook(kube, self._triggers.look_at, Claims(kube, recorder, metrics, time.time))
        self.hearing = Hearing(kube, WATCHED, self._triggers.miss, boot_clock)
        for watched, proof in self.hearing.proofs.items():
            metrics.show_watch_age(str(watched), proof.age_s)

    async def run(self) -> None:
        """Waits until we lead, then reconciles for ever. Raises LostLease, DeafWatch."""
        await self._leadership.led.wait()
        access = partial(fetch_access, self._kubeconfig)
        await until_one_ends(
            [
                run_watches(WATCHED, access, self._hear),
                self.hearing.run(),
                self._pod_look.run(),
                self._controller.run(WORKERS),
            ]
        )

    def _hear(self, watched: Watched, event: str | None, manifest: Mapping[str, Any]) -> None:
        self.hearing.hear(watched, event, manifest)
        self._triggers.hear(watched, event, manifest)

    def _check(self) -> float:
        return self._leadership.held().check()


class Operator:
    """One operator process, put together."""

    def __init__(self, settings: OperatorSettings, kubeconfig: str, kube: Kube, metrics: OperatorMetrics) -> None:
        identity = settings.identity
        self.kube = kube
        self.metrics = metrics
        # A container that was started again has its pod's name, but is not who it was: it must wait like any other.
        holder = f"{identity.pod_name}_{uuid.uuid4().hex[:8]}"
        leases = Leases(kube, identity.namespace, settings.lease_name, time.time)
        self.leadership = Leadership(leases, holder, boot_clock)
        self.crds = CrdWatch(kube)
        self.keeper = (
            CertificateKeeper(kube, identity.namespace, settings.webhook, time.time, metrics)
            if settings.webhook
            else None
        )
        self.publication = PublicationWatch(kube, identity.namespace, settings.webhook) if settings.webhook else None
        self.runtime = Runtime(settings, kubeconfig, kube, self.leadership, metrics)

    def probes(self) -> Probes:
        """What this process tells of itself."""
        return Probes(
            liveness_fault=lambda: (
                liveness_fault(boot_clock() - self.leadership.ticked_s) or self.runtime.hearing.fault
            ),
            readiness_fault=lambda: operator_fault(self._seen()),
            render_metrics=self._render,
        )

    def loops(self) -> list[Coroutine[Any, Any, object]]:
        """What runs until the end: only a lost Lease or a deaf watch ends one of them, by what it raises."""
        kept = [self.keeper.run(self.leadership)] if self.keeper else []
        watched = [self.publication.run()] if self.publication else []
        return [self.leadership.run(), self.crds.run(), self.runtime.run(), *kept, *watched]

    def _seen(self) -> OperatorSeen:
        answered_s = self.kube.answered_s
        return OperatorSeen(
            answer_age_s=None if answered_s is None else boot_clock() - answered_s,
            crd_faults=self.crds.faults,
            is_leader=self.leadership.is_leader(),
            certificate_fault=self.keeper.trouble if self.keeper else None,
            publication_fault=self.publication.fault if self.publication else None,
        )

    def _render(self) -> bytes:
        self.metrics.set_leader(is_leader=self.leadership.is_leader())
        return self.metrics.render()


async def run_operator(
    settings: OperatorSettings, kubeconfig: str, stop: asyncio.Event, on_ready: Callable[[int], None] = lambda _: None
) -> None:
    """Runs until `stop`; `on_ready` is told the port of the probes.

    Raises LostLease, DeafWatch, BadSettings, PortTaken.
    """
    metrics = OperatorMetrics()
    async with connected(kubeconfig, metrics.count_request, boot_clock) as kube:
        operator = Operator(settings, kubeconfig, kube, metrics)
        async with serving_probes(operator.probes(), settings.identity.admin_port) as port:
            log.info("operator started", extra={"admin_port": port, "injector": operator.keeper is not None})
            on_ready(port)
            await until_one_ends([stop.wait(), *operator.loops()])
            await operator.leadership.release()
