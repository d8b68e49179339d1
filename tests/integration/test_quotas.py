"""Quotas on real servers: never more than one tenant's quota over all shards, whoever writes, in whatever order."""

import asyncio
import json
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import asyncpg
import pytest

from engram_contract.names import QUOTA_SQLSTATE, SHARED_DATABASE
from engram_contract.policy import Quota
from engram_operator.clients import postgres, tenancy
from engram_operator.plan.quotas import Amount, plan_quotas, sum_of
from engram_operator.plan.steps import SetQuota
from tests.harness import PASSWORD, RealServer, Tenant, create_tenant, wait_ended

SEAL: Final = "known to the shards alone"
Servers = tuple[RealServer, RealServer]
LEND: Final = "SELECT engram.lend_quota('s1', $1, $2)"
WORD: Final = "SELECT engram.loan_token('s1', $1)"
INSERT: Final = (
    "INSERT INTO engram.memories (tenant, slot, id, namespace, type, content, value, created, updated, version, terms,"
    " term_count, expires) SELECT current_user, $1, gen_random_uuid(), '{}', $2, $3, 'null', now(), now(), 1, '', 0, $4"
)


async def tenant_on(servers: Servers, folder: Path, memories: int, storage_bytes: int = 10**6) -> Tenant:
    """A tenant over both servers with this quota."""
    tenant = await create_tenant(f"q{uuid4().hex[:8]}", servers, folder)
    await level(tenant, memories, storage_bytes)
    return tenant


async def level(tenant: Tenant, memories: int, storage_bytes: int = 10**6) -> list[str]:
    """The operator's part: once around, what it did."""
    order = [f"s{number}" for number in range(len(tenant.servers))]
    by_id = dict(zip(order, tenant.servers, strict=True))
    place = (tenant.database, tenant.role)
    seen = {shard: (await tenancy.fetch_tenant(server.admin, *place, 0)).holding for shard, server in by_id.items()}
    steps = list(plan_quotas(Quota(memories, storage_bytes, 10), order, seen))
    for step in steps:
        await tenancy.level_quota(by_id[step.shard].admin, *place, step, SEAL)
    return [type(step).__name__ for step in steps]


def slot_on(tenant: Tenant, shard: int) -> int:
    return tenant.shard_map.ranges_of(f"s{shard}")[0].first


async def insert(connection: Any, tenant: Tenant, shard: int, content: str = "x", kind: str = "episodic") -> None:  # noqa: ANN401
    await connection.execute(INSERT, slot_on(tenant, shard), kind, content, None)


async def lend(tenant: Tenant, memories: int, size_bytes: int) -> str | None:
    """A token of s0 for s1."""
    async with tenant.servers[1].session(tenant.database) as connection:
        life = await connection.fetchval("SELECT life FROM engram.quota WHERE tenant = $1", tenant.role)
    async with tenant.servers[0].session(tenant.database, tenant.role) as home:
        await home.fetchval(LEND, memories, size_bytes)
        token: str | None = await home.fetchval(WORD, life)
        return token


async def remove(connection: Any, which: str = "true") -> None:  # noqa: ANN401
    chosen = f"(SELECT slot, id FROM engram.memories WHERE {which}) chosen"
    await connection.execute(f"SELECT engram.delete_memory(slot, id, NULL, '{{}}') FROM {chosen}")


async def used(tenant: Tenant) -> Amount:
    found = [await tenancy.fetch_tenant(server.admin, tenant.database, tenant.role, 0) for server in tenant.servers]
    return sum((sum_of(each.holding.used) for each in found), Amount())


async def counted(tenant: Tenant) -> Amount:
    """What really lies there."""
    total = Amount()
    for server in tenant.servers:
        async with server.session(tenant.database) as connection:
            row = await connection.fetchrow(
                "SELECT count(*) AS memories,"
                " coalesce(sum(octet_length(content) + octet_length(value::text)), 0)::bigint AS bytes"
                " FROM engram.memories WHERE tenant = $1",
                tenant.role,
            )
            total += Amount(row["memories"], row["bytes"])
    return total


