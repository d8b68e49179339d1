"""Where a request's time goes, on request; and spans to a receiver of OTLP, to a dead one and to one that hangs."""

import contextlib
import http.server
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from engram_sidecar.settings import Settings
from engram_sidecar.tracing import CLOSE_S, Tracing
from tests.harness import Http, SidecarThread, Tenant

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
THREAD_S = 60.0
SECRETS = ("quietheron", "user-of-heron", "key-of-heron")


@dataclass
class Collector:
    """What was received, each span with its attributes; while it `hangs` it reads and says nothing."""

    port: int = 0
    spans: list[Any] = field(default_factory=list)
    resources: list[dict[str, str]] = field(default_factory=list)
    raw: bytes = b""
    asked: threading.Event = field(default_factory=threading.Event)
    goes_on: threading.Event = field(default_factory=threading.Event)

    def take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        self.raw += body
        for each in request.resource_spans:
            self.resources.append({one.key: one.value.string_value for one in each.resource.attributes})
            self.spans.extend(span for scope in each.scope_spans for span in scope.spans)

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]


@contextlib.contextmanager
def collector(*, hangs: bool = False) -> Iterator[Collector]:
    """A receiver of OTLP over HTTP, on a port that the system chose."""
    state = Collector()
    if not hangs:
        state.goes_on.set()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            state.asked.set()
            state.goes_on.wait(60)
            state.take(body)
            with contextlib.suppress(OSError):
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield state
    state.goes_on.set()
    server.shutdown()
    thread.join()
    server.server_close()


@contextlib.contextmanager
def traced(tenant: Tenant, port: int) -> Iterator[Http]:
    """A sidecar that sends its spans there; when the block ends, it has ended."""
    tracing = Tracing(f"http://127.0.0.1:{port}/v1/traces", "engram-sidecar")
    with SidecarThread(Settings(tenant.config_dir, http_port=0, admin_port=0, tracing=tracing)).running() as thread:
        http = Http(thread.ports.http_port)
        yield http
        http.close()


@pytest.fixture(autouse=True)
def ended_threads() -> Iterator[None]:
    """No thread of the SDK goes on: it draws random numbers to try again, which hypothesis takes for a test's own."""
    yield
    for thread in threading.enumerate():
        if thread.name.startswith(("Otel", "engram-tracing")):
            thread.join(THREAD_S)
            assert not thread.is_alive(), thread.name


def durations(header: str) -> dict[str, float]:
    """Name and description -> milliseconds."""
    found = re.findall(r'(\w+);dur=([\d.]+)(?:;desc="(\w+)")?', header)
    assert ", ".join(f"{n};dur={d}" + (f';desc="{s}"' if s else "") for n, d, s in found) == header
    return {f"{name} {shard}".strip(): float(duration) for name, duration, shard in found}


def attributes(span: Any) -> dict[str, object]:  # noqa: ANN401
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


def test_where_the_time_went_is_told_to_whoever_asks_and_to_nobody_else(http: Http) -> None:
    asked = {"Engram-Timing": "on"}
    stored = http("POST", "/v1/memories", {"content": "quietheron"}, headers=asked)
    parts = durations(stored.headers["server-timing"])
    shard = stored.json["shard"]
    assert {"total", "body", "parse", "index", f"queue {shard}", f"connect {shard}", f"db {shard}", "encode"} <= {
        *parts
    }
    assert parts["total"] >= max(parts.values()) >= parts[f"db {shard}"] > 0
    found = durations(http("POST", "/v1/search", {"query": "quietheron"}, headers=asked).headers["server-timing"])
    assert {"db s0", "db s1"} <= {*found}
    missing = http("GET", "/v1/memories/x", headers=asked)
    assert [*durations(missing.headers["server-timing"])] == ["total"]
    for headers in ({}, {"Engram-Timing": "off"}, {"Engram-Timing": ""}):
        assert "server-timing" not in http("GET", "/v1/shards", headers=headers).headers


