"""The tenant's rate over HTTP: what is refused and how, what is not counted, and a rate that changes under requests."""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, repeat
from pathlib import Path

import pytest

from engram import Engram, Unavailable
from engram_contract.names import POLICY_FILE
from engram_sidecar.config import read_config
from engram_sidecar.settings import Settings
from tests.harness import NUMBERS, Answer, Http, RealServer, SidecarThread, Tenant, create_tenant
from tests.redis_server import RedisServer, share

RATE = 3
BURST = 40
TIMEOUT_S = 60


@dataclass(frozen=True)
class Stage:
    """A tenant with a rate, and its sidecar."""

    tenant: Tenant
    sidecar: SidecarThread

    def ask(self, method: str, path: str, body: object = None) -> Answer:
        """The answer to one request, over a connection of its own."""
        with closing(Http(self.sidecar.ports.http_port)) as http:
            return http(method, path, body)

    def look(self, path: str) -> Answer:
        """The answer of the port of probes."""
        with closing(Http(self.sidecar.ports.admin_port)) as http:
            return http("GET", path)

    def burst(self, method: str = "GET", path: str = "/v1/memories", body: object = None) -> tuple[list[Answer], int]:
        """The answers to many requests at once, and how many seconds of the clock they touched."""
        with ThreadPoolExecutor(8) as threads:
            began = int(time.time())
            answers = list(threads.map(lambda _: self.ask(method, path, body), range(BURST)))
            return answers, int(time.time()) - began + 1

    def set_rate(self, rate: int) -> None:
        """Returns when it is in force."""
        policy = read_config(self.tenant.config_dir).policy
        changed = replace(
            policy, generation=policy.generation + 1, quota=replace(policy.quota, requests_per_second=rate)
        )
        (self.tenant.config_dir / "later").write_text(changed.to_json())
        (self.tenant.config_dir / "later").replace(self.tenant.config_dir / POLICY_FILE)
        deadline_s = time.monotonic() + TIMEOUT_S
        while f"policy={changed.generation}" not in self.ask("GET", "/v1/health").headers["engram-config"]:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)

    def counts_alone(self) -> bool:
        """Whether the sidecar does, when it is asked something."""
        self.ask("GET", "/v1/memories")
        return self.metric("engram_rate_limit_alone") == 1.0

    def metric(self, name: str) -> float:
        found = re.search(rf"^{name} (\S+)$", self.look("/metrics").body.decode(), re.MULTILINE)
        assert found is not None
        return float(found[1])


@pytest.fixture
def stage(servers: tuple[RealServer, RealServer], tmp_path: Path) -> Iterator[Stage]:
    spec = {"quota": {"requestsPerSecond": RATE}, "audit": {"enabled": True}}
    tenant = asyncio.run(create_tenant(f"rated{next(NUMBERS)}", servers, tmp_path, spec=spec))
    with SidecarThread(Settings(tenant.config_dir, http_port=0, admin_port=0)).running() as sidecar:
        yield Stage(tenant, sidecar)


def test_what_is_beyond_the_rate_is_refused_with_the_limit_and_counted(stage: Stage) -> None:
    answers, seconds = stage.burst()
    statuses = Counter(answer.status for answer in answers)
    assert statuses.keys() == {200, 429}
    assert RATE <= statuses[200] <= RATE * seconds
    refused = next(answer for answer in answers if answer.status == 429)
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.headers["retry-after"] == "1"
    document = refused.json
    assert document.pop("type").endswith("/rate-limited")
    assert document == {
        "title": "The tenant asks more than its quota of requests",
        "status": 429,
        "detail": f"the tenant's quota of {RATE} requests a second is used up",
        "quota": "requests_per_second",
        "limit": RATE,
    }
    assert stage.metric("engram_rate_limited_total") == statuses[429]
    assert stage.metric("engram_rate_limit_alone") == 1.0, "there is no Redis"


