"""A sidecar that knows its pod: which pods are answered, as which agent they store, and what the shard is told."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from engram_contract.policy import Agent
from engram_operator.clients import tenancy
from engram_operator.clients.postgres import close_databases
from engram_operator.plan.sidecars import Generations
from engram_sidecar.config import read_config
from engram_sidecar.identity import Identity, Pod
from engram_sidecar.settings import Settings
from tests.harness import Http, RealServer, SidecarThread, Tenant, create_tenant

PATIENCE_S = 20.0


@dataclass(frozen=True)
class Stage:
    """A tenant, and the sidecar of one of its pods."""

    tenant: Tenant
    sidecar: SidecarThread
    http: Http
    admin: Http

    def allow(self, generation: int, *agents: Agent) -> None:
        """The policy lists these agents from now on."""
        path = self.tenant.config_dir / "policy.json"
        policy = read_config(self.tenant.config_dir).policy
        path.write_text(replace(policy, generation=generation, allowed_agents=agents).to_json())
        deadline = time.monotonic() + PATIENCE_S
        while f"policy={generation}" not in self.http("GET", "/v1/shards").headers["engram-config"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.fixture
def stage(servers: tuple[RealServer, RealServer], tmp_path: Path) -> Iterator[Stage]:
    allowed: list[dict[str, Any]] = [{"name": "bot", "serviceAccount": "default"}]
    tenant = asyncio.run(
        create_tenant("p" + str(abs(hash(str(tmp_path)))), servers, tmp_path, spec={"allowedAgents": allowed})
    )
    settings = Settings(
        tenant.config_dir, http_port=0, admin_port=0, identity=Identity("bot", "default"), pod=Pod("web-0", "uid-1")
    )
    with SidecarThread(settings).running() as thread:
        http, admin = Http(thread.ports.http_port), Http(thread.ports.admin_port)
        yield Stage(tenant, thread, http, admin)
        http.close()
        admin.close()


def test_what_is_stored_carries_the_pods_agent(stage: Stage) -> None:
    http = stage.http
    created = http("POST", "/v1/memories", {"content": "x"}).json
    address = f"/v1/memories/{created['id']}"
    stored = [
        created,
        http("POST", "/v1/memories", {"content": "x", "agent": "bot"}).json,
        http("POST", "/v1/memories", {"content": "x", "agent": None}).json,
        http("PUT", address, {"content": "y"}).json,
        http("PATCH", address, {"content": "z"}).json,
        http("PATCH", address, {"agent": None}).json,
        http("PUT", "/v1/items", {"content": "x"}, key="k").json,
        http("PATCH", "/v1/items", {"content": "y", "agent": "bot"}, key="k").json,
    ]
    operations = [
        {"op": "create", "memory": {"content": "x"}},
        {"op": "put", "key": "b", "memory": {"agent": "bot"}},
        {"op": "patch", "key": "k", "memory": {"content": "z"}},
    ]
    stored += [each["memory"] for each in http("POST", "/v1/batch", {"operations": operations}).json["results"]]
    assert {memory["agent"] for memory in stored} == {"bot"}


def test_another_agent_is_422_at_its_place_and_nothing_is_stored(stage: Stage) -> None:
    http, other = stage.http, {"content": "x", "agent": "other"}
    made = http("PUT", "/v1/items", {"content": "x"}, key="k").json
    address = f"/v1/memories/{made['id']}"
    answers = [
        http("POST", "/v1/memories", other),
        http("PUT", "/v1/items", other, key="k"),
        http("PATCH", "/v1/items", other, key="k"),
        http("PUT", address, {**other, "key": "k"}),
        http("PATCH", address, other),
    ]
    assert {(answer.status, answer.json["errors"][0]["pointer"]) for answer in answers} == {(422, "/agent")}
    for wrong in ({"op": "create", "memory": other}, {"op": "patch", "key": "k", "memory": other}):
        operations = [{"op": "create", "memory": {"content": "fine"}}, wrong]
        answer = http("POST", "/v1/batch", {"operations": operations})
        assert (answer.status, answer.json["errors"][0]["pointer"]) == (422, "/operations/1/memory/agent")
    assert [memory["content"] for memory in http("GET", "/v1/memories").json["memories"]] == ["x"]


def test_lists_and_searches_may_ask_for_any_agent(stage: Stage) -> None:
    stage.http("POST", "/v1/memories", {"content": "heron"})
    for agent, count in (("bot", 1), ("other", 0)):
        assert len(stage.http("GET", "/v1/memories", agent=agent).json["memories"]) == count
        found = stage.http("POST", "/v1/search", {"query": "heron", "agent": agent}).json["results"]
        assert len(found) == count


def test_a_pod_that_the_policy_does_not_admit_gets_nothing_until_it_does(stage: Stage) -> None:
    http, admin = stage.http, stage.admin
    made = http("POST", "/v1/memories", {"content": "x"}).json
    assert admin("GET", "/readyz").status == 200
    stage.allow(1, Agent("another", "default"))
    answers = [
        http("POST", "/v1/memories", {"content": "x"}),
        http("GET", f"/v1/memories/{made['id']}"),
        http("GET", "/v1/memories"),
        http("POST", "/v1/search", {}),
        http("POST", "/v1/batch", {"operations": []}),
        http("GET", "/v1/shards"),
        http("GET", "/v1/audit"),
        http("GET", "/openapi.json"),
        http("GET", "/nowhere"),
    ]
    assert {answer.status for answer in answers} == {403}
    assert answers[0].json["type"].endswith("/agent-not-allowed")
    assert (answers[0].json["agent"], answers[0].json["service_account"]) == ("bot", "default")
    readiness = admin("GET", "/readyz")
    assert readiness.status == 503
    assert "agent bot" in readiness.json["reason"]
    assert admin("GET", "/healthz").status == 200
    stage.allow(2, Agent("b*", "*"))
    assert http("GET", f"/v1/memories/{made['id']}").status == 200
    assert admin("GET", "/readyz").status == 200
    audited = http("GET", "/v1/audit").json["entries"]
    deadline = time.monotonic() + PATIENCE_S
    while not any(entry["operation"] == "refused" for entry in audited):
        assert time.monotonic() < deadline
        audited = http("GET", "/v1/audit").json["entries"]


async def reports(tenant: Tenant) -> list[dict[str, Any]]:
    """What the tenant's sidecars said of themselves on its first shard."""
    columns = "pod, pod_uid, agent, epoch, policy, credentials, keys"
    async with tenant.servers[0].session(tenant.database) as connection:
        rows = await connection.fetch(f"SELECT {columns} FROM engram.sidecars WHERE tenant = $1", tenant.role)
        return [dict(row) for row in rows]


