"""The injector's HTTPS server: a review comes in, a verdict goes out, and whatever goes wrong the pod is allowed.

Promises
1. A review is answered within the webhook's timeout: it asks the API server at most once, for at most LOOKUP_TIMEOUT_S.
2. A fault of ours is an answer that allows, with a warning; only what is no review is refused, with 4xx.
3. Whoever reaches the port can take no more than MEMORY_BYTES for reviews and READ_TIMEOUT_S for each: beyond it 503.
4. At the end no new connection is taken and running reviews are answered.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, Protocol

from aiohttp import web

from engram_contract.names import NAMESPACE_WEBHOOK_PATH, WEBHOOK_PATH
from engram_operator.admission import Candidate, Review, Verdict, judge
from engram_operator.errors import ApiError, BadReview, TooBusy
from engram_operator.injection import Sidecar
from engram_operator.intake import Intake, parsed_bytes
from engram_operator.life import listening
from engram_operator.listener import Listener
from engram_operator.metrics import InjectorMetrics, ReviewResult

# A pod is at most 1.5 MiB in etcd, as JSON up to twice that. The review of a creation holds no old one beside it.
MAX_BODY_BYTES: Final = 4 * 1024 * 1024
# Of the chart's 256 MiB: the process takes 80, and the buffers of TLS and HTTP below the reviews as much again.
MEMORY_BYTES: Final = 48 * 1024 * 1024
READ_TIMEOUT_S: Final = 5.0  # the webhook's own timeout
IDLE_TIMEOUT_S: Final = 120.0  # longer than an API server's 90 s: the one who asks must be the first to close
LINGER_S: Final = 1.0  # for who still sends what was refused already, to read why
REASON_CHARS: Final = 200
TOO_LARGE: Final = f"a review has at most {MAX_BODY_BYTES} bytes"
NOT_NOW: Final = "the injector could not look its tenant up; create the pod again in a minute"

log = logging.getLogger(__name__)
# The server would log each malformed request; what is no HTTP is nobody's pod.
protocol_log = logging.getLogger("engram_operator.protocol")
protocol_log.setLevel(logging.CRITICAL)


class TenantLookup(Protocol):
    """Where a pod's tenant is looked up."""

    async def candidates(self, namespace: str, wanted: str) -> tuple[Candidate, ...]:
        """The tenant `wanted` if it exists; without a name the namespace's, two at most. Raises ApiError."""


class Webhook:
    """Both routes, which differ in who asked for the memory. `clock` gives monotonic seconds."""

    def __init__(
        self, tenants: TenantLookup, sidecar: Sidecar, metrics: InjectorMetrics, clock: Callable[[], float]
    ) -> None:
        self._tenants = tenants
        self._sidecar = sidecar
        self._metrics = metrics
        self._clock = clock
        self.intake = Intake(MEMORY_BYTES)

    async def handle(self, request: web.BaseRequest) -> web.Response:
        """The answer to one request."""
        refusal = _find_refusal(request)
        if refusal is not None:
            return refusal
        began_s = self._clock()
        result, response = await self._answered(request)
        self._metrics.observe_review(result, self._clock() - began_s)
        return response

    async def _answered(self, request: web.BaseRequest) -> tuple[ReviewResult, web.Response]:
        transport = request.transport
        if transport is None:
            raise ConnectionResetError
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                body = await self.intake.read(request.content.readany, transport.abort, MAX_BODY_BYTES)
            if body is None:
                return "bad", _error(413, TOO_LARGE)
            with self.intake.judging(parsed_bytes(body)):
                review = Review.from_json(body, is_namespace_wide=request.path == NAMESPACE_WEBHOOK_PATH)
                del body
                result, verdict = await self._judged(review)
                return result, web.Response(body=verdict.to_json(review.uid), content_type="application/json")
        except (BadReview, web.RequestPayloadError) as error:
            return "bad", _error(400, str(error))
        except TimeoutError:
            return "bad", _error(408, f"the review did not come within {READ_TIMEOUT_S:.0f} s")
        except TooBusy as error:
            log.warning("review not taken", extra={"reason": str(error)})
            return "error", _error(503, str(error))

    async def _judged(self, review: Review) -> tuple[ReviewResult, Verdict]:
        try:
            wants = review.wants_memory
            tenants = await self._tenants.candidates(review.namespace, review.tenant) if wants else ()
            verdict = judge(review, tenants, self._sidecar)
        except ApiError as error:
            reason = str(error)[:REASON_CHARS]
            log.warning("tenant not looked up", extra={"namespace": review.namespace, "reason": reason})
            return "error", Verdict(warning=NOT_NOW)
        except Exception:
            log.exception("review failed", extra={"namespace": review.namespace, "uid": review.uid})
            return "error", Verdict(warning="a fault of the injector, which its log describes; please report it")
        if verdict.warning:
            reason = verdict.warning[:REASON_CHARS]
            log.info("not injected", extra={"namespace": review.namespace, "reason": reason})
            return "warned", verdict
        return ("injected" if verdict.operations else "unchanged"), verdict


def _find_refusal(request: web.BaseRequest) -> web.Response | None:
    """The answer to what need not be read to be refused; None for what may be a review."""
    if request.path not in (WEBHOOK_PATH, NAMESPACE_WEBHOOK_PATH):
        return _error(404, "no such route")
    if request.method != "POST":
        return _error(405, "a review is a POST")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        return _error(415, "a review is not compressed")
    if (request.content_length or 0) > MAX_BODY_BYTES:
        return _error(413, TOO_LARGE)
    return None


def _error(status: int, reason: str) -> web.Response:
    response = web.json_response({"error": reason[:REASON_CHARS]}, status=status)
    response.force_close()  # what it still sends is not a review either
    return response


@asynccontextmanager
async def serving_webhook(
    webhook: Webhook, context: ssl.SSLContext, port: int, drain_timeout_s: float
) -> AsyncIterator[int]:
    """The port on which reviews are answered while the block runs; leaving it drains. Raises PortTaken."""
    listener: Listener

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        listener.asked(request.protocol)
        return await webhook.handle(request)

    server = web.Server(
        handle,
        access_log=None,
        logger=protocol_log,
        keepalive_timeout=IDLE_TIMEOUT_S,
        lingering_time=LINGER_S,
        auto_decompress=False,
    )
    listener = Listener(server, context)
    runner = web.ServerRunner(server, shutdown_timeout=drain_timeout_s)
    with listening(port) as door:
        door.settimeout(0)
        await runner.setup()
        taking = asyncio.create_task(listener.run(door))
        try:
            yield door.getsockname()[1]
        finally:
            taking.cancel()
            await asyncio.wait([taking])
            door.close()
            await runner.cleanup()
