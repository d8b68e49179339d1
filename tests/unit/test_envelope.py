"""The envelope: what it gives back, and that it gives nothing back that was changed, moved or made for others."""

import base64
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engram_contract.credentials import DataKey, Keyring
from engram_sidecar.envelope import NONCE_BYTES, OVERHEAD_BYTES, Bound, Keys, key_version
from engram_sidecar.errors import KeyMissing, SealBroken


def keyring(current: int, *versions: int) -> Keyring:
    """Keys that are each their version, 32 times."""
    keys = tuple(DataKey(each, base64.b64encode(bytes([each]) * 32).decode()) for each in versions)
    return Keyring(current, keys, base64.b64encode(bytes(32)).decode())


KEYS = Keys(keyring(2, 1, 2))
NONCE = bytes(range(NONCE_BYTES))
PLACE = Bound("t_a", "memory", "0001-017f22e2-79b0-7cc3-98c4-dc0c0c07398f")
SEALED = KEYS.seal(PLACE, ("green tea", '{"a":1}'), NONCE)
texts = st.text(st.characters(codec="utf-8"))
names = st.text(st.characters(codec="utf-8"), max_size=20)
bounds = st.builds(Bound, names, names, names)


@given(bounds, texts, texts, st.binary(min_size=NONCE_BYTES, max_size=NONCE_BYTES))
def test_what_was_sealed_comes_back_and_costs_a_fixed_number_of_bytes(
    bound: Bound, first: str, second: str, nonce: bytes
) -> None:
    sealed = KEYS.seal(bound, (first, second), nonce)
    assert KEYS.open(bound, sealed) == (first, second)
    assert len(sealed) == len(first.encode()) + len(second.encode()) + OVERHEAD_BYTES
    assert key_version(sealed) == 2


@pytest.mark.parametrize("bit", range(len(SEALED) * 8))
def test_every_bit_counts(bit: int) -> None:
    changed = bytearray(SEALED)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises((SealBroken, KeyMissing)):
        KEYS.open(PLACE, bytes(changed))


@pytest.mark.parametrize("length", range(len(SEALED)))
def test_what_was_cut_is_refused(length: int) -> None:
    with pytest.raises(SealBroken, match="truncated" if length < OVERHEAD_BYTES else "authentication"):
        KEYS.open(PLACE, SEALED[:length])


@given(bounds, bounds)
def test_it_opens_at_its_own_place_only(bound: Bound, other: Bound) -> None:
    """Also where the parts of two places give the same text one after the other: each part has its length."""
    assume(bound != other)
    with pytest.raises(SealBroken, match="authentication"):
        KEYS.open(other, KEYS.seal(bound, ("x", "y"), NONCE))


@pytest.mark.parametrize(
    "other",
    [
        replace(PLACE, tenant="t_b"),
        replace(PLACE, kind="message"),
        replace(PLACE, id="0002-017f22e2-79b0-7cc3-98c4-dc0c0c07398f"),
        Bound("t_am", "emory", PLACE.id),
    ],
)
def test_another_tenant_kind_or_id_is_refused(other: Bound) -> None:
    with pytest.raises(SealBroken, match="authentication"):
        KEYS.open(other, SEALED)


def test_an_older_key_opens_what_it_sealed_and_the_current_one_seals() -> None:
    old = Keys(keyring(1, 1)).seal(PLACE, ("x", "null"), NONCE)
    assert key_version(old) == 1
    assert KEYS.open(PLACE, old) == ("x", "null")
    assert key_version(SEALED) == 2


def test_a_key_that_is_not_there_is_named() -> None:
    with pytest.raises(KeyMissing, match="version 2") as caught:
        Keys(keyring(1, 1)).open(PLACE, SEALED)
    assert caught.value.version == 2
    assert 2 not in Keys(keyring(1, 1))


def test_another_key_of_the_same_version_opens_nothing() -> None:
    other = replace(keyring(2, 2), keys=(DataKey(2, base64.b64encode(bytes(32)).decode()),))
    with pytest.raises(SealBroken, match="authentication"):
        Keys(other).open(PLACE, SEALED)


def test_without_a_keyring_nothing_is_sealed_and_nothing_opened() -> None:
    with pytest.raises(KeyMissing):
        Keys(None).seal(PLACE, ("x", "y"), NONCE)
    with pytest.raises(KeyMissing):
        Keys(None).open(PLACE, SEALED)


@settings(max_examples=50)
@given(st.text(st.characters(codec="ascii", categories=["L"]), min_size=8))
def test_no_text_stands_in_an_envelope(text: str) -> None:
    assert text.encode() not in KEYS.seal(PLACE, (text, f'"{text}"'), NONCE)


def test_another_nonce_is_another_envelope() -> None:
    assert KEYS.seal(PLACE, ("green tea", '{"a":1}'), bytes(NONCE_BYTES))[21:] != SEALED[21:]


def test_a_refusal_tells_nothing_of_the_key_or_the_text() -> None:
    with pytest.raises(SealBroken) as caught:
        KEYS.open(replace(PLACE, tenant="t_b"), SEALED)
    assert caught.value.__suppress_context__
    assert "tea" not in str(caught.value)
