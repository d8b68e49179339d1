"""The data plane's door to Postgres: one small pool per node, named queries, failures to our errors.

Promises
1. A connection is opened when it is first needed and closed when idle; nothing is asked twice behind the caller's back.
2. Every failure is told as what the caller can do: ShardUnavailable, NodeRefused, OutcomeUnknown, DeadlineExceeded,
SlotMoved, QuotaExceeded. All but OutcomeUnknown of a write had no effect.
3. A write whose answer was lost is OutcomeUnknown, never a success and never a plain failure.
4. New credentials, and a map without a node, end a pool only when nobody uses or awaits its connections any more.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

import asyncpg

from engram_contract.credentials import Credentials
from engram_contract.names import FENCE_SQLSTATE, QUOTA_SQLSTATE
from engram_contract.session import UNKNOWN, Position
from engram_contract.shardmap import Node
from engram_sidecar.clock import monotonic_s
from engram_sidecar.consistency import session_of_request
from engram_sidecar.errors import (
    Collision,
    DeadlineExceeded,
    NodeRefused,
    OutcomeUnknown,
    QuotaExceeded,
    ShardUnavailable,
    SlotMoved,
)
from engram_sidecar.pools import Pool
from engram_sidecar.queries import QUERIES
from engram_sidecar.timing import part
from engram_sidecar.trust import ssl_of

log = logging.getLogger(__name__)

CONNECTIONS_PER_NODE: Final = 2  # of 1,000 pods that is 2,000 backends; more would not answer faster from one loop
IDLE_CLOSE_S: Final = 60.0
CONNECT_TIMEOUT_S: Final = 3.0
POSITION_TIMEOUT_S: Final = 1.0
COLLISION_ATTEMPTS: Final = 3  # a deadlock needs two; a third try is already rare

Row = asyncpg.Record
Connection = asyncpg.pool.PoolConnectionProxy
_Pool = Pool["asyncpg.Pool[Row]"]

# The driver calls it an internal error when the server ended the session while nobody asked, and then somebody does.
_DRIVER = (asyncpg.InterfaceError, asyncpg.InternalClientError)
_LOST = (asyncpg.PostgresConnectionError, *_DRIVER, ConnectionError, OSError)
# A pooler says the second of a password that it refuses.
_WRONG_PASSWORD = (asyncpg.InvalidPasswordError, asyncpg.ProtocolViolationError)
_REFUSED = (
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.SerializationError,  # of a replica: what it replays took the rows away that the query looked at
)
# How PgBouncer says that it passed a question on to no server: none was free, or none is there.
_UNSENT: Final = ("query_wait_timeout", "server login has been failing")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a question goes: a node of a shard, and the tenant's database there."""

    shard: str
    node: Node
    database: str


class Asks(Protocol):
    """Asks places: the store itself, or what stands before it."""

    async def read(self, place: Place, query: str, *args: object, timeout_s: float) -> list[Row]:
        """The rows of a named query."""

    async def write(self, place: Place, query: str, *args: object, timeout_s: float) -> list[Row]:
        """The rows of a named query that changes something."""

    def transaction(self, place: Place, timeout_s: float) -> AbstractAsyncContextManager["Transaction"]:
        """Several named queries that happen together or not at all."""


