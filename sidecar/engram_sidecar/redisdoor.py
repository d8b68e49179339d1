"""The data plane's door to Redis: a few connections for commands, subscriptions on connections of their own.

Promises
1. Every failure is CacheUnavailable, with a short reason that holds no address and no secret.
2. A call takes CALL_S at most, also where a connection has to be opened first: that goes on beside it, for the next.
3. After LIMITS.failures calls in a row that failed nobody is asked for a while, and a call fails at once.
4. A subscription never mends itself: what was told while it was away is lost, and whoever listens has to know.
5. Without a login there is no connection, and the driver is not even imported (it takes 22 MiB).

One address is dialled. Behind Sentinel that is a Service or proxy that leads to the primary; a Redis Cluster is reached
through its proxy, as keys of a tenant lie in many slots and a transaction is for one.
Commands go out as MULTI/EXEC and never as a script. Source: Redis documentation, Transactions, ACL, Pub/Sub.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from engram_contract.credentials import CacheLogin
from engram_contract.names import REDIS_PORT
from engram_sidecar.breaker import Breaker, Limits, Outcome, View
from engram_sidecar.errors import CacheUnavailable

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

log = logging.getLogger(__name__)

CONNECTIONS: Final = 4  # calls that are under way at a time; Redis answers one after the other
CONNECT_S: Final = 0.5
CALL_S: Final = 0.05  # Redis answers in a tenth of a millisecond; beyond this the shard itself is as fast
LIMITS: Final = Limits(5, 2.0)

Command = Sequence[str | bytes | int]
Message = tuple[str, bytes]


class Door:
    """The tenant's part of one Redis."""

    def __init__(self) -> None:
        self._login: CacheLogin | None = None
        self._pool: _Pool | None = None
        self._breaker = Breaker()
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def role(self) -> str:
        """The tenant's role, by which its keys and channels begin; "" without a login."""
        return "" if self._login is None else self._login.user

    @property
    def view(self) -> View:
        """What the breaker shows."""
        return self._breaker.view

    def adopt(self, login: CacheLogin | None) -> None:
        """New connections are opened with this login. Open ones stay, unless it is for another place or user."""
        before, self._login = self._login, login
        if login is not None and self._pool is not None and before is not None and _place(login) == _place(before):
            self._pool.dialler.passwords = login.passwords
            return
        self._end_pool()
        if login is not None:
            self._pool, self._breaker = _Pool(_Dialler(login)), Breaker()

    async def close(self) -> None:
        """Every connection is closed."""
        self._login = None
        self._end_pool()
        await asyncio.gather(*self._ending)

    def _end_pool(self) -> None:
        if self._pool is not None:
            task = asyncio.ensure_future(self._pool.close())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
            self._pool = None

    async def mget(self, keys: Sequence[str]) -> list[bytes | None]:
        """The values of the keys, None for each that is not there."""
        [values] = await self._ask([("MGET", *keys)])
        is_right = isinstance(values, list) and len(values) == len(keys)
        if not is_right or not all(each is None or isinstance(each, bytes) for each in values):
            raise CacheUnavailable("it answered what was not asked")
        return list(values)

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """The answers of commands that happen together or not at all. After a failure they may have happened."""
        replies = await self._ask([("MULTI",), *commands, ("EXEC",)])
        if not isinstance(replies[-1], list) or len(replies[-1]) != len(commands):
            raise CacheUnavailable("it answered what was not asked")
        return _checked(replies[-1])

    async def fill(self, key: str, value: bytes, ttl_ms: int) -> bool:
        """Whether the value was put under the key: not if anything is there, a tombstone too."""
        [answer] = await self._ask([("SET", key, value, "NX", "PX", ttl_ms)])
        return answer is not None

    async def _ask(self, commands: Sequence[Command]) -> list[Any]:
        pool, now_s = self._pool, asyncio.get_running_loop().time
        if pool is None:
            raise CacheUnavailable("there is no login")
        breaker = self._breaker
        admitted = breaker.admit(LIMITS, now_s())
        if admitted is None:
            raise CacheUnavailable("it failed again and again and is left alone")
        outcome = Outcome.WITHDRAWN
        try:
            with _translated():
                async with asyncio.timeout(CALL_S):
                    replies = await pool.ask(commands)
            outcome = Outcome.SUCCEEDED
        except CacheUnavailable:
            outcome = Outcome.FAILED
            raise
        finally:
            breaker.settle(admitted, outcome, LIMITS, now_s())
        return _checked(replies)

    @asynccontextmanager
    async def subscribed(self, channels: Sequence[str], silence_s: float) -> AsyncIterator["Subscription"]:
        """What is told in the channels from now on, until the connection is lost or nothing came for `silence_s`."""
        pool = self._pool
        if pool is None:
            raise CacheUnavailable("there is no login")
        with _translated():
            connection = await pool.dialler.connect(CONNECT_S)
        pool.listening.add(connection)
        try:
            with _translated():
                async with asyncio.timeout(CONNECT_S):
                    await connection.send_command("SUBSCRIBE", *channels)
                    for _ in channels:
                        await connection.read_response()
            yield Subscription(connection, silence_s)
        finally:
            pool.listening.discard(connection)
            await connection.disconnect(nowait=True)


