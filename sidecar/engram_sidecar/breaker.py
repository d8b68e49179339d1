"""A circuit breaker for one kind of operation at one node: after enough failures the node is left alone for a while.

    CLOSED --limit reached--> OPEN --recovery over, or a reason to look--> HALF_OPEN --a success--> CLOSED
                               ^----------------------a failure---------------'

The limit is reached by `failures` failures in a row (requirements 1.5), or when half of the last calls failed, or half
were slow: a node that answers after seconds takes the caller's time as surely as one that does not answer. The last are
twice as many as are judged by, none older than WINDOW_S (resilience4j, COUNT_BASED window).

Promises
1. Open, it admits nobody; half-open, at most PERMITS calls at a time.
2. A call that began before the last change of state changes nothing: a late success does not close an open breaker.
3. It keeps MAX_WINDOW_CALLS outcomes and no more.
Pure: every moment is an argument, in monotonic seconds.
"""

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from math import inf
from typing import Final

MAX_WINDOW_CALLS: Final = 200
WINDOW_S: Final = 60.0
JUDGED_CALLS: Final = 10  # fewer say little about a rate
SLOW_S: Final = 1.0  # far above any answer of a sound node, far below the deadline
LIMIT_RATIO: Final = 0.5
PERMITS: Final = 1  # a node that comes back is to be met by one question and not by all that waited


class State(StrEnum):
    """Whether calls are admitted."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Event(StrEnum):
    """What may change the state."""

    LIMIT_REACHED = "limit reached"
    RECOVERY_OVER = "recovery over"
    HOPE = "hope"  # the node answered another kind of operation, or a write waits for it
    SUCCEEDED = "succeeded"
    FAILED = "failed"


TRANSITIONS: Final = {
    (State.CLOSED, Event.LIMIT_REACHED): State.OPEN,
    (State.OPEN, Event.RECOVERY_OVER): State.HALF_OPEN,
    (State.OPEN, Event.HOPE): State.HALF_OPEN,
    (State.HALF_OPEN, Event.SUCCEEDED): State.CLOSED,
    (State.HALF_OPEN, Event.FAILED): State.OPEN,
}  # a pair that is absent leaves the state as it is


class Outcome(StrEnum):
    """How a call ended, as far as it tells of the node. WITHDRAWN tells nothing: its caller left."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class Limits:
    """So many failures in a row open the breaker, for so many seconds."""

    failures: int
    recovery_s: float

    @property
    def judged_calls(self) -> int:
        """How many calls must have ended before their rate counts."""
        return min(max(JUDGED_CALLS, self.failures), MAX_WINDOW_CALLS // 2)


@dataclass(frozen=True, slots=True)
class Pass:
    """A call that was admitted: in which era of the breaker, and when."""

    era: int
    began_s: float


@dataclass(frozen=True, slots=True)
class _Ended:
    at_s: float
    is_failure: bool
    is_slow: bool


@dataclass(frozen=True, slots=True)
class View:
    """What a breaker shows. `failures` are those in a row; `failed_s` is the last one's moment, None without one."""

    state: State
    failures: int
    failed_s: float | None


class Breaker:
    """The state of one breaker, and the outcomes that it judges by."""

    def __init__(self) -> None:
        self._state = State.CLOSED
        self._era = 0
        self._opened_s = 0.0
        self._probes = 0
        self._failures = 0
        self._failed_s: float | None = None
        self._spoilt_s = -inf  # when a call failed or was slow last
        self._ended: deque[_Ended] = deque(maxlen=MAX_WINDOW_CALLS)

    @property
    def view(self) -> View:
        """What it shows now."""
        return View(self._state, self._failures, self._failed_s)

    def refuses(self, limits: Limits, now_s: float) -> bool:
        """Whether a call would not be admitted now."""
        if now_s >= self._opened_s + limits.recovery_s:
            self._happen(Event.RECOVERY_OVER, now_s)
        return self._state is State.OPEN or (self._state is State.HALF_OPEN and self._probes >= PERMITS)

    def admit(self, limits: Limits, now_s: float) -> Pass | None:
        """The pass of a call that may go on, which must be settled; None if it may not."""
        if self.refuses(limits, now_s):
            return None
        self._probes += self._state is State.HALF_OPEN
        return Pass(self._era, now_s)

    def hope(self, now_s: float) -> None:
        """There is a reason to look before the recovery is over: open becomes half-open."""
        self._happen(Event.HOPE, now_s)

    def wait_s(self, limits: Limits, now_s: float) -> float:
        """The seconds until a call may be admitted again; 0 if it is now or as soon as a probe has ended."""
        return max(self._opened_s + limits.recovery_s - now_s, 0.0) if self._state is State.OPEN else 0.0

    def settle(self, admitted: Pass, outcome: Outcome, limits: Limits, now_s: float) -> None:
        """The call of the pass has ended."""
        if admitted.era != self._era:
            return
        self._probes -= self._state is State.HALF_OPEN
        if outcome is Outcome.WITHDRAWN:
            return
        is_failure, is_slow = outcome is Outcome.FAILED, now_s - admitted.began_s >= SLOW_S
        self._ended.append(_Ended(now_s, is_failure, is_slow))
        self._spoilt_s = now_s if is_failure or is_slow else self._spoilt_s
        self._failures = self._failures + 1 if is_failure else 0
        self._failed_s = now_s if is_failure else self._failed_s
        self._happen(Event.FAILED if is_failure else Event.SUCCEEDED, now_s)
        if self._is_over(limits, now_s):
            self._happen(Event.LIMIT_REACHED, now_s)

    def _is_over(self, limits: Limits, now_s: float) -> bool:
        if self._failures >= limits.failures:
            return True
        if len(self._ended) < limits.judged_calls or self._spoilt_s <= now_s - WINDOW_S:
            return False  # of a sound node nothing has to be counted
        newest = islice(reversed(self._ended), 2 * limits.judged_calls)
        recent = [each for each in newest if each.at_s > now_s - WINDOW_S]
        worst = max(sum(each.is_failure for each in recent), sum(each.is_slow for each in recent))
        return len(recent) >= limits.judged_calls and worst >= len(recent) * LIMIT_RATIO

    def _happen(self, event: Event, now_s: float) -> None:
        state = TRANSITIONS.get((self._state, event), self._state)
        if state is self._state:
            return
        self._state, self._era, self._probes = state, self._era + 1, 0
        if state is State.OPEN:
            self._opened_s = now_s
        if state is State.CLOSED:
            self._failures = 0
            self._ended.clear()
