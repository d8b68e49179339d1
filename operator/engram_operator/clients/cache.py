"""The door to Redis: one user for each tenant, who reaches its own keys and its own channels, and does nothing else.

A Redis that starts anew knows the operator alone: users are looked at again and again and made where they are missing.

Source: Redis documentation, ACL. `SCAN`, `KEYS` and the like are no command of a tenant's: they name everybody's keys.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from engram_contract.names import cache_part
from engram_contract.redisurl import Address, Kind, RedisLogin
from engram_operator.errors import CacheRefused, CacheUnreachable, OperatorError

T = TypeVar("T")

TIMEOUT_S: Final = 3.0
SCAN_KEYS: Final = 500
COMMANDS: Final = (
    *("auth", "client|id", "client|setname", "hello", "ping", "quit", "select"),
    *("del", "exists", "expire", "get", "getdel", "getex", "incr", "incrby", "decrby", "mget", "pexpire", "pttl"),
    *("psetex", "set", "setex", "ttl", "unlink", "discard", "exec", "multi", "publish", "subscribe", "unsubscribe"),
)


TRANSACTION: Final = ("discard", "exec", "multi", "unwatch", "watch")  # the category


@dataclass(frozen=True, slots=True)
class Servers:
    """All that a place has: users are made at each, keys are in the primaries alone."""

    primaries: tuple[Address, ...]
    replicas: tuple[Address, ...] = ()


def digests_of(passwords: tuple[str, ...]) -> list[str]:
    """What Redis keeps of passwords."""
    return sorted(hashlib.sha256(each.encode()).hexdigest() for each in passwords)


async def has_user(admin: RedisLogin, role: str, passwords: tuple[str, ...]) -> bool:
    """Whether every server has the tenant's user as `keep_user` makes it. Raises CacheUnreachable, CacheRefused."""

    async def has(client: Redis) -> bool:
        told: Mapping[str, Any] | None = await client.acl_getuser(role)
        return told is not None and _is_right(told, role, passwords)

    found = await _everywhere(admin, has)
    if any(each is False for each in found):
        return False
    return all(_whole(found))


def _is_right(told: Mapping[str, Any], role: str, passwords: tuple[str, ...]) -> bool:
    return (
        sorted(told["passwords"]) == digests_of(passwords)
        and "on" in told["flags"]
        and _words(told["keys"]) == {f"~{cache_part(role)}*"}
        and _words(told["channels"]) == {f"&{cache_part(role)}*"}
        and _allowed(_words(told["commands"]) | _words(told["categories"])) == {*COMMANDS}
    )


def _allowed(rules: set[str]) -> set[str]:
    """The commands that rules allow. Redis 7.0 does not tell them as they were given, but fewer that mean the same."""
    known = {each for each in rules if each.startswith("+")}
    whole = known - {"+@transaction"} | ({f"+{each}" for each in TRANSACTION} if "+@transaction" in known else set())
    return {each[1:] for each in whole} - {each[1:] for each in rules if each.startswith("-")}


async def keep_user(admin: RedisLogin, role: str, passwords: tuple[str, ...]) -> None:
    """The tenant's user has these passwords and its own part of the keys. Raises CacheUnreachable, CacheRefused."""
    digests = (f"#{each}" for each in digests_of(passwords))
    rules = ["reset", "on", *digests, f"~{cache_part(role)}*", f"&{cache_part(role)}*"]

    async def keep(client: Redis) -> None:
        await _run(client, "ACL", "SETUSER", role, *rules, *(f"+{each}" for each in COMMANDS))

    _whole(await _everywhere(admin, keep))


async def remove_user(admin: RedisLogin, role: str) -> bool:
    """True if there was such a user; its connections end with it, its keys stay.

    Raises CacheUnreachable, CacheRefused.
    """

    async def remove(client: Redis) -> bool:
        return bool(await client.acl_deluser(role))

    return any(_whole(await _everywhere(admin, remove)))


async def erase_user(admin: RedisLogin, role: str) -> None:
    """Nobody logs in as the tenant any more, and none of its keys is left. Raises CacheUnreachable, CacheRefused."""
    await remove_user(admin, role)
    for server in (await _servers(admin)).primaries:
        async with _connected(admin, server) as client:
            await _erase_keys(client, role)


