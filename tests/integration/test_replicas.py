"""Reads from a real replica: never older than what their session wrote or saw; from the primary where it must be."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from engram import AsyncEngram
from engram_contract.session import UNKNOWN, Position, Token, mark_of
from engram_contract.shardmap import Node, ShardMap
from engram_operator.clients import postgres
from engram_sidecar.app import Sidecar, serving
from engram_sidecar.budget import BURST, FLOOR_PER_S
from engram_sidecar.settings import Settings
from tests.faults import Fault, FaultProxy, fault_proxy
from tests.harness import NO_CACHE, NUMBERS, RealServer, Tenant, create_tenant, server_folder

PAIRS = 2_000
TIMEOUT_S = 60


@dataclass(frozen=True)
class Pair:
    """A primary and the replica that follows it."""

    primary: RealServer
    replica: RealServer


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Two servers for the tests that leave them as they are."""
    with server_folder() as folder:
        primary = RealServer.create(folder / "s0", 18)
        replica = primary.make_standby(folder / "s0-1")
        yield Pair(primary, replica)
        primary.stop("immediate")
        replica.stop("immediate")


async def tenant_of(pair: Pair, folder: Path, ports: tuple[int, int] | None = None, **resilience: int) -> Tenant:
    """A tenant whose map names both servers as members, at these ports if they are told."""
    spec = {"plan": "Enterprise", "audit": {"enabled": False}, "resilience": resilience}
    tenant = await create_tenant(f"r{next(NUMBERS)}", (pair.primary,), folder, spec=spec, caching=NO_CACHE)
    [shard] = tenant.shard_map.shards
    first, second = ports or (pair.primary.admin.port, pair.replica.admin.port)
    members = (Node("s0-0", "127.0.0.1", first), Node("s0-1", "127.0.0.1", second))
    shard_map = replace(tenant.shard_map, epoch=2, shards=(replace(shard, nodes=(members[0],), members=members),))
    await postgres.publish_map(pair.primary.admin, "s0", shard_map)
    (folder / "map.json").write_text(shard_map.to_json())
    return replace(tenant, shard_map=shard_map)


@dataclass
class Caller:
    """A client of one sidecar."""

    http: aiohttp.ClientSession
    ports: Sidecar
    headers: dict[str, str] = field(default_factory=dict)  # of the last answer, in lower case

    async def __call__(self, method: str, path: str, body: object = None, **said: str) -> tuple[int, Any]:
        headers = {name: said.pop(name) for name in ("session", "consistency") if name in said}
        url = f"http://127.0.0.1:{self.ports.http_port}{path}"
        sent = {f"Engram-{name.title()}": value for name, value in headers.items()}
        async with self.http.request(method, url, json=body, params=said, headers=sent) as response:
            self.headers = {name.lower(): value for name, value in response.headers.items()}
            return response.status, await response.json(content_type=None) if response.content_length else None

    @property
    def token(self) -> str:
        return self.headers["engram-session"]

    async def put(self, content: str, key: str = "k", **said: str) -> str:
        """Stores it, and answers the token."""
        status, _ = await self("PUT", "/v1/items", {"content": content}, key=key, user="ada", **said)
        assert status in {200, 201}
        return self.token

    async def get(self, key: str = "k", **said: str) -> str:
        status, answer = await self("GET", "/v1/items", key=key, user="ada", **said)
        assert status == 200, answer
        return str(answer["content"])

    async def reads(self, source: str, consistency: str = "session") -> float:
        """How many reads the source has answered."""
        return await self.metric("engram_reads_total", f'consistency="{consistency}",source="{source}"')

    async def metric(self, name: str, labels: str) -> float:
        async with self.http.get(f"http://127.0.0.1:{self.ports.admin_port}/metrics") as response:
            text = await response.text()
        found = re.search(rf"^{name}\{{.*{labels}.*\}} (\S+)$", text, re.MULTILINE)
        return 0.0 if found is None else float(found[1])

    async def warm(self, **said: str) -> None:
        """Reads until a replica answers: the sidecar has looked at it."""
        async with asyncio.timeout(TIMEOUT_S):
            level = said.get("consistency", "session")
            before = await self.reads("replica", level)
            while await self.reads("replica", level) == before:
                await self("GET", "/v1/items", key="k", user="ada", **said)
                await asyncio.sleep(0.05)


