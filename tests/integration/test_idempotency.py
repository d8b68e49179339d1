"""Writes with an idempotency key, at the worst moments: a lost answer, a killed sidecar, a move, a full quota.

What the interface promises in quiet times is in the behaviour suite.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from engram_contract.apportion import SlotRange
from engram_contract.policy import Limits, Policy
from engram_contract.resilience import Resilience
from engram_contract.shardmap import ShardMap, Strategy
from engram_operator.clients import tenancy
from engram_operator.clients.postgres import publish_map
from engram_operator.plan.steps import SetQuota
from engram_sidecar.config import InForce, read_config
from engram_sidecar.errors import IdempotencyKeyInUse
from engram_sidecar.gate import Gate
from engram_sidecar.guard import Guard
from engram_sidecar.idempotency import Once
from engram_sidecar.identity import Identity
from engram_sidecar.pipeline import Pipeline, World
from engram_sidecar.records import Conditions, Draft, Put, Replay
from engram_sidecar.sealing import Vault
from engram_sidecar.settings import Settings
from engram_sidecar.store import Store
from tests.faults import Fault, fault_proxy
from tests.harness import (
    NUMBERS,
    Answer,
    Http,
    RealServer,
    SidecarThread,
    Tenant,
    create_tenant,
    no_recall,
    write_config,
)

KEYED = {"Idempotency-Key": "once"}
BODY = {"content": "pay the heron 5", "user": "mallory", "value": {"iban": "DE02120300000000202051"}}


@pytest.fixture
def tenant(servers: tuple[RealServer, RealServer], tmp_path: Path) -> Tenant:
    """A tenant on both servers, in a database of its own."""
    number = next(NUMBERS)
    return asyncio.run(create_tenant(f"i{number}", servers, tmp_path / "config", database=f"once{number}"))


def settings_of(tenant: Tenant, **more: Any) -> Settings:  # noqa: ANN401
    return Settings(tenant.config_dir, http_port=0, admin_port=0, **more)


@contextmanager
def asking(tenant: Tenant) -> Iterator[Http]:
    """Requests to a new sidecar of the tenant."""
    with SidecarThread(settings_of(tenant)).running() as thread:
        http = Http(thread.ports.http_port)
        yield http
        http.close()


@asynccontextmanager
async def owner(tenant: Tenant, shard: int = 0) -> AsyncIterator[Any]:
    """The administrator's connection to the tenant's database on a shard."""
    async with tenant.servers[shard].session(tenant.database) as connection:
        yield connection


def on_shards(tenant: Tenant, sql: str) -> list[Any]:
    """The rows of all shards together."""

    async def ask() -> list[Any]:
        rows: list[Any] = []
        for number in range(len(tenant.servers)):
            async with owner(tenant, number) as connection:
                rows += await connection.fetch(sql)
        return rows

    return asyncio.run(ask())


def create(http: Http, body: object = BODY) -> Answer:
    return http("POST", "/v1/memories", body, headers=KEYED)


def contents(http: Http, user: str = "mallory") -> list[str]:
    return [memory["content"] for memory in http("GET", "/v1/memories", user=user).json["memories"]]


# Lost answers


async def through(tenant: Tenant, port: int, retry_percent: int) -> None:
    """The tenant's sidecar reaches its only shard through this port."""
    shard = tenant.shard_map.shards[0]
    node = replace(shard.nodes[0], port=port)
    policy = Policy.from_json((tenant.config_dir / "policy.json").read_text())
    tuned = replace(policy, resilience=replace(policy.resilience, retry_percent=retry_percent, failover_seconds=0))
    write_config(tenant.config_dir, replace(tenant.shard_map, shards=(replace(shard, nodes=(node,)),)), tuned)


