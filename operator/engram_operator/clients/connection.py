"""Connections to one Postgres server as its administrator: deadlines, encryption, errors of ours.

Promises
1. No call outlives its deadline, and a connection is closed however its use ends.
2. With a CA the server must prove its name; without, the DSN's own `sslmode` counts.
"""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import asyncpg

from engram_contract.names import OWNER_ROLE
from engram_operator.errors import DatabaseMissing, DatabaseUnreachable, LoginRefused, StatementRefused

CONNECT_TIMEOUT_S: Final = 10.0
COMMAND_TIMEOUT_S: Final = 300.0  # a migration on a large table takes minutes, not hours
LOCK_TIMEOUT_S: Final = 60  # another operator's migrations of a new database take seconds
MIGRATION_LOCK: Final = 0x656E6772616D  # "engram"
MAINTENANCE_DATABASE: Final = "postgres"

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

_GONE: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # what asyncpg says of a connection that went while it was being used
)


@dataclass(frozen=True, slots=True)
class Admin:
    """A login that may create databases and roles on one shard. `ca` is PEM; `sslmode` counts where there is none."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    ca: str = ""
    sslmode: Literal["disable", "allow", "prefer", "require"] = "prefer"

    def security(self) -> "ssl.SSLContext | Literal['disable', 'allow', 'prefer', 'require']":
        """What asyncpg takes as `ssl`."""
        return ssl.create_default_context(cadata=self.ca) if self.ca else self.sslmode


# A server learns within half a minute that an operator is gone with its node, and ends a transaction in which nothing
# is asked any more: what it holds would keep the next operator waiting.
_SETTINGS: Final = {
    "application_name": "engram-operator",
    "lock_timeout": f"{LOCK_TIMEOUT_S}s",
    "idle_in_transaction_session_timeout": "30s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "25s",
}


@asynccontextmanager
async def connection_to(admin: Admin, database: str) -> AsyncIterator[Connection]:
    """A connection as the administrator.

    Raises DatabaseUnreachable, DatabaseMissing, LoginRefused, StatementRefused.
    """
    place = f"{admin.host}:{admin.port}/{database}"
    try:
        connection = await asyncpg.connect(
            host=admin.host,
            port=admin.port,
            user=admin.user,
            password=admin.password,
            database=database,
            ssl=admin.security(),
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=COMMAND_TIMEOUT_S,
            server_settings=_SETTINGS,
        )
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InsufficientPrivilegeError) as error:
        raise LoginRefused(f"{place}: {_reason(error)}") from error
    except asyncpg.InvalidCatalogNameError as error:
        raise DatabaseMissing(f"{place}: {_reason(error)}") from error
    except (OSError, TimeoutError, *_GONE, asyncpg.CannotConnectNowError, asyncpg.TooManyConnectionsError) as error:
        raise DatabaseUnreachable(f"{place}: {_reason(error)}") from error
    try:
        yield connection
    except asyncpg.InsufficientPrivilegeError as error:  # of an External login: a condition says it
        raise LoginRefused(f"{place}: {_reason(error)}") from error
    except asyncpg.LockNotAvailableError as error:
        raise DatabaseUnreachable(f"{place}: another operator holds it since {LOCK_TIMEOUT_S} s") from error
    except (OSError, TimeoutError, *_GONE) as error:
        raise DatabaseUnreachable(f"{place}: {_reason(error)}") from error
    except asyncpg.PostgresError as error:
        raise StatementRefused(f"{place}: {error.sqlstate}: {_reason(error)}") from error
    finally:
        await connection.close(timeout=CONNECT_TIMEOUT_S)


@asynccontextmanager
async def alone(admin: Admin) -> AsyncIterator[Connection]:
    """A connection that keeps every other operator from changing databases and roles of this server.

    A lock of the session: gone with the connection, however that ends.
    """
    async with connection_to(admin, MAINTENANCE_DATABASE) as connection:
        await connection.execute("SELECT pg_advisory_lock($1)", MIGRATION_LOCK)
        yield connection


@asynccontextmanager
async def owning(admin: Admin, database: str) -> AsyncIterator[Connection]:
    """A transaction as the owner of our schema, for an administrator who need not be a superuser."""
    async with connection_to(admin, database) as connection, connection.transaction():
        await connection.execute(f"SET LOCAL ROLE {OWNER_ROLE}")
        yield connection


def quoted(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
