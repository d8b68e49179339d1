"""Two tenants on the same shards, apart by HTTP and by raw SQL with each role: 0 foreign rows whatever is asked."""

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest

from engram_contract.policy import Isolation
from engram_operator.clients.postgres import close_databases
from engram_sidecar.settings import Settings
from tests.harness import PASSWORD, Http, RealServer, SidecarThread, Tenant, create_tenant

SECRET = "the launch code is 000000"  # noqa: S105  the marker that must stay with its tenant


@dataclass(frozen=True)
class Pair:
    """An owner with memories and an attacker with some of its own, and requests to each one's sidecar."""

    owner: Tenant
    attacker: Tenant
    as_owner: Http
    as_attacker: Http
    ids: tuple[str, ...]


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
        for number in range(5):
            as_attacker("POST", "/v1/memories", {"content": "mine", "user": f"u{number}"})
        yield Pair(owner, attacker, as_owner, as_attacker, tuple(ids))
        as_owner.close()
        as_attacker.close()


def test_over_http_no_byte_of_the_other_tenant_comes_back(pair: Pair) -> None:
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
    for answer in answers:
        assert SECRET.encode() not in answer.body
        assert pair.owner.role.encode() not in answer.body


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
        "SELECT '', content FROM engram.list_memories(null,null,null,null,null,null,null,null,null,null,1000,9999,99)",
        "SELECT '', engram.search_memories('a','{}','{}',1,9,null,null,null,null,null,null,null,null,9,9999,99)::text",
        f"SELECT tenant, content FROM engram.memories WHERE tenant = '{pair.owner.role}'",
        f"SELECT tenant, content FROM engram.memories WHERE engram.is_owned('{pair.owner.role}', slot)",
        "SELECT tenant, content FROM ONLY engram.memories TABLESAMPLE SYSTEM (100)",
        "SELECT most_common_vals::text, attname FROM pg_stats WHERE schemaname = 'engram'",
        "SELECT '', s::text FROM pg_statistic s",
        "SELECT '', query FROM pg_stat_activity WHERE usename <> current_user",
        "SELECT '', rolpassword FROM pg_authid",
        "SELECT '', pg_read_file('postgresql.conf')",
    ]
    denied = (asyncpg.InsufficientPrivilegeError, asyncpg.InvalidParameterValueError, asyncpg.PostgresSyntaxError)
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
        "TRUNCATE engram.memories",
        "DROP TABLE engram.memories",
        "ALTER TABLE engram.memories DISABLE ROW LEVEL SECURITY",
        "ALTER TABLE engram.memories DISABLE TRIGGER fence",
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
        "SELECT engram.check_fence()",
        "SELECT engram.tenant_size() FROM pg_sleep(0), lo_import('/etc/passwd')",
    ]
    server = pair.owner.servers[0]
    connection = await attack(server, pair.attacker, pair.owner.database)
    for statement in denied:
        with pytest.raises(asyncpg.PostgresError):
            await connection.execute(statement)
    for statement in (
        f"UPDATE engram.memories SET content = 'x' WHERE tenant = '{role}'",
        f"DELETE FROM engram.memories WHERE tenant = '{role}'",
    ):
        assert (await connection.execute(statement)).endswith(" 0")
    await connection.close()
    for id_ in pair.ids:
        assert pair.as_owner("GET", f"/v1/memories/{id_}").json["content"] == SECRET


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
