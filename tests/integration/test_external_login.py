"""A server of somebody else's, whose login for us may create roles and databases and is no superuser."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from engram_contract.names import SHARED_DATABASE, tenant_role
from engram_operator.clients import logins, postgres, tenancy
from engram_operator.clients.connection import Admin
from engram_operator.errors import StatementRefused
from engram_operator.plan.quotas import sum_of
from engram_operator.plan.steps import SetQuota
from engram_sidecar.settings import Settings
from tests.harness import PASSWORD, Http, RealServer, SidecarThread, create_tenant, server_folder

LOGIN = "engram_ops"
QUOTA = SetQuota("s0", 10, 1 << 20, 10, 1 << 20)


@pytest.fixture(scope="module", params=[16, 18])
def server(request: pytest.FixtureRequest) -> Iterator[RealServer]:
    """A new server as its owner hands it over: its superuser is not told to us."""
    with server_folder() as folder:
        made = RealServer.create(folder / "theirs", request.param)
        asyncio.run(_create_login(made))
        yield replace(made, admin=replace(made.admin, user=LOGIN))
        made.stop("immediate")


async def _create_login(server: RealServer) -> None:
    async with server.session("postgres") as connection:
        await connection.execute(f"CREATE ROLE {LOGIN} LOGIN CREATEDB CREATEROLE PASSWORD '{PASSWORD}'")


@pytest.mark.parametrize("isolation", ["Moderate", "Strict"])
async def test_it_is_enough_for_the_whole_life_of_a_tenant(server: RealServer, isolation: str, tmp_path: Path) -> None:
    role = tenant_role("agents", isolation.lower())
    database = SHARED_DATABASE if isolation == "Moderate" else role
    await create_tenant(isolation.lower(), [server], tmp_path, database=database)
    await tenancy.level_quota(server.admin, database, role, QUOTA, "seal")

    def store() -> int:
        with SidecarThread(Settings(tmp_path, http_port=0, admin_port=0)).running() as thread:
            http = Http(thread.ports.http_port)
            assert http("PUT", "/v1/items", {"content": "kept", "ttl_s": 3600}, key="one").status == 201
            assert http("DELETE", "/v1/items", key="one").status == 204
            found = [http("PUT", "/v1/items", {"content": "kept"}, key=f"{each}").status for each in range(11)]
            http.close()
        return found.count(201)

    assert await asyncio.to_thread(store) == 10
    seen = await tenancy.fetch_tenant(server.admin, database, role, 60)
    assert sum_of(seen.holding.used).memories == 10
    assert seen.altered == ()

    session = await server.connect(database, role)
    await session.execute("SET idle_in_transaction_session_timeout = 0; BEGIN; SELECT FROM engram.memories")
    await tenancy.sweep(server.admin, database, role, 60, transaction_s=0.0)
    with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.AdminShutdownError)):
        await session.fetchval("SELECT 1")
    async with server.session(database, role) as own:
        await own.execute(f"ALTER ROLE {role} SET search_path = pg_temp")
    altered = (await tenancy.fetch_tenant(server.admin, database, role, 60)).altered
    assert altered == ("its setting search_path",)

    assert await logins.shut_out(server.admin, role)
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
        await server.connect(database, role)
    await postgres.apply_tenant(server.admin, database, role, "another")
    (await server.connect(database, role, "another")).terminate()
    assert await tenancy.erase_tenant(server.admin, database, role) == 10
    await assert_gone(server.admin, role)


async def test_a_database_that_is_being_vacuumed_goes(server: RealServer, tmp_path: Path) -> None:
    """`DROP DATABASE ... WITH (FORCE)` is refused then to who is no superuser: the worker is nobody's."""
    role = await create_strict(server, "vacuumed", tmp_path)
    async with owned(server).session(role) as owner:
        await owner.execute("CREATE TABLE public.large AS SELECT repeat('x', 1000) FROM generate_series(1, 10000)")
        slow = "autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1, autovacuum_vacuum_threshold = 0"
        await owner.execute(f"ALTER TABLE public.large SET ({slow}); DELETE FROM public.large")
        asked = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'autovacuum worker'"
        found = 0
        for _ in range(1200):  # a minute, where the worker starts within a second
            found = await owner.fetchval(f"{asked} AND query LIKE '%large%'", role)
            if found:
                break
            await asyncio.sleep(0.05)
        assert found == 1
    assert await tenancy.erase_tenant(server.admin, role, role) == 0
    await assert_gone(server.admin, role)


async def test_a_database_that_somebody_else_uses_stays_and_is_told(server: RealServer, tmp_path: Path) -> None:
    role = await create_strict(server, "used", tmp_path)
    async with owned(server).session(role):
        with pytest.raises(StatementRefused, match="is being accessed by other users"):
            await tenancy.erase_tenant(server.admin, role, role)
    assert await tenancy.erase_tenant(server.admin, role, role) == 0
    await assert_gone(server.admin, role)


async def create_strict(server: RealServer, name: str, folder: Path) -> str:
    """The role, and so the database, of a new tenant that has one of its own."""
    role = tenant_role("agents", name)
    await create_tenant(name, [server], folder, database=role)
    return role


def owned(server: RealServer) -> RealServer:
    """The server as its owner uses it."""
    return replace(server, admin=replace(server.admin, user="postgres"))


async def assert_gone(admin: Admin, role: str) -> None:
    """Neither the role nor a database of its name is there."""
    connection = await asyncpg.connect(
        host=admin.host, port=admin.port, user=admin.user, password=admin.password, database="postgres"
    )
    assert await connection.fetchval("SELECT count(*) FROM pg_roles WHERE rolname = $1", role) == 0
    assert await connection.fetchval("SELECT count(*) FROM pg_database WHERE datname = $1", role) == 0
    await connection.close()
