"""The login of a tenant on a shard: what it is by now, as the tenant may have changed some of it, and its sessions.

A role may change its own password and its own settings by SQL; Postgres cannot forbid it. What the operator made says,
as the role's comment, by which password (`mark_of`) and with which verifier it was made: the tenant cannot write it.

Known: where the administrator may not read verifiers (an External server, no superuser), a password that the tenant
changed is not seen.

Source: PostgreSQL manual, ALTER ROLE, COMMENT, 53.8 (pg_authid), 53.17 (pg_db_role_setting).
"""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from engram_operator.clients.connection import MAINTENANCE_DATABASE, Admin, Connection, connection_to, quoted
from engram_operator.errors import OperatorError

log = logging.getLogger(__name__)

BLOCKED_S: Final = 0.5  # a change of a role takes milliseconds
ANSWERED_S: Final = 10.0  # a sidecar's transaction has come to its end by then, or to its deadline
MAX_SETTINGS: Final = 5  # that are named: a message is no list
# Of one session: a query of a tenant's own may not fill the disk that all share. Only a superuser may set or unset it.
TEMPORARY_FILES: Final = "temp_file_limit=1GB"

_LOGIN: Final = """
    SELECT shobj_description(r.oid, 'pg_authid') AS said,
           has_column_privilege('pg_authid', 'rolpassword', 'SELECT') AS may_look,
           ARRAY(SELECT DISTINCT split_part(setting, '=', 1) FROM pg_db_role_setting s, unnest(s.setconfig) setting
                 WHERE s.setrole = r.oid AND (s.setdatabase, setting) <> (0, $2) ORDER BY 1) AS settings
    FROM pg_roles r WHERE r.rolname = $1 AND r.rolcanlogin
"""
_FINGERPRINT: Final = """
    SELECT left(encode(sha256(convert_to(rolpassword, 'UTF8')), 'hex'), 16) FROM pg_authid WHERE rolname = $1
"""

_END_BLOCKERS: Final = """
    SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a JOIN pg_roles r ON r.oid = a.usesysid
    WHERE a.pid = ANY (pg_blocking_pids($1)) AND (r.rolname = $2 OR $2 IS NULL AND r.rolname ~ '^t_[0-9a-f]{32}$')
      AND a.xact_start < now() - $3 * interval '1 second' AND pg_has_role(a.usesysid, 'USAGE')
"""


@dataclass(frozen=True, slots=True)
class Login:
    """A role that may log in: the mark of the password that it was made with, and what it changed of itself since."""

    mark: str
    altered: tuple[str, ...] = ()


def comment_of(mark: str, verifier: str) -> str:
    """What a role is to say of itself when it has this verifier."""
    return f"{mark} {hashlib.sha256(verifier.encode()).hexdigest()[:16]}"


async def read_login(connection: Connection, role: str) -> Login | None:
    """The role's login; None if nobody may log in as it, or if it is not known how it was made."""
    row = await connection.fetchrow(_LOGIN, role, TEMPORARY_FILES)
    if row is None:
        return None
    mark, _, fingerprint = str(row["said"] or "").partition(" ")
    if not fingerprint:
        return None
    altered = [f"its setting {name}" for name in row["settings"][:MAX_SETTINGS]]
    if row["may_look"] and await connection.fetchval(_FINGERPRINT, role) != fingerprint:
        altered.insert(0, "its password")
    return Login(mark, tuple(altered))


async def reset_settings(connection: Connection, role: str, *, is_superuser: bool) -> bool:
    """True if something else than ours was set for the role, in whichever database; nothing is now."""
    places = await connection.fetch(
        "SELECT d.datname FROM pg_db_role_setting s LEFT JOIN pg_database d ON d.oid = s.setdatabase"
        " WHERE s.setrole = $1::regrole AND (s.setdatabase, s.setconfig) <> (0, ARRAY[$2])",
        role,
        TEMPORARY_FILES,
    )
    for place in places:
        database = "" if place["datname"] is None else f"IN DATABASE {quoted(place['datname'])}"
        await connection.execute(f"ALTER ROLE {quoted(role)} {database} RESET ALL")
    if is_superuser:
        name, _, value = TEMPORARY_FILES.partition("=")
        await connection.execute(f"ALTER ROLE {quoted(role)} SET {name} = '{value}'")
    return bool(places)


async def end_sessions(connection: Connection, role: str) -> int:
    """The number of the role's sessions that were told to end."""
    found = await connection.fetchval(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = $1", role
    )
    return int(found)


@asynccontextmanager
async def unhindered(
    admin: Admin, connection: Connection, role: str | None, older_than_s: float = BLOCKED_S
) -> AsyncIterator[None]:
    """For a block, a session of the role (None: of any tenant) that the connection waits for ends.

    Only one whose transaction is older than `older_than_s`. A role that changes itself in a transaction and leaves that
    open keeps everybody else from changing it; one that wrote or read holds up what needs its table, or its quota.
    Ending its sessions first would not do: it comes back at once. Who waits already is next.
    """

    async def clear() -> None:
        while True:
            await asyncio.sleep(BLOCKED_S)
            try:
                async with connection_to(admin, MAINTENANCE_DATABASE) as other:
                    while True:
                        await other.execute(_END_BLOCKERS, connection.get_server_pid(), role, older_than_s)
                        await asyncio.sleep(BLOCKED_S)
            except OperatorError as error:  # what the block did stands, and this is tried again
                log.warning("sessions in the way could not be ended", extra={"reason": str(error)})

    clearing = asyncio.create_task(clear())
    try:
        yield
    finally:
        clearing.cancel()
        await asyncio.wait([clearing])


async def shut_out(admin: Admin, role: str) -> bool:
    """True if somebody could log in as the role, or was logged in; now nobody can, and what it stored stays.

    Raises DatabaseUnreachable, LoginRefused.
    """
    async with connection_to(admin, MAINTENANCE_DATABASE) as connection:
        was_open = await connection.fetchval("SELECT rolcanlogin FROM pg_roles WHERE rolname = $1", role)
        if was_open:
            async with unhindered(admin, connection, role):
                await connection.execute(f"ALTER ROLE {quoted(role)} NOLOGIN")
        return await end_sessions(connection, role) > 0 or bool(was_open)
