"""Probes and metrics of a control plane process: `/healthz`, `/readyz`, `/metrics`, on every address of the pod.

Promise: no answer here asks anybody; each says what the process knows already.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from engram_operator.life import listening
from engram_operator.metrics import CONTENT_TYPE

Fault = Callable[[], str | None]


@dataclass(frozen=True, slots=True)
class Probes:
    """What is asked at each route. A fault is one line, None is well."""

    liveness_fault: Fault
    readiness_fault: Fault
    render_metrics: Callable[[], bytes]

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """The answer to one probe or scrape."""
        match request.path:
            case "/healthz":
                return _verdict(self.liveness_fault())
            case "/readyz":
                return _verdict(self.readiness_fault())
            case "/metrics":
                return web.Response(body=self.render_metrics(), headers={"Content-Type": CONTENT_TYPE})
            case _:
                return web.Response(status=404, text="no such route\n")


def _verdict(fault: str | None) -> web.Response:
    return web.Response(text="ok\n") if fault is None else web.Response(status=503, text=f"{fault}\n")


@asynccontextmanager
async def serving_probes(probes: Probes, port: int) -> AsyncIterator[int]:
    """The port on which the probes are answered while the block runs. Raises PortTaken."""
    runner = web.ServerRunner(web.Server(probes.handle, access_log=None), shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.SockSite(runner, listening(port)).start()
        chosen: int = runner.addresses[0][1]
        yield chosen
    finally:
        await runner.cleanup()
