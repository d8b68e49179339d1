"""Filters: the predicate that each condition makes, operands that never become text of it, flaws named by pointers."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_sidecar import filters
from engram_sidecar.errors import Unprocessable
from engram_sidecar.filters import MAX_ALTERNATIVES, MAX_CONDITIONS, MAX_NAME_BYTES, MAX_STEPS

NOON = "2026-05-31T12:00:00.000000Z"
texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"))
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)


def parse_filter(document: object, place: str = "/filter") -> tuple[str | None, str]:
    """The predicate over all of a memory and its variables."""
    found = filters.parse_filter(document, place)
    return found.path, found.variables


def flaw_of(document: object, place: str = "/filter") -> tuple[str, str]:
    with pytest.raises(Unprocessable) as caught:
        parse_filter(document, place)
    [flaw] = caught.value.flaws
    assert not flaw.is_parameter
    return flaw.place, flaw.detail


@pytest.mark.parametrize(
    ("document", "predicate", "variables"),
    [
        ({"importance": 0.5}, "($.importance == $v0)", [0.5]),
        ({"importance": {"eq": 1}}, "($.importance == $v0)", [1]),
        ({"importance": {"gt": 0.5}}, "($.importance > $v0)", [0.5]),
        ({"importance": {"gte": 0.5}}, "($.importance >= $v0)", [0.5]),
        ({"importance": {"lt": 0.5}}, "($.importance < $v0)", [0.5]),
        ({"importance": {"lte": 0.5}}, "($.importance <= $v0)", [0.5]),
        (
            {"importance": {"ne": 0.5}},
            "(!($.importance == $v0) || ($.importance == $v0) is unknown)",
            [0.5],
        ),
        ({"importance": {"in": [0, 1]}}, "($.importance == $v0 || $.importance == $v1)", [0, 1]),
        ({"importance": {"in": []}}, "(1 == 2)", []),
        ({"importance": None}, "($.importance == $v0)", [None]),
        ({"importance": {"gt": 0, "lte": 1}}, "($.importance > $v0) && ($.importance <= $v1)", [0, 1]),
        ({"type": "semantic"}, "($.type == $v0)", ["semantic"]),
        ({"user": "ada"}, "($.user == $v0)", ["ada"]),
        ({"agent": {"ne": "a"}}, "(!($.agent == $v0) || ($.agent == $v0) is unknown)", ["a"]),
        ({"session": {"in": ["s", None]}}, "($.session == $v0 || $.session == $v1)", ["s", None]),
        ({"key": {"gte": "a"}}, "($.key >= $v0)", ["a"]),
        ({"created": {"lt": "2026-05-31T12:00:00Z"}}, "($.created < $v0)", [NOON]),
        ({"updated": "2026-05-31T14:00:00+02:00"}, "($.updated == $v0)", [NOON]),
        ({"expires": None}, "($.expires == $v0)", [None]),
        ({"expires": {"in": [None, NOON]}}, "($.expires == $v0 || $.expires == $v1)", [None, NOON]),
        ({"value": {"age": {"gt": 9}}}, '($.value."age" > $v0)', [9]),
        ({"value": {"age": "9"}}, '($.value."age" == $v0)', ["9"]),
        ({"value": {"on": True, "off": False}}, '($.value."on" == $v0) && ($.value."off" == $v1)', [True, False]),
        ({"value": {"n": None}}, '($.value."n" == $v0)', [None]),
        ({"value": {"at": "2026-05-31T14:00:00+02:00"}}, '($.value."at" == $v0)', ["2026-05-31T14:00:00+02:00"]),
        ({"type": "a", "value": {"b": 1}, "user": "c"}, '($.type == $v0) && ($.value."b" == $v1) && ($.user == $v2)',
         ["a", 1, "c"]),
    ],
    ids=json.dumps,
)  # fmt: skip
def test_a_condition_becomes_a_predicate_over_variables(
    document: object, predicate: str, variables: list[object]
) -> None:
    path, found = parse_filter(document)
    assert path == f"strict {predicate}"
    assert json.loads(found) == {f"v{at}": value for at, value in enumerate(variables)}
    assert [type(v) for v in json.loads(found).values()] == [type(v) for v in variables]


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("a.b", '."a.b"'),
        ("", '.""'),
        ("0", '."0"'),
        ("a/b", '."a/b"'),
        ("~", '."~"'),
        ("*", '."*"'),
        ("\u00e9", '."\u00e9"'),
        ("/", '.""'),
        ("/a", '."a"'),
        ("/a/b", '."a"."b"'),
        ("/a//b", '."a".""."b"'),
        ("/list/0", '."list"[0]'),
        ("/list/10/x", '."list"[10]."x"'),
        ("/list/01", '."list"."01"'),
        ("/list/-1", '."list"."-1"'),
        ("/list/-", '."list"."-"'),
        ("/list/999999999", '."list"[999999999]'),
        ("/list/1000000000", '."list"."1000000000"'),
        ("/\u0663", '."\u0663"'),
        # RFC 6901 section 5
        ("/a~1b", '."a/b"'),
        ("/m~0n", '."m~n"'),
        ("/~01", '."~1"'),
        ("/c%d", '."c%d"'),
        ("/i\\j", '."i\\\\j"'),
        ('/k"l', '."k\\"l"'),
        ("/ ", '." "'),
    ],
)
def test_a_member_is_named_plainly_or_by_a_json_pointer(name: str, steps: str) -> None:
    assert parse_filter({"value": {name: 1}})[0] == f"strict ($.value{steps} == $v0)"


@pytest.mark.parametrize("name", ["/~", "/a~2b", "/a/~x", "/~~01"])
def test_a_tilde_stands_only_in_an_escape(name: str) -> None:
    place, detail = flaw_of({"value": {name: 1}})
    assert place == "/filter/value/" + name.replace("~", "~0").replace("/", "~1")
    assert "JSON pointer" in detail


@pytest.mark.parametrize("document", [{}, {"value": {}}])
def test_a_filter_without_conditions_has_no_predicate(document: object) -> None:
    assert parse_filter(document) == (None, "{}")


# ----------------------------------------------------------------------------------------------------------- injection


@pytest.mark.parametrize(
    "operand", ['" || true', "$.tenant", "$v1", "'; DROP TABLE memories; --", "\\", "1) || (1 == 1"]
)
@pytest.mark.parametrize("operator", ["eq", "ne", "gt", "gte", "lt", "lte"])
def test_an_attempt_in_an_operand_stays_a_variable(operator: str, operand: str) -> None:
    for document in ({"key": {operator: operand}}, {"value": {"a": {operator: operand}}}):
        path, variables = parse_filter(document)
        assert operand not in (path or "")
        assert json.loads(variables) == {"v0": operand}


@settings(max_examples=50)
@given(scalars, st.sampled_from(["eq", "ne", "gt", "in"]))
def test_the_predicate_is_the_same_for_every_operand(operand: object, operator: str) -> None:
    path, variables = parse_filter({"value": {"a": {operator: [operand] if operator == "in" else operand}}})
    assert path == parse_filter({"value": {"a": {operator: [1] if operator == "in" else 1}}})[0]
    assert json.loads(variables) == {"v0": operand}


@settings(max_examples=50)
@given(texts)
def test_a_name_is_one_quoted_string_whatever_it_holds(name: str) -> None:
    plain = "." + name  # a name that is no pointer
    path = parse_filter({"value": {plain: 1}})[0] or ""
    head = "strict ($.value."
    assert path.startswith(head)
    read, end = json.JSONDecoder().raw_decode(path, len(head))
    assert read == plain
    assert path[end:] == " == $v0)"


@settings(max_examples=50)
@given(st.lists(texts))
def test_the_steps_of_a_pointer_are_its_tokens(tokens: list[str]) -> None:
    tokens = ["x", *tokens]
    pointer = "".join("/" + token.replace("~", "~0").replace("/", "~1") for token in tokens)
    rest = (parse_filter({"value": {pointer: 1}})[0] or "").removeprefix("strict ($.value")
    read: list[str] = []
    while rest != " == $v0)":
        if rest.startswith("["):
            index, _, rest = rest[1:].partition("]")
            assert index.isascii()
            assert index.isdigit()
            read.append(index)
        else:
            token, end = json.JSONDecoder().raw_decode(rest, 1)
            assert rest[0] == "."
            rest = rest[end:]
            read.append(token)
    assert read == tokens


# --------------------------------------------------------------------------------------------------------------- times


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ("2026-05-31T12:00:00Z", NOON),
        ("2026-05-31t12:00:00z", NOON),
        ("2026-05-31 12:00:00Z", NOON),
        ("2026-05-31T12:00:00+00:00", NOON),
        ("2026-05-31T12:00:00-00:00", NOON),
        ("2026-05-31T21:30:00+09:30", NOON),
        ("2026-05-30T23:59:59-12:00", "2026-05-31T11:59:59.000000Z"),
        ("2026-05-31T12:00:00.5Z", "2026-05-31T12:00:00.500000Z"),
        ("2026-05-31T12:00:00.000001Z", "2026-05-31T12:00:00.000001Z"),
        ("2024-02-29T00:00:00Z", "2024-02-29T00:00:00.000000Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000000Z"),
        ("0999-12-31T23:00:00-01:00", "1000-01-01T00:00:00.000000Z"),
        ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"),
    ],
)
def test_a_time_is_asked_in_utc_with_microseconds(written: str, asked: str) -> None:
    assert json.loads(parse_filter({"created": written})[1]) == {"v0": asked}


@pytest.mark.parametrize(
    "written",
    [
        "",
        "now",
        "2026-05-31",
        "2026-05-31T12:00:00",
        "2026-05-31T12:00Z",
        "20260531T120000Z",
        "2026-W22-7T12:00:00Z",
        "2026-05-31T12:00:00.Z",
        "2026-05-31T12:00:00,5Z",
        "2026-05-31T12:00:00 Z",
        "2026-05-31T12:00:00+0200",
        "2026-05-31T12:00:00+02",
        "2026-05-31T12:00:00+24:00",
        "2026-02-29T12:00:00Z",
        "2026-13-01T12:00:00Z",
        "2026-05-31T24:00:00Z",
        "2026-05-31T12:60:00Z",
        "2026-05-31T12:00:00Z\n",
        " 2026-05-31T12:00:00Z",
        "\u0662026-05-31T12:00:00Z",
        "0000-01-01T00:00:00Z",
        20260531,
        1.5,
        True,
    ],
)
def test_what_is_no_time_of_rfc_3339_is_refused(written: object) -> None:
    assert flaw_of({"updated": {"gte": written}}) == (
        "/filter/updated/gte",
        "must be a date and time of RFC 3339 with its offset",
    )


@pytest.mark.parametrize(
    ("written", "nearest"),
    [
        ("0001-01-01T00:01:00.0+03:02", "0001-01-01T00:00:00.000000Z"),
        ("9999-12-31T23:00:00-03:00", "9999-12-31T23:59:59.999999Z"),
    ],
)
def test_a_time_that_utc_has_no_year_for_is_the_nearest_that_it_has(written: str, nearest: str) -> None:
    assert parse_filter({"updated": {"gte": written}}) == parse_filter({"updated": {"gte": nearest}})


# --------------------------------------------------------------------------------------------------------------- flaws


@pytest.mark.parametrize(
    ("document", "place", "detail"),
    [
        (None, "", "must be an object"),
        ([], "", "must be an object"),
        ("x", "", "must be an object"),
        ({"content": "x"}, "/content", "is not a field"),
        ({"tenant": "x"}, "/tenant", "is not a field"),
        ({"": 1}, "/", "is not a field"),
        ({"a/b~c": 1}, "/a~1b~0c", "is not a field"),
        ({"importance": "0.5"}, "/importance", "must be a number"),
        ({"importance": True}, "/importance", "must be a number"),
        ({"importance": {"gt": "0"}}, "/importance/gt", "must be a number"),
        ({"importance": {"in": [1, "2"]}}, "/importance/in/1", "must be a number"),
        ({"type": 1}, "/type", "must be a string"),
        ({"user": {"in": ["a", None, True]}}, "/user/in/2", "must be a string"),
        ({"key": ["a"]}, "/key", "must be a scalar"),
        ({"key": {}}, "/key", "needs an operator"),
        ({"key": {"like": "a"}}, "/key/like", "is not an operator"),
        ({"key": {"a/b": "a"}}, "/key/a~1b", "is not an operator"),
        ({"key": {"eq": {}}}, "/key/eq", "must be a scalar"),
        ({"key": {"in": "a"}}, "/key/in", f"at most {MAX_ALTERNATIVES} scalars"),
        ({"key": {"in": ["a"] * (MAX_ALTERNATIVES + 1)}}, "/key/in", f"at most {MAX_ALTERNATIVES} scalars"),
        ({"key": {"in": [["a"]]}}, "/key/in/0", "must be a scalar"),
        ({"value": 1}, "/value", "must be an object"),
        ({"value": None}, "/value", "must be an object"),
        ({"value": {"a": [1]}}, "/value/a", "must be a scalar"),
        ({"value": {"a": {}}}, "/value/a", "needs an operator"),
        ({"value": {"a": {"b": 1}}}, "/value/a/b", "is not an operator"),
        ({"value": {"/a/b": {"gt": [1]}}}, "/value/~1a~1b/gt", "must be a scalar"),
        ({"value": {"m~n": {"in": [1, {}]}}}, "/value/m~0n/in/1", "must be a scalar"),
    ],
    ids=lambda value: f"{value!r:.40}",
)
def test_a_flaw_is_named_by_its_pointer(document: object, place: str, detail: str) -> None:
    found = flaw_of(document)
    assert found[0] == f"/filter{place}"
    assert detail in found[1]


def test_the_place_of_the_filter_stands_before_its_flaws() -> None:
    assert flaw_of({"key": 1}, "/a/0")[0] == "/a/0/key"


def test_the_number_of_conditions_is_bounded() -> None:
    most = {f"m{at}": at for at in range(MAX_CONDITIONS)}
    assert (parse_filter({"value": most})[0] or "").count("==") == MAX_CONDITIONS
    assert flaw_of({"value": most, "key": "a"}) == ("/filter", f"at most {MAX_CONDITIONS} conditions")


def test_the_steps_of_a_pointer_and_the_length_of_a_name_are_bounded() -> None:
    assert (parse_filter({"value": {"/a" * MAX_STEPS: 1}})[0] or "").count('."a"') == MAX_STEPS
    assert "steps" in flaw_of({"value": {"/a" * (MAX_STEPS + 1): 1}})[1]
    for longest in ("a" * MAX_NAME_BYTES, "\u00e9" * (MAX_NAME_BYTES // 2)):
        assert parse_filter({"value": {longest: 1}})[0]
        place, detail = flaw_of({"value": {longest + "a": 1}})
        assert len(place) <= 100
        assert "bytes" in detail


def test_the_most_alternatives_are_taken() -> None:
    document: Any = {"key": {"in": ["a"] * MAX_ALTERNATIVES}}
    assert len(json.loads(parse_filter(document)[1])) == MAX_ALTERNATIVES
