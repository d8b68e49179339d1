"""What the state of the parts comes to, as tables; and the last calls and the resources that it is judged by."""

from dataclasses import replace
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from engram_contract.policy import Limits
from engram_sidecar.breaker import State, View
from engram_sidecar.cachestate import CacheState
from engram_sidecar.gate import Kind, Shown
from engram_sidecar.health import (
    CHECKS,
    Check,
    Report,
    Status,
    Trial,
    Used,
    health_document,
    judge_breakers,
    judge_cache,
    judge_configuration,
    judge_database,
    judge_performance,
    judge_resources,
    worst,
)
from engram_sidecar.openapi_schemas import schemas
from engram_sidecar.recent import KEPT_CALLS, WINDOW_S, Pace, Recent
from engram_sidecar.resources import Meter
from tests.harness import KEYRING
from tests.unit.configs import a_config

HEALTHY, DEGRADED, UNHEALTHY = Status.HEALTHY, Status.DEGRADED, Status.UNHEALTHY


@pytest.mark.parametrize(
    ("found", "whole"),
    [
        ((), HEALTHY),
        ((HEALTHY, HEALTHY), HEALTHY),
        ((HEALTHY, DEGRADED, HEALTHY), DEGRADED),
        ((DEGRADED, UNHEALTHY, HEALTHY), UNHEALTHY),
    ],
)
def test_the_worst_part_is_the_whole(found: tuple[Status, ...], whole: Status) -> None:
    assert worst(found) is whole
    assert Report(0.0, {str(n): Check(status, {}) for n, status in enumerate(found)}).status is whole


def test_a_shard_that_fails_makes_the_database_unhealthy_and_is_named_with_its_reason() -> None:
    well = Trial("s0", "s0-0", "Active", HEALTHY, 3.21, {"store": 1.0})
    gone = Trial("s1", "s1-0", "Active", UNHEALTHY, 0.4, {}, "connection refused")
    check = judge_database((well, gone))
    assert check.status is UNHEALTHY
    assert [(each["shard"], each["reason"]) for each in _list(check, "shards")] == [
        ("s0", ""),
        ("s1", "connection refused"),
    ]


@pytest.mark.parametrize(
    ("view", "status", "shown"),
    [
        (View(State.CLOSED, 0, None), HEALTHY, []),
        (View(State.CLOSED, 2, 90.0), HEALTHY, [("closed", 2)]),
        (View(State.HALF_OPEN, 3, 90.0), UNHEALTHY, [("half-open", 3)]),
        (View(State.OPEN, 5, 90.0), UNHEALTHY, [("open", 5)]),
    ],
)
def test_a_breaker_that_is_not_closed_is_unhealthy_and_named(view: View, status: Status, shown: list[object]) -> None:
    check = judge_breakers([Shown("s0", "s0-0", Kind.STORE, view)], now_s=1_000.0, monotonic_s=100.0)
    breakers = _list(check, "breakers")
    assert (check.status, [(each["state"], each["failures"]) for each in breakers]) == (status, shown)
    assert all(each["last_failure"] == "1970-01-01T00:16:30.000000Z" for each in breakers), "ten seconds ago"


@pytest.mark.parametrize(
    ("pace", "status"),
    [
        (Pace(1_000, 1_000.0, 5.0), HEALTHY),
        (Pace(20, 1_000.1, 0.0), DEGRADED),
        (Pace(20, 1.0, 5.1), UNHEALTHY),
        (Pace(20, 5_000.0, 50.0), UNHEALTHY),
        (Pace(19, 5_000.0, 100.0), HEALTHY),
    ],
)
def test_slow_degrades_and_errors_are_unhealthy_if_there_are_calls_enough(pace: Pace, status: Status) -> None:
    check = judge_performance({"search": pace, "store": Pace(100, 1.0, 0.0)})
    assert check.status is status
    assert [(each["operation"], each["status"]) for each in _list(check, "operations")] == [
        ("search", status),
        ("store", HEALTHY),
    ]


@pytest.mark.parametrize(
    ("cpu", "memory", "status"),
    [
        (None, None, HEALTHY),
        (80.0, 85.0, HEALTHY),
        (80.1, 10.0, DEGRADED),
        (10.0, 85.1, DEGRADED),
        (95.0, 10.0, UNHEALTHY),
        (10.0, 95.0, UNHEALTHY),
    ],
)
def test_cpu_and_memory_are_judged_by_percents(cpu: float | None, memory: float | None, status: Status) -> None:
    assert judge_resources(Used(cpu, memory)).status is status


