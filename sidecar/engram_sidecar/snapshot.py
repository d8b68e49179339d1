"""The metrics of this sidecar as one JSON document, for who has no Prometheus at hand.

Promises
1. It counts nothing itself: numbers are those that Prometheus is told, read where they are counted.
2. It asks no shard: what is stored is what sizes.py saw last.
"""

import asyncio
from collections.abc import Mapping

from engram_sidecar.checkup import Parts
from engram_sidecar.clearing import Clearing
from engram_sidecar.health import Used, judge_breakers, judge_resources, shown_time
from engram_sidecar.metrics import Metrics
from engram_sidecar.pipeline import World
from engram_sidecar.recent import Pace, Spread
from engram_sidecar.sizes import Sizes, Stored


class Snapshots:
    """Takes them."""

    def __init__(self, metrics: Metrics, sizes: Sizes, clearing: Clearing, parts: Parts, world: World) -> None:
        self._metrics = metrics
        self._sizes = sizes
        self._clearing = clearing
        self._parts = parts
        self._world = world

    async def take(self) -> dict[str, object]:
        """What is so now."""
        used = await asyncio.to_thread(self._parts.used)
        now_s = self._world.now_s()
        counts = self._metrics.operations()
        breakers = judge_breakers(self._parts.breakers(), now_s, self._world.monotonic_s())
        return {
            "time": shown_time(now_s),
            "uptime_s": round(self._metrics.value("engram_uptime_seconds"), 3),
            "totals": _counted(*(sum(each.get(name, 0) for each in counts.values()) for name in ("success", "error"))),
            "operations": operations_document(counts, self._parts.recent.spreads()),
            "stored": None if self._sizes.last is None else stored_document(self._sizes.last),
            "cache": self._clearing.statistics(),
            "resources": self._resources(used),
            **breakers.details,
        }

    def _resources(self, used: Used) -> dict[str, object]:
        return {
            **judge_resources(used).details,
            "database_connections": int(self._metrics.value("active_memory_connections")),
        }


def operations_document(
    counts: Mapping[str, Mapping[str, int]], spreads: Mapping[str, tuple[Pace, Spread]]
) -> list[dict[str, object]]:
    """Each operation: how many there were since the start, and how the last ones went."""
    shown = []
    for operation, by_status in sorted(counts.items()):
        pace, spread = spreads[operation]
        last = {
            "calls": pace.calls,
            "mean_ms": round(pace.mean_ms, 3),
            "p50_ms": round(spread.p50_ms, 3),
            "p95_ms": round(spread.p95_ms, 3),
            "p99_ms": round(spread.p99_ms, 3),
            "error_percent": round(pace.error_percent, 2),
        }
        counted = _counted(by_status.get("success", 0), by_status.get("error", 0))
        shown.append({"operation": operation, **counted, "last": last})
    return shown


def _counted(succeeded: int, failed: int) -> dict[str, object]:
    calls = succeeded + failed
    return {"calls": calls, "errors": failed, "error_percent": round(100 * failed / calls, 2) if calls else 0.0}


def stored_document(stored: Stored) -> dict[str, object]:
    """What the tenant stores, as it was looked at last."""
    growth = stored.growth
    return {
        "time": shown_time(stored.at_s),
        "memories": sum(stored.memories.values()),
        "bytes": stored.size_bytes,
        "types": [{"type": name, "memories": count} for name, count in stored.memories.items()],
        "growth": None
        if growth is None
        else {
            "memories_per_hour": round(growth.memories, 2),
            "bytes_per_hour": round(growth.size_bytes, 2),
            "over_s": round(growth.over_s, 3),
        },
    }
