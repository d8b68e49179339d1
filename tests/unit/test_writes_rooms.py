"""Writes without a store: arguments of the statement, conditions on a memory, what an answer without rows means."""

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from engram_contract.policy import Limits
from engram_contract.shardmap import Node
from engram_contract.slots import MemoryId
from engram_sidecar.errors import NotFound, PreconditionFailed, SidecarError, SlotMoved
from engram_sidecar.indexing import Indexed
from engram_sidecar.queries import QUERIES
from engram_sidecar.records import ALWAYS, Conditions, Delete, Draft, ETag, Get, Memory, Put
from engram_sidecar.sealing import Sealer
from engram_sidecar.store import Place
from engram_sidecar.writes import (
    DELETE_ATTEMPTS,
    Rules,
    delete_memory,
    fetch_memories,
    is_met,
    put_arguments,
    put_memory,
    run_arguments,
    stored_memory,
)

ID = MemoryId(7, UUID("017f22e2-79b0-7cc3-98c4-dc0c0c07398f"))
PLACE = Place("s1", Node("a", "localhost", 5432), "engram")
NOON = datetime(2026, 5, 31, 12, tzinfo=UTC)
DRAFT = Draft("tea", '{"a":1}', "semantic", "ada", "coder", "s", ("n", "m"), "k", 0.5)
MEMORY = Memory(
    ID, ("n", "m"), "k", "semantic", "ada", "coder", "s", "tea", '{"a":1}', 0.5, NOON, NOON, None, version=3
)
TAG, OTHER = MEMORY.etag, ETag(3, 1)
RULES = Rules(Sealer("t_a", None, bytes, lambda *_: None, encrypts=False), Limits(), None, lambda *_: None)
INDEXED = Indexed("'AAAAAAAAAAA':1D", 1)
STAMPS = {"slot": ID.slot, "id": ID.uuid, "created": NOON, "updated": NOON, "expires": None, "version": 3}
OURS_AND_THERE = {
    **STAMPS, "owned": True, "namespace": ["n", "m"], "key": "k", "type": "semantic", "user_id": "ada",
    "agent_id": "coder", "session_id": "s", "content": "tea", "value": '{"a":1}', "importance": 0.5, "sealed": None,
}  # fmt: skip
OURS_BUT_ABSENT = dict.fromkeys(OURS_AND_THERE) | {"owned": True}
NOT_OURS = dict.fromkeys(OURS_AND_THERE) | {"owned": False}


class Script:
    """Answers each query with the next of its answers, and keeps what was asked."""

    def __init__(self, *answers: Sequence[dict[str, Any]]) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, query: str, *args: object) -> Any:  # noqa: ANN401  rows of a store that is not there
        self.asked.append(query)
        return list(self._answers.pop(0))

    @property
    def is_over(self) -> bool:
        return not self._answers


# ----------------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("ttl_s", "retention_s", "expected"),
    [
        (None, None, None),
        (60.0, None, 60.0),
        (None, 3600.0, 3600.0),
        (60.0, 3600.0, 60.0),
        (3600.0, 60.0, 60.0),
        (60.0, 60.0, 60.0),
        (1e-6, 1.0, 1e-6),
    ],
)
def test_the_shorter_of_time_to_live_and_retention_counts(
    ttl_s: float | None, retention_s: float | None, expected: float | None
) -> None:
    arguments = put_arguments(Put(ID, replace(DRAFT, ttl_s=ttl_s)), INDEXED, retention_s)
    assert arguments[13] == expected


def test_the_arguments_stand_as_the_statement_numbers_them() -> None:
    conditions = Conditions(must_exist=True, if_match=(TAG, OTHER), if_none_match=(OTHER,))
    arguments = put_arguments(Put(ID, replace(DRAFT, ttl_s=9.0), conditions, keeps_expiry=True), INDEXED, None)
    assert arguments == (
        7, ID.uuid, ["n", "m"], "k", "semantic", "ada", "coder", "s", "tea", '{"a":1}', 0.5, "'AAAAAAAAAAA':1D", 1, 9.0,
        True, True, False, [f"3-{TAG.created_us}", "3-1"], ["3-1"], None,
    )  # fmt: skip
    assert len(arguments) == max(map(int, re.findall(r"\$(\d+)", QUERIES["put_memory"])))


def test_without_conditions_any_state_is_accepted_and_none_refused() -> None:
    assert put_arguments(Put(ID, Draft()), INDEXED, None)[14:] == (False, False, False, None, [], None)


def test_a_run_of_puts_is_one_array_for_each_argument_and_text_where_that_is_an_array() -> None:
    puts = [
        Put(ID, replace(DRAFT, namespace=("a b", 'c"d', "e\\f", "{,}", "NULL")), Conditions(if_match=(TAG, OTHER))),
        Put(MemoryId(8, ID.uuid), Draft()),
    ]
    columns = run_arguments([put_arguments(put, INDEXED, None) for put in puts])
    assert len(columns) == max(map(int, re.findall(r"\$(\d+)", QUERIES["put_memories"])))
    assert columns[0] == [7, 8]
    assert columns[2] == [r'{"a b","c\"d","e\\f","{,}","NULL"}', "{}"]
    assert columns[3] == ["k", None]
    assert columns[17:] == ([f'{{"3-{TAG.created_us}","3-1"}}', None], ["{}", "{}"], [None, None])


def test_a_stored_memory_is_the_draft_with_the_stamps_of_its_row() -> None:
    row: Any = STAMPS | {"expires": NOON + timedelta(days=1)}
    assert stored_memory(Put(ID, DRAFT), row) == replace(MEMORY, expires=NOON + timedelta(days=1))


