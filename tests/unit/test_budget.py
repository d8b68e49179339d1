"""The budget of retries: never more than its share, whatever the moments of requests and failures are."""

from hypothesis import given
from hypothesis import strategies as st

from engram_sidecar.budget import BURST, FLOOR_PER_S, Budget


@given(
    st.lists(st.tuples(st.floats(0, 3), st.integers(0, 5), st.integers(0, 5)), max_size=60),
    st.sampled_from([0, 10, 50]),
)
def test_no_more_is_repeated_than_the_share_and_the_floor(turns: list[tuple[float, int, int]], percent: int) -> None:
    budget, now_s, requests, repeated = Budget(), 100.0, 0, 0
    for passed_s, made, failed in turns:
        now_s += passed_s
        for _ in range(made):
            budget.earn(percent, now_s)
        requests += made
        repeated += sum(budget.spend(now_s) for _ in range(failed))
        assert repeated <= requests * percent / 100 + (now_s - 100.0) * FLOOR_PER_S + BURST


def test_when_everything_fails_a_tenth_more_is_asked() -> None:
    budget = Budget()
    attempts = 0
    for number in range(10_000):
        now_s = number / 200  # at 200 requests a second
        budget.earn(10, now_s)
        attempts += 1 + budget.spend(now_s)
    assert 1.05 <= attempts / 10_000 <= 1.2


def test_a_pod_that_asks_rarely_may_repeat_too() -> None:
    budget = Budget()
    for number in range(20):
        budget.earn(0, number * 60.0)
        assert budget.spend(number * 60.0)
