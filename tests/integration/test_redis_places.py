"""Bulletin and L2 behind Sentinel and in a Redis Cluster: another server ends in doubt and heals."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol
from uuid import UUID

import pytest

from engram_contract.credentials import CacheLogin
from engram_contract.names import cache_part
from engram_contract.slots import MemoryId
from engram_sidecar.errors import CacheUnavailable
from engram_sidecar.records import Memory
from engram_sidecar.redisdoor import Door
from engram_sidecar.remote import Remote
from engram_sidecar.tally import generation_of
from tests.integration.test_bulletin import Listener, listening
from tests.redis_places import Nodes, Watched, join, nodes, replicated, until, watched
from tests.redis_server import Program, RedisServer, eventually

pytestmark = pytest.mark.usefixtures("patient_calls")
ROLE = "t_places"
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


class Place(Protocol):
    """Servers that a tenant may log in to."""

    def login(self, role: str) -> CacheLogin: ...

    async def admit(self, role: str) -> None: ...


@asynccontextmanager
async def pair(place: Place) -> AsyncIterator[tuple[Listener, Listener]]:
    """Two sidecars of one tenant, both sound."""
    await place.admit(ROLE)
    async with listening(place.login(ROLE), place.login(ROLE)) as (teller, other):
        await agree(teller, other)
        yield teller, other


async def agree(teller: Listener, other: Listener) -> None:
    await eventually(lambda: teller.is_sound and teller.bulletin.writes == other.bulletin.writes)


def shared(listener: Listener) -> Remote:
    return Remote(listener.door, listener.bulletin, lambda: 60.0, lambda: False, NOW.timestamp)


def memory(number: int, version: int = 1) -> Memory:
    return Memory(
        MemoryId(number, UUID(int=number)), ("a", "b"), None, "episodic", "u1", None, None, "heron", "1", 0.5,
        NOW, NOW, None, version,
    )  # fmt: skip


async def kept(listener: Listener, wanted: Memory) -> int | None:
    """The version of the memory that is found in L2, or None."""
    remote = shared(listener)
    await eventually(lambda: remote.ticket() is not None)
    ticket = remote.ticket()
    [found] = [None] if ticket is None else await remote.get([(wanted.id, ticket)])
    return None if found is None else found[0].version


async def put(listener: Listener, stored: Memory) -> None:
    remote = shared(listener)
    await eventually(lambda: remote.ticket() is not None)
    ticket = remote.ticket()
    assert ticket is not None
    assert await remote.fill(stored, None, ticket)


async def works(teller: Listener, other: Listener, number: int) -> None:
    """What one tells the other hears, and what one put there the other finds until it is written."""
    await agree(teller, other)
    stored = memory(number)
    await put(teller, stored)
    assert await kept(other, stored) == 1
    await teller.bulletin.tell("s0", [stored.id], None)
    assert not teller.bulletin.is_owing
    await eventually(lambda: stored.id in other.ids)
    assert await kept(other, stored) is None
    doubts = other.doubts
    await other.settle()
    assert other.doubts == doubts


async def follows(teller: Listener, other: Listener, change: Callable[[], Awaitable[object]]) -> None:
    """After the change both were in doubt, and what was kept before a write that fell into it is never found again."""
    await works(teller, other, 1)
    stored = memory(2)
    await put(other, stored)
    doubts = teller.doubts, other.doubts
    await change()
    await teller.bulletin.tell("s0", [stored.id], None)
    await eventually(lambda: not teller.bulletin.is_owing)
    assert await kept(teller, stored) is None
    await eventually(lambda: teller.doubts > doubts[0] and other.doubts > doubts[1])
    await agree(teller, other)
    assert await kept(other, stored) is None
    await works(teller, other, 3)


# ------------------------------------------------------------------------------------------------------------ Sentinel


@pytest.fixture
def sentinel(redis_program: Program, tmp_path: Path) -> Iterator[Watched]:
    with watched(redis_program, tmp_path) as stage:
        yield stage


async def test_by_a_sentinel_that_names_the_primary(sentinel: Watched) -> None:
    async with replicated(sentinel), pair(sentinel) as (teller, other):
        await works(teller, other, 1)


async def test_a_primary_that_is_killed_is_followed_by_another(sentinel: Watched) -> None:
    async with replicated(sentinel), pair(sentinel) as (teller, other):
        first, second = sentinel.servers

        async def fail_over() -> None:
            assert await first.run("WAIT", 1, 5000) == 1
            first.kill()

        began_s = time.monotonic()
        await follows(teller, other, fail_over)
        print(f"failover, doubt and trust again: {time.monotonic() - began_s:.1f} s")  # noqa: T201
        assert await sentinel.primary() is second


async def test_a_primary_that_was_replaced_is_left_though_it_goes_on(sentinel: Watched) -> None:
    """It takes writes and holds its connections until it is told; whoever believes it hears nobody else."""
    async with replicated(sentinel), pair(sentinel) as (teller, other):
        first, second = sentinel.servers

        async def replace() -> None:
            await sentinel.ask("DEBUG", "publish-period", 1_000_000)  # four of these until it is told
            await sentinel.ask("FAILOVER", "main")
            await until(lambda: is_primary(sentinel, second))

        await follows(teller, other, replace)
        assert await sentinel.primary() is second
        assert (await first.run("ROLE"))[0] == b"master"


async def test_what_a_failover_lost_is_not_believed(sentinel: Watched) -> None:
    """The last writes never reached the replica: neither their tombstones nor what they were counted by."""
    async with replicated(sentinel), pair(sentinel) as (teller, other):
        first, second = sentinel.servers
        stored = memory(1)
        await put(teller, stored)
        assert await first.run("WAIT", 1, 5000) == 1
        before = generation_of(other.bulletin.writes or 0)
        await second.run("CONFIG", "SET", "masterauth", "wrong")
        await first.run("CLIENT", "KILL", "TYPE", "replica")
        for _ in range(5):
            await teller.bulletin.tell("s0", [stored.id], None)
        assert not teller.bulletin.is_owing
        first.kill()
        await eventually(lambda: generation_of(other.bulletin.writes or 0) > before)
        assert await kept(other, stored) is None
        await works(teller, other, 2)


async def test_a_primary_that_is_none_yet_and_a_name_that_is_unknown_are_refused(sentinel: Watched) -> None:
    async with replicated(sentinel):
        await sentinel.admit(ROLE)
        first, second = sentinel.servers
        unknown = sentinel.login(ROLE).url.replace("/main", "/other")
        for url, said in ((unknown, "knows no primary"), (sentinel.login(ROLE).url, "no primary yet")):
            door = Door()
            await first.run("REPLICAOF", "127.0.0.1", second.port)  # as between two Sentinels' news
            door.adopt(CacheLogin(url, ROLE, sentinel.login(ROLE).passwords))
            with pytest.raises(CacheUnavailable, match=said):
                async with door.subscribed(["a"], 1.0):
                    pass
            await door.close()


async def test_sentinel_and_servers_have_to_prove_their_names(
    redis_program: Program, tmp_path: Path, authorities: tuple[str, bytes, bytes]
) -> None:
    ca, certificate, key = authorities
    files = {"tls-cert-file": certificate, "tls-key-file": key, "tls-ca-cert-file": ca.encode()}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    paths = {name: str(tmp_path / name) for name in files}
    settings = {**paths, "tls-auth-clients": "no", "tls-replication": "yes"}
    with watched(redis_program, tmp_path, settings) as stage:
        async with replicated(stage):
            await stage.admit(ROLE)
            async with listening(stage.login(ROLE, ca), stage.login(ROLE, ca)) as (teller, other):
                await works(teller, other, 1)
            door = Door()
            door.adopt(stage.login(ROLE))  # by the system's CAs
            with pytest.raises(CacheUnavailable, match="prove its name"):
                async with door.subscribed(["a"], 1.0):
                    pass
            await door.close()


async def test_a_server_that_became_a_replica_is_left_also_without_sentinel(sentinel: Watched) -> None:
    """The address may be of a Service, which leads somewhere else by now."""
    async with replicated(sentinel):
        sentinel.process.kill()
        first, second = sentinel.servers
        await first.admit(ROLE)
        async with listening(first.login(ROLE)) as (one,):
            await one.settle()
            doubts = one.doubts
            await second.run("REPLICAOF", "NO", "ONE")
            await first.run("REPLICAOF", "127.0.0.1", second.port)
            await eventually(lambda: one.doubts > doubts and not one.is_sound)
            connected = set(await clients(first, ROLE))
            await first.run("REPLICAOF", "NO", "ONE")
            await eventually(lambda: one.is_sound)
            assert not connected & set(await clients(first, ROLE))


async def is_primary(sentinel: Watched, server: RedisServer) -> bool:
    return await sentinel.primary() is server


async def clients(redis: RedisServer, user: str) -> list[bytes]:
    """The ids of this user's connections."""
    lines: bytes = await redis.run("CLIENT", "LIST")
    return [line.split()[0] for line in lines.splitlines() if f"user={user}".encode() in line]


