"""What is being read from shards by id: one load of a key for all who ask meanwhile, and what was shown of late.

Promises
1. A load goes on when whoever began it leaves; its failure is told to those who wait, and to nobody else.
2. Nothing grows without bound: of each key at most one load is joined, and what was shown is kept for RECENT_S.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

RECENT_S: Final = 5.0

Answer = TypeVar("Answer")


@dataclass(slots=True)
class _Shown:
    """A state of a memory by its tag, when it was news last, and whether L2 has it."""

    at_s: float
    tag: str
    is_there: bool = False


class Loads(Generic[Answer]):
    """The loads of one sidecar. Moments are on the loop's clock."""

    def __init__(self) -> None:
        self._joined: dict[bytes, asyncio.Future[Answer]] = {}
        self._under_way: Counter[bytes] = Counter()
        # The oldest first: a dict would look for it among all that went before.
        self._shown: OrderedDict[bytes, _Shown] = OrderedDict()
        self._beside: set[asyncio.Task[Any]] = set()

    def __contains__(self, key: bytes) -> bool:
        """Whether there is a load to join."""
        return key in self._joined

    def to_join(self, key: bytes) -> "asyncio.Future[Answer] | None":
        """The load of the key that is under way, which is to be shielded by who joins it."""
        return self._joined.get(key)

    def begin(self, key: bytes, load: "asyncio.Future[Answer]", *, is_joined: bool) -> None:
        """A load of the key is under way; who asks meanwhile may join it or not."""
        self._under_way[key] += 1
        if is_joined:
            self._joined[key] = load
        load.add_done_callback(lambda done: self._ended(key, done))

    def part(self, key: bytes) -> None:
        """Whoever asks from now on does not join a load that began before."""
        self._joined.pop(key, None)

    def part_all(self) -> None:
        """As `part`, of all keys."""
        self._joined.clear()

    def is_under_way(self, key: bytes) -> bool:
        """Whether some load of the key has not ended."""
        return key in self._under_way

    def note_shown(self, key: bytes, tag: str, now_s: float) -> None:
        """A shard showed this state of the memory, "" that there is none.

        A state that L2 has is no news again: L2 goes back behind it only by a fill from before, which has RECENT_S.
        """
        while self._shown and not self.is_new(oldest := next(iter(self._shown)), now_s):
            del self._shown[oldest]
        known = self._shown.get(key)
        if known is None or known.tag != tag or not known.is_there:
            self._shown[key] = _Shown(now_s, tag)
            self._shown.move_to_end(key)

    def note_there(self, key: bytes, tag: str) -> None:
        """L2 has this state of the memory, by what the shard showed."""
        known = self._shown.get(key)
        if known is not None and known.tag == tag:
            known.is_there = True

    def is_new(self, key: bytes, now_s: float) -> bool:
        """Whether what was shown of it last is so new that its writer may be about to tell."""
        return key in self._shown and self._shown[key].at_s > now_s - RECENT_S

    def go_on_beside(self, work: Coroutine[Any, Any, Any]) -> None:
        """Nobody waits for it; it ends by itself, or with `close`."""
        task = asyncio.create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    async def close(self) -> None:
        """Ends what nobody waits for."""
        for task in self._beside:
            task.cancel()
        await asyncio.gather(*self._beside, return_exceptions=True)

    def end(self, key: bytes) -> None:
        """A load of the key has its answer, or will have none."""
        self._under_way[key] -= 1
        if not self._under_way[key]:
            del self._under_way[key]

    def _ended(self, key: bytes, load: "asyncio.Future[Answer]") -> None:
        if self._joined.get(key) is load:
            del self._joined[key]
        if not load.cancelled():
            load.exception()  # whoever waited was told; who left is not concerned