@pytest.mark.parametrize("retry_percent", [10, 0], ids=["repeated by the sidecar", "repeated by the caller"])
@pytest.mark.parametrize("kind", ["create", "put", "patch", "delete", "batch"])
async def test_a_write_whose_answer_was_lost_happens_once(
    servers: tuple[RealServer, RealServer], tmp_path: Path, kind: str, retry_percent: int
) -> None:
    """The server commits, and its word of that is lost: what no sidecar can tell from a write that never happened."""
    tenant = await create_tenant(f"l{next(NUMBERS)}", servers[:1], tmp_path)
    async with fault_proxy(servers[0].admin.port) as proxy:
        await through(tenant, proxy.port, retry_percent)
        first, again, seen = await asyncio.to_thread(lose_one, tenant, proxy, kind)
    assert proxy.lost == 1
    if retry_percent:
        assert first.headers["idempotency-replayed"] == "true"
    else:
        problem = first.json["results"][0]["problem"] if kind == "batch" else first.json
        assert (problem["status"], problem["type"].rpartition("/")[2]) == (503, "outcome-unknown")
    assert again.headers["idempotency-replayed"] == "true"
    done = {"create": 201, "put": 200, "patch": 200, "delete": 204, "batch": 200}
    assert again.status == done[kind]
    assert seen == {"create": ["k", "new"], "put": ["new"], "patch": ["k"], "delete": [], "batch": ["k", "new"]}[kind]
    versions = {"put": [2], "patch": [2]}
    assert again.json["version"] == versions[kind][0] if kind in versions else True


def lose_one(tenant: Tenant, proxy: Any, kind: str) -> tuple[Answer, Answer, list[str]]:  # noqa: ANN401
    """The answer to a write of which the commit's was lost, to its repetition, and what is there then."""
    create_new = {"op": "create", "memory": {"content": "new", "user": "mallory"}}
    requests: dict[str, tuple[str, str, object]] = {
        "create": ("POST", "/v1/memories", {"content": "new", "user": "mallory"}),
        "put": ("PUT", "/v1/items?key=k&user=mallory", {"content": "new"}),
        "patch": ("PATCH", "/v1/items?key=k&user=mallory", {"value": {"n": 2}}),
        "delete": ("DELETE", "/v1/items?key=k&user=mallory", None),
        "batch": ("POST", "/v1/batch", {"operations": [create_new]}),
    }
    method, path, body = requests[kind]
    with asking(tenant) as http:
        http("PUT", "/v1/items", {"content": "k"}, key="k", user="mallory")
        proxy.losing = b"COMMIT"
        first = http(method, path, body, headers=KEYED)
    with asking(tenant) as http:
        return first, http(method, path, body, headers=KEYED), sorted(contents(http))


ROUNDS = 8


async def test_after_a_kill_at_any_moment_a_repetition_leaves_one(
    servers: tuple[RealServer, RealServer], tmp_path: Path
) -> None:
    """A sidecar is killed (SIGKILL) while it writes; another one repeats every request that was sent."""
    tenant = await create_tenant(f"k{next(NUMBERS)}", servers, tmp_path)
    sent: list[int] = []
    for number in range(ROUNDS):
        await asyncio.to_thread(kill_one, tenant, number, sent)
    assert len(sent) > ROUNDS
    with_answers = await asyncio.to_thread(repeat_all, tenant, sent)
    assert {answer.status for answer in with_answers} == {201}
    assert any("idempotency-replayed" in answer.headers for answer in with_answers)
    found = {each["content"]: each["count"] for each in await asyncio.to_thread(counted, tenant)}
    assert found == {f"n{number}": 1 for number in sent}


def counted(tenant: Tenant) -> list[Any]:
    with asking(tenant) as http:
        memories: list[str] = []
        for number in range(4):
            memories += contents(http, f"u{number}")
    return [{"content": each, "count": memories.count(each)} for each in set(memories)]


def kill_one(tenant: Tenant, number: int, sent: list[int]) -> None:
    """One sidecar's life: it is killed while four callers write."""
    environ = {
        **os.environ, "ENGRAM_CONFIG_DIR": str(tenant.config_dir), "ENGRAM_HTTP_PORT": "0", "ENGRAM_ADMIN_PORT": "0"
    }  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-m", "engram_sidecar"], env=environ, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        port = next(int(found[1]) for line in process.stderr if (found := re.search(r"serving on port (\d+)", line)))
        threading.Thread(target=process.stderr.read, daemon=True).start()
        answered = threading.Event()

        def write(caller: int) -> None:
            http = Http(port)
            for step in range(1_000):
                mine = number * 10_000 + caller * 1_000 + step
                sent.append(mine)
                try:
                    assert send(http, mine).status == 201
                except OSError:
                    return
                except Exception:  # noqa: BLE001  what http.client says of a connection that ends within an answer
                    return
                answered.set()

        callers = [threading.Thread(target=write, args=(caller,)) for caller in range(4)]
        for caller in callers:
            caller.start()
        assert answered.wait(30)
        process.send_signal(signal.SIGKILL)
        for caller in callers:
            caller.join()


def send(http: Http, number: int) -> Answer:
    body = {"content": f"n{number}", "user": f"u{number % 4}"}
    return http("POST", "/v1/memories", body, headers={"Idempotency-Key": f"key-{number}"})


