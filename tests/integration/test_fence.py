"""The fence and the map in a shard.

No write lands after the fence, no stale sidecar reads a frozen copy, epochs never go back.
"""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from engram_contract.apportion import SlotRange
from engram_contract.policy import Policy
from engram_contract.shardmap import ShardMap
from engram_operator.clients.postgres import fetch_map, publish_map
from engram_operator.errors import FenceBusy, StaleEpoch
from engram_sidecar.settings import Settings
from tests.harness import NUMBERS, Http, RealServer, SidecarThread, Tenant, create_tenant, write_config

INSERT = """
    INSERT INTO engram.memories
        (tenant, slot, id, namespace, type, content, value, created, updated, version, terms, term_count)
    VALUES (current_user, $1, gen_random_uuid(), '{}', 'episodic', $2, 'null', now(), now(), 1, '', 0)
"""


def owned_by(shard_map: ShardMap, shard: str) -> ShardMap:
    """The next map, in which one shard owns every slot."""
    return replace(shard_map, epoch=shard_map.epoch + 1, ranges=(SlotRange(0, 16383, shard),))


async def write_for_ever(connection: Any, content: str) -> None:  # noqa: ANN401
    while True:
        await connection.execute(INSERT, 5, content)


@pytest.mark.parametrize("rounds", [150, pytest.param(2_000, marks=pytest.mark.soak)])
async def test_no_write_lands_after_the_fence(
    servers: tuple[RealServer, RealServer], tmp_path: Path, rounds: int
) -> None:
    """Writers race the operator; what was counted when the fence was up is all there ever is."""
    tenant = await create_tenant("raced", servers, tmp_path, database=f"fence_race{rounds}")
    server = servers[0]
    writers = [await server.connect(tenant.database, tenant.role) for _ in range(4)]
    checker = await server.connect(tenant.database)
    refused = 0

    async def write_until_refused(connection: Any, number: int) -> None:  # noqa: ANN401
        nonlocal refused
        with pytest.raises(asyncpg.PostgresError) as caught:
            await write_for_ever(connection, f"round {number}")
        assert caught.value.sqlstate == "EG001"
        refused += 1

    shard_map = tenant.shard_map
    for number in range(rounds):
        tasks = [asyncio.create_task(write_until_refused(writer, number)) for writer in writers]
        while await checker.fetchval("SELECT count(*) FROM engram.memories WHERE content = $1", f"round {number}") == 0:
            pass
        shard_map = owned_by(shard_map, "s1")
        await publish_map(server.admin, "s0", shard_map)
        fenced = await checker.fetchval("SELECT count(*) FROM engram.memories")
        await asyncio.gather(*tasks)
        assert await checker.fetchval("SELECT count(*) FROM engram.memories") == fenced
        shard_map = owned_by(shard_map, "s0")
        await publish_map(server.admin, "s0", shard_map)
    assert refused == rounds * len(writers)
    for connection in (*writers, checker):
        await connection.close()


async def test_updates_and_deletes_meet_the_fence_too(servers: tuple[RealServer, RealServer], tmp_path: Path) -> None:
    tenant = await create_tenant("fenced", servers, tmp_path, database="fence_kinds")
    async with servers[0].session("fence_kinds", tenant.role) as connection:
        await connection.execute(INSERT, 5, "x")
        await publish_map(servers[0].admin, "s0", owned_by(tenant.shard_map, "s1"))
        remove = "SELECT engram.delete_memory(slot, id, NULL, '{}') FROM engram.memories"
        for statement in ("UPDATE engram.memories SET content = 'y'", remove):
            with pytest.raises(asyncpg.PostgresError) as caught:
                await connection.execute(statement)
            assert caught.value.sqlstate == "EG001"


@pytest.mark.parametrize("level", ["repeatable_read", "serializable"])
async def test_a_write_in_another_isolation_level_is_refused(
    servers: tuple[RealServer, RealServer], tenant: Tenant, level: str
) -> None:
    async with servers[0].session(tenant.database, tenant.role) as connection:
        with pytest.raises(asyncpg.FeatureNotSupportedError, match="READ COMMITTED"):
            async with connection.transaction(isolation=level):
                await connection.execute(INSERT, 5, "x")