async def test_the_last_place_is_taken_once(servers: Servers, tmp_path: Path) -> None:
    tenant = await tenant_on(servers, tmp_path, 20)
    refused: list[dict[str, Any]] = []

    async def write() -> None:
        async with servers[0].session(tenant.database, tenant.role) as connection:
            for _ in range(6):
                try:
                    await insert(connection, tenant, 0)
                except asyncpg.PostgresError as error:
                    refused.append({"sqlstate": error.sqlstate, **json.loads(error.detail or "{}")})

    await asyncio.gather(*(write() for _ in range(8)))
    assert await counted(tenant) == await used(tenant)
    assert (await used(tenant)).memories == 20
    assert len(refused) == 28
    UUID(refused[0].pop("life"))
    assert refused[0] == {
        "sqlstate": QUOTA_SQLSTATE,
        "what": "memories",
        "limit": 20,
        "short_memories": 1,
        "short_bytes": 0,
    }


async def test_what_open_transactions_store_counts_too(servers: Servers, tmp_path: Path) -> None:
    """Six that see nothing of each other, each with a third of the quota, and stay open while others get further."""
    tenant = await tenant_on(servers, tmp_path, 30_000)
    bulk = INSERT + " FROM generate_series(1, $5::int)"
    may_end = asyncio.Event()

    async def write() -> None:
        with suppress(asyncpg.PostgresError):
            async with servers[0].session(tenant.database, tenant.role) as connection, connection.transaction():
                for size in (1, 8_000, 999):
                    await connection.execute(bulk, slot_on(tenant, 0), "episodic", "x", None, size)
                await may_end.wait()

    tasks = [asyncio.create_task(write()) for _ in range(6)]
    await asyncio.wait(tasks, timeout=2)
    may_end.set()
    await asyncio.gather(*tasks)
    assert await counted(tenant) == await used(tenant)
    assert 9_000 <= (await used(tenant)).memories <= 30_000


async def test_what_was_set_aside_is_called_back_for_who_needs_it(servers: Servers, tmp_path: Path) -> None:
    """A writer of another type that holds its row: what it has not used yet is given, once it has ended."""
    tenant = await tenant_on(servers, tmp_path, 1_000)
    async with (
        servers[0].session(tenant.database, tenant.role) as holder,
        servers[0].session(tenant.database, tenant.role) as writer,
    ):
        async with holder.transaction():
            await insert(writer, tenant, 0, kind="held")
            await insert(holder, tenant, 0, kind="held")
            bulk = INSERT + " FROM generate_series(1, $5::int)"
            task = asyncio.create_task(writer.execute(bulk, slot_on(tenant, 0), "episodic", "x", None, 998))
            done, _ = await asyncio.wait([task], timeout=0.2)
            assert not done
        await task
        assert (await used(tenant)).memories == 1_000
        with pytest.raises(asyncpg.PostgresError, match="quota of 1000 memories"):
            await insert(holder, tenant, 0)


async def test_bytes_are_counted_and_an_update_that_does_not_grow_still_goes(servers: Servers, tmp_path: Path) -> None:
    tenant = await tenant_on(servers, tmp_path, 10, 100)
    async with servers[0].session(tenant.database, tenant.role) as connection:
        await insert(connection, tenant, 0, "x" * 96)  # and four for `null`
        for content in ("y" * 96, "z"):
            await connection.execute("UPDATE engram.memories SET content = $1", content)
            await insert(connection, tenant, 0, "a" * 60) if content == "z" else None
        with pytest.raises(asyncpg.PostgresError) as grown:
            await connection.execute("UPDATE engram.memories SET content = content || $1", "w" * 40)
        assert grown.value.sqlstate == QUOTA_SQLSTATE
        assert json.loads(grown.value.detail or "")["what"] == "bytes"
        await remove(connection)
    assert await used(tenant) == Amount(0, 0)