def test_a_refused_write_stored_nothing_and_is_in_no_audit(stage: Stage) -> None:
    answers, _ = stage.burst("POST", "/v1/memories", {"content": "heron"})
    stored = sum(answer.status == 201 for answer in answers)
    assert 0 < stored < BURST
    deadline_s = time.monotonic() + TIMEOUT_S
    while len(entries := stage.ask("GET", "/v1/audit?limit=1000").json["entries"]) < stored:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    assert Counter(each["status"] for each in entries if each["operation"] == "store") == {201: stored}
    stage.set_rate(0)
    assert len(stage.ask("GET", "/v1/memories").json["memories"]) == stored


def test_who_looks_what_is_wrong_is_never_refused_and_takes_nothing(stage: Stage) -> None:
    for path in ("/v1/health", "/openapi.json", "/v1/audit"):
        answers, _ = stage.burst("GET", path)
        assert {answer.status for answer in answers} == {200}
    assert {stage.look(path).status for path in ("/healthz", "/readyz", "/metrics") for _ in range(20)} == {200}
    assert stage.metric("engram_rate_limited_total") == 0


def test_a_batch_is_one_request(stage: Stage) -> None:
    puts = [{"op": "put", "key": f"k{number}", "memory": {"content": "x"}} for number in range(50)]
    answer = stage.ask("POST", "/v1/batch", {"operations": puts})
    assert (answer.status, len(answer.json["results"])) == (200, 50)


def test_a_rate_that_changes_counts_without_a_restart(stage: Stage) -> None:
    stage.set_rate(100_000)
    answers, _ = stage.burst()
    assert {answer.status for answer in answers} == {200}
    stage.set_rate(1)
    time.sleep(1 - time.time() % 1)  # what was left of the old rate ends with its second
    answers, seconds = stage.burst()
    statuses = Counter(answer.status for answer in answers)
    assert statuses[429] > 0
    assert 1 <= statuses[200] <= seconds
    stage.set_rate(0)
    answers, _ = stage.burst()
    assert {answer.status for answer in answers} == {200}


def test_sidecars_that_share_a_count_admit_the_rate_together(
    servers: tuple[RealServer, RealServer], tmp_path: Path, redis: RedisServer
) -> None:
    """In seconds in which Redis was late for none of them: who counts alone until its second ends says so."""
    rate, threads_each = 20, 4
    spec = {"quota": {"requestsPerSecond": rate}, "audit": {"enabled": False}}
    tenant = asyncio.run(create_tenant(f"rated{next(NUMBERS)}", servers, tmp_path / "config", spec=spec))
    asyncio.run(share(redis, tenant))
    settings = Settings(tenant.config_dir, http_port=0, admin_port=0)
    with SidecarThread(settings).running() as one, SidecarThread(settings).running() as other:
        stages = [Stage(tenant, one), Stage(tenant, other)]

        def statuses_until(stage: Stage, end_s: float) -> list[int]:
            statuses = [stage.ask("GET", "/v1/memories").status]
            while time.time() < end_s:
                statuses.append(stage.ask("GET", "/v1/memories").status)
            return statuses

        def a_shared_second() -> Counter[int] | None:
            """What was answered in one second of the clock; None if one counted alone in it, or it was too short."""
            time.sleep(1 - time.time() % 1)
            second = int(time.time())
            with ThreadPoolExecutor(len(stages) * threads_each) as threads:
                answered = list(threads.map(statuses_until, stages * threads_each, repeat(second + 0.7)))
            is_shared = not any(stage.metric("engram_rate_limit_alone") for stage in stages)
            statuses = Counter(chain.from_iterable(answered))
            return statuses if is_shared and int(time.time()) == second and statuses.total() > rate else None

        deadline_s, shared = time.monotonic() + TIMEOUT_S, 0
        while shared < 3:
            assert time.monotonic() < deadline_s, "there were not three seconds in which both shared the count"
            if (statuses := a_shared_second()) is not None:
                assert statuses == {200: rate, 429: statuses.total() - rate}
                shared += 1


def test_the_client_is_told_when_to_come_again(stage: Stage) -> None:
    def go_on(memories: Engram) -> None:
        while True:
            memories.usage()

    with Engram(f"http://127.0.0.1:{stage.sidecar.ports.http_port}") as memories:
        with pytest.raises(Unavailable) as raised:
            go_on(memories)
        assert (raised.value.status, raised.value.retry_after_s) == (429, 1)