class Store:
    """Pools for all nodes that were asked so far."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._ssl = ssl_of(credentials)
        self.is_locked_out = False  # a server refused all passwords, and none took one since
        self._password = credentials.passwords[0]  # the one that opened the last connection is tried first
        self._pools: dict[Place, _Pool] = {}
        self._ending: dict[asyncio.Task[None], _Pool] = {}

    def connection_count(self) -> int:
        """Open connections to all nodes."""
        return sum(pool.connections.get_size() for pool in (*self._pools.values(), *self._ending.values()))

    def pools(self) -> dict[tuple[str, str], tuple[int, int]]:
        """(shard, node) -> how many connections are idle, and how many in use."""
        each = {(at.shard, at.node.name): pool.connections for at, pool in self._pools.items()}
        return {name: (pool.get_idle_size(), pool.get_size() - pool.get_idle_size()) for name, pool in each.items()}

    def adopt(self, credentials: Credentials) -> None:
        """New connections are opened with these. Open ones stay, unless the CA is another one."""
        has_new_ca = credentials.ca != self._credentials.ca
        self._credentials = credentials
        if has_new_ca:
            self._ssl = ssl_of(credentials)
            self.forget(())

    async def close(self) -> None:
        """Waits for running queries and closes every connection."""
        self.forget(())
        await asyncio.gather(*self._ending)

    def forget(self, places: Iterable[Place]) -> None:
        """Ends the pools of all other places when their running queries have ended: the map no longer names them."""
        for place in self._pools.keys() - set(places):
            pool = self._pools.pop(place)
            task = asyncio.create_task(pool.end())
            self._ending[task] = pool
            task.add_done_callback(self._ending.pop)

    async def _pool(self, place: Place) -> _Pool:
        if place not in self._pools:
            # Connects nothing, as min_size is 0, so no other task runs between the look and the entry.
            connections = await asyncpg.create_pool(
                min_size=0,
                max_size=CONNECTIONS_PER_NODE,
                max_inactive_connection_lifetime=IDLE_CLOSE_S,
                connect=self._connect,
                reset=_no_reset,
                host=place.node.host,
                port=place.node.port,
                database=place.database,
                user=self._credentials.role,
                ssl=self._ssl,
                timeout=CONNECT_TIMEOUT_S,
                # The fence needs READ COMMITTED, whatever the role's own default was set to.
                server_settings={
                    "application_name": "engram-sidecar",
                    "default_transaction_isolation": "read committed",
                },
            )
            self._pools[place] = Pool(connections)
        return self._pools[place]

    async def _connect(self, *args: Any, **options: Any) -> "asyncpg.Connection[Row]":  # noqa: ANN401  what the pool hands on
        """A connection with the first password that is right. Raises the last one's refusal."""
        passwords = sorted(self._credentials.passwords, key=lambda password: password != self._password)
        for password in passwords:
            try:
                connection: asyncpg.Connection[Row] = await asyncpg.connect(*args, password=password, **options)
            except _WRONG_PASSWORD:
                if password == passwords[-1]:
                    self.is_locked_out = True
                    raise
                log.info("a password was refused, trying the other one of the rotation")
            else:
                self._password = password
                self.is_locked_out = False
                return connection
        raise AssertionError  # the last one returns or raises

    @asynccontextmanager
    async def _session(self, place: Place, timeout_s: float) -> AsyncIterator[Connection]:
        """A connection of the place's pool. What goes wrong before it is had has no effect on the store."""
        with await self._pool(place) as pool:
            with part("connect", place.shard):
                connection = await _acquired(pool, place, timeout_s)
            try:
                yield connection
            except ShardUnavailable as error:
                if isinstance(error.__cause__, asyncpg.ReadOnlySQLTransactionError):
                    # A Service or a pooler leads to the new primary; connections that are open stay with the old one.
                    await pool.expire_connections()
                raise
            finally:
                await pool.release(connection)

    async def renew(self, place: Place) -> None:
        """New questions go over new connections: a Service leads to a new primary, open ones stay with the old one."""
        with await self._pool(place) as pool:
            await pool.expire_connections()

    async def read(self, place: Place, query: str, *args: object, timeout_s: float) -> list[Row]:
        """The rows of a named query."""
        deadline_s = monotonic_s() + timeout_s
        async with self._session(place, timeout_s) as connection:
            try:
                with part("db", place.shard, query):
                    return await connection.fetch(QUERIES[query], *args, timeout=_left_s(deadline_s))
            except TimeoutError as error:
                raise DeadlineExceeded(place.shard, "no answer in time") from error
            except (*_DRIVER, OSError) as error:
                raise ShardUnavailable(place.shard, _short(error)) from error
            except asyncpg.PostgresError as error:
                raise _read_error(place, error) from None  # its detail may quote a row, which no log may hold

    async def write(self, place: Place, query: str, *args: object, timeout_s: float) -> list[Row]:
        """The rows of a named query that changes something, in a transaction of its own."""
        deadline_s = monotonic_s() + timeout_s
        for _ in range(COLLISION_ATTEMPTS):
            try:
                async with self._session(place, _left_s(deadline_s)) as connection:
                    with _write_errors(place), _replicated(connection, place), part("db", place.shard, query):
                        rows = await connection.fetch(QUERIES[query], *args, timeout=_left_s(deadline_s))
                    await _tell_position(connection, place, deadline_s)
                    return rows
            except Collision:
                continue
        raise NodeRefused(place.shard, "too many writers of the same memory")

    @asynccontextmanager
    async def transaction(self, place: Place, timeout_s: float) -> AsyncIterator["Transaction"]:
        """Several named queries that happen together or not at all. Raises Collision if it may be run again."""
        deadline_s = monotonic_s() + timeout_s
        async with self._session(place, timeout_s) as connection:
            with _write_errors(place):
                await _check_primary(connection, place, deadline_s)
                with _replicated(connection, place):
                    async with connection.transaction():
                        yield Transaction(connection, place.shard, deadline_s)
            await _tell_position(connection, place, deadline_s)


