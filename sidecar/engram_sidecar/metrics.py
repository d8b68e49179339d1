"""Every metric of the data plane, declared once. Labels are operations and outcomes, never a key, path or tenant."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """The metrics of one sidecar, in a registry of its own: several may run in one process."""

    def __init__(self, connection_count: Callable[[], int], epoch: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
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
        connections = Gauge("active_memory_connections", "Open database connections.", registry=self.registry)
        connections.set_function(connection_count)
        map_epoch = Gauge("engram_shard_map_epoch", "Epoch of the shard map in force.", registry=self.registry)
        map_epoch.set_function(epoch)
        self._missing = Counter(
            "engram_incomplete_answers",
            "Lists and searches that lacked a shard.",
            ("operation",),
            registry=self.registry,
        )

    def observe(self, operation: str, *, is_success: bool, seconds: float) -> None:
        """Counts one operation. What the caller did wrong is a success of ours."""
        self._operations.labels(operation, "success" if is_success else "error").inc()
        self._duration.labels(operation).observe(seconds)

    def count_incomplete(self, operation: str) -> None:
        """Counts an answer that named a failed shard."""
        self._missing.labels(operation).inc()

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)
