"""Through PgBouncer in transaction mode, as the operator configures it: the fence, the isolation level, statements."""

import asyncio
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from engram_contract.names import MAP_FILE
from engram_operator.clients.postgres import publish_map
from engram_sidecar.queries import QUERIES
from engram_sidecar.settings import Settings
from tests.harness import NUMBERS, PASSWORD, Http, RealServer, SidecarThread, Tenant, create_tenant, server_folder
from tests.integration.conftest import through
from tests.integration.test_fence import INSERT, owned_by, write_for_ever
from tests.pooler import STOP_S, Pooler, pooler_before

ROUNDS = 50
Servers = tuple[RealServer, RealServer]


@pytest.fixture
def pooled(servers: Servers, poolers: tuple[Pooler, Pooler], tmp_path: Path) -> Tenant:
    """A new tenant of which all lies on the first shard, and whose map leads to the poolers."""
    number = next(NUMBERS)
    tenant = asyncio.run(create_tenant(f"p{number}", servers, tmp_path, database=f"pooled{number}"))
    shard_map = owned_by(tenant.shard_map, "s0")
    for each, server in enumerate(servers):
        asyncio.run(publish_map(server.admin, f"s{each}", shard_map))
    (tmp_path / MAP_FILE).write_text(through(poolers, shard_map).to_json())
    return replace(tenant, shard_map=shard_map)


def settings_of(tenant: Tenant) -> Settings:
    return Settings(tenant.config_dir, http_port=0, admin_port=0)


async def connect(pooler: Pooler, tenant: Tenant) -> Any:  # noqa: ANN401
    """As the sidecar connects: it asks for the isolation level, which PgBouncer does not pass on."""
    return await asyncpg.connect(
        host="127.0.0.1", port=pooler.port, database=tenant.database, user=tenant.role, password=PASSWORD,
        server_settings={"default_transaction_isolation": "read committed"},
    )  # fmt: skip


async def test_no_write_lands_after_the_fence(poolers: tuple[Pooler, Pooler], pooled: Tenant) -> None:
    """More writers than connections race the operator: whose turn comes after the fence is up is refused."""
    server, shard_map = pooled.servers[0], pooled.shard_map
    writers = [await connect(poolers[0], pooled) for _ in range(4)]
    checker = await server.connect(pooled.database)
    count = "SELECT count(*) FROM engram.memories"

    async def write_until_refused(connection: Any, content: str) -> None:  # noqa: ANN401
        with pytest.raises(asyncpg.PostgresError) as caught:
            await write_for_ever(connection, content)
        assert caught.value.sqlstate == "EG001"

    for number in range(ROUNDS):
        tasks = [asyncio.create_task(write_until_refused(writer, f"round {number}")) for writer in writers]
        while not await checker.fetchval(f"{count} WHERE content = $1", f"round {number}"):
            pass
        for owner in ("s1", "s0"):
            shard_map = owned_by(shard_map, owner)
            await publish_map(server.admin, "s0", shard_map)
            if owner == "s1":
                fenced = await checker.fetchval(count)
                await asyncio.gather(*tasks)
                assert await checker.fetchval(count) == fenced
    for connection in (*writers, checker):
        await connection.close()


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_roles_own_isolation_level_does_not_reach_a_write(pooled: Tenant, level: str) -> None:
    async def alter() -> None:
        async with pooled.servers[0].session("postgres") as connection:
            await connection.execute(f"ALTER ROLE {pooled.role} SET default_transaction_isolation = '{level}'")

    asyncio.run(alter())
    with SidecarThread(settings_of(pooled)).running() as thread:
        http = Http(thread.ports.http_port)
        body = {"content": "x"}
        assert http("PUT", "/v1/items", body, key="k").status == 201
        assert http("PATCH", "/v1/items", {"value": 1}, key="k").status == 200
        assert http("PUT", "/v1/items", body, headers={"Idempotency-Key": "k"}, key="k").status == 200
        http.close()


async def test_who_asks_for_another_level_within_a_session_is_refused(
    poolers: tuple[Pooler, Pooler], pooled: Tenant
) -> None:
    connection = await connect(poolers[0], pooled)
    with pytest.raises(asyncpg.FeatureNotSupportedError, match="READ COMMITTED"):
        async with connection.transaction(isolation="serializable"):
            await connection.execute(INSERT, 5, "x")
    await connection.execute(INSERT, 5, "x")
    await connection.close()


def test_sidecars_share_fewer_connections_than_they_have_and_prepared_statements_stay(pooled: Tenant) -> None:
    """Each sidecar has two connections to the pooler, which has two to the server: statements meet those of others."""
    answers: list[int] = []

    def use(port: int, number: int) -> None:
        http = Http(port)
        for step in range(30):
            key: dict[str, Any] = {"key": f"{number}-{step}"}
            answers.append(http("PUT", "/v1/items", {"content": "heron"}, **key).status)
            answers.append(http("PATCH", "/v1/items", {"value": step}, **key).status)
            answers.append(http("GET", "/v1/items", **key).status)
            answers.append(http("POST", "/v1/search", {"query": "heron"}).status)
        http.close()

    sidecars = [SidecarThread(settings_of(pooled)) for _ in range(3)]
    with sidecars[0].running(), sidecars[1].running(), sidecars[2].running():
        threads = [
            threading.Thread(target=use, args=(each.ports.http_port, number))
            for number, each in enumerate(sidecars * 2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(answers) == 6 * 30 * 4
    assert set(answers) == {200, 201}
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1"

    async def count() -> int:
        async with pooled.servers[0].session("postgres") as connection:
            return int(await connection.fetchval(sessions, pooled.role))

    assert asyncio.run(count()) <= 2


async def test_every_query_can_be_prepared(poolers: tuple[Pooler, Pooler], pooled: Tenant) -> None:
    connection = await connect(poolers[0], pooled)
    for sql in QUERIES.values():
        await connection.prepare(sql)
    await connection.close()


async def test_a_pooler_ends_with_its_pod_though_clients_stay(
    servers: Servers, poolers: tuple[Pooler, Pooler], pooled: Tenant, pooler_command: tuple[str, ...], tmp_path: Path
) -> None:
    """By the signal that its pod sends first; a transaction that runs is let run to its end."""
    with server_folder() as folder, pooler_before(servers[0], pooler_command, folder / "ending") as ending:
        idle, busy = await connect(ending, pooled), await connect(ending, pooled)
        await idle.fetchval("SELECT 1")
        async with busy.transaction():
            await busy.execute("SELECT 1")
            ending.process.send_signal(signal.SIGINT)
            while "got SIGINT" not in (folder / "ending" / "log").read_text():  # noqa: ASYNC110  it has no event
                await asyncio.sleep(0.01)
            assert await busy.fetchval("SELECT 2") == 2
            assert ending.process.poll() is None
        assert await asyncio.to_thread(ending.process.wait, STOP_S) == 0
        for connection in (idle, busy):
            connection.terminate()