async def _acquired(pool: "asyncpg.Pool[Row]", place: Place, timeout_s: float) -> Connection:
    try:
        return await pool.acquire(timeout=timeout_s)
    except TimeoutError as error:
        raise DeadlineExceeded(place.shard, "no connection in time") from error
    except asyncpg.InvalidPasswordError as error:
        raise NodeRefused(place.shard, "the tenant's password was refused") from error
    except (*_LOST, *_REFUSED) as error:
        raise ShardUnavailable(place.shard, _short(error)) from error
    except asyncpg.PostgresError as error:
        raise NodeRefused(place.shard, f"no session ({error.sqlstate})") from error


async def _check_primary(connection: Connection, place: Place, deadline_s: float) -> None:
    """Raises ShardUnavailable if the server is a standby: nothing was begun yet.

    A single statement finds that out itself; a transaction cannot be run again by whoever waits for a primary. It is
    asked each time: PgBouncer goes on telling what a server said of itself (`in_hot_standby`) when it met it first.
    """
    if await connection.fetchval(QUERIES["is_standby"], timeout=_left_s(deadline_s)):
        raise ShardUnavailable(place.shard, "the node is not the primary") from asyncpg.ReadOnlySQLTransactionError()


@contextmanager
def _replicated(connection: Connection, place: Place) -> Iterator[None]:
    """Raises OutcomeUnknown if a commit in the block did not wait for its standby to the end.

    The server calls that a success and warns. Of the warning only its place in the source is in no language.
    """
    warners: list[str | None] = []

    def note(_connection: object, message: asyncpg.PostgresLogMessage) -> None:
        warners.append(message.server_source_function)

    connection.add_log_listener(note)
    try:
        yield
    finally:
        with suppress(asyncpg.InterfaceError):  # it was lost, which is told by what is raised already
            connection.remove_log_listener(note)
    if "SyncRepWaitForLSN" in warners:
        raise OutcomeUnknown(place.shard, "it was committed, and its copy on a standby was not waited for")


async def _tell_position(connection: Connection, place: Place, deadline_s: float) -> None:
    """Tells the request's session where a write that was just committed ended, or that this is not known.

    In a statement of its own, as the commit stands behind everything that the write's could ask; and of the server that
    committed, as another connection may lead to another one. Nothing of it fails the write.
    """
    session = session_of_request()
    if not session.has_replicas(place.shard):
        return
    position, ticket = UNKNOWN, session.ticket()
    try:
        timeout_s = min(_left_s(deadline_s), POSITION_TIMEOUT_S)
        [row] = await connection.fetch(QUERIES["node_position"], timeout=timeout_s)
        if not row["is_replica"]:
            position = Position(row["timeline"], row["lsn"])
    except (TimeoutError, OSError, *_DRIVER, asyncpg.PostgresError) as error:
        log.warning("no position of a write", extra={"shard": place.shard, "reason": type(error).__name__})
    session.reached(place.shard, position, ticket)


def _left_s(deadline_s: float) -> float:
    """What is left until the deadline; a hair above none, as a driver takes zero for no limit."""
    return max(deadline_s - monotonic_s(), 0.001)