class Subscription:
    """The messages of some channels, in the order in which Redis took them."""

    def __init__(self, connection: "AbstractConnection", silence_s: float) -> None:
        self._connection = connection
        self._silence_s = silence_s

    async def next(self) -> Message:
        """Channel and content of the next message. Raises CacheUnavailable once the connection is lost or silent."""
        while True:
            with _translated():
                answer = await self._connection.read_response(timeout=self._silence_s)
            match answer:
                case None:
                    raise CacheUnavailable("nothing was heard")
                case [b"message", bytes() as channel, bytes() as content]:
                    return channel.decode(errors="replace"), content
                case _:
                    raise CacheUnavailable("it told what is no message")


class _Dialler:
    """Opens connections for one login, with the password of a rotation that is right."""

    def __init__(self, login: CacheLogin) -> None:
        # Here and not with the first call: it takes longer than a call may.
        import redis.asyncio  # noqa: F401, PLC0415  only where there is a login

        parts = urlsplit(login.url)
        database = parts.path.strip("/")
        self._options: dict[str, Any] = {
            "host": parts.hostname or "",
            "port": parts.port or REDIS_PORT,
            "db": int(database) if database.isdigit() else 0,
            "username": login.user,
            # The older protocol, in which messages are plain answers; nothing of the newer one is used.
            "protocol": 2,
            "socket_connect_timeout": CONNECT_S,
            "socket_timeout": None,
            "driver_info": None,
        }
        # Who names a CA is not to be answered in the clear, whatever the URL's scheme.
        is_encrypted = parts.scheme == "rediss" or bool(login.ca)
        self._ssl = ssl.create_default_context(cadata=login.ca or None) if is_encrypted else None
        self.passwords = login.passwords
        self._password = ""

    async def connect(self, timeout_s: float) -> "AbstractConnection":
        """A connection that is logged in. Raises the driver's errors, TimeoutError."""
        from redis.exceptions import AuthenticationError  # noqa: PLC0415  only where there is a login

        passwords = sorted(self.passwords, key=lambda password: password != self._password)
        async with asyncio.timeout(timeout_s):
            for password in passwords:
                connection = self._made(password)
                try:
                    await connection.connect()  # type: ignore[no-untyped-call]
                except AuthenticationError:
                    if password == passwords[-1]:
                        raise
                    log.info("Redis refused a password, trying the other one of the rotation")
                except BaseException:
                    await connection.disconnect(nowait=True)
                    raise
                else:
                    self._password = password
                    return connection
        raise CacheUnavailable("there is no password")

    def _made(self, password: str) -> "AbstractConnection":
        from redis.asyncio.connection import Connection, SSLConnection  # noqa: PLC0415  only where there is a login

        if self._ssl is None:
            return Connection(password=password, **self._options)
        connection = SSLConnection(password=password, **self._options)
        connection.ssl_context.context = self._ssl  # the driver's own would trust the system's CAs beside ours
        return connection


