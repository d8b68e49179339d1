"""The line of writes before a primary that is away: order, bounds, pace, and the end of the wait."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from engram_contract.resilience import Resilience
from engram_sidecar import failover
from engram_sidecar.errors import (
    BreakerOpen,
    NodeRefused,
    OutcomeUnknown,
    QuotaExceeded,
    ShardUnavailable,
    Shed,
    SlotMoved,
)
from engram_sidecar.failover import AT_ONCE, MAX_WAITING_BYTES, PROBE_S, Lane
from engram_sidecar.patience import Patience

pytestmark = pytest.mark.virtual_time
GONE = ShardUnavailable("s0", "connection refused")
TUNED = Resilience(failover_seconds=10)
SHORT = Resilience(failover_seconds=1)


class Primary:
    """A primary that is there or not; what reached it, in order, and how many tried."""

    def __init__(self, *, is_there: bool = False) -> None:
        self.is_there = is_there
        self.lane = Lane("s0")
        self.stored: list[tuple[int, float]] = []
        self.tries = 0
        self.under_way = 0
        self.answers = asyncio.Event()
        self.answers.set()
        self.tasks: list[asyncio.Task[int]] = []

    def put(self, number: int, tuned: Resilience = TUNED, size_bytes: int = 0) -> Awaitable[int]:
        patience = Patience(size_bytes=size_bytes)
        patience.begin(asyncio.get_running_loop().time(), 5.0, tuned.failover_seconds)

        async def attempt(is_awaited: bool) -> int:
            self.tries += 1
            self.under_way += 1
            await asyncio.sleep(0)
            await self.answers.wait()
            self.under_way -= 1
            if not self.is_there:
                raise GONE
            self.stored.append((number, asyncio.get_running_loop().time()))
            return number

        return self.lane.run(attempt, patience, tuned)


async def lined_up(primary: Primary, count: int, tuned: Resilience = TUNED) -> list[asyncio.Task[int]]:
    """So many writes that found no primary and wait."""
    tasks = []
    for number in range(count):
        tasks.append(asyncio.ensure_future(primary.put(number, tuned)))
        for _ in range(4):
            await asyncio.sleep(0)
    return tasks


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  counts that the lane moves
        await asyncio.sleep(0)


async def drained_by_one(count: int, tuned: Resilience = TUNED) -> Primary:
    """So many waited, at a high rate; the first got through, and the primary takes its time with the others."""
    primary = Primary(is_there=True)
    for number in range(1_000):
        await primary.put(number)
    primary.is_there = False
    primary.tasks = await lined_up(primary, count, tuned)
    primary.is_there = True
    await until(lambda: len(primary.lane) < count)
    primary.answers.clear()
    return primary


async def test_writes_that_waited_go_on_in_order() -> None:
    primary = Primary()
    tasks = await lined_up(primary, 9)
    assert len(primary.lane) == 9
    primary.is_there = True
    late = asyncio.ensure_future(primary.put(9))
    assert await asyncio.gather(*tasks, late) == list(range(10))
    assert [number for number, _ in primary.stored] == list(range(10))
    assert len(primary.lane) == 0


async def test_one_asks_while_all_wait() -> None:
    primary = Primary()
    tasks = await lined_up(primary, 12)
    await asyncio.sleep(3 * PROBE_S)
    assert primary.tries <= 5
    primary.is_there = True
    await asyncio.gather(*tasks)
    assert primary.tries <= 18


async def test_what_piled_up_goes_on_at_twice_the_rate_at_most() -> None:
    primary = Primary(is_there=True)
    for number in range(10):  # ten within the last second
        await primary.put(number)
    primary.is_there = False
    tasks = await lined_up(primary, 20)
    primary.is_there = True
    await asyncio.gather(*tasks)
    moments = [moment for _, moment in primary.stored[10:]]
    assert moments[-1] - moments[0] >= 19 * 1 / 22 * 0.9  # eleven in a second were the rate, 22 a second its double


@pytest.mark.parametrize(("waiting_requests", "together"), [(256, AT_ONCE), (4, 5)])
async def test_what_piled_up_goes_on_together_however_long_the_primary_takes(
    waiting_requests: int, together: int
) -> None:
    primary = await drained_by_one(3 * AT_ONCE, Resilience(waiting_requests=waiting_requests))
    await until(lambda: primary.under_way == together)
    await asyncio.sleep(0.1)
    assert primary.under_way == together
    primary.answers.set()
    assert await asyncio.gather(*primary.tasks) == list(range(3 * AT_ONCE))
    assert [number for number, _ in primary.stored[-3 * AT_ONCE :]] == list(range(3 * AT_ONCE))


async def test_a_primary_that_goes_away_again_is_asked_by_one_and_nobody_loses_the_place() -> None:
    primary = await drained_by_one(2 * AT_ONCE)
    await until(lambda: primary.under_way == AT_ONCE)
    primary.is_there = False
    primary.answers.set()
    tries = primary.tries
    await asyncio.sleep(3 * PROBE_S)
    assert tries < primary.tries <= tries + 4
    assert len(primary.lane) == 2 * AT_ONCE - 1
    primary.is_there = True
    assert await asyncio.gather(*primary.tasks) == list(range(2 * AT_ONCE))
    assert [number for number, _ in primary.stored[-2 * AT_ONCE :]] == list(range(2 * AT_ONCE))


async def test_heads_that_leave_while_all_wait_hold_up_nobody_later() -> None:
    primary = Primary()
    tasks = await lined_up(primary, 100)
    for task in tasks[:95]:
        task.cancel()
        for _ in range(4):
            await asyncio.sleep(0)
    assert primary.lane._called_s <= asyncio.get_running_loop().time(), "else the next drain stands still until then"
    primary.is_there = True
    await asyncio.gather(*tasks[95:])


async def test_who_comes_while_all_in_line_ask_already_asks_too() -> None:
    primary = await drained_by_one(2)
    await until(lambda: primary.under_way == 1)
    late = [asyncio.ensure_future(primary.put(number)) for number in (7, 8)]
    await until(lambda: primary.under_way == 3)
    primary.answers.set()
    assert await asyncio.gather(*primary.tasks, *late) == [0, 1, 7, 8]


async def test_a_line_that_gets_longer_goes_on_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod that stored nothing before the outage, and much since."""
    monkeypatch.setattr(failover, "LOOK_S", 0.1)
    primary = Primary()
    tasks = await lined_up(primary, 3)
    slow_s = primary.lane._pace_s
    primary.is_there = True
    await until(lambda: len(primary.lane) < 3)
    tasks.extend(asyncio.ensure_future(primary.put(number)) for number in range(3, 403))
    assert await asyncio.gather(*tasks) == list(range(403))
    assert primary.lane._pace_s < slow_s / 10