def repeat_all(tenant: Tenant, sent: list[int]) -> list[Answer]:
    with asking(tenant) as http:
        answers = []
        for number in sent:
            answer = send(http, number)
            while answer.status == 409:  # the killed one's transaction is still there: that is what it says
                answer = send(http, number)
            answers.append(answer)
        return answers


# At the same time


def test_of_many_at_once_one_writes_and_all_are_told_so(tenant: Tenant) -> None:
    answers: list[Answer] = []
    with SidecarThread(settings_of(tenant)).running() as one, SidecarThread(settings_of(tenant)).running() as two:

        def ask(port: int) -> None:
            http = Http(port)
            answers.append(create(http))
            http.close()

        threads = [threading.Thread(target=ask, args=(each.ports.http_port,)) for each in (one, two) * 8]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        http = Http(one.ports.http_port)
        assert contents(http) == [BODY["content"]]
        http.close()
    told = [answer for answer in answers if answer.status == 201]
    assert len({answer.json["id"] for answer in told}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in told) == 1
    assert {answer.status for answer in answers} <= {201, 409}


async def test_while_the_first_runs_its_repetition_is_409_and_then_told(tenant: Tenant) -> None:
    """The first one waits for a row that somebody holds; its repetition does not wait with it."""
    with SidecarThread(settings_of(tenant)).running() as thread:

        def ask(headers: dict[str, str]) -> Answer:
            http = Http(thread.ports.http_port)
            answer = http("PUT", "/v1/items", {"content": "x"}, headers=headers, key="k")
            http.close()
            return answer

        there = await asyncio.to_thread(ask, {})
        async with owner(tenant, int(there.json["shard"][1:])) as holder:
            transaction = holder.transaction()
            await transaction.start()
            await holder.execute("SELECT FROM engram.memories FOR UPDATE")
            first = asyncio.create_task(asyncio.to_thread(ask, KEYED))
            while not await holder.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"):
                pass
            second = await asyncio.to_thread(ask, KEYED)
            await transaction.rollback()
        assert (second.status, second.headers["retry-after"]) == (409, "1")
        assert second.json["type"].endswith("/idempotency-key-in-use")
        assert (await first).json["version"] == 2
        third = await asyncio.to_thread(ask, KEYED)
        assert (third.headers["idempotency-replayed"], third.json) == ("true", (await first).json)


# What is kept


def test_nothing_that_a_caller_wrote_is_kept(tenant: Tenant) -> None:
    with asking(tenant) as http:
        create(http)
        [row] = on_shards(tenant, "SELECT i.*, i::text AS whole FROM engram.idempotency i")
    for word in ("once", "heron", "DE02", "mallory", "/v1"):
        assert word not in row["whole"]
    status, _uuid, version, _created_us = json.loads(row["outcomes"])[0]
    assert (status, version) == (201, 1)


def test_agents_have_keys_of_their_own(tenant: Tenant) -> None:
    answers = []
    for agent in ("one", "two"):
        with SidecarThread(settings_of(tenant, identity=Identity(agent, agent))).running() as thread:
            http = Http(thread.ports.http_port)
            answers.append(create(http))
            http.close()
    assert [answer.json["agent"] for answer in answers] == ["one", "two"]


def test_after_a_day_a_key_is_as_new_and_goes(tenant: Tenant) -> None:
    with asking(tenant) as http:
        first = create(http)
        on_shards(tenant, "UPDATE engram.idempotency SET expires = now()")
        second = create(http)
        assert (second.status, "idempotency-replayed" in second.headers) == (201, False)
        assert second.json["id"] != first.json["id"]
        assert create(http).json == second.json
        [kept] = on_shards(tenant, "SELECT expires - now() AS left FROM engram.idempotency")
        assert 23 * 3600 < kept["left"].total_seconds() <= 24 * 3600


def test_keys_that_expired_go_with_those_that_come_and_with_the_sweep(tenant: Tenant) -> None:
    count = "SELECT count(*) AS rows FROM engram.idempotency HAVING count(*) > 0"

    def send_some(http: Http, numbers: range) -> None:
        for number in numbers:
            assert send(http, 4 * number).status == 201  # of one user, so on one shard

    with asking(tenant) as http:
        send_some(http, range(10))
        on_shards(tenant, "UPDATE engram.idempotency SET expires = now()")
        send_some(http, range(10, 13))
        [left] = on_shards(tenant, count)
        assert left["rows"] == 10 - 3 * 2 + 3

    async def sweep() -> list[bool]:
        due = []
        for server in tenant.servers:
            seen = await tenancy.fetch_tenant(server.admin, tenant.database, tenant.role, 0)
            due.append(seen.is_sweep_due)
            await tenancy.sweep(server.admin, tenant.database, tenant.role, 0)
        return due

    assert sorted(asyncio.run(sweep())) == [False, True]
    [left] = on_shards(tenant, count)
    assert left["rows"] == 3


