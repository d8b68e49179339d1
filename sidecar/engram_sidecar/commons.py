"""What shards said of common lexemes a while ago: in how many memories each stands.

To count a common lexeme costs a shard milliseconds, each time that somebody searches for it, and whether it stands in
3,000 memories or in 3,010 moves the order of hits little. A rare one is counted anew: whether it stands in none or in
one decides what is found. Where thousands of memories with a word are deleted within KEPT_S, it counts as common until
then: it scores, and does not find beside a rarer one.

Promises
1. Nothing is told after KEPT_S, and nothing of a lexeme below COMMON.
2. At most MAX_LEXEMES are kept, those that were told last.
Pure: moments are monotonic seconds.
"""

from collections.abc import Iterable, Mapping
from typing import Final

KEPT_S: Final = 10.0
COMMON: Final = 500  # memories
MAX_LEXEMES: Final = 10_000


class Commons:
    """The common lexemes of one tenant's shards."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], tuple[float, int]] = {}  # (shard, lexeme) -> when, in how many memories

    def known(self, shard: str, lexemes: Iterable[str], now_s: float) -> dict[str, int]:
        """In how many memories of the shard those stand that need not be counted."""
        found = {each: self._told[shard, each] for each in lexemes if (shard, each) in self._told}
        return {lexeme: memories for lexeme, (at_s, memories) in found.items() if now_s < at_s + KEPT_S}

    def tell(self, shard: str, frequencies: Mapping[str, int], now_s: float) -> None:
        """The shard counted these."""
        for lexeme, memories in frequencies.items():
            self._told.pop((shard, lexeme), None)
            if memories >= COMMON:
                self._told[shard, lexeme] = (now_s, memories)
        while len(self._told) > MAX_LEXEMES:
            del self._told[next(iter(self._told))]
