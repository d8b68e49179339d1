"""Two tenants on the same shards, apart by HTTP and by raw SQL with each role: 0 foreign rows whatever is asked."""

import asyncio
import itertools
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from engram_contract.policy import Isolation
from engram_operator.clients import tenancy
from engram_operator.clients.postgres import close_databases
from engram_operator.plan.steps import SetQuota
from engram_sidecar.settings import Settings
from tests.harness import PASSWORD, Http, RealServer, SidecarThread, Tenant, create_tenant

OPERATORS_TABLES = ("quota", "loans", "seal", "usage", "sidecars", "audit", "identity", "schema_migrations")
SECRET = "the launch code is 000000"  # noqa: S105  the marker that must stay with its tenant


@dataclass(frozen=True)
class Pair:
    """An owner with memories and an attacker with some of its own, and requests to each one's sidecar."""

    owner: Tenant
    attacker: Tenant
    as_owner: Http
    as_attacker: Http
    ids: tuple[str, ...]
    probes: tuple[Http, ...]


@pytest.fixture(scope="module", params=[Isolation.MODERATE, Isolation.STRICT], ids=lambda level: level.value)
def pair(
    request: pytest.FixtureRequest,
    servers: tuple[RealServer, RealServer],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Pair]:
    """In a shared database, and in a database each."""
    level = request.param
    is_shared = level is Isolation.MODERATE

    async def stage() -> tuple[Tenant, Tenant]:
        tenants = [
            await create_tenant(
                f"{name}-{level.value.lower()}",
                servers,
                tmp_path_factory.mktemp(name),
                database="pair_shared" if is_shared else f"pair_{name}",
                spec={"isolation": level.value},
            )
            for name in ("owner", "attacker")
        ]
        for server in servers:
            await close_databases(server.admin)
        return tenants[0], tenants[1]

    owner, attacker = asyncio.run(stage())
    settings = [Settings(tenant.config_dir, http_port=0, admin_port=0) for tenant in (owner, attacker)]
    with SidecarThread(settings[0]).running() as first, SidecarThread(settings[1]).running() as second:
        as_owner, as_attacker = Http(first.ports.http_port), Http(second.ports.http_port)
        ids = [as_owner("POST", "/v1/memories", {"content": SECRET, "user": f"u{n}"}).json["id"] for n in range(20)]
        ids += [
            as_owner("PUT", "/v1/items", {"content": SECRET}, key=f"k{n}", namespace="n").json["id"] for n in range(20)
        ]
        asyncio.run(leave_traces(owner))
        for number in range(5):
            as_attacker("POST", "/v1/memories", {"content": "mine", "user": f"u{number}"})
        probes = Http(first.ports.admin_port), Http(second.ports.admin_port)
        yield Pair(owner, attacker, as_owner, as_attacker, tuple(ids), probes)
        for each in (as_owner, as_attacker, *probes):
            each.close()


async def leave_traces(owner: Tenant) -> None:
    """The owner's rows in every table that is not of memories: audit, sidecars, quota, loans."""
    for number, server in enumerate(owner.servers):
        async with server.session(owner.database, owner.role) as connection:
            entry = json.dumps([{"at": "2026-01-01T00:00:00Z", "details": SECRET}])
            await connection.execute("SELECT engram.record_audit($1)", entry)
            await connection.execute(f"SELECT engram.report_sidecar('{SECRET}', 'u', '{SECRET}', 1, 1, 1, 1)")
        quota = SetQuota(f"s{number}", 10**6, 10**9, 10**6, 10**9)
        await tenancy.level_quota(server.admin, owner.database, owner.role, quota, SECRET)
        async with server.session(owner.database, owner.role) as connection:
            await connection.execute(f"SELECT engram.lend_quota('s{1 - number}', 5, 5)")


