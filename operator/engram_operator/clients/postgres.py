"""The control plane's door to Postgres: databases, migrations, tenants and maps of one shard.

Promises
1. Every function may be repeated; a crash at any line leaves a state from which the same call goes on.
2. A database that is not this cluster's and this shard's is never changed.
3. A map is never replaced by an older one, and ownership changes only under the tenant's exclusive fence lock.
"""

import re
import secrets
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final

import asyncpg

from engram_contract.names import TENANT_GROUP_ROLE
from engram_contract.shardmap import ShardMap
from engram_operator.clients.connection import (
    MAINTENANCE_DATABASE,
    MIGRATION_LOCK,
    Admin,
    Connection,
    alone,
    connection_to,
    quoted,
)
from engram_operator.clients.logins import ANSWERED_S, comment_of, end_sessions, reset_settings, unhindered
from engram_operator.clients.roles import scram_verifier
from engram_operator.errors import FenceBusy, ForeignDatabase, StaleEpoch
from engram_operator.plan.migrations import Migration, in_order, plan_migrations
from engram_operator.plan.roles import mark_of

FENCE_WAIT_S: Final = 2.0  # writes wait behind a raised fence, so give up before they time out
_ROLE: Final = re.compile(r"t_[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class ShardIdentity:
    """Whose database it is: the cluster's unique id and the shard's id within it."""

    cluster: str
    shard: str


@dataclass(frozen=True, slots=True)
class Migrated:
    """What a database is now. `applied` are the names of what was applied by this call."""

    applied: tuple[str, ...]
    schema_version: int
    has_vector: bool


@cache
def available_migrations() -> tuple[Migration, ...]:
    """All migrations of this version, in order."""
    folder = resources.files("engram_operator") / "migrations"
    return in_order({f.name: f.read_text("utf-8") for f in folder.iterdir() if f.name.endswith(".sql")})


async def migrate(
    admin: Admin,
    database: str,
    identity: ShardIdentity,
    *,
    with_post: bool = True,
    answered_s: float = ANSWERED_S,
) -> Migrated:
    """Brings the database to this version's schema, creating it if it is missing.

    A tenant's transaction that is in the way and older than `answered_s` ends: others wait behind who waits.

    Raises ForeignDatabase, MigrationConflict (ValueError) or DatabaseUnreachable.
    """
    async with alone(admin) as maintenance:
        await _create_database(maintenance, database)
        return await _migrate_alone(admin, database, identity, with_post=with_post, answered_s=answered_s)


async def _migrate_alone(
    admin: Admin, database: str, identity: ShardIdentity, *, with_post: bool, answered_s: float
) -> Migrated:
    async with connection_to(admin, database) as connection:
        # Here too: the server goes on with the statement of an operator that was killed, after its idle sessions ended.
        await connection.execute("SELECT pg_advisory_lock($1)", MIGRATION_LOCK)
        applied = await _fetch_applied(connection, identity)
        plan = plan_migrations(available_migrations(), applied, with_post=with_post)
        for migration in plan:
            async with unhindered(admin, connection, None, answered_s):
                await _apply_migration(connection, migration, identity)
        has_vector = await _ensure_vector(connection)
        version = max([*applied, *(m.number for m in plan)], default=0)
        return Migrated(tuple(m.name for m in plan), version, has_vector)


async def has_database(connection: Connection, database: str) -> bool:
    """Whether the server has a database of this name."""
    found = await connection.fetchval("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", database)
    return bool(found)


async def read_schema(connection: Connection) -> str:
    """The name of the last migration of this database; empty if it has no schema of ours."""
    if not await connection.fetchval("SELECT to_regclass('engram.schema_migrations') IS NOT NULL"):
        return ""
    name = await connection.fetchval("SELECT name FROM engram.schema_migrations ORDER BY number DESC LIMIT 1")
    return str(name or "")


async def _create_database(connection: Connection, database: str) -> None:
    if not await has_database(connection, database):
        await connection.execute(f"CREATE DATABASE {quoted(database)} TEMPLATE template0 ENCODING 'UTF8'")


async def drop_database(connection: Connection, database: str) -> None:
    """The database goes, with whoever this login may send away."""
    try:
        await connection.execute(f"DROP DATABASE {quoted(database)} WITH (FORCE)")
    except asyncpg.InsufficientPrivilegeError:
        # Who is no superuser may not end a worker of autovacuum so; without FORCE the server ends it itself, and waits
        # 5 s for other sessions before it refuses (dbcommands.c: dropdb, CountOtherDBBackends).
        await connection.execute(f"DROP DATABASE {quoted(database)}")


async def _fetch_applied(connection: Connection, identity: ShardIdentity) -> dict[int, str]:
    """Number -> checksum of what was applied; empty for an empty database. Raises ForeignDatabase."""
    if not await connection.fetchval("SELECT to_regnamespace('engram') IS NOT NULL"):
        stranger = await connection.fetchval(
            "SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%'"
            " AND c.relkind IN ('r', 'p', 'v', 'm', 'f')"
            " ORDER BY 1 LIMIT 1"
        )
        if stranger is not None:
            reason = f"the database holds {stranger}, which is not Engram's: give Engram a database of its own"
            raise ForeignDatabase(reason)
        return {}
    if not await connection.fetchval("SELECT to_regclass('engram.identity') IS NOT NULL"):
        reason = "the database has a schema `engram` that Engram did not make"
        raise ForeignDatabase(reason)
    owner = await connection.fetchrow("SELECT cluster, shard FROM engram.identity")
    if owner is None or (owner["cluster"], owner["shard"]) != (identity.cluster, identity.shard):
        found = "nobody" if owner is None else f"shard {owner['shard']} of cluster {owner['cluster']}"
        reason = f"the database belongs to {found}, not to shard {identity.shard} of cluster {identity.cluster}"
        raise ForeignDatabase(reason)
    rows = await connection.fetch("SELECT number, checksum FROM engram.schema_migrations")
    return {row["number"]: row["checksum"] for row in rows}


async def _apply_migration(connection: Connection, migration: Migration, identity: ShardIdentity) -> None:
    async with connection.transaction():
        if migration.number == 1:
            await connection.execute(
                "CREATE SCHEMA engram;"
                " CREATE TABLE engram.identity (cluster text NOT NULL, shard text NOT NULL);"
                " CREATE TABLE engram.schema_migrations (number int PRIMARY KEY, name text NOT NULL,"
                " checksum text NOT NULL, applied timestamptz NOT NULL DEFAULT now())"
            )
            await connection.execute("INSERT INTO engram.identity VALUES ($1, $2)", identity.cluster, identity.shard)
        await connection.execute(migration.sql)
        await connection.execute("RESET ROLE")
        await connection.execute(
            "INSERT INTO engram.schema_migrations (number, name, checksum) VALUES ($1, $2, $3)",
            migration.number,
            migration.name,
            migration.checksum,
        )


async def _ensure_vector(connection: Connection) -> bool:
    """True if pgvector is there. Not a migration: an image may bring it later."""
    available = "SELECT 1 FROM pg_available_extensions WHERE name = 'vector'"
    if not await connection.fetchval(available):
        return False
    try:
        await connection.execute("CREATE EXTENSION IF NOT EXISTS vector WITH SCHEMA engram")
    except asyncpg.InsufficientPrivilegeError:
        return False  # an external server whose login may not: search goes on without the vector leg
    return True


async def apply_tenant(admin: Admin, database: str, role: str, password: str) -> None:
    """The tenant's role exists with this password and may use this database, and no other; it has our settings.

    Sessions that began with what the tenant had set for itself end: their requests would fail.
    Raises ValueError for a name that is not a tenant's role, DatabaseUnreachable.
    """
    if _ROLE.fullmatch(role) is None:
        reason = f"{role!r} is not the role of a tenant"
        raise ValueError(reason)
    verifier = scram_verifier(password, secrets.token_bytes(16))
    async with alone(admin) as maintenance:
        async with (
            connection_to(admin, database) as connection,
            unhindered(admin, connection, role),
            connection.transaction(),
        ):
            await connection.execute("SELECT pg_advisory_xact_lock($1)", MIGRATION_LOCK)
            if not await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role):
                await connection.execute(f"CREATE ROLE {role} LOGIN")
            # A fifth of the server is left to the others, whatever one tenant does.
            most = await connection.fetchval("SELECT current_setting('max_connections')::int * 4 / 5")
            is_superuser = await connection.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
            # Who is no superuser may not say NOSUPERUSER; nor can it have made one.
            none = "NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE" if is_superuser else "NOCREATEDB NOCREATEROLE"
            await connection.execute(f"ALTER ROLE {role} LOGIN {none} CONNECTION LIMIT {most} PASSWORD '{verifier}'")
            if not is_superuser:  # to end its sessions, and to drop what is its own
                await connection.execute(f"GRANT {role} TO current_user WITH INHERIT TRUE, SET FALSE")
            had_settings = await reset_settings(connection, role, is_superuser=is_superuser)
            # SET FALSE: the tenant has the group's rights but cannot become the group.
            await connection.execute(f"GRANT {TENANT_GROUP_ROLE} TO {role} WITH INHERIT TRUE, SET FALSE")
            await connection.execute(f"GRANT CONNECT ON DATABASE {quoted(database)} TO {role}")
            comment = comment_of(mark_of(role, password), verifier)
            await connection.execute(f"COMMENT ON ROLE {role} IS '{comment}'")
        if had_settings:
            await end_sessions(maintenance, role)


