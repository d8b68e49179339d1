"""Opens connections to Redis: finds whom to dial, logs in with the password that is right, and says what went wrong.

    a server   --> that one
    Sentinels  --> the first that answers names the primary --> that one, if it says itself that it is no replica
    a Cluster  --> a node that answers: has it the tenant's slot? --MOVED--> the one that it names, and so on

Promises
1. Every connection asks anew; who answered last is asked first. What is found is where all of a tenant's keys are, and
   where its transactions and messages happen in one order.
2. Nobody is told the tenant's password but servers: Sentinels are asked without a login.
3. Every failure that leaves `translated` is CacheUnavailable, with a short reason that holds no address and no secret.

Sources: Redis documentation, Sentinel client spec ("Guidelines for Redis clients with support for Redis Sentinel"),
Cluster specification ("MOVED redirection"). Of the two ways to ask a server for its part `HELLO` is taken: for `ROLE` a
tenant would need a right by which it sees the addresses of all replicas.
"""

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

from engram_contract.credentials import CacheLogin
from engram_contract.names import cache_part
from engram_contract.redisurl import Address, Kind, RedisPlace
from engram_sidecar.errors import CacheUnavailable

if TYPE_CHECKING:
    from redis.asyncio.connection import Connection

T = TypeVar("T")

log = logging.getLogger(__name__)

CONNECT_S: Final = 0.5
HOPS: Final = 3  # nodes that know less and less of the cluster; more is a circle

Command = Sequence[str | bytes | int]


