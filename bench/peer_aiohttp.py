"""A bare server of one body: `python peer_aiohttp.py PORT BYTES`. aiohttp's low-level server on uvloop, as ours is."""

import asyncio
import sys

import uvloop
from aiohttp import web


async def main(port: int, size: int) -> None:
    """Answers every request with the same body, until it is ended."""
    body = b'"' + b"x" * (size - 2) + b'"'

    async def answer(_request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=body, headers={"Content-Type": "application/json"})

    runner = web.ServerRunner(web.Server(answer, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
