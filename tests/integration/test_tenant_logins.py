"""A tenant's login against real servers: what the tenant changes of it is set right, and who is shut out is out."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from uuid import uuid4

import asyncpg
import pytest

from engram_contract.names import OWNER_ROLE, ROTATE_ANNOTATION, SHARED_DATABASE
from engram_operator.clients import postgres, tenancy
from engram_operator.clients.connection import Admin
from engram_operator.clients.logins import TEMPORARY_FILES
from tests.harness import RealServer, wait_ended
from tests.tenant_stage import Servers, Stage, own_session

SETTINGS = "SELECT setconfig FROM pg_db_role_setting WHERE setrole = $1::regrole"


async def settings_of(server: RealServer, role: str) -> list[str]:
    """What is set for the role, in any database."""
    async with server.session("postgres") as connection:
        return [each for row in await connection.fetch(SETTINGS, role) for each in row["setconfig"]]


# ------------------------------------------------------------------------------- what a tenant changes of its own login


@pytest.mark.parametrize("word", ["'mine'", "NULL", "'SCRAM-SHA-256$4096:AAAA$AAAA:AAAA'"])
async def test_a_password_that_the_tenant_changed_is_set_again(servers: Servers, word: str) -> None:
    stage = Stage(servers)
    await stage.settle()
    password, generation = stage.credentials.passwords[0], stage.credentials.generation
    async with own_session(servers[0], stage) as connection:
        await connection.execute(f"ALTER ROLE {stage.role} PASSWORD {word}")
    assert not await stage.can_login(password)
    outcome = await stage.run()
    assert outcome.again_s == 60.0, "who does it again and again keeps nobody busy"
    assert await stage.can_login(password)
    assert (stage.credentials.passwords, stage.credentials.generation) == ((password,), generation)
    told = [each for each in stage.events() if each.startswith("LoginMended")]
    assert len(told) == 1
    assert "s0" in told[0]
    assert "its password" in told[0]
    assert password not in told[0]
    assert (await stage.run()).result == "settled"
    assert stage.ready() == ("True", "Ready")


async def test_a_password_changed_in_the_middle_of_a_rotation_does_not_keep_it_from_its_end(servers: Servers) -> None:
    stage = Stage(servers)
    await stage.settle()
    stage.annotations = {ROTATE_ANNOTATION: "one"}
    stage.apply()
    await stage.settle()
    async with own_session(servers[0], stage) as connection:
        await connection.execute(f"ALTER ROLE {stage.role} PASSWORD 'mine'")
        stage.now_s += 300
        await stage.run()
        await connection.execute(f"ALTER ROLE {stage.role} PASSWORD 'mine again'")
    await stage.settle()
    (password,) = stage.credentials.passwords
    assert await stage.can_login(password)


async def test_what_a_tenant_set_for_its_login_is_reset_and_sessions_that_have_it_end(servers: Servers) -> None:
    stage = Stage(servers)
    await stage.settle()
    changes = (
        "SET default_transaction_isolation = 'serializable'",
        "SET search_path = 'pg_temp'",
        f"IN DATABASE {stage.status()['database']} SET statement_timeout = '1ms'",
        "IN DATABASE postgres SET role = 'engram_tenant'",
    )
    for change in changes:
        async with own_session(servers[0], stage) as connection:
            await connection.execute(f"ALTER ROLE {stage.role} {change}")
        async with own_session(servers[0], stage) as spoilt:
            pid = spoilt.get_server_pid()
            await stage.run()
            await wait_ended(servers[0], pid)
        assert await settings_of(servers[0], stage.role) == [TEMPORARY_FILES], change
        assert await stage.can_login(stage.credentials.passwords[0])
    assert any("its setting statement_timeout" in each for each in stage.events())
    async with own_session(servers[1], stage) as undisturbed:
        await stage.run()
        assert await undisturbed.fetchval("SELECT current_setting('statement_timeout')") == "0"


async def test_a_tenant_cannot_say_that_its_login_is_right(servers: Servers) -> None:
    stage = Stage(servers)
    await stage.settle()
    async with own_session(servers[0], stage) as connection:
        for statement in (
            f"COMMENT ON ROLE {stage.role} IS 'x'",
            f"ALTER ROLE {stage.role} CONNECTION LIMIT 1",
            f"ALTER ROLE {stage.role} VALID UNTIL '2000-01-01'",
            f"REVOKE engram_tenant FROM {stage.role}",
            "SELECT rolpassword FROM pg_authid",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)


@asynccontextmanager
async def weak_admin(server: RealServer, role: str) -> AsyncIterator[Admin]:
    """An administrator who is no superuser, of a server that is prepared, for one tenant."""
    name = f"weak_{uuid4().hex[:8]}"
    async with server.session(SHARED_DATABASE) as connection:
        await connection.execute(f"CREATE ROLE {name} LOGIN CREATEROLE CREATEDB PASSWORD 'weak'")
        await connection.execute(f"GRANT {OWNER_ROLE}, pg_signal_backend TO {name}")
        await connection.execute(f"GRANT SELECT ON engram.schema_migrations TO {name}")  # it would have made it itself
        await connection.execute(f"GRANT {role} TO {name} WITH ADMIN TRUE, INHERIT TRUE")
        try:
            yield replace(server.admin, user=name, password="weak")  # noqa: S106  of one test
        finally:
            await connection.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


async def test_who_may_not_read_verifiers_still_sees_settings(servers: Servers) -> None:
    """An administrator of an External server need not be a superuser."""
    stage = Stage(servers, isolation="Moderate")
    await stage.settle()
    async with own_session(servers[0], stage) as connection:
        await connection.execute(f"ALTER ROLE {stage.role} SET search_path = 'x'")
        await connection.execute(f"ALTER ROLE {stage.role} PASSWORD 'mine'")
    async with weak_admin(servers[0], stage.role) as admin:
        told = await tenancy.fetch_tenant(admin, stage.status()["database"], stage.role, 0)
    assert told.mark != ""
    assert told.altered == ("its setting search_path",)


async def test_a_login_from_before_verifiers_were_remembered_is_prepared_once(servers: Servers) -> None:
    stage = Stage(servers)
    await stage.settle()
    async with servers[0].session("postgres") as connection:
        said = await connection.fetchval("SELECT shobj_description($1::regrole, 'pg_authid')", stage.role)
        await connection.execute(f"COMMENT ON ROLE {stage.role} IS '{said.split()[0]}'")
    assert any(line.startswith("prepare role") for line in (await stage.run()).done)
    assert (await stage.settle()).result == "settled"
    assert [each for each in stage.events() if each.startswith("LoginMended")] == []


async def test_no_password_is_in_a_statement(servers: Servers) -> None:
    """A server may log statements."""
    role, password = f"t_{uuid4().hex}", "not to be seen"
    async with servers[0].session("postgres") as connection:
        await connection.execute("ALTER ROLE postgres SET log_statement = 'ddl'")
    try:
        await postgres.apply_tenant(servers[0].admin, "engram", role, password)
    finally:
        async with servers[0].session("postgres") as connection:
            await connection.execute("ALTER ROLE postgres RESET log_statement")
    log = servers[0].server.log.read_text()
    assert f"ALTER ROLE {role}" in log
    assert password not in log
