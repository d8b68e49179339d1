"""The control plane's door to Postgres: databases, migrations, tenants and maps of one shard.

Promises
1. Every function may be repeated; a crash at any line leaves a state from which the same call goes on.
2. A database that is not this cluster's and this shard's is never changed.
3. A map is never replaced by an older one, and ownership changes only under the tenant's exclusive fence lock.
"""

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final

import asyncpg

from engram_contract.names import TENANT_GROUP_ROLE
from engram_contract.shardmap import ShardMap
from engram_operator.clients.connection import MAINTENANCE_DATABASE, MIGRATION_LOCK, Admin, alone, connection_to, quoted
from engram_operator.errors import FenceBusy, ForeignDatabase, StaleEpoch
from engram_operator.plan.migrations import Migration, in_order, plan_migrations

FENCE_LOCK_TIMEOUT_MS: Final = 2_000  # writes wait behind a raised fence, so give up before they time out
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


async def migrate(admin: Admin, database: str, identity: ShardIdentity, *, with_post: bool = True) -> Migrated:
    """Brings the database to this version's schema, creating it if it is missing.

    Raises ForeignDatabase, MigrationConflict (ValueError) or DatabaseUnreachable.
    """
    async with alone(admin) as maintenance:
        await _create_database(maintenance, database)
        return await _migrate_alone(admin, database, identity, with_post=with_post)


async def _migrate_alone(admin: Admin, database: str, identity: ShardIdentity, *, with_post: bool) -> Migrated:
    async with connection_to(admin, database) as connection:
        # Here too: the server goes on with the statement of an operator that was killed, after its idle sessions ended.
        await connection.execute("SELECT pg_advisory_lock($1)", MIGRATION_LOCK)
        applied = await _fetch_applied(connection, identity)
        plan = plan_migrations(available_migrations(), applied, with_post=with_post)
        for migration in plan:
            await _apply_migration(connection, migration, identity)
        has_vector = await _ensure_vector(connection)
        version = max([*applied, *(m.number for m in plan)], default=0)
        return Migrated(tuple(m.name for m in plan), version, has_vector)


async def _create_database(connection: "asyncpg.Connection[asyncpg.Record]", database: str) -> None:
    if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", database):
        await connection.execute(f"CREATE DATABASE {quoted(database)} TEMPLATE template0 ENCODING 'UTF8'")


async def _fetch_applied(connection: "asyncpg.Connection[asyncpg.Record]", identity: ShardIdentity) -> dict[int, str]:
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


async def _apply_migration(
    connection: "asyncpg.Connection[asyncpg.Record]", migration: Migration, identity: ShardIdentity
) -> None:
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


async def _ensure_vector(connection: "asyncpg.Connection[asyncpg.Record]") -> bool:
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
    """The tenant's role exists with this password and may use this database, and no other.

    Raises ValueError for a name that is not a tenant's role, DatabaseUnreachable.
    """
    if _ROLE.fullmatch(role) is None:
        reason = f"{role!r} is not the role of a tenant"
        raise ValueError(reason)
    async with alone(admin), connection_to(admin, database) as connection, connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", MIGRATION_LOCK)
        if not await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role):
            await connection.execute(f"CREATE ROLE {role} LOGIN")
        # DDL takes no parameters: let the server quote the password.
        secret = await connection.fetchval("SELECT quote_literal($1::text)", password)
        await connection.execute(
            f"ALTER ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS PASSWORD {secret}"
        )
        await connection.execute(
            f"ALTER ROLE {role} RESET ALL"
        )  # what the tenant set for itself would break its sidecars
        # SET FALSE: the tenant has the group's rights but cannot become the group.
        await connection.execute(f"GRANT {TENANT_GROUP_ROLE} TO {role} WITH INHERIT TRUE, SET FALSE")
        await connection.execute(f"GRANT CONNECT ON DATABASE {quoted(database)} TO {role}")


async def ping(admin: Admin) -> None:
    """The server answers this login. Raises DatabaseUnreachable, LoginRefused."""
    async with connection_to(admin, MAINTENANCE_DATABASE) as connection:
        await connection.execute("SELECT 1")


async def close_databases(admin: Admin) -> None:
    """Tenants cannot connect to the maintenance databases of a shard that is ours alone."""
    async with connection_to(admin, "postgres") as connection:
        await connection.execute("REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC")


async def publish_map(admin: Admin, shard_id: str, shard_map: ShardMap) -> None:
    """The shard knows this map and owns what the map gives it.

    Waits for the tenant's writers and holds new ones for the moment of the change. Publishing the same map again
    changes nothing. Raises StaleEpoch, FenceBusy, DatabaseUnreachable.
    """
    shard = shard_map.shard(shard_id)
    ranges = [(r.first, r.last) for r in shard_map.ranges if r.shard == shard_id]
    async with connection_to(admin, shard.database) as connection, connection.transaction():
        await connection.execute(f"SET LOCAL lock_timeout = {FENCE_LOCK_TIMEOUT_MS}")
        try:
            await connection.execute("SELECT pg_advisory_xact_lock(engram.fence_key($1))", shard_map.tenant)
        except asyncpg.LockNotAvailableError as error:
            raise FenceBusy(shard_map.tenant) from error
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
        text = await connection.fetchval("SELECT map FROM engram.shard_map WHERE tenant = $1", tenant)
    return None if text is None else ShardMap.from_json(text)
