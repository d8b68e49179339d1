"""The token of a session: what goes in comes out, what is no token is said to be none, and merging forgets nothing."""

import base64
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_contract.kinds import MAX_INT64
from engram_contract.session import MAX_CHARS, NO_HOME, TOKEN_PATTERN, UNKNOWN, BadToken, Position, Token, mark_of
from engram_contract.shardmap import MAX_SHARDS

POSITIONS = st.builds(Position, st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1))
MARKS = st.binary(min_size=8, max_size=8)


def tokens(max_size: int = 6, marks: st.SearchStrategy[bytes] = MARKS) -> st.SearchStrategy[Token]:
    positions = st.dictionaries(marks, POSITIONS, max_size=max_size)
    homes = st.sampled_from([NO_HOME, b"home one", b"home two"])
    return st.builds(Token, st.integers(0, MAX_INT64), positions, homes, st.integers(0, (1 << 64) - 1))


@given(tokens(MAX_SHARDS))
def test_a_token_comes_back_from_its_text_which_a_header_can_carry(token: Token) -> None:
    text = str(token)
    assert Token.parse(text) == token
    assert len(text) <= MAX_CHARS == 3_447
    assert text.isascii()
    assert text.replace("-", "").replace("_", "").isalnum()


@given(st.one_of(st.text(max_size=60), st.binary(max_size=60).map(lambda raw: base64.urlsafe_b64encode(raw).decode())))
def test_whatever_text_comes_is_a_token_or_said_to_be_none(text: str) -> None:
    found: Token | str
    try:
        found = Token.parse(text)
    except BadToken as bad:
        found = str(bad)
    assert Token.parse(str(found)) == found if isinstance(found, Token) else found


@given(st.from_regex(TOKEN_PATTERN, fullmatch=True))
def test_the_described_form_is_that_of_tokens(text: str) -> None:
    assert re.fullmatch(TOKEN_PATTERN, str(Token.parse(text)))


@given(tokens(MAX_SHARDS))
def test_every_token_is_of_the_described_form(token: Token) -> None:
    assert re.fullmatch(TOKEN_PATTERN, str(token))


def raw(*parts: bytes) -> str:
    return base64.urlsafe_b64encode(b"".join(parts)).rstrip(b"=").decode()


ENTRY = bytes(8) + bytes(12)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "version"),
        ("not a token", "is not the text"),
        ("ä", "is not the text"),
        ("A" * (MAX_CHARS + 1), "characters"),
        (raw(b"\x02", bytes(24)), "version"),
        (raw(b"\x01", bytes(23)), "version"),
        (raw(b"\x01", bytes(24), ENTRY[:-1]), "version"),
        (raw(b"\x01", b"\xff" * 8, bytes(16)), "epoch"),
    ],
)
def test_a_text_that_is_no_token_says_why(text: str, reason: str) -> None:
    with pytest.raises(BadToken, match=reason):
        Token.parse(text)


@given(
    tokens(marks=st.sampled_from([b"a" * 8, b"b" * 8, b"c" * 8])), tokens(marks=st.sampled_from([b"a" * 8, b"b" * 8]))
)
def test_merged_sessions_know_the_later_position_of_each_shard(one: Token, other: Token) -> None:
    merged = one.merged(other)
    assert merged == other.merged(one)
    assert merged.merged(one) == merged
    assert merged.epoch == max(one.epoch, other.epoch)
    for mark in {*one.positions, *other.positions}:
        assert merged.positions[mark] == max(each.positions[mark] for each in (one, other) if mark in each.positions)


@given(tokens(), tokens())
def test_of_sessions_of_two_homes_none_is_the_merged_ones(one: Token, other: Token) -> None:
    merged = one.merged(other)
    assert merged.since_ms == max(one.since_ms, other.since_ms)
    homes = {each.home for each in (one, other) if each != Token()}
    assert merged.home == (homes.pop() if len(homes) == 1 else NO_HOME)


def test_a_merged_token_stays_within_its_bound() -> None:
    def of(prefix: str) -> Token:
        return Token(1, {mark_of(f"{prefix}{n}"): Position(1, n) for n in range(MAX_SHARDS)})

    old, new = of("old"), of("new")
    assert old.merged(new) == new


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (Position(1, 5), Position(1, 6)),
        (Position(1, 9), Position(2, 3)),
        (Position((1 << 32) - 2, 0), UNKNOWN),
    ],
)
def test_a_later_timeline_orders_behind_every_position_of_an_earlier_one(earlier: Position, later: Position) -> None:
    assert earlier < later


def test_a_shard_is_found_by_its_id_alone() -> None:
    token = Token(3, {mark_of("s0"): Position(1, 7)})
    found: Any = Token.parse(str(token))
    assert found.of("s0") == Position(1, 7)
    assert found.of("s1") is None