async def test_usage_is_what_lies_there_whatever_was_done(servers: Servers, tmp_path: Path) -> None:
    tenant = await tenant_on(servers, tmp_path, 10_000)
    token = await lend(tenant, 5_000, 500_000)
    async with servers[1].session(tenant.database, tenant.role) as other:
        await other.fetchval("SELECT engram.borrow_quota($1)", token)

    async def work(number: int) -> None:
        async with servers[number % 2].session(tenant.database, tenant.role) as connection:
            for turn in range(10):
                with suppress(ZeroDivisionError, asyncpg.DeadlockDetectedError):
                    async with connection.transaction():
                        await insert(connection, tenant, number % 2, "x" * number, f"type-{turn % 3}")
                        await connection.execute("UPDATE engram.memories SET content = content || 'y', type = 'type-0'")
                        if turn == 7:
                            await remove(connection, "type = 'type-2'")
                        assert 1 / (turn - 5)  # rolled back

    await asyncio.gather(*(work(number) for number in range(8)))
    assert await counted(tenant) == await used(tenant)
    async with servers[0].session(tenant.database, tenant.role) as connection:
        told = await connection.fetch("SELECT * FROM engram.tenant_usage()")
        really = await connection.fetch(
            "SELECT type, count(*) AS memories, sum(octet_length(content) + octet_length(value::text))::bigint AS bytes"
            " FROM engram.memories GROUP BY type ORDER BY type"
        )
    assert [tuple(row) for row in told] == [tuple(row) for row in really]


async def test_expired_memories_make_room(servers: Servers, tmp_path: Path) -> None:
    tenant = await tenant_on(servers, tmp_path, 3)
    async with servers[0].session(tenant.database, tenant.role) as connection:
        for _ in range(3):
            await connection.execute(
                INSERT.replace("$4", "now() - $4 * interval '1 second'"), slot_on(tenant, 0), "episodic", "x", 5.0
            )
        await insert(connection, tenant, 0)
    assert await counted(tenant) == await used(tenant) == Amount(1, 5)


async def test_a_shard_borrows_what_another_does_not_use(servers: Servers, tmp_path: Path) -> None:
    tenant = await tenant_on(servers, tmp_path, 10)
    async with (
        servers[0].session(tenant.database, tenant.role) as home,
        servers[1].session(tenant.database, tenant.role) as other,
    ):
        with pytest.raises(asyncpg.PostgresError):
            await insert(other, tenant, 1)
        token = await lend(tenant, 4, 100)
        for granted in ((5, 500_000), (0, 0)):  # half of what is free; a token that comes twice changes nothing
            assert tuple(await other.fetchrow("SELECT * FROM engram.borrow_quota($1)", token)) == granted
        for _ in range(5):
            await insert(other, tenant, 1)
            await insert(home, tenant, 0)
        for connection, shard in ((home, 0), (other, 1)):
            with pytest.raises(asyncpg.PostgresError, match="quota of 10 memories"):
                await insert(connection, tenant, shard)
        token = await lend(tenant, 4, 0)
        assert (await other.fetchrow("SELECT * FROM engram.borrow_quota($1)", token))["memories"] == 0
        # It never arrives, but the next one brings it; or the operator does.
        await remove(home, "true LIMIT 2")
        await lend(tenant, 1, 0)
        token = await lend(tenant, 1, 0)
        assert (await other.fetchrow("SELECT * FROM engram.borrow_quota($1)", token))["memories"] == 2
    assert await counted(tenant) == await used(tenant) == Amount(8, 40)


