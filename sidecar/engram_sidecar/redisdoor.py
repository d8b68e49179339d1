"""The data plane's door to Redis: a few connections for commands, subscriptions on connections of their own.

Promises
1. Every failure is CacheUnavailable, with a short reason that holds no address and no secret.
2. A call takes CALL_S at most, also where a connection has to be opened first: that goes on beside it, for the next.
3. After LIMITS.failures calls in a row that failed nobody is asked for a while, and a call fails at once.
4. A subscription never mends itself: what was told while it was away is lost, and whoever listens has to know.
5. Without a login there is no connection, and the driver is not even imported (it takes 22 MiB).

All connections are to one server, which redisdial.py finds. Once it is another, or says that it is the wrong one, every
connection is left, also those that listen: so whoever listens is in doubt (4), and the next ones are where it is now.
Commands go out as MULTI/EXEC and never as a script. Source: Redis documentation, Transactions, ACL, Pub/Sub.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from engram_contract.credentials import CacheLogin
from engram_contract.names import cache_part
from engram_contract.redisurl import Address
from engram_sidecar.breaker import Breaker, Limits, Outcome, View
from engram_sidecar.clock import monotonic_s
from engram_sidecar.errors import CacheUnavailable
from engram_sidecar.redisdial import CONNECT_S, Command, Dialler, driver_error, is_elsewhere, translated, unavailable

if TYPE_CHECKING:
    from redis.asyncio.connection import Connection

log = logging.getLogger(__name__)

CONNECTIONS: Final = 4  # calls that are under way at a time; Redis answers one after the other
CALL_S: Final = 0.05  # Redis answers in a tenth of a millisecond; beyond this the shard itself is as fast
LIMITS: Final = Limits(5, 2.0)

Message = tuple[str, bytes]


class Door:
    """The tenant's part of one Redis."""

    def __init__(self) -> None:
        self._login: CacheLogin | None = None
        self._pool: _Pool | None = None
        self._breaker = Breaker()
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def part(self) -> str:
        """By what the tenant's keys and channels begin; "" without a login."""
        return "" if self._login is None else cache_part(self._login.user)

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
            self._pool, self._breaker = _Pool(Dialler(login)), Breaker()

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

    async def look(self) -> None:
        """If Sentinels name another primary by now, every connection is left. Never raises, and takes CALL_S at most.

        A primary that was replaced goes on for seconds until it is told so, and would be believed meanwhile.
        """
        if (pool := self._pool) is not None:
            with suppress(CacheUnavailable), translated():
                async with asyncio.timeout(CALL_S):
                    await pool.look()

    async def _ask(self, commands: Sequence[Command]) -> list[Any]:
        pool = self._pool
        if pool is None:
            raise CacheUnavailable("there is no login")
        breaker = self._breaker
        admitted = breaker.admit(LIMITS, monotonic_s())
        if admitted is None:
            raise CacheUnavailable("it failed again and again and is left alone")
        outcome = Outcome.WITHDRAWN
        try:
            with translated():
                async with asyncio.timeout(CALL_S):
                    replies = await pool.ask(commands)
            outcome = Outcome.SUCCEEDED
        except CacheUnavailable:
            outcome = Outcome.FAILED
            raise
        finally:
            breaker.settle(admitted, outcome, LIMITS, monotonic_s())
        return _checked(replies)

    @asynccontextmanager
    async def subscribed(self, channels: Sequence[str], silence_s: float) -> AsyncIterator["Subscription"]:
        """What is told in the channels from now on, until the connection is lost or nothing came for `silence_s`."""
        pool = self._pool
        if pool is None:
            raise CacheUnavailable("there is no login")
        with translated():
            connection = await pool.dial()
        pool.listening.add(connection)
        try:
            with translated():
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

    def __init__(self, connection: "Connection", silence_s: float) -> None:
        self._connection = connection
        self._silence_s = silence_s

    async def next(self) -> Message:
        """Channel and content of the next message. Raises CacheUnavailable once the connection is lost or silent."""
        while True:
            with translated():
                answer = await self._connection.read_response(timeout=self._silence_s)
            match answer:
                case None:
                    raise CacheUnavailable("nothing was heard")
                case [b"message", bytes() as channel, bytes() as content]:
                    return channel.decode(errors="replace"), content
                case _:
                    raise CacheUnavailable("it told what is no message")


