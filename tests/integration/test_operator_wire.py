"""The control plane over real sockets: its door to an API server, and the injector's HTTPS from handshake to drain."""

import asyncio
import base64
import io
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from engram_contract.names import (
    GROUP,
    INJECT_LABEL,
    NAMESPACE_WEBHOOK_PATH,
    TENANT_KIND,
    TENANTS,
    VERSION,
    WEBHOOK_PATH,
)
from engram_operator.admission import Candidate
from engram_operator.clients import x509
from engram_operator.clients.kube import CRDS, MEMORY_TENANTS, OWNED, SECRETS, Kube, Manifest, connected
from engram_operator.errors import (
    ApiConflict,
    ApiError,
    ApiHeld,
    ApiNotFound,
    ApiRefused,
    ApiUnavailable,
    BadCertificate,
    BadSettings,
)
from engram_operator.injection import Sidecar
from engram_operator.injector import Ports, run_injector
from engram_operator.listener import HEAD_TIMEOUT_S, MAX_CONNECTIONS
from engram_operator.metrics import InjectorMetrics
from engram_operator.settings import Identity, InjectorSettings
from engram_operator.tls import ServedCertificate
from engram_operator.webhook import MEMORY_BYTES, Webhook, serving_webhook
from tests.operator_stage import Store

NAMES = ("injector.engram.svc", "injector.engram.svc.cluster.local")
SIDECAR = Sidecar("engram-sidecar:1", "IfNotPresent", {"limits": {"memory": "256Mi"}})
NOW_S = 1_800_000_000.0


DISCOVERY: dict[str, Manifest] = {
    "/api": {"versions": ["v1"]},
    "/api/v1": {"resources": []},
    "/apis": {
        "groups": [{"name": GROUP, "versions": [{"version": VERSION}], "preferredVersion": {"version": VERSION}}]
    },
    f"/apis/{GROUP}/{VERSION}": {
        "resources": [
            {"name": TENANTS, "kind": TENANT_KIND, "singularName": "", "namespaced": True, "verbs": ["list", "watch"]}
        ]
    },
}


