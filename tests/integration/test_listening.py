"""Connections of a sidecar: so many at once, and none that says nothing for ever."""

import asyncio
import contextlib
import itertools
import json
import random
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aiohttp import web

from engram_sidecar.app import MAX_CONNECTIONS
from engram_sidecar.listening import Handlers, Later, Port, Reply, head_of, listen
from tests.harness import Http, SidecarThread

HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


def refusals(sidecar: SidecarThread) -> float:
    admin = Http(sidecar.ports.admin_port)
    lines = admin("GET", "/metrics").body.splitlines()
    admin.close()
    return float(next(line for line in lines if line.startswith(b"engram_connections_refused_total")).split()[1])


def test_who_comes_beyond_the_most_is_told_so_and_the_others_are_served(sidecar: SidecarThread, http: Http) -> None:
    assert http("GET", "/v1/shards").status == 200
    before = refusals(sidecar)
    with contextlib.ExitStack() as stack:
        opened = []
        for number in range(MAX_CONNECTIONS + 1):
            place = ("127.0.0.1", sidecar.ports.http_port)
            opened.append(stack.enter_context(socket.create_connection(place, timeout=30)))
            if number % 2:
                opened[-1].sendall(HEAD)
        last = opened[-1]
        head, _, body = last.recv(4096).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 1" in head
        problem = json.loads(body)
        assert problem["type"].endswith("/too-many-connections")
        assert problem["limit"] == MAX_CONNECTIONS
        assert last.recv(1) == b"", "it is closed"
        assert refusals(sidecar) >= before + 1
        assert http("GET", "/v1/shards").status == 200
    fresh = Http(sidecar.ports.http_port)
    while True:  # the server learns of each end in its own time
        try:
            assert fresh("GET", "/v1/shards").status == 200
            break
        except (AssertionError, OSError):
            fresh.close()
    fresh.close()


@asynccontextmanager
async def served(handlers: Handlers, idle_s: float = 30.0) -> AsyncIterator[int]:
    """A server of eight connections, which may be idle for so long."""
    runners: list[web.ServerRunner] = []
    port = await listen(runners, handlers, Port("127.0.0.1", 0, 8, 1.0, idle_s), lambda: None)
    try:
        yield port
    finally:
        for runner in runners:
            await runner.cleanup()


async def here(_request: web.BaseRequest) -> web.StreamResponse:
    """Answers everything."""
    return web.Response(body=b"here")


async def test_a_head_that_never_ends_is_ended_though_it_goes_on() -> None:
    async with served(Handlers(here), idle_s=0.5) as port, asyncio.timeout(30):
        for begin in (b"", HEAD, HEAD + b"\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(begin)
            if begin.endswith(b"\r\n\r\n"):  # a request that is answered, and another one that does not come
                assert (await reader.readuntil(b"here")).startswith(b"HTTP/1.1 200")
            with contextlib.suppress(ConnectionError):
                while not reader.at_eof():
                    writer.write(b"X-More: x\r\n" if begin == HEAD else b"")
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.05):
                            await reader.read(1)
            writer.close()


class Echo:
    """Says of each request what was parsed, and learns each GET by its bytes to say the same of them at once."""

    def __init__(self) -> None:
        self.known: dict[bytes, bytes] = {}
        self.at_once_count = 0

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = f"{request.method} {request.path} ".encode() + await request.read() + b";"
        head = head_of(request)
        if request.method == "GET" and head is not None:
            self.known[head] = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        return web.Response(body=body)

    def at_once(self, head: bytes, reply: Reply) -> bytes | Later | None:
        """At once, or later for every other one."""
        self.at_once_count += head in self.known
        if head not in self.known or self.at_once_count % 2:
            return self.known.get(head)
        asyncio.get_running_loop().call_later(0.001 * (self.at_once_count % 3), reply, self.known[head])
        return Later.LATER


async def read_answer(reader: asyncio.StreamReader) -> bytes:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    assert head.startswith(b"http/1.1 200"), head
    return await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0]))


def said(chosen: random.Random, kinds: Sequence[str]) -> tuple[bytes, bytes]:
    """A request, and what is to be said of it. A body may look like a request that is known."""
    path = chosen.choice([b"/a", b"/b"])
    get = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path
    kind = chosen.choice(kinds)
    if kind == "get":
        return get, b"GET %s ;" % path
    if kind == "put":
        head = b"PUT %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (path, len(get))
        return head + get, b"PUT %s " % path + get + b";"
    head = b"PUT %s HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" % path
    return head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(get), get), b"PUT %s " % path + get + b";"


