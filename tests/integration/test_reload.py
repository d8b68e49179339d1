"""A configuration that changes under requests: in force within five seconds, and no request fails for it."""

import asyncio
import base64
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from engram_contract.credentials import Credentials, DataKey, Keyring
from engram_contract.policy import Policy
from engram_contract.shardmap import ShardMap
from engram_operator.clients import postgres
from engram_operator.clients.x509 import make_ca
from engram_sidecar import routing
from engram_sidecar.config import read_config
from engram_sidecar.errors import ShardUnavailable
from engram_sidecar.settings import Settings
from engram_sidecar.store import CONNECTIONS_PER_NODE, Store
from tests.harness import KEYRING, PASSWORD, Answer, Http, RealServer, SidecarThread, Tenant, create_tenant

IN_FORCE_S = 5.0
PATIENCE_S = 30.0
OTHER_PASSWORD = "of-the-second-half"  # noqa: S105  servers that live for one run on loopback


@dataclass
class Load:
    """Requests without a pause from some threads, and what went wrong."""

    port: int
    answered: int = 0
    failures: list[str] = field(default_factory=list)
    headers: set[str] = field(default_factory=set)

    @contextlib.contextmanager
    def running(self, threads: int = 4) -> Iterator["Load"]:
        """Asks for a block; a connection that breaks is a failure too."""
        stopped = threading.Event()
        workers = [threading.Thread(target=self._ask, args=(number, stopped)) for number in range(threads)]
        for worker in workers:
            worker.start()
        try:
            yield self
        finally:
            stopped.set()
            for worker in workers:
                worker.join(PATIENCE_S)

    def _ask(self, number: int, stopped: threading.Event) -> None:
        http = Http(self.port)
        turn = 0
        while not stopped.is_set():
            turn += 1
            key = f"{number}-{turn % 10}"
            try:
                self._note(http("PUT", "/v1/items", {"content": "x"}, key=key))
                self._note(http("GET", "/v1/items", key=key))
                self._note(http("GET", "/v1/memories", limit=5))
            except OSError as error:
                self.failures.append(repr(error))
        http.close()

    def _note(self, answer: Answer) -> None:
        self.answered += 1
        self.headers.add(answer.headers.get("engram-config", ""))
        is_whole = answer.status in {200, 201} and b'"complete":false' not in answer.body
        if not is_whole:
            self.failures.append(f"{answer.status} {answer.body[:200]!r}")

    def proceed(self, count: int) -> None:
        """Waits until so many more were answered."""
        wanted, deadline = self.answered + count, time.monotonic() + PATIENCE_S
        while self.answered < wanted:
            assert time.monotonic() < deadline, "the requests stand still"
            time.sleep(0.01)


KEY = base64.b64encode(bytes(32)).decode()


@dataclass(frozen=True)
class Stage:
    """A tenant of its own with its sidecar."""

    tenant: Tenant
    sidecar: SidecarThread
    http: Http

    @property
    def folder(self) -> Path:
        return self.tenant.config_dir

    def write(self, part: ShardMap | Policy | Credentials | Keyring) -> None:
        """The part's file, replaced whole."""
        files = {ShardMap: "map.json", Policy: "policy.json", Credentials: "credentials.json", Keyring: "keys.json"}
        file = files[type(part)]
        (self.folder / "later").write_text(part.to_json())
        (self.folder / "later").replace(self.folder / file)

    def header(self) -> str:
        return self.http("GET", "/v1/shards").headers["engram-config"]

    def until(self, is_so: Callable[[], bool], within_s: float = IN_FORCE_S) -> None:
        deadline = time.monotonic() + within_s
        while not is_so():
            assert time.monotonic() < deadline, f"not in force within {within_s} s: {self.header()}"
            time.sleep(0.02)

    def metric(self, name: str) -> float:
        admin = Http(self.sidecar.ports.admin_port)
        lines = admin("GET", "/metrics").body.decode().splitlines()
        admin.close()
        [value] = [line.rpartition(" ")[2] for line in lines if line.startswith(f"{name} ")]
        return float(value)


@pytest.fixture
def stage(servers: tuple[RealServer, RealServer], tmp_path: Path) -> Iterator[Stage]:
    tenant = asyncio.run(create_tenant("r" + str(abs(hash(str(tmp_path)))), servers, tmp_path / "config"))
    with SidecarThread(Settings(tenant.config_dir, http_port=0, admin_port=0)).running() as thread:
        http = Http(thread.ports.http_port)
        yield Stage(tenant, thread, http)
        http.close()


def set_password(tenant: Tenant, password: str) -> None:
    for server in tenant.servers:
        asyncio.run(postgres.apply_tenant(server.admin, tenant.database, tenant.role, password))