Start = Callable[[Tenant], Any]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts sidecars that drain after the test."""
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(TIMEOUT_S))
        )

        async def one(tenant: Tenant) -> Caller:
            settings = Settings(tenant.config_dir, http_port=0, admin_port=0)
            return Caller(http, await stack.enter_async_context(serving(settings)))

        yield one


@asynccontextmanager
async def paused(server: RealServer) -> AsyncIterator[None]:
    """The replica receives, and shows nothing new."""
    async with server.session("postgres") as admin:
        await admin.execute("SELECT pg_wal_replay_pause()")
        async with asyncio.timeout(TIMEOUT_S):
            while await admin.fetchval("SELECT pg_get_wal_replay_pause_state()") != "paused":  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        try:
            yield
        finally:
            if await admin.fetchval("SELECT pg_is_in_recovery()"):
                await admin.execute("SELECT pg_wal_replay_resume()")


async def test_what_one_sidecar_stored_another_one_reads_from_the_replica(
    pair: Pair, tmp_path: Path, start: Start
) -> None:
    """The token is handed over between two processes that know nothing of each other."""
    tenant = await tenant_of(pair, tmp_path)
    writer, reader = await start(tenant), await start(tenant)
    await writer.put("begin")
    await reader.warm()
    before = await reader.reads("replica"), await reader.reads("primary")
    stale = 0
    for number in range(PAIRS):
        token = await writer.put(f"heron {number}")
        stale += await reader.get(session=token) != f"heron {number}"
    replica, primary = await reader.reads("replica") - before[0], await reader.reads("primary") - before[1]
    print(f"{replica:.0f} of {PAIRS} reads by the replica, {stale} stale")  # noqa: T201
    assert stale == 0
    assert replica + primary == PAIRS
    assert replica >= 0.8 * PAIRS


async def test_of_writes_that_went_together_each_session_sees_its_own(pair: Pair, tmp_path: Path, start: Start) -> None:
    tenant = await tenant_of(pair, tmp_path)
    first, second = await start(tenant), await start(tenant)
    await first.put("of before")
    await second.warm()
    address = f"http://127.0.0.1:{first.ports.http_port}/v1/items"

    async def put(number: int) -> str:
        params = {"key": f"k{number}", "user": "ada"}
        async with first.http.put(address, json={"content": str(number)}, params=params) as response:
            assert response.status == 201
            return str(response.headers["Engram-Session"])

    async with paused(pair.replica):
        tokens = await asyncio.gather(*(put(number) for number in range(60)))
        for number, token in enumerate(tokens):
            assert await second.get(f"k{number}", session=token) == str(number)


async def test_a_client_that_knows_no_token_reads_what_it_stored(pair: Pair, tmp_path: Path, start: Start) -> None:
    tenant = await tenant_of(pair, tmp_path)
    caller = await start(tenant)
    await caller.put("begin")
    await caller.warm()
    for number in range(200):
        await caller.put(f"heron {number}")
        assert await caller.get() == f"heron {number}"
    async with paused(pair.replica):
        for number in range(20):
            await caller.put(f"egret {number}")
            assert await caller.get() == f"egret {number}"
            _, page = await caller("GET", "/v1/memories", user="ada")
            assert [each["content"] for each in page["memories"]] == [f"egret {number}"]
            _, found = await caller("POST", "/v1/search", {"query": "egret", "user": "ada"})
            assert [each["content"] for each in found["results"]] == [f"egret {number}"]
            _, told = await caller("POST", "/v1/batch", {"operations": [{"op": "get", "key": "k", "user": "ada"}]})
            assert told["results"][0]["memory"]["content"] == f"egret {number}"


async def test_a_restarted_sidecar_shows_what_the_one_before_stored(pair: Pair, tmp_path: Path, start: Start) -> None:
    tenant = await tenant_of(pair, tmp_path)
    before = await start(tenant)
    await before.put("begin")
    await before.warm()
    async with paused(pair.replica):
        await before.put("end")
        after = await start(tenant)
        for _ in range(40):
            assert await after.get() == "end"
            await asyncio.sleep(0.05)


async def test_lists_and_searches_are_answered_by_replicas_too(pair: Pair, tmp_path: Path, start: Start) -> None:
    tenant = await tenant_of(pair, tmp_path)
    caller = await start(tenant)
    await caller.put("a grey heron")
    await caller.warm()
    before = await caller.reads("replica")
    _, page = await caller("GET", "/v1/memories", user="ada")
    _, found = await caller("POST", "/v1/search", {"query": "heron", "user": "ada"})
    _, nothing = await caller("GET", "/v1/memories", user="bob")
    assert await caller.reads("replica") >= before + 4
    assert [each["content"] for each in page["memories"]] == ["a grey heron"]
    assert [each["content"] for each in found["results"]] == ["a grey heron"]
    assert nothing["memories"] == []
    assert caller.headers["age"] in {"0", "1", "2"}


async def test_a_session_reads_nothing_older_than_it_saw(pair: Pair, tmp_path: Path, start: Start) -> None:
    """It saw on the primary what the replica does not show yet."""
    tenant = await tenant_of(pair, tmp_path)
    caller, other = await start(tenant), await start(tenant)
    await caller.put("before")
    await other.warm()
    async with paused(pair.replica):
        await caller.put("after")
        assert await other.get(consistency="strong") == "after"
        token = other.token
        assert await other.get(session=token) == "after"
        assert await other.get() == "after", "what a sidecar handed out, its callers without a token have seen"


async def test_eventual_reads_say_their_age_and_end_with_the_bound(pair: Pair, tmp_path: Path, start: Start) -> None:
    tenant = await tenant_of(pair, tmp_path, stalenessSeconds=3, retryPercent=0)  # no late read is asked of the primary
    caller = await start(tenant)
    await caller.put("before")
    await caller.warm(consistency="eventual")
    async with paused(pair.replica):
        await caller.put("after")
        assert await caller.get(consistency="strong") == "after"
        assert caller.headers["age"] == "0"
        assert await caller.get(consistency="eventual") == "before"
        ages = [int(caller.headers["age"])]
        async with asyncio.timeout(TIMEOUT_S):
            while await caller.get(consistency="eventual") == "before":
                ages.append(int(caller.headers["age"]))
                await asyncio.sleep(0.05)
        assert caller.headers["age"] == "0", "the primary answered"
        assert ages == sorted(ages)
        assert 1 <= ages[0] <= ages[-1] <= 3
        assert await caller.metric("engram_replica_lag_seconds", 'node="s0-1"') > 2
    await caller.warm(consistency="eventual")
    assert await caller.get(consistency="eventual") == "after"


async def test_a_replica_that_lost_its_primary_ends_with_the_bound(tmp_path: Path, start: Start) -> None:
    """Nobody hears of the primary: reads go on for a while, then they are refused."""
    with server_folder() as folder:
        primary = RealServer.create(folder / "s0", 18)
        replica = primary.make_standby(folder / "s0-1")
        try:
            tenant = await tenant_of(Pair(primary, replica), tmp_path, stalenessSeconds=4)
            caller = await start(tenant)
            token = await caller.put("heron")
            await caller.warm(consistency="eventual")
            await caller.warm(session=token)
            await asyncio.to_thread(primary.stop, "immediate")
            said = {"key": "k", "user": "ada"}
            for name, value in (("consistency", "eventual"), ("session", token)):
                status, answer = await caller("GET", "/v1/items", **said, **{name: value})
                assert (status, answer["content"]) == (200, "heron")
            refused = set[str]()
            async with asyncio.timeout(TIMEOUT_S):
                while len(refused) < 2:
                    for level in ("eventual", "session"):
                        if (await caller("GET", "/v1/items", **said, consistency=level))[0] == 503:
                            refused.add(level)
                    await asyncio.sleep(0.1)
        finally:
            primary.stop("immediate")
            replica.stop("immediate")


async def test_a_slot_that_moved_away_is_not_read_from_a_replica_that_shows_it_still(
    pair: Pair, tmp_path: Path, start: Start
) -> None:
    """The replica's rows of ownership are as old as its memories: they tell, or it is not asked."""
    tenant = await tenant_of(pair, tmp_path)
    caller = await start(tenant)
    token = await caller.put("heron")
    await caller.warm()
    async with paused(pair.replica), pair.primary.session(tenant.database) as admin:
        await admin.execute("DELETE FROM engram.ownership WHERE tenant = $1", tenant.role)
        newer = replace(tenant.shard_map, epoch=3)
        text = "UPDATE engram.shard_map SET epoch = 3, map = $2::jsonb WHERE tenant = $1"
        await admin.execute(text, tenant.role, newer.to_json())
        assert await caller.get(session=token) == "heron", "by the old map the copy is what the session knows"
        (tenant.config_dir / "map.json").write_text(newer.to_json())
        async with asyncio.timeout(TIMEOUT_S):
            while "map=3" not in caller.headers["engram-config"]:
                await caller("GET", "/v1/shards")
                await asyncio.sleep(0.05)
        for _ in range(20):
            status, answer = await caller("GET", "/v1/items", key="k", user="ada", session=token)
            assert (status, answer["detail"]) == (503, "shard s0: the slot is moving")
            await asyncio.sleep(0.05)
    async with asyncio.timeout(TIMEOUT_S):
        while (await caller("GET", "/v1/items", key="k", user="ada", consistency="eventual"))[0] == 200:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    for level in ("session", "eventual"):
        status, _ = await caller("GET", "/v1/items", key="k", user="ada", consistency=level)
        assert status == 503, "the replica says itself that the slot is not its"


