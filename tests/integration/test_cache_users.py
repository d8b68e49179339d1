"""Tenants' users at a Redis of somebody else's: at every server of it, what they may do, and what a refusal says."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import pytest

from engram_contract.credentials import CacheLogin
from engram_contract.names import cache_part
from engram_contract.redisurl import RedisLogin
from engram_operator.clients import cache
from engram_operator.errors import CacheRefused, CacheUnreachable
from engram_operator.manifests.redis import OPERATOR_USER
from engram_sidecar.errors import CacheUnavailable
from engram_sidecar.redisdoor import Door
from tests.redis_places import all_known, join, nodes, replicated, watched
from tests.redis_server import PASSWORD, Program, RedisServer, redis_server

ROLE, OTHER = "t_users", "t_others"
WORDS = ("one", "two")


class Place(Protocol):
    """Servers that a tenant may log in to."""

    def login(self, role: str) -> CacheLogin: ...


def admin(place: Place, user: str = OPERATOR_USER, password: str = PASSWORD) -> RedisLogin:
    """As the URL of a user's Secret gives it."""
    return RedisLogin.from_url(place.login(ROLE).url.replace("://", f"://{user}:{password}@"))


@asynccontextmanager
async def one_server(program: Program, folder: Path) -> AsyncIterator[tuple[Place, list[RedisServer]]]:
    with redis_server(program, folder / "redis") as server:
        yield server, [server]


@asynccontextmanager
async def behind_sentinel(program: Program, folder: Path) -> AsyncIterator[tuple[Place, list[RedisServer]]]:
    with watched(program, folder) as stage:
        async with replicated(stage):
            yield stage, list(stage.servers)


@asynccontextmanager
async def in_a_cluster(program: Program, folder: Path) -> AsyncIterator[tuple[Place, list[RedisServer]]]:
    with nodes(program, folder, ROLE) as stage:
        await join(stage)
        await all_known(stage)
        yield stage, list(stage.servers)


@pytest.mark.usefixtures("patient_calls")
@pytest.mark.parametrize("staged", [one_server, behind_sentinel, in_a_cluster], ids=lambda each: each.__name__)
async def test_a_tenants_user_is_at_every_server_and_goes_with_its_keys(
    redis_program: Program,
    tmp_path: Path,
    staged: object,
) -> None:
    async with staged(redis_program, tmp_path) as (place, servers):  # type: ignore[operator]
        login = admin(place)
        assert not await cache.has_user(login, ROLE, WORDS)
        await cache.keep_user(login, ROLE, WORDS)
        assert await cache.has_user(login, ROLE, WORDS)
        assert not await cache.has_user(login, ROLE, WORDS[:1])
        for more in ("+info", "+@keyspace", "-get", "~*", "&*", "off"):
            await servers[-1].run("ACL", "SETUSER", ROLE, more)
            assert not await cache.has_user(login, ROLE, WORDS), more
            await cache.keep_user(login, ROLE, WORDS)
        await servers[-1].run("ACL", "DELUSER", ROLE)  # as one that was started anew
        assert not await cache.has_user(login, ROLE, WORDS)
        await cache.keep_user(login, ROLE, WORDS)
        assert await cache.has_user(login, ROLE, WORDS)

        await cache.keep_user(login, OTHER, WORDS)
        for role in (ROLE, OTHER):
            await use(CacheLogin(login.url, role, WORDS[1:]), role)
        await cache.erase_user(login, ROLE)
        assert [await each.run("ACL", "GETUSER", ROLE) for each in servers] == [None] * len(servers)
        kept = {key for each in servers for key in await each.run("KEYS", "*")}
        assert kept == {f"{cache_part(OTHER)}a".encode()}
        assert await cache.remove_user(login, OTHER)
        assert not await cache.remove_user(login, OTHER)


async def use(login: CacheLogin, role: str) -> None:
    """A sidecar with this login reaches its own keys and nobody else's."""
    door = Door()
    door.adopt(login)
    async with door.subscribed([f"{cache_part(role)}b"], 5.0):  # it waits for the connection, a call does not
        pass
    assert await door.fill(f"{cache_part(role)}a", b"x", 60_000)
    with pytest.raises(CacheUnavailable, match="may not do this"):
        await door.mget([f"{cache_part('t_nobody')}a"])
    await door.close()


async def test_the_rights_that_the_manual_names_are_enough(redis: RedisServer) -> None:
    text = (Path(__file__).parents[2] / "docs/caches.md").read_text()
    named = text[text.index("The External login needs") : text.index("in a Cluster `+cluster|slots`")]
    rights = [word for each in named.split("`")[1::2] for word in each.split() if word[0] in "+~"]
    assert {"+acl|setuser", "+scan", "~*"} <= {*rights}
    await redis.run("ACL", "SETUSER", "enough", "on", f">{PASSWORD}", *rights)
    login = admin(redis, "enough")
    await cache.keep_user(login, ROLE, WORDS)
    assert await cache.has_user(login, ROLE, WORDS)
    await redis.run("SET", f"{cache_part(ROLE)}a", "x")
    await cache.erase_user(login, ROLE)
    assert await redis.run("DBSIZE") == 0


async def test_a_login_that_may_make_no_users_is_refused_with_what_it_lacks(redis: RedisServer) -> None:
    await redis.run("ACL", "SETUSER", "poor", "on", f">{PASSWORD}", "~*", "&*", "+@all", "-acl")
    for ask in (cache.has_user, cache.keep_user):
        with pytest.raises(CacheRefused, match="acl") as refused:
            await ask(admin(redis, "poor"), ROLE, WORDS)
        assert PASSWORD not in str(refused.value)
    with pytest.raises(CacheRefused, match="invalid"):
        await cache.keep_user(admin(redis, password="hush"), ROLE, WORDS)  # noqa: S106  of a test


async def test_a_server_that_is_away_takes_the_user_from_nobody_else(redis_program: Program, tmp_path: Path) -> None:
    async with in_a_cluster(redis_program, tmp_path) as (place, servers):
        login = admin(place)
        servers[1].kill()  # which has slots and no replica, so it is missed for as long as it is away
        with pytest.raises(CacheUnreachable):
            await cache.keep_user(login, ROLE, WORDS)
        assert all([await each.run("ACL", "GETUSER", ROLE) for each in (servers[0], *servers[2:])])
