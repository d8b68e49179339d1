"""Chance that spreads load: within its bounds, and of nobody else's making."""

import random

from engram_sidecar.chance import at_most, drawn, jittered

TIMES = 1_000


def test_what_is_drawn_is_within_its_bounds_and_spread() -> None:
    found = [jittered(10.0, 0.2) for _ in range(TIMES)]
    assert 8.0 <= min(found) < 9.0
    assert 11.0 < max(found) <= 12.0
    found = [at_most(3.0) for _ in range(TIMES)]
    assert 0.0 <= min(found) < 1.0
    assert 2.0 < max(found) <= 3.0
    assert {tuple(drawn("ab", 2)) for _ in range(TIMES)} == {("a", "b"), ("b", "a")}
    assert drawn("a", 2) == ["a"]


def test_it_neither_changes_nor_follows_what_others_draw() -> None:
    random.seed(1)
    before = random.getstate()
    first = jittered(1.0, 0.5)
    assert random.getstate() == before
    random.seed(1)
    assert jittered(1.0, 0.5) != first
