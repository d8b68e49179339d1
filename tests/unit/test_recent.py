"""How calls went: bounded, by the nearest rank, and whenever they were."""

import pytest

from engram_sidecar.recent import KEPT_CALLS, WINDOW_S, Pace, Recent, Spread


def test_of_the_last_thousand_calls_half_took_the_median_or_less() -> None:
    recent = Recent()
    for number in range(1, KEPT_CALLS + 101):
        recent.add("store", float(number), (number - 100) / 1_000, is_success=number % 2 == 0)
    [(pace, spread)] = recent.spreads().values()
    assert [pace.calls, pace.mean_ms, pace.error_percent] == pytest.approx([KEPT_CALLS, 500.5, 50.0])
    assert [spread.p50_ms, spread.p95_ms, spread.p99_ms] == pytest.approx([500.0, 950.0, 990.0])


def test_one_call_is_its_own_median_and_its_own_slowest() -> None:
    recent = Recent()
    recent.add("search", 0.0, 0.25, is_success=True)
    assert recent.spreads() == {"search": (Pace(1, 250.0, 0.0), Spread(250.0, 250.0, 250.0))}


def test_what_health_forgets_the_last_calls_still_show() -> None:
    recent = Recent()
    recent.add("store", 0.0, 0.5, is_success=False)
    recent.add("store", WINDOW_S, 0.1, is_success=True)
    assert recent.paces(WINDOW_S)["store"].calls == 1
    assert recent.paces(2 * WINDOW_S + 1) == {}
    assert recent.spreads()["store"][0].calls == 2
