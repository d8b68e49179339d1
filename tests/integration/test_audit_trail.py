"""The audit trail on real shards: every operation is in it, an outage loses none, and it holds no content."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engram import Engram
from engram_sidecar.settings import Settings
from tests.harness import Http, RealServer, SidecarThread, Tenant, create_tenant, server_folder

PATIENCE_S = 20.0
SECRET = "the launch code is 000000"  # noqa: S105  the marker that must not be in the trail


@dataclass(frozen=True)
class Stage:
    """A tenant with its sidecar, on servers that may be stopped."""

    tenant: Tenant
    sidecar: SidecarThread
    http: Http

    def waiting(self) -> float:
        """How many entries are not written yet."""
        admin = Http(self.sidecar.ports.admin_port)
        lines = admin("GET", "/metrics").body.splitlines()
        admin.close()
        [value] = [line.split()[1] for line in lines if line.startswith(b"engram_audit_waiting ")]
        return float(value)

    def entries(self, count: int) -> list[dict[str, Any]]:
        """The trail, newest first, as soon as it has so many entries beside those of its own reading."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            found = self.http("GET", "/v1/audit", limit=1000).json["entries"]
            told = [entry for entry in found if entry["operation"] != "audit"]
            if len(told) >= count:
                return told
            assert time.monotonic() < deadline, f"only {len(told)} entries"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def own_servers() -> Iterator[tuple[RealServer, RealServer]]:
    """Servers that this module may stop."""
    with server_folder() as folder:
        pair = (RealServer.create(folder / "s0", 18), RealServer.create(folder / "s1", 18))
        yield pair
        for server in pair:
            server.stop("immediate")


@pytest.fixture
def stage(own_servers: tuple[RealServer, RealServer], tmp_path: Path) -> Iterator[Stage]:
    tenant = asyncio.run(create_tenant("a" + str(abs(hash(str(tmp_path)))), own_servers, tmp_path))
    settings = Settings(tenant.config_dir, http_port=0, admin_port=0, request_timeout_s=2.0)
    with SidecarThread(settings).running() as thread:
        http = Http(thread.ports.http_port)
        yield Stage(tenant, thread, http)
        http.close()


def test_every_operation_is_recorded_with_its_outcome(stage: Stage) -> None:
    http = stage.http
    made = http("POST", "/v1/memories", {"content": SECRET, "user": "ada", "agent": "bot"}).json
    address = f"/v1/memories/{made['id']}"
    http("GET", address)
    http("PATCH", address, {"value": {"secret": SECRET}})
    http("PUT", "/v1/items", {"content": SECRET}, user="ada", namespace=["a", "b"], key="k")
    http("GET", "/v1/items", user="ada", key="absent")
    http("POST", "/v1/memories", {"content": SECRET, "importance": 7})
    http("POST", "/v1/search", {"query": SECRET, "user": "ada"})
    http("GET", "/v1/memories", agent="bot")
    http("DELETE", address)
    operations = [{"op": "get", "id": made["id"]}, {"op": "put", "key": "b", "memory": {"content": SECRET}}]
    http("POST", "/v1/batch", {"operations": operations})
    http("POST", "/v1/batch", {"operations": 1})
    http("GET", "/v1/shards")
    found = stage.entries(12)
    assert [(entry["operation"], entry["status"], entry["outcome"]) for entry in reversed(found)] == [
        ("store", 201, "success"),
        ("retrieve", 200, "success"),
        ("update", 200, "success"),
        ("store", 201, "success"),
        ("retrieve", 404, "error"),
        ("store", 422, "error"),
        ("search", 200, "success"),
        ("list", 200, "success"),
        ("delete", 204, "success"),
        ("retrieve", 404, "error"),
        ("store", 201, "success"),
        ("batch", 422, "error"),
    ]
    first, read, _, item, absent, _, search, listed, deleted, *_ = reversed(found)
    assert (first["memory"], first["user"], first["agent"]) == (made["id"], "ada", "bot")
    assert read["user"] == "ada"
    assert (item["namespace"], item["key"]) == (["a", "b"], "k")
    assert (absent["key"], absent["user"]) == ("absent", "ada")
    assert (search["details"], search["user"]) == ({"found": 2}, "ada")
    assert (listed["details"], listed["agent"]) == ({"found": 1}, "bot")
    assert deleted["memory"] == made["id"]
    assert SECRET not in str(found)
    assert "launch" not in str(found)


def test_pages_give_every_entry_once(stage: Stage) -> None:
    for number in range(25):
        stage.http("PUT", "/v1/items", {}, key=f"{number}")
    stage.entries(25)
    seen: list[str] = []
    before: dict[str, Any] = {}
    while True:
        page = stage.http("GET", "/v1/audit", limit=7, **before).json
        assert page["complete"]
        seen += [entry["key"] for entry in page["entries"] if entry["operation"] == "store"]
        if page["next"] is None:
            break
        before = {"before": page["next"]}
    assert seen == [str(number) for number in reversed(range(25))]
    with Engram(f"http://127.0.0.1:{stage.sidecar.ports.http_port}") as memories:
        first = memories.audit(limit=1)
        assert len(first.entries) == 1
        assert memories.audit(limit=1, before=first.next).entries != first.entries


def test_an_outage_of_the_home_shard_loses_no_entry_and_disturbs_no_other_shard(stage: Stage) -> None:
    shards = {f"{n}": stage.http("PUT", "/v1/items", {}, key=f"{n}").json["shard"] for n in range(20)}
    stage.entries(20)
    home = stage.tenant.servers[0]
    home.stop("immediate")
    try:
        statuses = {shards[key]: stage.http("GET", "/v1/items", key=key).status for key in shards}
        assert statuses == {"s0": 503, "s1": 200}
        partial = stage.http("GET", "/v1/audit").json
        assert [failed["shard"] for failed in partial["failed_shards"]] == ["s0"]
        deadline = time.monotonic() + PATIENCE_S
        while stage.waiting() < len(shards):
            assert time.monotonic() < deadline
    finally:
        home.start()
    found = [entry for entry in stage.entries(40) if entry["operation"] == "retrieve"]
    assert sorted(entry["key"] for entry in found) == sorted(shards)
    assert {entry["status"] for entry in found} == {200, 503}


def test_what_was_done_just_before_the_end_is_recorded(stage: Stage) -> None:
    with SidecarThread(Settings(stage.tenant.config_dir, http_port=0, admin_port=0)).running() as second:
        http = Http(second.ports.http_port)
        for number in range(50):
            http("PUT", "/v1/items", {}, key=f"{number}")
        http.close()
    assert len(stage.entries(50)) == 50


def test_without_audit_in_the_policy_nothing_is_recorded(
    own_servers: tuple[RealServer, RealServer], tmp_path: Path
) -> None:
    tenant = asyncio.run(
        create_tenant("n" + str(abs(hash(str(tmp_path)))), own_servers, tmp_path, spec={"audit": {"enabled": False}})
    )
    with SidecarThread(Settings(tenant.config_dir, http_port=0, admin_port=0)).running() as thread:
        http = Http(thread.ports.http_port)
        http("PUT", "/v1/items", {}, key="k")
        http.close()
    with SidecarThread(Settings(tenant.config_dir, http_port=0, admin_port=0)).running() as thread:
        http = Http(thread.ports.http_port)
        assert http("GET", "/v1/audit").json["entries"] == []
        http.close()