class _Pool:
    """At most CONNECTIONS connections for commands, and those that listen, which it only ends."""

    def __init__(self, dialler: _Dialler) -> None:
        self.dialler = dialler
        self.listening: set[AbstractConnection] = set()
        self._turns = asyncio.Semaphore(CONNECTIONS)
        self._idle: list[AbstractConnection] = []
        self._opening: set[asyncio.Task[AbstractConnection]] = set()
        self._is_closed = False

    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        """The answers, as they came."""
        async with self._turns:
            connection = await self._taken()
            try:
                await connection.send_packed_command(connection.pack_commands(commands))
                answers = [await _answer(connection) for _ in commands]
            except BaseException:  # also a caller that left: the next one would read its answers
                await connection.disconnect(nowait=True)
                raise
            await self._keep(connection)
            return answers

    async def _taken(self) -> "AbstractConnection":
        """A connection to ask. Whoever leaves before one is open leaves it to the next."""
        while self._idle:
            connection = self._idle.pop()
            if not await _is_spoilt(connection):
                return connection
            await connection.disconnect(nowait=True)
        if len(self._opening) >= CONNECTIONS:
            raise CacheUnavailable("connections are slow to open")
        opening = asyncio.ensure_future(self.dialler.connect(CONNECT_S))
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(self._inherit)
            raise

    def _inherit(self, opened: "asyncio.Task[AbstractConnection]") -> None:
        if not opened.cancelled() and opened.exception() is None:
            self._idle.append(opened.result())

    async def _keep(self, connection: "AbstractConnection") -> None:
        if self._is_closed or len(self._idle) >= CONNECTIONS:
            await connection.disconnect(nowait=True)
        else:
            self._idle.append(connection)

    async def close(self) -> None:
        """No connection stays open but those that are asked right now, which close behind their answer."""
        self._is_closed = True
        for opening in self._opening:
            opening.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
        ended, self._idle = [*self._idle, *self.listening], []
        for connection in ended:
            await connection.disconnect(nowait=True)


async def _answer(connection: "AbstractConnection") -> Any:  # noqa: ANN401  each command has its own
    """The next answer, also if it is a refusal: the answers behind it have to be read too."""
    from redis.exceptions import ResponseError  # noqa: PLC0415  only where there is a login

    try:
        return await connection.read_response()
    except ResponseError as refusal:
        return refusal


async def _is_spoilt(connection: "AbstractConnection") -> bool:
    """Whether an idle connection was ended, or holds an answer that nobody asked for."""
    try:
        return await connection.can_read()
    except (OSError, _driver_error()):
        return True


def _checked(replies: list[Any]) -> list[Any]:
    """The replies, if none is a refusal."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise _unavailable(reply) from reply
    return replies


@contextmanager
def _translated() -> Iterator[None]:
    """What goes wrong in the block is CacheUnavailable."""
    try:
        yield
    except (OSError, TimeoutError, _driver_error()) as error:
        raise _unavailable(error) from error


def _driver_error() -> type[Exception]:
    """The root of the driver's errors."""
    from redis.exceptions import RedisError  # noqa: PLC0415  only where there is a login

    return RedisError


def _unavailable(error: Exception) -> CacheUnavailable:
    """The error without what the driver says, which names addresses."""
    from redis import exceptions  # noqa: PLC0415  only where there is a login

    if isinstance(error.__context__, ssl.SSLError):
        return CacheUnavailable("it did not prove its name" if _is_unproven(error.__context__) else "TLS failed")
    reasons = {
        TimeoutError: "no answer in time",
        exceptions.TimeoutError: "no answer in time",
        exceptions.AuthenticationError: "the tenant's password was refused",
        exceptions.NoPermissionError: "the tenant's user may not do this",
        exceptions.ResponseError: "it refused a command",
    }
    return CacheUnavailable(next((said for kind, said in reasons.items() if isinstance(error, kind)), "no connection"))


def _is_unproven(error: ssl.SSLError) -> bool:
    return isinstance(error, ssl.SSLCertVerificationError)


def is_address(url: str) -> bool:
    """Whether this is the URL of one Redis. A login in it is passed over: that has its own place."""
    try:
        parts = urlsplit(url)
        return bool(
            parts.scheme in {"redis", "rediss"}
            and parts.hostname
            and parts.port != 0
            and (parts.path.strip("/").isdecimal() or parts.path in {"", "/"})
            and not (parts.query or parts.fragment)
        )
    except ValueError:
        return False


def _place(login: CacheLogin) -> tuple[str, str, str]:
    """What open connections are for: with another one they are of no use."""
    return login.url, login.user, login.ca