async def test_a_write_of_before_the_outage_that_succeeds_late_does_not_put_off_its_end() -> None:
    primary = Primary(is_there=True)
    primary.answers.clear()
    passing = asyncio.ensure_future(primary.put(0, SHORT))
    await until(lambda: primary.under_way == 1)

    async def attempt(is_awaited: bool) -> None:
        raise GONE

    patience = Patience()
    patience.begin(asyncio.get_running_loop().time(), 5.0, SHORT.failover_seconds)
    waiting = asyncio.ensure_future(primary.lane.run(attempt, patience, SHORT))
    await until(lambda: len(primary.lane) == 1)
    began_s = primary.lane._began_s
    primary.answers.set()
    assert await passing == 0
    assert primary.lane._began_s == began_s is not None
    with pytest.raises(ShardUnavailable):
        await waiting


async def test_who_finds_the_line_full_is_told_at_once() -> None:
    primary = Primary()
    tuned = Resilience(waiting_writes=3)
    tasks = await lined_up(primary, 3, tuned)
    with pytest.raises(Shed) as shed:
        await primary.put(9, tuned)
    assert shed.value.retry_after_s == 5
    primary.is_there = True
    await asyncio.gather(*tasks)


async def test_the_bytes_that_wait_are_bounded_too() -> None:
    primary = Primary()
    first = asyncio.ensure_future(primary.put(0, size_bytes=MAX_WAITING_BYTES - 1))
    await asyncio.sleep(0.01)
    with pytest.raises(Shed):
        await primary.put(1, size_bytes=2)
    primary.is_there = True
    assert await first == 0
    assert await primary.put(2, size_bytes=2) == 2


