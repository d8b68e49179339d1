"""Writes that meet another one at the worst moment: each is made to wait on the other's row, and then let go on."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from engram_contract.shardmap import Node
from engram_contract.slots import MemoryId
from engram_sidecar.errors import PreconditionFailed
from engram_sidecar.indexing import Indexed
from engram_sidecar.queries import QUERIES
from engram_sidecar.records import Conditions, Draft, Memory, Put
from engram_sidecar.store import Place
from engram_sidecar.writes import put_memory
from tests.harness import RealServer, Tenant, create_tenant, plain_rules

PLACE = Place("s0", Node("s0-0", "localhost", 1), "unused")


@pytest.fixture
def tenant(servers: tuple[RealServer, RealServer], tmp_path: Path) -> Tenant:
    """A tenant on one server."""
    return asyncio.run(create_tenant(f"r{uuid4().hex[:8]}", servers[:1], tmp_path))


async def ask(connection: Any, query: str, *arguments: object) -> Any:  # noqa: ANN401
    return await connection.fetch(QUERIES[query], *arguments)


async def put(connection: Any, memory_id: MemoryId, content: str, conditions: Conditions = Conditions()) -> Memory:  # noqa: ANN401, B008
    run = partial(ask, connection)
    return await put_memory(run, PLACE, Put(memory_id, Draft(content), conditions), Indexed("", 0), plain_rules("t_a"))


async def wait_until_blocked(server: RealServer, waiting: Any) -> None:  # noqa: ANN401
    """Returns when the connection waits for a lock."""
    async with server.session("postgres") as looker:
        while not await looker.fetchval("SELECT pg_blocking_pids($1) <> '{}'", waiting.get_server_pid()):
            pass


@pytest.mark.parametrize("by_tag", [False, True], ids=["If-Match: *", "If-Match: tag"])
async def test_what_has_to_be_there_is_not_made_anew_when_it_is_removed_meanwhile(tenant: Tenant, by_tag: bool) -> None:
    server = tenant.servers[0]
    memory_id = MemoryId(5, UUID(int=1))
    async with (
        server.session(tenant.database, tenant.role) as writer,
        server.session(tenant.database) as remover,
    ):
        there = await put(writer, memory_id, "first")
        conditions = Conditions(must_exist=True, if_match=(there.etag,) if by_tag else None)
        transaction = remover.transaction()
        await transaction.start()
        await remover.execute("DELETE FROM engram.memories WHERE tenant = $1", tenant.role)
        task = asyncio.create_task(put(writer, memory_id, "second", conditions))
        await wait_until_blocked(server, writer)
        await transaction.commit()
        with pytest.raises(PreconditionFailed):
            await task
        assert await remover.fetchval("SELECT count(*) FROM engram.memories WHERE tenant = $1", tenant.role) == 0
