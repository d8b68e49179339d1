"""The caches' statistics, clearing them, and the snapshot of the metrics: over real shards and a real Redis.

What a cache shows is told from what is stored by changing a memory behind all sidecars' backs.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from jsonschema import Draft202012Validator

from engram import AsyncEngram, Cleared
from engram_contract.names import cache_part
from engram_contract.policy import Limits
from engram_sidecar import reports
from engram_sidecar.app import Sidecar, serving
from engram_sidecar.health import CHECKS
from engram_sidecar.openapi_schemas import schemas
from engram_sidecar.settings import Settings
from tests.harness import NUMBERS, RealServer, Tenant, create_tenant
from tests.redis_server import RedisServer, share

SPEC = {"plan": "Enterprise", "encryption": {"enabled": False}}
WAIT_S = 30


@dataclass
class Agent:
    """Someone who asks one sidecar."""

    http: aiohttp.ClientSession
    ports: Sidecar

    async def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any, Any]:
        """Status, document, headers."""
        url = f"http://127.0.0.1:{self.ports.http_port}{path}"
        async with self.http.request(method, url, json=body, headers=headers) as answer:
            return answer.status, await answer.json(content_type=None), answer.headers

    async def read(self, memory_id: str) -> tuple[int, str]:
        """The version that is shown, and by which cache."""
        status, found, headers = await self.ask("GET", f"/v1/memories/{memory_id}")
        assert status == 200, found
        return found["version"], headers["Cache-Status"].removeprefix("engram; ").partition("; ttl")[0]

    async def told(self, path: str) -> Any:  # noqa: ANN401  JSON
        status, found, _ = await self.ask("GET", path)
        assert status == 200, found
        return found

    async def clear(self, memory_id: str = "") -> Any:  # noqa: ANN401  JSON
        status, found, _ = await self.ask("DELETE", f"/v1/cache/{memory_id}" if memory_id else "/v1/cache")
        assert status == 200, found
        return found

    async def scraped(self) -> dict[str, float]:
        """Every series that Prometheus is told, as it is written."""
        async with self.http.get(f"http://127.0.0.1:{self.ports.admin_port}/metrics") as answer:
            lines = [line for line in (await answer.text()).splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    async def until(self, memory_id: str, version: int) -> None:
        """Returns once this version is shown."""
        async with asyncio.timeout(WAIT_S):
            while (await self.read(memory_id))[0] != version:  # noqa: ASYNC110  it is another process that changes
                await asyncio.sleep(0.01)

    async def until_sound(self) -> None:
        """Returns once L2 is used."""
        async with asyncio.timeout(WAIT_S):
            while not (await self.told("/v1/cache"))["shared"]["sound"]:  # noqa: ASYNC110  it is Redis that answers
                await asyncio.sleep(0.01)


class Stage(AsyncExitStack):
    """Sidecars of one tenant, ended afterwards."""

    http: aiohttp.ClientSession

    async def agents(self, tenant: Tenant, count: int) -> list[Agent]:
        settings = Settings(tenant.config_dir, http_port=0, admin_port=0)
        return [Agent(self.http, await self.enter_async_context(serving(settings))) for _ in range(count)]


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with Stage() as found, aiohttp.ClientSession() as found.http:
        yield found


async def tenant_of(servers: tuple[RealServer, ...], folder: Path) -> Tenant:
    return await create_tenant(f"v{next(NUMBERS)}", servers, folder, spec=SPEC)


async def stored(tenant: Tenant, stage: Stage, count: int) -> list[str]:
    """So many memories, stored by a sidecar that tells nobody, so that no tombstones keep them from L2."""
    async with serving(Settings(tenant.config_dir, http_port=0, admin_port=0)) as ports:
        agent, ids = Agent(stage.http, ports), []
        for number in range(count):
            body = {"content": f"number {number}", "user": f"user {number}", "namespace": ["n", str(number % 3)]}
            status, found, _ = await agent.ask("POST", "/v1/memories", body)
            assert status == 201, found
            ids.append(found["id"])
    return ids


async def change(tenant: Tenant) -> None:
    """All memories are another version, and no sidecar knows."""
    for server in tenant.servers:
        async with server.session(tenant.database) as connection:
            await connection.execute("UPDATE engram.memories SET version = version + 1 WHERE tenant = $1", tenant.role)


@pytest.mark.usefixtures("patient_calls")
async def test_after_a_clear_no_sidecar_shows_what_any_of_them_kept(
    servers: tuple[RealServer, RealServer], redis: RedisServer, tmp_path: Path, stage: Stage
) -> None:
    tenant = await tenant_of(servers, tmp_path / "config")
    first, second = await stored(tenant, stage, 2)
    await share(redis, tenant)
    one, other, third = await stage.agents(tenant, 3)
    for agent in (one, other, third):
        await agent.until_sound()
    for memory_id in (first, second):
        assert await one.read(memory_id) == (1, "fwd=uri-miss")
        async with asyncio.timeout(WAIT_S):
            while (await other.read(memory_id))[1] != "hit":
                pass
    await change(tenant)
    assert await one.read(first) == (1, "hit")
    assert await third.read(first) == (1, "fwd=uri-miss; detail=shared"), "else L2 proves nothing"
    assert await one.clear(first) == {"dropped": 1, "shared": "told"}
    assert (await one.read(first))[0] == 2
    for agent in (other, third):
        await agent.until(first, 2)
    assert await one.read(second) == (1, "hit"), "one entry is one entry"
    assert (await one.told("/v1/cache"))["hits"] > 0
    cleared = await one.clear()
    assert cleared["dropped"] >= 2
    assert cleared["shared"] == "told"
    assert (await one.read(second))[0] == 2
    for agent in (other, third):
        await agent.until(second, 2)


async def test_while_redis_does_not_answer_a_clear_says_so_and_is_told_later(
    servers: tuple[RealServer, RealServer], redis: RedisServer, tmp_path: Path, stage: Stage
) -> None:
    tenant = await tenant_of(servers, tmp_path / "config")
    [memory_id] = await stored(tenant, stage, 1)
    await share(redis, tenant)
    one, other = await stage.agents(tenant, 2)
    for agent in (one, other):
        await agent.until_sound()
        await agent.read(memory_id)
    generation = await counter(redis, tenant)
    redis.pause()
    await change(tenant)
    assert await one.clear() == {"dropped": 1, "shared": "waiting"}
    assert (await one.read(memory_id))[0] == 2, "nothing is kept here, and L2 is not asked"
    redis.resume()
    await other.until(memory_id, 2)
    async with asyncio.timeout(WAIT_S):
        while await counter(redis, tenant) == generation:  # noqa: ASYNC110  as above
            await asyncio.sleep(0.01)


async def counter(redis: RedisServer, tenant: Tenant) -> int:
    """The generation of what is kept in L2."""
    async with redis.client(tenant.role) as client:
        return int(await client.get(f"{cache_part(tenant.role)}writes") or 0) >> 24


async def test_a_clear_resets_the_statistics_and_no_counter_of_prometheus(
    servers: tuple[RealServer, RealServer], tmp_path: Path, stage: Stage
) -> None:
    tenant = await tenant_of(servers, tmp_path)
    ids = await stored(tenant, stage, 3)
    [agent] = await stage.agents(tenant, 1)
    for _ in range(2):
        for memory_id in ids:
            await agent.read(memory_id)
    before, counted = await agent.told("/v1/cache"), await agent.scraped()
    assert (before["reads"], before["hits"], before["misses"], before["hit_rate"]) == (6, 3, 3, 0.5)
    assert (before["local"]["stores"], before["local"]["entries"], before["shared"]["configured"]) == (3, 3, False)
    assert before["local"]["size_bytes"] == counted["engram_cache_size_bytes"] > 0
    assert counted['engram_cache_stores_total{level="local"}'] == 3
    assert await agent.clear() == {"dropped": 3, "shared": "none"}
    after = await agent.told("/v1/cache")
    assert (after["reads"], after["hits"], after["local"]["stores"], after["local"]["entries"]) == (0, 0, 0, 0)
    assert after["since"] > before["since"]
    await agent.read(ids[0])
    assert (await agent.told("/v1/cache"))["misses"] == 1
    counters = {name: value for name, value in counted.items() if name.partition("{")[0].endswith("_total")}
    now = await agent.scraped()
    assert {name for name, value in counters.items() if now[name] < value} == set()


async def test_the_client_reads_what_a_sidecar_says_of_itself(
    servers: tuple[RealServer, RealServer], tmp_path: Path, stage: Stage
) -> None:
    tenant = await tenant_of(servers, tmp_path)
    [memory_id] = await stored(tenant, stage, 1)
    [agent] = await stage.agents(tenant, 1)
    async with AsyncEngram(f"http://127.0.0.1:{agent.ports.http_port}") as memories:
        await memories.get(memory_id)
        await memories.get(memory_id)
        assert set((await memories.health()).checks) == set(CHECKS)
        found = await memories.cache_statistics()
        assert (found.hits, found.misses, found.local.entries, found.shared.configured) == (1, 1, 1, False)
        assert await memories.clear_cache(memory_id) == Cleared(1, "none")
        assert await memories.clear_cache() == Cleared(0, "none")
        metrics = await memories.metrics(namespaces=1)
        assert metrics.namespaces is not None
        assert metrics.namespaces.largest == {("n", "0"): 1}
        assert metrics.cache.reads == 0
        [retrieve] = [each for each in metrics.operations if each.operation == "retrieve"]
        assert (retrieve.calls, retrieve.last.calls, retrieve.errors) == (2, 2, 0)


@pytest.mark.parametrize("path", ["/v1/cache/nothing", "/v1/cache/", "/v1/cache/0000-01a1fd5f", "/v1/cache/a/b"])
async def test_what_can_be_no_id_is_not_found(
    servers: tuple[RealServer, RealServer], tmp_path: Path, stage: Stage, path: str
) -> None:
    [agent] = await stage.agents(await tenant_of(servers, tmp_path), 1)
    status, problem, _ = await agent.ask("DELETE", path)
    assert (status, problem["type"].rpartition("/")[2]) == (404, "not-found")
    status, _, headers = await agent.ask("GET", path)
    assert (status, headers["Allow"]) == (405, "DELETE")


async def test_the_snapshot_is_what_prometheus_is_told_and_what_is_stored(
    servers: tuple[RealServer, RealServer], tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = await tenant_of(servers, tmp_path)
    ids = await stored(tenant, stage, 20)
    [agent] = await stage.agents(tenant, 1)
    for memory_id in ids:
        await agent.read(memory_id)
    assert (await agent.ask("GET", "/v1/memories/nothing"))[0] == 404
    async with asyncio.timeout(WAIT_S):
        while (found := await agent.told("/v1/metrics?namespaces=2"))["stored"] is None:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    components = schemas(Limits())
    Draft202012Validator({"components": {"schemas": components}, **components["Metrics"]}).validate(found)
    counted = await agent.scraped()
    operations = {each["operation"]: each for each in found["operations"]}
    assert operations["retrieve"]["calls"] == 21
    assert operations["retrieve"]["errors"] == 0, "a caller's mistake is none of ours"
    assert counted['memory_operations_total{operation="retrieve",status="success"}'] == 21
    assert (found["stored"]["memories"], found["stored"]["growth"]) == (20, None)
    assert found["stored"]["bytes"] == counted["memory_store_size_bytes"]
    assert found["uptime_s"] <= counted["engram_uptime_seconds"]
    assert found["cache"]["misses"] == 20
    assert found["namespaces"] == {
        "largest": [{"namespace": ["n", "0"], "memories": 7}, {"namespace": ["n", "1"], "memories": 7}],
        "exact": True,
        "complete": True,
        "failed_shards": [],
    }, "over both shards"
    monkeypatch.setattr("engram_sidecar.ledger.NAMESPACES_OF_SHARD", 1)
    monkeypatch.setattr(reports, "NAMESPACES_OF_SHARD", 1)
    cut = (await agent.told("/v1/metrics?namespaces=100"))["namespaces"]
    assert (cut["exact"], cut["complete"]) == (False, True)
    assert (await agent.told("/v1/metrics"))["namespaces"] is None


@pytest.mark.parametrize("count", ["0", "101", "x", ""])
async def test_a_number_of_namespaces_has_its_bounds(
    servers: tuple[RealServer, RealServer], tmp_path: Path, stage: Stage, count: str
) -> None:
    [agent] = await stage.agents(await tenant_of(servers, tmp_path), 1)
    status, problem, _ = await agent.ask("GET", f"/v1/metrics?namespaces={count}")
    assert status == 422
    assert problem["errors"] == [{"parameter": "namespaces", "detail": "must be an integer from 1 to 100"}]


async def test_clears_and_names_that_were_shown_are_in_the_audit_and_numbers_are_not(
    servers: tuple[RealServer, RealServer], tmp_path: Path, stage: Stage
) -> None:
    tenant = await create_tenant(f"v{next(NUMBERS)}", servers, tmp_path, spec=SPEC | {"audit": {"enabled": True}})
    [memory_id] = await stored(tenant, stage, 1)
    [agent] = await stage.agents(tenant, 1)
    for path in ("/v1/cache", "/v1/metrics", "/v1/metrics?namespaces=5"):
        await agent.told(path)
    await agent.clear()
    await agent.clear(memory_id)
    async with asyncio.timeout(WAIT_S):
        while len(entries := (await agent.told("/v1/audit"))["entries"]) < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    found = [(each["operation"], each["memory"], each["details"]) for each in entries if each["operation"] != "audit"]
    assert found == [
        ("clear", memory_id, {"dropped": 0, "shared": "none"}),
        ("clear", None, {"dropped": 0, "shared": "none"}),
        ("namespaces", None, {"namespaces": 5}),
        ("store", memory_id, {}),
    ]
