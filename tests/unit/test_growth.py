"""How fast what is stored grows: between two looks, over a day at most."""

import pytest

from engram_sidecar.growth import MAX_LOOKS, SPAN_S, Growth, Rate


def test_one_look_says_nothing_of_growth() -> None:
    growth = Growth()
    assert growth.rate() is None
    growth.add(10.0, 5, 500)
    assert growth.rate() is None


@pytest.mark.parametrize(("memories", "size_bytes"), [(15, 700), (5, 500), (0, 0)])
def test_it_is_the_mean_of_an_hour_and_may_fall(memories: int, size_bytes: int) -> None:
    growth = Growth()
    growth.add(10.0, 5, 500)
    growth.add(900.0, 99, 9_999)
    growth.add(1_810.0, memories, size_bytes)
    assert growth.rate() == Rate(2.0 * (memories - 5), 2.0 * (size_bytes - 500), 1_800.0)


def test_looks_are_bounded_in_time_and_number() -> None:
    growth = Growth()
    for number in range(2 * MAX_LOOKS):
        growth.add(number, number, 0)
    rate = growth.rate()
    assert rate is not None
    assert rate.over_s == MAX_LOOKS - 1
    growth.add(2 * MAX_LOOKS + SPAN_S - 1, 0, 0)
    assert growth.rate() is not None
    growth.add(10 * SPAN_S, 0, 0)
    assert growth.rate() is None, "the looks of before are too old"
