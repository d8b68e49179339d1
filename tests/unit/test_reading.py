"""Reading a shard whose rows are judged here: nothing is missed, and where the reading ends early that stands there."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_contract.credentials import DataKey, Keyring
from engram_contract.shardmap import Node
from engram_contract.slots import MemoryId
from engram_sidecar.errors import SealBroken
from engram_sidecar.filters import parse_filter
from engram_sidecar.reading import GROWTH, PAGE_ROWS, Reading
from engram_sidecar.records import Draft, Hit, Selection
from engram_sidecar.sealing import Sealer
from engram_sidecar.store import Place

KEYRING = Keyring(1, (DataKey(1, "A" * 43 + "="),), "B" * 42 + "A=")
MAX_ROWS = 2_500  # less than outside of tests
PLACE = Place("s1", Node("a", "localhost", 5432), "engram")
NOON = datetime(2026, 5, 31, 12, tzinfo=UTC)
EVEN = Selection(filter=parse_filter({"value": {"even": True}}))


class Shard:
    """Rows of one user, newest first, and what was asked of them."""

    def __init__(self, evens: Sequence[bool], *, page_ends: int = 10**9) -> None:
        self.refusals: list[MemoryId] = []
        self.sealer = Sealer("t_a", KEYRING, bytes, lambda id_, _why: self.refusals.append(id_), encrypts=True)
        self._evens = evens
        self._page_ends = page_ends  # after so many rows an answer is full
        self.asked: list[int] = []
        self.now_s = 0.0

    async def row(self, number: int) -> Any:  # noqa: ANN401
        memory_id = MemoryId(1, UUID(int=number))
        value = json.dumps({"even": self._evens[number], "n": number})
        return {
            "slot": 1, "id": memory_id.uuid, "namespace": [], "key": None, "type": "episodic", "user_id": "ada",
            "agent_id": None, "session_id": None, "content": "", "value": "null", "importance": None, "version": 1,
            "sealed": await self.sealer.seal(memory_id, Draft("", value)), "created": NOON - timedelta(seconds=number),
            "updated": NOON, "expires": None, "score": 1 / (number + 1), "is_cut": False,
        }  # fmt: skip

    async def behind(self, size: int, last: Hit | None) -> Any:  # noqa: ANN401
        begin = 0 if last is None else last.memory.id.uuid.int + 1
        return await self._rows(begin, size)

    async def best(self, size: int) -> Any:  # noqa: ANN401
        return await self._rows(0, size)

    async def _rows(self, begin: int, size: int) -> Any:  # noqa: ANN401
        self.asked.append(size)
        self.now_s += 1.0
        end = min(begin + size, begin + self._page_ends, len(self._evens))
        rows = [await self.row(number) for number in range(begin, end)]
        if rows and end == begin + self._page_ends and end < len(self._evens):
            rows[-1]["is_cut"] = True
        return rows

    def reading(self, selection: Selection = EVEN, timeout_s: float = 1e9) -> Reading:
        return Reading(PLACE, self.sealer, selection, lambda: self.now_s, timeout_s, MAX_ROWS)


def numbers(hits: Sequence[Hit]) -> list[int]:
    return [json.loads(hit.memory.value)["n"] for hit in hits if not hit.is_passed_over]


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 12), st.integers(1, 15))
async def test_a_list_is_the_first_of_what_meets_the_conditions(evens: list[bool], wanted: int, page_ends: int) -> None:
    shard = Shard(evens, page_ends=page_ends)
    met = [number for number, is_even in enumerate(evens) if is_even]
    hits = await shard.reading().pages(wanted, shard.behind)
    assert numbers(hits)[:wanted] == met[:wanted]
    assert not any(hit.is_cut or hit.is_passed_over for hit in hits)


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 12))
async def test_a_search_is_the_best_of_what_meets_the_conditions(evens: list[bool], wanted: int) -> None:
    shard = Shard(evens)
    met = [number for number, is_even in enumerate(evens) if is_even]
    hits = await shard.reading().best(wanted, shard.best)
    assert numbers(hits)[:wanted] == met[:wanted]
    assert not any(hit.is_cut or hit.is_passed_over for hit in hits)


async def test_without_conditions_a_shard_is_asked_once_and_its_cut_stays() -> None:
    shard = Shard([False] * 9, page_ends=4)
    hits = await shard.reading(Selection()).pages(6, shard.behind)
    assert (numbers(hits), [hit.is_cut for hit in hits]) == ([0, 1, 2, 3], [False, False, False, True])
    assert shard.asked == [6]


async def test_half_of_the_time_ends_a_list_at_the_row_that_was_read_last() -> None:
    shard = Shard([True] + [False] * 1_500)
    hits = await shard.reading(timeout_s=4.0).pages(10, shard.behind)
    assert numbers(hits) == [0]
    assert (hits[-1].is_cut, hits[-1].is_passed_over) == (True, True)
    assert hits[-1].memory.id.uuid.int == 10 + PAGE_ROWS - 1


async def test_a_list_that_ended_early_on_a_hit_shows_it_once() -> None:
    shard = Shard(([False] * 4 + [True]) * 300)
    hits = await shard.reading(timeout_s=1.0).pages(5, shard.behind)
    assert [(hit.is_cut, hit.is_passed_over) for hit in hits] == [(True, False)]


@pytest.mark.parametrize("way", ["pages", "best"])
async def test_so_many_rows_and_no_more_are_read(way: str) -> None:
    shard = Shard([False] * (MAX_ROWS + 1_000))
    reading = shard.reading()
    hits = await (reading.pages(5, shard.behind) if way == "pages" else reading.best(5, shard.best))
    assert [(hit.is_cut, hit.is_passed_over) for hit in hits] == [(True, True)]
    assert MAX_ROWS <= hits[0].memory.id.uuid.int + 1 < MAX_ROWS + PAGE_ROWS
    if way == "best":
        assert shard.asked[:3] == [5, 5 * GROWTH, 5 * GROWTH**2]


async def test_a_search_whose_answer_is_full_says_so() -> None:
    shard = Shard([True] + [False] * 50, page_ends=20)
    hits = await shard.reading().best(25, shard.best)
    assert numbers(hits) == [0]
    assert (hits[-1].is_cut, hits[-1].is_passed_over) == (True, True)


async def test_what_cannot_be_opened_is_a_hit_that_says_why() -> None:
    shard = Shard([True, True, True])

    async def broken(size: int, last: Hit | None) -> Any:  # noqa: ANN401
        rows = await shard.behind(size, last)
        rows[0]["sealed"], rows[1]["sealed"] = rows[1]["sealed"], rows[0]["sealed"]
        return rows

    hits = await shard.reading().pages(3, broken)
    assert [isinstance(hit.refusal, SealBroken) for hit in hits] == [True, True, False]
    assert [hit.memory.content for hit in hits] == ["", "", ""]
    assert [id_.uuid.int for id_ in shard.refusals] == [0, 1]
