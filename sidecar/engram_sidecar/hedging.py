"""When a read is late: after most of the reads of its kind at its shard would have been answered.

The measure is the 95th of the last hundred times. A question that was withdrawn counts with the time that it had
taken by then; so a shard that becomes slow as a whole makes fewer reads late, and not more. What a second question may
cost is not decided here: it is paid from the budget of retries (budget.py).

Pure: every moment is an argument, in monotonic seconds. Source: Dean and Barroso, "The Tail at Scale" (2013), hedged
requests after the 95th percentile.
"""

from collections import defaultdict, deque
from collections.abc import Hashable
from typing import Final

KEPT_READS: Final = 100
COUNTED_READS: Final = (
    10  # the measure is taken anew after so many; sorting for each read would cost more than it tells
)
LATE_RATIO: Final = 0.95
FIRST_LATE_S: Final = 0.1  # before that many reads were measured: above what a sound shard takes
LEAST_LATE_S: Final = 0.005  # below that a second question costs more than the wait
MOST_LATE_S: Final = 1.0  # what a breaker calls slow
WINDOW_S: Final = 60.0  # what was measured before says nothing about now


class _Kind:
    """The reads of one kind at one shard."""

    def __init__(self) -> None:
        self.took_s: deque[float] = deque(maxlen=KEPT_READS)
        self.uncounted = 0
        self.late_s = FIRST_LATE_S
        self.at_s = 0.0


class Lateness:
    """The measure of each kind of read. A kind is a shard and the name of a query: there are few of them."""

    def __init__(self) -> None:
        self._kinds: defaultdict[Hashable, _Kind] = defaultdict(_Kind)

    def observe(self, kind: Hashable, seconds: float, now_s: float) -> None:
        """A read of the kind took so long, or was withdrawn after that time."""
        known = self._kinds[kind]
        if now_s - known.at_s > WINDOW_S:
            known.took_s.clear()
            known.uncounted, known.late_s = 0, FIRST_LATE_S
        known.took_s.append(seconds)
        known.at_s = now_s
        known.uncounted += 1
        if known.uncounted == COUNTED_READS:
            known.uncounted = 0
            usual_s = sorted(known.took_s)[int(len(known.took_s) * LATE_RATIO)]
            known.late_s = min(max(usual_s, LEAST_LATE_S), MOST_LATE_S)

    def late_s(self, kind: Hashable, now_s: float) -> float:
        """After so many seconds a read of the kind that begins now is late."""
        known = self._kinds.get(kind)
        return FIRST_LATE_S if known is None or now_s - known.at_s > WINDOW_S else known.late_s
