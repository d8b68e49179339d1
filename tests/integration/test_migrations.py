"""Migrations against real servers: from nothing, twice, killed in the middle, and never on somebody else's database."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from engram_cli.account import find_account
from engram_cli.embedded import Programs, installed
from engram_operator.clients.postgres import Migrated, ShardIdentity, apply_tenant, available_migrations, migrate
from engram_operator.errors import DatabaseUnreachable, ForeignDatabase
from engram_operator.plan.migrations import MigrationConflict
from tests.harness import CLUSTER, PASSWORD, RealServer, server_folder, wait_ended

IDENTITY = ShardIdentity(CLUSTER, "s0")
NEWEST = len(available_migrations())


async def catalog(server: RealServer, database: str) -> list[tuple[str, ...]]:
    """Every object of the schema with its owner and rights, in order."""
    async with server.session(database) as connection:
        rows = await connection.fetch(
            "SELECT 'relation', c.relname, c.relkind::text, pg_get_userbyid(c.relowner), c.relacl::text,"
            "       c.relrowsecurity::text FROM pg_class c WHERE c.relnamespace = 'engram'::regnamespace"
            " UNION ALL SELECT 'function', p.proname, md5(p.prosrc), pg_get_userbyid(p.proowner), p.proacl::text,"
            "       p.prosecdef::text FROM pg_proc p WHERE p.pronamespace = 'engram'::regnamespace"
            "       AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')"
            " UNION ALL SELECT 'policy', polname, polcmd::text, pg_get_expr(polqual, polrelid), '', '' FROM pg_policy"
            " ORDER BY 1, 2, 3"
        )
        return [tuple(str(column) for column in row) for row in rows]


@pytest.mark.parametrize("version", [18, 16])
async def test_an_empty_server_gets_the_whole_schema_and_a_second_run_changes_nothing(
    version: int, servers: tuple[RealServer, RealServer], server16: RealServer
) -> None:
    server = {18: servers[0], 16: server16}[version]
    first = await migrate(server.admin, f"fresh{version}", IDENTITY)
    assert first == Migrated(tuple(m.name for m in available_migrations()), NEWEST, has_vector=True)
    before = await catalog(server, f"fresh{version}")
    assert await migrate(server.admin, f"fresh{version}", IDENTITY) == Migrated((), NEWEST, has_vector=True)
    assert await catalog(server, f"fresh{version}") == before


@pytest.fixture(scope="module", params=[18, 16])
def server_without_vector(request: pytest.FixtureRequest) -> Iterator[RealServer]:
    """A Postgres whose installation lacks pgvector."""
    version: int = request.param
    with server_folder() as folder:
        account, _ = find_account()
        install = installed(version)
        copy = folder / "programs" / install.parent.name / install.name
        shutil.copytree(install, copy, symlinks=True)
        libraries = install.parent.with_name(f"{install.parent.name}.libs")
        shutil.copytree(libraries, folder / "programs" / libraries.name)
        for part in (*copy.rglob("vector*.sql"), *copy.rglob("vector.control"), *copy.rglob("vector.so")):
            part.unlink()
        for each in (folder / "programs", *(folder / "programs").rglob("*")):
            each.chmod(0o755 if each.is_dir() or os.access(each, os.X_OK) else 0o644)
        server = RealServer.create(folder / "plain", version, Programs(copy / "bin", version, account))
        yield server
        server.stop("immediate")


async def test_without_pgvector_everything_but_the_vector_leg_is_there(
    server_without_vector: RealServer, servers: tuple[RealServer, RealServer], server16: RealServer
) -> None:
    complete = {18: servers[0], 16: server16}[server_without_vector.programs.version]
    assert (await migrate(server_without_vector.admin, "plain", IDENTITY)).has_vector is False
    assert (await migrate(complete.admin, "with_vector", IDENTITY)).has_vector is True
    assert await catalog(server_without_vector, "plain") == await catalog(complete, "with_vector")


async def test_a_killed_migration_is_taken_up_by_the_next_run(servers: tuple[RealServer, RealServer]) -> None:
    """Each round kills the migrating process a little later, from before its first statement to after its last."""
    server = servers[0]
    await migrate(server.admin, "reference", IDENTITY)
    reference = await catalog(server, "reference")
    script = textwrap.dedent(f"""
        import asyncio, sys
        from engram_operator.clients.connection import Admin
        from engram_operator.clients.postgres import ShardIdentity, migrate
        admin = Admin("127.0.0.1", {server.admin.port}, "postgres", {PASSWORD!r})
        print("started", flush=True)
        asyncio.run(migrate(admin, sys.argv[1], ShardIdentity({CLUSTER!r}, "s0")))
        print("done", flush=True)
    """)
    unfinished = 0
    for round_number in range(12):
        database = f"killed{round_number}"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, database, stdout=subprocess.PIPE, env=dict(os.environ)
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"started\n"
        try:
            async with asyncio.timeout(0.02 * (round_number + 1)):
                await process.wait()
        except TimeoutError:
            unfinished += 1
            process.send_signal(signal.SIGKILL)
            await process.wait()
        assert (await migrate(server.admin, database, IDENTITY)).schema_version == NEWEST
        assert await catalog(server, database) == reference
    assert unfinished > 0, "every round ended before it was killed: kill earlier"


async def test_two_operators_at_once_apply_each_migration_once(servers: tuple[RealServer, RealServer]) -> None:
    results = await asyncio.gather(*(migrate(servers[0].admin, "raced", IDENTITY) for _ in range(4)))
    assert sorted(len(result.applied) for result in results) == [0, 0, 0, NEWEST]


async def test_a_migration_waits_for_what_is_in_hand_and_ends_a_tenants_endless_transaction(
    servers: tuple[RealServer, RealServer],
) -> None:
    """Who waits for a lock of a whole table makes everybody else wait behind it."""
    server, role, first = servers[0], f"t_{uuid4().hex}", available_migrations()[0]
    await prepare(
        server,
        "older",
        "CREATE SCHEMA engram; CREATE TABLE engram.identity (cluster text NOT NULL, shard text NOT NULL);"
        " CREATE TABLE engram.schema_migrations (number int PRIMARY KEY, name text NOT NULL, checksum text NOT NULL)",
        f"INSERT INTO engram.identity VALUES ('{CLUSTER}', 's0')",
        f"BEGIN; {first.sql} COMMIT",
        f"INSERT INTO engram.schema_migrations VALUES (1, '{first.name}', '{first.checksum}')",
    )
    await apply_tenant(server.admin, "older", role, PASSWORD)
    async with server.session("older", role) as connection:
        await connection.execute("SET idle_in_transaction_session_timeout = 0; BEGIN")
        await connection.fetch("SELECT * FROM engram.memories")
        waiting = asyncio.create_task(migrate(server.admin, "older", IDENTITY, answered_s=60.0))
        await asyncio.sleep(1.0)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.wait([waiting])
        assert await connection.fetchval("SELECT 1") == 1
        assert (await migrate(server.admin, "older", IDENTITY, answered_s=0.0)).schema_version == NEWEST
        await wait_ended(server, connection.get_server_pid())


async def prepare(server: RealServer, database: str, *statements: str) -> None:
    async with server.session("postgres") as connection:
        await connection.execute(f"CREATE DATABASE {database}")
    async with server.session(database) as connection:
        for statement in statements:
            await connection.execute(statement)


@pytest.mark.parametrize(
    ("database", "statements", "reason"),
    [
        ("theirs", ["CREATE TABLE orders (id int)"], "holds public.orders, which is not Engram's"),
        ("lookalike", ["CREATE SCHEMA engram"], "a schema `engram` that Engram did not make"),
        ("half", ["CREATE SCHEMA engram", "CREATE TABLE engram.memories ()"], "that Engram did not make"),
    ],
)
async def test_a_database_that_is_not_ours_is_refused_and_left_alone(
    servers: tuple[RealServer, RealServer], database: str, statements: list[str], reason: str
) -> None:
    await prepare(servers[0], database, *statements)
    query = "SELECT oid, relname FROM pg_class ORDER BY oid"
    async with servers[0].session(database) as connection:
        before = await connection.fetch(query)
    with pytest.raises(ForeignDatabase, match=reason):
        await migrate(servers[0].admin, database, IDENTITY)
    async with servers[0].session(database) as connection:
        assert await connection.fetch(query) == before


@pytest.mark.parametrize(
    "identity", [ShardIdentity(CLUSTER, "s1"), ShardIdentity("99999999-0000-4000-8000-000000000000", "s0")]
)
async def test_the_database_of_another_shard_or_cluster_is_refused(
    servers: tuple[RealServer, RealServer], identity: ShardIdentity
) -> None:
    await migrate(servers[0].admin, "of_s0", IDENTITY)
    with pytest.raises(ForeignDatabase, match=r"belongs to shard s0 of cluster 1111.*not to shard"):
        await migrate(servers[0].admin, "of_s0", identity)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("INSERT INTO engram.schema_migrations VALUES (9999, '9999_pre_x', 'x')", "migration 9999, this version"),
        ("UPDATE engram.schema_migrations SET checksum = 'x'", "with another text"),
    ],
)
async def test_a_database_of_another_version_is_refused(
    servers: tuple[RealServer, RealServer], change: str, reason: str
) -> None:
    database = f"other{len(change)}"
    await migrate(servers[0].admin, database, IDENTITY)
    async with servers[0].session(database) as connection:
        await connection.execute(change)
    with pytest.raises(MigrationConflict, match=reason):
        await migrate(servers[0].admin, database, IDENTITY)


async def test_a_server_that_is_not_there_is_told_from_one_that_refuses(tmp_path: Path) -> None:
    from engram_operator.clients.connection import Admin  # noqa: PLC0415

    with pytest.raises(DatabaseUnreachable, match=r"127\.0\.0\.1:1/postgres"):
        await migrate(Admin("127.0.0.1", 1, "postgres", "x"), "any", IDENTITY)