def test_keys_count_in_the_quota_of_bytes_and_in_none_of_memories(tenant: Tenant) -> None:
    async def limit() -> None:
        for server in tenant.servers:
            step = SetQuota("s0", memories=10**6, bytes=20_000, total_memories=10**6, total_bytes=40_000)
            await tenancy.level_quota(server.admin, tenant.database, tenant.role, step, "seal")

    asyncio.run(limit())
    with asking(tenant) as http:
        answers: list[Answer] = []
        while not answers or answers[-1].status < 300:
            number = len(answers)
            answers.append(
                http("PUT", "/v1/items", {"value": number}, headers={"Idempotency-Key": f"{number}"}, key="k")
            )
        assert (answers[-1].status, answers[-1].json["quota"]) == (507, "bytes")
        assert 40 < len(answers) < 40_000 / 272
        usage = {each["type"]: each for each in http("GET", "/v1/usage").json["types"]}
        assert usage["_idempotency"]["memories"] == 0
        recounted = on_shards(tenant, "SELECT coalesce(sum(size_bytes), 0) AS bytes FROM engram.idempotency")
        assert usage["_idempotency"]["bytes"] == sum(each["bytes"] for each in recounted)
        assert http("PUT", "/v1/items", {"value": 7}, key="k").status == 200  # without a key there is room
        on_shards(tenant, "UPDATE engram.idempotency SET expires = now()")
        assert http("PUT", "/v1/items", {"value": 8}, headers=KEYED, key="k").status == 200


# Shards


def test_of_a_batch_that_was_half_done_the_rest_is_done(servers: tuple[RealServer, RealServer], tmp_path: Path) -> None:
    """One of two shards does not answer, and then it does."""

    async def stage() -> None:
        tenant = await create_tenant(f"h{next(NUMBERS)}", servers, tmp_path)
        async with fault_proxy(servers[1].admin.port) as proxy:
            first, second = tenant.shard_map.shards
            away = replace(second, nodes=(replace(second.nodes[0], port=proxy.port),))
            policy = Policy.from_json((tenant.config_dir / "policy.json").read_text())
            tuned = replace(policy, resilience=replace(policy.resilience, failover_seconds=0))
            write_config(tenant.config_dir, replace(tenant.shard_map, shards=(first, away)), tuned)
            proxy.turn(Fault.RESET)
            before = await asyncio.to_thread(ask)
            proxy.turn(Fault.NONE)
            after = await asyncio.to_thread(ask)
        assert {each["status"] for each in before} == {201, 503}
        assert {each["status"] for each in after} == {201}
        for old, new in zip(before, after, strict=True):
            assert (new.get("replayed", False), old["status"] == 201) in {(True, True), (False, False)}
            if old["status"] == 201:
                assert new["memory"] == old["memory"]

    def ask() -> list[dict[str, Any]]:
        operations = [{"op": "create", "memory": {"content": "x", "user": f"u{number}"}} for number in range(10)]
        settings = Settings(tmp_path, http_port=0, admin_port=0)
        with SidecarThread(settings).running() as thread:
            http = Http(thread.ports.http_port)
            results: list[dict[str, Any]] = http("POST", "/v1/batch", {"operations": operations}, headers=KEYED).json[
                "results"
            ]
            http.close()
        return results

    asyncio.run(stage())


COLUMNS = {
    "memories": "tenant, slot, id, namespace, key, type, user_id, agent_id, session_id, content, value, sealed,"
    " importance, created, updated, expires, archived, version, terms, term_count",
    "idempotency": "tenant, slot, key, asked, outcomes, expires",
}


async def move(tenant: Tenant, shard_map: ShardMap) -> None:
    """Everything of the first shard is on the second, as replication brings it: without triggers; then the map."""
    async with owner(tenant, 0) as source, owner(tenant, 1) as target:
        await target.execute("SET session_replication_role = replica")
        for table, columns in COLUMNS.items():
            rows = await source.fetch(f"SELECT {columns} FROM engram.{table}")
            places = ", ".join(f"${number + 1}" for number in range(columns.count(",") + 1))
            insert = f"INSERT INTO engram.{table} ({columns}) VALUES ({places})"
            await target.executemany(insert, [tuple(row) for row in rows])
    for number, server in enumerate(tenant.servers):
        await publish_map(server.admin, f"s{number}", shard_map)


