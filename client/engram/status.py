"""What a sidecar says of itself: its health, its caches, its metrics. Values only, frozen; times are aware, in UTC."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from engram.records import FailedShard


@dataclass(frozen=True, slots=True)
class Check:
    """One part's status, and what it was judged by; which members `details` has, docs/sidecar.md says."""

    status: str
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Health:
    """How well the sidecar and its shards do: "healthy", "degraded" or "unhealthy", as the worst check."""

    status: str
    time: datetime
    age_ms: int
    checks: Mapping[str, Check]

    @property
    def ok(self) -> bool:
        """True unless a part is unhealthy."""
        return self.status != "unhealthy"


@dataclass(frozen=True, slots=True)
class LocalCache:
    """The first level, in the sidecar. `stale` and `collapsed` are among the `hits`."""

    hits: int
    stale: int
    collapsed: int
    misses: int
    hit_rate: float
    stores: int
    entries: int
    max_entries: int
    size_bytes: int
    capacity_bytes: int
    evicted_for_room: int
    evicted_by_time: int


@dataclass(frozen=True, slots=True)
class SharedCache:
    """The second level, in Redis, if one is `configured`. `sound`: all that other sidecars write is heard."""

    configured: bool
    reached: bool
    sound: bool
    hits: int
    misses: int
    hit_rate: float
    stores: int
    failed: int
    unreadable: int


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """Reads by id `since` the sidecar's start or its last clear. For `hits` of them no shard was asked."""

    since: datetime
    reads: int
    hits: int
    misses: int
    hit_rate: float
    local: LocalCache
    shared: SharedCache


@dataclass(frozen=True, slots=True)
class Cleared:
    """What a clear did: answers that this sidecar keeps no longer, and what became of the shared part.

    `shared`: "told" (done), "waiting" (Redis did not answer, it is told when it does) or "none" (there is no Redis).
    """

    dropped: int
    shared: str


@dataclass(frozen=True, slots=True)
class Calls:
    """The last calls of one operation, a thousand at most."""

    calls: int
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    error_percent: float


@dataclass(frozen=True, slots=True)
class OperationMetrics:
    """One operation since the sidecar's start, and its `last` calls."""

    operation: str
    calls: int
    errors: int
    error_percent: float
    last: Calls


@dataclass(frozen=True, slots=True)
class Growth:
    """How fast what is stored grows: the mean over `over_s` seconds."""

    memories_per_hour: float
    bytes_per_hour: float
    over_s: float


@dataclass(frozen=True, slots=True)
class Stored:
    """What the tenant stores, as the sidecar counted it at `time`. `types`: type -> memories, "" the rare ones."""

    time: datetime
    memories: int
    bytes: int
    types: Mapping[str, int]
    growth: Growth | None


@dataclass(frozen=True, slots=True)
class Namespaces:
    """The fullest namespaces, with their memories. Not `exact` where shards did not tell of all that they have."""

    largest: Mapping[tuple[str, ...], int]
    exact: bool
    complete: bool
    failed_shards: tuple[FailedShard, ...]


@dataclass(frozen=True, slots=True)
class Metrics:
    """The sidecar's metrics. `stored` is None in its first seconds, `namespaces` unless they were asked for."""

    time: datetime
    uptime_s: float
    calls: int
    errors: int
    error_percent: float
    operations: tuple[OperationMetrics, ...]
    stored: Stored | None
    namespaces: Namespaces | None
    cache: CacheStatistics
    resources: Mapping[str, float | None]
    breakers: tuple[Mapping[str, Any], ...]