@pytest.mark.parametrize("is_batch", [False, True])
async def test_a_write_whose_position_cannot_be_learned_is_done_and_sends_its_session_to_the_primary(
    pair: Pair, tmp_path: Path, start: Start, is_batch: bool
) -> None:
    tenant = await tenant_of(pair, tmp_path)
    caller = await start(tenant)
    await caller.put("before")
    await caller.warm()
    async with paused(pair.replica), pair.primary.session(tenant.database) as admin:
        await admin.execute("ALTER FUNCTION engram.node_position RENAME TO hidden")
        try:
            if is_batch:
                puts = [{"op": "put", "key": "k", "user": "ada", "memory": {"content": "after"}}]
                status, _ = await caller("POST", "/v1/batch", {"operations": puts})
                assert status == 200
            else:
                await caller.put("after")
        finally:
            await admin.execute("ALTER FUNCTION engram.hidden RENAME TO node_position")
        token = Token.parse(caller.token)
        assert token.of("s0") == UNKNOWN
        assert await caller.get() == "after", "without the token"
        assert await caller.get(session=str(token)) == "after"
        assert Token.parse(caller.token).of("s0") != UNKNOWN, "the primary told a position"
    await caller.warm()


async def test_a_client_object_is_a_session_over_sidecars(pair: Pair, tmp_path: Path, start: Start) -> None:
    """Its token goes along when it speaks to another sidecar of the tenant, here by another address."""
    tenant = await tenant_of(pair, tmp_path)
    one, other = await start(tenant), await start(tenant)
    async with AsyncEngram(f"http://127.0.0.1:{one.ports.http_port}") as memories:
        await memories.put_item([], "k", user="ada", content="before")
        await other.warm()
        async with paused(pair.replica):
            stored = await memories.put_item([], "k", user="ada", content="after")
            memories.url = f"http://127.0.0.1:{other.ports.http_port}"
            assert (await memories.get(stored.id, consistency="eventual")).content == "before"
            assert (await memories.get(stored.id)).content == "after"
            assert (await memories.get_item([], "k", user="ada", consistency="strong")).content == "after"
            assert [each.content async for each in memories.list(user="ada")] == ["after"]


