"""What a sidecar says of itself, as the client reads it: whole, typed, and from a newer sidecar too."""

import json
from datetime import UTC, datetime
from http import HTTPStatus

import pytest

from engram import (
    CacheStatistics,
    Calls,
    Cleared,
    FailedShard,
    Growth,
    LocalCache,
    Namespaces,
    OperationMetrics,
    SharedCache,
    Stored,
    Unavailable,
    UnexpectedAnswer,
    protocol,
)
from engram.answers import Answer
from engram_contract.names import PROBLEM_BASE

NOON = "2026-11-22T12:00:00.000000Z"
AT_NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
LOCAL = {
    "hits": 1, "stale": 2, "collapsed": 3, "misses": 4, "hit_rate": 0.5, "stores": 5, "entries": 6, "max_entries": 7,
    "size_bytes": 8, "capacity_bytes": 9, "evicted_for_room": 10, "evicted_by_time": 11,
}  # fmt: skip
SHARED = {
    "configured": True, "reached": True, "sound": False, "hits": 1, "misses": 2, "hit_rate": 0.25, "stores": 3,
    "failed": 4, "unreadable": 5,
}  # fmt: skip
CACHE = {"since": NOON, "reads": 10, "hits": 5, "misses": 5, "hit_rate": 0.5, "local": LOCAL, "shared": SHARED}
STATISTICS = CacheStatistics(AT_NOON, 10, 5, 5, 0.5, LocalCache(**LOCAL), SharedCache(**SHARED))  # type: ignore[arg-type]
LAST = {"calls": 2, "mean_ms": 1.5, "p50_ms": 1.0, "p95_ms": 2.0, "p99_ms": 2.0, "error_percent": 0.0}
GROWTH = {"memories_per_hour": -1.5, "bytes_per_hour": 2.0, "over_s": 600.0}
METRICS = {
    "time": NOON,
    "uptime_s": 60.5,
    "totals": {"calls": 3, "errors": 1, "error_percent": 33.33},
    "operations": [{"operation": "store", "calls": 3, "errors": 1, "error_percent": 33.33, "last": LAST}],
    "stored": {
        "time": NOON, "memories": 7, "bytes": 70, "types": [{"type": "fact", "memories": 7}], "growth": GROWTH,
    },
    "namespaces": {
        "largest": [{"namespace": ["a", "b"], "memories": 7}], "exact": False, "complete": False,
        "failed_shards": [{"shard": "s1", "reason": "away"}],
    },
    "cache": CACHE,
    "resources": {"cpu_percent": None, "memory_percent": 3.5, "database_connections": 2},
    "breakers": [{"shard": "s0", "state": "open"}],
}  # fmt: skip
HEALTH = {
    "status": "unhealthy", "time": NOON, "age_ms": 12,
    "checks": {"database": {"status": "unhealthy", "shards": []}, "cache": {"status": "healthy"}},
}  # fmt: skip


def answer(status: int, body: object) -> Answer:
    return Answer(status, {}, json.dumps(body).encode())


@pytest.mark.parametrize("status", [HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE])
def test_an_unhealthy_sidecar_still_says_what_is_wrong(status: int) -> None:
    health = protocol.build_health().parse(answer(status, HEALTH))
    assert (health.status, health.ok, health.time, health.age_ms) == ("unhealthy", False, AT_NOON, 12)
    assert {name: (check.status, dict(check.details)) for name, check in health.checks.items()} == {
        "database": ("unhealthy", {"shards": []}),
        "cache": ("healthy", {}),
    }
    assert protocol.build_health().parse(answer(200, HEALTH | {"status": "degraded"})).ok


def test_a_503_that_is_no_health_is_an_error() -> None:
    busy = {"type": f"{PROBLEM_BASE}too-many-connections", "title": "Too many", "status": 503, "detail": "later"}
    with pytest.raises(Unavailable, match="later"):
        protocol.build_health().parse(answer(503, busy))
    with pytest.raises(Unavailable):
        protocol.build_health().parse(Answer(503, {}, b"<html>"))
    with pytest.raises(UnexpectedAnswer):
        protocol.build_health().parse(answer(503, {"checks": []}))


def test_the_statistics_of_the_caches_are_read_whole_and_newer_members_are_left_out() -> None:
    assert protocol.build_cache_statistics().parse(answer(200, CACHE)) == STATISTICS
    newer = CACHE | {"local": LOCAL | {"new": 1}, "new": 2}
    assert protocol.build_cache_statistics().parse(answer(200, newer)) == STATISTICS


def test_a_clear_says_whether_the_others_know() -> None:
    found = protocol.build_clear_cache().parse(answer(200, {"dropped": 3, "shared": "waiting"}))
    assert found == Cleared(3, "waiting")


def test_the_metrics_are_read_whole() -> None:
    metrics = protocol.build_metrics(1).parse(answer(200, METRICS))
    assert (metrics.time, metrics.uptime_s) == (AT_NOON, 60.5)
    assert (metrics.calls, metrics.errors, metrics.error_percent) == (3, 1, 33.33)
    assert metrics.operations == (OperationMetrics("store", 3, 1, 33.33, Calls(2, 1.5, 1.0, 2.0, 2.0, 0.0)),)
    assert metrics.stored == Stored(AT_NOON, 7, 70, {"fact": 7}, Growth(-1.5, 2.0, 600.0))
    assert metrics.namespaces == Namespaces({("a", "b"): 7}, False, False, (FailedShard("s1", "away"),))  # noqa: FBT003
    assert metrics.cache == STATISTICS
    assert metrics.resources["memory_percent"] == 3.5
    assert [each["state"] for each in metrics.breakers] == ["open"]


def test_what_a_young_sidecar_does_not_know_is_none() -> None:
    metrics = protocol.build_metrics().parse(answer(200, METRICS | {"stored": None, "namespaces": None}))
    assert metrics.stored is None
    assert metrics.namespaces is None
