"""The data plane's door to Postgres: one small pool per node, named queries, rows to records, failures to our errors.

Promises
1. A connection is opened when it is first needed and closed when idle; nothing is asked twice behind the caller's back.
2. Every failure is told as what the caller can do: ShardUnavailable, OutcomeUnknown, DeadlineExceeded, SlotMoved.
3. A write whose answer was lost is OutcomeUnknown, never a success and never a plain failure.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import asyncpg

from engram_contract.names import FENCE_SQLSTATE
from engram_contract.shardmap import Node
from engram_contract.slots import MemoryId
from engram_sidecar.errors import DeadlineExceeded, OutcomeUnknown, ShardUnavailable, SlotMoved
from engram_sidecar.queries import QUERIES
from engram_sidecar.records import Memory

log = logging.getLogger(__name__)

CONNECTIONS_PER_NODE: Final = 2  # of 1,000 pods that is 2,000 backends; more would not answer faster from one loop
IDLE_CLOSE_S: Final = 60.0
CONNECT_TIMEOUT_S: Final = 3.0
COLLISION_ATTEMPTS: Final = 3  # a deadlock needs two; a third try is already rare

Row = asyncpg.Record
Connection = asyncpg.pool.PoolConnectionProxy

_LOST = (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, ConnectionError, OSError)
_REFUSED = (
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.ReadOnlySQLTransactionError,
)


class Collision(Exception):
    """Two transactions waited for each other and this one was rolled back: it may be run again as it is."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """The tenant's login. During a rotation both passwords are there and one of them is right.

    With `trusted`, CAs as PEM, a server must prove its name; without, nothing is encrypted unless the server wants it.
    """

    role: str
    passwords: tuple[str, ...]
    trusted: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a question goes: a node of a shard, and the tenant's database there."""

    shard: str
    node: Node
    database: str


class Store:
    """Pools for all nodes that were asked so far."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._ssl: ssl.SSLContext | Literal["prefer"] = "prefer"
        if credentials.trusted:
            self._ssl = ssl.create_default_context(cadata=credentials.trusted)
        self._pools: dict[Place, asyncpg.Pool[Row]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def connection_count(self) -> int:
        """Open connections to all nodes."""
        return sum(pool.get_size() for pool in self._pools.values())

    async def close(self) -> None:
        """Waits for running queries and closes every connection."""
        self.forget(())
        await asyncio.gather(*self._closing)

    def forget(self, places: Iterable[Place]) -> None:
        """Ends the pools of all other places when their running queries have ended: the map no longer names them."""
        kept = set(places)
        for place in [place for place in self._pools if place not in kept]:
            task = asyncio.create_task(self._pools.pop(place).close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _pool(self, place: Place) -> "asyncpg.Pool[Row]":
        if place not in self._pools:
            # Connects nothing, as min_size is 0, so no other task runs between the look and the entry.
            self._pools[place] = await asyncpg.create_pool(
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
        return self._pools[place]

    async def _connect(self, *args: Any, **options: Any) -> "asyncpg.Connection[Row]":  # noqa: ANN401  what the pool hands on
        for password in self._credentials.passwords[:-1]:
            try:
                return await asyncpg.connect(*args, password=password, **options)
            except asyncpg.InvalidPasswordError:
                log.info("the first password was refused, trying the other one of the rotation")
        return await asyncpg.connect(*args, password=self._credentials.passwords[-1], **options)

    @asynccontextmanager
    async def _session(self, place: Place, timeout_s: float) -> AsyncIterator[Connection]:
        """A connection of the place's pool. What goes wrong before it is had has no effect on the store."""
        pool = await self._pool(place)
        try:
            connection = await pool.acquire(timeout=timeout_s)
        except TimeoutError as error:
            raise DeadlineExceeded(place.shard, "no connection in time") from error
        except (*_LOST, *_REFUSED) as error:
            raise ShardUnavailable(place.shard, _short(error)) from error
        except asyncpg.InvalidPasswordError as error:
            raise ShardUnavailable(place.shard, "the tenant's password was refused") from error
        except asyncpg.PostgresError as error:
            raise ShardUnavailable(place.shard, f"no session ({error.sqlstate})") from error
        try:
            yield connection
        except ShardUnavailable as error:
            if isinstance(error.__cause__, asyncpg.ReadOnlySQLTransactionError):
                # A Service or a pooler leads to the new primary; connections that are open stay with the old one.
                await pool.expire_connections()
            raise
        finally:
            await pool.release(connection)

    async def read(self, place: Place, query: str, *args: object, timeout_s: float) -> list[Row]:
        """The rows of a named query."""
        deadline_s = _now_s() + timeout_s
        async with self._session(place, timeout_s) as connection:
            try:
                return await connection.fetch(QUERIES[query], *args, timeout=_left_s(deadline_s))
            except TimeoutError as error:
                raise DeadlineExceeded(place.shard, "no answer in time") from error
            except (asyncpg.InterfaceError, OSError) as error:
                raise ShardUnavailable(place.shard, _short(error)) from error
            except asyncpg.PostgresError as error:
                raise _read_error(place, error) from None  # its detail may quote a row, which no log may hold

    async def write(self, place: Place, query: str, *args: object, timeout_s: float) -> list[Row]:
        """The rows of a named query that changes something, in a transaction of its own."""
        deadline_s = _now_s() + timeout_s
        for _ in range(COLLISION_ATTEMPTS):
            try:
                async with self._session(place, _left_s(deadline_s)) as connection:
                    with _write_errors(place):
                        return await connection.fetch(QUERIES[query], *args, timeout=_left_s(deadline_s))
            except Collision:
                continue
        raise ShardUnavailable(place.shard, "too many writers of the same memory")

    @asynccontextmanager
    async def transaction(self, place: Place, timeout_s: float) -> AsyncIterator["Transaction"]:
        """Several named queries that happen together or not at all. Raises Collision if it may be run again."""
        deadline_s = _now_s() + timeout_s
        async with self._session(place, timeout_s) as connection:
            with _write_errors(place):
                async with connection.transaction():
                    yield Transaction(connection, deadline_s)


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _left_s(deadline_s: float) -> float:
    """What is left until the deadline; a hair above none, as a driver takes zero for no limit."""
    return max(deadline_s - _now_s(), 0.001)