class Dialler:
    """Opens connections for one login."""

    def __init__(self, login: CacheLogin) -> None:
        # Here and not with the first call: it takes longer than a call may.
        import redis.asyncio  # noqa: F401, PLC0415  only where there is a login

        self._place = place = RedisPlace.from_url(login.url)
        self._user = login.user
        self._options: dict[str, Any] = {
            # The older protocol, in which messages are plain answers; nothing of the newer one is used.
            "protocol": 2,
            "socket_connect_timeout": CONNECT_S,
            "socket_timeout": None,
            "driver_info": None,
        }
        # Who names a CA is not to be answered in the clear, whatever the URL's scheme.
        is_encrypted = place.is_encrypted or bool(login.ca)
        self._ssl = ssl.create_default_context(cadata=login.ca or None) if is_encrypted else None
        self.passwords = login.passwords
        self._password = ""
        self._order = list(place.addresses)  # in which they are asked
        self._sentinel: Connection | None = None  # stays open
        self._turn = asyncio.Lock()
        self._is_closed = False

    async def connect(self) -> "Connection":
        """A connection that is logged in where the tenant's keys are. Raises the driver's errors, TimeoutError."""
        async with asyncio.timeout(CONNECT_S):
            match self._place.kind:
                case Kind.SERVER:
                    return await self._logged_in(self._order[0])
                case Kind.SENTINEL:
                    return await self._at_primary(await self._named())
                case Kind.CLUSTER:
                    return await self._of_first(self._at_owner)

    async def primary(self) -> Address | None:
        """Whom Sentinels name now; None without them. Raises the driver's errors."""
        return await self._named() if self._place.kind is Kind.SENTINEL else None

    async def close(self) -> None:
        """No connection to a Sentinel stays, and none is opened any more."""
        self._is_closed = True
        async with self._turn:
            await self._end_sentinel()

    async def _end_sentinel(self) -> None:
        if self._sentinel is not None:
            await self._sentinel.disconnect(nowait=True)
            self._sentinel = None

    async def _named(self) -> Address:
        """The address of the primary, as the first Sentinel says it that knows it."""
        async with self._turn:
            if self._is_closed:
                raise CacheUnavailable("its login is another by now")
            if self._sentinel is not None:
                try:
                    return await self._name_at(self._sentinel)
                except (OSError, CacheUnavailable, driver_error()):
                    await self._end_sentinel()
                except BaseException:  # whoever comes next would read our answer
                    await self._end_sentinel()
                    raise
            return await self._of_first(self._name_by)

    async def _name_by(self, address: Address) -> Address:
        sentinel = self._made(address)
        try:
            await sentinel.connect()  # type: ignore[no-untyped-call]
            named = await self._name_at(sentinel)
        except BaseException:
            await sentinel.disconnect(nowait=True)
            raise
        self._sentinel = sentinel
        return named

    async def _name_at(self, sentinel: "Connection") -> Address:
        match await asked(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._place.name):
            case [bytes() as host, bytes() as port]:
                return host.decode(), int(port)
        raise CacheUnavailable("a Sentinel knows no primary of this name")

    async def _at_primary(self, address: Address) -> "Connection":
        connection = await self._logged_in(address)
        try:
            told = await asked(connection, "HELLO", 2)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        if dict(zip(told[::2], told[1::2], strict=False)).get(b"role") != b"master":
            await connection.disconnect(nowait=True)
            raise CacheUnavailable("whom the Sentinels name is no primary yet")
        return connection

    async def _at_owner(self, address: Address) -> "Connection":
        """Whoever has the tenant's slot, beginning at this node."""
        from redis.exceptions import MovedError  # noqa: PLC0415  only where there is a login

        for _ in range(HOPS):
            connection = await self._logged_in(address)
            try:
                await asked(connection, "EXISTS", f"{cache_part(self._user)}writes")
            except MovedError as moved:
                await connection.disconnect(nowait=True)
                address = moved.host or address[0], moved.port  # without a host it is the one that was asked
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
            else:
                return connection
        raise CacheUnavailable("its nodes send us in a circle")

    async def _of_first(self, attempt: Callable[[Address], Awaitable[T]]) -> T:
        """What the first address gives that gives something. Who gave nothing is asked last from then on."""
        failure: Exception = CacheUnavailable("there is no address")
        for address in tuple(self._order):
            try:
                async with asyncio.timeout(CONNECT_S / (len(self._order) + 1)):
                    given = await attempt(address)
            except (OSError, CacheUnavailable, driver_error()) as error:
                failure = error
                self._ask_last(address)
            except BaseException:  # nobody waits for it any more; whoever comes next asks another one first
                self._ask_last(address)
                raise
            else:
                return given
        raise failure

    def _ask_last(self, address: Address) -> None:
        self._order.remove(address)
        self._order.append(address)

    async def _logged_in(self, address: Address) -> "Connection":
        """With the password of a rotation that is right."""
        from redis.exceptions import AuthenticationError  # noqa: PLC0415  only where there is a login

        passwords = sorted(self.passwords, key=lambda password: password != self._password)
        for password in passwords:
            connection = self._made(address, username=self._user, password=password, db=self._place.database)
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

    def _made(self, address: Address, **login: Any) -> "Connection":  # noqa: ANN401  as the driver names them
        from redis.asyncio import connection as kinds  # noqa: PLC0415  only where there is a login

        host, port = address
        if self._ssl is None:
            return kinds.Connection(host=host, port=port, **login, **self._options)
        connection = kinds.SSLConnection(host=host, port=port, **login, **self._options)
        connection.ssl_context.context = self._ssl  # the driver's own would trust the system's CAs beside ours
        return connection


async def asked(connection: "Connection", *command: str | int) -> Any:  # noqa: ANN401  each command has its own
    """The answer to one command. Raises the driver's errors."""
    await connection.send_command(*command)
    return await connection.read_response()


def is_elsewhere(answer: object) -> bool:
    """Whether a server says by this that another one is to be asked from now on."""
    from redis import exceptions  # noqa: PLC0415  only where there is a login

    kinds = exceptions.ReadOnlyError, exceptions.MasterDownError, exceptions.AskError, exceptions.TryAgainError
    return isinstance(answer, (*kinds, exceptions.ClusterDownError))  # MOVED is an AskError to the driver


@contextmanager
def translated() -> Iterator[None]:
    """What goes wrong in the block is CacheUnavailable."""
    try:
        yield
    except (OSError, TimeoutError, driver_error()) as error:
        raise unavailable(error) from error


def driver_error() -> type[Exception]:
    """The root of the driver's errors."""
    from redis.exceptions import RedisError  # noqa: PLC0415  only where there is a login

    return RedisError


def unavailable(error: Exception) -> CacheUnavailable:
    """The error without what the driver says, which names addresses."""
    from redis import exceptions  # noqa: PLC0415  only where there is a login

    if isinstance(error.__context__, ssl.SSLError):
        return CacheUnavailable("it did not prove its name" if _is_unproven(error.__context__) else "TLS failed")
    if is_elsewhere(error):
        return CacheUnavailable("another server is to be asked")
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
