"""Every metric of the control plane, declared once. Labels are verbs, codes and outcomes, never a name of an object."""

from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
REVIEW_RESULTS: Final = ("injected", "unchanged", "warned", "bad", "error")
ReviewResult = Literal["injected", "unchanged", "warned", "bad", "error"]
disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nothing reads
_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)


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

    def set_leader(self, *, is_leader: bool) -> None:
        """Whether this process leads."""
        self._leader.set(is_leader)

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
        self._expiry = Gauge(
            "engram_injector_certificate_expiry_seconds",
            "When the certificate that is served ends, in seconds since 1970; 0 before the first.",
            registry=self.registry,
        )

    def observe_review(self, result: ReviewResult, seconds: float) -> None:
        """Counts one review."""
        self._reviews.labels(result).inc()
        self._duration.observe(seconds)

    def set_certificate_expiry(self, not_after_s: float) -> None:
        """When the certificate that is served ends (Unix seconds)."""
        self._expiry.set(not_after_s)
