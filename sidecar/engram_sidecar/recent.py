"""How the last calls of each operation went: their times, and how many failed. Pure, and bounded."""

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Final

KEPT_CALLS: Final = 1_000  # of each operation, requirements 1.7
WINDOW_S: Final = 300.0  # what went wrong before says nothing about now

Ended = tuple[float, float, bool]  # when, how long it took, whether it succeeded


@dataclass(frozen=True, slots=True)
class Pace:
    """Calls of one operation: how many, the mean of their times, and how many of a hundred failed."""

    calls: int
    mean_ms: float
    error_percent: float


@dataclass(frozen=True, slots=True)
class Spread:
    """The times of calls of one operation: of so many of a hundred it was this or less."""

    p50_ms: float
    p95_ms: float
    p99_ms: float


class Recent:
    """The last calls of each operation. Moments are monotonic seconds."""

    def __init__(self) -> None:
        self._calls: defaultdict[str, deque[Ended]] = defaultdict(partial(deque, maxlen=KEPT_CALLS))

    def add(self, operation: str, now_s: float, took_s: float, *, is_success: bool) -> None:
        """One call has ended."""
        self._calls[operation].append((now_s, took_s, is_success))

    def paces(self, now_s: float) -> dict[str, Pace]:
        """Operation -> how its calls of the last WINDOW_S went; without those that nobody asked for lately."""
        lately = {
            operation: [call for call in calls if call[0] > now_s - WINDOW_S]
            for operation, calls in self._calls.items()
        }
        return {operation: _pace(calls) for operation, calls in lately.items() if calls}

    def spreads(self) -> dict[str, tuple[Pace, Spread]]:
        """Operation -> how its last calls went, whenever that was."""
        return {operation: (_pace(calls), _spread(calls)) for operation, calls in self._calls.items()}


def _pace(calls: Iterable[Ended]) -> Pace:
    took, succeeded = zip(*((took_s, is_success) for _, took_s, is_success in calls), strict=True)
    return Pace(len(took), 1000 * sum(took) / len(took), 100 * (len(took) - sum(succeeded)) / len(took))


def _spread(calls: Iterable[Ended]) -> Spread:
    """By the nearest rank: each is a time that was measured."""
    took = sorted(took_s for _, took_s, _ in calls)
    return Spread(*(1000 * took[ceil(percent * len(took) / 100) - 1] for percent in (50, 95, 99)))
