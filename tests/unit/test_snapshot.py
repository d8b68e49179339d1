"""The snapshot of the metrics: as described, bounded, and the numbers that Prometheus is told."""

import os
from typing import Any

from jsonschema import Draft202012Validator

from engram_contract.policy import Limits
from engram_sidecar.breaker import State, View
from engram_sidecar.caches import Caches
from engram_sidecar.checkup import Parts
from engram_sidecar.clearing import Clearing
from engram_sidecar.config import InForce
from engram_sidecar.consistency import Floors
from engram_sidecar.errors import ShardUnavailable
from engram_sidecar.gate import Kind, Shown
from engram_sidecar.health import Used
from engram_sidecar.metrics import NAMED_TYPES, Metrics
from engram_sidecar.openapi_schemas import schemas
from engram_sidecar.pipeline import World
from engram_sidecar.records import ShardFailure
from engram_sidecar.reports import Encryption, Usage
from engram_sidecar.sealing import Vault
from engram_sidecar.sizes import Sizes
from engram_sidecar.snapshot import Snapshots
from tests.harness import no_shard
from tests.unit.configs import a_config

ROUTE = ("GET", "/v1/items")
BROKEN = View(State.OPEN, 3, 40.0)


class Told:
    """A ledger that says what it was told to."""

    def __init__(self) -> None:
        self.usage_of: list[Usage] = []
        self.failures: tuple[ShardFailure, ...] = ()
        self.failure: ShardUnavailable | None = None

    async def usage(self) -> tuple[list[Usage], Encryption, tuple[ShardFailure, ...]]:
        if self.failure is not None:
            raise self.failure
        return self.usage_of, Encryption(is_enabled=False, key_version=0, stale={}), self.failures


class Stage:
    """A sidecar's metrics, with a clock of their own."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.ledger = Told()
        config = a_config()
        self.metrics = Metrics(lambda: 4, lambda: 1)
        self.metrics.watch_uptime(lambda: self.now_s - 100.0)
        in_force = InForce(config)
        vault = Vault(lambda: config, os.urandom, lambda *_: None)
        caches = Caches.create(in_force, vault, Floors(), no_shard, lambda: None)
        caches.adopt(config)
        self.sizes = Sizes(self.ledger, self.metrics, lambda: self.now_s, lambda: self.now_s)  # type: ignore[arg-type]
        parts = Parts(
            lambda: [Shown("s0", "n0", Kind.STORE, BROKEN)],
            self.metrics.recent,
            lambda: Used(12.34, None),
            caches.state,
        )
        world = World(lambda: self.now_s, lambda: self.now_s, bytes)
        self.snapshots = Snapshots(
            self.metrics, self.sizes, Clearing(caches, in_force, lambda: self.now_s), parts, world
        )

    def ask(self, operation: str, took_s: float, *, is_success: bool = True) -> None:
        self.now_s += took_s
        status = 200 if is_success else 503
        self.metrics.observe(operation, ROUTE, status, self.now_s - took_s, self.now_s, is_success=is_success)

    async def stored(self, *usage: Usage) -> Any:  # noqa: ANN401  JSON
        self.ledger.usage_of = list(usage)
        await self.sizes.look()
        return (await self.snapshots.take())["stored"]

    def told(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


async def test_a_snapshot_is_as_described_before_and_after_anything_happened() -> None:
    stage, components = Stage(), schemas(Limits())
    validator = Draft202012Validator({"components": {"schemas": components}, **components["Metrics"]})
    validator.validate({**await stage.snapshots.take(), "namespaces": None})
    stage.ask("store", 0.1)
    await stage.stored(Usage("episodic", 3, 30))
    validator.validate({**await stage.snapshots.take(), "namespaces": None})


async def test_it_says_what_prometheus_is_told() -> None:
    stage = Stage()
    for number in range(100):
        stage.ask("retrieve", number / 1_000, is_success=number % 10 != 0)
    stage.ask("store", 0.02)
    document: Any = await stage.snapshots.take()
    retrieve, store = document["operations"]
    assert (retrieve["operation"], retrieve["calls"], retrieve["errors"]) == ("retrieve", 100, 10)
    assert retrieve["calls"] == stage.told("memory_operation_duration_seconds_count", operation="retrieve")
    assert retrieve["errors"] == stage.told("memory_operations_total", operation="retrieve", status="error")
    assert retrieve["last"] == {
        "calls": 100, "mean_ms": 49.5, "p50_ms": 49.0, "p95_ms": 94.0, "p99_ms": 98.0, "error_percent": 10.0,
    }  # fmt: skip
    assert (store["calls"], store["errors"], store["error_percent"]) == (1, 0, 0.0)
    assert document["totals"] == {"calls": 101, "errors": 10, "error_percent": 9.9}
    assert document["uptime_s"] == round(stage.now_s - 100.0, 3)
    assert document["resources"] == {"cpu_percent": 12.3, "memory_percent": None, "database_connections": 4}
    [breaker] = document["breakers"]
    assert (breaker["shard"], breaker["operation"], breaker["state"], breaker["failures"]) == ("s0", "store", "open", 3)


async def test_what_is_stored_is_what_was_seen_last_with_its_growth() -> None:
    stage = Stage()
    first = await stage.stored(Usage("episodic", 3, 30), Usage("fact", 1, 5), Usage("episodic", 2, 20))
    assert first["types"] == [{"type": "episodic", "memories": 5}, {"type": "fact", "memories": 1}]
    assert (first["memories"], first["bytes"], first["growth"]) == (6, 55, None)
    stage.now_s += 1_800
    second = await stage.stored(Usage("episodic", 16, 255))
    assert second["growth"] == {"memories_per_hour": 20.0, "bytes_per_hour": 400.0, "over_s": 1_800.0}
    assert stage.told("engram_memories", type="episodic") == 16
    assert stage.told("memory_store_size_bytes") == 255
    stage.ledger.failure = ShardUnavailable("s0", "away")
    assert await stage.stored() == second, "while a shard does not tell, what was known stays"
    stage.ledger.failure, stage.ledger.failures = None, (ShardFailure("s0", "away"),)
    assert await stage.stored(Usage("episodic", 1, 1)) == second


async def test_types_are_bounded_as_they_are_in_prometheus() -> None:
    stage = Stage()
    stored = await stage.stored(*(Usage(f"type-{number}", number, 1) for number in range(1, 101)))
    assert len(stored["types"]) == NAMED_TYPES + 1
    assert stored["types"][0] == {"type": "type-100", "memories": 100}
    assert stored["types"][-1]["type"] == ""
    assert stored["memories"] == sum(each["memories"] for each in stored["types"]) == 5_050
    assert stage.told("engram_memories", type="") == stored["types"][-1]["memories"]