async def test_nobody_writes_himself_a_loan(servers: Servers, tmp_path: Path) -> None:
    tenant = await tenant_on(servers, tmp_path, 10)
    stranger = await tenant_on(servers, tmp_path / "b", 10)
    async with (
        servers[0].session(tenant.database, tenant.role) as home,
        servers[1].session(tenant.database, tenant.role) as other,
        servers[1].session(stranger.database, stranger.role) as foreign,
    ):
        token = await lend(tenant, 4, 100)
        assert token is not None
        role, _, _, life, _, _, mark = token.split("|")
        forged = (
            f"{role}|s0|s1|{life}|9|100|{mark}",
            f"{role}|s0|s1|{life}|4|100|",
            f"{role}|s0|s1|{life}|4|100",
            f"{role}|s1|s1|{life}|4|100|{mark}",
            "||||||",
            "",
            None,
        )
        for connection, texts in ((other, forged), (foreign, (token,)), (home, (token,))):
            for text in texts:
                with pytest.raises(asyncpg.PostgresError, match="no such loan"):
                    await connection.fetchrow("SELECT * FROM engram.borrow_quota($1)", text)
        for call in ("give_loan('x', 's0', 1, 1)", "take_loan('x', 's0', 1, 1)", "quota_left('x')", "signed('x')"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await other.fetch(f"SELECT engram.{call}")
        for table in ("quota", "loans", "seal", "usage", "sidecars", "audit", "identity"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await other.fetch(f"SELECT * FROM engram.{table}")


async def test_a_token_is_worth_nothing_to_a_tenant_of_the_same_name(servers: Servers, tmp_path: Path) -> None:
    """Erased and made anew: both shards forgot what had been lent, so the old word would be quota out of nothing."""
    tenant = await tenant_on(servers, tmp_path, 10)
    token = await lend(tenant, 5, 100)
    for server in servers:
        await tenancy.erase_tenant(server.admin, tenant.database, tenant.role)
    for number, server in enumerate(servers):
        await postgres.apply_tenant(server.admin, tenant.database, tenant.role, PASSWORD)
        await postgres.publish_map(server.admin, f"s{number}", tenant.shard_map)
    await level(tenant, 10)
    async with servers[1].session(tenant.database, tenant.role) as other:
        with pytest.raises(asyncpg.PostgresError, match="no such loan"):
            await other.fetchrow("SELECT * FROM engram.borrow_quota($1)", token)
        lent = await other.fetchrow("SELECT * FROM engram.borrow_quota($1)", await lend(tenant, 5, 100))
    assert tuple(lent) == (5, 500_000)
    before = str(await lend(tenant, 1, 100)).split("|")[3]
    assert "SetQuota" in await level(tenant, 12)
    assert str(await lend(tenant, 1, 100)).split("|")[3] == before, "another quota is no other life"


async def test_nothing_is_lent_to_who_is_no_shard_of_the_tenants(servers: Servers, tmp_path: Path) -> None:
    """It could never give it back."""
    tenant = await tenant_on(servers, tmp_path, 10)
    async with servers[0].session(tenant.database, tenant.role) as home:
        assert await home.fetchval(LEND.replace("'s1'", "'s9'"), 4, 100) is False
        assert await home.fetchval(WORD.replace("'s1'", "'s9'"), uuid4()) is None
        assert await home.fetchval(LEND, 4, 100) is True
    seen = await tenancy.fetch_tenant(servers[0].admin, tenant.database, tenant.role, 0)
    assert {*seen.holding.lent} == {"s1"}


async def test_writers_of_several_types_near_the_limit_do_not_wait_for_each_other_in_a_circle(
    servers: Servers, tmp_path: Path
) -> None:
    """Each statement stores one of each type, in another order; what is refused is refused by the quota alone."""
    tenant = await tenant_on(servers, tmp_path, 300)
    types, stored, refusals = ["a", "b", "c"], 0, set[str | None]()

    async def write(number: int) -> None:
        nonlocal stored
        order = types[number % 3 :] + types[: number % 3]
        rows = INSERT.replace("$2, $3", "kind, $3") + "::timestamptz FROM unnest($2::text[]) kind"
        async with servers[0].session(tenant.database, tenant.role) as connection:
            for _ in range(40):
                try:
                    await connection.execute(rows, slot_on(tenant, 0), order, "x", None)
                    stored += 1
                except asyncpg.PostgresError as error:
                    refusals.add(error.sqlstate)

    await asyncio.gather(*(write(number) for number in range(6)))
    assert (stored, refusals) == (100, {QUOTA_SQLSTATE})
    assert await counted(tenant) == await used(tenant) == Amount(300, 1500)


async def test_search_terms_are_no_way_to_store_without_being_counted(servers: Servers, tmp_path: Path) -> None:
    tenant = await tenant_on(servers, tmp_path, 10)
    async with servers[0].session(tenant.database, tenant.role) as connection:
        many = "(SELECT array_to_tsvector(array_agg(gen_random_uuid()::text)) FROM generate_series(1, $3::text::int))"
        for number, is_taken in (("200", True), ("9000", False)):
            row = connection.execute(INSERT.replace("1, ''", f"1, {many}"), slot_on(tenant, 0), "a", number, None)
            if is_taken:
                await row
                continue
            with pytest.raises(asyncpg.CheckViolationError, match="terms_are_short"):
                await row
        with pytest.raises(asyncpg.CheckViolationError, match="terms_are_short"):
            await connection.execute(
                f"UPDATE engram.memories SET terms = {many.replace('$3::text', 'repeat($1, 1)')}", "9000"
            )


async def test_a_loan_that_is_undone_is_worth_nothing(servers: Servers, tmp_path: Path) -> None:
    """Its word may be out already: so only what is committed is told, to who wrote nothing in the same transaction."""
    tenant = await tenant_on(servers, tmp_path, 10)
    async with servers[0].session(tenant.database, tenant.role) as home:
        for begin in ("BEGIN", "BEGIN; SAVEPOINT a"):
            await home.execute(begin)
            await home.fetchval(LEND, 4, 100)
            if "SAVEPOINT" in begin:
                await home.execute("ROLLBACK TO SAVEPOINT a")
            with pytest.raises(asyncpg.PostgresError, match="no such loan"):
                await home.fetchval(WORD, uuid4())
            await home.execute("ROLLBACK")
        assert await home.fetchval(WORD, uuid4()) is None


async def test_what_was_there_before_the_turn_is_not_lent_again(servers: Servers, tmp_path: Path) -> None:
    tenant = await tenant_on(servers, tmp_path, 10)
    async with (
        servers[0].session(tenant.database, tenant.role) as old,
        servers[0].session(tenant.database, tenant.role) as other,
    ):
        await old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await old.fetchval("SELECT count(*) FROM engram.memories")
        for _ in range(10):
            await insert(other, tenant, 0)
        with pytest.raises(asyncpg.PostgresError, match="READ COMMITTED"):
            await old.fetchval(LEND, 10, 100)


@pytest.mark.parametrize("arguments", ["-1, 1", "NULL, 1", "1, NULL"])
async def test_a_loan_of_nonsense_is_refused(servers: Servers, tmp_path: Path, arguments: str) -> None:
    tenant = await tenant_on(servers, tmp_path, 10)
    async with servers[0].session(tenant.database, tenant.role) as connection:
        with pytest.raises(asyncpg.PostgresError, match="no such loan"):
            await connection.fetchval(f"SELECT engram.lend_quota('s1', {arguments})")


async def test_what_was_used_and_is_not_any_more_leaves_no_rows(servers: Servers, tmp_path: Path) -> None:
    tenant = await tenant_on(servers, tmp_path, 1_000)
    place = (servers[0].admin, tenant.database, tenant.role)
    rows = "SELECT type, sum(memories)::int FROM engram.usage WHERE tenant = $1 GROUP BY type"
    async with (
        servers[0].session(tenant.database, tenant.role) as connection,
        servers[0].session(tenant.database) as looker,
    ):
        for number in range(20):
            await insert(connection, tenant, 0, kind=f"type-{number}")
        assert not (await tenancy.fetch_tenant(*place, 0)).is_sweep_due
        await remove(connection, "type <> 'type-7'")
        assert (await tenancy.fetch_tenant(*place, 0)).is_sweep_due
        async with connection.transaction():
            await insert(connection, tenant, 0, kind="type-3")
            await tenancy.sweep(*place, 0)
        assert dict(await looker.fetch(rows, tenant.role)) == {"type-7": 1, "type-3": 1}
        assert not (await tenancy.fetch_tenant(*place, 0)).is_sweep_due
    assert await counted(tenant) == await used(tenant)


async def test_the_audit_keeps_no_time_that_cannot_be_and_is_swept_by_the_servers_clock(
    servers: Servers, tmp_path: Path
) -> None:
    tenant = await tenant_on(servers, tmp_path, 10)
    place = (servers[0].admin, tenant.database, tenant.role)
    told = ["infinity", "-infinity", "9999-12-31T00:00:00Z", "0001-01-01T00:00:00Z", "2026-01-01T00:00:00Z", "now"]
    async with servers[0].session(tenant.database, tenant.role) as connection:
        for at in told:
            await connection.execute("SELECT engram.record_audit($1)", json.dumps([{"at": at}]))
        for wrong in ('[{"at": null}]', "[{}]", '[{"at": "NaN"}]', "{}", "[1]", "1"):
            with pytest.raises(asyncpg.PostgresError):
                await connection.execute("SELECT engram.record_audit($1)", wrong)
        kept = await connection.fetch("SELECT * FROM engram.list_audit(100, NULL, NULL)")
        now = await connection.fetchval("SELECT now()")
    assert len(kept) == len(told)
    assert max(entry["at"] for entry in kept) - now < timedelta(days=1)
    assert min(entry["at"] for entry in kept) == datetime(2000, 1, 1, tzinfo=UTC)
    assert not (await tenancy.fetch_tenant(*place, 3600)).is_sweep_due
    async with servers[0].session(tenant.database) as connection:
        await connection.execute(
            "UPDATE engram.audit SET recorded = now() - interval '2 hours' WHERE tenant = $1 AND number IN"
            " (SELECT number FROM engram.audit WHERE tenant = $1 ORDER BY number LIMIT 4)",
            tenant.role,
        )
    assert (await tenancy.fetch_tenant(*place, 3600)).is_sweep_due
    await tenancy.sweep(*place, 3600)
    assert not (await tenancy.fetch_tenant(*place, 3600)).is_sweep_due
    async with servers[0].session(tenant.database, tenant.role) as connection:
        assert len(await connection.fetch("SELECT * FROM engram.list_audit(100, NULL, NULL)")) == 2


async def test_a_transaction_without_end_is_ended(servers: Servers, tmp_path: Path) -> None:
    tenant = await tenant_on(servers, tmp_path, 10)
    neighbour = await tenant_on(servers, tmp_path / "n", 10)
    place = (servers[0].admin, tenant.database, tenant.role)
    async with (
        servers[0].session(tenant.database, tenant.role) as connection,
        servers[0].session(tenant.database, neighbour.role) as other,
    ):
        for each in (connection, other):
            await each.execute("SET idle_in_transaction_session_timeout = 0; BEGIN")
            await each.fetchval("SELECT count(*) FROM engram.memories")
        assert not (await tenancy.fetch_tenant(*place, 0)).is_sweep_due
        assert await tenancy.sweep(*place, 0) == 0
        await connection.fetchval("SELECT 1")
        assert (await tenancy.fetch_tenant(*place, 0, transaction_s=0)).is_sweep_due
        await tenancy.sweep(*place, 0, transaction_s=0)
        with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.AdminShutdownError)):
            await connection.fetchval("SELECT 1")
        assert await other.fetchval("SELECT 1") == 1