# ---------------------------------------------------------------------------------------------------------- conditions


@pytest.mark.parametrize(
    ("conditions", "verdict"),
    [
        (ALWAYS, True),
        (Conditions(must_exist=True), True),
        (Conditions(must_be_absent=True), False),
        (Conditions(must_exist=True, must_be_absent=True), False),
        (Conditions(must_exist=True, if_match=(TAG,)), True),
        (Conditions(must_exist=True, if_match=(OTHER, TAG)), True),
        (Conditions(must_exist=True, if_match=(OTHER,)), False),
        (Conditions(must_exist=True, if_match=(ETag(2, TAG.created_us),)), False),
        (Conditions(must_exist=True, if_match=()), False),
        (Conditions(if_none_match=(OTHER,)), True),
        (Conditions(if_none_match=(OTHER, TAG)), False),
        (Conditions(must_exist=True, if_match=(TAG,), if_none_match=(TAG,)), False),
        (Conditions(must_be_absent=True, if_match=(TAG,)), False),
    ],
)
def test_a_write_on_an_existing_memory_goes_on_if_its_conditions_hold(conditions: Conditions, verdict: bool) -> None:
    assert is_met(conditions, MEMORY) is verdict


def test_a_tag_tells_a_memory_from_the_one_that_was_there_before() -> None:
    again = replace(MEMORY, created=NOON + timedelta(microseconds=1))
    assert not is_met(Conditions(must_exist=True, if_match=(TAG,)), again)
    assert TAG.created == NOON
    assert str(TAG) == f'"3-{TAG.created_us:x}"'


# -------------------------------------------------------------------------------------------------------- explanations


async def test_memories_are_fetched_in_order_with_gaps() -> None:
    other = MemoryId(8, ID.uuid)
    run = Script([OURS_BUT_ABSENT, OURS_AND_THERE])
    assert await fetch_memories(run, PLACE, [Get(other), Get(ID)]) == [None, MEMORY]


async def test_a_slot_of_another_shard_is_no_answer() -> None:
    with pytest.raises(SlotMoved) as raised:
        await fetch_memories(Script([OURS_AND_THERE, NOT_OURS]), PLACE, [Get(ID), Get(ID)])
    assert raised.value.shard == "s1"


async def test_a_put_that_stored_something_asks_no_more() -> None:
    run = Script([STAMPS])
    assert await put_memory(run, PLACE, Put(ID, DRAFT), INDEXED, RULES) == MEMORY
    assert run.asked == ["put_memory"]


@pytest.mark.parametrize(
    ("conditions", "seen", "error", "reason"),
    [
        (Conditions(must_be_absent=True), OURS_AND_THERE, PreconditionFailed, "If-None-Match: the memory exists"),
        (Conditions(must_exist=True), OURS_BUT_ABSENT, PreconditionFailed, "If-Match: there is no such memory"),
        (Conditions(must_exist=True, if_match=(OTHER,)), OURS_AND_THERE, PreconditionFailed, "another one now"),
        (Conditions(if_none_match=(TAG,)), OURS_AND_THERE, PreconditionFailed, "another one now"),
        (ALWAYS, NOT_OURS, SlotMoved, "s1"),
        (Conditions(must_exist=True), NOT_OURS, SlotMoved, "s1"),
    ],
)
async def test_a_put_that_stored_nothing_is_explained(
    conditions: Conditions, seen: dict[str, Any], error: type[SidecarError], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        await put_memory(Script([], [seen]), PLACE, Put(ID, DRAFT, conditions), INDEXED, RULES)


GONE: list[dict[str, Any]] = [{"version": 3}]


@pytest.mark.parametrize(
    ("conditions", "answers", "error"),
    [
        (ALWAYS, [GONE], None),
        (ALWAYS, [[], [OURS_BUT_ABSENT]], NotFound),
        (ALWAYS, [[], [NOT_OURS]], SlotMoved),
        (ALWAYS, [[], [OURS_AND_THERE], GONE], None),  # made anew between the two looks
        (ALWAYS, [[], [OURS_AND_THERE]] * DELETE_ATTEMPTS, PreconditionFailed),
        (Conditions(must_exist=True), [[], [OURS_BUT_ABSENT]], PreconditionFailed),
        (Conditions(must_exist=True, if_match=(TAG,)), [GONE], None),
        (Conditions(must_exist=True, if_match=(OTHER,)), [[], [OURS_AND_THERE]], PreconditionFailed),
        (Conditions(must_exist=True, if_match=(OTHER,)), [[], [OURS_BUT_ABSENT]], PreconditionFailed),
        (Conditions(if_none_match=(TAG,)), [[], [OURS_AND_THERE]], PreconditionFailed),
        (Conditions(if_none_match=(OTHER,)), [[], [OURS_BUT_ABSENT]], NotFound),
        (Conditions(must_be_absent=True), [[OURS_AND_THERE]], PreconditionFailed),  # nothing may be removed at all
        (Conditions(must_be_absent=True), [[OURS_BUT_ABSENT]], NotFound),
        (Conditions(must_be_absent=True), [[NOT_OURS]], SlotMoved),
    ],
)
async def test_a_delete_says_what_became_of_the_memory(
    conditions: Conditions, answers: list[list[dict[str, Any]]], error: type[SidecarError] | None
) -> None:
    run = Script(*answers)
    if error is None:
        await delete_memory(run, PLACE, Delete(ID, conditions))
    else:
        with pytest.raises(error):
            await delete_memory(run, PLACE, Delete(ID, conditions))
    assert run.is_over
