"""Which searches ask the same."""

import pytest

from engram_sidecar.searches import normalized


@pytest.mark.parametrize(
    ("one", "other", "are_same"),
    [
        ({"query": "Grey  heron ", "user": "ada"}, {"user": "ada", "query": "grey heron"}, True),
        ({"query": "a", "filter": {"x": 1, "y": 2}}, {"filter": {"y": 2, "x": 1}, "query": "a"}, True),
        ({"query": "grey heron"}, {"query": "heron grey"}, False),
        ({"query": "a", "user": "ada"}, {"query": "a", "user": "Ada"}, False),
        ({"query": "a"}, {"query": "a", "limit": 3}, False),
        ({"query": "a"}, {}, False),
    ],
)  # fmt: skip
def test_order_case_and_spaces_make_no_other_search(one: object, other: object, are_same: bool) -> None:
    assert (normalized(one) == normalized(other)) is are_same
