"""How the caches do, in numbers, for metrics, health and whoever asks. Values only."""

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class CacheState:
    """Counts are since the start. `reads`: (level, outcome) -> reads by id; `events`: of the bulletin.

    `stores`: level -> answers that were put there; what is kept and may be kept is the first level's.
    """

    reads: Mapping[tuple[str, str], int]
    stores: Mapping[str, int]
    entries: int
    size_bytes: int
    max_entries: int
    capacity_bytes: int
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

    def since(self, base: "CacheState") -> "CacheState":
        """The same, with what was counted since `base`."""
        return replace(
            self,
            reads={key: count - base.reads[key] for key, count in self.reads.items()},
            stores={level: count - base.stores[level] for level, count in self.stores.items()},
            evictions={reason: count - base.evictions[reason] for reason, count in self.evictions.items()},
            events={event: count - base.events[event] for event, count in self.events.items()},
        )
