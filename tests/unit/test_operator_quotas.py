"""A quota over shards: whatever is lent, lost, told twice or changed, the parts never sum up to more than the quota."""

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from engram_contract.policy import Quota
from engram_operator.plan.quotas import Amount, Holding, plan_quotas, sum_of
from engram_operator.plan.steps import CarryLoan, LendBack, SetQuota

SHARDS = ("s0", "s1", "s2")
HUGE = 10**9


def quota(memories: int) -> Quota:
    return Quota(memories, HUGE, 1)


def held(memories: int = 0, **more: object) -> Holding:
    return Holding(base=Amount(memories, HUGE if memories else 0), total=Amount(10, HUGE), **more)  # type: ignore[arg-type]


def test_the_first_shard_has_the_base_and_the_others_are_told_first() -> None:
    steps = list(plan_quotas(quota(10), SHARDS, {shard: Holding() for shard in SHARDS}))
    assert [(step.shard, step.memories) for step in steps if isinstance(step, SetQuota)] == [
        ("s1", 0),
        ("s2", 0),
        ("s0", 10),
    ]


def test_of_plenty_each_shard_begins_with_its_share() -> None:
    steps = list(plan_quotas(quota(100_000), SHARDS, {shard: Holding() for shard in SHARDS}))
    given = [(step.shard, step.memories) for step in steps if isinstance(step, SetQuota)]
    assert given == [("s1", 33_333), ("s2", 33_333), ("s0", 33_334)]


def test_what_is_as_it_should_be_takes_no_step() -> None:
    assert list(plan_quotas(quota(10), SHARDS, {"s0": held(10), "s1": held(), "s2": held()})) == []


def test_a_base_that_lies_elsewhere_is_counted() -> None:
    steps = list(plan_quotas(quota(10), SHARDS, {"s0": held(), "s1": held(4), "s2": held()}))
    assert [(step.shard, step.memories) for step in steps if isinstance(step, SetQuota)] == [("s0", 6)]


@pytest.mark.parametrize(("known", "steps"), [(0, [("s1", "s0", 4)]), (3, [("s1", "s0", 4)]), (4, [])])
def test_a_loan_that_did_not_arrive_is_carried(known: int, steps: list[tuple[str, str, int]]) -> None:
    seen = {"s0": held(10, lent={"s1": Amount(4)}), "s1": held(borrowed={"s0": Amount(known)}), "s2": held()}
    carried = [step for step in plan_quotas(quota(10), SHARDS, seen) if isinstance(step, CarryLoan)]
    assert [(step.shard, step.lender, step.memories) for step in carried] == steps


def test_a_debt_is_forgiven_before_another_shard_has_room() -> None:
    """A quota of 1 became one of 2: what s1 has stored is all of it, though it lies over what s1 may store."""
    in_debt = Holding(Amount(-1), Amount(1, HUGE), {}, {"s0": Amount(2)}, {"t": Amount(2)})
    seen = {"s0": held(10, lent={"s1": Amount(2)}), "s1": in_debt, "s2": held()}
    given = [(step.shard, step.memories) for step in plan_quotas(quota(2), SHARDS, seen) if isinstance(step, SetQuota)]
    assert given == [("s0", 2), ("s1", 0), ("s2", 0)]


def test_what_shrinks_is_told_before_what_grows_also_within_one_shard() -> None:
    home = Holding(Amount(12, 100), Amount(10, 100), {"s1": Amount(4, 80)}, {}, {"t": Amount(2, 60)})
    in_debt = Holding(Amount(-2, 0), Amount(10, 100), {}, {"s0": Amount(4, 80)}, {"t": Amount(4, 80)})
    seen = {"s0": home, "s1": in_debt}
    bases = {shard: each.base or Amount() for shard, each in seen.items()}
    for step in plan_quotas(Quota(10, 100, 1), ("s0", "s1"), seen):
        assert isinstance(step, SetQuota)
        bases[step.shard] = Amount(step.memories, step.bytes)
        assert sum_of(bases).memories <= 10
        assert sum_of(bases).bytes <= 100
    assert sum_of(bases) == Amount(10, 100)


