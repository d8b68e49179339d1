"""The metrics of both cache levels and the bulletin, declared once; a part of metrics.py's registry.

What is counted where every microsecond matters is counted in numbers, and the metrics follow these.
"""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge

from engram_sidecar.cachestate import CacheState


class CacheMetrics:
    """The metrics of both cache levels and the bulletin."""

    def __init__(self, registry: CollectorRegistry) -> None:
        hit_rate = Gauge(
            "memory_cache_hit_rate",
            "The part of the reads by id that no shard was asked for, since the start.",
            registry=registry,
        )
        hit_rate.set_function(lambda: 0.0 if self._state is None else self._state().hit_rate)
        self._cache_reads = Counter(
            "engram_cache_reads",
            "Reads by id by what a cache level said; collapsed ones had the answer to another one's.",
            ("level", "outcome"),
            registry=registry,
        )
        self._cache_stores = Counter(
            "engram_cache_stores", "Answers to reads by id that were put into a cache level.", ("level",),
            registry=registry,
        )  # fmt: skip
        self._cache_entries = Gauge("engram_cache_entries", "Answers that this sidecar keeps.", registry=registry)
        self._cache_size = Gauge(
            "engram_cache_size_bytes", "Bytes that what this sidecar keeps takes.", registry=registry
        )
        self._cache_evictions = Counter(
            "engram_cache_evictions", "Answers that are kept no longer, for room or by time.", ("reason",),
            registry=registry,
        )  # fmt: skip
        self._bulletin_events = Counter(
            "engram_bulletin_events",
            "Notices of writes that were heard, doubts that emptied the cache, and writes that were told late.",
            ("event",),
            registry=registry,
        )
        self._bulletin_sound = Gauge(
            "engram_bulletin_sound", "1 while all that other sidecars write is heard.", registry=registry
        )
        self._state: Callable[[], CacheState] | None = None
        self._counted: dict[Counter, int] = {}

    def follow(self, state: Callable[[], CacheState]) -> None:
        """Asks it from now on."""
        self._state = state

    def show(self) -> None:
        """What is so now."""
        if self._state is None:
            return
        state = self._state()
        self._cache_entries.set(state.entries)
        self._cache_size.set(state.size_bytes)
        self._bulletin_sound.set(state.is_sound)
        for (level, outcome), count in state.reads.items():
            self._show_count(self._cache_reads, (level, outcome), count)
        for level, count in state.stores.items():
            self._show_count(self._cache_stores, (level,), count)
        for reason, count in state.evictions.items():
            self._show_count(self._cache_evictions, (reason,), count)
        for event, count in state.events.items():
            self._show_count(self._bulletin_events, (event,), count)

    def _show_count(self, counter: Counter, labels: tuple[str, ...], count: int) -> None:
        """Who counts where every microsecond matters counts in a number; the metric follows it."""
        series = counter.labels(*labels)
        series.inc(count - self._counted.get(series, 0))
        self._counted[series] = count
