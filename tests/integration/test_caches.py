"""What several sidecars of a tenant keep, against what is stored: sessions that hop, a stampede, a lost shard."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from engram_contract.names import cache_part
from engram_contract.shardmap import Node
from engram_operator.clients import postgres
from engram_sidecar.app import serving
from engram_sidecar.bulletin import TOMBSTONE_S
from engram_sidecar.settings import Settings
from tests.harness import NO_CACHE, NUMBERS, RealServer, Tenant, create_tenant, server_folder
from tests.redis_server import RedisServer, share

SECONDS = 8.0
KEYS = 6
TIMEOUT_S = 60
SPEC = {"plan": "Enterprise", "audit": {"enabled": False}}


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[RealServer, RealServer]]:
    """A primary and its replica."""
    with server_folder() as folder:
        primary = RealServer.create(folder / "s0", 18)
        replica = primary.make_standby(folder / "s0-1")
        yield primary, replica
        primary.stop("immediate")
        replica.stop("immediate")


async def tenant_of(servers: tuple[RealServer, ...], folder: Path, **resilience: int) -> Tenant:
    """A tenant on the first server; with two, the second one is a replica that may answer."""
    spec = SPEC | {"resilience": resilience}
    tenant = await create_tenant(f"k{next(NUMBERS)}", servers[:1], folder, spec=spec)
    if len(servers) > 1:
        [shard] = tenant.shard_map.shards
        nodes = [Node(f"s0-{number}", "127.0.0.1", server.admin.port) for number, server in enumerate(servers)]
        shard = replace(shard, nodes=(nodes[0],), members=tuple(nodes))
        shard_map = replace(tenant.shard_map, epoch=2, shards=(shard,))
        await postgres.publish_map(servers[0].admin, "s0", shard_map)
        (folder / "map.json").write_text(shard_map.to_json())
    return tenant


Serve = Callable[[Tenant, int], Any]


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(TIMEOUT_S)
    ) as session:
        yield session


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts so many sidecars of a tenant, and ends them afterwards."""
    async with AsyncExitStack() as stack:

        async def start(tenant: Tenant, count: int) -> list[int]:
            settings = Settings(tenant.config_dir, http_port=0, admin_port=0)
            return [(await stack.enter_async_context(serving(settings))).http_port for _ in range(count)]

        yield start


