"""A tenant's quota over its shards: each has a part, and the parts sum up to the quota, whatever is lost on the way.

    part of a shard = base + all that it ever borrowed - all that it ever lent

Of a small quota the first shard of the tenant has all as its base, and the others borrow when they need it, by the
sidecar that was refused; of a large one each begins with its share, so few ever borrow. A loan that was lent and never
arrived, because that sidecar died, is carried over here: both sides count totals, so it may be told many times. What
was lent to a shard that is none of the tenant's any more, or borrowed from it, the base of the first shard makes good;
so does it what a shard borrowed and its lender does not know of, because that was set back to an earlier state.

Pure. Source: escrow counters (O'Neil, The Escrow Transactional Method, 1986).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from engram_contract.policy import Quota
from engram_operator.plan.steps import CarryLoan, LendBack, SetQuota

PLENTY: Final = 10_000  # memories for each shard: a full batch is a tenth of it


@dataclass(frozen=True, slots=True)
class Amount:
    """So many memories, and so many bytes of contents and values. May be negative: a debt."""

    memories: int = 0
    bytes: int = 0

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(self.memories + other.memories, self.bytes + other.bytes)

    def __sub__(self, other: "Amount") -> "Amount":
        return Amount(self.memories - other.memories, self.bytes - other.bytes)


@dataclass(frozen=True, slots=True)
class Holding:
    """What one shard holds of a tenant: its base (None before it has one), its loans by peer, its usage by type."""

    base: Amount | None = None
    total: Amount = Amount()
    lent: Mapping[str, Amount] = field(default_factory=dict)
    borrowed: Mapping[str, Amount] = field(default_factory=dict)
    used: Mapping[str, Amount] = field(default_factory=dict)

    @property
    def left(self) -> Amount:
        """What may still be stored there."""
        part = sum_of(self.borrowed) + (self.base or Amount()) - sum_of(self.lent)
        return part - sum_of(self.used)


QuotaStep = SetQuota | CarryLoan | LendBack


def sum_of(amounts: Mapping[str, Amount]) -> Amount:
    """All of them together."""
    return sum(amounts.values(), Amount())


def plan_quotas(quota: Quota, order: Sequence[str], seen: Mapping[str, Holding]) -> Iterator[QuotaStep]:
    """What is due, when every shard in `order` has answered; the first of them keeps the base."""
    total = Amount(quota.memories, quota.storage_bytes)
    given = total - _from_nobody(order, seen)  # what the bases are to sum up to
    home, *others = order
    share = _share(total, len(order))
    bases = {shard: seen[shard].base or share for shard in others}
    carried = tuple(_carried(order, seen))
    free = {shard: _positive(seen[shard].left) for shard in others}
    owed = {shard: _positive(Amount() - _left(shard, bases[shard], seen)) for shard in others}
    at_home = _left(home, given - sum_of(bases), seen)
    debt = _positive(Amount() - at_home)
    if not carried and not any(each != Amount() for each in free.values()):
        # After a smaller quota: who has borrowed more than there is now may store no more either.
        used = {shard: _positive(sum_of(seen[shard].used)) for shard in others}
        bases = {shard: bases[shard] - each for shard, each in _shared_out(debt, used)}
    # After a larger one, or when something was deleted: who owes is forgiven before anybody has room.
    bases = {shard: bases[shard] + each for shard, each in _shared_out(_positive(at_home), owed)}
    yield from _set(total, {**bases, home: given - sum_of(bases)}, seen)
    yield from carried
    missing = debt + sum_of(owed)
    for shard, each in free.items():
        back = Amount(each.memories if missing.memories else 0, each.bytes if missing.bytes else 0)
        if back != Amount():
            yield LendBack(shard, home, back.memories, back.bytes)


def _set(total: Amount, bases: Mapping[str, Amount], seen: Mapping[str, Holding]) -> Iterator[SetQuota]:
    """The bases that are not so yet. What gets less is told first, so that at no time there is more than before."""
    before = {shard: seen[shard].base or Amount() for shard in bases}
    least = {shard: _least(base, before[shard]) for shard, base in bases.items()}
    for shard, base in least.items():
        if base != before[shard]:
            yield SetQuota(shard, base.memories, base.bytes, total.memories, total.bytes)
    for shard, base in bases.items():
        is_told = least[shard] != before[shard] or (seen[shard].base is not None and seen[shard].total == total)
        if base != least[shard] or not is_told:
            yield SetQuota(shard, base.memories, base.bytes, total.memories, total.bytes)


def _least(one: Amount, other: Amount) -> Amount:
    return Amount(min(one.memories, other.memories), min(one.bytes, other.bytes))


def _share(total: Amount, shards: int) -> Amount:
    """With what a shard begins: its share of a quota of plenty, else nothing."""
    if total.memories < PLENTY * shards:
        return Amount()
    return Amount(total.memories // shards, total.bytes // shards)


def _left(shard: str, base: Amount, seen: Mapping[str, Holding]) -> Amount:
    """What the shard may still store once it has this base."""
    return seen[shard].left + base - (seen[shard].base or Amount())


def _shared_out(amount: Amount, most: Mapping[str, Amount]) -> Iterator[tuple[str, Amount]]:
    """How much of the amount falls on each shard: on one after the other, up to its most."""
    for shard, limit in most.items():
        share = Amount(min(limit.memories, amount.memories), min(limit.bytes, amount.bytes))
        amount -= share
        yield shard, share


def _from_nobody(order: Sequence[str], seen: Mapping[str, Holding]) -> Amount:
    """What these shards borrowed that none of them lent, less what they lent to others than each other."""
    total = Amount()
    for shard in order:
        holding = seen[shard]
        for peer, each in holding.borrowed.items():
            total += _positive(each - seen[peer].lent.get(shard, Amount())) if peer in order else each
        total -= sum_of({peer: each for peer, each in holding.lent.items() if peer not in order})
    return total


def _positive(amount: Amount) -> Amount:
    return Amount(max(amount.memories, 0), max(amount.bytes, 0))


def _carried(order: Sequence[str], seen: Mapping[str, Holding]) -> Iterator[CarryLoan]:
    """Loans that the lender knows of and the borrower does not."""
    for lender in order:
        for borrower, lent in seen[lender].lent.items():
            known = seen[borrower].borrowed.get(lender, Amount()) if borrower in order else lent
            if lent.memories > known.memories or lent.bytes > known.bytes:
                yield CarryLoan(borrower, lender, lent.memories, lent.bytes)