async def ping(admin: Admin) -> None:
    """The server answers this login. Raises DatabaseUnreachable, LoginRefused."""
    async with connection_to(admin, MAINTENANCE_DATABASE) as connection:
        await connection.execute("SELECT 1")


async def close_databases(admin: Admin) -> None:
    """Tenants cannot connect to the maintenance databases of a shard that is ours alone."""
    async with connection_to(admin, "postgres") as connection:
        await connection.execute("REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC")


async def _raise_fence(connection: Connection, tenant: str, answered_s: float) -> None:
    """The tenant's writers have ended and new ones wait, until the transaction ends. Raises FenceBusy.

    Tried once for a short time; then for as long as the last of them may take. Who only tried again would wait for ever
    behind writers who take turns.
    """
    for wait_s in (FENCE_WAIT_S, FENCE_WAIT_S + answered_s):
        with suppress(asyncpg.LockNotAvailableError):
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = '{wait_s * 1000:.0f}ms'")
                await connection.execute("SELECT pg_advisory_xact_lock(engram.fence_key($1))", tenant)
                return
    raise FenceBusy(tenant)


async def publish_map(admin: Admin, shard_id: str, shard_map: ShardMap, answered_s: float = ANSWERED_S) -> None:
    """The shard knows this map and owns what the map gives it.

    Waits for the tenant's writers and holds new ones for the moment of the change; who has been writing for longer than
    `answered_s` ends. Publishing the same map again changes nothing. Raises StaleEpoch, FenceBusy, DatabaseUnreachable.
    """
    shard = shard_map.shard(shard_id)
    ranges = [(r.first, r.last) for r in shard_map.ranges if r.shard == shard_id]
    async with (
        connection_to(admin, shard.database) as connection,
        unhindered(admin, connection, shard_map.tenant, answered_s),
        connection.transaction(),
    ):
        await _raise_fence(connection, shard_map.tenant, answered_s)
        text = shard_map.to_json()
        known = await connection.fetchrow(
            "SELECT epoch, map = $2::jsonb AS is_same FROM engram.shard_map WHERE tenant = $1", shard_map.tenant, text
        )
        if known is not None and (known["epoch"], not known["is_same"]) > (shard_map.epoch, False):
            reason = (
                f"shard {shard_id} has another map of epoch {known['epoch']}, not publishing epoch {shard_map.epoch}"
            )
            raise StaleEpoch(reason)
        await connection.execute("DELETE FROM engram.ownership WHERE tenant = $1", shard_map.tenant)
        await connection.executemany(
            "INSERT INTO engram.ownership (tenant, first_slot, last_slot, epoch) VALUES ($1, $2, $3, $4)",
            [(shard_map.tenant, first, last, shard_map.epoch) for first, last in ranges],
        )
        await connection.execute(
            "INSERT INTO engram.shard_map (tenant, epoch, map) VALUES ($1, $2, $3::jsonb)"
            " ON CONFLICT (tenant) DO UPDATE SET epoch = excluded.epoch, map = excluded.map",
            shard_map.tenant,
            shard_map.epoch,
            text,
        )


async def fetch_map(admin: Admin, database: str, tenant: str) -> ShardMap | None:
    """The map of the tenant that this shard knows, or None. Raises DatabaseUnreachable."""
    async with connection_to(admin, database) as connection:
        return await read_map(connection, tenant)


async def read_map(connection: Connection, tenant: str) -> ShardMap | None:
    """The same over a connection that is there."""
    text = await connection.fetchval("SELECT map FROM engram.shard_map WHERE tenant = $1", tenant)
    return None if text is None else ShardMap.from_json(text)
