"""Listening on ports: how many connections there may be at once, and for how long one may say nothing.

Promises
1. There are at most so many connections; who comes beyond that is told 503 and closed. So they take a bounded memory.
2. A connection that has brought no whole request head within IDLE_S of its beginning, or of its last answer, ends,
   however slowly it goes on to send one.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from engram_sidecar.errors import PortTaken
from engram_sidecar.problems import problem
from engram_sidecar.wire import encode

IDLE_S: Final = 75.0
RETRY_AFTER_S: Final = 1

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

# The server would log each malformed request with its address, keys and all; handlers log their own failures.
_protocol_log = logging.getLogger("engram_sidecar.protocol")
_protocol_log.setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class Port:
    """Where to listen; 0 lets the system choose. `drain_timeout_s`: how long running requests may take at the end."""

    host: str
    number: int
    max_connections: int
    drain_timeout_s: float
    idle_s: float = IDLE_S


class BoundedServer(web.Server):
    """A server of at most `most` connections. `count_refused` is called for each one beyond."""

    def __init__(self, handle: Handler, most: int, idle_s: float, count_refused: Callable[[], None]) -> None:
        super().__init__(handle, access_log=None, logger=_protocol_log, keepalive_timeout=idle_s)
        self._most = most
        self._open = 0  # `connections` learns of those that were accepted at once a moment later
        self._count_refused = count_refused

    def __call__(self) -> asyncio.Protocol:  # type: ignore[override]  # a connection's protocol: aiohttp's, or the short one
        """What speaks on a new connection."""
        if self._open < self._most:
            self._open += 1
            return super().__call__()
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
    runners: list[web.ServerRunner], handle: Handler, port: Port, count_refused: Callable[[], None]
) -> int:
    """The port that is listened on, after adding the runner to `runners`. Raises PortTaken."""
    server = BoundedServer(handle, port.max_connections, port.idle_s, count_refused)
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