@dataclass
class ApiServer:
    """An API server that knows what `objects` holds, and notes what it is asked."""

    objects: dict[str, Manifest] = field(default_factory=dict)
    asked: list[tuple[str, str, str, dict[str, str], str]] = field(default_factory=list)
    answer: Callable[[], web.Response] | None = None
    delay_s: float = 0.0
    kubeconfig: str = ""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        text = (await request.read()).decode()
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.asked.append((request.method, request.path, request.query_string, headers, text))
        if "watch" in request.query:
            return await self._watch(request)
        await asyncio.sleep(self.delay_s)
        if self.answer is not None:
            return self.answer()
        if request.path in self.objects:
            return web.json_response(self.objects[request.path])
        below = [self.objects[path] for path in sorted(self.objects) if path.startswith(request.path + "/")]
        if below or request.path.endswith(MEMORY_TENANTS.plural):
            return web.json_response({"metadata": {"resourceVersion": "1"}, "items": below})
        if request.path in DISCOVERY:
            return web.json_response(DISCOVERY[request.path])
        return web.json_response({"kind": "Status", "message": "not found"}, status=404)

    async def _watch(self, request: web.BaseRequest) -> web.StreamResponse:
        """A stream on which nothing ever comes."""
        response = web.StreamResponse()
        await response.prepare(request)
        await asyncio.Event().wait()
        return response


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[ApiServer]:
    server = ApiServer()
    runner = web.ServerRunner(web.Server(server.handle), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    path = tmp_path / "kubeconfig"
    path.write_text(
        json.dumps(
            {
                "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
                "users": [{"name": "u", "user": {"token": "secret-token"}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
        )
    )
    server.kubeconfig = str(path)
    yield server
    await runner.cleanup()


@dataclass
class Counted:
    """The door, and what it counted."""

    kube: Kube
    counts: list[tuple[str, str]]


@pytest.fixture
async def door(api: ApiServer) -> AsyncIterator[Counted]:
    counts: list[tuple[str, str]] = []
    async with connected(api.kubeconfig, lambda verb, code: counts.append((verb, code)), lambda: 42.0) as kube:
        yield Counted(kube, counts)


async def test_an_object_comes_as_it_is_and_the_answer_is_noted(api: ApiServer, door: Counted) -> None:
    secret = {"metadata": {"name": "s", "unknown": 1}, "data": {"a": "eA=="}}
    api.objects["/api/v1/namespaces/engram/secrets/s"] = secret
    answered_s = [door.kube.answered_s]
    assert await door.kube.fetch(SECRETS, "engram", "s") == secret
    assert [*answered_s, door.kube.answered_s] == [None, 42.0]
    assert door.counts == [("get", "200")]
    assert api.asked[0][3]["authorization"] == "Bearer secret-token"


async def test_an_apply_takes_over_fields_under_its_own_name(api: ApiServer, door: Counted) -> None:
    api.answer = lambda: web.json_response({"kind": "Secret"})
    manifest = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "engram"}}
    await door.kube.apply(SECRETS, manifest, "engram-test")
    method, path, query, headers, text = api.asked[0]
    assert (method, path) == ("PATCH", "/api/v1/namespaces/engram/secrets/s")
    assert query == "fieldManager=engram-test&force=true"
    assert headers["content-type"] == "application/apply-patch+yaml"
    assert json.loads(text) == manifest


async def test_a_patch_is_a_list_of_operations(api: ApiServer, door: Counted) -> None:
    api.answer = lambda: web.json_response({})
    operations = [{"op": "add", "path": "/a", "value": 1}]
    await door.kube.patch(CRDS, "c.d", operations, "engram-test")
    assert api.asked[0][3]["content-type"] == "application/json-patch+json"
    assert json.loads(api.asked[0][4]) == operations


async def test_a_patch_of_a_namespace_goes_there(api: ApiServer, door: Counted) -> None:
    api.answer = lambda: web.json_response({})
    await door.kube.patch(OWNED["Pod"], "p", [], "engram-test", namespace="ns")
    assert api.asked[0][:2] == ("PATCH", "/api/v1/namespaces/ns/pods/p")


async def test_an_eviction_is_of_the_pod_that_was_meant(api: ApiServer, door: Counted) -> None:
    api.answer = lambda: web.json_response({"kind": "Status", "status": "Success"}, status=201)
    await door.kube.evict(OWNED["Pod"], "ns", "p", "the-uid")
    assert api.asked[0][:2] == ("POST", "/api/v1/namespaces/ns/pods/p/eviction")
    sent = json.loads(api.asked[0][4])
    assert (sent["apiVersion"], sent["kind"], sent["metadata"]) == (
        "policy/v1",
        "Eviction",
        {"name": "p", "namespace": "ns"},
    )
    assert sent["deleteOptions"] == {"preconditions": {"uid": "the-uid"}}


@pytest.mark.parametrize(("cause", "error"), [("DisruptionBudget", ApiHeld), ("TooBusy", ApiUnavailable)])
async def test_a_budget_is_told_from_an_api_server_that_has_too_much_to_do(
    api: ApiServer, door: Counted, cause: str, error: type[ApiError]
) -> None:
    said = {"message": "because", "details": {"causes": [{"reason": cause, "message": "m"}]}}
    api.answer = lambda: web.json_response(said, status=429)
    with pytest.raises(error):
        await door.kube.evict(OWNED["Pod"], "ns", "p", "u")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, ApiNotFound),
        (409, ApiConflict),
        (400, ApiRefused),
        (401, ApiRefused),
        (403, ApiRefused),
        (422, ApiRefused),
        (408, ApiUnavailable),
        (429, ApiUnavailable),
        (500, ApiUnavailable),
        (503, ApiUnavailable),
    ],
)
async def test_a_status_is_an_error_that_says_where_and_why(
    api: ApiServer, door: Counted, status: int, error: type[ApiError]
) -> None:
    api.answer = lambda: web.json_response({"message": "because"}, status=status)
    with pytest.raises(error, match=rf"^get /api/v1/namespaces/engram/secrets/s: {status} because$"):
        await door.kube.fetch(SECRETS, "engram", "s")
    assert door.counts == [("get", str(status))]


@pytest.mark.parametrize("text", ["", "<html>", "[]", "null"])
async def test_a_success_that_holds_no_object_is_no_answer(api: ApiServer, door: Counted, text: str) -> None:
    api.answer = lambda: web.Response(text=text)
    with pytest.raises(ApiUnavailable):
        await door.kube.fetch(SECRETS, "engram", "s")


async def test_a_call_ends_at_its_timeout(api: ApiServer, door: Counted) -> None:
    api.delay_s = 60.0
    began_s = asyncio.get_running_loop().time()
    with pytest.raises(ApiUnavailable, match=r"no answer within 0\.2 s"):
        await door.kube.fetch(SECRETS, "engram", "s", timeout_s=0.2)
    assert asyncio.get_running_loop().time() - began_s < 5
    assert door.counts == [("get", "timeout")]


