"""The data plane's door to OpenTelemetry: a span for each request, and one for each question to a shard.

    request --begin--> Exchange, with a recorder if it is sampled --end--> spans --a thread of the SDK's--> collector

Off unless an endpoint is set; then nothing of the SDK is even imported. The SDK itself reads the sampler, headers,
certificates and limits of the OTEL_ variables.

Promises
1. A collector that is dead or hangs costs spans and nothing else: they wait in the SDK's bounded queue (2,048 as it
comes), are sent by its thread, and are dropped when it is full.
2. No attribute holds a content, a key, a user, a path or an address: templates, operations, shards and outcomes do.
3. The end of the process waits CLOSE_S for the collector, and no longer.
Attributes: OpenTelemetry's semantic conventions for HTTP servers and for database clients, 1.30.
"""

import asyncio
import threading
import time
from collections.abc import Iterable, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from engram_sidecar import timing
from engram_sidecar.identity import Pod
from engram_sidecar.timing import Recorder, Span, server_timing
from engram_sidecar.tracecontext import Trace, parse_trace

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span as OpenSpan

CLOSE_S: Final = 2.0
TIMING_HEADER: Final = "Engram-Timing"  # `on` asks for Server-Timing
SCOPE: Final = "engram.sidecar"
_WAITS: Final = frozenset({"connect", "queue"})
_SHOWN_S: Final = 0.001  # a wait that was shorter, and did not fail, is no span: each costs 50 us and the reader's eye
_ERROR: Final = 500


@dataclass(frozen=True, slots=True)
class Tracing:
    """Where spans are sent (the whole URL), and as which service; an empty name leaves that to the SDK."""

    endpoint: str
    service: str


class Headers(Protocol):
    """A request's headers, whose names have no case."""

    def get(self, key: str, default: str, /) -> str:
        """The first of a name."""

    def getall(self, key: str, default: Sequence[str], /) -> Sequence[str]:
        """All of a name."""


class Exchange:
    """What is measured of one request, from its begin to its end."""

    def __init__(
        self, tracer: "Tracer", recorder: Recorder | None, span: "OpenSpan | None" = None, *, is_told: bool = False
    ) -> None:
        self._tracer = tracer
        self._recorder = recorder
        self._span = span
        self._is_told = is_told

    def end(self, route: tuple[str, str], status: int, headers: MutableMapping[str, str], took_s: float) -> None:
        """The answer is ready: it says where the time went, if that was asked, and the spans are on their way."""
        if self._recorder is None:
            return
        if self._is_told:
            headers["Server-Timing"] = server_timing(self._recorder, took_s)
        if self._span is not None:
            self._tracer.end(self._span, self._recorder.spans, route, status)


