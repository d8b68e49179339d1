"""Both clients over a real socket: what is sent arrives, what comes back is typed, what breaks is one of our errors."""

import asyncio
import json
import re
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from engram import (
    AsyncEngram,
    Cleared,
    Conflict,
    DeadlineExceeded,
    Engram,
    EngramError,
    Item,
    Memory,
    NotFound,
    NotModified,
    NotReachable,
    Operation,
    OutcomeUnknown,
    Refused,
    Superseded,
    Unavailable,
    UnexpectedAnswer,
)
from tests.unit.test_client_status import CACHE, HEALTH, METRICS, STATISTICS

ID = "0a1b-01890a5d-ac96-774b-bcce-b302099a8057"
BODY: dict[str, Any] = {
    "id": ID,
    "shard": "s1",
    "namespace": [],
    "key": None,
    "type": "episodic",
    "user": "ada",
    "agent": None,
    "session": None,
    "content": "tea",
    "value": None,
    "importance": None,
    "created": "2026-01-02T03:04:05.000006Z",
    "updated": "2026-01-02T03:04:05.000006Z",
    "expires": None,
    "version": 1,
    "etag": '"1"',
}
MAP = {"epoch": 1, "strategy": "User", "scattered": False, "shards": []}
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(json.dumps(MAP))
PROBLEM = {"type": "https://engram.dev/problems/not-found", "title": "No such memory", "status": 404, "detail": "none"}
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass
class Peer:
    """A server that notes each request and answers as the test says."""

    answer: Handler
    url: str = ""
    seen: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Notes the request, then answers."""
        self.seen.append((request.method, request.raw_path, dict(request.headers), await request.read()))
        return await self.answer(request)


def respond(status: int, body: object = None, **headers: str) -> Handler:
    """A handler that always gives this answer."""

    async def handle(_: web.BaseRequest) -> web.StreamResponse:
        raw = b"" if body is None else json.dumps(body).encode()
        return web.Response(status=status, body=raw, headers=headers)

    return handle


@asynccontextmanager
async def listening(answer: Handler, port: int = 0) -> AsyncIterator[Peer]:
    """A peer on a port of loopback."""
    peer = Peer(answer)
    runner = web.ServerRunner(web.Server(peer.handle, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        peer.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield peer
    finally:
        await runner.cleanup()


@contextmanager
def listening_in_a_thread(answer: Handler) -> Iterator[Peer]:
    """A peer beside the test, for the client that blocks."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    stage = listening(answer)
    try:
        yield asyncio.run_coroutine_threadsafe(stage.__aenter__(), loop).result(10)
    finally:
        asyncio.run_coroutine_threadsafe(stage.__aexit__(None, None, None), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def a_closed_port() -> str:
    """An address on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


async def test_a_request_arrives_as_it_was_built() -> None:
    async with listening(respond(201, BODY)) as peer, AsyncEngram(peer.url) as memories:
        created = await memories.create(content="tea ü 𝄞", namespace=("a", "b"))
        await memories.put("../x?y#z", if_none_match="*", value=[1])
        await memories.put_item(("n ü", "a/b"), "k+1", user="ada & co", if_match='"7"', content="x")
    assert isinstance(created, Memory)
    (_, _, headers, body), put, item = peer.seen
    assert json.loads(body) == {"content": "tea ü 𝄞", "namespace": ["a", "b"]}
    assert headers["Content-Type"] == "application/json"
    assert put[:2] == ("PUT", "/v1/memories/%2E%2E%2Fx%3Fy%23z")
    assert put[2]["If-None-Match"] == "*"
    assert item[:2] == ("PUT", "/v1/items?namespace=n+%C3%BC&namespace=a%2Fb&key=k%2B1&user=ada+%26+co")
    assert item[2]["If-Match"] == '"7"'


async def test_errors_carry_what_the_answer_says() -> None:
    is_down = respond(503, {"detail": "s1 is down", "shard": "s1"}, **{"Retry-After": "4"})
    async with listening(is_down) as peer, AsyncEngram(peer.url) as memories:
        with pytest.raises(Unavailable) as down:
            await memories.get(ID)
    assert (down.value.retry_after_s, down.value.shard) == (4.0, "s1")
    async with listening(respond(412, {"detail": "changed"}, ETag='"2"')) as peer, AsyncEngram(peer.url) as memories:
        with pytest.raises(Conflict) as changed:
            await memories.patch(ID, if_match='"1"', content="x")
    assert changed.value.etag == '"2"'
    async with listening(respond(304, None, ETag='"1"')) as peer, AsyncEngram(peer.url) as memories:
        with pytest.raises(NotModified):
            await memories.get(ID, if_none_match='"1"')


async def test_a_missing_memory_is_an_error_or_the_default() -> None:
    async with listening(respond(404, PROBLEM)) as peer, AsyncEngram(peer.url) as memories:
        with pytest.raises(NotFound):
            await memories.get(ID)
        assert await memories.get(ID, default=None) is None
        assert await memories.get_item(("n",), "k", default="none") == "none"
        assert await memories.delete(ID) is False
        assert await memories.delete_item(("n",), "k") is False


async def test_nobody_there_is_not_reachable_and_nothing_was_sent() -> None:
    url = a_closed_port()
    async with AsyncEngram(url) as memories:
        with pytest.raises(NotReachable) as missing:
            await memories.create(content="tea")
    assert missing.value.url == url


async def test_an_answer_that_takes_too_long_leaves_the_outcome_unknown() -> None:
    async def never(_: web.BaseRequest) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async with listening(never) as peer, AsyncEngram(peer.url, timeout_s=0.2) as memories:
        with pytest.raises(DeadlineExceeded, match=r"no answer within 0\.2 s: POST"):
            await memories.create(content="tea")


@asynccontextmanager
async def breaking(answers: list[bytes]) -> AsyncIterator[tuple[str, list[str]]]:
    """A server that gives these answers on kept connections, then cuts each one off; and the methods it saw."""
    methods: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        complete = True
        while complete:
            head = await reader.readuntil(b"\r\n\r\n")
            methods.append(head.split()[0].decode())
            body_bytes = re.search(rb"Content-Length: (\d+)", head)
            await reader.readexactly(int(body_bytes[1]) if body_bytes else 0)
            sent = answers.pop(0) if answers else b""
            complete = sent.startswith(WHOLE)
            writer.write(sent)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", methods


WRITES: list[tuple[str, Callable[[AsyncEngram], Awaitable[object]]]] = [
    ("POST", lambda memories: memories.create(content="tea")),
    ("PUT", lambda memories: memories.put(ID, if_match='"1"', content="tea")),
    ("PATCH", lambda memories: memories.patch(ID, if_match='"1"', content="tea")),
    ("DELETE", lambda memories: memories.delete(ID)),
]


@pytest.mark.parametrize("cut", [b"", b"HTTP/1.1 201 Created\r\nContent-Length: 100\r\n\r\n{", b"HTTP/1.1 2"])
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize(("method", "write"), WRITES)
async def test_a_write_whose_answer_is_lost_is_sent_once_and_its_outcome_unknown(
    method: str,
    write: Callable[[AsyncEngram], Awaitable[object]],
    kept: bool,
    cut: bytes,
) -> None:
    whole = WHOLE + json.dumps(MAP).encode()
    async with breaking([whole, cut] if kept else [cut]) as (url, methods), AsyncEngram(url) as memories:
        if kept:
            await memories.shards()
        with pytest.raises(OutcomeUnknown, match="the connection broke before the answer"):
            await write(memories)
    assert methods == (["GET", method] if kept else [method])


async def test_a_write_with_a_key_whose_answer_is_lost_is_sent_again_once_with_it() -> None:
    whole = b"HTTP/1.1 204 No Content\r\nIdempotency-Replayed: true\r\n\r\n"
    async with breaking([b"", whole]) as (url, methods), AsyncEngram(url) as memories:
        assert await memories.delete(ID, idempotency_key="k")
    assert methods == ["DELETE"] * 2
    async with breaking([]) as (url, methods), AsyncEngram(url) as memories:
        with pytest.raises(OutcomeUnknown):
            await memories.delete(ID, idempotency_key="k")
    assert methods == ["DELETE"] * 2


async def test_a_write_that_was_done_before_and_undone_since_is_superseded() -> None:
    told = {"id": ID, "shard": "s0", "version": 1, "etag": '"1-1f"'}
    async with listening(respond(201, told)) as peer, AsyncEngram(peer.url) as memories:
        with pytest.raises(Superseded) as caught:
            await memories.create(content="tea", idempotency_key='a "key" \\')
        assert (caught.value.id, caught.value.etag, caught.value.status) == (ID, '"1-1f"', 201)
        assert peer.seen[0][2]["Idempotency-Key"] == r'"a \"key\" \\"'
    batch = {"results": [{"status": 201, "replayed": True, "memory": told}]}
    async with listening(respond(200, batch)) as peer, AsyncEngram(peer.url) as memories:
        [outcome] = await memories.batch([Operation.delete(ID)], idempotency_key="k")
        assert (outcome.ok, outcome.memory, type(outcome.error)) == (True, None, Superseded)


@pytest.mark.parametrize("key", ["", "x" * 256, "ü", "a\n"])
async def test_a_key_that_no_header_can_carry_is_not_sent(key: str) -> None:
    async with listening(respond(204, None)) as peer, AsyncEngram(peer.url) as memories:
        with pytest.raises(Refused, match="not sent: an idempotency key is"):
            await memories.delete(ID, idempotency_key=key)
    assert not peer.seen


async def test_a_key_whose_first_request_is_under_way_is_worth_another_try() -> None:
    answer = respond(409, {"detail": "under way"}, **{"Retry-After": "1"})
    async with listening(answer) as peer, AsyncEngram(peer.url) as memories:
        with pytest.raises(Unavailable) as caught:
            await memories.delete(ID, idempotency_key="k")
    assert caught.value.retry_after_s == 1


async def test_a_read_whose_answer_is_lost_is_asked_again_once() -> None:
    whole = WHOLE + json.dumps(MAP).encode()
    async with breaking([whole, b"", whole]) as (url, methods), AsyncEngram(url) as memories:
        await memories.shards()
        await memories.shards()
        with pytest.raises(OutcomeUnknown):
            await memories.get(ID)
    assert methods == ["GET"] * 5


async def test_another_program_on_the_port_is_not_taken_for_a_sidecar() -> None:
    async with listening(respond(302, None, Location="http://127.0.0.1:1/")) as peer, AsyncEngram(peer.url) as memories:
        with pytest.raises(UnexpectedAnswer):
            await memories.get(ID)
    assert len(peer.seen) == 1
    async with listening(respond(200, ["hello"])) as peer, AsyncEngram(peer.url) as memories:
        with pytest.raises(UnexpectedAnswer, match="not an answer of a sidecar"):
            await memories.shards()


async def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", a_closed_port())
    monkeypatch.setenv("no_proxy", "")
    async with listening(respond(200, MAP)) as peer, AsyncEngram(peer.url) as memories:
        assert (await memories.shards()).epoch == 1


async def test_the_environment_says_where_the_sidecar_is(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(respond(200, MAP)) as peer:
        monkeypatch.setenv("ENGRAM_HTTP_PORT", peer.url.rpartition(":")[2])
        async with AsyncEngram() as memories:
            assert memories.url == peer.url.replace("127.0.0.1", "localhost")
            await memories.shards()


async def test_a_listing_goes_on_until_the_last_page() -> None:
    pages = {None: ("a", "next 1"), "next 1": ("b", "next 2"), "next 2": ("c", None)}

    async def page(request: web.BaseRequest) -> web.StreamResponse:
        memory, following = pages[request.rel_url.query.get("cursor")]
        listed = {"memories": [BODY | {"content": memory}], "next": following, "complete": True, "failed_shards": []}
        return web.json_response(listed)

    async with listening(page) as peer, AsyncEngram(peer.url) as memories:
        assert [each.content async for each in memories.list(user="ada", limit=1)] == ["a", "b", "c"]
    assert peer.seen[1][1] == "/v1/memories?user=ada&limit=1&cursor=next+1"


async def test_a_listing_with_a_hole_does_not_look_whole() -> None:
    failed = [{"shard": "s0", "reason": "down"}]
    listed = {"memories": [BODY], "next": None, "complete": False, "failed_shards": failed}
    async with listening(respond(200, listed)) as peer, AsyncEngram(peer.url) as memories:
        with pytest.raises(Unavailable, match="s0: down") as raised:
            [each async for each in memories.list()]
        assert len((await memories.page()).memories) == 1
    assert raised.value.shard == "s0"


async def test_wait_ready_waits_for_a_sidecar_that_is_not_there_yet() -> None:
    url = a_closed_port()
    async with AsyncEngram(url) as memories:
        waiting = asyncio.create_task(memories.wait_ready(20))
        with pytest.raises(NotReachable):
            await memories.shards()
        async with listening(respond(200, MAP), int(url.rpartition(":")[2])):
            assert (await waiting).strategy == "User"


async def test_wait_ready_ends_with_the_last_error() -> None:
    async with AsyncEngram(a_closed_port()) as memories:
        with pytest.raises(NotReachable):
            await memories.wait_ready(0.3)
    async with listening(respond(500)) as peer, AsyncEngram(peer.url) as memories:
        with pytest.raises(UnexpectedAnswer):
            await memories.wait_ready(20)
    assert len(peer.seen) == 1


async def test_a_cancelled_request_is_cancelled() -> None:
    arrived = asyncio.Event()

    async def hold(_: web.BaseRequest) -> web.StreamResponse:
        arrived.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with listening(hold) as peer, AsyncEngram(peer.url) as memories:
        request = asyncio.create_task(memories.get(ID))
        await arrived.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request


def test_the_synchronous_client_has_every_method_with_the_same_meaning() -> None:
    share = {"used": 0, "limit": 1, "remaining": 1, "percent": 0.0}

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        documents: dict[str, Any] = {
            "/v1/shards": MAP,
            "/v1/search": {"results": [], "complete": True, "failed_shards": [], "legs": ["lexical"]},
            "/v1/batch": {"results": [{"status": 201, "memory": BODY}]},
            "/v1/usage": {"memories": share, "bytes": share, "types": [], "complete": True, "failed_shards": []},
            "/v1/audit": {"entries": [], "next": None, "complete": True, "failed_shards": []},
            "/v1/health": HEALTH,
            "/v1/metrics": METRICS,
            "/v1/cache": CACHE,
        }
        listed = {"memories": [BODY], "next": None, "complete": True, "failed_shards": []}
        if request.method == "DELETE":
            is_cache = request.path.startswith("/v1/cache")
            return web.json_response({"dropped": 1, "shared": "told"}) if is_cache else web.Response(status=204)
        is_listing = request.method == "GET" and request.path == "/v1/memories"
        return web.json_response(listed if is_listing else documents.get(request.path, BODY))

    item = Item(("n",), "k", "ada")
    with listening_in_a_thread(answer) as peer, Engram(peer.url) as memories:
        assert memories.url == peer.url
        assert memories.wait_ready(10).epoch == memories.shards(count=True).epoch == 1
        one = memories.create(content="tea")
        assert one == memories.put(ID, content="tea") == memories.get(ID) == memories.patch(ID, content="tea")
        assert one == memories.put_item(["n"], "k", content="x") == memories.get_item(["n"], "k")
        assert one == memories.patch_item(["n"], "k", user="ada", content="x")
        assert memories.get(ID, default=None) == one == memories.get_item(["n"], "k", default=None)
        assert memories.delete(ID)
        assert memories.delete_item(["n"], "k", user="ada")
        assert list(memories.list(user="ada")) == list(memories.page(limit=1)) == [one]
        assert memories.search("tea", user="ada", limit=3).complete
        assert memories.batch([Operation.get(item)])[0].memory == one
        assert memories.usage().memories.remaining == 1
        assert list(memories.audit(limit=1)) == []
        assert not memories.health().ok
        assert memories.metrics(namespaces=1).cache == memories.cache_statistics() == STATISTICS
        assert memories.clear_cache() == memories.clear_cache(ID) == Cleared(1, "told")
    public = {name for name in vars(AsyncEngram) if not name.startswith("_")}
    assert public | {"url"} == {name for name in vars(Engram) if not name.startswith("_")}


async def test_the_synchronous_client_works_where_a_loop_runs_already() -> None:
    with listening_in_a_thread(respond(200, MAP)) as peer, Engram(peer.url) as memories:
        assert memories.shards().epoch == 1


def test_many_threads_may_share_one_synchronous_client() -> None:
    with listening_in_a_thread(respond(201, BODY)) as peer, Engram(peer.url) as memories:
        found: list[Memory] = []
        threads = [threading.Thread(target=lambda: found.append(memories.create())) for _ in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(found) == len(peer.seen) == 32


def test_a_closed_client_says_so_and_leaves_no_thread() -> None:
    before = threading.active_count()
    memories = Engram(a_closed_port())
    with pytest.raises(NotReachable):
        memories.shards()
    memories.close()
    memories.close()
    assert threading.active_count() == before
    with pytest.raises(EngramError, match="this client is closed"):
        memories.shards()