async def test_nobody_there_is_an_error_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(
        '{"clusters":[{"name":"c","cluster":{"server":"http://127.0.0.1:1"}}],"users":[{"name":"u","user":{}}],'
        '"contexts":[{"name":"x","context":{"cluster":"c","user":"u"}}],"current-context":"x"}'
    )
    counts: list[str] = []
    async with connected(str(path), lambda _, code: counts.append(code), lambda: 0.0) as kube:
        with pytest.raises(ApiUnavailable):
            await kube.fetch(SECRETS, "engram", "s")
    assert counts == ["unreachable"]


async def test_without_any_way_to_an_api_server_there_is_no_start(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="KUBECONFIG"):
        async with connected(str(tmp_path / "none"), lambda *_: None, lambda: 0.0):
            pass


@pytest.mark.parametrize("name", ["../secrets", "a/b", "..", "", "A", "x%2fy"])
async def test_no_name_reaches_into_another_path(api: ApiServer, door: Counted, name: str) -> None:
    with pytest.raises(ValueError, match="is no name"):
        await door.kube.fetch(SECRETS, "engram", name)
    assert api.asked == []


@dataclass(frozen=True)
class Authority:
    """A CA and what it signed, as the operator stores it."""

    ca: x509.KeyPair
    serving: x509.KeyPair

    @classmethod
    def new(cls, now_s: float) -> "Authority":
        ca = x509.make_ca(now_s)
        return cls(ca, x509.make_serving(ca, NAMES, now_s))

    def secret(self) -> Manifest:
        data = {"tls.crt": self.serving.certificate, "tls.key": self.serving.key, "ca.crt": self.ca.certificate}
        return {"data": {name: base64.b64encode(value).decode() for name, value in data.items()}}

    def trusting(self) -> ssl.SSLContext:
        """A client as strict as Python can be, and it knows no other CA."""
        context = ssl.create_default_context(cadata=self.ca.certificate.decode())
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context


def review(**spec: Any) -> dict[str, Any]:  # noqa: ANN401  members of a manifest
    pod = {"metadata": {"labels": {INJECT_LABEL: "true"}}, "spec": {"containers": [{"name": "app"}], **spec}}
    request = {"uid": "u", "kind": {"kind": "Pod"}, "operation": "CREATE", "namespace": "agents", "object": pod}
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}


@dataclass
class FakeTenants:
    """A lookup that answers, waits or fails as told."""

    found: tuple[Candidate, ...] = (Candidate("support"),)
    error: Exception | None = None

    async def candidates(self, namespace: str, wanted: str) -> tuple[Candidate, ...]:
        if self.error is not None:
            raise self.error
        return self.found


@asynccontextmanager
async def client(authority: Authority, port: int) -> AsyncIterator[aiohttp.ClientSession]:
    """A client that asks for the Service's name, as an API server does."""
    connector = aiohttp.TCPConnector(ssl=authority.trusting())
    async with aiohttp.ClientSession(f"https://127.0.0.1:{port}", connector=connector) as session:
        yield session


async def post(session: aiohttp.ClientSession, body: object, path: str = WEBHOOK_PATH) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with session.post(path, data=io.BytesIO(data), server_hostname=NAMES[0]) as answer:
        return answer.status, json.loads(await answer.read())


@asynccontextmanager
async def serving(
    authority: Authority, tenants: FakeTenants, held_bytes: list[int] | None = None
) -> AsyncIterator[tuple[ServedCertificate, ApiServer, int]]:
    """A webhook whose certificate comes from a Secret that a test may change."""
    store = ApiServer()
    store.objects["s"] = authority.secret()

    class Secrets(Store):
        async def fetch(self, *_: object, **__: object) -> Manifest:
            return store.objects["s"]

    metrics = InjectorMetrics()
    secrets = Secrets()
    certificate = ServedCertificate(secrets, "engram", "s", lambda: NOW_S, metrics)
    await certificate.refresh()
    webhook = Webhook(tenants, SIDECAR, metrics, asyncio.get_running_loop().time)

    async def measure() -> None:
        while held_bytes is not None:
            held_bytes.append(webhook.intake.held_bytes)
            await asyncio.sleep(0.01)

    async with serving_webhook(webhook, certificate.context, 0, 1.0) as port:
        measuring = asyncio.create_task(measure())
        yield certificate, store, port
        measuring.cancel()


@pytest.fixture(scope="module")
def authority() -> Authority:
    """One of these days, because the TLS library asks the machine's clock."""
    return Authority.new(time.time())