def segments(whole: bytes, chosen: random.Random) -> list[bytes]:
    """The bytes in pieces, which often end where a head does: what is known would be known again there."""
    ends = [at + 4 for at in range(len(whole)) if whole.startswith(b"\r\n\r\n", at)]
    cuts = {chosen.choice([*ends, chosen.randrange(len(whole) + 1)]) for _ in range(chosen.randrange(5))}
    places = [0, *sorted(cuts | {len(whole)})]
    return [whole[begin:end] for begin, end in itertools.pairwise(places) if begin != end]


async def test_bytes_that_look_like_a_known_request_are_answered_as_one_only_where_they_are_one() -> None:
    """Requests come alone and several at once, in pieces; bodies hold what would be a request between others."""
    echo, chosen = Echo(), random.Random(20261122)
    async with served(Handlers(echo.handle, echo.at_once)) as port, asyncio.timeout(60):
        for number in range(80):
            is_plain = number % 2  # one request after the other, with a length if it has a body
            kinds, at_a_time = (["get", "put"], [1]) if is_plain else (["get", "get", "put", "chunked"], [1, 1, 2, 3])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(12):
                requests = [said(chosen, kinds) for _ in range(chosen.choice(at_a_time))]
                for segment in segments(b"".join(request for request, _ in requests), chosen):
                    writer.write(segment)
                    for _ in range(chosen.choice([0, 3, 12])):
                        await asyncio.sleep(0)  # the server takes it, or not yet
                for _, expected in requests:
                    assert await read_answer(reader) == expected
            writer.close()
        assert echo.at_once_count > 100, "after a body it goes on"


class Early(Echo):
    """Answers before it has seen a body, as a read does, and as who refuses a request does."""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = f"{request.method} {request.path};".encode()
        head = head_of(request)
        if request.method == "GET" and head is not None:
            self.known[head] = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        return web.Response(body=body)


async def test_a_head_that_announces_a_body_is_not_learned_before_the_body_came() -> None:
    """Else the body would be taken for the next request."""
    early = Early()
    body = b"DELETE /b HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = b"GET /a HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    last = b"GET /c HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with served(Handlers(early.handle, early.at_once)) as port, asyncio.timeout(60):
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for said_so, expected in ((last, b"GET /c;"), (head, b"GET /a;"), (body + last, b"GET /c;")):
                writer.write(said_so)
                assert await read_answer(reader) == expected
            writer.close()
    assert set(early.known) <= {last}


async def test_no_request_begins_within_a_body_that_came_behind_its_answer() -> None:
    """Two requests in one segment, of which the second is answered before its body came as far as would be counted."""
    early, length = Early(), 300
    first = b"HEAD /a HTTP/1.1\r\nHost: localhost\r\n\r\n"
    second = b"PUT /b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % length
    came = length - len(second)
    rest = b"DELETE /b HTTP/1.1\r\nX: ".ljust(length - came, b"x")
    last = b"GET /c HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with served(Handlers(early.handle, early.at_once)) as port, asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(first + second + b"x" * came)
        await reader.readuntil(b"\r\n\r\n")
        assert await read_answer(reader) == b"PUT /b;"
        writer.write(rest)
        for _ in range(12):
            await asyncio.sleep(0)  # the server takes it by itself
        writer.write(last)
        assert await read_answer(reader) == b"GET /c;"
        writer.close()
    assert set(early.known) <= {last}, "a body's end and a head are no request"


async def test_who_reads_no_answers_is_not_answered_without_end() -> None:
    """What is sent to a caller that takes nothing stays within what the kernel and one buffer hold."""
    echo = Echo()
    get = b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % (b"a" * 4000)
    async with served(Handlers(echo.handle, echo.at_once)) as port, asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(get)
        await read_answer(reader)
        reader._transport.pause_reading()  # type: ignore[attr-defined]  # it takes nothing any more
        with contextlib.suppress(TimeoutError):
            while echo.at_once_count < 100_000:
                writer.write(get)
                async with asyncio.timeout(1.0):
                    await writer.drain()
                await asyncio.sleep(0)
        assert echo.at_once_count < 100_000, "400 MB were sent to somebody who takes nothing"
        writer.transport.abort()
