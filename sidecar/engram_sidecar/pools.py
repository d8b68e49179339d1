"""Connections that end with the last of their users: what is retired while requests use or await it stays open."""

import asyncio
from collections.abc import Awaitable
from typing import Generic, Protocol, TypeVar


class Closes(Protocol):
    """A driver's pool, as far as its end is concerned."""

    def close(self) -> Awaitable[None]:
        """Closes all connections."""


Connections = TypeVar("Connections", bound=Closes)


class Pool(Generic[Connections]):
    """The connections to one place, and how many requests use or await one."""

    def __init__(self, connections: Connections) -> None:
        self.connections = connections
        self._users = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def __enter__(self) -> Connections:
        """The connections, which stay open for this block."""
        self._users += 1
        self._idle.clear()
        return self.connections

    def __exit__(self, *_: object) -> None:
        """One user less."""
        self._users -= 1
        if not self._users:
            self._idle.set()

    async def end(self) -> None:
        """Closes the connections when nobody uses them any more."""
        await self._idle.wait()
        await self.connections.close()
