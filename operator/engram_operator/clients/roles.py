"""The roles that belong to the operator itself on a Managed shard: for replication, for the pooler, its own password.

Promises
1. Every function may be repeated. A role says, as its comment, by which password it was made: no try is needed to know.
2. A password is never in a statement that the server logs: Postgres is given its SCRAM verifier.

Sources: PostgreSQL manual, 53.2 (SCRAM verifiers), pg_rewind (rights without superuser); PgBouncer, auth_query.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from typing import Final

from engram_contract.names import SCHEMA, SHARED_DATABASE
from engram_operator.clients.connection import MAINTENANCE_DATABASE, Admin, alone, connection_to, quoted
from engram_operator.manifests.pooler import POOLER_ROLE

ITERATIONS: Final = 4_096  # Postgres' own default; the passwords have 256 bits, so more would only cost time
REWIND_FUNCTIONS: Final = (
    "pg_ls_dir(text, boolean, boolean)",
    "pg_stat_file(text, boolean)",
    "pg_read_binary_file(text)",
    "pg_read_binary_file(text, bigint, bigint, boolean)",
)

_POOLER_LOGIN: Final = """
    CREATE OR REPLACE FUNCTION engram.pooler_login(login text) RETURNS TABLE (rolname text, verifier text)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
        SELECT a.rolname::text, a.rolpassword FROM pg_authid a
        WHERE a.rolname = login AND a.rolcanlogin AND a.rolname ~ '^t_[0-9a-f]{32}$'
    $$
"""


def scram_verifier(password: str, salt: bytes) -> str:
    """What Postgres stores for a password (RFC 5802); our passwords are ASCII, so SASLprep changes nothing."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    salt64, stored64, server64 = (base64.b64encode(each).decode() for each in (salt, stored, server))
    return f"SCRAM-SHA-256${ITERATIONS}:{salt64}${stored64}:{server64}"


async def keep_roles(admin: Admin, passwords: Mapping[str, str], marks: Mapping[str, str]) -> None:
    """These roles exist with these passwords and say so: replicators, rewinders, the superuser. The order is kept.

    The caller puts the superuser last: its mark is the sign that all others are done.
    """
    async with alone(admin) as connection:
        known = {row["rolname"] for row in await connection.fetch("SELECT rolname FROM pg_roles")}
        for role, password in passwords.items():
            name = quoted(role)
            async with connection.transaction():
                if role not in known:
                    await connection.execute(f"CREATE ROLE {name}")
                if role.startswith("replicator_"):
                    await connection.execute(f"ALTER ROLE {name} REPLICATION")
                if role.startswith("rewinder_"):
                    for function in REWIND_FUNCTIONS:
                        await connection.execute(f"GRANT EXECUTE ON FUNCTION {function} TO {name}")
                    # Where PUBLIC may not connect a rewinder must: else a primary that was killed never joins again.
                    await connection.execute(f"GRANT CONNECT ON DATABASE {MAINTENANCE_DATABASE} TO {name}")
                verifier = scram_verifier(password, secrets.token_bytes(16))
                await connection.execute(f"ALTER ROLE {name} LOGIN PASSWORD '{verifier}'")
                await connection.execute(f"COMMENT ON ROLE {name} IS '{marks[role]}'")


async def retire_roles(admin: Admin, roles: tuple[str, ...]) -> None:
    """Nobody can log in as these roles any more; what they were given stays for the next turn."""
    async with alone(admin) as connection:
        for role in roles:
            await connection.execute(f"ALTER ROLE {quoted(role)} NOLOGIN PASSWORD NULL")
            await connection.execute(f"COMMENT ON ROLE {quoted(role)} IS NULL")


async def keep_pooler(admin: Admin) -> None:
    """PgBouncer's role, and the function by which it learns the verifiers of tenants' roles, and of no others."""
    async with connection_to(admin, SHARED_DATABASE) as connection, connection.transaction():
        if not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", POOLER_ROLE):
            await connection.execute(f"CREATE ROLE {POOLER_ROLE} LOGIN")
        function = f"{SCHEMA}.pooler_login"
        await connection.execute(_POOLER_LOGIN)
        await connection.execute(f"REVOKE ALL ON FUNCTION {function}(text) FROM PUBLIC")
        await connection.execute(f"GRANT EXECUTE ON FUNCTION {function}(text) TO {POOLER_ROLE}")
        await connection.execute(f"GRANT USAGE ON SCHEMA {SCHEMA} TO {POOLER_ROLE}")
        await connection.execute(f"GRANT CONNECT ON DATABASE {quoted(SHARED_DATABASE)} TO {POOLER_ROLE}")


async def reread_certificate(admin: Admin) -> bool:
    """True if the server was told to read its certificate anew, because the file is newer than what it has read.

    Not if there is no file: the Secret may have lost its keys. Raises DatabaseUnreachable, LoginRefused.
    """
    async with connection_to(admin, MAINTENANCE_DATABASE) as connection:
        is_old = await connection.fetchval(
            "SELECT current_setting('ssl') = 'on' AND"
            " (pg_stat_file(current_setting('ssl_cert_file'), true)).modification > pg_conf_load_time()"
        )
        return bool(is_old) and bool(await connection.fetchval("SELECT pg_reload_conf()"))
