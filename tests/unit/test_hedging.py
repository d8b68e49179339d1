"""When a read is late: by what reads of its kind took of late, within bounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_sidecar.hedging import (
    COUNTED_READS,
    FIRST_LATE_S,
    KEPT_READS,
    LEAST_LATE_S,
    MOST_LATE_S,
    WINDOW_S,
    Lateness,
)

TIMES = st.lists(st.floats(0, 10), min_size=KEPT_READS, max_size=KEPT_READS)


def measured(times_s: list[float], kind: str = "get", now_s: float = 0.0) -> Lateness:
    lateness = Lateness()
    for took_s in times_s:
        lateness.observe(kind, took_s, now_s)
    return lateness


@given(TIMES)
def test_of_a_hundred_reads_at_most_five_were_late(times_s: list[float]) -> None:
    late_s = measured(times_s).late_s("get", 1.0)
    assert LEAST_LATE_S <= late_s <= MOST_LATE_S
    assert late_s == MOST_LATE_S or sum(took_s > late_s for took_s in times_s) <= KEPT_READS * 0.05
    assert late_s == LEAST_LATE_S or sum(took_s >= late_s for took_s in times_s) >= KEPT_READS * 0.05


@pytest.mark.parametrize(("took_s", "late_s"), [(0.0004, LEAST_LATE_S), (0.2, 0.2), (30.0, MOST_LATE_S)])
def test_late_is_neither_at_once_nor_never(took_s: float, late_s: float) -> None:
    assert measured([took_s] * COUNTED_READS).late_s("get", 1.0) == late_s


def test_before_reads_were_measured_and_long_after_nothing_is_known() -> None:
    assert Lateness().late_s("get", 0.0) == FIRST_LATE_S
    assert measured([0.01] * (COUNTED_READS - 1)).late_s("get", 1.0) == FIRST_LATE_S
    known = measured([0.01] * COUNTED_READS)
    assert known.late_s("get", WINDOW_S) == 0.01
    assert known.late_s("get", WINDOW_S + 1) == FIRST_LATE_S
    known.observe("get", 0.5, WINDOW_S + 1)
    assert known.late_s("get", WINDOW_S + 1) == FIRST_LATE_S, "what was known before is gone"


def test_kinds_are_measured_apart() -> None:
    lateness = measured([0.3] * KEPT_READS, "search")
    assert lateness.late_s("search", 1.0) == 0.3
    assert lateness.late_s("get", 1.0) == FIRST_LATE_S


def test_a_shard_that_became_slow_as_a_whole_has_no_late_reads_soon() -> None:
    lateness = measured([0.01] * KEPT_READS)
    assert lateness.late_s("get", 1.0) == 0.01
    for _ in range(COUNTED_READS):
        lateness.observe("get", 0.4, 1.0)
    assert lateness.late_s("get", 1.0) == 0.4