def test_a_request_is_a_span_of_the_callers_trace_and_each_question_one_of_its(tenant: Tenant) -> None:
    with collector() as received:
        with traced(tenant, received.port) as http:
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1,other=2"}
            body = {"content": "quietheron", "user": "user-of-heron"}
            made = http("PUT", "/v1/items", body | {}, headers=headers, key="key-of-heron")
            assert made.status == 422, "user belongs into the query here"
            path = "/v1/items?key=key-of-heron&user=user-of-heron"
            assert http("PUT", path, {"content": "quietheron"}, headers=headers).status in {200, 201}
        [bad, good] = received.named("PUT /v1/items")
        assert {(span.trace_id.hex(), span.parent_span_id.hex()) for span in (bad, good)} == {(TRACE, PARENT)}
        assert (good.kind, good.trace_state) == (2, "vendor=1,other=2")
        said = attributes(good)
        assert said.pop("http.response.status_code") in {200, 201}
        assert said == {"http.request.method": "PUT", "url.scheme": "http", "http.route": "/v1/items"}
        assert attributes(bad)["http.response.status_code"] == 422
        [question] = received.named("put_memory")
        assert (question.trace_id, question.parent_span_id, question.kind) == (good.trace_id, good.span_id, 3)
        assert good.start_time_unix_nano <= question.start_time_unix_nano
        assert question.start_time_unix_nano < question.end_time_unix_nano <= good.end_time_unix_nano
        told = attributes(question)
        assert told.pop("engram.shard") in {"s0", "s1"}
        assert told == {"db.system.name": "postgresql", "db.operation.name": "put_memory"}
        assert received.resources[0]["service.name"] == "engram-sidecar"
        for secret in SECRETS:
            assert secret.encode() not in received.raw


@pytest.mark.parametrize(
    "parent", [f"00-{TRACE}-{PARENT}", f"ff-{TRACE}-{PARENT}-01", f"00-{'0' * 32}-{PARENT}-01", "x" * 5_000, "\xe9"]
)
def test_a_malformed_parent_begins_a_trace_of_its_own(tenant: Tenant, parent: str) -> None:
    with collector() as received:
        with traced(tenant, received.port) as http:
            headers = {"traceparent": parent, "tracestate": "vendor=1"}
            assert http("GET", "/v1/shards", headers=headers).status == 200
        [span] = received.named("GET /v1/shards")
        assert span.trace_id.hex() != TRACE
        assert (span.parent_span_id, span.trace_state) == (b"", "")


def test_a_read_that_is_answered_by_what_is_kept_is_a_span_too(tenant: Tenant) -> None:
    with collector() as received:
        with traced(tenant, received.port) as http:
            http("PUT", "/v1/items", {"content": "kept"}, key="kept")
            for _ in range(5):
                assert http("GET", "/v1/items", key="kept").status == 200
        assert len(received.named("GET /v1/items")) == 5
        assert len(received.named("get_memories")) == 1


def test_what_the_caller_does_not_sample_is_not_sent(tenant: Tenant) -> None:
    with collector() as received:
        with traced(tenant, received.port) as http:
            assert http("GET", "/v1/memories", headers={"traceparent": f"00-{TRACE}-{PARENT}-00"}).status == 200
            assert http("GET", "/v1/shards").status == 200
        assert {span.name for span in received.spans} == {"GET /v1/shards"}


def test_a_failure_of_ours_is_an_error_of_the_span(tenant: Tenant, tmp_path: Path) -> None:
    broken = tmp_path / "config"
    broken.mkdir()
    for file in tenant.config_dir.iterdir():
        text = re.sub(r'"port":\d+', '"port":1', file.read_text())
        (broken / file.name).write_text(text)
    with collector() as received:
        with traced(Tenant(tenant.role, tenant.shard_map, broken, (), ""), received.port) as http:
            assert http("GET", "/v1/memories").status == 503
        [span] = received.named("GET /v1/memories")
        assert (span.status.code, attributes(span)["error.type"]) == (2, "503")
        assert {attributes(each)["error.type"] for each in received.named("connect")} == {"ShardUnavailable"}


def test_a_collector_that_hangs_or_is_dead_slows_and_fails_nothing(tenant: Tenant) -> None:
    with collector(hangs=True) as received:
        with traced(tenant, received.port) as http:
            for _ in range(3_000):  # more than wait in the queue
                assert http("GET", "/v1/memories/x").status == 404
            assert received.asked.wait(60)
            assert http("POST", "/v1/memories", {"content": "quietheron"}).status == 201
            began_s = time.monotonic()
        assert time.monotonic() - began_s < 10 * CLOSE_S, "the end waits for no collector"
    with traced(tenant, 1) as http:
        assert http("POST", "/v1/memories", {"content": "quietheron"}).status == 201


def test_nothing_of_the_sdk_is_imported_while_it_is_off() -> None:
    program = (
        "import sys; import engram_sidecar.__main__; from engram_sidecar.tracing import Tracer; Tracer(None, None);"
        "sys.exit(any(name.startswith(('opentelemetry', 'google', 'requests')) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
