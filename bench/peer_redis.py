"""Reads of Redis over HTTP, written by hand: `python peer_redis.py PORT REDIS_PORT USER PASSWORD`.

aiohttp's low-level server on uvloop and redis-py's client: a path is a key, its value the body. Nothing else is done.
"""

import asyncio
import sys

import uvloop
from aiohttp import web
from redis.asyncio import Redis


async def main(port: int, redis_port: int, user: str, password: str) -> None:
    """Answers until it is ended."""
    client = Redis(port=redis_port, username=user, password=password)

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        body = await client.get(request.path)
        if body is None:
            return web.Response(status=404)
        return web.Response(body=body, headers={"Content-Type": "application/json"})

    runner = web.ServerRunner(web.Server(answer, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]))
