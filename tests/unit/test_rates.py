"""Leases of a shared count: never more than the rate in a second, whoever asks whenever; and little of it is lost."""

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_sidecar.rates import LEASE_RATIO, Lease

SIDECARS = 4
RATES = st.integers(1, 60)


@dataclass
class Tenant:
    """Sidecars that share a count, some answers that are under way, and what was admitted in each second."""

    rate: int
    sidecars: list[Lease] = field(default_factory=lambda: [Lease() for _ in range(SIDECARS)])
    counts: Counter[int] = field(default_factory=Counter)
    under_way: list[tuple[int, int, int, int]] = field(default_factory=list)  # sidecar, second, asked, counted
    admitted: Counter[int] = field(default_factory=Counter)
    alone: dict[int, set[int]] = field(default_factory=dict)
    trips: int = 0

    def ask(self, sidecar: int, second: int, waiting: int = 1) -> None:
        """The count takes the question; the answer comes later."""
        asked = self.sidecars[sidecar].asks(self.rate, waiting)
        self.counts[second] += asked
        self.trips += 1
        self.under_way.append((sidecar, second, asked, self.counts[second]))

    def answer(self, which: int) -> None:
        if self.under_way:
            sidecar, second, asked, counted = self.under_way.pop(which % len(self.under_way))
            self.sidecars[sidecar].grant(second, asked, counted, self.rate)

    def lose(self, sidecar: int, second: int) -> None:
        """The count does not answer this sidecar."""
        self.sidecars[sidecar].go_alone(second, self.rate)
        if self.sidecars[sidecar].is_alone:
            self.alone.setdefault(second, set()).add(sidecar)

    def take(self, sidecar: int, second: int) -> bool:
        is_admitted = self.sidecars[sidecar].take(second)
        self.admitted[second] += is_admitted
        return is_admitted

    def request(self, sidecar: int, second: int, waiting: int = 1) -> bool:
        """A request that waits for an answer which comes at once, as a sidecar does it."""
        lease = self.sidecars[sidecar]
        while not self.take(sidecar, second):
            if lease.is_spent(second):
                return False
            self.ask(sidecar, second, waiting)
            self.answer(-1)
        if lease.is_low():
            self.ask(sidecar, second, 0)
            self.answer(-1)
        return True


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["take", "take", "take", "ask", "answer", "answer", "lose", "tick", "back"]),
        st.integers(0, SIDECARS - 1),
        st.integers(0, 40),
    ),
    max_size=300,
)


@settings(max_examples=300)
@given(RATES, EVENTS)
def test_in_no_second_more_is_admitted_than_the_rate_and_once_more_for_each_who_is_alone(
    rate: int, events: list[tuple[str, int, int]]
) -> None:
    """However questions, answers that are late, lost ones and the clock come between each other."""
    tenant, second = Tenant(rate), 1_000
    for what, sidecar, number in events:
        match what:
            case "take":
                for _ in range(number):
                    tenant.take(sidecar, second)
            case "ask":
                tenant.ask(sidecar, second, number)
            case "answer":
                tenant.answer(number)
            case "lose":
                tenant.lose(sidecar, second)
            case _:
                second += 1 + number % 2
    for each, admitted in tenant.admitted.items():
        assert admitted <= rate * (1 + len(tenant.alone.get(each, ())))


@given(RATES, st.lists(st.integers(0, 60), min_size=SIDECARS, max_size=SIDECARS))
def test_the_first_burst_of_an_idle_tenant_is_admitted(rate: int, bursts: list[int]) -> None:
    """As many as the rate, at once; spread over its sidecars, all but what they took ahead; what is more is refused."""
    tenant = Tenant(rate)
    for sidecar, burst in enumerate(bursts):
        for number in range(burst):
            tenant.request(sidecar, 1_000, burst - number)
    admitted, wanted = tenant.admitted[1_000], min(rate, sum(bursts))
    is_of_one = sum(bursts) == max(bursts)
    assert wanted * (1 if is_of_one else 1 - 1.5 * LEASE_RATIO) <= admitted <= wanted
    assert tenant.trips <= 2 * SIDECARS + rate * LEASE_RATIO


@pytest.mark.parametrize(("rate", "sidecars"), [(10, 4), (100, 4), (1_000, 1), (1_000, 4), (20_000, 4)])
def test_a_steady_load_of_twice_the_rate_is_admitted_to_nearly_the_rate(rate: int, sidecars: int) -> None:
    """One request after the other, so every lease is guessed; and the count is asked seldom."""
    tenant = Tenant(rate)
    for second in range(1_000, 1_005):
        tenant.trips = 0
        for number in range(2 * rate):
            tenant.request(number % sidecars, second)
    assert all(0.95 * rate <= admitted <= rate for admitted in tenant.admitted.values())
    assert tenant.trips <= min(2 * rate, sidecars * (1 / LEASE_RATIO + 10))


def test_who_asks_seldom_takes_no_more_than_it_uses() -> None:
    tenant = Tenant(100)
    for second in range(1_000, 1_010):
        assert tenant.request(0, second)
        assert tenant.counts[second] == 1


def test_who_is_alone_is_so_until_the_second_ends() -> None:
    lease = Lease()
    assert not lease.take(7)
    lease.go_alone(6, 3)
    assert not lease.is_alone, "that was of the second before"
    lease.go_alone(7, 3)
    assert lease.is_alone
    assert [lease.take(7) for _ in range(5)] == [True] * 3 + [False] * 2
    lease.grant(7, 5, 5, 100)
    assert not lease.take(7), "an answer that comes after that is of no use"
    assert not lease.take(8)
    assert not lease.is_alone


def test_when_the_count_is_used_up_nobody_counts_alone() -> None:
    lease = Lease()
    lease.take(7)
    lease.grant(7, 5, 9, 6)
    assert [lease.take(7) for _ in range(3)] == [True, True, False]
    lease.go_alone(7, 6)
    assert lease.is_spent(7)
    assert not lease.take(7)