async def test_a_session_of_a_newer_map_is_not_answered_by_an_old_one(pair: Pair, tmp_path: Path, start: Start) -> None:
    tenant = await tenant_of(pair, tmp_path)
    caller = await start(tenant)
    token = Token.parse(await caller.put("heron"))
    await caller.warm()
    before = await caller.reads("replica")
    ahead = replace(token, epoch=9)
    for _ in range(20):
        assert await caller.get(session=str(ahead)) == "heron"
    assert await caller.reads("replica") == before
    assert Token.parse(caller.token).epoch == 9


async def test_a_made_up_token_costs_its_caller_the_replica_and_is_exchanged(
    pair: Pair, tmp_path: Path, start: Start
) -> None:
    tenant = await tenant_of(pair, tmp_path)
    caller = await start(tenant)
    await caller.put("heron")
    await caller.warm()
    before = await caller.reads("primary")
    forged = str(Token(1, {mark_of("s0"): Position(7, 1 << 62), mark_of("s9"): Position(1, 1)}))
    assert await caller.get(session=forged) == "heron"
    assert await caller.reads("primary") == before + 1
    exchanged = Token.parse(caller.token)
    assert set(exchanged.positions) == {mark_of("s0")}
    assert (exchanged.of("s0") or Position(0, 0)).timeline == 1
    await caller.warm()
    await caller.warm(session=str(exchanged))


