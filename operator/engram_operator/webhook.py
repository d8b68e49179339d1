"""The injector's HTTPS server: a review comes in, a verdict goes out, and whatever goes wrong the pod is allowed.

Promises
1. A review is answered within the webhook's timeout: it asks the API server at most once, for at most LOOKUP_TIMEOUT_S.
2. A fault of ours is an answer that allows, with a warning; only what is no review is refused, with 400.
3. At the end no new connection is taken and running reviews are answered.
"""

import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, Protocol

from aiohttp import web

from engram_contract.names import WEBHOOK_PATH
from engram_operator.admission import Review, Verdict, judge
from engram_operator.errors import ApiError, BadReview
from engram_operator.injection import Sidecar
from engram_operator.life import listening
from engram_operator.metrics import InjectorMetrics, ReviewResult

# A pod is at most 1.5 MiB in etcd, as JSON up to twice that; a review may hold it together with an old one.
MAX_BODY_BYTES: Final = 8 * 1024 * 1024
NOT_NOW: Final = "the injector could not look its tenant up; create the pod again in a minute"

log = logging.getLogger(__name__)
# The server would log each malformed request; what is no HTTP is nobody's pod.
protocol_log = logging.getLogger("engram_operator.protocol")
protocol_log.setLevel(logging.CRITICAL)


class TenantLookup(Protocol):
    """Where a pod's tenant is looked up."""

    async def candidates(self, namespace: str, wanted: str) -> tuple[str, ...]:
        """The tenant `wanted` if it exists; without a name the namespace's, two at most. Raises ApiError."""


class Webhook:
    """The one route. `clock` gives monotonic seconds."""

    def __init__(
        self, tenants: TenantLookup, sidecar: Sidecar, metrics: InjectorMetrics, clock: Callable[[], float]
    ) -> None:
        self._tenants = tenants
        self._sidecar = sidecar
        self._metrics = metrics
        self._clock = clock

    async def handle(self, request: web.Request) -> web.Response:
        """The answer to POST /mutate."""
        began_s = self._clock()
        try:
            review = Review.from_json(await request.read())
        except BadReview as error:
            self._metrics.observe_review("error", self._clock() - began_s)
            return web.json_response({"error": str(error)}, status=400)
        result, verdict = await self._judged(review)
        self._metrics.observe_review(result, self._clock() - began_s)
        return web.Response(body=verdict.to_json(review.uid), content_type="application/json")

    async def _judged(self, review: Review) -> tuple[ReviewResult, Verdict]:
        try:
            wants = review.wants_memory
            tenants = await self._tenants.candidates(review.namespace, review.tenant) if wants else ()
            verdict = judge(review, tenants, self._sidecar)
        except ApiError as error:
            log.warning("tenant not looked up", extra={"namespace": review.namespace, "reason": str(error)})
            return "error", Verdict(warning=NOT_NOW)
        except Exception:
            log.exception("review failed", extra={"namespace": review.namespace, "uid": review.uid})
            return "error", Verdict(warning="a fault of the injector, which its log describes; please report it")
        if verdict.warning:
            log.info("not injected", extra={"namespace": review.namespace, "reason": verdict.warning})
            return "warned", verdict
        return ("injected" if verdict.operations else "unchanged"), verdict


@asynccontextmanager
async def serving_webhook(
    webhook: Webhook, context: ssl.SSLContext, port: int, drain_timeout_s: float
) -> AsyncIterator[int]:
    """The port on which reviews are answered while the block runs; leaving it drains. Raises PortTaken."""
    app = web.Application(client_max_size=MAX_BODY_BYTES, logger=protocol_log)
    app.router.add_post(WEBHOOK_PATH, webhook.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=drain_timeout_s, logger=protocol_log)
    await runner.setup()
    try:
        await web.SockSite(runner, listening(port), ssl_context=context).start()
        chosen: int = runner.addresses[0][1]
        yield chosen
    finally:
        await runner.cleanup()
