"""What the limiter asks a shared count, scripted here, and what it does without one."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from engram_contract.names import cache_part
from engram_sidecar.config import Config, InForce
from engram_sidecar.errors import CacheUnavailable, RateLimited
from engram_sidecar.limiting import Door, Limiter
from engram_sidecar.rates import UNCOUNTED
from engram_sidecar.redisdoor import Door as RealDoor
from tests.unit.configs import a_config

RATE = 20


def config_of(rate: int) -> Config:
    """A tenant that may ask so often."""
    config = a_config()
    return replace(config, policy=replace(config.policy, quota=replace(config.policy.quota, requests_per_second=rate)))


class Counts:
    """A Redis of one tenant: INCRBY and EXPIRE; held, broken, or answering nonsense as the test says."""

    def __init__(self) -> None:
        self.counts = Counter[str]()
        self.kept_s: dict[str, int] = {}
        self.trips = 0
        self.is_broken = False
        self.nonsense: object = None
        self.let = asyncio.Event()
        self.let.set()

    async def run(self, commands: Sequence[Sequence[str | bytes | int]]) -> list[Any]:
        self.trips += 1
        if self.is_broken:
            raise CacheUnavailable("it does not answer")
        [(incrby, key, asked), (expire, same, kept_s)] = commands
        assert (incrby, expire, key) == ("INCRBY", "EXPIRE", same)
        assert isinstance(key, str)
        assert isinstance(asked, int)
        assert isinstance(kept_s, int)
        self.counts[key] += asked
        self.kept_s[key] = kept_s
        counted = self.counts[key]
        await self.let.wait()
        return [counted if self.nonsense is None else self.nonsense, 1]


class Stage:
    """Limiters of one tenant and one clock."""

    def __init__(self, door: Door, sidecars: int = 1, rate: int = RATE) -> None:
        self.time_s = 1_000.25
        self.refused = 0
        self.in_force = InForce(config_of(rate))
        self.limiters = [Limiter(self.in_force, door, lambda: self.time_s, self._refuse) for _ in range(sidecars)]

    def _refuse(self) -> None:
        self.refused += 1

    def set_rate(self, rate: int) -> None:
        self.in_force.config = config_of(rate)

    async def ask(self, sidecar: int = 0, operation: str = "retrieve") -> bool:
        try:
            await self.limiters[sidecar].admit(operation)
        except RateLimited:
            return False
        return True

    async def burst(self, requests: int, sidecar: int = 0) -> int:
        """How many of so many at once are admitted."""
        return sum(await asyncio.gather(*(self.ask(sidecar) for _ in range(requests))))


async def test_a_burst_of_the_rate_is_admitted_by_one_question_and_the_rest_refused() -> None:
    counts = Counts()
    stage = Stage(counts)
    assert await stage.burst(RATE) == RATE
    assert counts.trips == 1
    assert await stage.burst(30) == 0
    assert stage.refused == 30
    assert counts.trips == 2, "once more to learn that nothing is left, and then no more"
    assert not stage.limiters[0].is_alone
    [key] = counts.counts
    assert key == f"{cache_part(stage.in_force.config.credentials.role)}r:1000"
    assert counts.kept_s[key] > 1
    stage.time_s += 1
    assert await stage.ask()


async def test_the_rate_is_that_of_all_sidecars_together() -> None:
    stage = Stage(Counts(), sidecars=3)
    admitted = [await stage.burst(15, sidecar) for sidecar in range(3)]
    assert admitted == [15, 5, 0]


async def test_who_waits_while_the_second_ends_is_admitted_in_the_next_one() -> None:
    counts = Counts()
    stage = Stage(counts)
    counts.let.clear()
    waiting = [asyncio.create_task(stage.ask()) for _ in range(5)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    stage.time_s += 1
    counts.let.set()
    assert all(await asyncio.gather(*waiting))
    assert counts.trips == 2


async def test_a_caller_that_leaves_takes_nobody_with_it() -> None:
    counts = Counts()
    stage = Stage(counts)
    counts.let.clear()
    first, second = (asyncio.create_task(stage.ask()) for _ in range(2))
    await asyncio.sleep(0.001)
    first.cancel()
    await asyncio.sleep(0)
    counts.let.set()
    assert await second
    assert first.cancelled()


async def test_leases_are_taken_ahead_and_rarely() -> None:
    counts = Counts()
    stage = Stage(counts, rate=1_000)
    waits = 0
    for second in range(3):
        stage.time_s = 1_000.0 + second
        counts.trips = waits = 0
        for _ in range(900):
            asked = asyncio.create_task(stage.ask())
            await asyncio.sleep(0)
            waits += not asked.done()
            assert await asked
    assert counts.trips <= 25, "once it is known what is asked"
    assert waits <= 1, "for the first lease of the second"


@pytest.mark.parametrize("door", [RealDoor(), None], ids=["none", "broken"])
async def test_without_a_count_each_sidecar_admits_the_whole_rate_and_says_so(door: RealDoor | None) -> None:
    counts = Counts()
    counts.is_broken = True
    stage = Stage(door or counts, sidecars=2)
    assert [await stage.burst(2 * RATE, sidecar) for sidecar in range(2)] == [RATE, RATE]
    assert all(limiter.is_alone for limiter in stage.limiters)
    assert counts.trips == (0 if door else 2)


async def test_a_count_that_is_lost_and_found_within_a_second_admits_no_more_than_the_rate() -> None:
    counts = Counts()
    stage = Stage(counts)
    assert await stage.burst(15) == 15
    counts.is_broken = True
    assert await stage.burst(3) == 3
    counts.is_broken = False
    assert await stage.burst(10) == 2
    assert stage.limiters[0].is_alone
    stage.time_s += 1
    assert await stage.burst(RATE) == RATE
    assert not stage.limiters[0].is_alone


@pytest.mark.parametrize("nonsense", [b"7", "QUEUED", [], 1.5])
async def test_an_answer_that_is_no_count_is_none(nonsense: object) -> None:
    counts = Counts()
    counts.nonsense = nonsense
    stage = Stage(counts)
    assert await stage.burst(2 * RATE) == RATE
    assert stage.limiters[0].is_alone


async def test_a_rate_of_zero_is_none_and_asks_nobody() -> None:
    counts = Counts()
    stage = Stage(counts, rate=0)
    assert await stage.burst(500) == 500
    assert counts.trips == 0


async def test_what_helps_to_look_is_not_counted() -> None:
    counts = Counts()
    stage = Stage(counts, rate=1)
    assert await stage.ask()
    assert not await stage.ask()
    for operation in sorted(UNCOUNTED):
        assert await stage.ask(operation=operation)


async def test_another_rate_counts_from_the_next_second() -> None:
    stage = Stage(Counts(), rate=5)
    assert await stage.burst(9) == 5
    stage.set_rate(7)
    assert await stage.burst(9) == 0, "this second is over for it"
    stage.time_s += 1
    assert await stage.burst(9) == 7
    stage.set_rate(3)
    stage.time_s += 1
    assert await stage.burst(9) == 3


async def test_a_limiter_ends_with_what_it_asks() -> None:
    counts = Counts()
    stage = Stage(counts)
    counts.let.clear()
    asking = asyncio.create_task(stage.ask())
    await asyncio.sleep(0.001)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await stage.limiters[0].close()
    await Stage(counts).limiters[0].close()
