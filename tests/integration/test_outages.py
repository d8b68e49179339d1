"""What is answered when a shard is not there: what can be, and for the rest an error that names the shard."""

import asyncio
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from engram_contract.shardmap import ShardState, restated
from engram_sidecar.app import serving
from engram_sidecar.config import read_config
from engram_sidecar.errors import BadConfig, PortTaken
from engram_sidecar.settings import Settings
from tests.harness import Answer, Http, RealServer, SidecarThread, Tenant, create_tenant, server_folder, write_config

WAIT_S = 30


@pytest.fixture(scope="module")
def own_servers() -> Iterator[tuple[RealServer, RealServer]]:
    """Servers that this module may stop."""
    with server_folder() as folder:
        pair = (RealServer.create(folder / "s0", 18), RealServer.create(folder / "s1", 18))
        yield pair
        for server in pair:
            server.stop("immediate")


@pytest.fixture
def stage(
    own_servers: tuple[RealServer, RealServer], tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[Tenant, SidecarThread, Http]]:
    """A sidecar on both; a parameter is what else its policy says of resilience."""
    name = "t" + str(abs(hash(str(tmp_path))))
    spec = {"resilience": {"recoverySeconds": 1, "failoverSeconds": 0, **getattr(request, "param", {})}}
    tenant = asyncio.run(create_tenant(name, own_servers, tmp_path / "config", spec=spec))
    settings = Settings(tenant.config_dir, http_port=0, admin_port=0, request_timeout_s=2.0)
    with SidecarThread(settings).running() as thread:
        http = Http(thread.ports.http_port)
        yield tenant, thread, http
        http.close()


def fill(http: Http, count: int = 40) -> dict[str, str]:
    """Key -> shard of new memories."""
    return {str(n): http("PUT", "/v1/items", {"content": f"heron {n}"}, key=str(n)).json["shard"] for n in range(count)}


def until_status(status: int, ask: Callable[[], Answer]) -> Answer:
    """The first answer with this status: a breaker that is open tries its node again after a while."""
    deadline = time.monotonic() + WAIT_S
    while (answer := ask()).status != status:
        assert time.monotonic() < deadline, answer
        time.sleep(0.05)
    return answer


def open_breakers(admin: Http) -> set[str]:
    """The operations whose breaker of the second shard's node is not closed."""
    line = re.compile(r'engram_breaker_state\{node="s1-0",operation="(\w+)",shard="s1"\} [12]\.0')
    return set(line.findall(admin("GET", "/metrics").body.decode()))


def test_a_lost_shard_fails_by_name_and_the_other_answers(stage: tuple[Tenant, SidecarThread, Http]) -> None:
    tenant, thread, http = stage
    made = fill(http)
    tenant.servers[1].stop("immediate")
    try:
        for key, shard in made.items():
            read = http("GET", "/v1/items", key=key)
            written = http("PUT", "/v1/items", {"content": f"heron {key}"}, key=key)
            if shard == "s0":
                assert (read.status, written.status) == (200, 200)
                continue
            for answer in (read, written):
                assert answer.status == 503
                assert answer.json["shard"] == "s1"
                assert int(answer.headers["retry-after"]) >= 1
        for page in (http("GET", "/v1/memories"), http("POST", "/v1/search", {"query": "heron", "limit": 100})):
            assert page.status == 200
            assert page.json["complete"] is False
            assert [failure["shard"] for failure in page.json["failed_shards"]] == ["s1"]
            found = page.json.get("memories") or page.json["results"]
            assert {memory["key"] for memory in found} == {key for key, shard in made.items() if shard == "s0"}
        operations = [{"op": "put", "key": key, "memory": {"content": "y"}} for key in made]
        results = http("POST", "/v1/batch", {"operations": operations}).json["results"]
        assert [result["status"] for result in results] == [200 if shard == "s0" else 503 for shard in made.values()]
        counted = http("GET", "/v1/shards", count="true").json["shards"]
        assert [shard["error"] is None for shard in counted] == [True, False]
        metrics = Http(thread.ports.admin_port)
        assert b'engram_incomplete_answers_total{operation="search"} 1.0' in metrics("GET", "/metrics").body
        assert metrics("GET", "/readyz").status == 200
        assert open_breakers(metrics) == {"store", "retrieve", "search"}
        metrics.close()
    finally:
        tenant.servers[1].start()
    for key in made:
        until_status(200, partial(http, "GET", "/v1/items", key=key))