@pytest.mark.parametrize("change", ["slot = 6", "id = gen_random_uuid()"])
async def test_the_place_of_a_memory_is_fixed(
    servers: tuple[RealServer, RealServer], tmp_path: Path, change: str
) -> None:
    tenant = await create_tenant("fixed", servers, tmp_path, database="fence_fixed")
    async with servers[0].session("fence_fixed", tenant.role) as connection:
        await connection.execute(INSERT, 5, "x")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(f"UPDATE engram.memories SET {change}")
    async with servers[0].session("fence_fixed") as connection:
        with pytest.raises(asyncpg.CheckViolationError, match="fixed at creation"):
            await connection.execute(f"UPDATE engram.memories SET {change}")


async def test_an_older_map_is_refused_and_the_same_map_is_welcome(
    servers: tuple[RealServer, RealServer], tmp_path: Path
) -> None:
    tenant = await create_tenant("epochs", servers, tmp_path, database="fence_epochs")
    newer = owned_by(tenant.shard_map, "s0")
    await publish_map(servers[0].admin, "s0", newer)
    await publish_map(servers[0].admin, "s0", newer)
    for stale in (tenant.shard_map, replace(owned_by(tenant.shard_map, "s1"), epoch=newer.epoch)):
        with pytest.raises(StaleEpoch):
            await publish_map(servers[0].admin, "s0", stale)
    assert await fetch_map(servers[0].admin, "fence_epochs", tenant.role) == newer


async def test_who_is_no_tenant_is_never_ended_for_the_fence(
    servers: tuple[RealServer, RealServer], tmp_path: Path
) -> None:
    tenant = await create_tenant("stuck", servers, tmp_path, database="fence_stuck")
    hold = "SELECT pg_advisory_xact_lock_shared(engram.fence_key($1))"
    async with servers[0].session("fence_stuck") as administrator, administrator.transaction():
        await administrator.execute(hold, tenant.role)
        with pytest.raises(FenceBusy):
            await publish_map(servers[0].admin, "s0", owned_by(tenant.shard_map, "s1"), answered_s=0.0)
    async with servers[0].session("fence_stuck", tenant.role) as connection:
        await connection.execute(INSERT, 5, "still ours")


async def test_writers_who_take_turns_do_not_keep_the_fence_down(
    servers: tuple[RealServer, RealServer], tmp_path: Path
) -> None:
    """At no time is there none of them, and none of them takes longer than a fence is waited for."""
    tenant = await create_tenant("turns", servers, tmp_path, database="fence_turns")
    is_over, ended = asyncio.Event(), 0

    async def take_turns(first_s: float) -> None:
        nonlocal ended
        await asyncio.sleep(first_s)
        while not is_over.is_set():
            async with servers[0].session("fence_turns", tenant.role) as connection:
                try:
                    async with connection.transaction():
                        await connection.execute(INSERT, 5, "x")
                        await asyncio.sleep(2.5)
                except (asyncpg.PostgresError, asyncpg.InterfaceError, ConnectionError):
                    ended += 1

    writers = [asyncio.create_task(take_turns(each / 4)) for each in range(8)]
    await asyncio.sleep(2.5)
    await publish_map(servers[0].admin, "s0", owned_by(tenant.shard_map, "s1"), answered_s=5.0)
    is_over.set()
    await asyncio.gather(*writers)


@pytest.fixture
def moved(servers: tuple[RealServer, RealServer], tmp_path: Path) -> tuple[Tenant, ShardMap]:
    """A tenant whose slots all went to s1 after its sidecar's folder was written."""
    name = f"moved-{tmp_path.name[-20:].strip('_0').replace('_', '-').lower()}"

    async def stage() -> tuple[Tenant, ShardMap]:
        tenant = await create_tenant(name, servers, tmp_path)
        new_map = owned_by(tenant.shard_map, "s1")
        return tenant, new_map

    return asyncio.run(stage())


def publish_everywhere(tenant: Tenant, shard_map: ShardMap) -> None:
    async def publish() -> None:
        for number, server in enumerate(tenant.servers):
            await publish_map(server.admin, f"s{number}", shard_map)

    asyncio.run(publish())