def test_no_request_fails_while_every_file_changes(stage: Stage) -> None:
    config = read_config(stage.folder)
    policy, shard_map, credentials = config.policy, config.shard_map, config.credentials
    with Load(stage.sidecar.ports.http_port).running() as load:
        for number in range(1, 6):
            stage.write(replace(policy, generation=number, retention_s=1_000_000 + number))
            stage.write(replace(credentials, generation=number, passwords=(PASSWORD, f"next-{number}")))
            newer = replace(shard_map, epoch=shard_map.epoch + number)
            for shard, server in enumerate(stage.tenant.servers):
                asyncio.run(postgres.publish_map(server.admin, f"s{shard}", newer))
            stage.write(newer)
            keys = (*KEYRING.keys, *(DataKey(each, KEY) for each in range(2, number + 1)))
            stage.write(replace(KEYRING, current=number, keys=keys))
            expected = f"map={newer.epoch}, policy={number}, credentials={number}, keys={number}"
            stage.until(lambda expected=expected: stage.header() == expected)  # type: ignore[misc]
            load.proceed(100)
    assert load.failures == []
    assert load.answered > 500
    assert {f"map={1 + n}, policy={n}, credentials={n}, keys={n}" for n in range(1, 6)} <= load.headers
    for file, number in {"map": 6, "policy": 5, "credentials": 5, "keys": 5}.items():
        assert stage.metric(f'engram_config_generation{{file="{file}"}}') == number


def test_a_changed_policy_counts_for_the_next_write(stage: Stage) -> None:
    policy = read_config(stage.folder).policy
    stage.write(replace(policy, generation=1, retention_s=60))
    stage.until(lambda: "policy=1" in stage.header())
    memory = stage.http("POST", "/v1/memories", {"content": "x"}).json
    assert memory["expires"] is not None
    stage.write(replace(policy, generation=2, retention_s=0))
    stage.until(lambda: "policy=2" in stage.header())
    assert stage.http("POST", "/v1/memories", {"content": "x"}).json["expires"] is None


def test_a_wrong_file_changes_nothing_and_shows_in_the_metrics(stage: Stage) -> None:
    before = stage.header()
    for file in ("map", "policy", "credentials"):
        path = stage.folder / f"{file}.json"
        good = path.read_text()
        gauge = f'engram_config_errors{{file="{file}"}}'
        assert stage.metric(gauge) == 0
        for text in ("{", '{"format": 1}', ""):
            path.write_text(text)
            stage.until(lambda gauge=gauge: stage.metric(gauge) == 1)  # type: ignore[misc]
            assert stage.header() == before
            assert stage.http("GET", "/v1/memories").status == 200
        path.write_text(good)
        stage.until(lambda gauge=gauge: stage.metric(gauge) == 0)  # type: ignore[misc]
    (stage.folder / "keys.json").write_text("{}")
    stage.until(lambda: stage.metric('engram_config_errors{file="keys"}') == 1)
    assert stage.header() == before


def test_passwords_rotate_under_requests(stage: Stage) -> None:
    """First the files hold both, then the server takes the new one, then the files hold it alone."""
    credentials = read_config(stage.folder).credentials
    with Load(stage.sidecar.ports.http_port).running() as load:
        load.proceed(50)
        stage.write(replace(credentials, generation=1, passwords=(PASSWORD, OTHER_PASSWORD)))
        stage.until(lambda: "credentials=1" in stage.header())
        answers_anew(stage)
        load.proceed(50)
        set_password(stage.tenant, OTHER_PASSWORD)
        answers_anew(stage)
        load.proceed(50)  # by the connections that are open
        stage.write(replace(credentials, generation=2, passwords=(OTHER_PASSWORD,)))
        stage.until(lambda: "credentials=2" in stage.header())
        answers_anew(stage)
        load.proceed(50)
    assert load.failures == []


def answers_anew(stage: Stage) -> None:
    """A sidecar that starts now, so with new connections, answers every request."""
    with SidecarThread(Settings(stage.folder, http_port=0, admin_port=0)).running() as thread:
        http = Http(thread.ports.http_port)
        for number in range(5):
            page = http("GET", "/v1/memories")
            assert (page.status, page.json["complete"]) == (200, True), number
        http.close()


def test_connections_that_are_open_outlive_the_password(stage: Stage) -> None:
    every = CONNECTIONS_PER_NODE * len(stage.tenant.servers)  # the audit's writer, too, finds one that is open
    with Load(stage.sidecar.ports.http_port).running() as load:
        stage.until(lambda: stage.metric("active_memory_connections") == every, PATIENCE_S)
        set_password(stage.tenant, OTHER_PASSWORD)
        load.proceed(100)
    assert load.failures == []