def test_what_is_free_elsewhere_is_lent_back_while_a_shard_owes() -> None:
    in_debt = Holding(Amount(-1), Amount(10, HUGE), {}, {"s0": Amount(2)}, {"t": Amount(2)})
    free = Holding(Amount(), Amount(10, HUGE), {}, {"s0": Amount(9)}, {"t": Amount(8)})
    home = Holding(Amount(11, HUGE), Amount(10, HUGE), {"s1": Amount(2), "s2": Amount(9)})
    assert list(plan_quotas(quota(10), SHARDS, {"s0": home, "s1": in_debt, "s2": free})) == [LendBack("s2", "s0", 1, 0)]


def test_what_was_lent_to_a_shard_that_left_the_map_is_made_good() -> None:
    """So was what a tenant had lent by SQL to a shard that there never was."""
    seen = {"s0": held(10, lent={"s2": Amount(3), "made-up": Amount(1)}), "s1": held(borrowed={"s2": Amount(2)})}
    steps = list(plan_quotas(quota(10), ("s0", "s1"), seen))
    assert [(step.shard, step.memories) for step in steps if isinstance(step, SetQuota)] == [("s0", 12)]
    left = seen["s0"].left + seen["s1"].left
    assert left.memories + 2 == 10
    back = seen | {
        "s0": held(12, lent={"s2": Amount(3)}),
        "s2": held(borrowed={"s0": Amount(3)}, lent={"s1": Amount(2)}),
    }
    again = list(plan_quotas(quota(10), SHARDS, back))
    assert [(step.shard, step.memories) for step in again if isinstance(step, SetQuota)] == [("s0", 10)]


def test_what_was_borrowed_of_a_lender_who_forgot_it_is_charged() -> None:
    """A token of a loan that was undone, or a lender that came back from a backup: quota out of nothing."""
    seen = {"s0": held(10, lent={"s1": Amount(2)}), "s1": held(borrowed={"s0": Amount(5)}), "s2": held()}
    steps = list(plan_quotas(quota(10), SHARDS, seen))
    assert [(step.shard, step.memories) for step in steps if isinstance(step, SetQuota)] == [("s0", 7)]


@dataclass
class Shard:
    """One shard as its database keeps it."""

    base: int | None = None
    total: int = 0
    lent: dict[str, int] = field(default_factory=dict)
    borrowed: dict[str, int] = field(default_factory=dict)
    used: int = 0

    @property
    def left(self) -> int:
        return (self.base or 0) + sum(self.borrowed.values()) - sum(self.lent.values()) - self.used

    def seen(self) -> Holding:
        return Holding(
            None if self.base is None else Amount(self.base, HUGE if self.base else 0),
            Amount(self.total, HUGE),
            {peer: Amount(each) for peer, each in self.lent.items()},
            {peer: Amount(each) for peer, each in self.borrowed.items()},
            {"t": Amount(self.used)},
        )