@pytest.mark.parametrize(
    ("said", "header"),
    [({"session": "nonsense"}, "Engram-Session"), ({"consistency": "linearizable"}, "Engram-Consistency")],
)
async def test_a_malformed_header_is_refused_by_its_name(
    pair: Pair, tmp_path: Path, start: Start, said: dict[str, str], header: str
) -> None:
    caller = await start(await tenant_of(pair, tmp_path))
    for method, path, body in (("GET", "/v1/memories", None), ("POST", "/v1/memories", {"content": "x"})):
        status, answer = await caller(method, path, body, **said)
        assert (status, header in answer["detail"]) == (400, True)
        assert "engram-session" not in caller.headers
    assert (await caller("GET", "/v1/memories"))[1]["memories"] == []


async def test_a_shard_without_replicas_has_no_positions(pair: Pair, tmp_path: Path, start: Start) -> None:
    spec = {"audit": {"enabled": False}}
    tenant = await create_tenant(f"r{next(NUMBERS)}", (pair.primary,), tmp_path, spec=spec, caching=NO_CACHE)
    assert '"members"' not in (tmp_path / "map.json").read_text()
    caller = await start(tenant)
    await caller("PUT", "/v1/items", {"content": "x"}, key="k")
    await caller("GET", "/v1/items", key="k", session=str(Token(1, {mark_of("s0"): Position(1, 5)})))
    assert Token.parse(caller.headers["engram-session"]).positions == {}
    assert ShardMap.from_json(tenant.shard_map.to_json()) == tenant.shard_map


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.SILENT])
async def test_no_request_fails_because_a_replica_does(pair: Pair, tmp_path: Path, start: Start, fault: Fault) -> None:
    async with fault_proxy(pair.replica.admin.port) as proxy:
        tenant = await tenant_of(pair, tmp_path, (pair.primary.admin.port, proxy.port), deadlineSeconds=4)
        caller = await start(tenant)
        await caller.put("heron")
        await caller.warm()
        proxy.turn(fault)
        before = await caller.reads("primary")
        answers = await asyncio.gather(*(_read_and_write(caller, number) for number in range(4)))
        assert answers == [True] * 4
        assert await caller.reads("primary") > before
        await _recovered(proxy, caller)


async def _read_and_write(caller: Caller, number: int) -> bool:
    """Goes on for longer than a look takes to find out."""
    until_s = time.monotonic() + 4.0
    while time.monotonic() < until_s:
        await caller.put(f"heron {number}", key=f"k{number}")
        if await caller.get(key=f"k{number}") != f"heron {number}":
            return False
        await asyncio.sleep(0.02)
    return True


async def _recovered(proxy: FaultProxy, caller: Caller) -> None:
    """The replica is read from again when it is back."""
    proxy.turn(Fault.NONE)
    await caller.warm()


@pytest.mark.parametrize("consistency", ["eventual", "session"])
async def test_a_replica_whose_answers_are_late_does_not_hold_its_readers(
    pair: Pair, tmp_path: Path, start: Start, consistency: str
) -> None:
    """Of every kind of read; all of them together take less than one answer of the replica.

    An eventual read always asks the replica, and beside it the primary. A session that saw more than the last look at
    the replica goes to the primary at once: whether the primary moves between two reads is Postgres' affair.
    """
    delay_s = 2.0
    async with fault_proxy(pair.replica.admin.port) as proxy:
        tenant = await tenant_of(pair, tmp_path, (pair.primary.admin.port, proxy.port), deadlineSeconds=5)
        caller = await start(tenant)
        await caller.put("heron")
        await caller.warm(consistency=consistency)
        for _ in range(100):  # retries are earned, and times measured
            await caller.get(consistency=consistency)
        asked = {"user": "ada", "consistency": consistency}
        won, by_primary = await _hedges_won(caller), await caller.reads("primary", consistency)
        proxy.turn(Fault.NONE, delay_s)
        began_s = time.monotonic()
        for _ in range(2):
            assert await caller.get(consistency=consistency) == "heron"
            assert caller.headers["age"] == "0", "the primary answered"
        _, page = await caller("GET", "/v1/memories", **asked)
        _, found = await caller("POST", "/v1/search", {"query": "heron", "user": "ada"}, consistency=consistency)
        took_s = time.monotonic() - began_s
        print(f"four reads of a replica that answers after {delay_s} s: {took_s:.3f} s")  # noqa: T201
        assert [each["content"] for each in (*page["memories"], *found["results"])] == ["heron"] * 2
        assert took_s < delay_s
        assert await caller.reads("primary", consistency) >= by_primary + 4
        assert consistency == "session" or await _hedges_won(caller) >= won + 4
        token = await caller.put("egret")
        assert await caller.get(session=token) == "egret"
        await _recovered(proxy, caller)


