"""Rows in the shared cache: what comes out is what went in, and nothing that was sealed is in the clear."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from engram_contract.session import Position
from engram_contract.slots import MemoryId
from engram_sidecar.cachedrow import MAX_BYTES, PACKED_BYTES, PLAIN, ZSTD, BadRow, parse_row, write_row
from engram_sidecar.records import Memory

TIMES = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001  hypothesis adds it
NAMES = st.none() | st.text(max_size=20)
MEMORIES = st.builds(
    Memory,
    id=st.builds(MemoryId, st.integers(0, 16_383), st.uuids()),
    namespace=st.lists(st.text(max_size=9), max_size=4).map(tuple),
    key=NAMES, type=st.text(max_size=9), user=NAMES, agent=NAMES, session=NAMES,
    content=st.text(max_size=3_000), value=st.text(max_size=30),
    importance=st.none() | st.floats(0, 1),
    created=TIMES, updated=TIMES, expires=st.none() | TIMES,
    version=st.integers(1, 1 << 62), sealed=st.none(),
)  # fmt: skip
NOW = datetime(2026, 11, 22, 12, 0, 0, 123_456, UTC)


def memory(content: str = "", sealed: bytes | None = None) -> Memory:
    return Memory(
        MemoryId(7, UUID(int=9)), ("a",), "k", "episodic", "u", None, None, content, "null", 0.5, NOW, NOW,
        NOW + timedelta(hours=1), 3, sealed,
    )  # fmt: skip


@given(MEMORIES)
def test_a_memory_is_read_as_it_was_written(stored: Memory) -> None:
    assert parse_row(write_row(stored)) == (stored, None)
    assert parse_row(write_row(stored, Position(3, 1 << 40))) == (stored, Position(3, 1 << 40))


@given(st.binary(max_size=100), st.sampled_from([b"", PLAIN, ZSTD]))
def test_whatever_comes_is_a_memory_or_refused(data: bytes, form: bytes) -> None:
    with pytest.raises(BadRow):
        parse_row(form + data)


def test_a_cut_or_changed_row_is_refused_or_another_one() -> None:
    for stored in (write_row(memory("short")), write_row(memory("long " * 1_000))):
        for length in range(len(stored)):
            with pytest.raises(BadRow):
                parse_row(stored[:length])


def test_only_what_is_long_and_gets_shorter_is_packed() -> None:
    assert write_row(memory("x" * 100))[:1] == PLAIN
    packed = write_row(memory("a word " * 1_000))
    assert (packed[:1], len(packed) < PACKED_BYTES) == (ZSTD, True)
    noise = bytes((number * 7_919 * number >> 3) & 0xFF for number in range(5_000))
    assert parse_row(write_row(memory(sealed=noise)))[0].sealed == noise


def test_nothing_is_unpacked_that_is_larger_than_any_memory() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(MAX_BYTES + 1))
    with pytest.raises(BadRow):
        parse_row(ZSTD + bomb)


def test_of_a_sealed_memory_nothing_beside_the_envelope_is_written() -> None:
    stored = write_row(memory("a secret that somebody opened", sealed=b"envelope"))
    assert b"secret" not in stored
    assert parse_row(stored)[0].sealed == b"envelope"
