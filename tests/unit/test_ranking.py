"""Ranking: rare words weigh more and find, weights never exceed a perfect match, answers of shards merge exactly."""

import math
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_contract.slots import MemoryId, uuid7
from engram_sidecar.ranking import FREQUENCY_CAP, idf, merge_best, merge_newest, rank
from engram_sidecar.records import Hit, Memory

START = datetime(2026, 1, 1, tzinfo=UTC)

frequencies = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.integers(0, 3_000), max_size=8)
sizes = st.integers(0, 1_000_000)


def hit(minute: int, number: int, score: float | None = None, shard: str = "s0") -> Hit:
    moment = START + timedelta(minutes=minute)
    memory = Memory(
        MemoryId(number % 16_384, uuid7(minute, number.to_bytes(10))), (), None, "episodic", None, None, None,
        "", "null", None, moment, moment, None, 1,
    )  # fmt: skip
    return Hit(memory, shard, score)


# Few minutes and scores, so that ties are usual; a number is a memory, so each comes once.
hits = st.lists(
    st.builds(hit, st.integers(0, 3), st.integers(0, 50), st.sampled_from([0.0, 0.5, 1.0])),
    unique_by=lambda found: found.memory.id.uuid,
)


# ------------------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize(
    ("memories", "frequency", "weight"),
    [
        (1, 1, math.log(1 + 0.5 / 1.5)),
        (1, 0, math.log(1 + 1.5 / 0.5)),
        (1000, 10, math.log(1 + 990.5 / 10.5)),
        (0, 5, math.log(1 + 0.5 / 5.5)),
        (0, 0, math.log(2)),
    ],
)
def test_the_weight_is_the_inverse_document_frequency_of_bm25(memories: int, frequency: int, weight: float) -> None:
    assert idf(memories, frequency) == pytest.approx(weight)


@settings(max_examples=50)
@given(sizes, st.integers(0, 10_000), st.integers(1, 10_000))
def test_a_rarer_lexeme_weighs_more_and_none_less_than_nothing(memories: int, frequency: int, more: int) -> None:
    assert idf(memories, frequency) > idf(memories, frequency + more) > 0


@settings(max_examples=30)
@given(sizes, frequencies)
def test_weights_sum_to_one_over_all_lexemes_of_the_query(memories: int, counted: dict[str, int]) -> None:
    ranking = rank(memories, counted)
    missing = sum(idf(memories, 0) for frequency in counted.values() if frequency == 0)
    total = sum(idf(memories, frequency) for frequency in counted.values())
    assert ranking.weights.keys() == {lexeme for lexeme, frequency in counted.items() if frequency}
    assert sum(ranking.weights.values()) <= 1 + 1e-9
    if total:
        assert sum(ranking.weights.values()) == pytest.approx(1 - missing / total)


@settings(max_examples=30)
@given(sizes, frequencies)
def test_finders_are_the_rarest_and_together_bounded(memories: int, counted: dict[str, int]) -> None:
    ranking = rank(memories, counted)
    known = sorted((lexeme for lexeme in counted if counted[lexeme]), key=lambda lexeme: (counted[lexeme], lexeme))
    assert list(ranking.finders) == known[: len(ranking.finders)]
    assert bool(ranking.finders) == bool(known)
    found = sum(counted[lexeme] for lexeme in ranking.finders)
    assert found <= FREQUENCY_CAP or len(ranking.finders) == 1
    if len(ranking.finders) < len(known):
        assert found + counted[known[len(ranking.finders)]] > FREQUENCY_CAP


@pytest.mark.parametrize(
    ("counted", "finders"),
    [
        ({}, ()),
        ({"a": 0}, ()),
        ({"a": 0, "b": 1}, ("b",)),
        ({"common": FREQUENCY_CAP + 1}, ("common",)),
        ({"common": FREQUENCY_CAP, "rare": 1}, ("rare",)),
        ({"common": FREQUENCY_CAP - 1, "rare": 1}, ("rare", "common")),
        ({"b": 5, "a": 5}, ("a", "b")),
    ],
)
def test_a_common_lexeme_finds_only_where_no_rarer_one_does(counted: dict[str, int], finders: tuple[str, ...]) -> None:
    assert rank(10_000, counted).finders == finders


def test_a_query_whose_every_lexeme_is_known_can_score_one() -> None:
    assert sum(rank(100, {"a": 1, "b": 50, "c": 100}).weights.values()) == pytest.approx(1)


# --------------------------------------------------------------------------------------------------------------- merge


def test_the_best_come_first_and_of_equals_the_newer() -> None:
    best, newer, older, least = hit(0, 1, 0.9), hit(5, 2, 0.5), hit(4, 3, 0.5), hit(9, 4, 0.1)
    assert merge_best([least, older, best, newer], 10) == (best, newer, older, least)
    assert merge_best([least, older, best, newer], 2) == (best, newer)


def test_of_the_same_time_the_higher_uuid_comes_first() -> None:
    low, high = hit(1, 1, 0.5), hit(1, 2, 0.5)
    assert merge_best([low, high], 2) == merge_newest([low, high], 2) == (high, low)
    assert low.memory.id.uuid < high.memory.id.uuid


def test_a_hit_without_a_score_counts_as_nought() -> None:
    unscored, scored = hit(9, 1), hit(0, 2, 0.1)
    assert merge_best([unscored, scored], 2) == (scored, unscored)


def test_the_newest_come_first_whatever_the_score() -> None:
    assert merge_newest([hit(1, 1, 1.0), hit(2, 2, 0.0)], 1) == (hit(2, 2, 0.0),)


@pytest.mark.parametrize("limit", [0, 1, 5])
def test_of_nothing_comes_nothing(limit: int) -> None:
    assert merge_best([], limit) == merge_newest([], limit) == ()


@settings(max_examples=30)
@given(hits, st.randoms(use_true_random=False), st.integers(1, 10))
def test_the_order_of_the_answers_makes_no_difference(found: list[Hit], random: object, limit: int) -> None:
    mixed = found.copy()
    random.shuffle(mixed)  # type: ignore[attr-defined]  # hypothesis says no type for its random
    assert merge_best(mixed, limit) == merge_best(found, limit)
    assert merge_newest(mixed, limit) == merge_newest(found, limit)


@settings(max_examples=30)
@given(hits, st.integers(1, 4), st.integers(1, 10))
def test_merging_each_shards_first_ones_is_merging_all(found: list[Hit], parts: int, limit: int) -> None:
    shards = [found[at::parts] for at in range(parts)]
    for merge in (merge_best, merge_newest):
        assert merge([one for shard in shards for one in merge(shard, limit)], limit) == merge(found, limit)


@settings(max_examples=30)
@given(hits)
def test_neighbours_are_in_order(found: list[Hit]) -> None:
    def place(one: Hit) -> tuple[float, datetime, UUID]:
        return (one.score or 0.0, one.memory.created, one.memory.id.uuid)

    merged = merge_best(found, len(found) or 1)
    assert sorted(merged, key=place, reverse=True) == list(merged)
    assert len(merged) == len(found)
