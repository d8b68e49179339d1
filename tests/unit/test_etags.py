"""Entity tags in headers: the forms, weak and strong comparison, and the conditions that they make (RFC 9110)."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_sidecar.errors import BadRequest
from engram_sidecar.etags import parse_tags, write_conditions
from engram_sidecar.records import ALWAYS, Conditions, ETag

ONE, TWO = ETag(1, 0x1F), ETag(0x2A, 0x5C3E0A1B2C3D)
ANOTHERS = ETag(0, 0)  # a well-formed tag that none of our memories has

tags = st.builds(ETag, st.integers(1, 2**60 - 1), st.integers(0, 2**52 - 1))


@settings(max_examples=40)
@given(st.lists(tags, min_size=1, max_size=5), st.sampled_from([",", ", ", " ,\t", ",,", " , ,"]))
def test_our_tags_read_back_in_their_order(written: list[ETag], between: str) -> None:
    assert parse_tags(between.join(str(tag) for tag in written), "If-Match") == tuple(written)


@pytest.mark.parametrize(
    ("header", "strong", "weak"),
    [
        ('"1-1f"', (ONE,), (ONE,)),
        ('W/"1-1f"', (ANOTHERS,), (ONE,)),  # section 8.8.3.2: W/"1" and "1" are equal only in the weak comparison
        ('"1-1f", W/"2a-5c3e0a1b2c3d"', (ONE, ANOTHERS), (ONE, TWO)),
        (' \t"1-1f" \t', (ONE,), (ONE,)),
        ('"xyzzy"', (ANOTHERS,), (ANOTHERS,)),
        ('W/"xyzzy"', (ANOTHERS,), (ANOTHERS,)),
        ('""', (ANOTHERS,), (ANOTHERS,)),
        ('"a,b", "1-1f"', (ANOTHERS, ONE), (ANOTHERS, ONE)),
        ('"*"', (ANOTHERS,), (ANOTHERS,)),
        ('"!#~\xff"', (ANOTHERS,), (ANOTHERS,)),
        ("*", None, None),
        (" * ", None, None),
    ],
)
def test_a_header_names_tags_or_anything(
    header: str, strong: tuple[ETag, ...] | None, weak: tuple[ETag, ...] | None
) -> None:
    assert parse_tags(header, "If-None-Match") == strong
    assert parse_tags(header, "If-None-Match", weak=True) == weak


# Section 8.8.3.2: tags are equal character by character. A tag that only means the same numbers is another tag.
@pytest.mark.parametrize(
    "header",
    ['"01-1f"', '"1-01f"', '"1-1F"', '"1-1f "', '"+1-1f"', '"1-1f-"', '"-1-1f"', '"1"', '"1-"', '"-1f"', '"1-1f\xa0"'],
)
def test_a_tag_that_we_never_write_matches_nothing(header: str) -> None:
    try:
        assert parse_tags(header, "If-Match") == (ANOTHERS,)
    except BadRequest:
        assert " " in header  # a space cannot stand in a tag at all


def test_numbers_that_no_memory_can_have_match_nothing() -> None:
    for header in ('"1000000000000000-1"', '"1-10000000000000"', '"0-1"'):
        assert parse_tags(header, "If-Match") != (ONE,)
        tag = (parse_tags(header, "If-Match") or ())[0]
        assert tag.created.year < 2200  # and can be asked of the store


# Section 5.6.1.2: a recipient has to pass over empty elements of a list.
@pytest.mark.parametrize("header", ['"1-1f",', ',"1-1f"', ' , "1-1f" ,, ', ',,,"1-1f"'])
def test_empty_elements_of_a_list_are_passed_over(header: str) -> None:
    assert parse_tags(header, "If-Match") == (ONE,)


@pytest.mark.parametrize(
    "header",
    [
        "",
        " ",
        ",",
        " , ,",
        "1-1f",
        "'1-1f'",
        '"1-1f',
        '1-1f"',
        '"1-1f" "2-1f"',
        '"1-1f""2-1f"',
        '"1-1f";',
        '"a b"',
        '"a\tb"',
        '"a"b"',
        'w/"1-1f"',
        'W/ "1-1f"',
        'W"1-1f"',
        'W/W/"1-1f"',
        "W/",
        "W/*",
        '*, "1-1f"',
        '"1-1f", *',
        "*, *",
        "**",
        '\u00a0"1-1f"',
        "\u00a0*",
        '"1-1f"\n',
        '"\u0100"',
        '"\x7f"',
    ],
)
@pytest.mark.parametrize("weak", [True, False])
def test_anything_else_is_refused_and_the_header_named(header: str, weak: bool) -> None:
    with pytest.raises(BadRequest, match="If-Match"):
        parse_tags(header, "If-Match", weak=weak)


def test_a_long_header_is_refused_in_linear_time() -> None:
    for header in (" " * 100_000, '"' * 100_000, "W/" * 50_000, '"a" ' * 25_000, "," * 100_000):
        with pytest.raises(BadRequest):
            parse_tags(header, "If-Match")


@pytest.mark.parametrize(
    ("if_match", "if_none_match", "conditions"),
    [
        ([], [], ALWAYS),
        (["*"], [], Conditions(must_exist=True)),
        ([], ["*"], Conditions(must_be_absent=True)),
        (['"1-1f"'], [], Conditions(must_exist=True, if_match=(ONE,))),
        ([], ['"1-1f"'], Conditions(if_none_match=(ONE,))),
        (['"1-1f"', '"2a-5c3e0a1b2c3d"'], [], Conditions(must_exist=True, if_match=(ONE, TWO))),
        (['"1-1f"', ""], [], Conditions(must_exist=True, if_match=(ONE,))),
        (['W/"1-1f"'], [], Conditions(must_exist=True, if_match=(ANOTHERS,))),
        ([], ['W/"1-1f"'], Conditions(if_none_match=(ANOTHERS,))),
        (["*"], ["*"], Conditions(must_exist=True, must_be_absent=True)),
        (['"1-1f"'], ["*"], Conditions(must_exist=True, must_be_absent=True, if_match=(ONE,))),
        (["*"], ['"1-1f"'], Conditions(must_exist=True, if_none_match=(ONE,))),
    ],
)
def test_the_two_headers_make_the_conditions_of_a_write(
    if_match: list[str], if_none_match: list[str], conditions: Conditions
) -> None:
    assert write_conditions(if_match, if_none_match) == conditions


@pytest.mark.parametrize(
    ("if_match", "if_none_match", "named"),
    [([""], [], "If-Match"), ([], [""], "If-None-Match"), (["*", "*"], [], "If-Match"), ([], ["x"], "If-None-Match")],
)
def test_the_wrong_one_of_the_two_is_named(if_match: list[str], if_none_match: list[str], named: str) -> None:
    with pytest.raises(BadRequest, match=named):
        write_conditions(if_match, if_none_match)
