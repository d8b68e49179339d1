"""A TCP proxy before a server, which a test makes slow, silent, or gone: real sockets, in the loop of the test."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

CHUNK_BYTES: Final = 65_536


class Fault(StrEnum):
    """What the proxy does with what comes."""

    NONE = "none"  # it passes on, after `delay_s`
    SILENT = "silent"  # it takes everything and says nothing
    HELD = "held"  # it keeps what comes, and passes it on when the fault is over
    RESET = "reset"  # it resets each connection, old and new ones


@dataclass
class FaultProxy:
    """What the proxy does now, and how many connections it took."""

    upstream_port: int
    port: int = 0
    fault: Fault = Fault.NONE
    delay_s: float = 0.0  # of each answer of the server
    accepted: int = 0
    losing: bytes = b""  # the answer to what holds this is lost, with its connection; once
    lost: int = 0
    _passing: asyncio.Event = field(default_factory=asyncio.Event)  # set unless HELD
    _tasks: set["asyncio.Task[None]"] = field(default_factory=set)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _server: asyncio.Server | None = None

    def turn(self, fault: Fault, delay_s: float = 0.0) -> None:
        """From now on this fault; RESET ends what is open."""
        self.fault, self.delay_s = fault, delay_s
        if fault is Fault.HELD:
            self._passing.clear()
        else:
            self._passing.set()
        if fault is Fault.RESET:
            self._reset_all()

    def refuse(self) -> None:
        """Connections are refused, and the open ones reset, until `listen`."""
        assert self._server is not None
        self._server.close()
        self._reset_all()

    async def listen(self) -> None:
        """Connections are taken, on the port of before if there was one."""
        self._passing.set()
        self._server = await asyncio.start_server(self._take, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Everything ends."""
        self.refuse()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _reset_all(self) -> None:
        for writer in tuple(self._writers):
            _reset(writer)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.accepted += 1
        if self.fault is Fault.RESET:
            _reset(writer)
            return
        try:
            there, to = await asyncio.open_connection("127.0.0.1", self.upstream_port)
        except OSError:
            _reset(writer)
            return
        self._writers |= {writer, to}
        try:
            doomed = asyncio.Event()
            await asyncio.gather(
                self._pump(reader, to, doomed, answers=False), self._pump(there, writer, doomed, answers=True)
            )
        finally:
            self._writers -= {writer, to}
            writer.close()
            to.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, doomed: asyncio.Event, *, answers: bool
    ) -> None:
        with suppress(OSError):
            while chunk := await reader.read(CHUNK_BYTES):
                if answers and doomed.is_set():
                    self.lost += 1
                    _reset(writer)
                    return
                if not answers and self.losing and self.losing in chunk:
                    self.losing = b""
                    doomed.set()
                if answers and self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await self._passing.wait()
                if self.fault is not Fault.SILENT:
                    writer.write(chunk)
                    await writer.drain()
        writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@asynccontextmanager
async def fault_proxy(upstream_port: int) -> AsyncIterator[FaultProxy]:
    """A proxy that passes everything on, until it is told otherwise."""
    proxy = FaultProxy(upstream_port)
    await proxy.listen()
    try:
        yield proxy
    finally:
        await proxy.close()