class Transaction:
    """The named queries of one open transaction, all before one deadline."""

    def __init__(self, connection: Connection, shard: str, deadline_s: float) -> None:
        self._connection = connection
        self._shard = shard
        self._deadline_s = deadline_s

    async def run(self, query: str, *args: object) -> list[Row]:
        """The rows of a named query."""
        timeout_s = _left_s(self._deadline_s)
        with part("db", self._shard, query):
            rows: list[Row] = await self._connection.fetch(QUERIES[query], *args, timeout=timeout_s)
        return rows


class _write_errors:  # noqa: N801  used like a function
    """Tells the failures of a write to `place`."""

    def __init__(self, place: Place) -> None:
        self._shard = place.shard

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        match error:
            case asyncpg.PostgresError() if error.sqlstate == FENCE_SQLSTATE:
                raise SlotMoved(self._shard) from error
            case asyncpg.PostgresError() if error.sqlstate == QUOTA_SQLSTATE:
                raise _quota_exceeded(self._shard, error) from None
            case asyncpg.PostgresConnectionError() if any(said in str(error) for said in _UNSENT):
                raise ShardUnavailable(self._shard, "the pooler does not reach the server") from error
            case TimeoutError() | asyncpg.QueryCanceledError():
                raise OutcomeUnknown(self._shard, "no answer to the write in time") from error
            case asyncpg.DeadlockDetectedError() | asyncpg.SerializationError():
                raise Collision from error
            case asyncpg.ReadOnlySQLTransactionError():
                raise ShardUnavailable(self._shard, "the node is not the primary") from error
            case (
                asyncpg.PostgresConnectionError() | asyncpg.InterfaceError() | asyncpg.InternalClientError() | OSError()
            ):
                raise OutcomeUnknown(self._shard, "the connection was lost during the write") from error
            case asyncpg.AdminShutdownError() | asyncpg.CrashShutdownError():
                raise OutcomeUnknown(self._shard, "the server stopped during the write") from error
            case asyncpg.PostgresError():
                raise _refused(self._shard, error) from None
            case _:
                return


def _read_error(place: Place, error: asyncpg.PostgresError) -> Exception:
    """What a failed read means to the caller."""
    if error.sqlstate == FENCE_SQLSTATE:
        return SlotMoved(place.shard)
    if isinstance(error, asyncpg.QueryCanceledError):
        return DeadlineExceeded(place.shard, "no answer in time")
    if isinstance(error, (asyncpg.PostgresConnectionError, *_REFUSED)):
        return ShardUnavailable(place.shard, _short(error))
    return _refused(place.shard, error)


def _quota_exceeded(shard: str, error: asyncpg.PostgresError) -> Exception:
    """What the shard says in its detail: which quota, and how large it is."""
    try:
        detail = json.loads(error.detail or "")
        return QuotaExceeded(shard, str(detail["what"]), int(detail["limit"]), str(detail["life"]))
    except (ValueError, LookupError, TypeError):
        return _refused(shard, error)


def _refused(shard: str, error: asyncpg.PostgresError) -> ShardUnavailable:
    """The server answered with an error that no caller can mend: out of space, another schema, a fault of ours."""
    log.error("the server refused a query", extra={"shard": shard, "sqlstate": error.sqlstate})
    return NodeRefused(shard, f"the server refused the query ({error.sqlstate})", retry_after_s=5)


async def _no_reset(_connection: object) -> None:
    """Nothing to undo between users: we never change a session's state, and the four default statements cost 130 us."""


def _short(error: BaseException) -> str:
    """The reason in words that hold no address and no secret."""
    match error:
        case asyncpg.CannotConnectNowError() | asyncpg.AdminShutdownError() | asyncpg.CrashShutdownError():
            return "the server is starting or stopping"
        case asyncpg.TooManyConnectionsError():
            return "the server has no connection left"
        case asyncpg.ReadOnlySQLTransactionError():
            return "the node is not the primary"
        case ConnectionRefusedError():
            return "connection refused"
        case _:
            return "connection lost"
