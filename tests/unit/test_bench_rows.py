"""Figures: what holds, and what the file of results keeps."""

import json
from pathlib import Path

import pytest

from rows import Row, keep


@pytest.mark.parametrize(
    ("row", "holds"),
    [
        (Row.at_most("a", 2.0, "ratio", 2, "b"), True),
        (Row.at_most("a", 2.1, "ratio", 2, "b"), False),
        (Row.at_least("a", 2.0, "ratio", 2, "b"), True),
        (Row.at_least("a", 1.9, "ratio", 2, "b"), False),
        (Row.shown("a", 1.9, "ms", "b"), True),
    ],
)
def test_a_row_says_whether_it_keeps_its_bar(row: Row, holds: bool) -> None:
    assert row.holds is holds


def test_a_bar_is_judged_before_rounding() -> None:
    assert not Row.at_most("a", 2.00001, "ratio", 2, "b").holds


def test_results_are_merged_by_name_and_sorted(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    keep(path, [Row.shown("b", 1.0, "ms", ""), Row.shown("c", 1.0, "ms", "")])
    keep(path, [Row.shown("b", 2.0, "ms", ""), Row.shown("a", 3.123456, "ms", "")])
    assert [(row["name"], row["value"]) for row in json.loads(path.read_text())] == [
        ("a", 3.123),
        ("b", 2.0),
        ("c", 1.0),
    ]
    assert set(json.loads(path.read_text())[0]) == {"name", "value", "unit", "bar", "holds", "peer"}
    assert list(tmp_path.iterdir()) == [path]