def test_the_configuration_degrades_by_a_wrong_file_and_fails_without_access_or_key() -> None:
    config = a_config()
    plain = replace(config, policy=replace(config.policy, encryption=False), keyring=None)
    sealed = replace(config, policy=replace(config.policy, encryption=True), keyring=KEYRING)
    assert judge_configuration(plain, {}, None).status is HEALTHY
    assert judge_configuration(plain, {"map.json": "is wrong"}, None).status is DEGRADED
    assert judge_configuration(plain, {}, "not allowed").status is UNHEALTHY
    assert judge_configuration(replace(sealed, keyring=None), {}, None).status is UNHEALTHY
    well = judge_configuration(sealed, {}, None)
    assert well.status is HEALTHY
    assert KEYRING.index not in str(well.details)
    assert KEYRING.keys[0].key not in str(well.details)


def test_a_report_is_as_described_and_says_how_old_it_is() -> None:
    report = Report(1_000.0, {name: Check(HEALTHY, {}) for name in CHECKS})
    document = health_document(report, 1_002.5)
    told = (document["status"], document["time"], document["age_ms"])
    assert told == (
        "healthy",
        "1970-01-01T00:16:40.000000Z",
        2_500,
    )
    Draft202012Validator({"components": {"schemas": schemas(Limits())}, **schemas(Limits())["Health"]}).validate(
        document
    )


def test_the_last_calls_are_bounded_and_old_ones_forgotten() -> None:
    recent = Recent()
    for number in range(KEPT_CALLS + 500):
        recent.add("store", float(number) / 1_000, 0.002 if number >= 500 else 9.0, is_success=number % 10 != 0)
    [pace] = recent.paces(2.0).values()
    assert [pace.calls, pace.mean_ms, pace.error_percent] == pytest.approx([KEPT_CALLS, 2.0, 10.0])
    assert recent.paces(2.0 + WINDOW_S) == {}


def test_resources_are_shares_of_the_containers_limits(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self/statm").write_text("9999 256 1 1 0 1 0\n")
    (tmp_path / "meminfo").write_text("MemTotal:       8192 kB\nMemFree: 1 kB\n")
    cpu_s, now_s = 10.0, 100.0
    meter = Meter(lambda: cpu_s, lambda: now_s, tmp_path, tmp_path)
    assert meter.read().cpu_percent is None, "no time has passed"
    cpu_s, now_s = 15.0, 110.0
    used = meter.read()
    assert used.cpu_percent == 50.0
    assert used.memory_percent is not None
    whole = used.memory_percent
    (tmp_path / "cpu.max").write_text("25000 100000\n")
    (tmp_path / "memory.max").write_text(f"{4096 * 1024}\n")
    cpu_s, now_s = 17.0, 120.0
    assert shares(meter) == pytest.approx([80.0, 2 * whole])
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    now_s = 130.0
    assert shares(meter) == pytest.approx([0.0, whole])


def test_where_the_system_does_not_tell_nothing_is_claimed(tmp_path: Path) -> None:
    assert Meter(lambda: 0.0, lambda: 0.0, tmp_path, tmp_path).read() == Used(None, None)


def shares(meter: Meter) -> list[float | None]:
    used = meter.read()
    return [used.cpu_percent, used.memory_percent]


def _list(check: Check, name: str) -> list[dict[str, object]]:
    found = check.details[name]
    assert isinstance(found, list)
    return found


def caches(hits: int, misses: int, **state: bool) -> CacheState:
    reads = {("local", outcome): 0 for outcome in ("stale", "collapsed")}
    reads |= {("local", "hit"): hits, ("local", "miss"): misses, ("shared", "hit"): 0}
    said = {"is_shared": False, "is_reached": True, "is_sound": False} | state
    return CacheState(reads, {}, 3, 4_000, 1_000, 1 << 20, {}, {}, **said)


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (caches(0, 0), Status.HEALTHY),  # nobody asked, and there is no Redis to reach
        (caches(499, 500), Status.HEALTHY),  # too few to judge by
        (caches(500, 500), Status.DEGRADED),
        (caches(501, 499), Status.HEALTHY),
        (caches(9, 1, is_shared=True, is_sound=True), Status.HEALTHY),
        (caches(9, 1, is_shared=True), Status.DEGRADED),
        (caches(9, 1, is_shared=True, is_sound=True, is_reached=False), Status.DEGRADED),
    ],
)
def test_a_cache_that_is_not_reached_or_seldom_hit_degrades(state: CacheState, status: Status) -> None:
    assert judge_cache(state).status is status
