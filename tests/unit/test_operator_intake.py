"""The memory that reviews may take: never more than the limit, and the largest makes room for the others."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from engram_operator.errors import TooBusy
from engram_operator.intake import Intake, parsed_bytes


class Body:
    """A body of chunks that ends when it is told to, or is cut off."""

    def __init__(self, *chunks: bytes) -> None:
        self._chunks = list(chunks)
        self._end = asyncio.Event()
        self.is_cut = False

    async def next_chunk(self) -> bytes:
        if self._chunks:
            return self._chunks.pop(0)
        await self._end.wait()
        if self.is_cut:
            raise ConnectionResetError
        return b""

    def end(self) -> None:
        self._end.set()

    def cut(self) -> None:
        self.is_cut = True
        self._end.set()


async def started(intake: Intake, body: Body) -> asyncio.Task[bytearray | None]:
    task = asyncio.create_task(intake.read(body.next_chunk, body.cut, 100))
    await asyncio.sleep(0)
    return task


async def outcome(work: Awaitable[bytearray | None]) -> object:
    """The body, or the kind of what was raised."""
    try:
        return await work
    except (TooBusy, ConnectionResetError) as error:
        return type(error)


async def test_a_body_is_what_came_and_holds_nothing_afterwards() -> None:
    intake, body = Intake(100), Body(b"ab", b"c")
    task = await started(intake, body)
    assert intake.held_bytes == 3
    body.end()
    assert await outcome(task) == b"abc"
    assert intake.held_bytes == 0


async def test_a_body_above_its_own_limit_is_none() -> None:
    body = Body(b"x" * 60, b"x" * 41)
    assert await Intake(1000).read(body.next_chunk, body.cut, 100) is None


async def test_the_largest_is_cut_off_for_a_small_one() -> None:
    intake, large, medium, small = Intake(100), Body(b"x" * 60), Body(b"x" * 40), Body(b"x")
    tasks = [await started(intake, body) for body in (large, medium, small)]
    assert [body.is_cut for body in (large, medium, small)] == [True, False, False]
    assert intake.held_bytes == 41
    medium.end()
    small.end()
    assert [await outcome(task) for task in tasks] == [ConnectionResetError, b"x" * 40, b"x"]


async def test_the_largest_itself_is_told_so() -> None:
    intake, small, large = Intake(100), Body(b"x" * 40), Body(b"x" * 61)
    first = await started(intake, small)
    assert await outcome(await started(intake, large)) is TooBusy
    small.end()
    assert await outcome(first) == b"x" * 40


async def test_a_judgement_makes_room_or_is_refused_without_harm() -> None:
    intake, body = Intake(100), Body(b"x" * 60)
    task = await started(intake, body)
    with pytest.raises(TooBusy), intake.judging(101):
        pass
    assert not body.is_cut
    with intake.judging(40):
        assert not body.is_cut
        assert intake.held_bytes == 100
    with intake.judging(41):
        assert body.is_cut
    assert await outcome(task) is ConnectionResetError
    assert intake.held_bytes == 0


@pytest.mark.parametrize("make", [lambda n: b"[" + b"{}," * n + b"{}]", lambda n: b"[" * n, lambda n: b'"' + b"x" * n])
def test_the_estimate_grows_with_what_json_makes_of_it(make: Callable[[int], bytes]) -> None:
    assert parsed_bytes(make(1000)) >= 4 * len(make(1000))
    assert parsed_bytes(b"[" + b"{}," * 1000 + b"{}]") > 200 * 1000
