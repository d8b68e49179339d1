"""Leader election: the rules as tables, and every candidate of a simulated cluster held to one leader at a time."""

import asyncio
import os
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engram_operator.errors import ApiConflict, ApiUnavailable, LostLease
from engram_operator.leadership import Leadership, Term
from engram_operator.plan.lease import (
    LEASE_S,
    LOOK_S,
    MAX_LEASE_S,
    NOBODY,
    RENEW_S,
    TERM_S,
    Acquire,
    Establish,
    Lease,
    Lost,
    Observation,
    Renew,
    Wait,
    plan_candidate,
    plan_leader,
)
from tests.operator_stage import run_virtually

WORLDS_TRIED = 1000 if os.environ.get("ENGRAM_SOAK") == "1" else 20  # each is 200 s of a small cluster's life
ME, OTHER = "me", "other"
MINE = Lease("7", ME)
THEIRS = Lease("7", OTHER)
FREE = Lease("7", "")


@pytest.mark.parametrize(
    ("lease", "age_s", "decision"),
    [
        (None, 0, Establish()),  # deleted, perhaps under a leader that does not know it yet: so not taken
        (None, 10 * LEASE_S, Establish()),
        (Lease("1", NOBODY), LEASE_S - 0.5, Wait(0.5)),
        (Lease("1", NOBODY), LEASE_S, Acquire(Lease("1", NOBODY))),
        (FREE, 0, Acquire(FREE)),
        (MINE, 0, Acquire(MINE)),
        (THEIRS, 0, Wait(LOOK_S)),
        (THEIRS, LEASE_S - 0.5, Wait(0.5)),
        (THEIRS, LEASE_S, Acquire(THEIRS)),
        (Lease("7", OTHER, lease_s=60), LEASE_S, Wait(LOOK_S)),
        (Lease("7", OTHER, lease_s=60), 60, Acquire(Lease("7", OTHER, lease_s=60))),
        (Lease("7", OTHER, lease_s=1), LEASE_S - 1, Wait(1)),
        (Lease("7", OTHER, lease_s=2e9), MAX_LEASE_S - 1, Wait(1)),
        (Lease("7", OTHER, lease_s=2e9), MAX_LEASE_S, Acquire(Lease("7", OTHER, lease_s=2e9))),
    ],
)
def test_a_candidate_takes_what_stood_still_for_long_enough(lease: Lease, age_s: float, decision: object) -> None:
    assert plan_candidate(Observation(lease, 100.0), ME, 100.0 + age_s) == decision


@pytest.mark.parametrize(
    ("lease", "left_s", "decision"),
    [
        (MINE, 1, Renew(MINE)),
        (MINE, 0, Lost("the deadline passed without a renewal")),
        (MINE, -5, Lost("the deadline passed without a renewal")),
        (None, 5, Lost("the Lease was deleted")),
        (THEIRS, 5, Lost("the Lease is held by other")),
        (FREE, 5, Lost("the Lease is held by nobody")),
    ],
)
def test_a_leader_renews_what_is_its_own_and_in_time(lease: Lease, left_s: float, decision: object) -> None:
    assert plan_leader(lease, ME, 100.0 + left_s, 100.0) == decision


@pytest.mark.parametrize(
    ("then", "since_s"), [(THEIRS, 1.0), (Lease("8", OTHER), 5.0), (None, 5.0), (Lease("7", ME), 5.0)]
)
def test_only_a_new_version_starts_the_wait_anew(then: Lease | None, since_s: float) -> None:
    assert Observation(THEIRS, 1.0).followed_by(then, 5.0).since_s == since_s


def test_the_old_term_ends_before_the_wait_of_the_others_does() -> None:
    assert RENEW_S < TERM_S < LEASE_S < MAX_LEASE_S


