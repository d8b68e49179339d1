"""Idempotency keys without a shard: which texts are keys, what stands for them, what is kept and told again."""

import asyncio
import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_contract.slots import MemoryId
from engram_sidecar.errors import (
    BadRequest,
    IdempotencyKeyInUse,
    IdempotencyKeyReused,
    NotFound,
    PreconditionFailed,
    SidecarError,
)
from engram_sidecar.idempotency import (
    MAX_KEY_CHARS,
    Claim,
    Once,
    claim_key,
    digest,
    keep_outcomes,
    parse_key,
    pass_on,
    status_of,
)
from engram_sidecar.records import Conditions, Delete, Draft, ETag, Memory, Patch, Put, Replay
from engram_sidecar.sealing import Sealer
from tests.harness import KEYRING

NOON = datetime(2026, 5, 31, 12, tzinfo=UTC)
CLAIM = Claim(UUID(int=1), UUID(int=2))


def memory_id(slot: int, number: int) -> MemoryId:
    return MemoryId(slot, UUID(int=number))


def memory(slot: int, number: int, version: int = 1) -> Memory:
    made = memory_id(slot, number)
    return Memory(made, (), None, "episodic", None, None, None, "tea", "null", None, NOON, NOON, None, version)


def put(slot: int, number: int) -> Put:
    return Put(memory_id(slot, number), Draft())


class FakeTransaction:
    """Answers claim_key with these rows and keeps what it is told to keep."""

    def __init__(self, *rows: tuple[int | None, UUID | None, str | None]) -> None:
        self._rows = [dict(zip(("slot", "asked", "outcomes"), row, strict=True)) for row in rows]
        self.kept: list[tuple[object, ...]] = []

    async def run(self, query: str, *args: object) -> Any:  # noqa: ANN401
        if query == "claim_key":
            return self._rows
        self.kept.append(args)
        return []


@pytest.mark.parametrize(
    ("lines", "key"),
    [
        ([], None),
        (["k"], "k"),
        (['"k"'], "k"),
        (["  k\t"], "k"),
        (['"two words"'], "two words"),
        ([r'"a \" and a \\"'], r'a " and a \ '.strip()),
        (["8e03978e-40d5-43e8-bc93-6894a57f9324"], "8e03978e-40d5-43e8-bc93-6894a57f9324"),
        (["x" * MAX_KEY_CHARS], "x" * MAX_KEY_CHARS),
        ([r"\x"], r"\x"),
    ],
)
def test_a_key_is_a_string_of_structured_fields_or_bare(lines: list[str], key: str | None) -> None:
    assert parse_key(lines) == key


@pytest.mark.parametrize(
    "lines",
    [
        [""], ['""'], ["a b"], ['"a'], ['a"b" c'], ["ä"], ["\x7f"], ["a\x00"], ['"\\x"'], ['"a";p=1'],
        ["x" * (MAX_KEY_CHARS + 1)], ["a", "a"],
    ],
)  # fmt: skip
def test_what_is_no_key_is_refused_by_the_name_of_the_header(lines: list[str]) -> None:
    with pytest.raises(BadRequest, match=r"^Idempotency-Key: "):
        parse_key(lines)


@given(st.text(max_size=300))
def test_any_text_is_a_key_or_refused(text: str) -> None:
    try:
        key = parse_key([text])
    except BadRequest:
        return
    assert key is not None
    assert 1 <= len(key) <= MAX_KEY_CHARS
    assert key.isascii()
    assert key.isprintable()


@given(st.lists(st.binary(max_size=8), max_size=4), st.lists(st.binary(max_size=8), max_size=4))
def test_other_parts_have_another_digest(one: list[bytes], two: list[bytes]) -> None:
    assert (digest(b"", *one) == digest(b"", *two)) is (one == two)