class Transaction:
    """The named queries of one open transaction, all before one deadline."""

    def __init__(self, connection: Connection, deadline_s: float) -> None:
        self._connection = connection
        self._deadline_s = deadline_s

    async def run(self, query: str, *args: object) -> list[Row]:
        """The rows of a named query."""
        timeout_s = _left_s(self._deadline_s)
        rows: list[Row] = await self._connection.fetch(QUERIES[query], *args, timeout=timeout_s)
        return rows

    async def run_many(self, query: str, arguments: Sequence[Sequence[object]]) -> list[Row]:
        """The rows of a named query for each set of arguments, in order, in one round trip."""
        timeout_s = _left_s(self._deadline_s)
        rows: list[Row] = await self._connection.fetchmany(QUERIES[query], arguments, timeout=timeout_s)
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
            case TimeoutError() | asyncpg.QueryCanceledError():
                raise OutcomeUnknown(self._shard, "no answer to the write in time") from error
            case asyncpg.DeadlockDetectedError() | asyncpg.SerializationError():
                raise Collision from error
            case asyncpg.ReadOnlySQLTransactionError():
                raise ShardUnavailable(self._shard, "the node is not the primary") from error
            case asyncpg.PostgresConnectionError() | asyncpg.InterfaceError() | OSError():
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


def _refused(shard: str, error: asyncpg.PostgresError) -> ShardUnavailable:
    """The server answered with an error that no caller can mend: out of space, another schema, a fault of ours."""
    log.error("the server refused a query", extra={"shard": shard, "sqlstate": error.sqlstate})
    return ShardUnavailable(shard, f"the server refused the query ({error.sqlstate})", retry_after_s=5)


async def _no_reset(_connection: object) -> None:
    """Nothing to undo between users: we never change a session's state, and the four default statements cost 130 us."""


def _short(error: BaseException) -> str:
    """The reason in words that hold no address and no secret."""
    match error:
        case asyncpg.CannotConnectNowError():
            return "the server is starting or stopping"
        case asyncpg.AdminShutdownError() | asyncpg.CrashShutdownError():
            return "the server is stopping"
        case asyncpg.TooManyConnectionsError():
            return "the server has no connection left"
        case asyncpg.ReadOnlySQLTransactionError():
            return "the node is not the primary"
        case ConnectionRefusedError():
            return "connection refused"
        case _:
            return "connection lost"


def is_bundle(text: str) -> bool:
    """Whether the text holds certificates in PEM."""
    try:
        ssl.create_default_context(cadata=text)
    except (ssl.SSLError, ValueError):
        return False
    return True


def to_memory(row: Row) -> Memory:
    """The record in a row of get_memories, list_memories or search_memories."""
    return Memory(
        id=MemoryId(row["slot"], row["id"]),
        namespace=tuple(row["namespace"]),
        key=row["key"],
        type=row["type"],
        user=row["user_id"],
        agent=row["agent_id"],
        session=row["session_id"],
        content=row["content"],
        value=row["value"],
        importance=row["importance"],
        created=row["created"],
        updated=row["updated"],
        expires=row["expires"],
        version=row["version"],
    )