def test_over_http_no_byte_of_the_other_tenant_comes_back(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    http = pair.as_attacker
    forged = [
        {"X-Tenant": pair.owner.role},
        {"Engram-Tenant": pair.owner.role, "Authorization": f"Bearer {PASSWORD}", "X-Forwarded-Host": "localhost"},
        {"Cookie": f"tenant={pair.owner.role}"},
    ]
    answers = [http("GET", f"/v1/memories/{id_}", headers=headers) for id_ in pair.ids for headers in forged]
    assert {answer.status for answer in answers} == {404}
    names = [f"{pair.owner.role}", f"{pair.owner.role}/n", "n\x1f", "*", "%", "../n", "n' OR tenant <> '"]
    answers += [http("GET", "/v1/items", key=f"k{n}", namespace="n") for n in range(20)]
    alike = ("\uff4b0", "k0\u200b", "K0", "k0 ", "k\uff10", "k\u00a00", "\u043a0", "k0\u0301")
    answers += [http("GET", "/v1/items", key=key, namespace=name) for key in alike for name in ("n", "\uff4e")]
    answers += [http("GET", "/v1/memories", user=f"u{n}", limit=1000) for n in range(20)]
    answers += [http("GET", "/v1/memories", namespace=name, limit=1000) for name in names]
    answers += [http("POST", "/v1/search", {"query": "launch code", "user": f"u{n}"}) for n in range(20)]
    answers += [http("POST", "/v1/search", {"query": query, "limit": 100}) for query in ("", "launch code 000000")]
    filters: list[dict[str, Any]] = [
        {"value": {"tenant": pair.owner.role}}, {"value": {'" || $.tenant != "': 1}}, {"key": {"ne": "x"}},
    ]  # fmt: skip
    answers += [http("POST", "/v1/search", {"filter": each, "limit": 100}) for each in filters]
    answers += [http("POST", "/v1/batch", {"operations": [{"op": "get", "id": id_} for id_ in pair.ids]})]
    answers += [http("GET", "/v1/shards", count="true"), http("GET", "/openapi.json")]
    answers += [
        probe(method, path) for probe in pair.probes for method, path in (("GET", "/metrics"), ("GET", "/readyz"))
    ]
    for answer in answers:
        assert SECRET.encode() not in answer.body
        assert pair.owner.role.encode() not in answer.body
    told = [str(record.__dict__) for record in caplog.records]
    assert not any(SECRET in each or pair.owner.role in each for each in told)


def test_over_http_nothing_of_the_other_tenant_changes(pair: Pair) -> None:
    http = pair.as_attacker
    for id_ in pair.ids:
        assert http("DELETE", f"/v1/memories/{id_}").status == 404
        assert http("PATCH", f"/v1/memories/{id_}", {"content": "x"}).status == 404
    http("POST", "/v1/batch", {"operations": [{"op": "delete", "id": id_} for id_ in pair.ids]})
    for id_ in pair.ids:
        answer = pair.as_owner("GET", f"/v1/memories/{id_}").json
        assert (answer["content"], answer["version"]) == (SECRET, 1)


def test_the_same_name_is_another_memory_for_each_tenant(pair: Pair) -> None:
    mine = pair.as_attacker("PUT", "/v1/items", {"content": "mine"}, key="k0", namespace="n").json
    assert mine["id"] not in pair.ids
    assert pair.as_owner("GET", "/v1/items", key="k0", namespace="n").json["content"] == SECRET


async def attack(server: RealServer, tenant: Tenant, database: str) -> Any:  # noqa: ANN401
    return await server.connect(database, tenant.role)


async def test_by_raw_sql_no_foreign_row_is_seen(pair: Pair) -> None:
    """Tables, functions and whatever a client can set: the tenant is the login."""
    if pair.owner.database != pair.attacker.database:
        for server in pair.owner.servers:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await attack(server, pair.attacker, pair.owner.database)
        return
    settings = [
        "SELECT 1",
        f"SELECT set_config('role', '{pair.owner.role}', false)",
        f"SET engram.tenant = '{pair.owner.role}'",
        "SET row_security = off",
        f"SET SESSION AUTHORIZATION {pair.owner.role}",
        f"SET ROLE {pair.owner.role}",
        "SET ROLE engram_owner",
        "SET ROLE engram_tenant",
        "SET search_path = engram, public",
    ]
    reads = [
        "SELECT tenant, content FROM engram.memories",
        "SELECT tenant, '' FROM engram.ownership",
        "SELECT tenant, map::text FROM engram.shard_map",
        f"SELECT '', content FROM engram.list_memories({'null,' * 12} 1000, 9999, 99)",
        f"SELECT '', engram.search_memories('a', '{{}}', '{{}}', 1, 9, {'null,' * 10} 9, 9999, 99)::text",
        f"SELECT tenant, content FROM engram.memories WHERE tenant = '{pair.owner.role}'",
        f"SELECT tenant, content FROM engram.memories WHERE engram.is_owned('{pair.owner.role}', slot)",
        "SELECT tenant, content FROM ONLY engram.memories TABLESAMPLE SYSTEM (100)",
        "SELECT most_common_vals::text, attname FROM pg_stats WHERE schemaname = 'engram'",
        "SELECT '', s::text FROM pg_statistic s",
        "SELECT '', query FROM pg_stat_activity WHERE usename <> current_user",
        "SELECT '', rolpassword FROM pg_authid",
        "SELECT '', pg_read_file('postgresql.conf')",
        "SELECT '', u::text FROM engram.tenant_usage() u",
        "SELECT '', a::text FROM engram.list_audit(100000, null, null) a",
        "SELECT '', engram.lend_quota('s1', 5, 5)::text",
        "SELECT '', engram.loan_token('s1', gen_random_uuid())",
        *(f"SELECT '', t::text FROM engram.{table} t" for table in OPERATORS_TABLES),
        f"SELECT '', engram.quota_left('{pair.owner.role}')::text",
        f"SELECT '', engram.sweep_expired('{pair.owner.role}', 1000)::text",
        "SELECT '', convert_from(lo_get(oid), 'UTF8') FROM pg_largeobject_metadata",
        "SELECT '', data::text FROM pg_largeobject",
        "SELECT '', dblink('dbname=' || current_database(), 'SELECT content FROM engram.memories')::text",
        "SELECT '', f::text FROM pg_ls_dir('.') f",
        "SELECT '', s::text FROM pg_stats_ext s",
        "SELECT '', s::text FROM pg_prepared_statements s",
        "SELECT '', l::text FROM pg_locks l WHERE pid <> pg_backend_pid() AND relation IS NULL AND objid IS NULL",
    ]
    denied = (
        asyncpg.InsufficientPrivilegeError,
        asyncpg.InvalidParameterValueError,
        asyncpg.PostgresSyntaxError,
        asyncpg.UndefinedFunctionError,  # there is no dblink
    )
    for server, setting, read in itertools.product(pair.owner.servers, settings, reads):
        connection = await attack(server, pair.attacker, pair.owner.database)
        try:
            try:
                await connection.execute(setting)
                rows = await connection.fetch(read)
            except denied:
                continue
            text = str([tuple(row) for row in rows])
            assert SECRET not in text, (setting, read)
            if "list_audit" in read:
                continue  # the attacker's own trail tells what the attacker asked for, that name included
            if "pg_stats" not in read or "tenant" in text:
                assert pair.owner.role not in text, (setting, read)
        finally:
            await connection.close()


async def test_by_raw_sql_nothing_foreign_is_changed_and_nothing_is_made(pair: Pair) -> None:
    if pair.owner.database != pair.attacker.database:
        return  # no connection at all: the test above
    role = pair.owner.role
    row = "gen_random_uuid(), '{}', null, 'a', null, null, null, 'x', 'null', null, now(), now(), null, null, 1, '', 0"
    denied = [
        f"INSERT INTO engram.memories SELECT '{role}', 1, {row}",
        f"UPDATE engram.memories SET tenant = '{role}'",
        "DELETE FROM engram.memories",
        "TRUNCATE engram.memories",
        "DROP TABLE engram.memories",
        "ALTER TABLE engram.memories DISABLE ROW LEVEL SECURITY",
        "ALTER TABLE engram.memories DISABLE TRIGGER made",
        "SET session_replication_role = replica",
        f"INSERT INTO engram.ownership VALUES ('{pair.attacker.role}', 0, 16383, 9)",
        "DELETE FROM engram.shard_map",
        "CREATE TABLE engram.mine ()",
        "CREATE TABLE public.mine ()",
        "CREATE TEMP TABLE mine ()",
        "CREATE SCHEMA mine",
        "CREATE FUNCTION engram.f() RETURNS int LANGUAGE sql RETURN 1",
        "CREATE EXTENSION dblink",
        "CREATE ROLE mine",
        f"ALTER ROLE {role} PASSWORD 'x'",
        f"GRANT {role} TO {pair.attacker.role}",
        "CREATE PUBLICATION p FOR ALL TABLES",
        "COPY engram.memories FROM PROGRAM 'true'",
        "COPY engram.memories TO '/tmp/out'",
        *(f"COPY engram.{table} TO STDOUT" for table in OPERATORS_TABLES),
        *(f"DELETE FROM engram.{table}" for table in OPERATORS_TABLES),
        "COPY engram.audit FROM STDIN",
        f"SELECT engram.check_quota('{role}', 1, 1)",
        f"SELECT engram.add_usage('{role}', 'x', -1, -1)",
        f"SELECT engram.take_loan('{role}', 's1', 9, 9)",
        "SELECT engram.count_usage()",
        "CREATE EXTENSION postgres_fdw",
        "SELECT lo_create(0)",
        "LISTEN x; SELECT pg_advisory_lock(1)",
        "SELECT engram.check_fence()",
        "SELECT engram.tenant_size() FROM pg_sleep(0), lo_import('/etc/passwd')",
    ]
    server = pair.owner.servers[0]
    connection = await attack(server, pair.attacker, pair.owner.database)
    for statement in denied:
        with pytest.raises(asyncpg.PostgresError):
            await connection.execute(statement)
    update = f"UPDATE engram.memories SET content = 'x' WHERE tenant = '{role}'"
    assert await connection.execute(update) == "UPDATE 0"
    for id_ in pair.ids:
        remove = "SELECT FROM engram.delete_memory($1, $2, NULL, '{}')"
        assert await connection.fetch(remove, int(id_[:4], 16), UUID(id_[5:])) == []
    await connection.close()
    for id_ in pair.ids:
        assert pair.as_owner("GET", f"/v1/memories/{id_}").json["content"] == SECRET


BLOCKING_MODES = ("SHARE UPDATE EXCLUSIVE", "SHARE", "SHARE ROW EXCLUSIVE", "EXCLUSIVE", "ACCESS EXCLUSIVE")


async def lockable(server: RealServer, tenant: Tenant) -> list[str]:
    """What the tenant's login can lock so that others have to wait."""
    relations = (
        "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname !~ '^pg_(toast|temp)' ORDER BY 1"
    )
    found = []
    async with server.session(tenant.database, tenant.role) as connection:
        names = [name for (name,) in await connection.fetch(relations)]
        assert {"engram.memories", "engram.shard_map", "pg_class"} <= set(names)
        for name, mode in itertools.product(names, BLOCKING_MODES):
            with suppress(asyncpg.InsufficientPrivilegeError):
                async with connection.transaction():
                    await connection.execute(f"LOCK TABLE {name} IN {mode} MODE NOWAIT")
                    found.append(f"{name} {mode}")
    return found


async def test_no_table_can_be_locked_against_others(pair: Pair) -> None:
    for server in pair.attacker.servers:
        assert await lockable(server, pair.attacker) == []


async def test_no_table_can_be_locked_against_others_on_the_oldest_server(server16: RealServer, tmp_path: Path) -> None:
    assert await lockable(server16, await create_tenant("locker", [server16], tmp_path)) == []


@pytest.mark.parametrize(
    "column",
    [*(f"{name} = repeat('x', 8193)" for name in ("key", "type", "user_id", "agent_id", "session_id")),
     "key = repeat('x', 4096), type = repeat('x', 4097)", "namespace = ARRAY['a', repeat('x', 8192)]",
     "namespace = array_fill(''::text, ARRAY[8200])", "namespace = array_fill(NULL::text, ARRAY[8200])"],
)  # fmt: skip
async def test_what_no_quota_counts_is_short(pair: Pair, column: str) -> None:
    async with pair.attacker.servers[0].session(pair.attacker.database, pair.attacker.role) as connection:
        with pytest.raises(asyncpg.CheckViolationError, match="names_are_short"):
            await connection.execute(f"UPDATE engram.memories SET {column}")


async def test_a_query_cannot_fill_the_disk_that_all_share(pair: Pair) -> None:
    async with pair.attacker.servers[0].session(pair.attacker.database, pair.attacker.role) as connection:
        assert await connection.fetchval("SHOW temp_file_limit") == "1GB"
        for more in ("SET temp_file_limit = -1", "ALTER ROLE current_user SET temp_file_limit = -1"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(more)
        await connection.execute("ALTER ROLE current_user RESET ALL")
    async with pair.attacker.servers[0].session(pair.attacker.database, pair.attacker.role) as connection:
        assert await connection.fetchval("SHOW temp_file_limit") == "1GB"


async def look(connection: Any, of: str, id_: str) -> int:  # noqa: ANN401
    """How many pages it takes to find nothing at a memory's slot."""
    text = await connection.fetchval(
        "EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) SELECT content FROM engram.memories"
        f" WHERE tenant = current_user::text AND slot = {int(of[:4], 16)} AND id = '{id_}'"
    )
    plan = json.loads(text)[0]["Plan"]
    assert plan["Actual Rows"] == 0
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


async def test_a_foreign_memory_costs_exactly_what_one_costs_that_nobody_has(pair: Pair) -> None:
    """No timing to measure: the index is entered by the caller's own tenant, so both look-ups touch the same pages."""
    if pair.owner.database != pair.attacker.database:
        return  # no connection at all
    pages: dict[str, set[int]] = {"theirs": set(), "nobody's": set()}
    for server in pair.owner.servers:
        async with server.session(pair.owner.database, pair.attacker.role) as connection:
            await look(connection, pair.ids[0], str(uuid4()))  # a session's first look reads the catalogs too
            for of in pair.ids:
                pages["theirs"].add(await look(connection, of, of[5:]))
                pages["nobody's"].add(await look(connection, of, str(uuid4())))
    assert pages["theirs"] == pages["nobody's"]


async def test_no_tenant_role_owns_or_may_become_anything(pair: Pair) -> None:
    for server in pair.owner.servers:
        async with server.session(pair.owner.database) as connection:
            rights = await connection.fetch(
                "SELECT rolsuper, rolcreaterole, rolcreatedb, rolbypassrls, rolreplication FROM pg_roles"
                " WHERE rolname LIKE 't\\_%' OR rolname LIKE 'engram\\_%'"
            )
            assert not any(any(row) for row in rights)
            assert await connection.fetchval("SELECT rolcanlogin FROM pg_roles WHERE rolname = 'engram_owner'") is False
            members = await connection.fetch(
                "SELECT roleid::regrole::text AS of, set_option FROM pg_auth_members"
                " WHERE member::regrole::text LIKE 't\\_%'"
            )
            assert {(row["of"], row["set_option"]) for row in members} == {("engram_tenant", False)}
            owned = "SELECT count(*) FROM pg_class WHERE pg_get_userbyid(relowner) LIKE 't\\_%'"
            assert await connection.fetchval(owned) == 0
            open_tables = (
                "SELECT array_agg(relname) FROM pg_class WHERE relnamespace = 'engram'::regnamespace AND relkind = 'r'"
                " AND NOT relrowsecurity AND has_table_privilege('engram_tenant', oid, 'SELECT')"
            )
            assert await connection.fetchval(open_tables) is None
