"""What a shard's Postgres tells of itself.

Reads only. The primary is asked, but for `fetch_loaded`; which pod that is, Patroni says.
"""

import json
from collections.abc import Mapping
from typing import Final

from engram_contract.names import SHARED_DATABASE
from engram_operator.clients.connection import MAINTENANCE_DATABASE, Admin, connection_to
from engram_operator.clients.postgres import available_migrations, read_schema
from engram_operator.errors import DatabaseUnreachable
from engram_operator.manifests.patroni import SETTINGS
from engram_operator.plan.observed import Database, Loaded
from engram_operator.plan.roles import OWN_ROLES

OLDEST_VERSION: Final = 16  # GRANT ... WITH INHERIT, SET FALSE


async def fetch_facts(admin: Admin, *, with_owned: bool = False) -> Database:
    """What the server is and holds; `with_owned` counts the slots of all its databases, for a shard that may go.

    Raises DatabaseUnreachable, LoginRefused.
    """
    async with connection_to(admin, MAINTENANCE_DATABASE) as connection:
        row = await connection.fetchrow(
            "SELECT current_setting('server_version_num')::int AS version,"
            " split_part(current_setting('server_version'),"
            " ' ', 1) AS text, pg_is_in_recovery() AS is_standby,"
            " r.rolsuper OR r.rolcreaterole AS may_create_roles, r.rolsuper OR r.rolcreatedb AS may_create_databases,"
            " ARRAY(SELECT datname::text FROM pg_database WHERE NOT datistemplate AND datname <> current_database()"
            " ORDER BY 1) AS databases,"
            " (SELECT jsonb_object_agg(a.rolname, shobj_description(a.oid, 'pg_authid')) FROM pg_roles a"
            "  WHERE a.rolcanlogin AND a.rolname = ANY ($1)) AS marks,"
            " ARRAY(SELECT DISTINCT usename::text FROM pg_stat_replication WHERE usename = ANY ($1)) AS senders,"
            " (SELECT sum(pg_database_size(oid)) FROM pg_database"
            "  WHERE has_database_privilege(oid, 'CONNECT'))::bigint AS size_bytes"
            " FROM pg_roles r WHERE r.rolname = current_user",
            [*OWN_ROLES],
        )
    if row is None:
        raise DatabaseUnreachable(f"{admin.host}: the login went while it was used")
    schema, has_vector, has_pooler = "", False, False
    if SHARED_DATABASE in row["databases"]:
        schema, has_vector, has_pooler = await _schema(admin, SHARED_DATABASE)
    newest = available_migrations()[-1].name
    return Database(
        server_version=row["text"],
        schema_version=schema,
        is_current=schema == newest,
        has_vector=has_vector,
        size_bytes=rounded(row["size_bytes"] or 0),
        owned_slots=await _owned(admin, row["databases"]) if with_owned else 0,
        has_pooler=has_pooler,
        marks=json.loads(row["marks"] or "{}"),
        senders=tuple(row["senders"]),
        faults=tuple(_faults(row["version"] // 10_000, dict(row))),
    )


def rounded(amount: int) -> int:
    """The amount to about a twentieth: steady while little changes."""
    step = max(1, 1 << max(0, amount.bit_length() - 5))
    return amount // step * step


def _faults(major: int, row: dict[str, object]) -> list[str]:
    """What a server lacks; the words are for the owner of an External one."""
    found = []
    if major < OLDEST_VERSION:
        found.append(f"it is Postgres {major}; {OLDEST_VERSION} is the oldest that works")
    if row["is_standby"]:
        found.append("it is a standby; the DSN must lead to the primary")
    if not row["may_create_roles"]:
        found.append("its login may not create roles (CREATEROLE)")
    if not row["may_create_databases"]:
        found.append("its login may not create databases (CREATEDB)")
    return found


async def _schema(admin: Admin, database: str) -> tuple[str, bool, bool]:
    """The last migration of a database of ours, whether it has pgvector, whether the pooler can log clients in."""
    async with connection_to(admin, database) as connection:
        name = await read_schema(connection)
        if not name:
            return "", False, False
        vector = await connection.fetchval("SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'vector')")
        pooler = await connection.fetchval("SELECT to_regprocedure('engram.pooler_login(text)') IS NOT NULL")
        return name, bool(vector), bool(pooler)


async def _owned(admin: Admin, databases: list[str]) -> int:
    """The slots of all tenants that the shard's databases own."""
    total = 0
    for database in databases:
        async with connection_to(admin, database) as connection:
            if await connection.fetchval("SELECT to_regclass('engram.ownership') IS NOT NULL"):
                total += await connection.fetchval(
                    "SELECT coalesce(sum(last_slot - first_slot + 1), 0) FROM engram.ownership"
                )
    return total


async def fetch_loaded(admin: Admin, asked: Mapping[str, str]) -> Loaded:
    """What a member, the primary or a replica, runs with, of the settings that are asked for.

    Patroni leaves out what it does not know, or takes a value of its own, and Postgres goes on without what it cannot
    read; else only their logs say so. A replica may keep a greater number until the primary has the smaller one.
    Raises DatabaseUnreachable, LoginRefused. Source: Postgres manual, 53.7 (pg_file_settings), 53.25 (pg_settings).
    """
    async with connection_to(admin, MAINTENANCE_DATABASE) as connection:
        row = await connection.fetchrow(
            "SELECT coalesce(current_setting($1, true), '') AS settings,"
            " EXISTS (SELECT FROM pg_settings WHERE pending_restart) AS needs_restart,"
            " NOT pg_is_in_recovery() OR current_setting('primary_conninfo') ~ 'sslmode=verify-ca' AS verifies,"
            " ARRAY(SELECT a.name FROM unnest($2::text[], $3::text[]) a (name, value)"
            "  LEFT JOIN pg_settings s ON lower(s.name) = a.name"
            "  WHERE s.name IS NULL OR s.source = 'default' OR NOT s.pending_restart AND (EXISTS"
            "    (SELECT FROM pg_file_settings f WHERE lower(f.name) = a.name AND f.error IS NOT NULL)"
            "   OR CASE WHEN s.vartype = 'integer' AND s.unit IS NULL AND a.value ~ '^[0-9]{1,9}$'"
            "    THEN s.setting::int <> a.value::int AND NOT (pg_is_in_recovery() AND s.setting::int > a.value::int)"
            "    ELSE false END)"
            "  ORDER BY 1) AS refused",
            SETTINGS,
            list(asked.keys()),
            list(asked.values()),
        )
    if row is None:
        raise DatabaseUnreachable(f"{admin.host}: a row was expected")
    return Loaded(row["settings"], row["needs_restart"], tuple(row["refused"]), row["verifies"])
