"""What has to be told on the bulletin and was not yet, in order and bounded.

Promises
1. What is taken and not told is put back before what came since.
2. At most MAX_IDS ids wait. Beyond that they are forgotten: then nothing that is cached counts, and of each shard all
   is told, with the latest position.
Pure.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final

from engram_contract.session import Position
from engram_contract.slots import MemoryId

MAX_IDS: Final = 20_000  # about 3 MiB, and a minute of 300 writes a second
BATCH_IDS: Final = 1_024  # told at once; Redis does nothing else meanwhile, for about a millisecond


@dataclass(frozen=True, slots=True)
class Told:
    """Memories of a shard were written; `ids` None are any of them."""

    shard: str
    ids: tuple[MemoryId, ...] | None
    position: Position | None

    @property
    def size(self) -> int:
        """What it counts for."""
        return 1 if self.ids is None else max(len(self.ids), 1)


@dataclass(frozen=True, slots=True)
class Batch:
    """What is told at once. `forgets`: first of all, that nothing cached counts. `through`: the last one's number."""

    items: tuple[Told, ...]
    forgets: bool
    through: int


class Outbox:
    """The queue of one sidecar. False while nothing waits."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, Told]] = deque()
        self._size = 0
        self._forgets = False
        self._added = 0

    def __bool__(self) -> bool:
        return bool(self._waiting) or self._forgets

    def add(self, told: Told) -> int:
        """The number under which it waits."""
        self._added += 1
        self._waiting.append((self._added, told))
        self._grow(told.size)
        return self._added

    def take(self) -> Batch:
        """The first of what waits, of about BATCH_IDS ids; whoever takes it tells it or puts it back."""
        items: list[Told] = []
        size = through = 0
        while self._waiting and (not items or size + self._waiting[0][1].size <= BATCH_IDS):
            through, told = self._waiting.popleft()
            items.append(told)
            size += told.size
        self._size -= size
        forgets, self._forgets = self._forgets, False
        return Batch(tuple(items), forgets, through)

    def put_back(self, batch: Batch) -> None:
        """The batch was not told."""
        self._forgets = self._forgets or batch.forgets
        self._waiting.extendleft((batch.through, told) for told in reversed(batch.items))
        self._grow(sum(told.size for told in batch.items))

    def forget(self) -> None:
        """It is not known what was not told: nothing that is cached counts."""
        self._forgets = True

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size <= MAX_IDS:
            return
        latest: dict[str, Position | None] = {}
        for _, told in self._waiting:
            before = latest.get(told.shard, told.position)
            # One that is not known stays so: it may be the latest.
            latest[told.shard] = None if before is None or told.position is None else max(before, told.position)
        self._waiting = deque((self._added, Told(shard, None, position)) for shard, position in latest.items())
        self._size, self._forgets = len(self._waiting), True
