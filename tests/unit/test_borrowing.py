"""Room under the quota: who is asked for it, for how much, and what is said when there is none."""

import asyncio
from collections import deque
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from engram_contract.credentials import Credentials
from engram_contract.shardmap import Node, Shard, Strategy, first_map
from engram_contract.slots import MemoryId
from engram_sidecar import routing
from engram_sidecar.errors import QuotaExceeded, ShardUnavailable
from engram_sidecar.quotas import MORE_BYTES, MORE_MEMORIES, Borrower
from engram_sidecar.records import Draft, Put
from engram_sidecar.store import Place, Store

PUT = Put(MemoryId(7, UUID("017f22e2-79b0-7cc3-98c4-dc0c0c07398f")), Draft("tea", "1"))
MAP = first_map("t_a", Strategy.USER, [Shard(f"s{n}", "engram", (Node("a", "localhost", 1 + n),)) for n in range(3)])
HOME = routing.primary(MAP.shards[0])
LIFE = "6f8b3a52-8f5c-4f0e-9d43-0d6c6f0f2a11"
FULL = QuotaExceeded("s0", "memories", 100, LIFE)
FULL_BYTES = QuotaExceeded("s0", "bytes", 1000, LIFE)
GONE = ShardUnavailable("s1", "connection refused", 3)


class Lenders(Store):
    """Shards that lend what they are told to, so many times, or fail."""

    def __init__(self, times: int = 1, **lent: tuple[int, int] | Exception | None) -> None:
        super().__init__(Credentials("t_a", ("p",)))
        self.lent = lent
        self.left = dict.fromkeys(lent, times)
        self.asked: list[tuple[object, ...]] = []

    async def write(self, place: Place, query: str, *args: object, timeout_s: float) -> list[Any]:
        """As the store."""
        await asyncio.sleep(0)
        assert timeout_s > 0
        if query == "borrow_quota":
            assert place == HOME
            [memories, size] = str(args[0]).split(",")
            return [{"memories": int(memories), "bytes": int(size)}]
        self.asked.append((place.shard, *args))
        answer = self.lent.get(place.shard)
        if isinstance(answer, Exception):
            raise answer
        if answer is None or not self.left[place.shard]:
            return [[False]]
        self.left[place.shard] -= 1
        return [[True]]

    async def read(self, place: Place, query: str, *args: object, timeout_s: float) -> list[Any]:
        """As the store: the word for what was lent."""
        await asyncio.sleep(0)
        assert timeout_s > 0
        assert (query, args) == ("loan_token", (HOME.shard, LIFE))
        answer = self.lent[place.shard]
        assert isinstance(answer, tuple)
        return [[f"{answer[0]},{answer[1]}"]]


class Writes:
    """A write that comes to each of these in turn."""

    def __init__(self, *outcomes: Exception | str) -> None:
        self.outcomes = deque(outcomes)

    async def __call__(self) -> str:
        """The next outcome."""
        await asyncio.sleep(0)
        outcome = self.outcomes.popleft()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def borrow(store: Lenders, *outcomes: Exception | str) -> str:
    return asyncio.run(Borrower(store, 5.0).with_room(MAP, HOME, [PUT], Writes(*outcomes)))


def test_a_write_that_has_room_asks_nobody() -> None:
    store = Lenders()
    assert borrow(store, "stored") == "stored"
    assert store.asked == []


def test_others_are_asked_for_what_the_write_needs_and_some_more_until_that_is_had() -> None:
    store = Lenders(s1=(60, MORE_BYTES), s2=(5, 4))
    assert borrow(store, FULL, "stored") == "stored"
    needed = (1 + MORE_MEMORIES, len("tea1") + MORE_BYTES)
    assert store.asked == [("s1", "s0", *needed), ("s2", "s0", needed[0] - 60, needed[1] - MORE_BYTES)]
    enough = Lenders(s1=needed)
    assert borrow(enough, FULL, "stored") == "stored"
    assert [asked[0] for asked in enough.asked] == ["s1"]


