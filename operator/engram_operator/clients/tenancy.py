"""What a shard holds of one tenant beside its map: quota, loans, usage, sidecars, audit; and how all of it goes.

Promises
1. Every function may be repeated, at any line of a run that was killed.
2. Nothing here is done as the tenant: the owner's role is taken for each transaction, so an administrator who is no
   superuser may do it too.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from engram_contract.names import OWNER_ROLE, SHARED_DATABASE
from engram_contract.slots import SLOTS
from engram_operator.clients.connection import (
    MAINTENANCE_DATABASE,
    Admin,
    Connection,
    alone,
    connection_to,
    owning,
    quoted,
)
from engram_operator.clients.logins import ANSWERED_S, end_sessions, read_login, unhindered
from engram_operator.clients.postgres import available_migrations, drop_database, has_database, read_map, read_schema
from engram_operator.errors import DatabaseMissing
from engram_operator.plan.quotas import Amount, Holding, QuotaStep
from engram_operator.plan.sidecars import HEARD_S, Generations, Report
from engram_operator.plan.steps import CarryLoan, LendBack, SetQuota
from engram_operator.plan.tenant import UNPREPARED, OnShard

SWEEP_ROWS: Final = 1_000  # a statement of some milliseconds
SWEEPS: Final = 20  # in one round; the rest waits for the next
ERASE_ROWS: Final = 5_000
TRANSACTION_S: Final = 600.0  # a sidecar's last seconds; a longer one keeps the rows of all tenants from being vacuumed

# Nothing that an operator may not see or end: it would be refused.
_TOO_LONG: Final = (
    "FROM pg_stat_activity WHERE usename = $1 AND xact_start < now() - $2 * interval '1 second'"
    " AND pg_has_role(usesysid, 'USAGE')"
)


async def fetch_tenant(
    admin: Admin, database: str, role: str, audit_retention_s: int, transaction_s: float = TRANSACTION_S
) -> OnShard:
    """What a shard knows of a tenant, and whether something of it is due to be swept.

    Raises DatabaseUnreachable, LoginRefused.
    """
    try:
        async with connection_to(admin, database) as connection:
            schema = await read_schema(connection)
            if not schema:
                return UNPREPARED
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                if schema != available_migrations()[-1].name:
                    return replace(UNPREPARED, shard_map=await read_map(connection, role), is_read=False)
                is_held_up = await connection.fetchval(f"SELECT EXISTS (SELECT {_TOO_LONG})", role, transaction_s)
                found = await _read_tenant(connection, role, audit_retention_s)
                return replace(found, is_sweep_due=found.is_sweep_due or is_held_up)
    except DatabaseMissing:
        return UNPREPARED


async def _read_tenant(connection: Connection, role: str, audit_retention_s: int) -> OnShard:
    login = await read_login(connection, role)
    await connection.execute(f"SET LOCAL ROLE {OWNER_ROLE}")
    reports = await connection.fetch(
        "SELECT pod, pod_uid, epoch, policy, credentials, keys, extract(epoch FROM now() - seen)::float8 AS age_s"
        " FROM engram.sidecars WHERE tenant = $1 AND seen > now() - $2 * interval '1 second'",
        role,
        HEARD_S,
    )
    is_sweep_due = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM engram.memories m WHERE tenant = $1 AND expires <= now()"
        "  AND engram.is_owned(m.tenant, m.slot))"
        " OR EXISTS (SELECT FROM engram.idempotency i WHERE tenant = $1 AND expires <= now()"
        "  AND engram.is_owned(i.tenant, i.slot))"
        " OR $2 > 0 AND (SELECT recorded FROM engram.audit WHERE tenant = $1 ORDER BY number LIMIT 1)"
        "  < now() - $2 * interval '1 second'"
        " OR EXISTS (SELECT FROM engram.usage WHERE tenant = $1 GROUP BY type"
        "  HAVING sum(memories) = 0 AND sum(bytes) = 0)",
        role,
        float(audit_retention_s),
    )
    return OnShard(
        is_current=True,
        mark="" if login is None else login.mark,
        altered=() if login is None else login.altered,
        shard_map=await read_map(connection, role),
        holding=await read_holding(connection, role),
        reports=tuple(_read_report(dict(row)) for row in reports),
        is_sweep_due=is_sweep_due,
    )


def _read_report(row: Mapping[str, Any]) -> Report:
    told = Generations(row["epoch"], row["policy"], row["credentials"], row["keys"])
    return Report(row["pod"], row["pod_uid"], told, row["age_s"])


async def read_holding(connection: Connection, role: str) -> Holding:
    """What the shard holds of the tenant's quota."""
    quota = await connection.fetchrow("SELECT * FROM engram.quota WHERE tenant = $1", role)
    loans = await connection.fetch("SELECT * FROM engram.loans WHERE tenant = $1", role)
    usage = await connection.fetch(
        "SELECT type, sum(memories)::bigint AS memories, sum(bytes)::bigint AS bytes FROM engram.usage"
        " WHERE tenant = $1 GROUP BY type HAVING sum(memories) <> 0 OR sum(bytes) <> 0 ORDER BY type",
        role,
    )
    return Holding(
        base=None if quota is None else Amount(quota["base_memories"], quota["base_bytes"]),
        total=Amount() if quota is None else Amount(quota["total_memories"], quota["total_bytes"]),
        lent={row["peer"]: Amount(row["lent_memories"], row["lent_bytes"]) for row in loans},
        borrowed={row["peer"]: Amount(row["borrowed_memories"], row["borrowed_bytes"]) for row in loans},
        used={row["type"]: Amount(row["memories"], row["bytes"]) for row in usage},
    )


