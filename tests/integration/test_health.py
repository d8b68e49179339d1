"""Health over a real pair of shards: tried, shared by all who ask, and never longer than its bound."""

import asyncio
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from engram_contract.shardmap import ShardState, restated
from engram_sidecar.checkup import FRESH_S, PROBE_USER, TRIAL_S
from engram_sidecar.config import read_config
from engram_sidecar.settings import Settings
from tests.faults import Fault, fault_proxy
from tests.harness import Answer, Http, RealServer, SidecarThread, Tenant, create_tenant, server_folder, write_config

WAIT_S = 30
OPERATIONS = ["delete", "retrieve", "search", "store"]


@pytest.fixture(scope="module")
def own_servers() -> Iterator[tuple[RealServer, RealServer]]:
    """Servers that this module may stop."""
    with server_folder() as folder:
        pair = (RealServer.create(folder / "s0", 18), RealServer.create(folder / "s1", 18))
        yield pair
        for server in pair:
            server.stop("immediate")


def shards_of(answer: Answer) -> dict[str, Any]:
    """Shard -> what came of trying it."""
    return {each["shard"]: each for each in answer.json["checks"]["database"]["shards"]}


def serve(tenant: Tenant) -> Any:  # noqa: ANN401
    return SidecarThread(Settings(tenant.config_dir, http_port=0, admin_port=0)).running()


@pytest.mark.parametrize("encryption", [False, True])
async def test_every_shard_stores_reads_finds_and_removes_and_nothing_is_left(
    servers: tuple[RealServer, RealServer], tmp_path: Path, *, encryption: bool
) -> None:
    tenant = await create_tenant(
        f"well-{encryption}".lower(), servers, tmp_path, spec={"encryption": {"enabled": encryption}}
    )
    with serve(tenant) as thread:
        http, admin = Http(thread.ports.http_port), Http(thread.ports.admin_port)
        answer = await asyncio.to_thread(http, "GET", "/v1/health")
        shards = shards_of(answer)
        assert {shard: (each["status"], sorted(each["operations"])) for shard, each in shards.items()} == {
            "s0": ("healthy", OPERATIONS),
            "s1": ("healthy", OPERATIONS),
        }
        assert all(each["response_ms"] >= sum(each["operations"].values()) > 0 for each in shards.values())
        assert (answer.status == 503) == (answer.json["status"] == "unhealthy")
        assert {"database", "breakers", "configuration", "cache"} <= {
            name for name, check in answer.json["checks"].items() if check["status"] == "healthy"
        }
        again = await asyncio.to_thread(admin, "GET", "/health")
        assert again.json["time"] == answer.json["time"], "from memory"
        text = json.dumps(answer.json)
        for server in servers:
            assert str(server.admin.port) not in text
        assert "127.0.0.1" not in text
        found = await asyncio.to_thread(http, "GET", "/v1/memories", user=PROBE_USER)
        assert found.json["memories"] == []
        assert (await asyncio.to_thread(http, "GET", "/v1/usage")).json["memories"]["used"] == 0
        http.close()
        admin.close()
    for server in servers:
        async with server.session(tenant.database) as connection:
            assert await connection.fetchval("SELECT count(*) FROM engram.memories WHERE tenant = $1", tenant.role) == 0


def test_a_storm_of_questions_costs_one_try(servers: tuple[RealServer, RealServer], tmp_path: Path) -> None:
    tenant = asyncio.run(create_tenant("storm", servers, tmp_path))

    def ask(port: int) -> str:
        http = Http(port)
        answer = http("GET", "/health")
        http.close()
        return str(answer.json["time"])

    with serve(tenant) as thread, ThreadPoolExecutor(16) as pool:
        times = list(pool.map(ask, [thread.ports.admin_port] * 48))
    began = sorted(set(times))
    assert len(began) <= 1 + FRESH_S, "one try in FRESH_S, however slow the machine"
    assert len(began) < len(times) / 4


def test_a_dead_shard_is_named_and_neither_restarts_the_pod_nor_opens_a_breaker(
    own_servers: tuple[RealServer, RealServer], tmp_path: Path
) -> None:
    tenant = asyncio.run(create_tenant("dead", own_servers, tmp_path))
    with serve(tenant) as thread:
        http, admin = Http(thread.ports.http_port), Http(thread.ports.admin_port)
        own_servers[1].stop("immediate")
        try:
            answer = http("GET", "/v1/health")
            assert (answer.status, answer.json["status"]) == (503, "unhealthy")
            assert answer.headers["content-type"].startswith("application/json")
            shards = shards_of(answer)
            assert (shards["s0"]["status"], shards["s1"]["status"]) == ("healthy", "unhealthy")
            assert shards["s1"]["reason"] == "connection refused"
            breakers = answer.json["checks"]["breakers"]
            assert breakers["status"] == "healthy"
            assert {each["state"] for each in breakers["breakers"]} <= {"closed"}, "of what the sweep asked meanwhile"
            assert (admin("GET", "/healthz").status, admin("GET", "/readyz").status) == (200, 200)
            assert b'memory_operations_total{operation="health",status="success"} 1.0' in admin("GET", "/metrics").body
        finally:
            own_servers[1].start()
        http.close()
        admin.close()