async def test_an_open_transaction_of_the_tenants_holds_up_neither_its_quota_nor_its_map(
    servers: Servers, tmp_path: Path
) -> None:
    tenant = await tenant_on(servers, tmp_path, 10)
    newer = replace(tenant.shard_map, epoch=tenant.shard_map.epoch + 1)
    place = (servers[0].admin, tenant.database, tenant.role)

    async def raise_quota(answered_s: float) -> None:
        await tenancy.level_quota(*place, SetQuota("s0", 12, 10**6, 12, 10**6), SEAL, answered_s)

    async def publish(answered_s: float) -> None:
        await postgres.publish_map(servers[0].admin, "s0", newer, answered_s)

    for held_up in (raise_quota, publish):
        async with servers[0].session(tenant.database, tenant.role) as connection:
            await connection.execute("SET idle_in_transaction_session_timeout = 0; BEGIN")
            await connection.execute("SELECT 1")
            await insert(connection, tenant, 0)
            waiting = asyncio.create_task(held_up(60.0))
            await asyncio.sleep(1.0)
            assert not waiting.done()
            await connection.execute("COMMIT; BEGIN")
            await waiting
            assert await connection.fetchval("SELECT 1") == 1, "what a sidecar has in hand is waited for"
            await insert(connection, tenant, 0)
            await held_up(0.0)
            await wait_ended(servers[0], connection.get_server_pid())


