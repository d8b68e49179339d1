"""Nodes that go, come back, or are slow: what their callers see of it, and how often the node is asked."""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from engram_sidecar import routing
from engram_sidecar.app import Sidecar, serving
from engram_sidecar.budget import FLOOR_PER_S
from engram_sidecar.config import read_config
from engram_sidecar.errors import ShardUnavailable
from engram_sidecar.settings import Settings
from engram_sidecar.store import CONNECTIONS_PER_NODE, Store
from tests.faults import Fault, FaultProxy, fault_proxy
from tests.harness import NO_CACHE, NUMBERS, RealServer, Tenant, create_tenant, server_folder
from tests.pooler import admit_pooler, pooler_before

GRACE_S = 1.5  # of a machine with other work


@pytest.fixture(scope="module")
def server() -> Iterator[RealServer]:
    """A server that this module may stop."""
    with server_folder() as folder:
        server = RealServer.create(folder / "s0", 18)
        yield server
        server.stop("immediate")


async def tenant_of(server: RealServer, folder: Path, **resilience: int) -> Tenant:
    spec = {"plan": "Enterprise", "audit": {"enabled": False}, "resilience": resilience}
    return await create_tenant(f"f{next(NUMBERS)}", (server,), folder, spec=spec, caching=NO_CACHE)


def behind(proxy: FaultProxy | int, tenant: Tenant) -> Settings:
    """A sidecar of the tenant that reaches its shard through the proxy, or at this port."""
    shard = tenant.shard_map.shards[0]
    node = replace(shard.nodes[0], port=proxy if isinstance(proxy, int) else proxy.port)
    moved = replace(tenant.shard_map, shards=(replace(shard, nodes=(node,)),))
    (tenant.config_dir / "map.json").write_text(moved.to_json())
    return settings_of(tenant)


def settings_of(tenant: Tenant) -> Settings:
    return Settings(tenant.config_dir, http_port=0, admin_port=0)


class Caller:
    """Requests to a sidecar, each with how it was answered and when."""

    def __init__(self, session: aiohttp.ClientSession, ports: Sidecar) -> None:
        self._session = session
        self._ports = ports
        self.ended: list[tuple[float, int]] = []

    async def __call__(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None, **query: str
    ) -> tuple[int, Any]:
        url = f"http://127.0.0.1:{self._ports.http_port}{path}"
        async with self._session.request(method, url, json=body, params=query, headers=headers) as response:
            answer = await response.json(content_type=None) if response.content_length else None
        self.ended.append((time.monotonic(), response.status))
        return response.status, answer

    async def put(self, key: int) -> tuple[int, Any]:
        return await self("PUT", "/v1/items", {"content": f"heron {key}"}, key=str(key))

    async def metric(self, name: str, labels: str = "") -> float:
        """The largest of this name, of those with these labels."""
        async with self._session.get(f"http://127.0.0.1:{self._ports.admin_port}/metrics") as response:
            text = await response.text()
        return max(
            (float(value) for value in re.findall(rf"^{name}(?:{{.*{labels}.*}})? (\S+)$", text, re.MULTILINE)),
            default=0,
        )


