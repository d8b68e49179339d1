"""How the caches do, in numbers, for metrics and health. Values only."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CacheState:
    """Counts are since the start. `reads`: (level, outcome) -> reads by id; `events`: of the bulletin."""

    reads: Mapping[tuple[str, str], int]
    entries: int
    size_bytes: int
    evictions: Mapping[str, int]
    events: Mapping[str, int]
    is_shared: bool  # there is a login for Redis
    is_reached: bool  # Redis is not left alone
    is_sound: bool  # all that other sidecars write is heard

    @property
    def asked(self) -> int:
        """Reads that the caches were asked for."""
        return sum(count for (level, _), count in self.reads.items() if level == "local")

    @property
    def hit_rate(self) -> float:
        """The part of them that no shard was asked for; 0 without any."""
        shown = ("hit", "stale", "collapsed")
        hits = sum(self.reads["local", outcome] for outcome in shown) + self.reads["shared", "hit"]
        return hits / self.asked if self.asked else 0.0