def test_a_follower_says_once_for_each_holder_whom_it_waits_for(caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> None:
        leases = FakeLeases(calm, Lease("0", "a", lease_s=40.0))
        running = asyncio.create_task(candidate(leases, ME).run())
        await asyncio.sleep(20)
        leases.lease = Lease("1", "b")
        await asyncio.sleep(5)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    with caplog.at_level("INFO"):
        run_virtually(play())
    told = [(vars(record)["holder"], vars(record)["silent_for_s"]) for record in caplog.records]
    assert told == [("a", 40.0), ("b", LEASE_S)]


def test_a_term_gives_what_is_left_of_it_and_then_raises() -> None:
    now_s = [0.0]
    term = Term(lambda: now_s[0], 10.0)
    now_s[0] = 4.0
    assert term.check() == 6.0
    now_s[0] = 10.0
    with pytest.raises(LostLease):
        term.check()


@dataclass
class FakeLeases:
    """One Lease that all candidates share. `weather` decides what happens to each call."""

    weather: Callable[[], tuple[float, str, float]]
    lease: Lease | None = None
    version: int = 0
    log: list[tuple[float, str]] = field(default_factory=list)

    async def fetch(self, timeout_s: float) -> Lease | None:
        there_s, fate, back_s = self.weather()
        await asyncio.sleep(there_s)
        found = self.lease
        await self._answer(fate, back_s)
        return found

    async def write(self, over: Lease | None, holder: str, timeout_s: float) -> Lease:
        there_s, fate, back_s = self.weather()
        await asyncio.sleep(there_s)
        if fate == "refused":
            raise ApiUnavailable("500")
        if over != self.lease:
            raise ApiConflict("409")
        self.version += 1
        self.lease = Lease(str(self.version), holder)
        self.log.append((asyncio.get_running_loop().time(), holder))
        written = self.lease
        await self._answer(fate, back_s)
        return written

    async def _answer(self, fate: str, back_s: float) -> None:
        """A lost answer is no proof of anything: the write may have landed. A hung one ignores its timeout."""
        await asyncio.sleep(1e6 if fate == "hung" else back_s)
        if fate == "lost":
            raise ApiUnavailable("reset")


def candidate(leases: FakeLeases, name: str, offset_s: float = 0.0) -> Leadership:
    loop = asyncio.get_running_loop()
    return Leadership(leases, name, lambda: loop.time() + offset_s)


def calm() -> tuple[float, str, float]:
    return 0.01, "fine", 0.01


def test_one_of_three_leads_and_a_successor_follows_at_once_when_it_stops_in_order() -> None:
    async def play() -> None:
        leases = FakeLeases(calm)
        three = [candidate(leases, name) for name in "abc"]
        tasks = [asyncio.create_task(each.run()) for each in three]
        await asyncio.sleep(60)
        (leader,) = [index for index, each in enumerate(three) if each.is_leader()]
        tasks[leader].cancel()
        await three[leader].release()
        assert not three[leader].is_leader()
        assert leases.lease is not None
        assert leases.lease.holder == ""
        await asyncio.sleep(LOOK_S + 0.1)
        (follower,) = [index for index, each in enumerate(three) if each.is_leader()]
        assert follower != leader
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run_virtually(play())


def test_a_successor_of_a_killed_leader_waits_for_the_whole_lease() -> None:
    async def play() -> None:
        loop = asyncio.get_running_loop()
        leases = FakeLeases(calm, Lease("0", ""))
        first, second = candidate(leases, "first"), candidate(leases, "second")
        running = asyncio.create_task(first.run())
        await asyncio.sleep(1)
        following = asyncio.create_task(second.run())
        await asyncio.sleep(60)
        running.cancel()
        (killed_s, _) = leases.log[-1]
        while not second.is_leader():  # noqa: ASYNC110  virtual time: nothing tells of a new leader
            await asyncio.sleep(0.1)
        assert LEASE_S <= loop.time() - killed_s < LEASE_S + 2 * LOOK_S
        following.cancel()
        await asyncio.gather(running, following, return_exceptions=True)

    run_virtually(play())


@pytest.mark.parametrize("fate", ["hung", "refused", "lost"])
def test_a_leader_that_cannot_renew_ends_at_its_deadline(fate: str) -> None:
    async def play() -> None:
        loop = asyncio.get_running_loop()
        fates = ["fine"]
        leases = FakeLeases(lambda: (0.0, fates[0], 0.0), Lease("0", ""))
        leader = candidate(leases, ME)
        running = asyncio.create_task(leader.run())
        await asyncio.sleep(RENEW_S + 1)
        fates[0] = fate
        assert leader.term is not None
        until_s = leader.term.until_s
        with pytest.raises(LostLease):
            await running
        assert until_s <= loop.time() <= until_s + 1.01
        assert not leader.is_leader()

    run_virtually(play())


@pytest.mark.parametrize("fate", ["refused", "lost"])
def test_one_renewal_that_fails_is_no_lost_term(fate: str) -> None:
    async def play() -> None:
        fates: list[str] = []
        leases = FakeLeases(lambda: (0.1, fates.pop() if fates else "fine", 0.1), Lease("0", ""))
        leader = candidate(leases, ME)
        running = asyncio.create_task(leader.run())
        await asyncio.sleep(1)
        for _ in range(20):
            fates[:] = [fate, "fine"]
            await asyncio.sleep(7)
            assert leader.is_leader()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run_virtually(play())


def test_a_leader_whose_lease_somebody_deleted_ends_at_its_next_look() -> None:
    async def play() -> None:
        leases = FakeLeases(calm, Lease("0", ""))
        leader = candidate(leases, ME)
        running = asyncio.create_task(leader.run())
        await asyncio.sleep(1)
        leases.lease = None
        with pytest.raises(LostLease, match="deleted"):
            await running

    run_virtually(play())


def test_a_candidate_without_an_api_server_goes_on_asking_and_ticking() -> None:
    async def play() -> None:
        leases = FakeLeases(lambda: (0.0, "lost", 0.0))
        one = candidate(leases, ME)
        running = asyncio.create_task(one.run())
        await asyncio.sleep(300)
        assert asyncio.get_running_loop().time() - one.ticked_s <= LOOK_S
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run_virtually(play())


def test_giving_up_ends_soon_even_if_the_api_server_hangs() -> None:
    async def play() -> None:
        fates = ["fine"]
        leases = FakeLeases(lambda: (0.0, fates[0], 0.0), Lease("0", ""))
        leader = candidate(leases, ME)
        running = asyncio.create_task(leader.run())
        await asyncio.sleep(1)
        running.cancel()
        fates[0] = "hung"
        before_s = asyncio.get_running_loop().time()
        await leader.release()
        assert asyncio.get_running_loop().time() - before_s <= 2.0
        await asyncio.gather(running, return_exceptions=True)

    run_virtually(play())


@dataclass(frozen=True)
class Cluster:
    """A simulated world: how many candidates, how bad the network is, who is killed when."""

    seed: int
    candidates: int
    trouble: float
    slowest_s: float
    deletes: bool


async def simulate(world: Cluster) -> tuple[int, int]:
    """How many terms there were, and the most that passed their check at one time. In 400 virtual seconds."""
    chance = random.Random(world.seed)
    loop = asyncio.get_running_loop()

    def weather() -> tuple[float, str, float]:
        fates = ["refused", "lost", "hung"]
        fate = chance.choice(fates) if chance.random() < world.trouble else "fine"
        return chance.uniform(0, world.slowest_s), fate, chance.uniform(0, world.slowest_s)

    leases = FakeLeases(weather)
    alive: list[Leadership] = []

    async def live() -> None:
        """A pod: started again after each end, with another identity and another reading of its clock."""
        while True:
            one = candidate(leases, f"pod-{chance.random()}", chance.uniform(-1e4, 1e4))
            alive.append(one)
            patience_s = chance.choice([1e6, chance.uniform(0, 200)])
            with suppress(LostLease, TimeoutError):
                async with asyncio.timeout(patience_s):
                    await one.run()
            if chance.random() < 0.5:
                await one.release()  # in order; else it was killed, and its term is over only for want of time
            await asyncio.sleep(chance.uniform(0, 5))

    pods = [asyncio.create_task(live()) for _ in range(world.candidates)]
    most = 0
    while loop.time() < 400:
        most = max(most, sum(each.is_leader() for each in alive))
        if world.deletes and chance.random() < 0.01:
            leases.lease = None
        await asyncio.sleep(0.2)
    for pod in pods:
        pod.cancel()
    await asyncio.gather(*pods, return_exceptions=True)
    return sum(each.term is not None for each in alive), most


WORLDS = st.builds(
    Cluster,
    seed=st.integers(0, 2**32),
    candidates=st.integers(1, 5),
    trouble=st.sampled_from([0.0, 0.05, 0.2, 0.5]),
    slowest_s=st.sampled_from([0.0, 0.1, 2.0, 8.0]),
    deletes=st.booleans(),
)


@settings(max_examples=WORLDS_TRIED)
@given(world=WORLDS)
@example(world=Cluster(seed=1, candidates=3, trouble=0.2, slowest_s=2.0, deletes=False))
def test_never_do_two_terms_hold_at_one_time(world: Cluster) -> None:
    _, most = run_virtually(simulate(world))
    assert most <= 1


def test_in_fair_weather_somebody_leads() -> None:
    terms, most = run_virtually(simulate(Cluster(seed=5, candidates=3, trouble=0.0, slowest_s=0.1, deletes=False)))
    assert (terms > 0, most) == (True, 1)