async def test_after_the_wait_all_are_refused_and_later_ones_at_once() -> None:
    primary = Primary()
    tasks = await lined_up(primary, 5, SHORT)
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(each) for each in ended} == {ShardUnavailable}
    tries = primary.tries
    with pytest.raises(ShardUnavailable):
        await primary.put(7, SHORT)
    assert primary.tries == tries + 1
    primary.is_there = True
    assert await primary.put(8, SHORT) == 8
    primary.is_there = False  # a write got through, so this is another outage
    waits = asyncio.ensure_future(primary.put(9, SHORT))
    await asyncio.sleep(0.01)
    primary.is_there = True
    assert await waits == 9


async def test_what_it_waits_takes_nothing_of_the_requests_own_time() -> None:
    primary, patience, left_s = Primary(), Patience(), list[float]()
    patience.begin(asyncio.get_running_loop().time(), 5.0, TUNED.failover_seconds)

    async def attempt(is_awaited: bool) -> None:
        assert patience.by_s is not None
        left_s.append(patience.by_s - asyncio.get_running_loop().time())
        if not primary.is_there:
            raise GONE

    waiting = asyncio.ensure_future(primary.lane.run(attempt, patience, TUNED))
    await asyncio.sleep(7)
    primary.is_there = True
    await waiting
    assert left_s == pytest.approx([5] * len(left_s), abs=0.01)
    assert len(left_s) > 20


async def test_one_that_leaves_makes_room_and_holds_nobody_up() -> None:
    primary = Primary()
    tasks = await lined_up(primary, 4)
    for left in (tasks[0], tasks[2]):
        left.cancel()
    primary.is_there = True
    assert [await tasks[1], await tasks[3]] == [1, 3]
    assert len(primary.lane) == 0


@pytest.mark.parametrize("failure", [OutcomeUnknown("s0", "lost"), NodeRefused("s0", "no")], ids=str)
async def test_what_may_have_happened_or_cannot_is_not_waited_with(failure: ShardUnavailable) -> None:
    async def attempt(is_awaited: bool) -> None:
        raise failure

    with pytest.raises(type(failure)):
        await Lane("s0").run(attempt, Patience(), TUNED)


REFUSALS = [SlotMoved("s0"), NodeRefused("s0", "no"), QuotaExceeded("s0", "bytes", 1)]


@pytest.mark.parametrize("refusal", REFUSALS, ids=str)
async def test_a_refusal_is_an_answer_too_and_ends_the_outage(refusal: Exception) -> None:
    primary = Primary()
    await asyncio.gather(*await lined_up(primary, 2, SHORT), return_exceptions=True)

    async def refused(is_awaited: bool) -> None:
        raise refusal

    with pytest.raises(type(refusal)):
        await primary.lane.run(refused, Patience(), SHORT)
    waits = asyncio.ensure_future(primary.put(3, SHORT))
    await asyncio.sleep(0.01)
    assert len(primary.lane) == 1, "this is another outage"
    primary.is_there = True
    assert await waits == 3


async def test_an_open_breaker_is_waited_for() -> None:
    answers = iter([BreakerOpen("s0", "left alone", 60), None])
    asked: list[bool] = []

    async def attempt(is_awaited: bool) -> str:
        asked.append(is_awaited)
        failure = next(answers)
        if failure is not None:
            raise failure
        return "stored"

    patience = Patience()
    patience.begin(asyncio.get_running_loop().time(), 5.0, 10.0)
    assert await Lane("s0").run(attempt, patience, TUNED) == "stored"
    assert asked == [False, True]
