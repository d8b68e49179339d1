"""A quota as callers meet it: refused with the limit, borrowed over shards, exact with two sidecars at once."""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engram import Engram, QuotaExceeded
from engram_operator.clients import tenancy
from engram_operator.plan.steps import SetQuota
from engram_sidecar.settings import Settings
from tests.harness import Http, RealServer, SidecarThread, Tenant, create_tenant

SEAL = "known to the shards alone"


@dataclass(frozen=True)
class Stage:
    """A tenant with two sidecars."""

    tenant: Tenant
    ports: tuple[int, int]
    http: Http

    def give(self, memories: int, size_bytes: int = 10**9) -> None:
        """The quota, which is the first shard's as long as the others borrow none."""
        for number, server in enumerate(self.tenant.servers):
            base = (0, 0) if number else (memories, size_bytes)
            step = SetQuota(f"s{number}", *base, memories, size_bytes)
            asyncio.run(tenancy.level_quota(server.admin, self.tenant.database, self.tenant.role, step, SEAL))

    def users(self) -> dict[str, str]:
        """A user for each shard."""
        homes: dict[str, str] = {}
        for number in range(50):
            made = self.http("POST", "/v1/memories", {"user": f"u{number}"}).json
            homes.setdefault(made["shard"], f"u{number}")
            self.http("DELETE", f"/v1/memories/{made['id']}")
        return homes

    def count(self) -> int:
        return sum(shard["memories"] for shard in self.http("GET", "/v1/shards", count="true").json["shards"])


@pytest.fixture
def stage(servers: tuple[RealServer, RealServer], tmp_path: Path) -> Iterator[Stage]:
    tenant = asyncio.run(create_tenant("q" + str(abs(hash(str(tmp_path)))), servers, tmp_path))
    settings = Settings(tenant.config_dir, http_port=0, admin_port=0)
    with SidecarThread(settings).running() as first, SidecarThread(settings).running() as second:
        http = Http(first.ports.http_port)
        yield Stage(tenant, (first.ports.http_port, second.ports.http_port), http)
        http.close()


def test_over_the_quota_a_write_is_refused_with_the_limit_and_nothing_else_is(stage: Stage) -> None:
    stage.give(5)
    for number in range(5):
        assert stage.http("PUT", "/v1/items", {"content": "x"}, key=f"{number}").status == 201
    refused = stage.http("PUT", "/v1/items", {"content": "x"}, key="one more")
    assert (refused.status, refused.json["type"].rpartition("/")[2]) == (507, "quota-exceeded")
    assert (refused.json["quota"], refused.json["limit"]) == ("memories", 5)
    assert "retry-after" not in refused.headers
    assert stage.http("PUT", "/v1/items", {"content": "longer than before"}, key="0").status == 200
    assert stage.http("GET", "/v1/items", key="0").status == 200
    assert stage.http("DELETE", "/v1/items", key="1").status == 204
    assert stage.http("PUT", "/v1/items", {"content": "x"}, key="one more").status == 201
    admin = stage.http("GET", "/v1/usage").json
    assert (admin["memories"], admin["complete"]) == (
        {"used": 5, "limit": 100, "remaining": 95, "percent": 5.0},
        True,
    )


def test_bytes_are_a_quota_of_their_own(stage: Stage) -> None:
    stage.give(100, 10_000)
    made = stage.http("POST", "/v1/memories", {"content": "x" * 9_000}).json
    refused = stage.http("POST", "/v1/memories", {"content": "x" * 2_000})
    assert (refused.status, refused.json["quota"], refused.json["limit"]) == (507, "bytes", 10_000)
    grown = stage.http("PATCH", f"/v1/memories/{made['id']}", {"content": "x" * 11_000})
    assert (grown.status, grown.json["quota"]) == (507, "bytes")
    assert stage.http("PATCH", f"/v1/memories/{made['id']}", {"content": "x" * 8_000}).status == 200
    assert stage.http("POST", "/v1/memories", {"content": "x" * 1_500}).status == 201


def test_the_whole_quota_may_lie_on_any_shard(stage: Stage) -> None:
    homes = stage.users()
    stage.give(200)
    for user in (homes["s1"], homes["s0"], homes["s1"]):
        statuses = Counter(stage.http("POST", "/v1/memories", {"user": user}).status for _ in range(201))
        assert statuses == {201: 200, 507: 1}
        for memory in stage.http("GET", "/v1/memories", limit=1000).json["memories"]:
            assert stage.http("DELETE", f"/v1/memories/{memory['id']}").status == 204


def test_a_batch_is_refused_by_shard_and_leaves_nothing_there(stage: Stage) -> None:
    homes = stage.users()
    stage.give(10)
    operations = [{"op": "create", "memory": {"user": homes["s1"]}} for _ in range(11)]
    operations += [{"op": "get", "key": "none"}]
    results = stage.http("POST", "/v1/batch", {"operations": operations}).json["results"]
    assert {result["status"] for result in results[:11]} == {507}
    assert results[0]["problem"]["limit"] == 10
    assert stage.count() == 0
    assert stage.http("POST", "/v1/batch", {"operations": operations[:10]}).json["results"][9]["status"] == 201
    assert stage.count() == 10


def test_two_sidecars_at_once_fill_the_quota_exactly(stage: Stage) -> None:
    """Eight threads over both sidecars and both shards, more writes than there is room for."""
    stage.give(150)
    statuses: list[int] = []

    def write(number: int) -> None:
        http = Http(stage.ports[number % 2])
        for turn in range(40):
            body: dict[str, Any] = {"user": f"{number}-{turn}", "content": "x"}
            statuses.append(http("POST", "/v1/memories", body).status)
        http.close()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(statuses) == {201: 150, 507: 170}
    assert stage.count() == 150


def test_a_lender_that_cannot_be_asked_is_named_and_not_taken_for_full(stage: Stage) -> None:
    homes = stage.users()
    stage.give(10)
    stage.http("POST", "/v1/memories", {"user": homes["s1"]})  # borrows all there is
    stage.http("POST", "/v1/memories", {"user": homes["s0"]})
    asyncio.run(lend_disabled(stage.tenant, 0, is_disabled=True))
    try:
        answers = [stage.http("POST", "/v1/memories", {"user": homes["s1"]}) for _ in range(12)]
        assert (answers[-1].status, answers[-1].json["shard"]) == (503, "s0")
        assert "retry-after" in answers[-1].headers
    finally:
        asyncio.run(lend_disabled(stage.tenant, 0, is_disabled=False))


async def lend_disabled(tenant: Tenant, shard: int, *, is_disabled: bool) -> None:
    """The shard refuses to lend, as one of an older schema would."""
    verb = (
        "REVOKE EXECUTE ON FUNCTION engram.lend_quota FROM"
        if is_disabled
        else "GRANT EXECUTE ON FUNCTION engram.lend_quota TO"
    )
    async with tenant.servers[shard].session(tenant.database) as connection:
        await connection.execute(f"{verb} engram_tenant")


def test_the_client_raises_an_error_of_its_own(stage: Stage) -> None:
    stage.give(1)
    with Engram(f"http://127.0.0.1:{stage.ports[0]}") as memories:
        memories.create(content="x")
        with pytest.raises(QuotaExceeded) as refused:
            memories.create(content="x")
        assert (refused.value.quota, refused.value.limit) == ("memories", 1)
        usage = memories.usage()
        assert [(each.type, each.memories) for each in usage.types] == [("episodic", 1)]
        assert usage.bytes.used == len("x") + len("null")
