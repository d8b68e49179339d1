"""How far the shards were written, as other sidecars tell it: so far must a replica be for its answer to be kept.

A replica that lags gives an older state than its caller minds; kept, it would be shown for minutes. So it is kept only
if it has all that was written here, all that was told, and all that was written before anything that was told without
a position, or was perhaps not heard.

Pure: the clock is an argument, the loop's.
"""

from math import inf

from engram_contract.session import Position
from engram_sidecar.consistency import Floors, Source


class Hearsay:
    """What is known of each shard that has replicas."""

    def __init__(self, floors: Floors) -> None:
        self._floors = floors
        self._heard: dict[str, Position] = {}
        self._unheard_s: dict[str, float] = {}

    def hear(self, shard: str, position: Position | None, now_s: float) -> None:
        """It was written up to this position; None: up to now."""
        if shard not in self._floors:
            return
        if position is None:
            self._unheard_s[shard] = now_s
        else:
            self._heard[shard] = max(position, self._heard.get(shard, position))

    def doubt(self, now_s: float) -> None:
        """Something may have been told and not heard."""
        self._unheard_s = dict.fromkeys(self._floors.shards(), now_s)

    def forget(self) -> None:
        """Another map: its shards may be others under the same names."""
        self._heard.clear()
        self._unheard_s.clear()

    def may_keep(self, shard: str, source: Source) -> bool:
        """Whether an answer may be shown to others."""
        look = source.look
        if look is None:
            return True
        heard = self._heard.get(shard)
        # A new primary has what was told of the timeline before, or nobody has.
        has_heard = heard is None or look.timeline > heard.timeline or look.covers(heard)
        is_after = source.began_s - source.behind_s > self._unheard_s.get(shard, -inf)
        return has_heard and is_after and look.covers(self._floors.of(shard))