async def _erase_keys(client: Redis, role: str) -> None:
    batch: list[str] = []
    async for key in client.scan_iter(match=f"{cache_part(role)}*", count=SCAN_KEYS):
        batch.append(key)
        if len(batch) == SCAN_KEYS:
            await client.unlink(*batch)
            batch.clear()
    if batch:
        await client.unlink(*batch)


async def _everywhere(admin: RedisLogin, ask: Callable[[Redis], Awaitable[T]]) -> list[T | BaseException]:
    """What each server answers, or why it does not: users are not replicated, and one may be away."""

    async def asked(server: Address) -> T:
        async with _connected(admin, server) as client:
            return await ask(client)

    servers = await _servers(admin)
    every = (*servers.primaries, *servers.replicas)
    return await asyncio.gather(*(asked(each) for each in every), return_exceptions=True)


def _whole(answers: Sequence[T | BaseException]) -> list[T]:
    """The answers, if every server gave one; the first failure otherwise."""
    for each in answers:
        if isinstance(each, BaseException):
            raise each
    return [each for each in answers if not isinstance(each, BaseException)]


async def _servers(admin: RedisLogin) -> Servers:
    """As the first says that answers: the one server itself, a Sentinel, a node of the Cluster."""
    place = admin.place
    if place.kind is Kind.SERVER:
        return Servers(place.addresses)
    failure: OperatorError = CacheUnreachable("it has no address")
    for address in place.addresses:
        try:
            async with _connected(admin, address, is_sentinel=place.kind is Kind.SENTINEL) as client:
                if place.kind is Kind.SENTINEL:
                    return await _servers_at_sentinel(client, place.name)
                return await _servers_at_node(client, address)
        except (CacheUnreachable, CacheRefused) as error:
            failure = error
    raise failure


async def _servers_at_sentinel(client: Redis, name: str) -> Servers:
    primary = await _run(client, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", name)
    if not primary:
        raise CacheUnreachable(f"a Sentinel knows no primary {name}")
    told = [_pairs(each) for each in await _run(client, "SENTINEL", "REPLICAS", name)]
    # One that is away makes its users when it is back: it is asked again in a minute.
    replicas = [(each["ip"], int(each["port"])) for each in told if "s_down" not in each["flags"]]
    return Servers(((primary[0], int(primary[1])),), tuple(replicas))


async def _servers_at_node(client: Redis, asked: Address) -> Servers:
    primaries: dict[Address, None] = {}
    replicas: dict[Address, None] = {}
    for _, _, *nodes in await _run(client, "CLUSTER", "SLOTS"):
        first, *others = ((each[0] or asked[0], int(each[1])) for each in nodes)
        primaries[first] = None
        replicas |= dict.fromkeys(others)
    return Servers(tuple(primaries), tuple(replicas))


def _pairs(told: Any) -> Mapping[str, str]:  # noqa: ANN401  a list of names and values, or what the driver made of it
    return told if isinstance(told, Mapping) else dict(zip(told[::2], told[1::2], strict=True))


@asynccontextmanager
async def _connected(admin: RedisLogin, server: Address, *, is_sentinel: bool = False) -> AsyncIterator[Redis]:
    host, port = server
    login = {} if is_sentinel else {"username": admin.user, "password": admin.password}
    client = Redis(
        host=host,
        port=port,
        **login,  # type: ignore[arg-type]
        ssl=admin.place.is_encrypted,
        retry=Retry(NoBackoff(), 0),  # the next round is the next try; the driver's own would take a minute
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        decode_responses=True,
    )
    try:
        yield client
    except (NoPermissionError, AuthenticationError) as error:
        raise CacheRefused(f"{host}: {error}") from error
    except (RedisError, OSError, TimeoutError) as error:
        raise CacheUnreachable(f"{host}: {str(error) or type(error).__name__}") from error
    finally:
        await client.aclose()


async def _run(client: Redis, *words: str) -> Any:  # noqa: ANN401  each command has its own answer
    return await client.execute_command(*words)  # type: ignore[no-untyped-call]


def _words(told: object) -> set[str]:
    """Rules as a list or as one text; what takes all commands away is in every user."""
    words = told.split() if isinstance(told, str) else [str(each) for each in told]  # type: ignore[attr-defined]
    return {each for each in words if each != "-@all"}