async def test_the_operator_carries_lost_loans_and_takes_back_what_a_smaller_quota_leaves(
    servers: Servers, tmp_path: Path
) -> None:
    tenant = await tenant_on(servers, tmp_path, 10)
    assert await level(tenant, 10) == []
    await lend(tenant, 8, 100)
    assert await level(tenant, 10) == ["CarryLoan"]
    assert await level(tenant, 5) == ["SetQuota", "SetQuota", "LendBack"]
    assert await level(tenant, 5) == ["CarryLoan"]
    assert await level(tenant, 5) == []
    async with servers[1].session(tenant.database, tenant.role) as other:
        with pytest.raises(asyncpg.PostgresError, match="quota of 5 memories"):
            await insert(other, tenant, 1)
    assert await level(tenant, 7) == ["SetQuota", "SetQuota"]


async def test_a_tenant_without_a_quota_has_nothing_to_lend_and_no_limit(servers: Servers, tmp_path: Path) -> None:
    tenant = await create_tenant(f"q{uuid4().hex[:8]}", servers, tmp_path)
    async with servers[0].session(tenant.database, tenant.role) as connection:
        assert await connection.fetchval(LEND, 4, 100) is False
        for _ in range(3):
            await insert(connection, tenant, 0)


@pytest.mark.parametrize("database", [SHARED_DATABASE, "own"])
async def test_an_erased_tenant_leaves_nothing_and_its_neighbours_alone(
    servers: Servers, tmp_path: Path, database: str
) -> None:
    neighbour = await tenant_on(servers, tmp_path / "n", 10)
    name = f"e{uuid4().hex[:8]}"
    tenant = await create_tenant(name, servers, tmp_path, database=f"own_{name}" if database == "own" else database)
    await level(tenant, 10)
    for each in (tenant, neighbour):
        async with servers[0].session(each.database, each.role) as connection:
            for _ in range(3):
                await insert(connection, each, 0)
            await connection.execute('SELECT engram.record_audit(\'[{"at": "2026-01-01T00:00:00Z"}]\')')
            await connection.execute(
                "SELECT engram.keep_outcomes(gen_random_uuid(), gen_random_uuid(), ARRAY[5], ARRAY['[[204]]'])"
            )
            await connection.execute("SELECT engram.report_sidecar('pod', 'uid', 'agent', 1, 1, 1, 1)")
    for again in range(2):
        assert await tenancy.erase_tenant(servers[0].admin, tenant.database, tenant.role) == (None if again else 3)
    async with servers[0].session("postgres") as connection:
        roles = {row["rolname"] for row in await connection.fetch("SELECT rolname FROM pg_roles")}
        databases = {row["datname"] for row in await connection.fetch("SELECT datname FROM pg_database")}
    assert tenant.role not in roles
    assert SHARED_DATABASE in databases
    assert (tenant.database in databases) is (database == SHARED_DATABASE)
    async with servers[0].session(SHARED_DATABASE) as connection:
        tables = await connection.fetch(
            "SELECT relname FROM pg_class WHERE relnamespace = 'engram'::regnamespace AND relkind = 'r'"
        )
        for (table,) in tables:
            text = await connection.fetchval(f"SELECT coalesce(string_agg(t::text, ' '), '') FROM engram.{table} t")
            assert tenant.role not in text, table
            assert neighbour.role in text or table in ("seal", "identity", "schema_migrations", "loans"), table
    async with servers[0].session(neighbour.database, neighbour.role) as connection:
        await insert(connection, neighbour, 0)
