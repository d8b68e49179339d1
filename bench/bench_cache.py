"""The first cache level with its default bounds against LRU and S3-FIFO: hit ratios on two traces, the cost of a hit.

`zipf`: 100,000 memories of 1 KB, asked for by Zipf's law with exponent 1. `scan`: the same, and in between somebody
goes through all memories, a stretch at a time. LRU and S3-FIFO are written here for the comparison, as the literature
has them; they may hold as many entries as the cache does, so only the order of eviction differs.
"""

import random
import statistics
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Final, Protocol

from engram_contract.caching import DEFAULT_CACHING
from engram_sidecar.cache import Cache
from rows import Row

MEMORIES: Final = 100_000
MEMORY_BYTES: Final = 1_024
REQUESTS: Final = 1_000_000
WARM_UP: Final = 200_000  # requests that are not counted
SCAN_EVERY: Final = 10_000
SCANNED: Final = 2_500  # a fifth of all requests
SEED: Final = 1
LATE_S: Final = 1e12
HIT_KEYS: Final = 10_000
HIT_ROUNDS: Final = 41
BAR_PERCENT: Final = 80.0
BAR_HIT_RATIO: Final = 1.1


class Peer(Protocol):
    """What a trace asks."""

    def get(self, key: int, now_s: float, /) -> int | None:
        """The value, or None."""

    def put(self, key: int, value: int) -> None:
        """Keeps the value."""


class Sieve(Cache[int, int]):
    """The sidecar's cache, filled as a read that missed does it."""

    def __init__(self) -> None:
        super().__init__(DEFAULT_CACHING.local_capacity_bytes, DEFAULT_CACHING.local_entries)

    def put(self, key: int, value: int) -> None:
        """Keeps the value."""
        self.fill(key, value, MEMORY_BYTES, LATE_S, self.ticket(key), 0.0)


class Lru:
    """The least recently used goes. Entries have a time, as in the cache."""

    def __init__(self, max_entries: int) -> None:
        self._entries: OrderedDict[int, tuple[int, float]] = OrderedDict()
        self._max_entries = max_entries

    def get(self, key: int, now_s: float) -> int | None:
        """The value, or None."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry[1] <= now_s:
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: int, value: int) -> None:
        """Keeps the value."""
        if len(self._entries) >= self._max_entries:
            self._entries.popitem(last=False)
        self._entries[key] = (value, LATE_S)


class S3Fifo:
    """A tenth of the room is on trial; what was got there moves on, what was not is known by its key alone for a while.

    Source: Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023.
    """

    def __init__(self, max_entries: int) -> None:
        self._values: dict[int, int] = {}
        self._got: dict[int, int] = {}  # times, 3 at most
        self._trial: deque[int] = deque()
        self._main: deque[int] = deque()
        self._ghosts: OrderedDict[int, None] = OrderedDict()
        self._max_entries, self._max_trial = max_entries, max_entries // 10

    def get(self, key: int, _now_s: float) -> int | None:
        """The value, or None."""
        value = self._values.get(key)
        if value is not None and self._got[key] < 3:  # noqa: PLR2004  two bits
            self._got[key] += 1
        return value

    def put(self, key: int, value: int) -> None:
        """Keeps the value."""
        while len(self._values) >= self._max_entries:
            self._evict_trial() if len(self._trial) >= self._max_trial else self._evict_main()
        is_known = key in self._ghosts
        self._ghosts.pop(key, None)
        (self._main if is_known else self._trial).append(key)
        self._values[key], self._got[key] = value, 0

    def _evict_trial(self) -> None:
        key = self._trial.popleft()
        if self._got[key] > 1:
            self._got[key] = 0
            self._main.append(key)
            return
        del self._values[key], self._got[key]
        self._ghosts[key] = None
        if len(self._ghosts) > self._max_entries - self._max_trial:
            self._ghosts.popitem(last=False)

    def _evict_main(self) -> None:
        key = self._main.popleft()
        if self._got[key]:
            self._got[key] -= 1
            self._main.append(key)
        else:
            del self._values[key], self._got[key]


def measure() -> Iterator[Row]:
    """The rows of this benchmark."""
    entries = room()
    makers: dict[str, Callable[[], Peer]] = {
        "sieve": Sieve,
        "lru": lambda: Lru(entries),
        "s3fifo": lambda: S3Fifo(entries),
    }
    for trace, requests in (("zipf", zipf()), ("scan", scanned(zipf()))):
        found = {name: hit_percent(make(), requests) for name, make in makers.items()}
        peer = f"LRU {found['lru']:.3g}, S3-FIFO {found['s3fifo']:.3g} percent; {entries} of {MEMORIES} memories fit"
        if trace == "zipf":
            yield Row.at_least("cache_hits_zipf", found["sieve"], "percent", BAR_PERCENT, peer)
        else:
            yield Row.at_least("cache_hits_scan", found["sieve"], "percent", found["lru"], peer)
    sieve_s, lru_s = hit_costs_s([Sieve(), Lru(entries)])
    peer = f"a hit of an LRU on an OrderedDict: {1e9 * lru_s:.3g} ns"
    yield Row.at_most("cache_hit_ratio", sieve_s / lru_s, "times", BAR_HIT_RATIO, peer)
    yield Row.shown("cache_hit", 1e9 * sieve_s, "ns", peer)


def room() -> int:
    """How many memories the cache holds."""
    cache = Sieve()
    for key in range(MEMORIES):
        cache.put(key, key)
    return cache.view.entries


def zipf() -> list[int]:
    """The k-th of all memories is asked for in proportion to 1/k."""
    weights = list(accumulate(1 / rank for rank in range(1, MEMORIES + 1)))
    return random.Random(SEED).choices(range(1, MEMORIES + 1), cum_weights=weights, k=REQUESTS)


def scanned(requests: list[int]) -> list[int]:
    """The requests with stretches of a walk through all memories in between."""
    mixed: list[int] = []
    for start in range(0, len(requests), SCAN_EVERY):
        mixed += requests[start : start + SCAN_EVERY]
        at = start // SCAN_EVERY * SCANNED
        mixed += [1 + (at + step) % MEMORIES for step in range(SCANNED)]
    return mixed


def hit_percent(cache: Peer, requests: list[int]) -> float:
    """How many of 100 requests after the warm-up are hits, if each miss is filled."""
    hits = 0
    for number, key in enumerate(requests):
        if cache.get(key, 0.0) is None:
            cache.put(key, key)
        elif number >= WARM_UP:
            hits += 1
    return 100 * hits / (len(requests) - WARM_UP)


def hit_costs_s(caches: list[Peer]) -> list[float]:
    """Seconds of a hit of each, the median of rounds in turns."""
    keys = list(range(1, HIT_KEYS + 1))
    random.Random(SEED).shuffle(keys)
    rounds: list[list[float]] = [[] for _ in caches]
    for cache in caches:
        for key in keys:
            cache.put(key, key)
    for _ in range(HIT_ROUNDS):
        for cache, times_s in zip(caches, rounds, strict=True):
            get = cache.get
            began_s = time.perf_counter()
            for key in keys:
                get(key, 0.0)
            times_s.append((time.perf_counter() - began_s) / HIT_KEYS)
    return [statistics.median(times_s) for times_s in rounds]
