"""What is known of one shard's nodes: who is primary, how far each replica is, and so which ones may answer a read.

A look tells how far a node surely was. Its log only grows, so who asks it later sees that much at least: what a look
found stays true of the node until it joins another history, and that is another timeline.

Promises
1. A replica is eligible only by what was known before the read: its timeline and position cover the floor, its map is
as new as the reader's, and what it lacks was written less than the bound ago.
2. How far behind a replica is, is measured by one clock, the reader's: it shows all that was committed when its primary
was asked and was no further. A replica that stands still ages, and so do all while nobody hears of their primary.
3. Only the newest timeline has a primary: one that was left behind and goes on measures nothing.

Pure: the clock is an argument, monotonic seconds.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from engram_contract.session import UNKNOWN, Position

CARRY_S: Final = 5.0  # a replica whose primary is gone receives no timeline; so long it is on that of before
NEAR_S: Final = 2.0  # who is no further behind has perhaps caught up since the last look
MAX_SAMPLES: Final = 2_400  # of a primary: twice the longest bound, at two looks a second


@dataclass(frozen=True, slots=True)
class Look:
    """What a node said when it was asked at `asked_s`. The timeline is None if it receives nothing now."""

    is_replica: bool
    timeline: int | None
    lsn: int
    epoch: int
    asked_s: float


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a read needs of a node. Without a floor any state does that is not older than the bound."""

    epoch: int
    floor: Position | None
    bound_s: float


class Standing:
    """The nodes of one shard."""

    def __init__(self) -> None:
        self.timeline = 0  # the newest that any node told
        self._looks: dict[str, Look] = {}
        self._sampled: list[int] = []  # positions of the primary on the newest timeline, and when it was asked
        self._sampled_s: list[float] = []

    def take(self, node: str, look: Look) -> None:
        """The node was looked at."""
        before = self._looks.get(node)
        is_carried = before is not None and before.is_replica and look.asked_s - before.asked_s <= CARRY_S
        if look.timeline is None and before is not None and is_carried and look.lsn >= before.lsn:
            look = replace(look, timeline=before.timeline)
        self._looks[node] = look
        if look.timeline is None or look.timeline < self.timeline:
            return
        if look.timeline > self.timeline:
            self.timeline = look.timeline
            self._sampled, self._sampled_s = [], []
        if not look.is_replica:
            self._sample(look)

    def _sample(self, look: Look) -> None:
        if self._sampled and self._sampled[-1] == look.lsn:
            self._sampled_s[-1] = max(look.asked_s, self._sampled_s[-1])
        elif not self._sampled or (look.lsn > self._sampled[-1] and look.asked_s > self._sampled_s[-1]):
            self._sampled.append(look.lsn)
            self._sampled_s.append(look.asked_s)
            del self._sampled[:-MAX_SAMPLES], self._sampled_s[:-MAX_SAMPLES]

    def lose(self, node: str) -> None:
        """The node does not answer."""
        self._looks.pop(node, None)

    def behind_s(self, node: str, now_s: float) -> float | None:
        """At most so many seconds ago was written what the replica lacks; None if that is not known."""
        look = self._looks.get(node)
        if look is None or not look.is_replica or look.timeline != self.timeline:
            return None
        sample = bisect_right(self._sampled, look.lsn) - 1
        return None if sample < 0 else max(now_s - self._sampled_s[sample], 0.0)

    def replicas(self, now_s: float) -> Iterator[tuple[str, float]]:
        """The replicas of which it is known how far behind they are at most."""
        for node in self._looks:
            behind_s = self.behind_s(node, now_s)
            if behind_s is not None:
                yield node, behind_s

    def look_at(self, node: str) -> Look:
        """The last look; raises KeyError if the node did not answer it."""
        return self._looks[node]

    def eligible(self, wanted: Wanted, now_s: float) -> list[str]:
        """The replicas that may answer."""
        return [
            node
            for node, behind_s in self.replicas(now_s)
            if behind_s <= wanted.bound_s and _covers(self._looks[node], wanted)
        ]

    def nearest(self, wanted: Wanted, now_s: float) -> str | None:
        """The replica that most likely has become eligible since it was looked at, if one may have."""
        if wanted.floor == UNKNOWN or (wanted.floor is not None and wanted.floor.timeline != self.timeline):
            return None
        near = [node for node, behind_s in self.replicas(now_s) if behind_s <= min(NEAR_S, wanted.bound_s)]
        return max(near, key=lambda node: self._looks[node].lsn, default=None)


def _covers(look: Look, wanted: Wanted) -> bool:
    floor = wanted.floor
    has_reached = floor is None or (look.timeline == floor.timeline and look.lsn >= floor.lsn)
    return has_reached and look.epoch >= wanted.epoch
