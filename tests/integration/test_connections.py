"""Connections are few and kept between requests, and a statement is prepared once on each."""

import asyncio

from engram_sidecar.store import CONNECTIONS_PER_NODE
from tests.harness import Http, SidecarThread, Tenant

REQUESTS = 200


async def sessions_so_far(tenant: Tenant) -> int:
    """How many sessions the tenant's database on the first shard ever had."""
    async with tenant.servers[0].session("postgres") as connection:
        query = "SELECT sessions FROM pg_stat_database WHERE datname = $1"
        return int(await connection.fetchval(query, tenant.database))


async def log_every_statement(tenant: Tenant, value: str) -> None:
    async with tenant.servers[0].session("postgres") as connection:
        await connection.execute(f"ALTER SYSTEM SET log_min_duration_statement = {value}")
        await connection.execute("SELECT pg_reload_conf()")


def work(http: Http) -> None:
    for number in range(REQUESTS):
        http("PUT", "/v1/items", {"content": "x"}, key=f"connections-{number % 7}")
        http("GET", "/v1/items", key=f"connections-{number % 7}")
        http("POST", "/v1/search", {"query": "connections"})


def test_hundreds_of_requests_open_no_more_connections_than_the_pools_hold(
    tenant: Tenant, sidecar: SidecarThread, http: Http
) -> None:
    before = asyncio.run(sessions_so_far(tenant))
    work(http)
    after = asyncio.run(sessions_so_far(tenant))
    assert after - before <= CONNECTIONS_PER_NODE
    admin = Http(sidecar.ports.admin_port)
    open_now = [line for line in admin("GET", "/metrics").body.splitlines() if line.startswith(b"active_memory_conn")]
    assert float(open_now[0].split()[1]) <= CONNECTIONS_PER_NODE * len(tenant.servers)
    admin.close()


def test_a_statement_is_parsed_once_on_a_connection(tenant: Tenant, http: Http) -> None:
    """With every duration logged, the server names each parse; a statement that is prepared again shows up again."""
    work(http)  # every statement of the work has been met on every connection that is open
    asyncio.run(log_every_statement(tenant, "0"))
    log = tenant.servers[0].server.log
    start = log.stat().st_size
    try:
        work(http)
        lines = log.read_bytes()[start:].decode(errors="replace").splitlines()
    finally:
        asyncio.run(log_every_statement(tenant, "-1"))
    executed = [line for line in lines if " execute " in line]
    parsed = [line for line in lines if " parse " in line]
    assert len(executed) > REQUESTS / 4, "the log shows nothing: this test would pass whatever happened"
    assert len(parsed) <= 20 * CONNECTIONS_PER_NODE