class Tenant(RuleBasedStateMachine):
    """Sidecars that store, delete and borrow, tokens that come late, twice or never, and an operator that may die.

    The last shard leaves the map when it is empty, and comes back; a lender may forget a part of what it lent.
    """

    @initialize()
    def begin(self) -> None:
        self.shards = {name: Shard() for name in SHARDS}
        self.order: tuple[str, ...] = SHARDS
        self.quota = 10
        self.tokens: list[tuple[str, str, int]] = []
        self.level(9)

    @rule(shard=st.sampled_from(SHARDS), number=st.integers(1, 4))
    def store(self, shard: str, number: int) -> None:
        if shard in self.order and self.shards[shard].left >= number:
            self.shards[shard].used += number

    @rule(shard=st.sampled_from(SHARDS))
    def delete(self, shard: str) -> None:
        self.shards[shard].used = max(0, self.shards[shard].used - 1)

    @rule(lender=st.sampled_from(SHARDS), borrower=st.sampled_from(SHARDS), number=st.integers(1, 12))
    def lend(self, lender: str, borrower: str, number: int) -> None:
        given = min(number, max(0, self.shards[lender].left))
        if lender != borrower and {lender, borrower} <= {*self.order} and given:
            lent = self.shards[lender].lent
            lent[borrower] = lent.get(borrower, 0) + given
            self.tokens.append((lender, borrower, lent[borrower]))

    @rule(lender=st.sampled_from(SHARDS), borrower=st.sampled_from(SHARDS), number=st.integers(1, 6))
    def forget(self, lender: str, borrower: str, number: int) -> None:
        lent = self.shards[lender].lent
        if {lender, borrower} <= {*self.order} and lent.get(borrower, 0):
            lent[borrower] = max(0, lent[borrower] - number)

    @rule(place=st.integers(0, 50))
    def arrive(self, place: int) -> None:
        if self.tokens:
            lender, borrower, total = self.tokens[place % len(self.tokens)]
            borrowed = self.shards[borrower].borrowed
            borrowed[lender] = max(borrowed.get(lender, 0), total)

    @rule()
    def leave_or_come_back(self) -> None:
        if len(self.order) < len(SHARDS) or not self.shards[SHARDS[-1]].used:
            self.order = SHARDS if len(self.order) < len(SHARDS) else SHARDS[:-1]

    @rule(wanted=st.integers(1, 20), steps=st.integers(0, 9))
    def change(self, wanted: int, steps: int) -> None:
        self.quota = wanted
        self.level(steps)

    @rule(steps=st.integers(0, 9))
    def level(self, steps: int) -> None:
        """The operator, who may be killed after each step."""
        seen = {name: shard.seen() for name, shard in self.shards.items()}
        for step in list(plan_quotas(quota(self.quota), self.order, seen))[:steps]:
            shard = self.shards[step.shard]
            match step:
                case SetQuota():
                    shard.base, shard.total = step.memories, step.total_memories
                case CarryLoan():
                    shard.borrowed[step.lender] = max(shard.borrowed.get(step.lender, 0), step.memories)
                case LendBack():
                    given = min(step.memories, max(0, shard.left))
                    shard.lent[step.borrower] = shard.lent.get(step.borrower, 0) + given

    @invariant()
    def the_parts_never_sum_up_to_more_than_the_quota(self) -> None:
        given = sum(each.base or 0 for each in self.shards.values())
        parts = sum(each.left + each.used for each in self.shards.values())
        forgotten = sum(
            max(0, each - self.shards[lender].lent.get(borrower, 0))
            for borrower, shard in self.shards.items()
            for lender, each in shard.borrowed.items()
        )
        assert parts <= given + forgotten

    @invariant()
    def after_some_rounds_of_the_operator_nothing_is_lost_and_nobody_may_exceed(self) -> None:
        spare = {
            name: Shard(s.base, s.total, dict(s.lent), dict(s.borrowed), s.used) for name, s in self.shards.items()
        }
        kept, self.shards = self.shards, spare
        for _ in range(4):
            self.level(9)
        left = [spare[name].left for name in self.order]
        used = sum(spare[name].used for name in self.order)
        assert sum(left) + used == self.quota
        assert used + sum(each for each in left if each > 0) <= max(self.quota, used)
        # Over the quota nobody has room, not even for what he deletes first.
        assert used <= self.quota or max(left) <= 0
        if used > self.quota:
            owed = sum(-each for each in left)
            assert owed == used - self.quota
        self.shards = kept


Tenant.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestTenant = Tenant.TestCase


def test_amounts_add_up() -> None:
    assert sum_of({"a": Amount(1, 2), "b": Amount(3, 4)}) - Amount(1, 1) == Amount(3, 5)
