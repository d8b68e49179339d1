"""Slots and ids: the Redis Cluster vectors, ids that read back exactly, UUIDs laid out as RFC 9562 says."""

from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_contract.slots import SLOTS, BadMemoryId, MemoryId, crc16, named_uuid, slot_of, uuid7

TIMED = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"
NAMED = "5c146b14-3c52-8afd-938a-375d0df1fbf6"
MAX_MS = 2**48 - 1

unix_ms = st.integers(0, MAX_MS)
ten_bytes = st.binary(min_size=10, max_size=10)
uuids = st.builds(uuid7, unix_ms, ten_bytes) | st.builds(named_uuid, st.text(), st.binary())
ids = st.builds(MemoryId, st.integers(0, SLOTS - 1), uuids)


# The check value of CRC-16/XMODEM, and what CLUSTER KEYSLOT answers (Redis Cluster specification).
@pytest.mark.parametrize(("data", "crc"), [(b"123456789", 0x31C3), (b"", 0), (b"\x00", 0), (b"foo", 0xAF96)])
def test_the_checksum_is_crc16_xmodem(data: bytes, crc: int) -> None:
    assert crc16(data) == crc


@pytest.mark.parametrize(
    ("key", "slot"), [("foo", 12182), ("bar", 5061), ("hello", 866), ("somekey", 11058), ("123456789", 0x31C3)]
)
def test_a_key_has_the_slot_that_redis_cluster_gives_it(key: str, slot: int) -> None:
    assert slot_of(key.encode()) == slot


@settings(max_examples=50)
@given(st.binary())
def test_the_checksum_is_the_remainder_of_polynomial_division(data: bytes) -> None:
    remainder = 0
    for byte in data:
        remainder ^= byte << 8
        for _ in range(8):
            remainder = (remainder << 1 ^ (0x1021 if remainder & 0x8000 else 0)) & 0xFFFF
    assert crc16(data) == remainder
    assert slot_of(data) == remainder % SLOTS


@settings(max_examples=50)
@given(ids)
def test_an_id_reads_back_from_its_text(memory_id: MemoryId) -> None:
    text = str(memory_id)
    assert MemoryId.parse(text) == memory_id
    assert len(text) == 41


@settings(max_examples=50)
@given(ids, st.integers(0, 40), st.sampled_from("0123456789abcdefABF-g{} \n\u0663"))
def test_whatever_parses_is_written_the_same_again(memory_id: MemoryId, place: int, character: str) -> None:
    text = str(memory_id)
    changed = text[:place] + character + text[place + 1 :]
    try:
        assert str(MemoryId.parse(changed)) == changed
    except BadMemoryId:
        assert changed != text


@pytest.mark.parametrize("text", [f"0000-{TIMED}", f"3fff-{TIMED}", f"0af9-{NAMED}"])
def test_an_id_of_either_version_is_taken(text: str) -> None:
    assert str(MemoryId.parse(text)) == text
    assert MemoryId.parse(text).is_named == text.endswith(NAMED)


@pytest.mark.parametrize(
    "text",
    [
        "",
        TIMED,
        f"-{TIMED}",
        f"fff-{TIMED}",
        f"00000-{TIMED}",
        f"4000-{TIMED}",
        f"ffff-{TIMED}",
        f"3FFF-{TIMED}",
        f"000g-{TIMED}",
        f"0000_{TIMED}",
        f"0000{TIMED}",
        f"0000-{TIMED.upper()}",
        f"0000-{TIMED.replace('-', '')}",
        f"0000-{{{TIMED}}}",
        f"0000-urn:uuid:{TIMED}",
        f" 0000-{TIMED}",
        f"0000-{TIMED} ",
        f"0000-{TIMED}\n",
        f"0000-{TIMED}0",
        f"0000-{TIMED[:-1]}",
        f"\u0660000-{TIMED}",
        *(f"0000-{TIMED[:14]}{version}{TIMED[15:]}" for version in "01234569abcdef"),
        *(f"0000-{TIMED[:19]}{variant}{TIMED[20:]}" for variant in "01234567cdef"),
    ],
)
def test_what_no_memory_can_be_called_is_refused(text: str) -> None:
    with pytest.raises(BadMemoryId, match="4 hex digits up to 3fff"):
        MemoryId.parse(text)


def test_the_example_of_rfc_9562_comes_out() -> None:
    assert str(uuid7(0x017F22E279B0, bytes.fromhex("0cc318c4dc0c0c07398f"))) == TIMED  # appendix A.6


@settings(max_examples=50)
@given(unix_ms, ten_bytes)
def test_a_timed_uuid_holds_time_version_variant_and_randomness(moment: int, randomness: bytes) -> None:
    made = uuid7(moment, randomness)
    assert made.int >> 80 == moment
    assert (made.version, made.variant) == (7, UUID(TIMED).variant)
    free = ~((0xF << 76) | (0x3 << 62)) & (2**80 - 1)  # all 80 bits but version and variant
    assert made.int & free == int.from_bytes(randomness) & free


@settings(max_examples=50)
@given(unix_ms, unix_ms, ten_bytes, ten_bytes)
def test_timed_uuids_sort_by_their_time(one: int, other: int, first: bytes, second: bytes) -> None:
    if one != other:
        left, right = uuid7(one, first), uuid7(other, second)
        assert (left < right) == (str(left) < str(right)) == (one < other)


@settings(max_examples=50)
@given(st.text(), st.binary())
def test_a_named_uuid_follows_from_its_name_and_says_version_8(tenant: str, name: bytes) -> None:
    made = named_uuid(tenant, name)
    assert made == named_uuid(tenant, name)
    assert (made.version, made.variant) == (8, UUID(NAMED).variant)


@settings(max_examples=50)
@given(st.tuples(st.text(), st.binary()), st.tuples(st.text(), st.binary()))
def test_two_names_or_tenants_never_share_a_uuid(one: tuple[str, bytes], other: tuple[str, bytes]) -> None:
    assert (named_uuid(*one) == named_uuid(*other)) == (one == other)


def test_a_tenant_does_not_reach_into_a_name() -> None:
    assert named_uuid("t", b"ab") != named_uuid("ta", b"b")
