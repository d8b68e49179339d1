"""Conditions on a value: the sidecar's judging against Postgres' own jsonpath, over the same filters and values."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from engram_sidecar.filters import parse_filter
from engram_sidecar.judging import holds, parse_value
from tests.harness import RealServer
from tests.unit.values import as_json, filters_and_values

SEEN = "jsonb_build_object('value', $1::jsonb)"
ASKED = f"SELECT coalesce(jsonb_path_match({SEEN}, $2::text::jsonpath, $3::jsonb, true), false)"
STORED = "SELECT $1::jsonb::text"


@pytest.fixture(scope="module")
def ask(servers: tuple[RealServer, RealServer]) -> Iterator[Callable[..., Any]]:
    """Asks Postgres for one value."""
    loop = asyncio.new_event_loop()
    connection = loop.run_until_complete(servers[0].connect("postgres"))
    yield lambda *asked: loop.run_until_complete(connection.fetchval(*asked))
    loop.run_until_complete(connection.close())
    loop.close()


@settings(max_examples=1_500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(filters_and_values())
@example(({"value": {"/a": {"lt": "\U00010000"}}}, {"a": "\uffff"}))
@example(({"value": {"/a": {"gte": None}}}, {"a": None}))
@example(({"value": {"/a": {"ne": 1}}}, {"a": [1]}))
def test_the_sidecar_says_what_postgres_says(ask: Callable[..., Any], case: tuple[dict[str, object], object]) -> None:
    document, value = case
    found, text = parse_filter(document), as_json(value)
    theirs = ask(ASKED, text, found.path, found.variables)
    assert holds(found.conditions, parse_value(text)) is theirs
    # What was in the clear before it was sealed was printed by jsonb.
    assert holds(found.conditions, parse_value(ask(STORED, text))) is theirs


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\x00")),
    st.text(st.characters(codec="utf-8", exclude_characters="\x00")),
)
def test_strings_are_ordered_alike(ask: Callable[..., Any], one: str, other: str) -> None:
    for operator in ("eq", "lt", "gte"):
        found = parse_filter({"value": {"a": {operator: other}}})
        text = json.dumps({"a": one}, ensure_ascii=False)
        assert holds(found.conditions, parse_value(text)) is ask(ASKED, text, found.path, found.variables)
