"""Which statements the sidecar asks for an operation: recorded from its own pipeline, so that a peer can send the same.

The recording pipeline answers as the real one does, against the same shards; it only notes what passes to Postgres.
"""

import secrets
import time
from dataclasses import dataclass, field

import asyncpg

from engram_contract.credentials import Credentials
from engram_contract.policy import Limits
from engram_contract.resilience import Resilience
from engram_sidecar.config import Config, InForce
from engram_sidecar.gate import Gate
from engram_sidecar.guard import Guard
from engram_sidecar.pipeline import Pipeline, World
from engram_sidecar.queries import QUERIES
from engram_sidecar.sealing import Vault
from engram_sidecar.store import Place, Row, Store
from tests.harness import no_recall

TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Statement:
    """One named query with its arguments, and where it goes."""

    place: Place
    query: str
    arguments: tuple[object, ...]


class RecordingStore(Store):
    """A store that notes what it is asked."""

    def __init__(self, credentials: Credentials) -> None:
        super().__init__(credentials)
        self.noted: list[Statement] = []

    async def read(self, place: Place, query: str, *args: object, timeout_s: float) -> list[Row]:
        """As the store."""
        self.noted.append(Statement(place, query, args))
        return await super().read(place, query, *args, timeout_s=timeout_s)

    async def write(self, place: Place, query: str, *args: object, timeout_s: float) -> list[Row]:
        """As the store."""
        self.noted.append(Statement(place, query, args))
        return await super().write(place, query, *args, timeout_s=timeout_s)

    def take(self) -> list[Statement]:
        """What was noted since the last time. Sizes, which are asked every half minute, are left out."""
        noted, self.noted = [each for each in self.noted if each.query != "tenant_size"], []
        return noted


def recording(config: Config) -> tuple[Pipeline, RecordingStore]:
    """A pipeline like the sidecar's for the same tenant, and what notes its statements."""
    store = RecordingStore(config.credentials)
    world = World(time.time, time.monotonic, secrets.token_bytes)
    vault = Vault(lambda: config, secrets.token_bytes, lambda *_: None)
    gate = Gate(store, Resilience)
    guard = Guard(gate, Resilience, lambda _: None, lambda _: None)
    return Pipeline(guard, InForce(config), vault, no_recall(config, guard), Limits(), world), store


@dataclass(frozen=True, slots=True)
class Direct:
    """Postgres without us: one asyncpg connection per shard, as the tenant, statements prepared by the driver."""

    credentials: Credentials
    connections: dict[Place, "asyncpg.Connection[Row]"] = field(default_factory=dict)

    async def send(self, statements: list[Statement]) -> int:
        """Runs the statements one after the other; the number of rows."""
        rows = 0
        for each in statements:
            connection = self.connections.get(each.place) or await self._connect(each.place)
            rows += len(await connection.fetch(QUERIES[each.query], *each.arguments))
        return rows

    async def close(self) -> None:
        """Closes the connections."""
        for connection in self.connections.values():
            await connection.close()

    async def _connect(self, place: Place) -> "asyncpg.Connection[Row]":
        node, login = place.node, self.credentials
        connection = await asyncpg.connect(
            host=node.host, port=node.port, database=place.database, user=login.role, password=login.passwords[0]
        )
        self.connections[place] = connection
        return connection
