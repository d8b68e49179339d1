"""The app of an agent's pod in tests: hands each connection on to the sidecar, as an app's own code would reach it.

It runs in the app's container: `relay.py FROM TO`, two ports of the pod's localhost. It is there because `kubectl
port-forward` ends altogether when a server resets one connection, as a server may that refuses a body unread; to
`kubectl` the relay ends every connection in order.
"""

import asyncio
import contextlib
import sys

CHUNK_BYTES = 65_536
PATIENCE_S = 5.0


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """All that comes goes on, until one side ends."""
    with contextlib.suppress(OSError):
        while chunk := await reader.read(CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
        writer.write_eof()


async def discard(reader: asyncio.StreamReader) -> None:
    """The rest is read for nobody: to close a connection with something unread in it is to reset it."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(PATIENCE_S):
            while await reader.read(CHUNK_BYTES):
                pass


async def relay(port: int, target: int) -> None:
    """Serves for ever."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target)
        except OSError:
            writer.close()
            return
        asking = asyncio.create_task(pump(reader, far_writer))
        await pump(far_reader, writer)  # when the sidecar has said all, so has the connection
        asking.cancel()
        await asyncio.wait([asking])
        await discard(reader)
        for each in (writer, far_writer):
            each.close()

    server = await asyncio.start_server(handle, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(relay(int(sys.argv[1]), int(sys.argv[2])))
