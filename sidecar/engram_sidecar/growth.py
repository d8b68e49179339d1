"""How fast what is stored grows, by looks at it. Pure, and bounded."""

from collections import deque
from dataclasses import dataclass
from typing import Final

SPAN_S: Final = 86_400.0  # a day: what was before says little of how long the room will last
MAX_LOOKS: Final = 400  # a day of looks every five minutes, give or take


@dataclass(frozen=True, slots=True)
class Rate:
    """The growth in an hour, as the mean over `over_s` seconds; below zero where it shrank."""

    memories: float
    size_bytes: float
    over_s: float


class Growth:
    """Looks at what is stored, none older than SPAN_S. Moments are monotonic seconds."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, int, int]] = deque(maxlen=MAX_LOOKS)

    def add(self, now_s: float, memories: int, size_bytes: int) -> None:
        """So much was stored now."""
        self._looks.append((now_s, memories, size_bytes))
        while self._looks[0][0] < now_s - SPAN_S:
            self._looks.popleft()

    def rate(self) -> Rate | None:
        """From the first look to the last one; None before there are two."""
        if len(self._looks) < 2:  # noqa: PLR2004  a rate is between two
            return None
        (first_s, *first), (last_s, *last) = self._looks[0], self._looks[-1]
        over_s = last_s - first_s
        memories, size_bytes = (3_600 * (new - old) / over_s for new, old in zip(last, first, strict=True))
        return Rate(memories, size_bytes, over_s)
