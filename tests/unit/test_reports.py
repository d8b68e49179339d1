"""Usage and audit over several shards: sums, order, and pages that miss nothing and repeat nothing."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_contract.policy import Quota
from engram_sidecar.errors import BadRequest
from engram_sidecar.records import ShardFailure
from engram_sidecar.reports import (
    NAMESPACES_OF_SHARD,
    Encryption,
    Mark,
    Recorded,
    Usage,
    audit_document,
    largest,
    namespaces_document,
    newest,
    usage_document,
)

UNDER_TWO = Encryption(is_enabled=True, key_version=2, stale={1: 5, 0: 7})
NOON = datetime(2026, 5, 31, 12, tzinfo=UTC)
SHARDS = ("s0", "s1", "s2")
MARKS = st.builds(
    Mark,
    st.integers(0, 3).map(lambda n: NOON + timedelta(microseconds=n)),
    st.integers(1, 4),
    st.sampled_from(SHARDS),
)


def test_namespaces_are_summed_over_shards_and_the_fullest_come_first() -> None:
    found = largest([[(("a",), 5), (("b", "c"), 4)], [(("b", "c"), 3)], [((), 5)]], ())
    assert namespaces_document(found, 2) == {
        "largest": [{"namespace": ["b", "c"], "memories": 7}, {"namespace": [], "memories": 5}],
        "exact": True,
        "complete": True,
        "failed_shards": [],
    }
    assert namespaces_document(largest([], ()), 2)["largest"] == []


@pytest.mark.parametrize(("extra", "is_exact"), [(0, True), (1, False)])
def test_a_shard_that_has_more_namespaces_than_it_told_of_makes_sums_a_lower_bound(extra: int, is_exact: bool) -> None:
    of_shard = [((f"n{number}",), 1) for number in range(NAMESPACES_OF_SHARD + extra)]
    document = namespaces_document(largest([of_shard], ()), NAMESPACES_OF_SHARD + 1)
    assert document["exact"] is is_exact
    assert len(document["largest"]) == NAMESPACES_OF_SHARD  # type: ignore[arg-type]


def test_without_a_shard_no_count_of_namespaces_is_exact() -> None:
    document = namespaces_document(largest([[(("a",), 1)]], (ShardFailure("s1", "gone"),)), 5)
    assert (document["exact"], document["complete"]) == (False, False)
    assert document["failed_shards"] == [{"shard": "s1", "reason": "gone"}]


def test_usage_is_summed_over_shards_by_type() -> None:
    found = [Usage("semantic", 1, 10), Usage("episodic", 2, 20), Usage("episodic", 3, 30)]
    document = usage_document(Quota(8, 100, 10), found, UNDER_TWO, (ShardFailure("s1", "gone"),))
    assert document == {
        "memories": {"used": 6, "limit": 8, "remaining": 2, "percent": 75.0},
        "bytes": {"used": 60, "limit": 100, "remaining": 40, "percent": 60.0},
        "types": [
            {"type": "episodic", "memories": 5, "bytes": 50},
            {"type": "semantic", "memories": 1, "bytes": 10},
        ],
        "encryption": {
            "enabled": True,
            "key_version": 2,
            "stale": [{"key_version": 0, "memories": 7}, {"key_version": 1, "memories": 5}],
        },
        "complete": False,
        "failed_shards": [{"shard": "s1", "reason": "gone"}],
    }


@pytest.mark.parametrize(("used", "limit", "percent"), [(3, 2, 150.0), (0, 0, 100.0)])
def test_over_the_quota_nothing_remains(used: int, limit: int, percent: float) -> None:
    document = usage_document(Quota(limit, 1, 1), [Usage("a", used, 0)], UNDER_TWO, ())
    assert document["memories"] == {"used": used, "limit": limit, "remaining": 0, "percent": percent}


@given(st.sets(MARKS), st.integers(1, 5))
def test_pages_of_any_size_give_every_entry_once_newest_first(marks: set[Mark], limit: int) -> None:
    """Each shard answers as its function does: below (time, number), the newest first."""

    def ask(shard: str, before: Mark | None) -> list[Recorded]:
        own = sorted((mark for mark in marks if mark.shard == shard), reverse=True)
        below = [mark for mark in own if before is None or (mark.at, mark.number) < before.bound_for(shard)]
        return [Recorded(mark, NOON, "{}") for mark in below[: limit + 1]]

    seen: list[Mark] = []
    before: Mark | None = None
    while True:
        page = newest([each for shard in SHARDS for each in ask(shard, before)], limit, ())
        seen += [each.mark for each in page.entries]
        if page.next is None:
            break
        before = Mark.parse(str(page.next))
    assert seen == sorted(marks, reverse=True)


@pytest.mark.parametrize("text", ["", "x", "a" * 5000, "MS4y", "LTk5OTk5OTk5OTk5OTk5OTk5OTkuMS5zMA", "é"])
def test_a_mark_that_is_none_of_ours_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="before: take it from"):
        Mark.parse(text)


def test_an_entry_is_shown_with_its_times() -> None:
    recorded = Recorded(Mark(NOON, 1, "s0"), NOON, '{"operation": "store", "status": 201}')
    document = audit_document(newest([recorded], 5, ()))
    noon = "2026-05-31T12:00:00.000000Z"
    assert document["entries"] == [{"at": noon, "recorded": noon, "operation": "store", "status": 201}]