async def test_reads_of_a_replica_that_is_always_slow_stay_within_the_budget(
    pair: Pair, tmp_path: Path, start: Start
) -> None:
    """It answers looks in time, so it is asked on and on; the primary is asked beside it for one of ten reads."""
    async with fault_proxy(pair.replica.admin.port) as proxy:
        tenant = await tenant_of(pair, tmp_path, (pair.primary.admin.port, proxy.port))
        caller = await start(tenant)
        await caller.put("heron")
        await caller.warm()
        for _ in range(100):
            await caller.get()
        hedged, began_s = [await _hedged(caller)], time.monotonic()
        reads, delay_s = 200, 0.02
        for number in range(reads // 10):
            proxy.turn(Fault.NONE, delay_s * 1.1**number)  # slower than what was measured, each time
            for _ in range(10):
                assert await caller.get() == "heron"
        hedged.append(await _hedged(caller))
        print(f"{hedged[1] - hedged[0]:.0f} of {reads} reads were asked twice")  # noqa: T201
        assert 5 <= hedged[1] - hedged[0] <= reads / 10 + BURST + FLOOR_PER_S * (time.monotonic() - began_s)
        await _recovered(proxy, caller)


async def _hedged(caller: Caller) -> float:
    return await _hedges_won(caller) + await caller.metric("engram_hedged_reads_total", 'outcome="lost"')


async def _hedges_won(caller: Caller) -> float:
    return await caller.metric("engram_hedged_reads_total", 'outcome="won"')


async def test_a_session_outlives_the_promotion_of_the_replica(tmp_path: Path, start: Start) -> None:
    """Timeline 2: no stale read before or after, old tokens are honoured by the new primary and exchanged."""
    with server_folder() as folder:
        primary = RealServer.create(folder / "s0", 18)
        replica = primary.make_standby(folder / "s0-1")
        servers = [primary, replica]
        try:
            async with fault_proxy(primary.admin.port) as service:
                pair = Pair(primary, replica)
                tenant = await tenant_of(pair, tmp_path)
                _lead_through(tenant, service.port)
                caller = await start(tenant)
                old = await caller.put("before")
                await caller.warm()
                async with replica.session("postgres") as admin, asyncio.timeout(TIMEOUT_S):
                    wanted = Token.parse(old).of("s0")
                    assert wanted is not None
                    reached = "SELECT pg_last_wal_replay_lsn() - '0/0' >= $1::bigint"
                    while not await admin.fetchval(reached, wanted.lsn):  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                await asyncio.to_thread(primary.stop, "immediate")
                async with replica.session("postgres") as admin:
                    await admin.execute("SELECT pg_promote()")
                service.upstream_port = replica.admin.port
                new = replica.make_standby(folder / "s0-2")
                servers.append(new)
                members = (*tenant.shard_map.shards[0].members, Node("s0-2", "127.0.0.1", new.admin.port))
                assert await caller.get(session=old) == "before"
                exchanged = Token.parse(caller.token).of("s0")
                assert exchanged is not None
                assert exchanged.timeline == 2
                shard = replace(tenant.shard_map.shards[0], members=members, nodes=(_node(service.port),))
                grown = replace(tenant.shard_map, epoch=3, shards=(shard,))
                await postgres.publish_map(replica.admin, "s0", grown)
                (tenant.config_dir / "map.json").write_text(grown.to_json())
                await caller.warm()
                stale = 0
                for number in range(300):
                    token = await caller.put(f"after {number}", session=old)
                    stale += await caller.get(session=token) != f"after {number}"
                assert stale == 0
                assert await caller.get(session=old) == "after 299"
                before = await caller.reads("replica")
                await caller.warm(session=caller.token)
                assert await caller.reads("replica") > before
        finally:
            for server in servers:
                server.stop("immediate")


def _node(port: int) -> Node:
    return Node("s0-rw", "127.0.0.1", port)


def _lead_through(tenant: Tenant, port: int) -> None:
    """Writes go by a proxy, as by the Service of the primary."""
    shard = replace(tenant.shard_map.shards[0], nodes=(_node(port),))
    moved = replace(tenant.shard_map, shards=(shard,))
    (tenant.config_dir / "map.json").write_text(moved.to_json())
