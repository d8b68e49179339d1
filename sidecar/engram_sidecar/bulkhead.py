"""A bulkhead before one node: so many requests at a time, so many that wait, and no more.

Without it a node that is slow would fill the process with requests that wait for it, until those for other nodes have
no room either.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from engram_sidecar.errors import DeadlineExceeded, Shed
from engram_sidecar.timing import part


class Bulkhead:
    """Lets `at_once` requests through to a node of the shard; the others wait, first come, first served."""

    def __init__(self, shard: str, at_once: int) -> None:
        self._shard = shard
        self._slots = asyncio.Semaphore(at_once)
        self.waiting = 0

    @asynccontextmanager
    async def entered(self, max_waiting: int, timeout_s: float) -> AsyncIterator[None]:
        """The block is at the node. Raises Shed if too many wait already, DeadlineExceeded after the time."""
        if self._slots.locked() and self.waiting >= max_waiting:
            raise Shed(self._shard, "too many requests wait for the node")
        self.waiting += 1
        try:
            async with asyncio.timeout(timeout_s):
                with part("queue", self._shard):
                    await self._slots.acquire()
        except TimeoutError as error:
            raise DeadlineExceeded(self._shard, "no connection in time") from error
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            self._slots.release()
