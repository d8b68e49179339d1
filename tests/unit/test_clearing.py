"""What is shown of the caches, and a clear where there is no Redis; with one: integration/test_overview.py."""

import os
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

from jsonschema import Draft202012Validator
from prometheus_client import CollectorRegistry

from engram_contract.policy import Limits
from engram_contract.slots import MemoryId
from engram_sidecar.cachemetrics import CacheMetrics
from engram_sidecar.caches import Caches
from engram_sidecar.cachestate import CacheState
from engram_sidecar.clearing import Cleared, Clearing, Shared, statistics_document
from engram_sidecar.config import InForce
from engram_sidecar.consistency import Floors
from engram_sidecar.openapi_schemas import schemas
from engram_sidecar.sealing import Vault
from tests.harness import no_shard
from tests.unit.configs import a_config

START = datetime(2026, 11, 22, tzinfo=UTC)
STATE = CacheState(
    {
        ("local", "hit"): 60, ("local", "stale"): 3, ("local", "collapsed"): 7, ("local", "miss"): 30,
        ("shared", "hit"): 20, ("shared", "miss"): 10, ("shared", "failed"): 1, ("shared", "unreadable"): 2,
    },
    {"local": 25, "shared": 9}, 12, 4_096, 1_000, 1 << 20, {"room": 5, "time": 6}, {"notice": 1, "doubt": 2, "late": 3},
    is_shared=True, is_reached=True, is_sound=True,
)  # fmt: skip


def test_statistics_are_by_level_and_over_all() -> None:
    document = statistics_document(STATE, START)
    assert {name: document[name] for name in ("since", "reads", "hits", "misses", "hit_rate")} == {
        "since": "2026-11-22T00:00:00.000000Z",
        "reads": 100,
        "hits": 90,
        "misses": 10,
        "hit_rate": 0.9,
    }
    assert document["local"] == {
        "hits": 70, "stale": 3, "collapsed": 7, "misses": 30, "hit_rate": 0.7, "stores": 25, "entries": 12,
        "max_entries": 1_000, "size_bytes": 4_096, "capacity_bytes": 1 << 20, "evicted_for_room": 5,
        "evicted_by_time": 6,
    }  # fmt: skip
    assert document["shared"] == {
        "configured": True, "reached": True, "sound": True, "hits": 20, "misses": 10, "hit_rate": 0.6667, "stores": 9,
        "failed": 1, "unreadable": 2,
    }  # fmt: skip
    components = schemas(Limits())
    Draft202012Validator({"components": {"schemas": components}, **components["Cache"]}).validate(document)


def test_what_was_counted_before_is_taken_off_and_what_is_kept_is_not() -> None:
    document = statistics_document(STATE.since(STATE), START)
    local, shared = document["local"], document["shared"]
    assert isinstance(local, dict)
    assert isinstance(shared, dict)
    assert (document["reads"], document["hits"], document["misses"], document["hit_rate"]) == (0, 0, 0, 0.0)
    assert (local["stores"], local["hit_rate"], local["evicted_for_room"]) == (0, 0.0, 0)
    assert (local["entries"], local["size_bytes"], local["max_entries"]) == (12, 4_096, 1_000)
    assert (shared["stores"], shared["failed"], shared["configured"]) == (0, 0, True)


async def test_without_a_redis_a_clear_says_that_nothing_is_shared() -> None:
    config = a_config()
    in_force, now_s = InForce(config), [START.timestamp()]
    vault = Vault(lambda: config, os.urandom, lambda *_: None)
    caches = Caches.create(in_force, vault, Floors(), no_shard, lambda: None)
    caches.adopt(config)
    clearing = Clearing(caches, in_force, lambda: now_s[0])
    caches.recall.count.hits, caches.recall.count.misses = 3, 1
    assert clearing.statistics()["hit_rate"] == 0.75
    now_s[0] += 60
    assert await clearing.clear_one(MemoryId(5, UUID(int=7))) == Cleared(0, Shared.NONE)
    assert clearing.statistics()["reads"] == 4, "one entry leaves the statistics as they are"
    assert await clearing.clear() == Cleared(0, Shared.NONE)
    found = clearing.statistics()
    assert (found["since"], found["reads"], found["hits"]) == ("2026-11-22T00:01:00.000000Z", 0, 0)
    assert caches.state().reads["local", "hit"] == 3, "what Prometheus is told does not fall"


def test_the_metrics_follow_what_was_stored() -> None:
    registry, states = CollectorRegistry(), [STATE, replace(STATE, stores={"local": 26, "shared": 9})]
    metrics = CacheMetrics(registry)
    for state in states:
        metrics.follow(lambda state=state: state)  # type: ignore[misc]
        metrics.show()
    assert registry.get_sample_value("engram_cache_stores_total", {"level": "local"}) == 26
    assert registry.get_sample_value("engram_cache_stores_total", {"level": "shared"}) == 9
