"""Conditions on a value judged here, and the tokens that spare opening most values that do not meet them.

That the judging says what Postgres says is tests/integration/test_encryption_filters.py.
"""

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings

from engram_sidecar.filters import parse_filter
from engram_sidecar.judging import MAX_PRUNING, MAX_TOKENS, Tokens, holds, parse_value
from engram_sidecar.terms import Lexer
from tests.unit.values import filters_and_values

TOKENS = Tokens(bytes(32))


def judged(condition: object, value: object) -> bool:
    found = parse_filter({"value": condition})
    return holds(found.conditions, parse_value(json.dumps(value)))


@pytest.mark.parametrize(
    ("condition", "value", "verdict"),
    [
        ({"a": 1}, {"a": 1}, True),
        ({"a": 1}, {"a": 1.0}, True),
        ({"a": 1.0}, {"a": 1}, True),
        ({"a": 1}, {"a": "1"}, False),
        ({"a": 1}, {"a": True}, False),
        ({"a": True}, {"a": 1}, False),
        ({"a": "x"}, {"a": "x"}, True),
        ({"a": None}, {"a": None}, True),
        ({"a": None}, {}, False),
        ({"a": {"ne": None}}, {"a": None}, False),
        ({"a": {"ne": None}}, {}, True),
        ({"a": {"ne": 1}}, {"a": "1"}, True),
        ({"a": {"gt": 1}}, {"a": 1.5}, True),
        ({"a": {"gt": 1}}, {"a": "2"}, False),
        ({"a": {"gte": None}}, {"a": None}, True),
        ({"a": {"gt": None}}, {"a": 1}, False),
        ({"a": {"lt": True}}, {"a": False}, True),
        ({"a": {"gt": "a"}}, {"a": "b"}, True),
        ({"a": {"lt": "\uffff"}}, {"a": "\U00010000"}, False),  # by code point, not by UTF-16 unit
        ({"a": {"in": []}}, {"a": 1}, False),
        ({"a": {"in": [3, 1]}}, {"a": 1}, True),
        ({"/a/b": 1}, {"a": {"b": 1}}, True),
        ({"/a/0": 1}, {"a": [1]}, True),
        ({"/a/1": 1}, {"a": [1]}, False),
        ({"/a/0": 1}, {"a": {"0": 1}}, False),
        ({"0": 1}, {"0": 1}, True),
        ({"a": 1}, {"a": [1]}, False),
        ({"a": {"ne": 1}}, {"a": [1]}, True),
        ({"a": 1}, [], False),
        ({"a": 1}, None, False),
        ({"a": 1e22}, {"a": 10**22}, True),
        ({"a": 0.1}, {"a": 0.1}, True),
        ({"a": 9007199254740993}, {"a": 9007199254740992.0}, False),
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, False),
    ],
    ids=str,
)
def test_a_condition_holds_or_not(condition: object, value: object, verdict: bool) -> None:
    assert judged(condition, value) is verdict


# -------------------------------------------------------------------------------------------------------------- tokens


def is_kept(pruning: str | None, tokens: list[str]) -> bool:
    """What `terms @@ pruning` says: groups of alternatives, all of which must be met."""
    if pruning is None:
        return True
    groups = [re.findall(r"'([^']*)'", group) for group in re.findall(r"\(([^()]*)\)", pruning)]
    return all(set(group) & set(tokens) for group in groups)


@settings(max_examples=100)
@given(filters_and_values())
def test_what_meets_the_conditions_is_never_pruned(case: tuple[dict[str, object], object]) -> None:
    document, value = case
    conditions = parse_filter(document).conditions
    text = json.dumps(value)
    if holds(conditions, parse_value(text)):
        assert is_kept(TOKENS.pruning(conditions), TOKENS.of_value(text))


@pytest.mark.parametrize("written", ["1", "1.0", "1e0", "10e-1", "0.1e1", "1.000"])
def test_equal_numbers_are_one_token(written: str) -> None:
    assert TOKENS.of_value(f'{{"a": {written}}}') == TOKENS.of_value('{"a": 1}')


@pytest.mark.parametrize(
    "other", ['{"a": "1"}', '{"a": true}', '{"a": -1}', '{"a": 10}', '{"b": 1}', '{"a": [1]}', '{"a": {"a": 1}}']
)
def test_another_scalar_or_another_place_is_another_token(other: str) -> None:
    assert TOKENS.of_value(other) != TOKENS.of_value('{"a": 1}')


@pytest.mark.parametrize(("one", "other"), [('{"0": 1}', "[1]"), ('{"a": {"b": 1}}', '{"a\\"b": 1}'), ('{"": 1}', "1")])
def test_ways_that_look_alike_are_not(one: str, other: str) -> None:
    assert TOKENS.of_value(one) != TOKENS.of_value(other)


def test_tokens_are_the_tenants_own_and_no_words() -> None:
    [token] = TOKENS.of_value('{"a": "zeppelin"}')
    assert re.fullmatch(r"=[A-Za-z0-9_-]{12}", token)
    assert [token] != Tokens(bytes([1]) * 32).of_value('{"a": "zeppelin"}')
    [word] = Lexer("t_a", bytes(32)).count(["zeppelin"])
    assert not word.startswith("=")
    assert "zeppelin" not in token


def test_a_value_of_many_scalars_stays_a_candidate_of_every_question() -> None:
    many = json.dumps({f"k{n}": n for n in range(MAX_TOKENS + 1)})
    [token] = TOKENS.of_value(many)
    most = json.dumps({f"k{n}": n for n in range(MAX_TOKENS)})
    assert len(TOKENS.of_value(most)) == MAX_TOKENS
    pruning = TOKENS.pruning(parse_filter({"value": {"k7": 7}}).conditions)
    assert is_kept(pruning, [token])
    assert not is_kept(pruning, [])


@pytest.mark.parametrize(
    "condition", [{"gt": 1}, {"ne": 1}, {"in": list(range(MAX_PRUNING + 1))}, {"lt": "x", "gte": "a"}], ids=str
)
def test_what_tokens_cannot_tell_prunes_nothing(condition: object) -> None:
    assert TOKENS.pruning(parse_filter({"value": {"a": condition}}).conditions) is None


def test_conditions_on_other_fields_prune_nothing() -> None:
    assert TOKENS.pruning(parse_filter({"key": "k"}).conditions) is None


def test_a_filter_knows_its_parts() -> None:
    found = parse_filter({"type": "a", "value": {"b": 1}, "user": "c"})
    assert found.path == 'strict ($.type == $v0) && ($.value."b" == $v1) && ($.user == $v2)'
    assert found.fields_path == "strict ($.type == $v0) && ($.user == $v2)"
    assert (found.variables, found.fields_variables) == ('{"v0": "a", "v1": 1, "v2": "c"}', '{"v0": "a", "v2": "c"}')
    assert [(each.steps, each.operator, each.operand) for each in found.conditions] == [(("b",), "eq", 1)]


def test_a_value_without_scalars_has_no_tokens() -> None:
    values: list[Any] = [None, "x", 1, {}, [], {"a": {}}]
    assert [TOKENS.of_value(json.dumps(value)) for value in values] == [[]] * len(values)
