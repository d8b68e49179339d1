"""The work queue: no add is lost, no key is twice in flight, the oldest goes first; in virtual time."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from engram_operator.errors import LostLease
from engram_operator.workqueue import SLACK, SPREAD, Key, WorkQueue, spread
from tests.operator_stage import VirtualLoop, run_virtually


def key(name: str) -> Key:
    return Key("MemoryCluster", "default", name)


A, B, C = key("a"), key("b"), key("c")


def a_queue() -> WorkQueue:
    return WorkQueue(asyncio.get_running_loop().time, lambda seconds: seconds)


class Work:
    """Takes `took_s` for each key and asks for `again_s`; `began` says which key began when."""

    def __init__(self, took_s: float = 0.0, again_s: float | None = None) -> None:
        self.took_s = took_s
        self.again_s = again_s
        self.began: list[tuple[float, str]] = []
        self.in_flight: list[Key] = []
        self.most = 0

    async def __call__(self, key: Key) -> float | None:
        assert key not in self.in_flight
        self.began.append((asyncio.get_running_loop().time(), key.name))
        self.in_flight.append(key)
        self.most = max(self.most, len(self.in_flight))
        await asyncio.sleep(self.took_s)
        self.in_flight.remove(key)
        return self.again_s


def play(work: Work, script: Callable[[WorkQueue], Awaitable[None]], workers: int = 1) -> list[tuple[float, str]]:
    """What began, and when, while the script ran and for 1,000 s after it."""

    async def run() -> None:
        queue = a_queue()
        running = asyncio.create_task(queue.run(work, workers))
        await script(queue)
        await asyncio.sleep(1000.0)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    run_virtually(run())
    return work.began


def test_keys_run_in_the_order_in_which_they_came_and_each_once() -> None:
    async def script(queue: WorkQueue) -> None:
        for each in (B, A, B, C, A):
            queue.add(each)

    assert play(Work(took_s=1.0), script) == [(0.0, "b"), (1.0, "a"), (2.0, "c")]


def test_the_key_that_is_due_longest_goes_first() -> None:
    async def script(queue: WorkQueue) -> None:
        queue.add(A)
        queue.add_after(C, 3.0)
        queue.add_after(B, 2.0)

    assert play(Work(took_s=10.0), script) == [(0.0, "a"), (10.0, "b"), (20.0, "c")]


@pytest.mark.parametrize(
    ("pauses_s", "began_s"), [((5.0, 9.0), 5.0), ((9.0, 5.0), 5.0), ((9.0, 0.0), 0.0), ((5.0, -1.0), 0.0)]
)
def test_the_earlier_of_two_times_wins(pauses_s: tuple[float, float], began_s: float) -> None:
    async def script(queue: WorkQueue) -> None:
        for pause_s in pauses_s:
            queue.add_after(A, pause_s)

    assert play(Work(), script) == [(began_s, "a")]


def test_an_add_makes_a_later_key_due_now() -> None:
    async def script(queue: WorkQueue) -> None:
        queue.add_after(A, 500.0)
        await asyncio.sleep(2.0)
        queue.add(A)

    assert play(Work(), script) == [(2.0, "a")]


def test_a_key_that_is_added_in_flight_runs_once_more_when_it_ends() -> None:
    async def script(queue: WorkQueue) -> None:
        queue.add(A)
        await asyncio.sleep(1.0)
        queue.add(A)
        queue.add(A)
        queue.add(B)

    assert play(Work(took_s=3.0), script, workers=2) == [(0.0, "a"), (1.0, "b"), (3.0, "a")]


def test_what_work_asks_for_comes_again_and_an_earlier_add_replaces_it() -> None:
    async def script(queue: WorkQueue) -> None:
        queue.add(A)
        await asyncio.sleep(350.0)
        queue.add(A)

    assert play(Work(again_s=300.0), script) == [
        (0.0, "a"),
        (300.0, "a"),
        (350.0, "a"),
        (650.0, "a"),
        (950.0, "a"),
        (1250.0, "a"),
    ]


def test_an_add_in_flight_wins_over_the_later_time_that_work_asks_for() -> None:
    async def script(queue: WorkQueue) -> None:
        queue.add(A)
        await asyncio.sleep(0.5)
        queue.add(A)

    assert play(Work(took_s=1.0, again_s=900.0), script)[:3] == [(0.0, "a"), (1.0, "a"), (902.0, "a")]


def test_no_more_keys_are_in_flight_than_there_are_workers() -> None:
    async def script(queue: WorkQueue) -> None:
        for number in range(50):
            queue.add(key(f"k{number}"))

    work = Work(took_s=1.0)
    assert len(play(work, script, workers=7)) == 50
    assert work.most == 7


def test_a_lost_lease_ends_the_run_and_every_other_key_in_flight() -> None:
    ended: list[str] = []

    async def work(key: Key) -> float | None:
        try:
            await asyncio.sleep(1.0 if key == A else 60.0)
        finally:
            ended.append(key.name)
        raise LostLease("over")

    async def run() -> None:
        queue = a_queue()
        queue.add(A)
        queue.add(B)
        with pytest.raises(LostLease):
            await queue.run(work, 2)
        assert asyncio.get_running_loop().time() == 1.0

    run_virtually(run())
    assert ended == ["a", "b"]


def test_depth_and_age_are_of_due_keys_that_nobody_has_taken() -> None:
    seen: list[tuple[int, float]] = []

    async def script(queue: WorkQueue) -> None:
        queue.add(A)
        await asyncio.sleep(1.0)
        queue.add(A)
        queue.add(B)
        queue.add_after(C, 500.0)
        await asyncio.sleep(2.0)
        seen.append((queue.depth(), queue.oldest_s()))

    play(Work(took_s=10.0), script)
    assert seen == [(1, 2.0)]
    assert run_virtually(_empty()) == (0, 0.0)


async def _empty() -> tuple[int, float]:
    queue = a_queue()
    return queue.depth(), queue.oldest_s()


def test_a_key_that_is_added_all_the_time_does_not_fill_the_heap() -> None:
    sizes: list[int] = []

    async def script(queue: WorkQueue) -> None:
        for _ in range(1000):
            queue.add(A)
            await asyncio.sleep(0.01)
            sizes.append(len(queue._heap))

    began = play(Work(again_s=300.0), script)
    assert len(began) > 1000
    assert max(sizes) <= SLACK + 4


def test_pauses_are_spread_by_a_fifth_to_either_side() -> None:
    pauses_s = [spread(300.0) for _ in range(200)]
    assert 300 * (1 - SPREAD) <= min(pauses_s) < 280
    assert 320 < max(pauses_s) <= 300 * (1 + SPREAD)


class QueueModel(RuleBasedStateMachine):
    """Adds of all sorts against a loop whose time is ours. A key is `wanted` from its add until a run begins."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.queue = WorkQueue(self.loop.time, lambda seconds: seconds)
        self.due_s: dict[Key, float] = {}
        self.in_flight: set[Key] = set()
        self.again_s: float | None = None
        self.took_s = 1.0
        self.running = self.loop.create_task(self.queue.run(self.work, 2))

    async def work(self, key: Key) -> float | None:
        assert key not in self.in_flight, "one key twice at a time"
        due_s = self.due_s.pop(key)
        assert due_s <= self.loop.time(), "too early"
        waiting = {other: due_s for other, due_s in self.due_s.items() if other not in self.in_flight}
        assert all(due_s <= other_s for other_s in waiting.values()), "not the oldest"
        self.in_flight.add(key)
        again_s, took_s = self.again_s, self.took_s
        await asyncio.sleep(took_s)
        self.in_flight.remove(key)
        if again_s is not None:
            self.want(key, again_s)
        return again_s

    def want(self, key: Key, seconds: float) -> None:
        self.due_s[key] = min(self.due_s.get(key, float("inf")), self.loop.time() + seconds)

    @rule(name=st.sampled_from("abcd"), seconds=st.sampled_from([0.0, 0.5, 3.0, 40.0]))
    def add(self, name: str, seconds: float) -> None:
        self.want(key(name), seconds)
        self.queue.add_after(key(name), seconds)

    @rule(again_s=st.sampled_from([None, 0.0, 2.0, 30.0]), took_s=st.sampled_from([0.0, 1.0, 7.0]))
    def change(self, again_s: float | None, took_s: float) -> None:
        self.again_s = again_s if took_s or again_s else None  # else time would stand still
        self.took_s = took_s

    @rule(seconds=st.sampled_from([0.0, 0.25, 1.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))
        self.check()

    @invariant()
    def check(self) -> None:
        if self.running.done():
            self.running.result()

    def teardown(self) -> None:
        self.again_s = None
        self.loop.run_until_complete(asyncio.sleep(1000.0))
        self.check()
        left = dict(self.due_s)
        self.running.cancel()
        with suppress(asyncio.CancelledError):
            self.loop.run_until_complete(self.running)
        self.loop.close()
        assert left == {}, "an add was lost"


QueueModel.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestQueueModel = QueueModel.TestCase