# The look at the sizes, a second or two after the start, fails as well: the breaker is not to open before the search.
@pytest.mark.parametrize("stage", [{"searchFailures": 100}], indirect=True, ids=[""])
def test_without_any_shard_a_search_is_503_and_never_empty(stage: tuple[Tenant, SidecarThread, Http]) -> None:
    tenant, _, http = stage
    fill(http, 5)
    for server in tenant.servers:
        server.stop("immediate")
    try:
        for answer in (http("GET", "/v1/memories"), http("POST", "/v1/search", {"query": "heron"})):
            assert answer.status == 503
            assert answer.json["type"].endswith("/shard-unavailable")
    finally:
        for server in tenant.servers:
            server.start()
    deadline = time.monotonic() + WAIT_S
    while not (whole := until_status(200, partial(http, "GET", "/v1/memories")).json)["complete"]:
        assert time.monotonic() < deadline, whole
        time.sleep(0.05)
    assert len(whole["memories"]) == 5


def test_a_shard_that_hangs_is_504_within_the_time_limit(stage: tuple[Tenant, SidecarThread, Http]) -> None:
    """A lock that is not given back stands for a node that is slow: the caller waits its time and no longer."""
    tenant, _, http = stage
    key = next(key for key, shard in fill(http).items() if shard == "s0")
    released = threading.Event()
    locked = threading.Event()

    async def hold() -> None:
        async with tenant.servers[0].session(tenant.database) as connection, connection.transaction():
            await connection.execute("LOCK TABLE engram.memories IN ACCESS EXCLUSIVE MODE")
            locked.set()
            await asyncio.to_thread(released.wait)

    holder = threading.Thread(target=asyncio.run, args=(hold(),))
    holder.start()
    locked.wait()
    try:
        read = http("GET", "/v1/items", key=key)
        assert (read.status, read.json["shard"]) == (504, "s0")
        written = http("PUT", "/v1/items", {}, key=key)
        assert (written.status, written.json["type"].rsplit("/", 1)[1]) == (503, "outcome-unknown")
    finally:
        released.set()
        holder.join()
    assert http("GET", "/v1/items", key=key).status == 200


def new_states(tenant: Tenant, http: Http, **states: ShardState) -> None:
    """The map with other states is published the way the operator does it, and taken up by the sidecar."""
    current = read_config(tenant.config_dir).shard_map
    shards = tuple(replace(shard, state=states.get(shard.id, shard.state)) for shard in current.shards)
    changed = restated(current, shards)
    write_config(tenant.config_dir, changed, read_config(tenant.config_dir).policy)
    deadline = time.monotonic() + WAIT_S
    while http("GET", "/v1/shards").json["epoch"] < changed.epoch:
        assert time.monotonic() < deadline, "the new map was not taken up"


def test_a_readonly_shard_is_read_and_searched_and_new_memories_go_elsewhere(
    stage: tuple[Tenant, SidecarThread, Http],
) -> None:
    tenant, _, http = stage
    made = fill(http)
    homes = {
        f"u{n}": http("POST", "/v1/memories", {"user": f"u{n}", "content": "old"}).json["shard"] for n in range(20)
    }
    new_states(tenant, http, s1=ShardState.READONLY)
    for key, shard in made.items():
        assert http("GET", "/v1/items", key=key).status == 200
        for method in ("PUT", "PATCH"):
            assert http(method, "/v1/items", {"content": "x"}, key=key).status == (200 if shard == "s0" else 409)
    for user in homes:
        assert http("POST", "/v1/memories", {"user": user, "content": "new"}).json["shard"] == "s0"
        found = http("POST", "/v1/search", {"query": "old new", "user": user}).json["results"]
        assert {memory["content"] for memory in found} == {"old", "new"}
    new_states(tenant, http, s1=ShardState.ACTIVE)
    for user, home in homes.items():
        assert http("POST", "/v1/memories", {"user": user, "content": "newer"}).json["shard"] == home
        listed = http("GET", "/v1/memories", user=user).json["memories"]
        assert [memory["content"] for memory in listed] == ["newer", "new", "old"]


def test_no_active_shard_is_said(stage: tuple[Tenant, SidecarThread, Http]) -> None:
    tenant, _, http = stage
    new_states(tenant, http, s0=ShardState.READONLY, s1=ShardState.READONLY)
    answer = http("POST", "/v1/memories", {"content": "x"})
    assert answer.status == 503
    assert "no shard is Active" in answer.json["detail"]