@pytest.mark.parametrize(
    ("lent", "first", "second"),
    [
        ({}, FULL, FULL),  # nobody has anything
        ({"s1": (0, 5)}, FULL, FULL),  # bytes do not help where memories lack
        ({"s1": (5, 0)}, FULL_BYTES, FULL_BYTES),
        ({"s1": (5, 5)}, FULL, FULL_BYTES),  # enough of the one, not of the other
    ],
)
def test_without_room_anywhere_the_quota_is_what_is_told(lent: Any, first: Exception, second: Exception) -> None:  # noqa: ANN401
    with pytest.raises(QuotaExceeded) as refused:
        borrow(Lenders(**lent), first, second)
    assert refused.value.what == second.what  # type: ignore[attr-defined]


def test_a_lender_that_is_away_might_have_had_room() -> None:
    with pytest.raises(ShardUnavailable) as refused:
        borrow(Lenders(s1=GONE), FULL, "not reached")
    assert (refused.value.shard, refused.value.retry_after_s) == ("s1", 3)
    assert "quota of 100 memories" in refused.value.reason


def test_another_lender_makes_good_for_one_that_is_away() -> None:
    assert borrow(Lenders(s1=GONE, s2=(1, 0)), FULL, "stored") == "stored"


def test_another_failure_of_the_write_asks_nobody() -> None:
    store = Lenders(s1=(9, 9))
    with pytest.raises(ShardUnavailable):
        borrow(store, GONE)
    assert store.asked == []


async def test_writes_that_are_refused_together_borrow_one_after_the_other_and_all_get_room() -> None:
    """Twenty writes, and lenders that give three at a time: each loan serves three of them."""
    room, taken = 0, 0

    class Threes(Lenders):
        async def write(self, place: Place, query: str, *args: object, timeout_s: float) -> list[Any]:
            nonlocal room
            rows = await super().write(place, query, *args, timeout_s=timeout_s)
            if query == "borrow_quota":
                room += rows[0]["memories"]
            return rows

    async def write() -> str:
        nonlocal taken
        await asyncio.sleep(0)
        if taken == room:
            raise FULL
        taken += 1
        return "stored"

    store = Threes(times=20, s1=(3, 0))
    borrower = Borrower(store, 5.0)
    stored = await asyncio.gather(*(borrower.with_room(MAP, HOME, [PUT], write) for _ in range(20)))
    assert stored == ["stored"] * 20
    assert len([asked for asked in store.asked if asked[0] == "s1"]) <= 20


async def test_a_write_that_does_not_end_after_its_loan_holds_up_no_other() -> None:
    hanging, is_writing = asyncio.Event(), asyncio.Event()
    once = Writes(FULL, "writing")

    async def slow() -> str:
        await once()
        is_writing.set()
        await hanging.wait()
        return "late"

    borrower = Borrower(Lenders(times=2, s1=(9, 9)), 5.0)
    first = asyncio.create_task(borrower.with_room(MAP, HOME, [PUT], slow))
    await is_writing.wait()
    assert await borrower.with_room(MAP, HOME, [PUT], Writes(FULL, "stored")) == "stored"
    hanging.set()
    assert await first == "late"


async def test_a_write_whose_room_others_take_borrows_until_nobody_lends_any_more() -> None:
    store = Lenders(times=3, s1=(9, 9))
    assert await Borrower(store, 5.0).with_room(MAP, HOME, [PUT], Writes(FULL, FULL, FULL, "stored")) == "stored"
    assert len([asked for asked in store.asked if asked[0] == "s1"]) == 3
    with pytest.raises(QuotaExceeded):
        await Borrower(Lenders(times=3, s1=(9, 9)), 5.0).with_room(MAP, HOME, [PUT], Writes(*[FULL] * 4))


async def test_a_turn_that_does_not_come_in_time_is_said() -> None:
    hanging = asyncio.Event()

    class Hanging(Lenders):
        async def write(self, place: Place, query: str, *args: object, timeout_s: float) -> list[Any]:
            await hanging.wait()
            raise GONE

    borrower = Borrower(Hanging(), 0.05)
    first = asyncio.create_task(borrower.with_room(MAP, HOME, [PUT], Writes(FULL)))
    second = asyncio.create_task(borrower.with_room(MAP, HOME, [replace(PUT)], Writes(FULL)))
    with pytest.raises(ShardUnavailable, match="no room under the quota in time"):
        await second
    hanging.set()
    with pytest.raises(ShardUnavailable):
        await first