def test_agents_tenants_keyrings_and_requests_have_claims_of_their_own() -> None:
    def claim(tenant: str = "t_a", agent: str = "", key: str = "k", body: str = "b", *, has_keys: bool = True) -> Claim:
        sealer = Sealer(tenant, KEYRING if has_keys else None, bytes, lambda *_: None, encrypts=False)
        return sealer.claim(Once(key, ("POST", "/v1/memories", body)), agent)

    first = claim()
    assert claim() == first
    assert claim(body="c").key == first.key
    others = [claim(tenant="t_b"), claim(agent="x"), claim(key="l"), claim(has_keys=False)]
    assert len({first.key, *(other.key for other in others)}) == 5
    assert len({first.asked, claim(body="c").asked, claim(agent="x").asked}) == 3


@pytest.mark.parametrize(
    ("write", "left", "status"),
    [
        (put(1, 1), memory(1, 1), 201),
        (put(1, 1), memory(1, 1, version=2), 200),
        (Patch(memory_id(1, 1), {}), memory(1, 1, version=2), 200),
        (Delete(memory_id(1, 1)), None, 204),
    ],
)
def test_a_write_has_the_status_of_what_it_left(write: Put | Patch | Delete, left: Memory | None, status: int) -> None:
    assert status_of(write, left) == status


def test_what_is_kept_is_told_again_slot_by_slot_whatever_shard_asks() -> None:
    """A batch of three slots; later two of them are on one shard and the third on another."""
    writes: list[tuple[int, Put | Patch | Delete]] = [
        (0, put(7, 1)), (1, Delete(memory_id(9, 2))), (3, Patch(memory_id(7, 3), {})), (4, Delete(memory_id(8, 4))),
    ]  # fmt: skip
    outcomes: list[object] = [memory(7, 10), None, "a read", memory(7, 3, version=5), NotFound("gone")]
    first = FakeTransaction()
    asyncio.run(keep_outcomes(first, CLAIM, writes, outcomes))  # type: ignore[arg-type]
    [(key, asked, slots, kept)] = first.kept
    assert (key, asked, slots) == (CLAIM.key, CLAIM.asked, [7, 9, 8])
    rows = {slot: (slot, CLAIM.asked, text) for slot, text in zip(slots, kept, strict=True)}  # type: ignore[call-overload]

    def told(*some: int) -> dict[int, Replay | SidecarError]:
        chosen = [(n, write) for n, write in writes if write.id.slot in some]
        return asyncio.run(claim_key(FakeTransaction(*(rows[slot] for slot in some)), CLAIM, chosen))  # type: ignore[arg-type]

    created_us = memory(7, 10).etag.created_us
    assert told(7, 9) == {
        0: Replay(201, memory_id(7, 10), ETag(1, created_us)),
        1: Replay(204, memory_id(9, 2)),
        3: Replay(200, memory_id(7, 3), ETag(5, created_us)),
    }
    assert isinstance(told(8)[4], NotFound)


def test_where_nothing_was_done_nothing_is_kept() -> None:
    transaction = FakeTransaction()
    asyncio.run(keep_outcomes(transaction, CLAIM, [(0, put(1, 1))], [PreconditionFailed("x")]))  # type: ignore[arg-type]
    assert transaction.kept == []


@pytest.mark.parametrize(
    ("row", "refusal"),
    [
        ((None, None, None), IdempotencyKeyInUse),
        ((1, CLAIM.asked, None), IdempotencyKeyInUse),
        ((1, UUID(int=9), json.dumps([[204]])), IdempotencyKeyReused),
    ],
    ids=["somebody has the turn", "it was passed on", "another request"],
)
def test_a_key_that_is_not_ours_to_use_is_refused(row: Any, refusal: type[Exception]) -> None:  # noqa: ANN401
    with pytest.raises(refusal):
        asyncio.run(claim_key(FakeTransaction(row), CLAIM, [(0, Put(memory_id(1, 1), Draft(), Conditions()))]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rows", "was_done", "kept"),
    [
        ([], False, [(CLAIM.key, CLAIM.asked, [1], [None])]),
        ([(1, CLAIM.asked, None)], False, []),
        ([(1, CLAIM.asked, "[[204]]")], True, []),
    ],
)
def test_a_slot_is_passed_on_once(rows: Any, was_done: bool, kept: object) -> None:  # noqa: ANN401
    transaction = FakeTransaction(*rows)
    assert asyncio.run(pass_on(transaction, CLAIM, 1)) is was_done  # type: ignore[arg-type]
    assert transaction.kept == kept