class _Pool:
    """At most CONNECTIONS connections for commands, and those that listen, which it only ends. All are to one place."""

    def __init__(self, dialler: Dialler) -> None:
        self.dialler = dialler
        self.listening: set[Connection] = set()
        self._place: Address | None = None
        self._good: set[Connection] = set()  # those to the place; what is not in here is not asked again
        self._turns = asyncio.Semaphore(CONNECTIONS)
        self._idle: list[Connection] = []
        self._opening: set[asyncio.Task[Connection]] = set()
        self._is_closed = False

    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        """The answers, as they came."""
        async with self._turns:
            connection = await self._taken()
            try:
                await connection.send_packed_command(connection.pack_commands(commands))
                answers = [await _answer(connection) for _ in commands]
            except BaseException:  # also a caller that left: the next one would read its answers
                await self._drop(connection)
                raise
            if connection in self._good and any(map(is_elsewhere, answers)):
                await self._leave("it says so itself", None)
            await self._keep(connection)
            return answers

    async def dial(self) -> "Connection":
        """A new connection. If it is to another place than those before, they are left."""
        connection = await self.dialler.connect()
        if self._is_closed:
            await connection.disconnect(nowait=True)
            raise CacheUnavailable("its login is another by now")
        place = connection.host, connection.port
        if self._place not in {None, place}:
            await self._leave("another one was found", place)
        self._place = place
        self._good.add(connection)
        return connection

    async def look(self) -> None:
        """Leaves the connections if they are not to whom Sentinels name. Raises the driver's errors."""
        primary = await self.dialler.primary()
        if None not in {primary, self._place} and primary != self._place:
            await self._leave("Sentinels name another one", None)

    async def _leave(self, reason: str, place: Address | None) -> None:
        """The place is this now, if it is known, and no connection of before is asked or listened to any more."""
        log.info("Redis is another server now", extra={"reason": reason})
        self._place = place
        await self._end_all()

    async def _end_all(self) -> None:
        self._good.clear()
        left, self._idle = [*self._idle, *self.listening], []
        for connection in left:
            await connection.disconnect(nowait=True)

    async def _taken(self) -> "Connection":
        """A connection to ask. Whoever leaves before one is open leaves it to the next."""
        while self._idle:
            connection = self._idle.pop()
            if connection in self._good and not await _is_spoilt(connection):
                return connection
            await self._drop(connection)
        if len(self._opening) >= CONNECTIONS:
            raise CacheUnavailable("connections are slow to open")
        opening = asyncio.ensure_future(self.dial())
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(self._inherit)
            raise

    def _inherit(self, opened: "asyncio.Task[Connection]") -> None:
        if not opened.cancelled() and opened.exception() is None:
            self._idle.append(opened.result())

    async def _keep(self, connection: "Connection") -> None:
        if connection not in self._good or len(self._idle) >= CONNECTIONS:
            await self._drop(connection)
        else:
            self._idle.append(connection)

    async def _drop(self, connection: "Connection") -> None:
        self._good.discard(connection)
        await connection.disconnect(nowait=True)

    async def close(self) -> None:
        """No connection stays open but those that are asked right now, which close behind their answer."""
        self._is_closed = True
        for opening in self._opening:
            opening.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
        await self._end_all()
        await self.dialler.close()


async def _answer(connection: "Connection") -> Any:  # noqa: ANN401  each command has its own
    """The next answer, also if it is a refusal: the answers behind it have to be read too."""
    from redis.exceptions import ResponseError  # noqa: PLC0415  only where there is a login

    try:
        return await connection.read_response()
    except ResponseError as refusal:
        return refusal


async def _is_spoilt(connection: "Connection") -> bool:
    """Whether an idle connection was ended, or holds an answer that nobody asked for."""
    try:
        return await connection.can_read()
    except (OSError, driver_error()):
        return True


def _checked(replies: list[Any]) -> list[Any]:
    """The replies, if none is a refusal."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise unavailable(reply) from reply
    return replies


def _place(login: CacheLogin) -> tuple[str, str, str]:
    """What open connections are for: with another one they are of no use."""
    return login.url, login.user, login.ca