# ------------------------------------------------------------------------------------------------------------- Cluster


@pytest.fixture
def cluster(redis_program: Program, tmp_path: Path) -> Iterator[Nodes]:
    with nodes(redis_program, tmp_path, ROLE) as stage:
        yield stage


async def test_in_a_cluster_by_nodes_that_have_other_slots(cluster: Nodes) -> None:
    await join(cluster)
    async with pair(cluster) as (teller, other):
        await works(teller, other, 1)
        first, *others, replica = cluster.servers
        assert await first.run("DBSIZE") > 0
        assert [await each.run("DBSIZE") for each in others] == [0, 0]
        await until(lambda: has_all_of(replica, first))
        assert len(await clients(cluster.servers[0], ROLE)) == 4  # for each sidecar one that listens, one that asks
        assert all(key.startswith(cache_part(ROLE).encode()) for key in await cluster.servers[0].run("KEYS", "*"))


async def has_all_of(replica: RedisServer, primary: RedisServer) -> bool:
    """A replica follows in its own time."""
    kept: int = await primary.run("DBSIZE")
    return bool(await replica.run("DBSIZE") == kept)


async def test_a_slot_that_moves_is_followed(cluster: Nodes) -> None:
    await join(cluster)
    async with pair(cluster) as (teller, other):
        await follows(teller, other, lambda: cluster.move(cluster.servers[0], cluster.servers[1]))
        assert await clients(cluster.servers[0], ROLE) == []
        assert len(await clients(cluster.servers[1], ROLE)) >= 4


@pytest.mark.parametrize("is_killed", [False, True], ids=["in order", "killed"])
async def test_a_failover_in_a_cluster_is_followed(cluster: Nodes, is_killed: bool) -> None:
    await join(cluster)
    first, *_, replica = cluster.servers
    async with pair(cluster) as (teller, other):

        async def fail_over() -> None:
            assert await first.run("WAIT", 1, 5000) == 1
            if is_killed:
                first.kill()
            else:
                await replica.run("CLUSTER", "FAILOVER")

        await follows(teller, other, fail_over)
        assert (await replica.run("ROLE"))[0] == b"master"
