"""The breaker against a reference that keeps every outcome and decides by looking at all of them anew."""

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engram_sidecar.breaker import (
    JUDGED_CALLS,
    PERMITS,
    SLOW_S,
    TRANSITIONS,
    WINDOW_S,
    Breaker,
    Event,
    Limits,
    Outcome,
    Pass,
    State,
)

STORE, RETRIEVE = Limits(3, 60.0), Limits(5, 60.0)
SUCCEEDED, FAILED, WITHDRAWN = Outcome


def call(breaker: Breaker, outcome: Outcome, at_s: float, limits: Limits = STORE, took_s: float = 0.0) -> bool:
    """Whether the call was admitted; it then ended so."""
    admitted = breaker.admit(limits, at_s)
    if admitted is not None:
        breaker.settle(admitted, outcome, limits, at_s + took_s)
    return admitted is not None


def opened(limits: Limits = STORE, at_s: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(limits.failures):
        assert call(breaker, FAILED, at_s, limits)
    return breaker


@pytest.mark.parametrize("limits", [STORE, RETRIEVE])
def test_the_asked_number_of_failures_opens_it(limits: Limits) -> None:
    breaker = Breaker()
    for number in range(limits.failures):
        assert breaker.view.state is State.CLOSED
        assert call(breaker, FAILED, float(number), limits)
    assert breaker.view.state is State.OPEN
    assert (breaker.view.failures, breaker.view.failed_s) == (limits.failures, limits.failures - 1)
    assert not call(breaker, SUCCEEDED, 30.0, limits)
    assert breaker.wait_s(limits, 30.0) == 60.0 + limits.failures - 1 - 30.0


def test_a_success_between_resets_the_count() -> None:
    breaker = Breaker()
    for outcome in (FAILED, FAILED, SUCCEEDED, FAILED, FAILED):
        call(breaker, outcome, 1.0)
    assert (breaker.view.state, breaker.view.failures) == (State.CLOSED, 2)


def test_after_the_recovery_one_success_closes_it_and_resets_the_count() -> None:
    breaker = opened()
    assert call(breaker, SUCCEEDED, 60.0)
    assert (breaker.view.state, breaker.view.failures) == (State.CLOSED, 0)
    assert call(breaker, FAILED, 61.0)
    assert breaker.view.state is State.CLOSED


def test_after_the_recovery_one_failure_opens_it_for_as_long_again() -> None:
    breaker = opened()
    assert call(breaker, FAILED, 60.0)
    assert breaker.view.state is State.OPEN
    assert not call(breaker, SUCCEEDED, 119.9)
    assert call(breaker, SUCCEEDED, 120.0)


def test_half_open_it_admits_no_more_than_its_permits_at_a_time() -> None:
    breaker = opened()
    probes = [breaker.admit(STORE, 60.0) for _ in range(10)]
    assert sum(probe is not None for probe in probes) == PERMITS
    assert probes[0] is not None
    breaker.settle(probes[0], WITHDRAWN, STORE, 61.0)
    assert breaker.view.state is State.HALF_OPEN
    assert breaker.admit(STORE, 61.0) is not None


def test_hope_lets_one_call_look_before_the_recovery_is_over() -> None:
    breaker = opened()
    breaker.hope(1.0)
    assert [breaker.admit(STORE, 1.0) is not None for _ in range(3)] == [True, False, False]
    closed = Breaker()
    closed.hope(1.0)
    assert closed.view.state is State.CLOSED


@pytest.mark.parametrize("late", [SUCCEEDED, FAILED])
def test_a_call_of_before_changes_nothing(late: Outcome) -> None:
    breaker = Breaker()
    early = breaker.admit(STORE, 0.0)
    assert early is not None
    for _ in range(3):
        call(breaker, FAILED, 1.0)
    states = []
    for now_s in (2.0, 61.0):
        breaker.admit(STORE, now_s)
        breaker.settle(early, late, STORE, now_s)
        states.append(breaker.view.state)
    assert states == [State.OPEN, State.HALF_OPEN]


@pytest.mark.parametrize("took_s", [SLOW_S, 2.0])
def test_slow_answers_open_it_within_one_window(took_s: float) -> None:
    breaker = Breaker()
    for number in range(2 * JUDGED_CALLS):
        call(breaker, SUCCEEDED, float(number))
    slow = 0
    while call(breaker, SUCCEEDED, 20.0 + slow, took_s=took_s):
        slow += 1
    assert slow <= JUDGED_CALLS


def test_answers_that_are_not_slow_leave_it_closed() -> None:
    breaker = Breaker()
    assert all(call(breaker, SUCCEEDED, float(n), took_s=SLOW_S - 0.01) for n in range(100))


def test_every_second_failure_opens_it_too_but_old_ones_do_not_count() -> None:
    breaker = Breaker()
    for number in range(JUDGED_CALLS):
        call(breaker, FAILED if number % 2 else SUCCEEDED, float(number))
    assert breaker.view.state is State.OPEN
    spread = Breaker()
    for number in range(100):
        call(spread, FAILED if number % 2 else SUCCEEDED, number * WINDOW_S / (JUDGED_CALLS - 1))
    assert spread.view.state is State.CLOSED


def test_no_event_but_those_of_the_table_changes_the_state() -> None:
    assert TRANSITIONS == {
        (State.CLOSED, Event.LIMIT_REACHED): State.OPEN,
        (State.OPEN, Event.RECOVERY_OVER): State.HALF_OPEN,
        (State.OPEN, Event.HOPE): State.HALF_OPEN,
        (State.HALF_OPEN, Event.SUCCEEDED): State.CLOSED,
        (State.HALF_OPEN, Event.FAILED): State.OPEN,
    }


@dataclass
class Reference:
    """The same rules by replay: all that ever happened is kept, and the answer computed from its end."""

    limits: Limits
    state: str = "closed"
    since: float = -math.inf
    history: list[tuple[float, str, bool]] = field(default_factory=list)  # of this closed time
    probing: set[int] = field(default_factory=set)
    era: int = 0

    def turn(self, state: str, now: float) -> None:
        self.state, self.since, self.history, self.probing = state, now, [], set()
        self.era += 1

    def admits(self, number: int, now: float) -> bool:
        if self.state == "open" and now - self.since >= self.limits.recovery_s:
            self.turn("half-open", now)
        if self.state == "half-open" and len(self.probing) < PERMITS:
            self.probing.add(number)
            return True
        return self.state == "closed"

    def ended(self, number: int, era: int, outcome: str, took: float, now: float) -> None:
        if era != self.era:
            return
        if self.state == "half-open":
            self.probing.discard(number)
            if outcome != "withdrawn":
                self.turn("closed" if outcome == "succeeded" else "open", now)
            return
        if outcome != "withdrawn":
            self.history.append((now, outcome, took >= SLOW_S))
            if self.is_over(now):
                self.turn("open", now)

    def is_over(self, now: float) -> bool:
        tail = [outcome for _, outcome, _ in self.history][-self.limits.failures :]
        if tail == ["failed"] * self.limits.failures:
            return True
        window = [each for each in self.history[-2 * JUDGED_CALLS :] if now - each[0] < WINDOW_S]
        failed = len([each for each in window if each[1] == "failed"])
        slow = len([each for each in window if each[2]])
        return len(window) >= JUDGED_CALLS and (2 * failed >= len(window) or 2 * slow >= len(window))


class Calls(RuleBasedStateMachine):
    """Calls begin and end in any order, at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = Limits(5, 60.0)
        self.breaker, self.reference = Breaker(), Reference(self.limits)
        self.now = 0.0
        self.numbers = 0
        self.running: dict[int, tuple[Pass, int, float]] = {}

    @rule(seconds=st.sampled_from([0, 1, 1, 5, 59, 60]))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def begins(self) -> None:
        self.numbers += 1
        admitted = self.breaker.admit(self.limits, self.now)
        assert (admitted is not None) == self.reference.admits(self.numbers, self.now)
        if admitted is not None:
            self.running[self.numbers] = (admitted, self.reference.era, self.now)

    @precondition(lambda self: self.running)
    @rule(outcome=st.sampled_from([SUCCEEDED, FAILED, FAILED, FAILED, WITHDRAWN]), which=st.integers(0, 1000))
    def ends(self, outcome: Outcome, which: int) -> None:
        number = sorted(self.running)[which % len(self.running)]
        admitted, era, began = self.running.pop(number)
        self.breaker.settle(admitted, outcome, self.limits, self.now)
        self.reference.ended(number, era, outcome.value, self.now - began, self.now)

    @rule(outcomes=st.lists(st.sampled_from([SUCCEEDED, FAILED]), max_size=12), took=st.sampled_from([0.0, 0.5, 2.0]))
    def several_come_and_go(self, outcomes: list[Outcome], took: float) -> None:
        for outcome in outcomes:
            self.numbers += 1
            admitted = self.breaker.admit(self.limits, self.now)
            assert (admitted is not None) == self.reference.admits(self.numbers, self.now)
            self.now += took
            if admitted is not None:
                self.breaker.settle(admitted, outcome, self.limits, self.now)
                self.reference.ended(self.numbers, self.reference.era, outcome.value, took, self.now)

    @rule()
    def there_is_hope(self) -> None:
        self.breaker.hope(self.now)
        if self.reference.state == "open":
            self.reference.turn("half-open", self.now)

    @invariant()
    def both_are_in_one_state(self) -> None:
        assert self.breaker.view.state.value == self.reference.state


TestCalls = Calls.TestCase
