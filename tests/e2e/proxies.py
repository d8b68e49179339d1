"""A proxy between one operator and the API server, which a test makes misbehave.

It speaks plain HTTP to the operator, whose kubeconfig names it, and to the `kubectl proxy` of the tests behind; so it
sees each request by itself and can tell a watch from a write. Each request has a connection of its own.
"""

import asyncio
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.e2e.cluster import Cluster

MAX_BYTES: Final = 1 << 22
ALL: Final = "all"
WATCHES: Final = "watches"  # what they deliver is lost, and no stream ends
EVENTS: Final = "events"  # as WATCHES, but bookmarks pass: the stream looks alive
SILENT: Final = "silent"  # requests are taken and never answered
RESET: Final = "reset"
SLOW: Final = "slow"
SLOW_S: Final = 30.0
ANSWERS: Final = {  # faults that are an answer: status line, more headers
    "429": ("429 Too Many Requests", "Retry-After: 1\r\n"),
    "500": ("500 Internal Server Error", ""),
    "401": ("401 Unauthorized", ""),
    "410": ("410 Gone", ""),
}


@dataclass
class Proxy:
    """What the proxy does now, and the requests that it took: when (monotonic seconds), and their first line."""

    upstream: Path
    port: int = 0
    fault: str = ""
    requests: list[tuple[float, str]] = field(default_factory=list)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _loop: asyncio.AbstractEventLoop | None = None

    def break_all(self) -> None:
        """Every connection of this moment is reset."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._reset_all)

    def write_kubeconfig(self, path: Path) -> Path:
        """A kubeconfig that names this proxy."""
        whole = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "proxy",
            "clusters": [{"name": "proxy", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}],
            "users": [{"name": "proxy", "user": {}}],
        }
        path.write_text(json.dumps(whole))
        return path

    async def serve(self, listener: socket.socket, stop: asyncio.Event) -> None:
        """Serves until `stop`."""
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._take, sock=listener, limit=MAX_BYTES)
        async with server:
            await stop.wait()
            self._reset_all()

    def _reset_all(self) -> None:
        for each in tuple(self._writers):
            _reset(each)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with suppress(OSError, EOFError, ValueError, asyncio.IncompleteReadError):
            await self._answer(reader, writer)
        self._writers.discard(writer)
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *headers = head.rstrip().split("\r\n")
        self.requests.append((time.monotonic(), first))
        length = next((int(each.split(":")[1]) for each in headers if each.lower().startswith("content-length:")), 0)
        body = await reader.readexactly(length)
        fault = self.fault
        if fault == RESET:
            _reset(writer)
            return
        if fault == SILENT:
            await reader.read()  # until the other side gives up
            return
        if fault in ANSWERS:
            status, more = ANSWERS[fault]
            writer.write(f"HTTP/1.1 {status}\r\n{more}Content-Length: 2\r\nConnection: close\r\n\r\n{{}}".encode())
            await writer.drain()
            return
        if fault == SLOW:
            await asyncio.sleep(SLOW_S)
        kept = [each for each in headers if each.split(":")[0].lower() not in {"connection", "host"}]
        request = "\r\n".join([first, "Host: localhost", "Connection: close", *kept]) + "\r\n\r\n"
        await self._pass(request.encode() + body, "watch=true" in first, writer)

    async def _pass(self, request: bytes, is_watch: bool, writer: asyncio.StreamWriter) -> None:
        there, to = await asyncio.open_unix_connection(str(self.upstream), limit=MAX_BYTES)
        try:
            to.write(request)
            await to.drain()
            head = await there.readuntil(b"\r\n\r\n")
            writer.write(head)
            if is_watch and b"chunked" in head.lower():
                await self._pass_events(there, writer)
            else:
                while read := await there.read(65_536):
                    writer.write(read)
                    await writer.drain()
        finally:
            to.close()

    async def _pass_events(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Chunk by chunk, so that the stream stays whole when events are lost."""
        while True:
            size = await there.readuntil(b"\r\n")
            chunk = await there.readexactly(int(size, 16) + 2)
            is_lost = self.fault == WATCHES or (self.fault == EVENTS and b'"BOOKMARK"' not in chunk)
            if not is_lost:
                writer.write(size + chunk)
                await writer.drain()
            if int(size, 16) == 0:
                return


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextmanager
def proxying(cluster: Cluster) -> Iterator[Proxy]:
    """A proxy that passes everything on, until it is told otherwise."""
    proxy = Proxy(cluster.folder / "api")
    listener = socket.create_server(("127.0.0.1", 0))
    proxy.port = listener.getsockname()[1]
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(proxy.serve(listener, stop),))
    thread.start()
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        pending = asyncio.all_tasks(loop)
        for task in pending:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        loop.close()
