"""JSON from outside: each text that would be taken differently elsewhere is refused, the rest is read unchanged."""

import json
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_sidecar import jsontext
from engram_sidecar.jsontext import INT64_MAX, INT64_MIN, BadJson, is_storable, parse, parse_stored, strings

DEPTH = 64

storable = st.text(st.characters(codec="utf-8", exclude_characters="\x00"))
numbers = st.integers(INT64_MIN, INT64_MAX) | st.floats(allow_nan=False, allow_infinity=False)
documents = st.recursive(
    st.none() | st.booleans() | numbers | storable,
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(storable, inside, max_size=4),
    max_leaves=10,
)


@pytest.fixture(autouse=True, scope="module", params=[jsontext.UNINTERRUPTED_BYTES, -1], ids=["short", "long"])
def _length(request: pytest.FixtureRequest) -> Iterator[None]:
    """All of it for texts that C goes over, and for those where Python does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsontext, "UNINTERRUPTED_BYTES", request.param)
        yield


def read(text: str) -> object:
    return parse(text.encode(), max_depth=DEPTH)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "line 1, column 1"),
        (b"  ", "column 3"),
        (b"[1,]", "column 4"),
        (b'{"a":1,}', "line 1, column 8"),
        (b"{'a':1}", "line 1, column 2"),
        (b"{a:1}", "line 1, column 2"),
        (b"[1]\n[2]", "Extra data at line 2, column 1"),
        (b"// no\n1", "line 1, column 1"),
        (b"\x0c1", "column 1"),
        (b"\xc2\xa01", "column 1"),
        (b"01", "column 2"),
        (b"+1", "column 1"),
        (b".5", "column 1"),
        (b"1.", "column 2"),
        (b"0x10", "column 2"),
        (b"True", "column 1"),
        (b'"\\x41"', "column 2"),
        (b'"\t"', "column 2"),
        (b'"\x00"', "column 2"),
        (b'"a', "column 1"),
        (b'"\xff"', "not UTF-8 at byte 1"),
        (b'"\xc0\x80"', "not UTF-8 at byte 1"),
        (b'"\xed\xa0\x80"', "not UTF-8 at byte 1"),
        ("1".encode("utf-16"), "not UTF-8 at byte 0"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b"NaN", "NaN is not JSON"),
        (b"[Infinity]", "Infinity is not JSON"),
        (b"-Infinity", "-Infinity is not JSON"),
        (b"1e400", "1e400 is beyond a double"),
        (b"[-1e400]", "-1e400 is beyond a double"),
        (b"1E400", "1E400 is beyond a double"),
        (b"1" * 5000 + b".5", "beyond a double"),
        (b"9" * 309 + b".0", "beyond a double"),
        ('[1\u0663, "x"]'.encode(), ""),
        ("1.\uff11".encode(), ""),
        ("-1\u0663".encode(), ""),
        (b"9223372036854775808", "9223372036854775808 is beyond 64 bits"),
        (b"-9223372036854775809", "-9223372036854775809 is beyond 64 bits"),
        (b"1" * 5000, "beyond 64 bits"),
        (b'{"a":1,"a":1}', "'a' stands twice"),
        (b'[{"b":{"a":1,"c":2,"\\u0061":3}}]', "'a' stands twice"),
        (b'{"' + b"a" * 999 + b'":1,"' + b"a" * 999 + b'":1}', f"'{'a' * 20}"),
        (b'"\\u0000"', "U+0000 or a lone surrogate"),
        (b'{"\\u0000":1}', "U+0000 or a lone surrogate"),
        (b'["\\ud800"]', "U+0000 or a lone surrogate"),
        (b'{"a":{"\\udfff":1}}', "U+0000 or a lone surrogate"),
        (b'"\\ude00\\ud83d"', "U+0000 or a lone surrogate"),
        (b"[" * 65 + b"]" * 65, "nested deeper than 64 levels"),
        (b"[" * 1_000_000, "nested deeper than 64 levels"),
        (b'{"a":' * 100_000, "nested deeper than 64 levels"),
    ],
    ids=lambda value: f"{value[:24]!r}",
)
def test_what_cannot_be_stored_unchanged_is_refused_with_the_reason(raw: bytes, reason: str) -> None:
    with pytest.raises(BadJson) as caught:
        parse(raw, max_depth=DEPTH)
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 140


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (" \t\r\n1 ", 1),
        ("-0", 0),
        ("1E5", 100_000.0),
        ("1e-400", 0.0),
        ("9223372036854775807", 2**63 - 1),
        ("-9223372036854775808", -(2**63)),
        ("1.7976931348623157e308", 1.7976931348623157e308),
        ('"\\ud83d\\ude00"', "\U0001f600"),
        ('"\\\\u0000"', "\\u0000"),
        ('"\\\\ud800"', "\\ud800"),
        ('"\x7f\u2028\ufeff\uffff"', "\x7f\u2028\ufeff\uffff"),
        ('{"a":{"a":[{"a":1}]}}', {"a": {"a": [{"a": 1}]}}),
        ('{"":1}', {"": 1}),
        ('{"\u00e9":1,"e\u0301":2}', {"\u00e9": 1, "e\u0301": 2}),
        ('["' + "[{" * 100 + '"]', ["[{" * 100]),
        ("[" + "[]," * 1000 + "{}]", [*([[]] * 1000), {}]),
    ],
    ids=lambda value: f"{value!r:.24}",
)
def test_what_is_json_is_read_as_it_stands(text: str, value: object) -> None:
    found = read(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("is_integer", [True, False])
def test_integers_stay_integers_and_floats_stay_floats(*, is_integer: bool) -> None:
    assert isinstance(read("5" if is_integer else "5.0"), int if is_integer else float)


@pytest.mark.parametrize(
    "nested",
    [
        lambda levels: "[" * levels + "]" * levels,
        lambda levels: "[" * levels + "1" + "]" * levels,
        lambda levels: '{"a":' * (levels - 1) + "{}" + "}" * (levels - 1),
        lambda levels: '{"a":' * levels + "null" + "}" * levels,
        lambda levels: "[" * (levels % 2) + '{"a":[' * (levels // 2) + "]}" * (levels // 2) + "]" * (levels % 2),
        lambda levels: "[" + "[]," * 100 + "[" * (levels - 1) + "]" * (levels - 1) + ",{}]",
    ],
)
def test_the_limit_of_nesting_is_exact(nested: Callable[[int], str]) -> None:
    read(nested(DEPTH))
    with pytest.raises(BadJson, match="nested deeper than 64 levels"):
        read(nested(DEPTH + 1))


@pytest.mark.parametrize(("text", "depth"), [("1", 0), ('""', 0), ("[]", 1), ("{}", 1), ('[{"a":[]}]', 3)])
def test_a_scalar_has_no_depth_and_an_empty_container_has_one(text: str, depth: int) -> None:
    parse(text.encode(), max_depth=depth)
    if depth:
        with pytest.raises(BadJson, match="nested deeper"):
            parse(text.encode(), max_depth=depth - 1)


@settings(max_examples=60)
@given(document=documents, ascii_only=st.booleans())
def test_any_value_comes_back_as_it_was_written(document: object, *, ascii_only: bool) -> None:
    assert read(json.dumps(document, ensure_ascii=ascii_only)) == document


@settings(max_examples=50)
@given(st.binary() | st.text('[]{}",:0123456789eE+-.\\u \ntrufalsn').map(str.encode))
def test_any_bytes_are_a_value_or_bad_json(raw: bytes) -> None:
    try:
        value = parse(raw, max_depth=DEPTH)
    except BadJson:
        return
    assert read(json.dumps(value)) == value == json.loads(raw)


# ---------------------------------------------------------------------------------------------------------- from jsonb


def printed(number: float) -> str:
    """The number as `jsonb` prints it: a numeric, all digits and no exponent."""
    return format(Decimal(json.dumps(number)), "f")


@settings(max_examples=50)
@given(numbers)
def test_a_stored_number_is_the_same_double_again(number: float) -> None:
    assert float(parse_stored(printed(number))) == float(number)  # type: ignore[arg-type]  # a number gives a number


@settings(max_examples=50)
@given(st.integers(INT64_MIN, INT64_MAX))
def test_a_stored_integer_is_exact(number: int) -> None:
    assert parse_stored(str(number)) == number
    assert isinstance(parse_stored(str(number)), int)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("9223372036854775807", INT64_MAX),
        ("9223372036854775808", 2.0**63),
        ("-9223372036854775808", INT64_MIN),
        ("-9223372036854775809", -(2.0**63)),
        ("10000000000000000000000", 1e22),
        ("-10000000000000000000", -1e19),
        ("1" + "0" * 308, 1e308),
        ("0." + "0" * 323 + "5", 5e-324),
        ("100.0", 100.0),
        ("0", 0),
        ('{"a": [10000000000000000000000, 1]}', {"a": [1e22, 1]}),
    ],
    ids=lambda value: f"{value!r:.24}",
)
def test_a_stored_number_beyond_64_bits_is_a_double_and_can_be_sent_again(text: str, value: object) -> None:
    found = parse_stored(text)
    assert found == value
    assert type(found) is type(value)
    assert read(json.dumps(found)) == found


# ------------------------------------------------------------------------------------------------------------- strings


def test_every_string_is_seen_names_too() -> None:
    value = {"a": ["b", {"c": "d"}, 1, None, [["e"]]], "f": {}, "": "b"}
    assert sorted(strings(value)) == ["", "a", "b", "b", "c", "d", "e", "f"]
    assert list(strings("alone")) == ["alone"]
    assert list(strings(1)) == []


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("", True),
        ("\x01\x7f\n", True),
        ("\ud7ff\ue000\U0010ffff", True),
        ("a\x00", False),
        ("\ud800", False),
        ("a\udfffb", False),
    ],
    ids=lambda value: f"{value!a}",
)
def test_only_nul_and_surrogates_cannot_be_stored(text: str, verdict: bool) -> None:
    assert is_storable(text) is verdict


def steps(raw: bytes) -> int:
    """Calls of functions in Python while the text is parsed: at each another thread may get its turn."""
    calls: list[str] = []
    sys.setprofile(lambda _, event, __: calls.append(event) if event == "call" else None)
    try:
        parse(raw, max_depth=DEPTH)
    finally:
        sys.setprofile(None)
    return len(calls)


def test_a_long_text_leaves_other_threads_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = b"[" + b",".join([b'"heron"'] * 1_000) + b"]"
    monkeypatch.setattr(jsontext, "UNINTERRUPTED_BYTES", len(raw))
    assert steps(raw) < 100
    monkeypatch.setattr(jsontext, "UNINTERRUPTED_BYTES", len(raw) - 1)
    assert steps(raw) > 1_000
