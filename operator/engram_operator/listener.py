"""Connections of the injector: as many as it can hold, and none that only waits.

    taken --handshake within HEAD_TIMEOUT_S--> open --first head within HEAD_TIMEOUT_S--> in use --idle--> closed

Promises
1. At most MAX_CONNECTIONS are open. One more closes the one whose last request began longest ago: whoever holds many
   pushes out their own, because a real review is over within milliseconds.
2. A connection that has not asked in time is closed, before its handshake too.

aiohttp's own sites do neither: they take every connection, and give the handshake a minute.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

MAX_CONNECTIONS: Final = 256  # with TLS up to 256 KiB each; an API server has at most 200 changes under way
HEAD_TIMEOUT_S: Final = 5.0  # the webhook's own timeout: nobody waits longer for the answer
SHUTDOWN_TIMEOUT_S: Final = 1.0  # for the farewell of TLS
PAUSE_S: Final = 0.1  # after a connection could not be taken: the files are used up

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Connection:
    """A socket of which TLS and HTTP are on top."""

    socket: socket.socket
    has_asked: bool = False

    def end(self) -> None:
        """Cuts it off, in its handshake too: the loop reads an end and closes the rest."""
        with suppress(OSError):  # the other side was faster
            self.socket.shutdown(socket.SHUT_RDWR)


class Listener:
    """Takes connections for what `make_protocol` makes, which is to tell of each request by `asked`."""

    def __init__(self, make_protocol: Callable[[], asyncio.Protocol], context: ssl.SSLContext) -> None:
        self._make_protocol = make_protocol
        self._context = context
        self._open: dict[asyncio.Protocol, _Connection] = {}  # the longest without a request first

    def asked(self, protocol: asyncio.Protocol) -> None:
        """A request began on this connection."""
        connection = self._open.pop(protocol, None)
        if connection is not None:  # else it was ended just now
            connection.has_asked = True
            self._open[protocol] = connection

    async def run(self, door: socket.socket) -> None:
        """Takes connections for ever."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            while True:
                try:
                    taken, _ = await loop.sock_accept(door)
                except OSError as error:
                    log.warning("connection not taken", extra={"reason": str(error)})
                    await asyncio.sleep(PAUSE_S)
                else:
                    self._make_room()
                    group.create_task(self._begin(_Connection(taken)))

    async def _begin(self, connection: _Connection) -> None:
        """The handshake and the wait for the first request; without one the connection ends."""
        protocol = self._make_protocol()
        self._open[protocol] = connection
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                lambda: protocol,
                connection.socket,
                ssl=self._context,
                ssl_handshake_timeout=HEAD_TIMEOUT_S,
                ssl_shutdown_timeout=SHUTDOWN_TIMEOUT_S,
            )
        except OSError:
            return  # no TLS, or too slow: the loop has closed it
        except Exception:
            log.exception("connection given up")  # one of them must not end the taking of all others
            connection.end()
            return
        await asyncio.sleep(HEAD_TIMEOUT_S)
        if not connection.has_asked:
            connection.end()

    def _make_room(self) -> None:
        """Forgets what is closed and ends what is too much."""
        self._open = {protocol: each for protocol, each in self._open.items() if each.socket.fileno() >= 0}
        for protocol in list(self._open)[: max(0, len(self._open) + 1 - MAX_CONNECTIONS)]:
            self._open.pop(protocol).end()