async def test_a_review_over_a_strict_handshake_is_answered_with_a_patch(authority: Authority) -> None:
    async with serving(authority, FakeTenants()) as (_, _, port), client(authority, port) as session:
        status, answer = await post(session, review())
    assert (status, answer["response"]["uid"], answer["response"]["allowed"]) == (200, "u", True)
    operations = json.loads(base64.b64decode(answer["response"]["patch"]))
    assert "/spec/initContainers" in {operation["path"] for operation in operations}


async def test_the_other_route_is_for_pods_whose_namespace_asks(authority: Authority) -> None:
    unlabelled = review()
    del unlabelled["request"]["object"]["metadata"]["labels"]
    async with serving(authority, FakeTenants()) as (_, _, port), client(authority, port) as session:
        assert "patch" not in (await post(session, unlabelled))[1]["response"]
        assert "patch" in (await post(session, unlabelled, NAMESPACE_WEBHOOK_PATH))[1]["response"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", {"kind": "AdmissionReview"}, b"\x00" * 100])
async def test_what_is_no_review_is_refused(authority: Authority, body: object) -> None:
    async with serving(authority, FakeTenants()) as (_, _, port), client(authority, port) as session:
        status, answer = await post(session, body)
        assert status == 400
        assert "error" in answer
        assert (await post(session, review()))[0] == 200


async def test_a_review_of_three_mebibytes_is_taken(authority: Authority) -> None:
    large = review(annotations="x" * 3 * 1024 * 1024)
    async with serving(authority, FakeTenants()) as (_, _, port), client(authority, port) as session:
        assert (await post(session, large))[0] == 200


@pytest.mark.parametrize(
    ("path", "headers", "size", "status"),
    [
        ("/mutate", {}, 4 * 1024 * 1024 + 1, 413),
        ("/mutate", {"Content-Encoding": "gzip"}, 10, 415),
        ("/other", {}, 10, 404),
    ],
)
async def test_what_is_refused_is_not_read(
    authority: Authority, path: str, headers: dict[str, str], size: int, status: int
) -> None:
    async with serving(authority, FakeTenants()) as (_, _, port), client(authority, port) as session:
        data = io.BytesIO(b" " * size)
        async with session.post(path, data=data, headers=headers, server_hostname=NAMES[0]) as answer:
            assert answer.status == status
        assert (await post(session, review()))[0] == 200


async def dial(authority: Authority, port: int, text: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection on which so much was sent, and nothing more."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=authority.trusting(), server_hostname=NAMES[0], ssl_shutdown_timeout=0.1
    )
    writer.write(text)
    return reader, writer


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What came before the other side ended the connection."""
    try:
        return await reader.read()
    except OSError:
        return b""


def unfinished(size: int) -> bytes:
    """A review of which so much comes, and never the last byte."""
    return b"POST /mutate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (size + 1) + b" " * size


async def test_large_bodies_that_never_end_take_no_more_than_their_share_and_keep_nobody_out(
    authority: Authority,
) -> None:
    held_bytes: list[int] = []
    text = unfinished(4 * 1024 * 1024 - 1)
    async with serving(authority, FakeTenants(), held_bytes) as (_, _, port), client(authority, port) as session:
        slow = [await dial(authority, port, text) for _ in range(24)]
        for _ in range(5):
            assert (await post(session, review()))[0] == 200
            await asyncio.sleep(0.1)
        async with asyncio.timeout(30):
            answers = [await ended(reader) for reader, _ in slow]
        for _, writer in slow:
            writer.transport.abort()
        assert (await post(session, review()))[0] == 200
    assert MEMORY_BYTES // 2 < max(held_bytes) <= MEMORY_BYTES
    assert {answer[9:12] for answer in answers} == {b"", b"408"}, "cut off for others, or too slow"


@pytest.mark.parametrize("text", [b"", b"POST /mutate HT"])
async def test_a_connection_that_does_not_ask_is_ended(authority: Authority, text: bytes) -> None:
    async with serving(authority, FakeTenants()) as (_, _, port):
        reader, writer = await dial(authority, port, text)
        async with asyncio.timeout(HEAD_TIMEOUT_S + 5):
            assert await ended(reader) == b""
        writer.transport.abort()


async def test_a_connection_without_a_handshake_is_ended(authority: Authority) -> None:
    async with serving(authority, FakeTenants()) as (_, _, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(HEAD_TIMEOUT_S + 5):
            assert await ended(reader) == b""
        writer.close()


async def test_more_connections_than_there_is_room_for_push_out_the_silent_ones(authority: Authority) -> None:
    async with serving(authority, FakeTenants()) as (_, _, port), client(authority, port) as session:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MAX_CONNECTIONS)]
        assert (await post(session, review()))[0] == 200
        async with asyncio.timeout(HEAD_TIMEOUT_S / 2):
            await ended(silent[0][0])
        for _, writer in silent:
            writer.close()


async def test_a_review_that_json_makes_huge_is_not_parsed(authority: Authority) -> None:
    huge = b'{"request":[' + b"{}," * 1_200_000 + b"{}]}"
    async with serving(authority, FakeTenants()) as (_, _, port), client(authority, port) as session:
        assert (await post(session, huge))[0] == 503
        assert (await post(session, review()))[0] == 200


@pytest.mark.parametrize("error", [ApiUnavailable("list: no answer"), RuntimeError("a fault of ours")])
async def test_a_fault_of_ours_allows_the_pod_and_says_so(authority: Authority, error: Exception) -> None:
    async with serving(authority, FakeTenants(error=error)) as (_, _, port), client(authority, port) as session:
        status, answer = await post(session, review())
    assert (status, answer["response"]["allowed"], "patch" in answer["response"]) == (200, True, False)
    assert len(answer["response"]["warnings"]) == 1


async def test_a_new_connection_gets_the_new_certificate_and_a_running_one_goes_on(authority: Authority) -> None:
    other = Authority.new(time.time())
    async with (
        serving(authority, FakeTenants()) as (certificate, store, port),
        client(authority, port) as old,
        client(other, port) as new,
    ):
        assert (await post(old, review()))[0] == 200
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await post(new, review())
        store.objects["s"] = other.secret()
        await certificate.refresh()
        assert (await post(new, review()))[0] == 200
        assert (await post(old, review()))[0] == 200  # its connection was there before
        async with client(authority, port) as late:
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await post(late, review())


@pytest.mark.parametrize("spoil", ["garbage", "foreign key", "empty"])
async def test_a_spoiled_secret_leaves_the_old_certificate(authority: Authority, spoil: str) -> None:
    async with serving(authority, FakeTenants()) as (certificate, store, port):
        bad = replace(authority, serving=x509.KeyPair(authority.serving.certificate, authority.ca.key)).secret()
        store.objects["s"] = {"garbage": {"data": {"tls.crt": "eA==", "tls.key": "eA=="}}, "empty": {}}.get(spoil, bad)
        with pytest.raises(BadCertificate):
            await certificate.refresh()
        async with client(authority, port) as session:
            assert (await post(session, review()))[0] == 200


async def get(port: int, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as answer:
        return answer.status, await answer.text()


async def until(holds: Callable[[], Any], timeout_s: float = 20.0) -> None:
    """Returns when the condition holds; a TimeoutError says that it never did."""
    async with asyncio.timeout(timeout_s):
        while not await holds():  # noqa: ASYNC110  what is waited for is asked over HTTP
            await asyncio.sleep(0.05)


async def test_an_injector_lives_from_no_certificate_to_its_drain(api: ApiServer, authority: Authority) -> None:
    settings = InjectorSettings(Identity("engram", "pod", 0), "tls", SIDECAR, webhook_port=0, linger_s=0.0)
    stop, ports = asyncio.Event(), Ports()
    running = asyncio.create_task(run_injector(settings, api.kubeconfig, stop, ports))

    async def is_up() -> bool:
        return ports.admin != 0

    async def is_ready() -> bool:
        return (await get(ports.admin, "/readyz"))[0] == 200

    await until(is_up)
    assert (await get(ports.admin, "/healthz")) == (200, "ok\n")
    status, reason = await get(ports.admin, "/readyz")
    assert (status, reason) == (
        503,
        "Secret engram/tls holds no certificate yet; the operator's leader makes it\n",
    )
    api.objects[SECRETS.path("engram", "tls")] = authority.secret()
    metadata = {"namespace": "agents", "name": "support", "uid": "u-1", "resourceVersion": "1"}
    api.objects[MEMORY_TENANTS.path("agents", "support")] = {"metadata": metadata}
    await until(is_ready)
    async with client(authority, ports.webhook) as session:
        assert "patch" in (await post(session, review()))[1]["response"]
        api.delay_s = 0.5
        late = asyncio.create_task(post(session, review()))
        await asyncio.sleep(0.2)
        stop.set()
        assert "patch" in (await late)[1]["response"]
    async with asyncio.timeout(10):
        await running


async def test_an_injector_that_gets_no_certificate_ends_when_told_to(api: ApiServer) -> None:
    settings = InjectorSettings(Identity("engram", "pod", 0), "tls", SIDECAR, webhook_port=0)
    stop = asyncio.Event()
    running = asyncio.create_task(run_injector(settings, api.kubeconfig, stop))
    await asyncio.sleep(0.3)
    stop.set()
    async with asyncio.timeout(5):
        await running
