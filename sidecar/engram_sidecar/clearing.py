"""What a caller sees of the caches, and clears: their statistics, and the end of all that is kept or of one entry.

    clear  L1 here goes --> told: L2's keys move on, the other sidecars drop theirs --> L1 here goes again

Promises
1. After an answer of TOLD no request that begins at this sidecar is answered by what was kept before, and none at
another one for longer than its notice takes (docs/caches.md).
2. Whatever Redis does, this sidecar keeps nothing of before. What could not be told waits, and is told as soon as Redis
answers, while this process lives; until then it trusts no L2. The answer says so: WAITING is never called done.
3. What Prometheus counts never falls: statistics are the same counts less what they were at the last clear.

It costs speed only, so any caller may. It erases nothing: what leaves reach in Redis stays there until its time is up.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from engram_contract.slots import MemoryId
from engram_sidecar.caches import Caches
from engram_sidecar.cachestate import CacheState
from engram_sidecar.config import InForce
from engram_sidecar.kept import key_of
from engram_sidecar.wire import timestamp


class Shared(StrEnum):
    """What became of the part that is shared: L2, and what the tenant's other sidecars keep."""

    TOLD = "told"  # Redis has it: L2 is out of reach, the others hear it within milliseconds
    WAITING = "waiting"  # Redis did not answer in time; it is told when it does
    NONE = "none"  # there is no Redis: nothing is shared, and the others keep what they read for seconds only


@dataclass(frozen=True, slots=True)
class Cleared:
    """What a clear did: how many answers this sidecar kept and keeps no longer, and the rest."""

    dropped: int
    shared: Shared

    @property
    def document(self) -> dict[str, object]:
        """The answer to who cleared."""
        return {"dropped": self.dropped, "shared": self.shared}


class Clearing:
    """The desk before one tenant's caches. `time_s`: Unix time."""

    def __init__(self, caches: Caches, in_force: InForce, time_s: Callable[[], float]) -> None:
        self._caches = caches
        self._in_force = in_force
        self._time_s = time_s
        self._base, self._since_s = caches.state(), time_s()

    def statistics(self) -> dict[str, object]:
        """The answer to who asks how the caches did since the start, or since they were last cleared here."""
        since = datetime.fromtimestamp(self._since_s, UTC)
        return statistics_document(self._caches.state().since(self._base), since)

    async def clear(self) -> Cleared:
        """Nothing that is kept counts any more, and the statistics begin anew."""
        caches = self._caches
        dropped, telling = caches.recall.view.entries, caches.bulletin.forget()
        caches.recall.flush()
        is_told = await telling
        caches.recall.flush()  # what was taken from L2 while it was told
        self._base, self._since_s = caches.state(), self._time_s()
        return Cleared(dropped, self._shared(is_told))

    async def clear_one(self, memory_id: MemoryId) -> Cleared:
        """Nothing that is kept of this memory counts any more, nor that there is none."""
        caches, key = self._caches, key_of(memory_id)
        shard = self._in_force.config.shard_map.shard_of(memory_id.slot).id
        telling = caches.bulletin.tell(shard, [memory_id], None)
        is_dropped = caches.recall.drop(key)
        is_told = await telling
        caches.recall.drop(key)
        return Cleared(int(is_dropped), self._shared(is_told))

    def _shared(self, is_told: bool) -> Shared:  # noqa: FBT001  as the bulletin tells it
        if not self._caches.door.part:
            return Shared.NONE
        return Shared.TOLD if is_told else Shared.WAITING


def statistics_document(state: CacheState, since: datetime) -> dict[str, object]:
    """The statistics. A level's rate is of what that level was asked for, the whole's of all reads by id."""
    reads, asked = state.reads, state.asked
    local = {outcome: reads["local", outcome] for outcome in ("hit", "stale", "collapsed")}
    shared_hits, shared_misses = reads["shared", "hit"], reads["shared", "miss"]
    return {
        "since": timestamp(since),
        "reads": asked,
        "hits": sum(local.values()) + shared_hits,
        "misses": reads["local", "miss"] - shared_hits,
        "hit_rate": round(state.hit_rate, 4),
        "local": {
            "hits": sum(local.values()),
            "stale": local["stale"],
            "collapsed": local["collapsed"],
            "misses": reads["local", "miss"],
            "hit_rate": _rate(sum(local.values()), reads["local", "miss"]),
            "stores": state.stores["local"],
            "entries": state.entries,
            "max_entries": state.max_entries,
            "size_bytes": state.size_bytes,
            "capacity_bytes": state.capacity_bytes,
            "evicted_for_room": state.evictions["room"],
            "evicted_by_time": state.evictions["time"],
        },
        "shared": {
            "configured": state.is_shared,
            "reached": state.is_shared and state.is_reached,
            "sound": state.is_sound,
            "hits": shared_hits,
            "misses": shared_misses,
            "hit_rate": _rate(shared_hits, shared_misses),
            "stores": state.stores["shared"],
            "failed": reads["shared", "failed"],
            "unreadable": reads["shared", "unreadable"],
        },
    }


def _rate(hits: int, misses: int) -> float:
    return round(hits / (hits + misses), 4) if hits + misses else 0.0
