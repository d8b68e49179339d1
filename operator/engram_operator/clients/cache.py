"""The door to Redis: one user for each tenant, who reaches its own keys and its own channels, and does nothing else.

A Redis that starts anew knows the operator alone: users are looked at again and again and made where they are missing.

Source: Redis documentation, ACL. `SCAN`, `KEYS` and the like are no command of a tenant's: they name everybody's keys.
"""

import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from engram_contract.names import REDIS_PORT, cache_part
from engram_operator.errors import CacheUnreachable
from engram_operator.manifests.redis import OPERATOR_USER

TIMEOUT_S: Final = 3.0
SCAN_KEYS: Final = 500
COMMANDS: Final = (
    *("auth", "client|id", "client|setinfo", "client|setname", "hello", "ping", "quit", "select"),
    *("del", "exists", "expire", "get", "getdel", "getex", "incr", "incrby", "decrby", "mget", "pexpire", "pttl"),
    *("psetex", "set", "setex", "ttl", "unlink", "discard", "exec", "multi", "publish", "subscribe", "unsubscribe"),
)


@asynccontextmanager
async def _connected(host: str, password: str) -> AsyncIterator[Redis]:
    client = Redis(
        host=host,
        port=REDIS_PORT,
        username=OPERATOR_USER,
        password=password,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        decode_responses=True,
    )
    try:
        yield client
    except (RedisError, OSError, TimeoutError) as error:
        raise CacheUnreachable(f"{host}: {str(error) or type(error).__name__}") from error
    finally:
        await client.aclose()


def digests_of(passwords: tuple[str, ...]) -> list[str]:
    """What Redis keeps of passwords."""
    return sorted(hashlib.sha256(each.encode()).hexdigest() for each in passwords)


async def has_user(host: str, password: str, role: str, passwords: tuple[str, ...]) -> bool:
    """Whether the tenant's user is as `keep_user` makes it. Raises CacheUnreachable."""
    async with _connected(host, password) as client:
        told: Mapping[str, Any] | None = await client.acl_getuser(role)
    if told is None:
        return False
    return (
        sorted(told["passwords"]) == digests_of(passwords)
        and "on" in told["flags"]
        and _words(told["keys"]) == {f"~{cache_part(role)}*"}
        and _words(told["channels"]) == {f"&{cache_part(role)}*"}
        and {*_words(told["commands"])} == {f"+{each}" for each in COMMANDS}
    )


async def keep_user(host: str, password: str, role: str, passwords: tuple[str, ...]) -> None:
    """The tenant's user has these passwords and its own part of the keys. Raises CacheUnreachable."""
    rules = [
        "reset",
        "on",
        *(f"#{each}" for each in digests_of(passwords)),
        f"~{cache_part(role)}*",
        f"&{cache_part(role)}*",
    ]
    async with _connected(host, password) as client:
        await _run(client, "ACL", "SETUSER", role, *rules, *(f"+{each}" for each in COMMANDS))


async def remove_user(host: str, password: str, role: str) -> bool:
    """True if there was such a user; its connections end with it, its keys stay. Raises CacheUnreachable."""
    async with _connected(host, password) as client:
        return bool(await client.acl_deluser(role))


async def erase_user(host: str, password: str, role: str) -> None:
    """Nobody logs in as the tenant any more, and none of its keys is left. Raises CacheUnreachable."""
    async with _connected(host, password) as client:
        await _run(client, "ACL", "DELUSER", role)
        batch: list[str] = []
        async for key in client.scan_iter(match=f"{cache_part(role)}*", count=SCAN_KEYS):
            batch.append(key)
            if len(batch) == SCAN_KEYS:
                await client.unlink(*batch)
                batch.clear()
        if batch:
            await client.unlink(*batch)


async def _run(client: Redis, *words: str) -> None:
    await client.execute_command(*words)  # type: ignore[no-untyped-call]


def _words(told: object) -> set[str]:
    """Rules as a list or as one text; what takes all commands away is in every user."""
    words = told.split() if isinstance(told, str) else [str(each) for each in told]  # type: ignore[attr-defined]
    return {each for each in words if each != "-@all"}
