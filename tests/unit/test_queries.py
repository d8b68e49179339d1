"""The named queries: the parser, unique names, parameters without gaps, none that nobody asks."""

import re
from pathlib import Path

import pytest

from engram_sidecar.queries import QUERIES, parse_queries


def test_a_query_is_what_stands_between_two_names() -> None:
    text = "-- a heading\n\n-- name: one\n-- What it answers.\nSELECT 1;\n\n-- name: two\nSELECT\n    '-- name: x';\n"
    assert parse_queries(text) == {"one": "-- What it answers.\nSELECT 1", "two": "SELECT\n    '-- name: x'"}


@pytest.mark.parametrize("text", ["", "SELECT 1;", "-- name:one\nSELECT 1", "  -- name: one\n", "-- name: one two\n"])
def test_without_a_name_there_is_no_query(text: str) -> None:
    assert parse_queries(text) == {}


def test_a_name_that_stands_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"stands twice in \['one', 'one', 'two'\]"):
        parse_queries("-- name: two\nSELECT 2;\n-- name: one\nSELECT 1;\n-- name: one\nSELECT 3;\n")


def test_the_file_holds_one_statement_under_each_name(checkout: Path) -> None:
    text = (checkout / "sidecar/engram_sidecar/queries.sql").read_text("utf-8")
    assert text.count("\n-- name:") == len(QUERIES) > 0
    assert all(sql and ";" not in sql for sql in map(without_comments, QUERIES.values()))


@pytest.mark.parametrize("name", QUERIES)
def test_parameters_are_numbered_without_a_gap(name: str) -> None:
    numbers = {int(number) for number in re.findall(r"\$(\d+)", without_comments(QUERIES[name]))}
    assert numbers == set(range(1, len(numbers) + 1))


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_says_what_it_answers_and_names_no_tenant(name: str) -> None:
    assert QUERIES[name].startswith("-- ")
    assert not re.search(r"tenant\s*=\s*\$", QUERIES[name])


def test_every_query_is_asked_and_every_question_is_a_query(checkout: Path) -> None:
    source = "".join(path.read_text("utf-8") for path in (checkout / "sidecar/engram_sidecar").glob("*.py"))
    assert {name for name in QUERIES if f'"{name}"' in source} == set(QUERIES)
    asked = set(re.findall(r'\b(?:run|read|write)\(\s*(?:place,\s*)?"(\w+)"', source))
    assert asked
    assert asked <= set(QUERIES)


def without_comments(sql: str) -> str:
    return re.sub(r"--.*", "", sql).strip()
