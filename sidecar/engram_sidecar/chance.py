"""Chance that spreads load: sidecars that began together shall not act together. It guards nothing.

It is a source of its own, so nobody else who draws or sets a seed has a part in it.
"""

import random
from collections.abc import Sequence
from typing import Final, TypeVar

_SOURCE: Final = random.Random()  # noqa: S311  no secret comes from it

Item = TypeVar("Item")


def jittered(seconds: float, ratio: float) -> float:
    """The time, shorter or longer by at most this part of it."""
    return seconds * (1 + _SOURCE.uniform(-ratio, ratio))


def at_most(seconds: float) -> float:
    """Any time from none to this one."""
    return _SOURCE.uniform(0, seconds)


def drawn(items: Sequence[Item], count: int) -> list[Item]:
    """So many of the items, or all if there are no more."""
    return _SOURCE.sample(items, min(count, len(items)))
