"""Reads by id of several requests, of L2 and then of the shard: each its own answer, and no more waiting than may."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest

from engram_contract.session import Position
from engram_contract.slots import MemoryId
from engram_sidecar import gathering
from engram_sidecar.cache import Ticket
from engram_sidecar.consistency import Floors, Level, Session, Source
from engram_sidecar.errors import KeyMissing, NodeRefused, Shed, SidecarError
from engram_sidecar.fetching import Fetched
from engram_sidecar.loading import Loaded, Loader, Wanted, Ways
from engram_sidecar.records import Memory
from engram_sidecar.remote import Ticket as Shared

NOW = datetime(2026, 11, 22, tzinfo=UTC)
SHARED = Shared(0.0, 1, 0)
BROKEN = 13


def memory_id(number: int) -> MemoryId:
    return MemoryId(7, UUID(int=number))


def memory(number: int, content: str) -> Memory:
    return Memory(memory_id(number), (), None, "fact", None, None, None, content, "1", None, NOW, NOW, None, 1)


class Redis:
    """L2: has the even numbers."""

    undecodable = 0

    def __init__(self) -> None:
        self.asked: list[int] = []

    async def get(self, asked: Sequence[tuple[MemoryId, Shared]]) -> list[tuple[Memory, Position | None] | None]:
        numbers = [each.uuid.int for each, _ in asked]
        self.asked.append(len(numbers))
        return [None if number % 2 else (memory(number, "shared"), None) for number in numbers]


class Stage:
    """A loader before L2 and a shard that answers when it is let."""

    def __init__(self, most_waiting: int = 100) -> None:
        self.redis, self.floors = Redis(), Floors()
        self.questions: list[list[int]] = []
        self.free = asyncio.Event()
        self.ended: dict[int, Loaded | BaseException] = {}
        self.forgotten: list[MemoryId] = []
        self.sheds = 0
        ways = Ways(self.fetch, self.opened, self.opened, self.forget, lambda: most_waiting, self.shed)
        self.loader = Loader(self.floors, ways, self.redis, self.settle)  # type: ignore[arg-type]  # as it is asked

    def shed(self) -> None:
        self.sheds += 1

    def forget(self, _shard: str, memory_id: MemoryId, _position: Position | None) -> None:
        self.forgotten.append(memory_id)

    async def opened(self, stored: Memory) -> Memory:
        if stored.id.uuid.int == BROKEN:
            raise KeyMissing(2)
        return replace(stored, content=f"{stored.content}, opened")

    async def fetch(self, ids: Sequence[MemoryId]) -> list[Fetched | SidecarError]:
        self.questions.append([each.uuid.int for each in ids])
        await self.free.wait()
        source = Source(1.0)
        return [
            NodeRefused("s0", "no") if each.uuid.int == 15 else Fetched(memory(each.uuid.int, "stored"), "s0", source)
            for each in ids
        ]

    def settle(self, wanted: Wanted, loaded: Loaded | BaseException) -> None:
        self.ended[wanted.id.uuid.int] = loaded

    def begin(self, number: int, level: Level = Level.SESSION, *, asks_remote: bool = True) -> Wanted:
        future = asyncio.get_running_loop().create_future()
        session = Session(self.floors, level)
        wanted = Wanted(memory_id(number), b"", "s0", session, 9e9, None, SHARED, asks_remote, Ticket(0), future)
        self.loader.begin(wanted)
        return wanted

    def content(self, number: int) -> str | None:
        ended = self.ended[number]
        assert isinstance(ended, Loaded)
        return None if ended.memory is None else ended.memory.content


async def settled() -> None:
    """All that can go on without the shard has."""
    for _ in range(40):
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "LATE_S", 60.0)


async def test_what_l2_has_is_answered_while_the_shard_does_not() -> None:
    stage = Stage()
    for number in range(8):
        stage.begin(number)
    await settled()
    assert {number: stage.content(number) for number in stage.ended} == dict.fromkeys((0, 2, 4, 6), "shared, opened")
    assert (stage.redis.asked, stage.questions) == ([8], [[1, 3, 5, 7]])
    stage.free.set()
    await settled()
    assert {stage.content(number) for number in (1, 3, 5, 7)} == {"stored, opened"}


async def test_who_may_not_have_what_l2_has_is_answered_by_the_shard() -> None:
    stage = Stage()
    stage.begin(2, asks_remote=False)
    stage.begin(4, Level.STRONG, asks_remote=False)
    stage.free.set()
    await settled()
    assert (stage.redis.asked, stage.questions) == ([], [[2], [4]]), "and each level by itself"
    assert {stage.content(number) for number in (2, 4)} == {"stored, opened"}


async def test_what_cannot_be_opened_or_is_refused_concerns_nobody_else() -> None:
    stage = Stage()
    stage.free.set()
    for number in (11, BROKEN, 15, 17):
        stage.begin(number)
    await settled()
    assert isinstance(stage.ended[BROKEN], KeyMissing)
    assert isinstance(stage.ended[15], NodeRefused)
    assert {stage.content(number) for number in (11, 17)} == {"stored, opened"}


async def test_so_many_wait_for_a_shard_whoever_they_asked_before_and_the_rest_is_shed() -> None:
    stage = Stage(most_waiting=3)
    stage.begin(1)
    await settled()  # it is out
    for number in range(3, 21, 2):
        stage.begin(number, Level.STRONG if number > 10 else Level.SESSION, asks_remote=number < 10)
        await settled()
    assert sum(isinstance(ended, Shed) for ended in stage.ended.values()) == stage.sheds
    assert stage.loader.waiting()["s0"] == 3
    stage.begin(20)
    await settled()
    assert stage.content(20) == "shared, opened", "L2 goes on"
    stage.free.set()
    await settled()
    assert len(stage.ended) == 11


async def test_what_nobody_waits_for_any_more_is_not_asked() -> None:
    stage = Stage()
    stage.begin(1)
    await settled()
    gone = stage.begin(3)
    stage.begin(5)
    await settled()
    gone.future.cancel()
    stage.free.set()
    await settled()
    assert stage.questions == [[1], [5]]


async def test_its_end_leaves_nobody_waiting() -> None:
    stage = Stage()
    stage.begin(1)
    await settled()
    stage.begin(3)
    await settled()
    await stage.loader.close()
    await settled()
    assert {type(ended) for ended in stage.ended.values()} == {asyncio.CancelledError}
    assert set(stage.ended) == {1, 3}
