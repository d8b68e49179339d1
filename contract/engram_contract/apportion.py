"""Arithmetic of slots: how many each shard gets, and which ones move so that as few as possible do.

Works on the owner of each of the 16,384 slots: some milliseconds when a map changes, never in a request.
Pure; standard library only. Source: Hamilton's method of largest remainders.
"""

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, TypeVar

from engram_contract.kinds import Text, Whole
from engram_contract.slots import SLOTS

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SlotRange:
    """The slots `first` to `last`, both included, and the shard that owns them."""

    first: Annotated[int, Whole(0, SLOTS - 1)]
    last: Annotated[int, Whole(0, SLOTS - 1)]
    shard: Annotated[str, Text(32)]


@dataclass(frozen=True, slots=True)
class Move:
    """The slots `first` to `last`, both included, go from one shard to another."""

    first: int
    last: int
    source: str
    target: str


def owners_of(ranges: Iterable[SlotRange]) -> list[str]:
    """The owner of each slot in its order."""
    return [item.shard for item in ranges for _ in range(item.first, item.last + 1)]


def ranges_of(owners: Sequence[str]) -> tuple[SlotRange, ...]:
    """The fewest ranges that say the same."""
    return tuple(SlotRange(first, last, shard) for first, last, shard in _runs(owners))


def moves_between(old: Sequence[str], new: Sequence[str]) -> tuple[Move, ...]:
    """The slots whose owner differs, as the fewest moves, in order of their slots."""
    pairs = list(zip(old, new, strict=True))
    return tuple(Move(first, last, *pair) for first, last, pair in _runs(pairs) if pair[0] != pair[1])


def shares_of(total: int, weights: Mapping[str, int], held: Mapping[str, int]) -> dict[str, int]:
    """How many of `total` slots each shard gets: its exact share rounded down or up, together `total`.

    Equal remainders go to shards that hold more than their rounded-down share already, then in the order given: so
    shares that were met once are met again without a move. The sum of the weights must be positive.
    """
    whole = sum(weights.values())
    shares = {shard: total * weight // whole for shard, weight in weights.items()}
    by_remainder = sorted(
        weights,
        key=lambda shard: (-(total * weights[shard] % whole), held.get(shard, 0) <= shares[shard]),
    )
    for shard in by_remainder[: total - sum(shares.values())]:
        shares[shard] += 1
    return shares


def rebalanced_owners(owners: Sequence[str], movable: Iterable[str], weights: Mapping[str, int]) -> list[str]:
    """The owners after the movable shards' slots were shared by weight; shards over their share give, others keep all.

    So exactly the sum of all surpluses moves, and nothing can move less. Shards give from their highest slots.
    """
    count = Counter(owners)
    held = {shard: count[shard] for shard in movable}
    shares = shares_of(sum(held.values()), weights, held)
    surplus = {shard: held[shard] - shares.get(shard, 0) for shard in held}
    takers = deque(shard for shard, share in shares.items() for _ in range(share - held.get(shard, 0)))
    given = []
    for slot in range(SLOTS - 1, -1, -1):
        if surplus.get(owners[slot], 0) > 0:
            surplus[owners[slot]] -= 1
            given.append(slot)
    result = list(owners)
    for slot in reversed(given):
        result[slot] = takers.popleft()
    return result


def _runs(values: Sequence[T]) -> Iterable[tuple[int, int, T]]:
    first = 0
    for value, group in groupby(values):
        last = first + sum(1 for _ in group) - 1
        yield first, last, value
        first = last + 1
