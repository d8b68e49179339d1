"""What travels on the bulletin: whatever bytes come in, a notice or a refusal."""

from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_contract.session import UNKNOWN, Position
from engram_contract.slots import MemoryId
from engram_sidecar.notice import MAX_IDS, VERSION, BadNotice, Notice, parse_notice, write_notice

IDS = st.builds(MemoryId, st.integers(0, 16_383), st.uuids())
NOTICES = st.builds(
    Notice,
    st.binary(min_size=8, max_size=8),
    st.integers(0, 1 << 40),
    st.text(max_size=63),
    st.none() | st.lists(IDS, max_size=20).map(tuple),
    st.none() | st.builds(Position, st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)),
)


@given(NOTICES)
def test_a_notice_is_read_as_it_was_written(notice: Notice) -> None:
    assert parse_notice(write_notice(notice)) == notice


@given(st.binary(max_size=200), st.booleans())
def test_whatever_comes_is_a_notice_or_refused(payload: bytes, has_version: bool) -> None:
    try:
        notice = parse_notice(VERSION + payload if has_version else payload)
    except BadNotice:
        return
    assert isinstance(notice, Notice)


def test_of_too_many_ids_it_is_told_that_there_are_some() -> None:
    ids = tuple(MemoryId(1, UUID(int=number)) for number in range(MAX_IDS + 1))
    notice = Notice(b"8 bytes.", 1, "s0", ids, UNKNOWN)
    assert parse_notice(write_notice(notice)).ids is None
    full = Notice(b"8 bytes.", 1, "s0", ids[:MAX_IDS], UNKNOWN)
    assert parse_notice(write_notice(full)).ids == ids[:MAX_IDS]
    assert len(write_notice(full)) < 5_000


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([b"8 bytes.", 1, "s0", b"x" * 17, None, None], "half an id"),
        ([b"8 bytes.", 1, "s0", b"\xff" * 18, None, None], "no slot"),
        ([b"8 bytes.", 1, "s0", None, 1, None], "half a position"),
        ([b"short", 1, "s0", None, None, None], "not of this form"),
        ([b"8 bytes.", -1, "s0", None, None, None], "not of this form"),
        ([b"8 bytes.", 1, "s0", None, None, None, "more"], "not of this form"),
    ],
)
def test_what_is_wrong_is_said(members: list[object], reason: str) -> None:
    with pytest.raises(BadNotice, match=reason):
        parse_notice(VERSION + msgspec.msgpack.encode(members))
