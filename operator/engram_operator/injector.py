"""Composition root of the injector: certificate, tenants, webhook, probes.

Start: probes first, reviews as soon as there is a certificate. End by a signal: not ready at once, but reviews are
taken for `linger_s` more, because API servers learn only then that this endpoint is gone; then the running ones drain.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from engram_operator.admin import Probes, serving_probes
from engram_operator.clients.kube import connected, fetch_access
from engram_operator.life import boot_clock, until_one_ends
from engram_operator.metrics import InjectorMetrics
from engram_operator.plan.readiness import InjectorSeen, injector_fault
from engram_operator.settings import InjectorSettings
from engram_operator.tenants import Tenants
from engram_operator.tls import ServedCertificate
from engram_operator.webhook import Webhook, serving_webhook

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Ports:
    """Where an injector listens; the webhook's is 0 until there is a certificate."""

    admin: int = 0
    webhook: int = 0


async def run_injector(
    settings: InjectorSettings, kubeconfig: str, stop: asyncio.Event, ports: Ports | None = None
) -> None:
    """Runs until `stop`. Raises BadSettings, PortTaken; `ports` is told where it listens."""
    ports = ports or Ports()
    metrics = InjectorMetrics()
    identity = settings.identity
    async with connected(kubeconfig, metrics.count_request, boot_clock) as kube:
        certificate = ServedCertificate(kube, identity.namespace, settings.tls_secret, time.time, metrics)
        tenants = Tenants(kube, partial(fetch_access, kubeconfig), metrics, boot_clock)
        probes = Probes(lambda: None, _readiness(certificate, tenants, stop), metrics.render)
        webhook = Webhook(tenants, settings.sidecar, metrics, time.monotonic)
        async with serving_probes(probes, identity.admin_port) as ports.admin:
            log.info("injector started", extra={"admin_port": ports.admin, "image": settings.sidecar.image})

            async def serve() -> None:
                await until_one_ends([certificate.wait(), stop.wait()])
                if stop.is_set():
                    return
                drain_s = settings.drain_timeout_s
                async with serving_webhook(webhook, certificate.context, settings.webhook_port, drain_s) as port:
                    ports.webhook = port
                    log.info("reviews are taken", extra={"port": port})
                    await stop.wait()
                    await asyncio.sleep(settings.linger_s)

            await until_one_ends([serve(), certificate.run(), tenants.run()])


def _readiness(certificate: ServedCertificate, tenants: Tenants, stop: asyncio.Event) -> Callable[[], str | None]:
    def fault() -> str | None:
        if stop.is_set():
            return "the injector is ending"
        return injector_fault(InjectorSeen(certificate.fault(), tenants.fault))

    return fault
