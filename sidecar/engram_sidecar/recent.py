"""How the last calls of each operation went: the mean of their times, and how many failed. Pure, and bounded."""

from collections import defaultdict, deque
from dataclasses import dataclass
from functools import partial
from typing import Final

KEPT_CALLS: Final = 1_000  # of each operation, requirements 1.7
WINDOW_S: Final = 300.0  # what went wrong before says nothing about now


@dataclass(frozen=True, slots=True)
class Pace:
    """The last calls of one operation."""

    calls: int
    mean_ms: float
    error_percent: float


class Recent:
    """The last calls of each operation, none older than WINDOW_S. Moments are monotonic seconds."""

    def __init__(self) -> None:
        self._calls: defaultdict[str, deque[tuple[float, float, bool]]] = defaultdict(partial(deque, maxlen=KEPT_CALLS))

    def add(self, operation: str, now_s: float, took_s: float, *, is_success: bool) -> None:
        """One call has ended."""
        self._calls[operation].append((now_s, took_s, is_success))

    def paces(self, now_s: float) -> dict[str, Pace]:
        """Operation -> how its last calls went; without those that nobody asked for lately."""
        found = {}
        for operation, calls in self._calls.items():
            while calls and calls[0][0] <= now_s - WINDOW_S:
                calls.popleft()
            if calls:
                failed = sum(not is_success for _, _, is_success in calls)
                mean_ms = 1000 * sum(took_s for _, took_s, _ in calls) / len(calls)
                found[operation] = Pace(len(calls), mean_ms, 100 * failed / len(calls))
        return found