def test_the_home_shard_is_told_which_configuration_the_pod_has(stage: Stage) -> None:
    def reported(policy: int) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            found = asyncio.run(reports(stage.tenant))
            if found and found[0]["policy"] == policy:
                return found[0]
            assert time.monotonic() < deadline

    first = {"pod": "web-0", "pod_uid": "uid-1", "agent": "bot", "epoch": 1, "policy": 0, "credentials": 0, "keys": 1}
    assert reported(0) == first
    stage.allow(1, Agent("another", "default"))  # a pod that gets no answers still tells what it has
    assert reported(1) == first | {"policy": 1}


async def test_a_flood_of_reports_keeps_no_sidecar_from_telling(
    servers: tuple[RealServer, RealServer], tmp_path: Path
) -> None:
    tenant = await create_tenant("flood", servers, tmp_path)
    async with tenant.servers[0].session(tenant.database, tenant.role) as sidecars:
        tell = "SELECT engram.report_sidecar($1, 'uid', 'bot', 1, $2, 1, 1)"
        await sidecars.execute(tell, "web-0", 1)
        async with tenant.servers[0].session(tenant.database) as owner:
            await owner.execute(
                "INSERT INTO engram.sidecars SELECT $1, 'fake-' || n, 'x', 'bot', 9, 9, 9, 9,"
                " now() - n * interval '10 ms' FROM generate_series(1, 10_000) n",
                tenant.role,
            )
        await sidecars.execute(tell, "web-0", 2)
        await sidecars.execute(tell, "web-1", 2)
    found = {each["pod"]: each["policy"] for each in await reports(tenant)}
    assert len(found) == 10_000
    assert (found["web-0"], found["web-1"], found["fake-1"]) == (2, 2, 9)
    assert "fake-10000" not in found, "who told least lately goes first"


async def test_what_a_tenant_makes_up_is_told_of_its_own_pods_alone(
    servers: tuple[RealServer, RealServer], tmp_path: Path
) -> None:
    tenants = [
        await create_tenant(name, servers, tmp_path / name, database="told_shared", spec={"isolation": "Moderate"})
        for name in ("honest", "liar")
    ]
    for tenant, policy in zip(tenants, (1, 9), strict=True):
        async with servers[0].session(tenant.database, tenant.role) as connection:
            await connection.execute("SELECT engram.report_sidecar('web-0', 'uid', 'bot', 1, $1, 1, 1)", policy)
    honest = await tenancy.fetch_tenant(servers[0].admin, tenants[0].database, tenants[0].role, 0)
    await close_databases(servers[0].admin)
    (report,) = honest.reports
    assert (report.pod, report.pod_uid, report.told) == ("web-0", "uid", Generations(1, 1, 1, 1))
    assert 0 <= report.age_s < PATIENCE_S


def test_without_a_pod_nothing_is_reported(tenant: Tenant, sidecar: SidecarThread) -> None:
    assert asyncio.run(reports(tenant)) == []
