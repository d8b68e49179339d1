"""Every metric of the control plane, declared once.

Labels are verbs, codes and outcomes, and no names of objects: but that of a namespace whose pods no status can name.
"""

from collections import Counter as Counts
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
REVIEW_RESULTS: Final = ("injected", "unchanged", "warned", "bad", "error")
LOOKUP_SOURCES: Final = ("memory", "api")
LookupSource = Literal["memory", "api"]
ReviewResult = Literal["injected", "unchanged", "warned", "bad", "error"]
disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nothing reads
_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
# A run is some calls to the API server and to databases: from a few ms to the deadlines of several of them.
_RUN_BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class ApiMetrics:
    """What every process of the control plane counts: its calls to the API server. One registry per process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "engram_operator_api_requests",
            "Calls to the API server by verb and status code; timeout and unreachable are codes too.",
            ("verb", "code"),
            registry=self.registry,
        )

    def count_request(self, verb: str, code: str) -> None:
        """Counts one call that ended with `code`."""
        self._requests.labels(verb, code).inc()

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)


class OperatorMetrics(ApiMetrics):
    """The metrics of one operator."""

    def __init__(self) -> None:
        super().__init__()
        self._leader = Gauge("engram_operator_leader", "1 while this process leads, else 0.", registry=self.registry)
        self._expiry = Gauge(
            "engram_operator_certificate_expiry_seconds",
            "When the injector's certificate ends, in seconds since 1970; 0 until this process has seen one as leader.",
            registry=self.registry,
        )
        self._days_left = Gauge(
            "engram_operator_certificate_days_left",
            "Days until the injector's certificate ends; 0 until this process has seen one as leader.",
            registry=self.registry,
        )

        self._depth = Gauge(
            "engram_operator_queue_depth", "Keys that are due and not yet taken.", registry=self.registry
        )
        self._oldest = Gauge(
            "engram_operator_queue_oldest_seconds",
            "For how long the oldest of the due keys waits; 0 if none does.",
            registry=self.registry,
        )
        self._reconcile = Histogram(
            "engram_operator_reconcile_seconds",
            "Time of one run by kind and result; failed is an expected error, error is a fault of ours.",
            ("kind", "result"),
            buckets=_RUN_BUCKETS_S,
            registry=self.registry,
        )
        self._watch_age = Gauge(
            "engram_operator_watch_age_seconds",
            "Since when the watch of a resource has delivered nothing and was not proved to hear everything.",
            ("resource",),
            registry=self.registry,
        )
        self._events_dropped = Counter(
            "engram_operator_events_dropped",
            "Events that were not written because there were too many of their object.",
            registry=self.registry,
        )

        self._clusters = Gauge(
            "engram_operator_clusters",
            "MemoryClusters by condition and its status, as this process reported them last; none while it follows.",
            ("condition", "status"),
            registry=self.registry,
        )

        self._pods = Gauge(
            "engram_pods",
            "Agents' pods of all tenants: injected have a sidecar, missed should and have none, outdated have an older"
            " one, old_config one that serves by something else than what is published, silent one that does not tell"
            " by what it serves; none while this process follows.",
            ("state",),
            registry=self.registry,
        )
        self._unclaimed = Gauge(
            "engram_unclaimed_pods",
            "Pods that ask for a memory and of which it is not clear whose they are, by namespace, of 100 namespaces at"
            " most; none while this process follows.",
            ("pod_namespace",),
            registry=self.registry,
        )
        self._evictions = Counter(
            "engram_sidecar_evictions",
            "Pods without a sidecar, or with an old configuration, that were evicted.",
            registry=self.registry,
        )
        self._upgrades = Counter(
            "engram_sidecar_upgrades", "Sidecars that were given a newer image in place.", registry=self.registry
        )

    def set_pods(self, tenants: Iterable[Mapping[str, int]]) -> None:
        """The pods of every tenant, each a map of state to their number."""
        counts = Counts[str]()
        for each in tenants:
            counts.update(each)
        self._pods.clear()
        for state, count in counts.items():
            self._pods.labels(state).set(count)

    def set_unclaimed(self, namespaces: Mapping[str, int]) -> None:
        """The number of pods of nobody, by their namespace."""
        self._unclaimed.clear()
        for namespace, count in namespaces.items():
            self._unclaimed.labels(namespace).set(count)

    def count_eviction(self) -> None:
        """Counts one pod that was evicted."""
        self._evictions.inc()

    def count_upgrade(self) -> None:
        """Counts one sidecar that got a newer image."""
        self._upgrades.inc()

    def set_clusters(self, conditions: Iterable[Mapping[str, str]]) -> None:
        """The conditions of every cluster, each a map of type to status."""
        counts = Counts((kind, status) for each in conditions for kind, status in each.items())
        self._clusters.clear()
        for (kind, status), count in counts.items():
            self._clusters.labels(kind, status).set(count)

    def set_leader(self, *, is_leader: bool) -> None:
        """Whether this process leads."""
        self._leader.set(is_leader)

    def show_queue(self, depth: Callable[[], int], oldest_s: Callable[[], float]) -> None:
        """From now on each scrape asks these two."""
        self._depth.set_function(depth)
        self._oldest.set_function(oldest_s)

    def show_watch_age(self, resource: str, age_s: Callable[[], float]) -> None:
        """From now on each scrape asks how old the last sign of life of this watch is."""
        self._watch_age.labels(resource).set_function(age_s)

    def observe_reconcile(self, kind: str, result: str, seconds: float) -> None:
        """Counts one run of a reconciler."""
        self._reconcile.labels(kind, result).observe(seconds)

    def count_event_dropped(self) -> None:
        """Counts one Event that was not written."""
        self._events_dropped.inc()

    def show_certificate_days_left(self, days_left: Callable[[], float]) -> None:
        """From now on each scrape asks for the days."""
        self._days_left.set_function(days_left)

    def set_certificate_expiry(self, not_after_s: float) -> None:
        """When the certificate in the Secret ends (Unix seconds)."""
        self._expiry.set(not_after_s)


class InjectorMetrics(ApiMetrics):
    """The metrics of one injector."""

    def __init__(self) -> None:
        super().__init__()
        self._reviews = Counter(
            "engram_injector_reviews",
            "Reviews by result; bad is what was refused because it is none, error is a fault of ours.",
            ("result",),
            registry=self.registry,
        )
        for result in REVIEW_RESULTS:  # a series that is there from the start has a rate from its first event on
            self._reviews.labels(result)
        self._duration = Histogram(
            "engram_injector_review_seconds",
            "Time from a review's head to its answer.",
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self._lookups = Counter(
            "engram_injector_lookups",
            "Tenants that reviews looked up, by source: memory, or a call where that does not know or is not proved.",
            ("source",),
            registry=self.registry,
        )
        for source in LOOKUP_SOURCES:
            self._lookups.labels(source)
        self._proved = Gauge(
            "engram_injector_tenants_proved",
            "1 while what this process remembers of MemoryTenants is proved, else 0: then reviews ask the API server.",
            registry=self.registry,
        )
        self._expiry = Gauge(
            "engram_injector_certificate_expiry_seconds",
            "When the certificate that is served ends, in seconds since 1970; 0 before the first.",
            registry=self.registry,
        )
        self._days_left = Gauge(
            "engram_injector_certificate_days_left",
            "Days until the certificate that is served ends; 0 before the first.",
            registry=self.registry,
        )

    def count_lookup(self, source: LookupSource) -> None:
        """Counts one tenant that was looked up."""
        self._lookups.labels(source).inc()

    def show_tenants_proved(self, is_proved: Callable[[], bool]) -> None:
        """From now on each scrape asks whether memory is proved."""
        self._proved.set_function(is_proved)

    def observe_review(self, result: ReviewResult, seconds: float) -> None:
        """Counts one review."""
        self._reviews.labels(result).inc()
        self._duration.observe(seconds)

    def show_certificate_days_left(self, days_left: Callable[[], float]) -> None:
        """From now on each scrape asks for the days."""
        self._days_left.set_function(days_left)

    def set_certificate_expiry(self, not_after_s: float) -> None:
        """When the certificate that is served ends (Unix seconds)."""
        self._expiry.set(not_after_s)
