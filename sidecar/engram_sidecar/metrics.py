"""Every metric of the data plane, declared once.

Labels are operations, templates of paths, nodes and outcomes: never a key, a path, a user, or the tenant, of which a
sidecar has one. So the number of series is bounded, however many tenants and whatever callers send.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from engram_sidecar.breaker import State
from engram_sidecar.cachemetrics import CacheMetrics
from engram_sidecar.cachestate import CacheState
from engram_sidecar.consistency import Level
from engram_sidecar.gate import Kind, Shown
from engram_sidecar.recent import Recent

CONTENT_TYPE = CONTENT_TYPE_LATEST
SEAL_REASONS = ("authentication", "truncated", "scheme", "key")
_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


NAMED_TYPES: Final = 16  # a type is any text of an app's: more of them make no more series
_STATES: Final = {State.CLOSED: 0, State.HALF_OPEN: 1, State.OPEN: 2}


Series = tuple[str, tuple[str, str], int, bool]  # operation, route, hundreds of the status, success


def named_types(memories: Mapping[str, int]) -> dict[str, int]:
    """Type -> memories of the most common NAMED_TYPES, those with the most first; the others are "" together."""
    common = sorted(memories, key=lambda kind: (-memories[kind], kind))
    rest = sum(memories[kind] for kind in common[NAMED_TYPES:])
    return {kind: memories[kind] for kind in common[:NAMED_TYPES]} | ({"": rest} if rest else {})


class Metrics:
    """The metrics of one sidecar, in a registry of its own: several may run in one process."""

    def __init__(self, connection_count: Callable[[], int], epoch: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self.recent = Recent()
        self._series: dict[Series, tuple[Counter, Histogram, Histogram]] = {}
        self._operations = Counter(
            "memory_operations", "Operations by outcome.", ("operation", "status"), registry=self.registry
        )
        self._duration = Histogram(
            "memory_operation_duration_seconds",
            "Time from the request's head to its answer.",
            ("operation",),
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self._uptime = Gauge("engram_uptime_seconds", "How long the sidecar runs.", registry=self.registry)
        self._requests = Histogram(
            "engram_http_request_seconds",
            "Time from the request's head to its answer, by the template of its path.",
            ("method", "route", "code"),
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self._size = Gauge("memory_store_size_bytes", "Bytes that the tenant stores.", registry=self.registry)
        self._memories = Gauge("engram_memories", "Memories that the tenant stores.", ("type",), registry=self.registry)
        connections = Gauge("active_memory_connections", "Open database connections.", registry=self.registry)
        connections.set_function(connection_count)
        map_epoch = Gauge("engram_shard_map_epoch", "Epoch of the shard map in force.", registry=self.registry)
        map_epoch.set_function(epoch)
        self._generations = Gauge(
            "engram_config_generation", "Which of each file is in force.", ("file",), registry=self.registry
        )
        self._faults = Gauge(
            "engram_config_errors", "1 for a file that is wrong, so an older one is in force.", ("file",),
            registry=self.registry,
        )  # fmt: skip
        self._unreported = Counter(
            "engram_reports_failed", "Reports of this sidecar that its shard did not take.", registry=self.registry
        )
        self._audit_lost = Counter(
            "engram_audit_lost", "Audit entries that were dropped, as too many waited.", registry=self.registry
        )
        self._audit_waiting = Gauge(
            "engram_audit_waiting", "Audit entries that are not written yet.", registry=self.registry
        )
        self._missing = Counter(
            "engram_incomplete_answers",
            "Lists and searches that lacked a shard.",
            ("operation",),
            registry=self.registry,
        )

        self._lag = Histogram(
            "engram_loop_lag_seconds",
            "By how much the event loop came late.",
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self._refused = Counter(
            "engram_connections_refused", "Connections beyond the most there may be.", registry=self.registry
        )

        self._retries = Counter(
            "engram_retries", "Questions to a node that were repeated.", ("operation",), registry=self.registry
        )
        self._breaker_states = Gauge(
            "engram_breaker_state",
            "0 closed, 1 half-open, 2 open.",
            ("shard", "node", "operation"),
            registry=self.registry,
        )
        self._breakers: Callable[[], Iterable[Shown]] = tuple
        self._connections = Gauge(
            "engram_connections", "Database connections by node: idle or in use.", ("shard", "node", "state"),
            registry=self.registry,
        )  # fmt: skip
        self._pools: Callable[[], Mapping[tuple[str, str], tuple[int, int]]] = dict
        self._waiting_writes = Gauge(
            "engram_waiting_writes", "Writes that wait for a primary.", ("shard",), registry=self.registry
        )
        self._waiting: Callable[[], Mapping[str, int]] = dict
        self._loads: Callable[[], Mapping[str, int]] = dict
        self._waiting_requests = Gauge(
            "engram_waiting_requests",
            "Requests that wait for a node; without a node: reads by id, which any of the shard may answer.",
            ("shard", "node"),
            registry=self.registry,
        )
        self._queued: Callable[[], Mapping[tuple[str, str], int]] = dict
        self._shed = Counter(
            "engram_shed", "Questions to a node that found the queue full.", ("operation",), registry=self.registry
        )
        self._replayed = Counter(
            "engram_idempotent_replays", "Writes whose first outcome was told again.", registry=self.registry
        )
        self._reads = Counter(
            "engram_reads", "Questions, of up to 32 reads, that a replica might answer.", ("source", "consistency"),
            registry=self.registry,
        )  # fmt: skip
        self._hedged = Counter(
            "engram_hedged_reads",
            "Questions that were late and asked of a second node: won if that answered first.",
            ("outcome",),
            registry=self.registry,
        )
        for outcome in ("won", "lost"):
            self._hedged.labels(outcome)
        self._rate_limited = Counter(
            "engram_rate_limited", "Requests beyond the tenant's rate, which were refused.", registry=self.registry
        )
        self._is_alone = Gauge(
            "engram_rate_limit_alone",
            "1 while this sidecar counts its own requests only, as there is no Redis or it does not answer.",
            registry=self.registry,
        )
        self._replica_lags = Gauge(
            "engram_replica_lag_seconds",
            "At most so long ago was written what the replica lacks, of shards that are being read.",
            ("shard", "node"),
            registry=self.registry,
        )
        self._lags: Callable[[], Iterable[tuple[str, str, float]]] = tuple
        self._caches = CacheMetrics(self.registry)
        self._seal_refused = Counter(
            "engram_sealed_refused", "Encrypted memories that were not opened.", ("reason",), registry=self.registry
        )
        for reason in SEAL_REASONS:
            self._seal_refused.labels(reason)
        self._stale = Gauge(
            "engram_sealed_rows",
            "Memories on all shards that are not under the current key, by the key; 0 is none.",
            ("key_version",),
            registry=self.registry,
        )
        self._resealed = Counter("engram_resealed", "Memories that the sweep wrote anew.", registry=self.registry)

    def watch_nodes(
        self,
        breakers: Callable[[], Iterable[Shown]],
        waiting_writes: Callable[[], Mapping[str, int]],
        waiting_requests: Callable[[], Mapping[tuple[str, str], int]],
    ) -> None:
        """Asks at every scrape how the breakers are and what waits.

        A node that left the map leaves the metric too.
        """
        self._breakers, self._waiting, self._queued = breakers, waiting_writes, waiting_requests

    def watch_loads(self, waiting: Callable[[], Mapping[str, int]]) -> None:
        """Asks at every scrape how many reads by id wait to be asked of each shard."""
        self._loads = waiting

    def watch_pools(self, pools: Callable[[], Mapping[tuple[str, str], tuple[int, int]]]) -> None:
        """Asks at every scrape for (shard, node) -> how many connections are idle, and how many in use."""
        self._pools = pools

    def show_stored(self, memories: Mapping[str, int], size_bytes: int) -> None:
        """Tells what the tenant stores: type -> memories, as `named_types` gives them."""
        self._size.set(size_bytes)
        self._memories.clear()
        for kind, count in memories.items():
            self._memories.labels(kind).set(count)

    def watch_uptime(self, uptime_s: Callable[[], float]) -> None:
        """Asks at every scrape how long the sidecar runs."""
        self._uptime.set_function(uptime_s)

    def value(self, name: str) -> float:
        """What a metric without labels says now."""
        return self.registry.get_sample_value(name) or 0.0

    def operations(self) -> dict[str, dict[str, int]]:
        """Operation -> status -> how many there were since the start, as the counter says."""
        found: dict[str, dict[str, int]] = {}
        for metric in self._operations.collect():
            for sample in metric.samples:
                if sample.name.endswith("_total"):
                    found.setdefault(sample.labels["operation"], {})[sample.labels["status"]] = int(sample.value)
        return found

    def watch_replicas(self, lags: Callable[[], Iterable[tuple[str, str, float]]]) -> None:
        """Asks at every scrape how far behind the replicas are."""
        self._lags = lags

    def watch_caches(self, caches: Callable[[], CacheState]) -> None:
        """Asks at every scrape how the caches do."""
        self._caches.follow(caches)

    def count_read(self, is_by_replica: bool, level: Level) -> None:  # noqa: FBT001  as who asks tells it
        """Counts a read by who was asked for it."""
        self._reads.labels("replica" if is_by_replica else "primary", level.value).inc()

    def count_hedge(self, is_won: bool) -> None:  # noqa: FBT001  as who asks tells it
        """Counts a read that was asked of a second node."""
        self._hedged.labels("won" if is_won else "lost").inc()

    def count_rate_limited(self) -> None:
        """Counts a request that was refused for the tenant's rate."""
        self._rate_limited.inc()

    def watch_rate(self, is_alone: Callable[[], bool]) -> None:
        """Asks at every scrape whether this sidecar counts requests alone."""
        self._is_alone.set_function(lambda: float(is_alone()))

    def count_shed(self, kind: Kind) -> None:
        """Counts a question that was turned away."""
        self._shed.labels(kind.value).inc()

    def count_retry(self, kind: Kind) -> None:
        """Counts a question that was repeated."""
        self._retries.labels(kind.value).inc()

    def observe(
        self, operation: str, route: tuple[str, str], status: int, began_s: float, ended_s: float, *, is_success: bool
    ) -> None:
        """Counts one request. A caller's mistake is a success of ours. `route`: method, template of the path."""
        took_s, key = ended_s - began_s, (operation, route, status // 100, is_success)
        if key not in self._series:  # few: routes are templates
            self._series[key] = (
                self._operations.labels(operation, "success" if is_success else "error"),
                self._duration.labels(operation),
                self._requests.labels(*route, f"{status // 100}xx"),
            )
        operations, duration, requests = self._series[key]
        operations.inc()
        duration.observe(took_s)
        requests.observe(took_s)
        self.recent.add(operation, ended_s, took_s, is_success=is_success)

    def observe_lag(self, seconds: float) -> None:
        """Counts one look at the loop."""
        self._lag.observe(seconds)

    def count_refused(self) -> None:
        """Counts a connection that was sent away."""
        self._refused.inc()

    def count_incomplete(self, operation: str) -> None:
        """Counts an answer that named a failed shard."""
        self._missing.labels(operation).inc()

    def count_seal_refused(self, reason: str) -> None:
        """Counts an encrypted memory that was not opened."""
        self._seal_refused.labels(reason).inc()

    def count_resealed(self, memories: int) -> None:
        """Counts memories that the sweep wrote anew."""
        self._resealed.inc(memories)

    def show_stale(self, counts: Mapping[int, int]) -> None:
        """Tells how many memories are under which other key than the current one."""
        self._stale.clear()
        for key_version, memories in counts.items():
            self._stale.labels(str(key_version)).set(memories)

    def count_unreported(self) -> None:
        """Counts a report that the shard did not take."""
        self._unreported.inc()

    def show_config(self, generations: Mapping[str, int]) -> None:
        """Tells which map, policy, credentials and keys are in force."""
        for name, number in generations.items():
            self._generations.labels(name).set(number)

    def watch_faults(self, file: str, has_fault: Callable[[], bool]) -> None:
        """Asks at every scrape whether the file is wrong."""
        self._faults.labels(file).set_function(lambda: float(has_fault()))

    def watch_audit(self, waiting: Callable[[], int]) -> None:
        """Asks at every scrape how many audit entries wait."""
        self._audit_waiting.set_function(waiting)

    def count_replayed(self) -> None:
        """Counts a request that was a repetition."""
        self._replayed.inc()

    def count_audit_lost(self) -> None:
        """Counts an audit entry that was dropped."""
        self._audit_lost.inc()

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        self._breaker_states.clear()
        for each in self._breakers():
            self._breaker_states.labels(each.shard, each.node, each.kind.value).set(_STATES[each.view.state])
        self._connections.clear()
        for (shard, node), (idle, used) in self._pools().items():
            self._connections.labels(shard, node, "idle").set(idle)
            self._connections.labels(shard, node, "used").set(used)
        for shard, count in self._waiting().items():
            self._waiting_writes.labels(shard).set(count)
        self._replica_lags.clear()
        for shard, node, behind_s in self._lags():
            self._replica_lags.labels(shard, node).set(behind_s)
        self._caches.show()
        self._waiting_requests.clear()
        for (shard, node), count in self._queued().items():
            self._waiting_requests.labels(shard, node).set(count)
        for shard, count in self._loads().items():
            self._waiting_requests.labels(shard, "").set(count)
        return generate_latest(self.registry)