async def level_quota(
    admin: Admin, database: str, role: str, step: QuotaStep, seal: str, answered_s: float = ANSWERED_S
) -> None:
    """One step of the quota's parts is done, in the tenant's turn: nobody else changes its quota.

    `seal` is what the shards of a cluster know each other's words by. A transaction of the tenant's that is in the way
    and older than `answered_s` ends.
    """
    async with owning(admin, database) as connection, unhindered(admin, connection, role, answered_s):
        # The fence first, as writers do: one wait for all of them, and none comes between while rows are waited for.
        await connection.execute("SELECT pg_advisory_xact_lock(engram.fence_key($1))", role)
        await connection.execute("SELECT pg_advisory_xact_lock(engram.quota_key($1))", role)
        match step:
            case SetQuota():
                await _set_quota(connection, role, step, seal)
            case CarryLoan(_, lender, memories, size_bytes):
                await connection.execute("SELECT engram.take_loan($1, $2, $3, $4)", role, lender, memories, size_bytes)
            case LendBack(
                _, borrower, memories, size_bytes
            ):  # what is not used by now; who gets it is told at the next look
                await connection.execute(
                    "SELECT engram.give_loan($1, $2, $3, $4)", role, borrower, memories, size_bytes
                )


async def _set_quota(connection: Connection, role: str, step: SetQuota, seal: str) -> None:
    """The shard has this base, and the seal by which it knows the words of the cluster's other shards."""
    # Nobody counts by what was set aside of the old quota, and stores by the new.
    await connection.execute(
        "UPDATE engram.usage SET free_memories = 0, free_bytes = 0"
        " WHERE tenant = $1 AND (free_memories > 0 OR free_bytes > 0)",
        role,
    )
    await connection.execute(
        "INSERT INTO engram.quota VALUES ($1, $2, $3, $4, $5) ON CONFLICT (tenant) DO UPDATE SET"
        " base_memories = excluded.base_memories, base_bytes = excluded.base_bytes,"
        " total_memories = excluded.total_memories, total_bytes = excluded.total_bytes",
        role,
        step.memories,
        step.bytes,
        step.total_memories,
        step.total_bytes,
    )
    # Last: it is all tenants', and what came before may have waited for a writer of this one.
    await connection.execute("LOCK TABLE engram.seal IN SHARE ROW EXCLUSIVE MODE")
    if await connection.fetchval("SELECT secret FROM engram.seal") != seal:
        await connection.execute("DELETE FROM engram.seal")
        await connection.execute("INSERT INTO engram.seal VALUES ($1)", seal)