def test_a_key_is_known_after_its_slot_moved_also_to_a_stale_sidecar(tenant: Tenant) -> None:
    operations = [{"op": "create", "memory": {"content": "x", "user": f"u{number}"}} for number in range(10)]
    with asking(tenant) as http:
        first = http("POST", "/v1/batch", {"operations": operations}, headers=KEYED).json["results"]
        ranges = (SlotRange(0, 16383, "s1"),)
        asyncio.run(move(tenant, replace(tenant.shard_map, epoch=tenant.shard_map.epoch + 1, ranges=ranges)))
        again = http("POST", "/v1/batch", {"operations": operations}, headers=KEYED).json["results"]
        assert {each["memory"]["shard"] for each in first} == {"s0", "s1"}
        assert {(each["replayed"], each["memory"]["shard"]) for each in again} == {(True, "s1")}
        assert [each["memory"]["id"] for each in again] == [each["memory"]["id"] for each in first]


async def test_a_shard_that_lost_the_slot_keeps_and_tells_nothing(tenant: Tenant) -> None:
    async with tenant.servers[0].session(tenant.database, tenant.role) as sidecar, owner(tenant) as administrator:
        keep = "SELECT engram.keep_outcomes(gen_random_uuid(), gen_random_uuid(), ARRAY[5], ARRAY['[[204]]'])"
        await sidecar.execute(keep)
        lost = replace(tenant.shard_map, epoch=tenant.shard_map.epoch + 1, ranges=(SlotRange(0, 16383, "s1"),))
        await publish_map(tenant.servers[0].admin, "s0", lost)
        for asked in (keep, "SELECT * FROM engram.claim_key(gen_random_uuid(), ARRAY[5])"):
            with pytest.raises(asyncpg.PostgresError) as caught:
                await sidecar.execute(asked)
            assert caught.value.sqlstate == "EG001"
        assert await administrator.fetchval("SELECT engram.sweep_keys($1, 10)", tenant.role) == 0
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await sidecar.execute("SELECT FROM engram.idempotency")


# The month turns, under the strategy by month


@asynccontextmanager
async def at(tenant: Tenant, moment: datetime) -> AsyncIterator[Pipeline]:
    """A pipeline to which it is this time."""
    config = read_config(tenant.config_dir)
    store = Store(config.credentials)
    gate = Gate(store, Resilience)
    guard = Guard(gate, Resilience, lambda _: None, lambda _: None)
    world = World(moment.timestamp, asyncio.get_running_loop().time, os.urandom)
    vault = Vault(lambda: config, os.urandom, lambda *_: None)
    try:
        yield Pipeline(guard, InForce(config), vault, no_recall(config, guard), Limits(), world)
    finally:
        await gate.close()
        await store.close()


async def store_once(pipeline: Pipeline, key: str) -> object:
    once = Once(key, ("POST", "/v1/memories", "", "", "digest"))
    ids = await pipeline.ids_for(once)
    outcome, _shard = await pipeline.write_once(
        Put(ids.new_id(Draft()), Draft("x"), Conditions(must_be_absent=True)), once
    )
    return outcome


async def test_a_key_of_last_month_is_known_on_the_first_day_of_the_next(
    servers: tuple[RealServer, RealServer], tmp_path: Path
) -> None:
    tenant = await create_tenant(f"m{next(NUMBERS)}", servers, tmp_path, strategy=Strategy.TIME)
    may, june = datetime(2026, 5, 31, 23, 59, tzinfo=UTC), datetime(2026, 6, 1, 0, 1, tzinfo=UTC)
    async with at(tenant, may) as before, at(tenant, june) as after:
        first = await store_once(before, "k")
        again = await store_once(after, "k")
        assert isinstance(again, Replay)
        assert again.memory == first
        new = await store_once(after, "l")
        assert new.id.slot != again.id.slot  # type: ignore[attr-defined]
        told = await store_once(after, "l")
        assert isinstance(told, Replay)
        assert told.memory == new
        # Who still lives in May comes after it was written in June: it is told to wait until it does too.
        with pytest.raises(IdempotencyKeyInUse):
            await store_once(before, "l")
