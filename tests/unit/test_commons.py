"""Common lexemes are counted now and then, rare ones each time."""

from engram_sidecar.commons import COMMON, KEPT_S, MAX_LEXEMES, Commons


def test_a_common_lexeme_is_known_for_a_while_and_a_rare_one_never() -> None:
    commons = Commons()
    commons.tell("s0", {"war": COMMON, "heron": COMMON - 1, "none": 0}, 10.0)
    asked = ("war", "heron", "none", "new")
    assert commons.known("s0", asked, 10.0 + KEPT_S - 0.1) == {"war": COMMON}
    assert commons.known("s0", asked, 10.0 + KEPT_S) == {}
    assert commons.known("s1", asked, 10.0) == {}, "another shard has other memories"


def test_a_lexeme_that_became_rare_is_counted_again_from_when_that_was_told() -> None:
    commons = Commons()
    commons.tell("s0", {"war": COMMON}, 10.0)
    commons.tell("s0", {"war": 1}, 11.0)
    assert commons.known("s0", ["war"], 11.0) == {}


def test_the_oldest_are_forgotten_first() -> None:
    commons = Commons()
    commons.tell("s0", {"first": COMMON}, 10.0)
    commons.tell("s0", {"again": COMMON}, 10.0)
    commons.tell("s0", {"first": COMMON}, 11.0)
    commons.tell("s0", {str(number): COMMON for number in range(MAX_LEXEMES - 1)}, 12.0)
    assert commons.known("s0", ["first", "again"], 12.0) == {"first": COMMON}
