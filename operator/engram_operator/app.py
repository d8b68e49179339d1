"""Composition root of the operator: the election, what the leader keeps, what a probe may know.

Start: connect, serve probes, elect. End by a signal: stop what writes, give the Lease up, so that another replica leads
at once. End by a lost Lease: LostLease leaves `run_operator`, and the process fails, for a new one to begin clean.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Coroutine
from typing import Any, Final

from engram_operator.admin import Probes, serving_probes
from engram_operator.certificates import CertificateKeeper, PublicationWatch
from engram_operator.clients.kube import CRDS, Kube, connected
from engram_operator.clients.leases import Leases
from engram_operator.errors import ApiError, ApiNotFound
from engram_operator.leadership import Leadership
from engram_operator.life import boot_clock, until_one_ends
from engram_operator.metrics import OperatorMetrics
from engram_operator.plan.readiness import OUR_CRDS, OperatorSeen, crd_fault, liveness_fault, operator_fault
from engram_operator.settings import OperatorSettings

LOOK_S: Final = 10.0

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
        try:
            return crd_fault(name, await self._kube.fetch(CRDS, None, name))
        except ApiNotFound:
            return crd_fault(name, None)


class Operator:
    """One operator process, put together."""

    def __init__(self, settings: OperatorSettings, kube: Kube, metrics: OperatorMetrics) -> None:
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

    def probes(self) -> Probes:
        """What this process tells of itself."""
        return Probes(
            liveness_fault=lambda: liveness_fault(boot_clock() - self.leadership.ticked_s),
            readiness_fault=lambda: operator_fault(self._seen()),
            render_metrics=self._render,
        )

    def loops(self) -> list[Coroutine[Any, Any, object]]:
        """What runs until the end. The election is the only one that ends by itself, by raising LostLease."""
        kept = [self.keeper.run(self.leadership)] if self.keeper else []
        watched = [self.publication.run()] if self.publication else []
        return [self.leadership.run(), self.crds.run(), *kept, *watched]

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
    """Runs until `stop`. Raises LostLease, BadSettings, PortTaken; `on_ready` is told the port of the probes."""
    metrics = OperatorMetrics()
    async with connected(kubeconfig, metrics.count_request, boot_clock) as kube:
        operator = Operator(settings, kube, metrics)
        async with serving_probes(operator.probes(), settings.identity.admin_port) as port:
            log.info("operator started", extra={"admin_port": port, "injector": operator.keeper is not None})
            on_ready(port)
            await until_one_ends([stop.wait(), *operator.loops()])
            await operator.leadership.release()