class Tracer:
    """Begins what is measured of a request. Without `tracing` there are no spans."""

    def __init__(self, tracing: Tracing | None, pod: Pod | None) -> None:
        self._provider = None if tracing is None else _provider(tracing, pod)
        self._tracer = None if self._provider is None else self._provider.get_tracer(SCOPE)
        self._nothing = Exchange(self, None)

    def begin(self, method: str, headers: Headers) -> Exchange:
        """The exchange of a request with these headers."""
        is_told = headers.get(TIMING_HEADER, "").lower() == "on"
        parents = headers.getall("traceparent", ())
        if not (is_told or parents or self._tracer):
            timing.begin(None)
            return self._nothing
        trace = parse_trace(parents, headers.getall("tracestate", ())) if parents else None
        span, trace_id = self._begin_span(method, trace)
        recorder = Recorder() if is_told or span is not None else None
        timing.begin(recorder, trace_id)
        return Exchange(self, recorder, span, is_told=is_told)

    def _begin_span(self, method: str, trace: Trace | None) -> "tuple[OpenSpan | None, str]":
        """The request's span if it is sampled, and the id of its trace."""
        if self._tracer is None:
            return None, "" if trace is None else trace.trace_id
        from opentelemetry.trace import SpanKind  # noqa: PLC0415  only where it is on

        attributes = {"http.request.method": method, "url.scheme": "http"}
        span = self._tracer.start_span("HTTP", _remote(trace), SpanKind.SERVER, attributes)
        return span if span.is_recording() else None, f"{span.get_span_context().trace_id:032x}"

    def end(self, span: "OpenSpan", parts: Iterable[Span], route: tuple[str, str], status: int) -> None:
        """The request's span and those of its parts are handed to the exporter."""
        from opentelemetry.trace import StatusCode, set_span_in_context  # noqa: PLC0415  only where it is on

        method, template = route
        if template.startswith("/"):
            span.update_name(f"{method} {template}")
            span.set_attribute("http.route", template)
        else:
            span.set_attribute("http.request.method", "_OTHER")
        span.set_attribute("http.response.status_code", status)
        if status >= _ERROR:
            span.set_attribute("error.type", str(status))
            span.set_status(StatusCode.ERROR)
        context = set_span_in_context(span)
        unix_ns = time.time_ns() - time.monotonic_ns()
        for part in parts:
            if part.name == "db" or (part.name in _WAITS and (part.failure or part.ended_s - part.began_s >= _SHOWN_S)):
                self._add_part(part, context, unix_ns)
        span.end()

    def _add_part(self, part: Span, context: "Context", unix_ns: int) -> None:
        """`unix_ns`: what is to be added to the clock of the parts."""
        from opentelemetry.trace import SpanKind, StatusCode  # noqa: PLC0415  only where it is on

        if self._tracer is None:
            return
        is_query = part.name == "db"
        attributes = {"engram.shard": part.shard}
        if is_query:
            attributes |= {"db.system.name": "postgresql", "db.operation.name": part.detail}
        if part.failure:
            attributes["error.type"] = part.failure
        child = self._tracer.start_span(
            part.detail if is_query else part.name,
            context,
            SpanKind.CLIENT if is_query else SpanKind.INTERNAL,
            attributes,
            start_time=int(part.began_s * 1e9) + unix_ns,
        )
        if part.failure:
            child.set_status(StatusCode.ERROR)
        child.end(int(part.ended_s * 1e9) + unix_ns)

    async def close(self) -> None:
        """What waits is sent, if the collector takes it soon. By a daemon thread, as one that hangs ends for nobody."""
        if self._provider is None:
            return
        provider, loop, is_done = self._provider, asyncio.get_running_loop(), asyncio.Event()

        def stop() -> None:
            provider.shutdown()
            with suppress(RuntimeError):  # the loop is gone
                loop.call_soon_threadsafe(is_done.set)

        threading.Thread(target=stop, name="engram-tracing-end", daemon=True).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await is_done.wait()


def _remote(trace: Trace | None) -> "Context":
    """The context of the caller's span; an empty one without."""
    from opentelemetry.context import Context  # noqa: PLC0415  only where it is on
    from opentelemetry.trace import (  # noqa: PLC0415  as above
        NonRecordingSpan,
        SpanContext,
        TraceFlags,
        TraceState,
        set_span_in_context,
    )

    if trace is None:
        return Context()
    flags = TraceFlags(TraceFlags.SAMPLED if trace.is_sampled else TraceFlags.DEFAULT)
    state = TraceState.from_header([trace.state])
    parent = SpanContext(
        int(trace.trace_id, 16), int(trace.span_id, 16), is_remote=True, trace_flags=flags, trace_state=state
    )
    return set_span_in_context(NonRecordingSpan(parent), Context())


def _provider(tracing: Tracing, pod: Pod | None) -> "TracerProvider":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415  only where on
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415  as above
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415  as above
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415  as above

    about = {"service.name": tracing.service} if tracing.service else {}
    if pod is not None:
        about |= {"k8s.pod.name": pod.name, "k8s.pod.uid": pod.uid}
    provider = TracerProvider(resource=Resource.create(dict(about)), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=tracing.endpoint)))
    return provider
