"""Connections of a sidecar: so many at once, and none that says nothing for ever."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from engram_sidecar.app import MAX_CONNECTIONS
from engram_sidecar.listening import Port, listen
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
async def served(idle_s: float) -> AsyncIterator[int]:
    """A server that answers everything, with connections that may be idle for so long."""
    runners: list[web.ServerRunner] = []

    async def handle(_request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=b"here")

    port = await listen(runners, handle, Port("127.0.0.1", 0, 8, 1.0, idle_s), lambda: None)
    try:
        yield port
    finally:
        for runner in runners:
            await runner.cleanup()


async def test_a_head_that_never_ends_is_ended_though_it_goes_on() -> None:
    async with served(idle_s=0.5) as port, asyncio.timeout(30):
        for begin in (b"", HEAD, HEAD + b"\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(begin)
            if begin.endswith(b"\r\n\r\n"):  # a request that is answered, and another one that does not come
                assert (await reader.readuntil(b"here")).startswith(b"HTTP/1.1 200")
            with contextlib.suppress(ConnectionError):
                while not reader.at_eof():
                    writer.write(b"X-More: x\r\n" if begin == HEAD else b"")
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(reader.read(1), 0.05)
            writer.close()
