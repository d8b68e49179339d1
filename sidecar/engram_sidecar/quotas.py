"""Room for a write under the tenant's quota: each shard has an allowance of it, and one that is full borrows.

    write --quota used up--> lend (each other shard) --token--> borrow (the full shard) --> write again

Promises
1. The quota is never exceeded: only shards change allowances, and what one is given another gave up before.
2. A write is refused for the quota only after every other shard was asked. If one could not be asked, it might have had
room: then the answer is that it is unavailable.
3. What is lent and not borrowed, because this process died between, is levelled out by the operator.
4. One write at a time borrows for a shard, and none waits for another one's writing. Who finds that others took the
room borrows again: each loan is used by somebody, so that ends when there is nothing left to lend.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final, TypeVar

from engram_contract.shardmap import Shard, ShardMap
from engram_sidecar import routing
from engram_sidecar.clock import monotonic_s
from engram_sidecar.errors import DeadlineExceeded, QuotaExceeded, ShardUnavailable
from engram_sidecar.patience import of_request
from engram_sidecar.records import Operation, Patch, Put
from engram_sidecar.store import Asks, Place
from engram_sidecar.wire import encode

MORE_MEMORIES: Final = 64  # beside what the write needs: the next ones need not borrow
MORE_BYTES: Final = 8 << 20

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Loan:
    """A part of an allowance."""

    memories: int
    size_bytes: int


class _Turn(asyncio.Lock):
    """Who may borrow for a shard now, and how many loans there were so far."""

    loans = 0

    async def take(self, by_s: float) -> None:
        """It is had, until it is released. Raises TimeoutError."""
        left_s = by_s - monotonic_s()
        if left_s <= 0:
            raise TimeoutError
        async with asyncio.timeout(left_s):
            await self.acquire()


class Borrower:
    """Borrows from the other shards of a map, for one write after another on each full shard."""

    def __init__(self, store: Asks, timeout_s: float) -> None:
        self._store = store
        self._timeout_s = timeout_s
        self._turns: dict[str, _Turn] = {}

    async def with_room(
        self, shard_map: ShardMap, place: Place, operations: Sequence[Operation], write: Callable[[], Awaitable[Answer]]
    ) -> Answer:
        """The write's answer. Raises QuotaExceeded, ShardUnavailable."""
        turn = self._turns.setdefault(place.shard, _Turn())
        deadline_s = 0.0
        while True:
            loans = turn.loans
            try:
                return await write()
            except QuotaExceeded as refused:
                full = refused
            deadline_s = deadline_s or min(monotonic_s() + self._timeout_s, of_request().by_s or inf)
            try:
                await turn.take(deadline_s)
            except TimeoutError as error:
                raise DeadlineExceeded(place.shard, "no room under the quota in time") from error
            try:
                if loans == turn.loans:  # else somebody borrowed since the write began
                    await self._borrow(shard_map, place, full, Loan(*_needed(operations)), deadline_s)
                    turn.loans += 1
            finally:
                turn.release()

    async def _borrow(self, shard_map: ShardMap, place: Place, full: QuotaExceeded, asked: Loan, by_s: float) -> None:
        """The shard has room for at least some of what is asked, or raises why it has not."""
        lost: ShardUnavailable | None = None
        had = Loan(0, 0)
        for shard in shard_map.shards:
            missing = Loan(max(asked.memories - had.memories, 0), max(asked.size_bytes - had.size_bytes, 0))
            if shard.id == place.shard or missing == Loan(0, 0):
                continue
            try:
                more = await self._lend(shard, place, full.life, missing, by_s)
            except ShardUnavailable as failure:
                lost = failure
                continue
            had = Loan(had.memories + more.memories, had.size_bytes + more.size_bytes)
        if had.memories if full.what == "memories" else had.size_bytes:
            return
        if lost is not None:
            reason = f"{full}, and this shard could not be asked for room"
            raise ShardUnavailable(lost.shard, reason, lost.retry_after_s) from full
        raise full

    async def _lend(self, shard: Shard, place: Place, life: str, missing: Loan, by_s: float) -> Loan:
        """What moved from the shard's allowance to the place's. Raises ShardUnavailable."""
        lender, asked = routing.primary(shard), (place.shard, missing.memories, missing.size_bytes)
        [[is_lent]] = await self._store.write(lender, "lend_quota", *asked, timeout_s=by_s - monotonic_s())
        if not is_lent:
            return Loan(0, 0)
        [[token]] = await self._store.read(lender, "loan_token", place.shard, life, timeout_s=by_s - monotonic_s())
        [row] = await self._store.write(place, "borrow_quota", token, timeout_s=by_s - monotonic_s())
        return Loan(row["memories"], row["bytes"])


def _needed(operations: Sequence[Operation]) -> tuple[int, int]:
    """Memories and bytes to ask for: what the operations store at most, and some more."""
    writes = [operation for operation in operations if isinstance(operation, Put | Patch)]
    return len(writes) + MORE_MEMORIES, sum(_size(write) for write in writes) + MORE_BYTES


def _size(write: Put | Patch) -> int:
    if isinstance(write, Patch):
        return len(encode(write.patch))
    return len(write.draft.content.encode()) + len(write.draft.value.encode())