async def sweep(
    admin: Admin, database: str, role: str, audit_retention_s: int, transaction_s: float = TRANSACTION_S
) -> int:
    """The number of expired memories whose space was freed.

    Expired idempotency keys go too, old entries of the audit trail (0 s: never), and sessions of the tenant in an
    endless transaction.
    """
    async with connection_to(admin, database) as connection:
        await connection.execute(f"SELECT pg_terminate_backend(pid) {_TOO_LONG}", role, transaction_s)
    swept = 0
    for _ in range(SWEEPS):
        async with owning(admin, database) as connection:
            found = await connection.fetchval("SELECT engram.sweep_expired($1, $2)", role, SWEEP_ROWS)
            keys = await connection.fetchval("SELECT engram.sweep_keys($1, $2)", role, SWEEP_ROWS)
        swept += int(found)
        if max(found, keys) < SWEEP_ROWS:
            break
    async with owning(admin, database) as connection:
        await connection.execute("SELECT engram.tidy_usage($1)", role)
    if audit_retention_s:
        async with owning(admin, database) as connection:
            await connection.execute(
                # By number, so in about the order of `recorded`, which has no index.
                "DELETE FROM engram.audit WHERE tenant = $1 AND recorded < now() - $2 * interval '1 second'"
                " AND number IN (SELECT number FROM engram.audit WHERE tenant = $1 ORDER BY number LIMIT $3)",
                role,
                float(audit_retention_s),
                SWEEP_ROWS * SWEEPS,
            )
    return swept


async def erase_tenant(admin: Admin, database: str, role: str) -> int | None:
    """The number of memories that went: nobody logs in as the tenant any more, and the server holds nothing of it.

    None if it held nothing before, as after an earlier try.
    """
    async with alone(admin) as maintenance:
        if not await maintenance.fetchval("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", role):
            return None
        async with unhindered(admin, maintenance, role):
            await maintenance.execute(f"ALTER ROLE {quoted(role)} NOLOGIN PASSWORD NULL")
        await end_sessions(maintenance, role)
        erased = 0
        if await has_database(maintenance, database):
            erased = await _count(admin, database, role)
            if database == SHARED_DATABASE:
                await _erase_rows(admin, database, role)
            else:
                await drop_database(maintenance, database)
        for each in (SHARED_DATABASE, MAINTENANCE_DATABASE):
            if await has_database(maintenance, each):
                async with connection_to(admin, each) as connection:
                    # With the rights goes what the tenant may have set for itself, such as default privileges.
                    await connection.execute(f"DROP OWNED BY {quoted(role)}")
        await maintenance.execute(f"DROP ROLE {quoted(role)}")
        return erased


async def has_sealed(admin: Admin, database: str, role: str) -> bool:
    """True if the database holds memories of the tenant that only a key opens."""
    asked = "SELECT EXISTS (SELECT FROM engram.memories WHERE tenant = $1 AND key_version > 0)"
    async with owning(admin, database) as connection:
        return bool(await connection.fetchval(asked, role))


async def _count(admin: Admin, database: str, role: str) -> int:
    async with connection_to(admin, database) as connection:
        if not await connection.fetchval("SELECT to_regclass('engram.memories') IS NOT NULL"):
            return 0  # killed between making the database and its schema
    async with owning(admin, database) as connection:
        return int(await connection.fetchval("SELECT count(*) FROM engram.memories WHERE tenant = $1", role))


async def _erase_rows(admin: Admin, database: str, role: str) -> None:
    """Every row of the tenant, memories first: what says that there are some goes last."""
    async with owning(admin, database) as connection:
        # The fence lets nobody delete what the shard does not own, such as the rest of a move: it owns all of it now.
        epoch = await connection.fetchval("SELECT max(epoch) FROM engram.ownership WHERE tenant = $1", role)
        await connection.execute("DELETE FROM engram.ownership WHERE tenant = $1", role)
        await connection.execute("INSERT INTO engram.ownership VALUES ($1, 0, $2, $3)", role, SLOTS - 1, epoch or 1)
    for table, name in (("memories", "id"), ("idempotency", "key")):
        done = ""
        while done != "DELETE 0":
            async with owning(admin, database) as connection:
                done = await connection.execute(
                    f"DELETE FROM engram.{table} WHERE tenant = $1 AND (slot, {name}) IN"  # noqa: S608  names of ours
                    f" (SELECT slot, {name} FROM engram.{table} WHERE tenant = $1 LIMIT $2)",
                    role,
                    ERASE_ROWS,
                )
    async with owning(admin, database) as connection:
        for table in ("audit", "sidecars", "usage", "loans", "quota", "ownership", "shard_map"):
            await connection.execute(f"DELETE FROM engram.{table} WHERE tenant = $1", role)  # noqa: S608  names of ours
