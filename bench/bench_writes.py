"""What the fence and the quota cost, and what a batch in one statement saves: memories of 1 KB straight into one shard.

In turns, so that a slow second of the machine meets all: single puts of sixteen connections with and without the
triggers; batches as one statement, as a statement for each memory, and as one without the triggers.
"""

import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from engram_contract.slots import MemoryId
from engram_operator.clients import tenancy
from engram_operator.plan.steps import SetQuota
from engram_sidecar.indexing import Indexed
from engram_sidecar.queries import QUERIES
from engram_sidecar.records import Draft, Put
from engram_sidecar.writes import put_arguments, run_arguments
from rows import Row
from tests.harness import RealServer, Tenant, create_tenant, server_folder

WRITERS = 16
BATCHERS = 4  # connections that send batches; a sidecar has two
SIZES = (100, 500, 1_000)
ROUNDS = 4
TURN_S = 0.7
DRAFT = Draft("x" * 1_000, '{"a":1}', "episodic", "u", "a", "s", ("n", "m"))
INDEXED = Indexed(" ".join(f"'t{n}':1D" for n in range(20)), 20)
QUOTA = 10**9

# Room for about twice what was measured on two cores.
BAR_SINGLE = 3.0
BAR_BATCH = 2.0
BAR_SAVED = 2.0

Write = Callable[[Any, int], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Stage:
    """A tenant with a quota on one server, and connections of it."""

    server: RealServer
    tenant: Tenant
    connections: list[Any]
    found: dict[str, list[float]] = field(default_factory=dict)

    async def turn(self, name: str, write: Write, size: int, writers: int, *, is_counted: bool) -> None:
        """Notes how many memories a second the connections store, `size` at a time, into an empty table."""
        async with self.server.session(self.tenant.database) as admin:
            await admin.execute("TRUNCATE engram.memories, engram.usage")
            await admin.execute(f"ALTER TABLE engram.memories {'ENABLE' if is_counted else 'DISABLE'} TRIGGER USER")
        end_s = time.perf_counter() + TURN_S

        async def store(connection: Any) -> int:  # noqa: ANN401
            stored = 0
            while time.perf_counter() < end_s:
                async with connection.transaction():
                    await write(connection, size)
                stored += size
            return stored

        begun_s = time.perf_counter()
        stored = await asyncio.gather(*(store(each) for each in self.connections[:writers]))
        self.found.setdefault(name, []).append(sum(stored) / (time.perf_counter() - begun_s))

    def rate(self, name: str) -> float:
        """The median of what was noted, in memories a second."""
        return statistics.median(self.found[name])


def puts(size: int) -> list[tuple[object, ...]]:
    """The arguments of put_memory for new memories."""
    return [put_arguments(Put(MemoryId(random.randrange(1 << 14), uuid4()), DRAFT), INDEXED, None) for _ in range(size)]


async def one_by_one(connection: Any, size: int) -> None:  # noqa: ANN401
    """A statement for each, in one round trip."""
    await connection.fetchmany(QUERIES["put_memory"], puts(size))


async def in_one(connection: Any, size: int) -> None:  # noqa: ANN401
    """One statement for all."""
    await connection.fetch(QUERIES["put_memories"], *run_arguments(puts(size)))


def measure() -> Iterator[Row]:
    """The rows of this benchmark."""
    stage = asyncio.run(run())
    counted, bare = stage.rate("single"), stage.rate("single, no triggers")
    yield Row.at_most("writes_single_checked", bare / counted, "times", BAR_SINGLE, f"{counted:.4g} puts a second")
    for size in SIZES:
        whole, each = stage.rate(f"{size}"), stage.rate(f"{size}, one by one")
        bare = stage.rate(f"{size}, no triggers")
        yield Row.at_least(f"writes_batch_{size}", whole / each, "times", BAR_SAVED, f"one by one: {each:.4g} a second")
        yield Row.at_most(
            f"writes_batch_{size}_checked", bare / whole, "times", BAR_BATCH, f"{whole:.4g} memories a second"
        )


async def run() -> Stage:
    """The stage after all turns."""
    with server_folder() as folder, TemporaryDirectory() as config:
        server = RealServer.create(folder / "s0", 18)
        try:
            tenant = await create_tenant("bench", [server], Path(config))
            step = SetQuota("s0", QUOTA, QUOTA << 10, QUOTA, QUOTA << 10)
            await tenancy.level_quota(server.admin, tenant.database, tenant.role, step, "seal")
            async with AsyncExitStack() as stack:
                sessions = [server.session(tenant.database, tenant.role) for _ in range(WRITERS)]
                stage = Stage(server, tenant, [await stack.enter_async_context(each) for each in sessions])
                for _ in range(ROUNDS):
                    await stage.turn("single", one_by_one, 1, WRITERS, is_counted=True)
                    await stage.turn("single, no triggers", one_by_one, 1, WRITERS, is_counted=False)
                    for size in SIZES:
                        await stage.turn(f"{size}", in_one, size, BATCHERS, is_counted=True)
                        await stage.turn(f"{size}, one by one", one_by_one, size, BATCHERS, is_counted=True)
                        await stage.turn(f"{size}, no triggers", in_one, size, BATCHERS, is_counted=False)
                return stage
        finally:
            server.stop("immediate")
