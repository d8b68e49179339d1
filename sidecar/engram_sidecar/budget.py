"""A budget of retries: some for each hundred requests and a few a second, so that repeating never feeds an overload.

Promise: of `n` requests in `t` seconds at most `n * percent / 100 + t * FLOOR_PER_S + BURST` are repeated.
Pure: every moment is an argument, in monotonic seconds. Source: Finagle's RetryBudget, Linkerd's retry budgets.
"""

from typing import Final

FLOOR_PER_S: Final = 1.0  # a pod that asks once a minute would else never repeat anything
BURST: Final = 10.0


class Budget:
    """The retries that may be made now."""

    def __init__(self) -> None:
        self._retries = 1.0
        self._at_s: float | None = None

    def earn(self, percent: int, now_s: float) -> None:
        """One more request was made."""
        self._add(percent / 100, now_s)

    def spend(self, now_s: float) -> bool:
        """True if a request may be repeated; it then counts as repeated."""
        self._add(0.0, now_s)
        if self._retries < 1.0:
            return False
        self._retries -= 1.0
        return True

    def _add(self, retries: float, now_s: float) -> None:
        passed_s = 0.0 if self._at_s is None else now_s - self._at_s
        self._at_s = now_s
        self._retries = min(self._retries + retries + passed_s * FLOOR_PER_S, BURST)