@dataclass
class Caller:
    """Someone who reads and writes, with a session if `token` is not None, and what must be shown to it."""

    http: aiohttp.ClientSession
    ports: list[int]
    token: str | None = ""
    owed: Counter[str] = field(default_factory=Counter)  # key -> the version that it wrote or saw
    hits: int = 0
    reads: int = 0
    stale: list[str] = field(default_factory=list)

    async def ask(self, method: str, key: str, body: object = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """Of one item; of all memories without a key."""
        if self.token:
            headers["Engram-Session"] = self.token
        url = f"http://127.0.0.1:{random.choice(self.ports)}/v1/{'items' if key else 'memories'}"
        params = {"key": key, "user": "ada"} if key else {"user": "ada"}
        async with self.http.request(method, url, params=params, json=body, headers=headers) as answer:
            if self.token is not None:
                self.token = answer.headers.get("Engram-Session", self.token)
            return answer.status, await answer.json(content_type=None), dict(answer.headers)

    async def run(self, until_s: float) -> None:
        """Reads nine times of ten, lists now and then, and notes every answer that shows less than it is owed."""
        while time.monotonic() < until_s:
            key, chance = f"k{random.randrange(KEYS)}", random.random()
            if chance < 0.05:
                await self.list_all()
                continue
            if chance < 0.15:
                method = "PUT"
                status, answer, said = await self.ask("PUT", key, {"content": f"{time.time()}"})
                assert status in {200, 201}, answer
            else:
                method = "GET"
                status, answer, said = await self.ask("GET", key)
                assert status in {200, 404}, answer
                self.reads += 1
                self.hits += "; hit" in said["Cache-Status"]
            self.judge(f"{method} {key}", key, answer["version"] if status != 404 else 0, said)

    async def list_all(self) -> None:
        """A list shows a state of each memory too."""
        status, answer, said = await self.ask("GET", "")
        assert status == 200, answer
        for each in answer["memories"]:
            self.judge(f"list {each['key']}", each["key"], each["version"], said)

    def judge(self, asked: str, key: str, version: int, said: dict[str, str]) -> None:
        if version < self.owed[key]:
            shown = {name: said.get(name, "") for name in ("Cache-Status", "Age", "Engram-Session")}
            self.stale.append(f"{asked}: version {version} after {self.owed[key]}: {shown}")
        self.owed[key] = max(self.owed[key], version)


async def watched(ports: list[int], http: aiohttp.ClientSession, seconds: float) -> list[Caller]:
    """Sessions that hop between the sidecars, sessions and callers without one that stay: for so long."""
    hopping = [Caller(http, ports) for _ in range(4)]
    staying = [Caller(http, [port]) for port in ports for _ in range(2)]
    plain = [Caller(http, [port], None) for port in ports for _ in range(2)]
    until_s = time.monotonic() + seconds
    await asyncio.gather(*(each.run(until_s) for each in [*hopping, *staying, *plain]))
    shown = {
        name: f"{sum(each.hits for each in callers)} of {sum(each.reads for each in callers)}"
        for name, callers in (("hopping", hopping), ("staying", staying), ("plain", plain))
    }
    print(f"reads by what was kept: {shown}")  # noqa: T201
    return [*hopping, *staying, *plain]


@pytest.mark.parametrize("members", [1, 2])
async def test_no_session_reads_less_than_it_wrote_or_saw_wherever_it_goes(
    pair: tuple[RealServer, RealServer], tmp_path: Path, http: aiohttp.ClientSession, serve: Serve, members: int
) -> None:
    """Sessions hop between three sidecars; callers without one stay at theirs. Nobody tells of the others' writes."""
    callers = await watched(await serve(await tenant_of(pair[:members], tmp_path), 3), http, SECONDS)
    assert [each.stale for each in callers if each.stale] == []
    assert sum(each.hits for each in callers) > sum(each.reads for each in callers) / 10, "else it proves little"


@pytest.mark.parametrize("members", [1, 2])
async def test_no_session_reads_less_where_sidecars_tell_each_other_and_redis_comes_and_goes(
    pair: tuple[RealServer, RealServer],
    tmp_path: Path,
    http: aiohttp.ClientSession,
    serve: Serve,
    redis: RedisServer,
    members: int,
) -> None:
    tenant = await tenant_of(pair[:members], tmp_path / "config")
    await share(redis, tenant)
    faults = asyncio.create_task(trouble(redis, tenant.role))
    callers = await watched(await serve(tenant, 3), http, 2 * SECONDS)
    await faults
    assert [each.stale for each in callers if each.stale] == []
    assert sum(each.hits for each in callers) > sum(each.reads for each in callers) / 10, "else it proves little"


async def trouble(redis: RedisServer, role: str) -> None:
    """Redis loses all, is cut from who listens, holds its breath, and dies; each a while after the other."""
    await asyncio.sleep(SECONDS / 4)
    await redis.run("FLUSHALL")
    await asyncio.sleep(SECONDS / 4)
    await redis.run("CLIENT", "KILL", "TYPE", "pubsub")
    await asyncio.sleep(SECONDS / 4)
    redis.pause()
    await asyncio.sleep(1.0)
    redis.resume()
    await asyncio.sleep(SECONDS / 4)
    redis.kill()
    await asyncio.sleep(1.0)
    await asyncio.to_thread(redis.start)
    await redis.admit(role)


async def raw(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lines: str
) -> tuple[str, dict[str, str], str]:
    """Status line, headers and body of the answer to a GET of these bytes."""
    writer.write(lines.encode())
    status, *fields = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
    headers = {name.lower(): value for name, value in (each.split(": ", 1) for each in fields)}
    return status, headers, (await reader.readexactly(int(headers["content-length"]))).decode()


async def test_a_hit_that_is_answered_by_its_bytes_says_what_the_long_way_says(
    pair: tuple[RealServer, RealServer], tmp_path: Path, serve: Serve, http: aiohttp.ClientSession
) -> None:
    tenant = await tenant_of(pair[:1], tmp_path)
    [port] = await serve(tenant, 1)
    caller = Caller(http, [port])
    assert (await caller.ask("PUT", "k", {"content": "first"}))[0] == 201
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    servers: list[str | None] = []

    async def get(extra: str = "") -> tuple[str, dict[str, str], str]:
        head = f"GET /v1/items?user=ada&key=k HTTP/1.1\r\nHost: localhost\r\n{extra}\r\n"
        status, headers, body = await raw(reader, writer, head)
        servers.append(headers.get("server"))
        volatile = {"age", "date", "server"}
        return status, {name: value for name, value in headers.items() if name not in volatile}, body

    token = f"Engram-Session: {caller.token}\r\n"
    for extra in ("", token):
        long = await get(extra + "Engram-Consistency: session\r\n")
        short = [await get(extra) for _ in range(4)]
        assert all(each[::2] == long[::2] for each in short)
        for _, headers, _ in short[1:]:
            assert headers.pop("cache-status").startswith("engram; hit")
            assert headers == {name: value for name, value in long[1].items() if name in headers}
            assert {*long[1]} - {*headers} <= {"cache-status"}
    assert [each is None for each in servers[-2:]] == [True] * 2, "aiohttp names itself, and had no part in these"
    assert (await caller.ask("PUT", "k", {"content": "second"}))[0] == 200
    assert '"second"' in (await get())[2], "the same bytes, and another answer"
    etag = (await get())[1]["etag"]
    writer.write(
        b"GET /v1/items?user=ada&key=k HTTP/1.1\r\nHost: localhost\r\nIf-None-Match: %s\r\n\r\n" % etag.encode()
    )
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 304")
    assert (await raw(reader, writer, "GET /v1/items?user=ada&key=k HTTP/1.1\r\nHost: evil\r\n\r\n"))[0].endswith(
        "Misdirected Request"
    )
    writer.close()


@pytest.mark.usefixtures("patient_calls")
async def test_what_one_sidecar_writes_the_other_shows_soon_and_what_it_read_the_other_need_not(
    pair: tuple[RealServer, RealServer], tmp_path: Path, http: aiohttp.ClientSession, serve: Serve, redis: RedisServer
) -> None:
    """Without a session: the answer is kept for minutes, and yet another one within milliseconds of the write."""
    tenant = await tenant_of(pair[:1], tmp_path / "config")
    await share(redis, tenant)
    one, other = (Caller(http, [port], None) for port in await serve(tenant, 2))
    await until_kept(one)
    late_s = []
    for number in range(50):
        await one.ask("PUT", "k", {"content": f"{number}"})
        told_s = time.monotonic()
        async with asyncio.timeout(TIMEOUT_S):
            while (await other.ask("GET", "k"))[1]["content"] != f"{number}":
                pass
        late_s.append(time.monotonic() - told_s)
    print(f"another's write is shown after {1000 * sorted(late_s)[25]:.1f} ms, at most {1000 * max(late_s):.1f} ms")  # noqa: T201
    await one.ask("PUT", "shared", {"content": "heron"})
    await asyncio.sleep(TOMBSTONE_S + 1)
    await one.ask("GET", "shared")
    async with asyncio.timeout(TIMEOUT_S):
        while not await redis.run("KEYS", f"{cache_part(tenant.role)}m:*"):  # noqa: ASYNC110  it is put there beside the answer
            await asyncio.sleep(0.05)
    _, answer, said = await other.ask("GET", "shared")
    assert (answer["content"], said["Cache-Status"]) == ("heron", "engram; fwd=uri-miss; detail=shared")


@pytest.mark.usefixtures("patient_calls")
async def test_what_is_read_on_and_on_comes_from_redis_again_when_it_is_no_news(
    pair: tuple[RealServer, RealServer], tmp_path: Path, http: aiohttp.ClientSession, serve: Serve, redis: RedisServer
) -> None:
    """The first level keeps nothing here, so each read is asked of one of the two."""
    tenant = await create_tenant(f"k{next(NUMBERS)}", pair[:1], tmp_path / "config", spec=SPEC, caching=NO_CACHE)
    await share(redis, tenant)
    [caller] = (Caller(http, [port], None) for port in await serve(tenant, 1))
    await caller.ask("PUT", "k", {"content": "heron"})
    said = ""
    async with asyncio.timeout(TIMEOUT_S):
        while not said.endswith("detail=shared"):
            _, answer, headers = await caller.ask("GET", "k")
            said = headers["Cache-Status"]
            assert answer["content"] == "heron"
            await asyncio.sleep(0.05)


@pytest.mark.usefixtures("patient_calls")
async def test_results_of_eventual_searches_are_shared_until_the_next_write(
    pair: tuple[RealServer, RealServer], tmp_path: Path, http: aiohttp.ClientSession, serve: Serve, redis: RedisServer
) -> None:
    tenant = await tenant_of(pair[:1], tmp_path / "config")
    await share(redis, tenant)
    one, other = (Caller(http, [port], None) for port in await serve(tenant, 2))
    await until_kept(one)

    async def search(caller: Caller, level: str = "eventual") -> tuple[list[str], str]:
        url = f"http://127.0.0.1:{caller.ports[0]}/v1/search"
        body = {"query": "heron", "user": "ada"}
        async with http.post(url, json=body, headers={"Engram-Consistency": level}) as answer:
            found = [each["content"] for each in (await answer.json())["results"]]
            return found, answer.headers.get("Cache-Status", "").removeprefix("engram; ")

    await one.ask("PUT", "k", {"content": "a grey heron"})
    assert await search(one) == (["a grey heron"], "fwd=uri-miss")
    assert await search(other) == (["a grey heron"], "fwd=uri-miss; detail=shared")
    assert await search(other, "session") == (["a grey heron"], "")
    kept = b"".join(
        [await redis.run("GET", key) or b"" for key in await redis.run("KEYS", f"{cache_part(tenant.role)}s:*")]
    )
    assert len(kept) > 100
    assert b"heron" not in kept
    await one.ask("PUT", "k2", {"content": "a white heron", "ttl_s": 2})
    assert sorted((await search(one))[0]) == ["a grey heron", "a white heron"]
    await asyncio.sleep(2.1)
    assert (await search(other))[0] == ["a grey heron"], "what has expired is in no result"


async def until_kept(caller: Caller) -> None:
    """Returns when what is kept is shown for longer than without a bulletin."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            await caller.ask("GET", "k0")
            await asyncio.sleep(3.2)
            if "; hit" in (await caller.ask("GET", "k0"))[2]["Cache-Status"]:
                return


async def test_a_shard_that_is_gone_is_stood_in_for_up_to_the_bound_and_said_to_be_stale(
    tmp_path: Path, http: aiohttp.ClientSession, serve: Serve
) -> None:
    with server_folder() as folder:
        server = RealServer.create(folder / "s0", 18)
        try:
            tenant = await tenant_of((server,), tmp_path, stalenessSeconds=6, failoverSeconds=1, deadlineSeconds=2)
            caller = Caller(http, await serve(tenant, 1))
            await caller.ask("PUT", "k", {"content": "heron"})
            read_s = time.monotonic()  # the age of what is kept counts from when the shard was asked
            assert (await caller.ask("GET", "k"))[0] == 200
            await asyncio.to_thread(server.stop, "immediate")
            said: list[tuple[int, str, int]] = []
            async with asyncio.timeout(TIMEOUT_S):
                while True:
                    status, _, headers = await caller.ask("GET", "k")
                    said.append((status, headers["Cache-Status"], int(headers.get("Age", 0))))
                    assert (await caller.ask("GET", "k", **{"Engram-Consistency": "strong"}))[0] == 503
                    assert (await caller.ask("GET", "never read"))[0] == 503
                    if status == 503:
                        break
                    await asyncio.sleep(0.1)
            assert time.monotonic() - read_s > 6
            shown = said[:-1]
            assert {status for status, _, _ in shown} == {200}
            assert shown[-1][1].endswith("; ttl=-1; detail=stale")
            assert max(age for _, _, age in shown) <= 6
            assert (await caller.ask("PUT", "k", {"content": "egret"}))[0] == 503
        finally:
            server.stop("immediate")


async def test_a_stampede_on_a_cold_key_asks_the_shard_once_for_each_sidecar(
    pair: tuple[RealServer, RealServer], tmp_path: Path, http: aiohttp.ClientSession, serve: Serve
) -> None:
    """500 requests at once over 10 sidecars."""
    tenant = await tenant_of(pair[:1], tmp_path)
    ports = await serve(tenant, 10)
    await Caller(http, ports[:1]).ask("PUT", "hot", {"content": "heron"})
    async with pair[0].session(tenant.database) as admin:
        await admin.execute("SELECT pg_stat_force_next_flush()")
    callers = [Caller(http, [ports[number % 10]], None) for number in range(500)]
    answers = await asyncio.gather(*(each.ask("GET", "hot") for each in callers))
    assert {(status, answer["content"]) for status, answer, _ in answers} == {(200, "heron")}
    loaded = Counter(headers["Cache-Status"].partition("; ttl")[0] for _, _, headers in answers)
    assert loaded["engram; fwd=uri-miss"] <= 10, loaded
    assert loaded.total() == 500