def test_a_shard_in_maintenance_is_named_as_such(stage: tuple[Tenant, SidecarThread, Http]) -> None:
    tenant, _, http = stage
    made = fill(http)
    new_states(tenant, http, s0=ShardState.MAINTENANCE)
    key = next(key for key, shard in made.items() if shard == "s0")
    assert "maintenance" in http("GET", "/v1/items", key=key).json["detail"]
    page = http("GET", "/v1/memories").json
    assert page["failed_shards"] == [{"shard": "s0", "reason": "maintenance"}]


def test_an_older_or_broken_map_file_changes_nothing(stage: tuple[Tenant, SidecarThread, Http]) -> None:
    tenant, _, http = stage
    first = (tenant.config_dir / "map.json").read_text()
    new_states(tenant, http, s1=ShardState.READONLY)
    for text in (first, "{", "", '{"epoch": 99}'):
        (tenant.config_dir / "map.json").write_text(text)
        deadline = time.monotonic() + 2.5  # two looks at the file
        while time.monotonic() < deadline:
            assert http("GET", "/v1/shards").json["epoch"] == 2


def test_running_requests_end_before_the_sidecar_does(stage: tuple[Tenant, SidecarThread, Http]) -> None:
    """A drain under load: every request that was accepted is answered, and what was acknowledged is there."""
    tenant, _, http = stage
    settings = Settings(tenant.config_dir, http_port=0, admin_port=0)
    acknowledged: list[str] = []
    failures: list[str] = []
    stopped = threading.Event()

    def write(worker: int, port: int) -> None:
        client = Http(port)
        number = 0
        while not stopped.is_set():
            key = f"{worker}-{number}"
            try:
                answer = client("PUT", "/v1/items", {"content": "x"}, key=key)
            except ConnectionError:
                return  # the drain closed the connection between two requests
            if answer.status not in {200, 201}:
                failures.append(str(answer))
                return
            acknowledged.append(key)
            number += 1

    with SidecarThread(settings).running() as second:
        workers = [threading.Thread(target=write, args=(n, second.ports.http_port)) for n in range(4)]
        for worker in workers:
            worker.start()
        while len(acknowledged) < 200:
            time.sleep(0.01)
    stopped.set()
    for worker in workers:
        worker.join()
    assert failures == []
    assert {http("GET", "/v1/items", key=key).status for key in acknowledged} == {200}


# Starting


async def test_a_taken_port_is_said(tenant: Tenant) -> None:
    settings = Settings(tenant.config_dir, http_port=0, admin_port=0)
    async with serving(settings) as first:
        with pytest.raises(PortTaken, match=str(first.http_port)):
            async with serving(replace(settings, http_port=first.http_port)):
                pass


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("map.json", None, "map.json: No such file"),
        ("map.json", "{", "map.json"),
        ("policy.json", "[]", "policy.json"),
        ("credentials.json", "{}", "credentials.json"),
        ("credentials.json", '{"format": 1, "role": "t_x", "passwords": []}', "passwords"),
        ("credentials.json", '{"format": 1, "role": "t_x", "passwords": ["p"]}', "is not the map's tenant"),
        ("credentials.json", '{"format": 1, "role": "t_x", "passwords": ["p"], "ca": "x"}', "no certificates in PEM"),
        ("credentials.json", "\udcff", "not UTF-8"),
    ],
)
def test_a_bad_configuration_is_named_by_its_file(
    tenant: Tenant, tmp_path: Path, file: str, text: str | None, reason: str
) -> None:
    for name in ("map.json", "policy.json", "credentials.json"):
        (tmp_path / name).write_bytes((tenant.config_dir / name).read_bytes())
    if text is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(BadConfig, match=reason):
        read_config(tmp_path)


def test_both_passwords_of_a_rotation_open_the_store(tenant: Tenant, tmp_path: Path) -> None:
    config = read_config(tenant.config_dir)
    for passwords in (("wrong", *config.credentials.passwords), (*config.credentials.passwords, "wrong")):
        write_config(tmp_path, config.shard_map, config.policy)
        credentials = replace(config.credentials, passwords=passwords)
        (tmp_path / "credentials.json").write_text(credentials.to_json())
        with SidecarThread(Settings(tmp_path, http_port=0, admin_port=0)).running() as thread:
            http = Http(thread.ports.http_port)
            assert http("GET", "/v1/memories").status == 200
            http.close()