def test_a_stale_sidecar_learns_the_map_from_the_shard(moved: tuple[Tenant, ShardMap]) -> None:
    tenant, new_map = moved
    with SidecarThread(Settings(tenant.config_dir, http_port=0, admin_port=0)).running() as thread:
        http = Http(thread.ports.http_port)
        key = next(
            str(n) for n in range(100) if http("GET", "/v1/items", key=str(n)).status == 404 and _is_on(http, str(n))
        )
        publish_everywhere(tenant, new_map)
        # Each of these meets a shard that no longer owns the slot, and is answered by the one that does.
        answer = http("PUT", "/v1/items", {"content": "new"}, key=key)
        assert (answer.status, answer.json["shard"]) == (201, "s1")
        assert http("GET", "/v1/shards").json["epoch"] == new_map.epoch
        http.close()


def _is_on(http: Http, key: str) -> bool:
    """True if a memory of this key lies on s0; leaves nothing behind."""
    shard = http("PUT", "/v1/items", {}, key=key).json["shard"]
    http("DELETE", "/v1/items", key=key)
    return bool(shard == "s0")


@pytest.mark.parametrize("request_", ["get", "list", "search", "batch", "delete", "patch"])
def test_a_stale_sidecar_never_answers_from_a_shard_that_lost_the_slot(
    moved: tuple[Tenant, ShardMap], request_: str
) -> None:
    """The old shard still holds the rows of before, as during a copy; the new one holds what is true."""
    tenant, new_map = moved
    with SidecarThread(Settings(tenant.config_dir, http_port=0, admin_port=0)).running() as thread:
        http = Http(thread.ports.http_port)
        key = next(str(n) for n in range(100) if _is_on(http, str(n)))
        http("PUT", "/v1/items", {"content": "frozen giraffe"}, key=key)
        publish_everywhere(tenant, new_map)
        fresh = Path(str(tenant.config_dir) + "-fresh")
        write_config(fresh, new_map, _policy(tenant))
        with SidecarThread(Settings(fresh, http_port=0, admin_port=0)).running() as other:
            true = Http(other.ports.http_port)
            true("PUT", "/v1/items", {"content": "true giraffe"}, key=key)
            true.close()
        match request_:
            case "get":
                assert http("GET", "/v1/items", key=key).json["content"] == "true giraffe"
            case "list":
                assert [m["content"] for m in http("GET", "/v1/memories").json["memories"]] == ["true giraffe"]
            case "search":
                found = http("POST", "/v1/search", {"query": "giraffe"}).json["results"]
                assert [hit["content"] for hit in found] == ["true giraffe"]
            case "batch":
                operations = [{"op": "get", "key": key}, {"op": "patch", "key": key, "memory": {"value": 1}}]
                results = http("POST", "/v1/batch", {"operations": operations}).json["results"]
                assert [result["memory"]["content"] for result in results] == ["true giraffe"] * 2
            case "delete":
                assert http("DELETE", "/v1/items", key=key).status == 204
                assert http("GET", "/v1/items", key=key).status == 404
            case _:
                assert http("PATCH", "/v1/items", {"value": 1}, key=key).json["content"] == "true giraffe"
        http.close()


def _policy(tenant: Tenant) -> Policy:
    return Policy.from_json((tenant.config_dir / "policy.json").read_text())


def test_a_stale_search_for_words_that_moved_away_is_not_an_empty_answer(moved: tuple[Tenant, ShardMap]) -> None:
    """All that s0 knows are words of before; the true memory was written on s1 alone, where the old map never looks."""
    tenant, new_map = moved
    narrow = replace(owned_by(tenant.shard_map, "s0"), epoch=tenant.shard_map.epoch)
    write_config(tenant.config_dir, narrow, _policy(tenant))
    with SidecarThread(Settings(tenant.config_dir, http_port=0, admin_port=0)).running() as thread:
        publish_everywhere(tenant, new_map)
        fresh = Path(str(tenant.config_dir) + "-fresh")
        write_config(fresh, new_map, _policy(tenant))
        with SidecarThread(Settings(fresh, http_port=0, admin_port=0)).running() as other:
            true = Http(other.ports.http_port)
            true("PUT", "/v1/items", {"content": "an okapi"}, key="k")
            true.close()
        http = Http(thread.ports.http_port)
        found = http("POST", "/v1/search", {"query": "okapi"}).json["results"]
        assert [hit["content"] for hit in found] == ["an okapi"]
        http.close()


TURN = "(SELECT pg_advisory_xact_lock_shared(engram.fence_key(current_user::text))) IS NOT NULL"
OWNED = "engram.is_owned(current_user::text, 5)"