async def test_a_shard_that_says_nothing_does_not_hold_up_the_answer(
    servers: tuple[RealServer, RealServer], tmp_path: Path
) -> None:
    tenant = await create_tenant("mute", servers, tmp_path)
    async with fault_proxy(servers[1].admin.port) as proxy:
        shard_map = read_config(tmp_path).shard_map
        text = shard_map.to_json().replace(f'"port":{servers[1].admin.port}', f'"port":{proxy.port}')
        assert text != shard_map.to_json()
        (tmp_path / "map.json").write_text(text)
        proxy.turn(Fault.SILENT)
        with serve(tenant) as thread:
            http, admin = Http(thread.ports.http_port), Http(thread.ports.admin_port)
            began_s = time.monotonic()
            answers = await asyncio.gather(
                asyncio.to_thread(http, "GET", "/v1/health"), asyncio.to_thread(admin, "GET", "/health")
            )
            assert time.monotonic() - began_s < 5 * TRIAL_S, "bounded, and not by the driver's patience"
            for answer in answers:
                assert answer.status == 503
                assert [each["status"] for each in shards_of(answer).values()] == ["healthy", "unhealthy"]
            assert (await asyncio.to_thread(admin, "GET", "/healthz")).status == 200
            http.close()
            admin.close()
            proxy.turn(Fault.RESET)


def test_a_shard_that_takes_no_writes_is_read_and_one_in_maintenance_is_not_asked(
    servers: tuple[RealServer, RealServer], tmp_path: Path
) -> None:
    tenant = asyncio.run(create_tenant("resting", servers, tmp_path))
    config = read_config(tmp_path)
    states = (ShardState.READONLY, ShardState.MAINTENANCE)
    shards = [
        type(shard)(shard.id, shard.database, shard.nodes, state=state)
        for shard, state in zip(config.shard_map.shards, states, strict=True)
    ]
    write_config(tmp_path, restated(config.shard_map, shards), config.policy)
    with serve(tenant) as thread:
        http = Http(thread.ports.http_port)
        found = shards_of(http("GET", "/v1/health"))
        assert sorted(found["s0"]["operations"]) == ["retrieve", "search"]
        assert (found["s1"]["status"], found["s1"]["reason"]) == ("degraded", "maintenance")
        http.close()


def test_metrics_are_by_route_and_node_and_nothing_that_a_caller_sends_makes_a_series(
    servers: tuple[RealServer, RealServer], tmp_path: Path
) -> None:
    tenant = asyncio.run(create_tenant("routes", servers, tmp_path))
    with serve(tenant) as thread:
        http, admin = Http(thread.ports.http_port), Http(thread.ports.admin_port)

        def series(name: str) -> dict[str, float]:
            lines = admin("GET", "/metrics").body.decode().splitlines()
            return {line.split(" ")[0]: float(line.split(" ")[1]) for line in lines if line.startswith(name)}

        made = http("POST", "/v1/memories", {"content": "heron", "type": "semantic"}).json
        for path in (f"/v1/memories/{made['id']}", "/v1/memories/nothing", "/v1/memories/a%2Fb", "/v1/a", "/v1/b"):
            for method in ("GET", "OPTIONS"):
                http(method, path)
        http("HEAD", f"/v1/memories/{made['id']}")
        assert series("engram_http_request_seconds_count") == {
            f'engram_http_request_seconds_count{{code="{code}",method="{method}",route="{route}"}}': count
            for code, method, route, count in (
                ("2xx", "POST", "/v1/memories", 1.0),
                ("2xx", "GET", "/v1/memories/{id}", 1.0),
                ("2xx", "HEAD", "/v1/memories/{id}", 1.0),
                ("4xx", "GET", "/v1/memories/{id}", 2.0),
                ("4xx", "other", "other", 7.0),
            )
        }
        assert {'shard="s0"', 'shard="s1"'} & set(re.findall(r'shard="\w+"', str(series("engram_connections{"))))
        assert set(re.findall(r'state="(\w+)"', str(series("engram_connections{")))) == {"idle", "used"}
        deadline_s = time.monotonic() + WAIT_S
        while series("engram_memories") != {'engram_memories{type="semantic"}': 1.0}:
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        assert series("memory_store_size_bytes")["memory_store_size_bytes"] > len("heron")
        http.close()
        admin.close()