def test_two_refused_passwords_are_an_unavailable_shard_until_the_right_one_comes(stage: Stage) -> None:
    credentials = read_config(stage.folder).credentials
    set_password(stage.tenant, OTHER_PASSWORD)
    stage.write(replace(credentials, generation=1, passwords=(PASSWORD, "neither")))
    stage.until(lambda: "credentials=1" in stage.header())
    asyncio.run(end_sessions(stage.tenant))  # the sweep of old keys may have opened some
    stage.until(lambda: "password was refused" in stage.http("GET", "/v1/memories").json.get("detail", ""))
    refused = stage.http("GET", "/v1/memories")
    assert (refused.status, refused.json["detail"].partition(": ")[2]) == (503, "the tenant's password was refused")
    assert PASSWORD.encode() not in refused.body
    stage.write(replace(credentials, generation=2, passwords=("neither", OTHER_PASSWORD)))
    stage.until(lambda: stage.http("GET", "/v1/memories").status == 200)


def test_a_secret_that_was_made_anew_is_taken_when_the_old_password_is_refused(stage: Stage) -> None:
    credentials = read_config(stage.folder).credentials
    stage.write(replace(credentials, generation=7))
    stage.until(lambda: "credentials=7" in stage.header())
    stage.write(replace(credentials, generation=1, passwords=(OTHER_PASSWORD,)))
    stage.until(lambda: stage.metric('engram_config_errors{file="credentials"}') == 1)
    assert stage.http("GET", "/v1/memories").status == 200
    set_password(stage.tenant, OTHER_PASSWORD)
    asyncio.run(end_sessions(stage.tenant))
    stage.until(lambda: stage.http("GET", "/v1/memories").json.get("complete") is True)
    assert "credentials=1" in stage.header()


async def end_sessions(tenant: Tenant) -> None:
    """The tenant's sessions end, so that new ones have to be opened."""
    query = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = $1"
    for server in tenant.servers:
        async with server.session("postgres") as connection:
            await connection.fetchval(query, tenant.role)


def test_every_answer_names_the_configuration(stage: Stage) -> None:
    key = "named"
    tag = stage.http("PUT", "/v1/items", {}, key=key).headers["etag"]
    answers = [
        stage.http("GET", "/v1/items", key=key),
        stage.http("GET", "/v1/items", headers={"If-None-Match": tag}, key=key),
        stage.http("HEAD", "/v1/items", key=key),
        stage.http("DELETE", "/v1/items", key=key),
        stage.http("GET", "/v1/items", key=key),
        stage.http("POST", "/v1/search", {"limit": 0}),
        stage.http("POST", "/v1/memories", raw=b"{"),
        stage.http("PATCH", "/v1/shards", {}),
        stage.http("GET", "/nowhere"),
        stage.http("GET", "/openapi.json"),
        stage.http("GET", "/v1/shards", headers={"Host": "elsewhere"}),
    ]
    assert [answer.status for answer in answers] == [200, 304, 200, 204, 404, 422, 400, 405, 404, 200, 421]
    assert {answer.headers.get("engram-config") for answer in answers} == {"map=1, policy=0, credentials=0, keys=1"}


async def test_a_pool_that_is_given_up_serves_whoever_uses_or_awaits_it(
    servers: tuple[RealServer, RealServer], tmp_path: Path
) -> None:
    """More readers than connections, all held up by a lock, when another CA makes new pools."""
    tenant = await create_tenant("r" + str(abs(hash(str(tmp_path)))), servers[:1], tmp_path)
    config = read_config(tmp_path)
    place = routing.home(config.shard_map)
    store = Store(config.credentials)
    server, database = servers[0], tenant.database
    async with server.session(database) as holder, server.session(database) as watcher:
        async with holder.transaction():
            await holder.execute("LOCK TABLE engram.memories IN ACCESS EXCLUSIVE MODE")
            readers = [asyncio.create_task(store.read(place, "count_memories", timeout_s=PATIENCE_S)) for _ in range(6)]
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND wait_event_type = 'Lock'"
            deadline = time.monotonic() + PATIENCE_S
            while await watcher.fetchval(waiting, tenant.role) < CONNECTIONS_PER_NODE:
                assert time.monotonic() < deadline
            store.adopt(replace(config.credentials, generation=1, ca=make_ca(time.time()).certificate.decode()))
            assert store.connection_count() == CONNECTIONS_PER_NODE
            with pytest.raises(ShardUnavailable):  # the wheel's server speaks no TLS
                await store.read(place, "count_memories", timeout_s=PATIENCE_S)
        assert [rows[0]["memories"] for rows in await asyncio.gather(*readers)] == [0] * 6
    await store.close()
    assert store.connection_count() == 0