@pytest.fixture
async def session() -> Any:  # noqa: ANN401
    """Connections without a bound: callers do not wait for each other."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


async def open_breaker(caller: Caller, proxy: FaultProxy) -> None:
    """The node ends every connection until the breaker of reads by id is open."""
    await caller.put(1)
    proxy.turn(Fault.RESET)
    while not await caller.metric("engram_breaker_state", 'operation="retrieve"'):
        assert (await caller("GET", "/v1/items", key="1"))[0] == 503


async def test_a_line_that_is_full_is_said_with_a_time_to_try_again(
    server: RealServer, tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    tenant = await tenant_of(server, tmp_path, waitingWrites=20)
    async with fault_proxy(server.admin.port) as proxy, serving(behind(proxy, tenant)) as ports:
        caller = Caller(session, ports)
        await caller.put(0)
        proxy.refuse()
        waiting = [asyncio.create_task(caller.put(key)) for key in range(60)]
        done, _ = await asyncio.wait(waiting, timeout=2.0)
        assert 30 <= len(done) <= 40
        assert {(status, body["type"].rsplit("/", 1)[1]) for status, body in (t.result() for t in done)} == {
            (503, "overloaded")
        }
        assert await caller.metric("engram_waiting_writes") <= 20
        await proxy.listen()
        assert {(await task)[0] for task in waiting if task not in done} <= {200, 201}


@pytest.fixture(params=["straight", "pooled"])
def node_port(request: pytest.FixtureRequest, server: RealServer) -> Iterator[int]:
    """Where the server is reached: its own port, or that of PgBouncer before it."""
    if request.param == "straight":
        yield server.admin.port
        return
    command = request.getfixturevalue("pooler_command")
    asyncio.run(create_tenant("any", (server,), request.getfixturevalue("tmp_path")))  # the shard has its schema
    asyncio.run(admit_pooler(server))
    with server_folder() as folder, pooler_before(server, command, folder / "pooler") as pooler:
        yield pooler.port


@pytest.mark.parametrize("operation", ["put", "patch", "batch", "keyed"])
async def test_a_write_waits_for_a_standby_to_be_promoted(
    server: RealServer, node_port: int, tmp_path: Path, session: aiohttp.ClientSession, operation: str
) -> None:
    tenant = await tenant_of(server, tmp_path)
    async with serving(behind(node_port, tenant)) as ports:
        caller = Caller(session, ports)
        await caller.put(1)
        await asyncio.to_thread(server.stop)
        (server.server.directory / "pgdata" / "standby.signal").touch()
        await asyncio.to_thread(server.start)
        await caller("GET", "/v1/items", key="1")  # the pooler has met its connections that ended with the server
        body = {"content": "after"}
        batch = {"operations": [{"op": "put", "key": "1", "memory": body}]}
        calls = {
            "put": caller("PUT", "/v1/items", body, key="1"),
            "patch": caller("PATCH", "/v1/items", body, key="1"),
            "batch": caller("POST", "/v1/batch", batch),
            "keyed": caller("PUT", "/v1/items", body, headers={"Idempotency-Key": "k"}, key="1"),
        }
        write = asyncio.create_task(calls.pop(operation))
        for unused in calls.values():
            unused.close()
        while not await caller.metric("engram_waiting_writes"):
            assert not write.done(), write.result()
            await asyncio.sleep(0.05)
        async with server.session("postgres") as admin:
            await admin.execute("SELECT pg_promote()")
        status, answer = await write
        assert status == 200
        assert operation != "batch" or answer["results"][0]["status"] == 200
        assert (await caller("GET", "/v1/items", key="1"))[1]["content"] == "after"


async def test_a_write_that_the_pooler_passed_on_to_nobody_did_not_happen(
    server: RealServer, node_port: int, tmp_path: Path
) -> None:
    """PgBouncer refuses at once while it knows that its server is away, and ends the connection with that."""
    tenant = await tenant_of(server, tmp_path)
    behind(node_port, tenant)
    config = read_config(tmp_path)
    place, store = routing.home(config.shard_map), Store(config.credentials)
    ask = partial(store.read, place, "is_standby", timeout_s=10)
    try:
        await asyncio.gather(*(ask() for _ in range(CONNECTIONS_PER_NODE)))
        await asyncio.to_thread(server.stop)
        with pytest.raises(ShardUnavailable):
            await ask()
        writes = [store.write(place, "is_standby", timeout_s=10) for _ in range(CONNECTIONS_PER_NODE)]
        outcomes = await asyncio.gather(*writes, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {ShardUnavailable}
    finally:
        await asyncio.to_thread(server.start)
        await store.close()


async def test_writes_wait_for_a_primary_that_restarts(
    server: RealServer, node_port: int, tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    tenant = await tenant_of(server, tmp_path, failoverSeconds=60, deadlineSeconds=60)
    async with serving(behind(node_port, tenant)) as ports:
        caller = Caller(session, ports)
        await caller.put(1)
        await asyncio.to_thread(server.stop)
        write = asyncio.create_task(caller.put(2))
        patch = asyncio.create_task(caller("PATCH", "/v1/items", {"value": 1}, key="1"))
        while await caller.metric("engram_waiting_writes") < 2:
            for early in (write, patch):
                assert not early.done(), early.result()
            await asyncio.sleep(0.05)
        await asyncio.to_thread(server.start)
        assert [(await write)[0], (await patch)[0]] == [201, 200]


async def test_two_seconds_of_latency_open_the_breaker_within_a_window(
    server: RealServer, tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    tenant = await tenant_of(server, tmp_path, recoverySeconds=2, retryPercent=0)
    async with fault_proxy(server.admin.port) as proxy, serving(behind(proxy, tenant)) as ports:
        caller = Caller(session, ports)
        for key in range(3):
            await caller.put(key)
            assert (await caller("GET", "/v1/items", key=str(key)))[0] == 200
        proxy.turn(Fault.NONE, delay_s=2.0)
        reads = 0
        while not await caller.metric("engram_breaker_state", 'operation="retrieve"'):
            reads += 2
            await asyncio.gather(*(caller("GET", "/v1/items", key="1") for _ in range(2)))
            assert reads <= 20, "a window has passed"
        began_s = time.monotonic()
        status, refused = await caller("GET", "/v1/items", key="1")
        assert (status, refused["type"].rsplit("/", 1)[1]) == (503, "breaker-open")
        assert time.monotonic() - began_s < 1.0, "an open breaker does not ask"


async def test_a_node_that_comes_back_is_met_by_one_question(
    server: RealServer, tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    tenant = await tenant_of(server, tmp_path, recoverySeconds=1, retryPercent=0)
    async with fault_proxy(server.admin.port) as proxy, serving(behind(proxy, tenant)) as ports:
        caller = Caller(session, ports)
        await open_breaker(caller, proxy)
        proxy.turn(Fault.HELD)
        before = proxy.accepted
        await asyncio.sleep(1.1)
        first = asyncio.create_task(caller("GET", "/v1/items", key="1"))
        while await caller.metric("engram_breaker_state", 'operation="retrieve"') != 1:
            assert not first.done(), first.result()
        answers = await asyncio.gather(*(caller("GET", "/v1/items", key=str(key)) for key in range(2, 51)))
        assert Counter(status for status, _ in answers) == {503: 49}
        proxy.turn(Fault.NONE)
        assert (await first)[0] == 200
        assert proxy.accepted - before <= 8, "of the 50 reads one; the watch, the sweep and the audit ask too"
        assert (await caller("GET", "/v1/items", key="1"))[0] == 200


async def test_a_node_that_fails_every_question_is_asked_a_fifth_more_at_most(
    server: RealServer, tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """With its breaker out of the way: what bounds the attempts is the budget, which gives one a second to anybody."""
    tenant = await tenant_of(server, tmp_path, retrieveFailures=100)
    async with fault_proxy(server.admin.port) as proxy, serving(behind(proxy, tenant)) as ports:
        caller = Caller(session, ports)
        await caller.put(1)
        proxy.turn(Fault.RESET)
        requests, began_s = 70, time.monotonic()
        answers = [await caller("GET", "/v1/items", key="1") for _ in range(requests)]
        assert {(status, body["type"].rsplit("/", 1)[1]) for status, body in answers} == {(503, "shard-unavailable")}
        retries = await caller.metric("engram_retries_total", 'operation="retrieve"')
        assert 0 < retries <= 0.2 * requests + FLOOR_PER_S * (time.monotonic() - began_s)


async def test_no_request_is_answered_after_its_deadline(
    server: RealServer, tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """A node that takes everything and says nothing: reads, lists, searches and writes of many callers at once."""
    tenant = await tenant_of(server, tmp_path, deadlineSeconds=1, failoverSeconds=1, recoverySeconds=1)
    async with fault_proxy(server.admin.port) as proxy, serving(behind(proxy, tenant)) as ports:
        caller = Caller(session, ports)
        await caller.put(1)
        proxy.turn(Fault.SILENT)

        async def timed(call: Any) -> tuple[int, float]:  # noqa: ANN401
            began_s = time.monotonic()
            status, _ = await call
            return status, time.monotonic() - began_s

        answers: list[tuple[int, float]] = []
        for _ in range(3):
            calls = [
                *(caller("GET", "/v1/items", key="1") for _ in range(10)),
                *(caller("GET", "/v1/memories") for _ in range(5)),
                *(caller("POST", "/v1/search", {"query": "heron"}) for _ in range(5)),
                *(caller.put(key) for key in range(10)),
                *(caller("PATCH", "/v1/items", {"content": "x"}, key="1") for _ in range(5)),
            ]
            answers += await asyncio.gather(*map(timed, calls))
        assert {status for status, _ in answers} <= {503, 504}
        assert max(took_s for _, took_s in answers) <= 1 + 1 + GRACE_S
        proxy.refuse()


async def test_a_running_sidecar_takes_other_numbers(
    server: RealServer, tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """A breaker that would stay open for ten minutes closes when the policy says that it need not."""
    tenant = await tenant_of(server, tmp_path, recoverySeconds=600, retryPercent=0)
    async with fault_proxy(server.admin.port) as proxy, serving(behind(proxy, tenant)) as ports:
        caller = Caller(session, ports)
        await open_breaker(caller, proxy)
        proxy.turn(Fault.NONE)
        assert (await caller("GET", "/v1/items", key="1"))[1]["type"].endswith("/breaker-open")
        policy = tenant.config_dir / "policy.json"
        policy.write_text(policy.read_text().replace('"recovery_seconds":600', '"recovery_seconds":1'))
        async with asyncio.timeout(30):
            while (await caller("GET", "/v1/items", key="1"))[0] != 200:  # noqa: ASYNC110  it is a file that is read
                await asyncio.sleep(0.1)