@pytest.mark.parametrize(
    ("guard", "lands"),
    [(f"WHERE {OWNED}", True), (f"WHERE {TURN} AND {OWNED}", True), (None, False)],
    ids=["a look in the write's own statement", "the lock in that statement too", "the trigger"],
)
async def test_only_a_look_after_the_lock_keeps_a_write_from_landing_after_the_fence(
    servers: tuple[RealServer, RealServer], tmp_path: Path, guard: str | None, lands: bool
) -> None:
    """The write begins before the fence is raised and goes on after it: what each way of looking makes of that."""
    tenant = await create_tenant("looks", servers, tmp_path, database=f"fence_looks{next(NUMBERS)}")
    server = servers[0]
    count = "SELECT count(*) FROM engram.memories"
    async with (
        server.session(tenant.database) as operator,
        server.session(tenant.database) as checker,
        server.session(tenant.database, tenant.role) as writer,
    ):
        if guard is not None:
            await checker.execute("ALTER TABLE engram.memories DISABLE TRIGGER USER")
            await checker.execute("GRANT EXECUTE ON FUNCTION pg_advisory_xact_lock_shared(bigint) TO PUBLIC")
            await checker.execute("GRANT EXECUTE ON FUNCTION engram.fence_key TO PUBLIC")
        statement = INSERT if guard is None else f"{INSERT.replace('VALUES (', 'SELECT ').rstrip()[:-1]} {guard}"
        written = writer.transaction()
        await written.start()
        fence = operator.transaction()
        await fence.start()
        await operator.execute("SELECT pg_advisory_xact_lock(engram.fence_key($1))", tenant.role)
        write = asyncio.create_task(writer.execute(statement, 5, "x"))
        while not write.done() and not await checker.fetchval(
            "SELECT pg_blocking_pids($1) <> '{}'", writer.get_server_pid()
        ):
            pass
        await operator.execute("DELETE FROM engram.ownership WHERE tenant = $1", tenant.role)
        await fence.commit()
        fenced = await checker.fetchval(count)
        if lands:
            await write
            await written.commit()
        else:
            with pytest.raises(asyncpg.PostgresError) as caught:
                await write
            assert caught.value.sqlstate == "EG001"
            await written.rollback()
        assert (await checker.fetchval(count) > fenced) is lands


async def test_a_move_of_slots_lets_writes_go_on_because_the_slot_is_in_the_primary_key(
    servers: tuple[RealServer, RealServer], tmp_path: Path
) -> None:
    """A publication of some slots refuses changes of rows that it could not tell apart by their key."""
    tenant = await create_tenant("moves", servers[:1], tmp_path, database="fence_moves")
    async with servers[0].session("fence_moves") as connection:
        await connection.execute("CREATE TABLE engram.by_id AS SELECT * FROM engram.memories")
        await connection.execute("ALTER TABLE engram.by_id ADD PRIMARY KEY (id)")
        some = f"WHERE (tenant = '{tenant.role}' AND slot BETWEEN 0 AND 16000)"
        tables = ", ".join(f"engram.{name} {some}" for name in ("memories", "idempotency", "by_id"))
        await connection.execute(f"CREATE PUBLICATION moving FOR TABLE {tables}")
        with pytest.raises(asyncpg.InvalidColumnReferenceError, match="by_id"):
            await connection.execute("UPDATE engram.by_id SET content = 'x'")
    with SidecarThread(Settings(tenant.config_dir, http_port=0, admin_port=0)).running() as thread:
        http = Http(thread.ports.http_port)
        answers = await asyncio.to_thread(
            lambda: [
                http("PUT", "/v1/items", {"content": "x"}, headers={"Idempotency-Key": f"{number}"}, key="k").status
                for number in range(3)
            ]
        )
        assert answers == [201, 200, 200]
        async with servers[0].session("fence_moves") as connection:
            await connection.execute("UPDATE engram.idempotency SET expires = now()")
        removed = await asyncio.to_thread(
            lambda: http("DELETE", "/v1/items", headers={"Idempotency-Key": "d"}, key="k").status
        )
        http.close()
    assert removed == 204
    async with servers[0].session("fence_moves") as connection:
        assert await connection.fetchval("SELECT count(*) FROM engram.idempotency") == 2  # two that expired are gone
