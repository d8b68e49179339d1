"""The sweep that brings memories into the present form: under the current key, or in the clear if the policy says so.

    count what lies otherwise --> for each older key: try_reseal, list, lock, open and seal, write --> pause --> ...

A write seals with the current key anyway; this is for what nobody writes. When `count_stale` finds nothing on
any shard, no memory needs an older key.

Promises
1. A batch is one transaction that holds its rows, so no write is lost; it passes the fence as every write does.
Version, times and tag of a memory stay: for a caller nothing happened.
2. One sweeper at a time for each tenant and shard; who is not it leaves.
3. Only older keys are swept: a sidecar that has not yet read the newest keyring does not undo another one's work.
4. What cannot be opened stays as it is, is told once, and keeps nobody else waiting.
"""

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from engram_contract.shardmap import ShardState
from engram_sidecar import routing
from engram_sidecar.chance import at_most, jittered
from engram_sidecar.clock import monotonic_s
from engram_sidecar.config import Config, InForce
from engram_sidecar.errors import Collision, KeyMissing, QuotaExceeded, SealBroken, ShardUnavailable, SlotMoved
from engram_sidecar.metrics import Metrics
from engram_sidecar.records import Draft, Memory, to_memory
from engram_sidecar.sealing import Sealer, Vault
from engram_sidecar.store import Asks, Place, Row, Transaction

log = logging.getLogger(__name__)

LOOK_S: Final = 900.0  # seldom, so that a sidecar at rest closes its connections
SETTLE_S: Final = 3.0  # after a start or a change, at most; each pod of a rollout begins at another moment
JITTER_RATIO: Final = 0.2
BATCH_ROWS: Final = 64  # held for some 10 ms, in which a writer of one of them waits
BATCH_BYTES: Final = 1 << 20
PAUSE_S: Final = 0.05  # at least; and at least as long as the batch took
MAX_UNREADABLE: Final = 1_000  # so many are passed over; with more the sweep of their key ends

FAILURES: Final = (ShardUnavailable, SlotMoved, Collision, QuotaExceeded)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one transaction did: the rows that it looked at, of which so many were written, and these not."""

    looked: int
    written: int
    unreadable: tuple[UUID, ...] = ()


class Resealer:
    """Sweeps all shards of the map: at the start, after each change of keys or policy, and every LOOK_S seconds."""

    def __init__(self, store: Asks, in_force: InForce, vault: Vault, metrics: Metrics, timeout_s: float) -> None:
        self._store = store
        self._in_force = in_force
        self._vault = vault
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._unreadable: defaultdict[tuple[str, int], list[UUID]] = defaultdict(list)
        self._changed = asyncio.Event()
        in_force.subscribe(self._note)

    def _note(self, _config: Config) -> None:
        self._unreadable.clear()
        self._changed.set()

    async def run(self) -> None:
        """Sweeps until cancelled."""
        while True:
            self._changed.clear()
            await asyncio.sleep(at_most(SETTLE_S))
            await self.sweep()
            try:
                async with asyncio.timeout(jittered(LOOK_S, JITTER_RATIO)):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def sweep(self) -> None:
        """Every Active shard has nothing stale left that can be opened; what else there is, is told."""
        left = Counter[int]()
        for shard in self._in_force.config.shard_map.shards:
            place = routing.primary(shard)
            try:
                if shard.state is ShardState.ACTIVE:
                    await self._sweep_shard(place, self._vault.sealer)
                left.update(await count_stale(self._store, place, self._vault.sealer, self._timeout_s))
            except FAILURES as failure:
                log.warning("the sweep of a shard ended early", extra={"shard": shard.id, "reason": str(failure)})
        self._metrics.show_stale(left)

    async def _sweep_shard(self, place: Place, sealer: Sealer) -> None:
        for version in await count_stale(self._store, place, sealer, self._timeout_s):
            if sealer.encrypts and version > sealer.key_version:
                continue
            if not sealer.has_key(version):
                log.error("memories need a key that the keyring lacks", extra={"shard": place.shard, "key": version})
                continue
            await self._sweep_version(place, sealer, version)

    async def _sweep_version(self, place: Place, sealer: Sealer, version: int) -> None:
        unreadable = self._unreadable[place.shard, version]
        while sealer is self._vault.sealer and len(unreadable) < MAX_UNREADABLE:
            began_s = monotonic_s()
            batch = await self._run_batch(place, sealer, version, unreadable)
            self._metrics.count_resealed(batch.written)
            unreadable += batch.unreadable
            if not batch.looked:
                return
            await asyncio.sleep(max(PAUSE_S, monotonic_s() - began_s))

    async def _run_batch(self, place: Place, sealer: Sealer, version: int, unreadable: Sequence[UUID]) -> Batch:
        async with self._store.transaction(place, self._timeout_s) as transaction:
            [[is_mine]] = await transaction.run("try_reseal")
            if not is_mine:
                return Batch(0, 0)
            listed = await transaction.run("list_stale", version, list(unreadable), BATCH_ROWS)
            chosen = _first_bytes(listed)
            slots, ids = [row["slot"] for row in chosen], [row["id"] for row in chosen]
            rows = await transaction.run("lock_stale", version, slots, ids)
            return await _write(transaction, sealer, [to_memory(row) for row in rows], looked=len(chosen))


async def count_stale(store: Asks, place: Place, sealer: Sealer, timeout_s: float) -> Mapping[int, int]:
    """Key version -> how many memories of the shard are under it and should not be."""
    rows = await store.read(place, "count_stale", sealer.key_version, timeout_s=timeout_s)
    return {row["key_version"]: row["memories"] for row in rows}


async def _write(transaction: Transaction, sealer: Sealer, memories: Sequence[Memory], *, looked: int) -> Batch:
    unreadable: list[UUID] = []
    rows: list[tuple[object, ...]] = []
    for memory in sorted(memories, key=lambda each: (each.id.slot, each.id.uuid)):
        try:
            rows.append(await _in_form(sealer, memory))
        except (KeyMissing, SealBroken):  # told and counted by the sealer
            unreadable.append(memory.id.uuid)
    if rows:
        await transaction.run("reseal_memories", *(list(column) for column in zip(*rows, strict=True)))
    return Batch(looked, len(rows), tuple(unreadable))


async def _in_form(sealer: Sealer, memory: Memory) -> tuple[object, ...]:
    """The memory's arguments of reseal_memories. Raises KeyMissing, SealBroken."""
    opened = await sealer.open(memory)
    draft = Draft(opened.content, opened.value)
    sealed = await sealer.seal(memory.id, draft)
    terms: str | None = None
    term_count: int | None = None
    if (memory.sealed is None) != (sealed is None):  # a new key alone changes no word: the index key stays
        indexed = await sealer.indexer.index(draft)
        terms, term_count = indexed.terms, indexed.term_count
    texts = (opened.content, opened.value) if sealed is None else ("", "null")
    return (memory.id.slot, memory.id.uuid, *texts, sealed, terms, term_count)


def _first_bytes(rows: Sequence[Row]) -> list[Row]:
    """The first rows that are BATCH_BYTES together, at least one."""
    size_bytes = 0
    chosen: list[Row] = []
    for row in rows:
        size_bytes += row["size_bytes"]
        if chosen and size_bytes > BATCH_BYTES:
            break
        chosen.append(row)
    return chosen
