"""Listening on ports: how many connections there may be at once, and for how long one may say nothing.

Promises
1. There are at most so many connections; who comes beyond that is told 503 and closed. So they take a bounded memory.
2. A connection that has brought no whole request head within IDLE_S of its beginning, or of its last answer, ends,
   however slowly it goes on to send one.
3. Bytes that are one whole request, between others, may be answered as they are (`Handlers.at_once`), before anything
   parses them; whoever does that knows them byte for byte as a request that was parsed before.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Final, cast

from aiohttp import web

from engram_sidecar.errors import PortTaken
from engram_sidecar.problems import problem
from engram_sidecar.wire import encode

IDLE_S: Final = 75.0
RETRY_AFTER_S: Final = 1

HEAD_END: Final = b"\r\n\r\n"
MAX_HEAD_BYTES: Final = 16_384

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Later(Enum):
    """Said instead of an answer: it comes later."""

    LATER = "later"


# What is sent as an answer that comes later; False if its caller is gone.
Reply = Callable[[bytes], bool]
AtOnce = Callable[[bytes, Reply], bytes | Later | None]

# The server would log each malformed request with its address, keys and all; handlers log their own failures.
_protocol_log = logging.getLogger("engram_sidecar.protocol")
_protocol_log.setLevel(logging.CRITICAL)


def _nothing_at_once(_head: bytes, _reply: Reply) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Handlers:
    """What answers: any request; and at once, or later, the head of one that is known, with None for what is not."""

    handle: Handler
    at_once: AtOnce = _nothing_at_once


@dataclass(frozen=True, slots=True)
class Port:
    """Where to listen; 0 lets the system choose. `drain_timeout_s`: how long running requests may take at the end."""

    host: str
    number: int
    max_connections: int
    drain_timeout_s: float
    idle_s: float = IDLE_S


class Connection(web.RequestHandler):
    """aiohttp's connection, which knows where it stands between requests.

    It does so by counting: when all that came since the last boundary is the one request that was answered, to the
    byte, and aiohttp has sent its answer, whatever comes begins a request.
    """

    __slots__ = ("_at_once", "_behind", "_came_bytes", "_drained", "_first", "_is_closing", "_is_owing", "_whole_bytes")

    def __init__(self, server: web.Server, at_once: AtOnce, idle_s: float) -> None:
        loop = asyncio.get_running_loop()
        no_log = cast("logging.Logger", None)  # as web.Server hands it on
        super().__init__(server, loop=loop, access_log=no_log, logger=_protocol_log, keepalive_timeout=idle_s)
        self._at_once = at_once
        self._first = b""  # what came since the boundary, as far as it holds the head
        self._came_bytes = 0
        self._whole_bytes = 0  # of the request that was answered; -1 until it is
        self._is_owing = False  # an answer comes later
        self._behind = b""  # what came meanwhile
        self._is_closing = False
        self._drained: asyncio.Future[None] | None = None

    @property
    def head(self) -> bytes | None:
        """The bytes of the request that is being answered, if they end where its head does and nothing else came."""
        is_alone = self._came_bytes == len(self._first) == self._first.find(HEAD_END) + len(HEAD_END)
        return self._first if is_alone else None

    def answered(self, request: web.BaseRequest) -> None:
        """The request has its answer, which may not be sent yet.

        What comes in chunks is never counted as whole, nor what is answered before all of it came: no request begins
        within a body.
        """
        if request.content.is_eof():
            self._whole_bytes = self._first.find(HEAD_END) + len(HEAD_END) + (request.content_length or 0)

    def data_received(self, data: bytes) -> None:
        """Answers it or has it parsed."""
        if self._is_owing or self._behind:
            self._behind += data
            if len(self._behind) > MAX_HEAD_BYTES and self.transport is not None:
                self.transport.pause_reading()
            return
        if self._came_bytes == self._whole_bytes:  # a request begins
            answer = self._at_once(data, self._reply) if self._is_free() else None
            if isinstance(answer, bytes) and self.transport is not None:
                self.transport.write(answer)
            if answer is not None:
                self._is_owing = answer is Later.LATER
                self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
                return
            self._first, self._came_bytes, self._whole_bytes = b"", 0, -1
        if len(self._first) < MAX_HEAD_BYTES and HEAD_END not in self._first:
            self._first += data
        self._came_bytes += len(data)
        super().data_received(data)

    def _is_free(self) -> bool:
        """Whether all that came before is answered and sent, and more may be."""
        is_idle = not self._request_in_progress and not self._messages
        return is_idle and not self._paused and not self._close and not self._force_close

    def _reply(self, answer: bytes) -> bool:
        self._is_owing = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self.transport is None or self.transport.is_closing():
            return False
        self.transport.write(answer)
        if self._is_closing:
            super().close()
            return True
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._behind:
            self._loop.call_soon(self._go_on)
        return True

    def _go_on(self) -> None:
        """With what came while an answer was owed."""
        behind, self._behind = self._behind, b""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()
            self.data_received(behind)

    def close(self) -> None:
        """Ends it when its request, if it has one, is answered."""
        if self._is_owing:
            self._is_closing = True
        else:
            super().close()

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109  as aiohttp has it
        """The same, and cuts off after the timeout what is not answered by then."""
        if self._is_owing:
            self._drained = self._loop.create_future()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._drained
        await super().shutdown(timeout)


def head_of(request: web.BaseRequest) -> bytes | None:
    """The bytes of the request, if it is but a head that came alone: not if a body is to come, also one of no bytes."""
    connection = request.protocol
    return connection.head if isinstance(connection, Connection) and not request.body_exists else None


class BoundedServer(web.Server):
    """A server of at most `most` connections. `count_refused` is called for each one beyond."""

    def __init__(self, handlers: Handlers, most: int, idle_s: float, count_refused: Callable[[], None]) -> None:
        super().__init__(self._handle)
        self._handlers = handlers
        self._most = most
        self._idle_s = idle_s
        self._open = 0  # `connections` learns of those that were accepted at once a moment later
        self._count_refused = count_refused

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await self._handlers.handle(request)
        finally:
            if isinstance(request.protocol, Connection):
                request.protocol.answered(request)

    def __call__(self) -> asyncio.Protocol:  # type: ignore[override]  # a connection's protocol: aiohttp's, or the short one
        """What speaks on a new connection."""
        if self._open < self._most:
            self._open += 1
            return Connection(self, self._handlers.at_once, self._idle_s)
        self._count_refused()
        return _Refuser(_refusal(self._most))

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """There is room for another one."""
        self._open -= 1
        super().connection_lost(handler, exc)


class _Refuser(asyncio.Protocol):
    """Says one thing and closes."""

    def __init__(self, said: bytes) -> None:
        self._said = said

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Answers before anything was asked: what is asked is not read."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  a stream's
        transport.write(self._said)
        transport.close()


def _refusal(most: int) -> bytes:
    title = "There are too many open connections"
    found = problem(503, "too-many-connections", title, f"at most {most}: close what is not used", limit=most)
    body = encode(found.document)
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nConnection: close\r\n"
        f"Retry-After: {RETRY_AFTER_S}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def listen(
    runners: list[web.ServerRunner], handlers: Handlers, port: Port, count_refused: Callable[[], None]
) -> int:
    """The port that is listened on, after adding the runner to `runners`. Raises PortTaken."""
    server = BoundedServer(handlers, port.max_connections, port.idle_s, count_refused)
    runner = web.ServerRunner(server, shutdown_timeout=port.drain_timeout_s)
    await runner.setup()
    runners.append(runner)
    try:
        await web.TCPSite(runner, port.host, port.number).start()
        chosen: int = runner.addresses[0][1]
        if port.host == "127.0.0.1" and _has_ipv6_loopback():
            await web.TCPSite(runner, "::1", chosen).start()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(port.host, port.number) from error
        raise
    return chosen


def _has_ipv6_loopback() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
