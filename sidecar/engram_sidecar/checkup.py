"""Health, really tried: every shard stores, reads, finds and removes a memory, and the outcome is kept for a while.

    /v1/health, /health --report--> Checkup --one transaction for each shard, beside the guard--> Store

Beside the guard, because a breaker would answer for the node, and a question for health must not open one.

Promises
1. However many ask, each shard is tried once in FRESH_S, by one try at a time; whoever asks meanwhile gets its outcome.
2. An answer takes no longer than TRIAL_S and a moment, whatever a shard does.
3. Nobody ever sees the memory of a try: it is made and removed in one transaction, which commits, so a disk that is
full or a replica that must confirm shows; and a kill at any line leaves nothing.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final
from uuid import UUID

from engram_contract.policy import Limits
from engram_contract.shardmap import Shard, ShardMap, ShardState
from engram_contract.slots import MemoryId, uuid7
from engram_sidecar import ranking, routing
from engram_sidecar.cachestate import CacheState
from engram_sidecar.config import InForce
from engram_sidecar.errors import Collision, QuotaExceeded, ShardUnavailable, SidecarError, SlotMoved
from engram_sidecar.gate import Shown
from engram_sidecar.health import (
    CHECKS,
    Report,
    Status,
    Trial,
    Used,
    health_document,
    judge_breakers,
    judge_cache,
    judge_configuration,
    judge_database,
    judge_performance,
    judge_resources,
)
from engram_sidecar.pipeline import World
from engram_sidecar.recent import Recent
from engram_sidecar.records import Conditions, Delete, Draft, Get, Put
from engram_sidecar.sealing import Sealer, Vault
from engram_sidecar.store import Asks, Place
from engram_sidecar.writes import Rules, Run, delete_memory, fetch_memories, put_memory

log = logging.getLogger(__name__)

FRESH_S: Final = 5.0
TRIAL_S: Final = 2.0  # a sound shard takes some milliseconds; a probe's caller waits this long at most
LATE_S: Final = 0.1  # the trial's own answer "not in time" comes first
PROBE_USER: Final = "engram-health"
PROBE_WORD: Final = "engramhealthprobe"
_PROBE: Final = Draft(content=PROBE_WORD, user=PROBE_USER, ttl_s=60)


@dataclass(frozen=True, slots=True)
class Parts:
    """What is looked at: the breakers, the last calls, what the process uses, and the caches."""

    breakers: Callable[[], Iterable[Shown]]
    recent: Recent
    used: Callable[[], Used]
    caches: Callable[[], CacheState]


class Checkup:
    """Tries the shards on demand and keeps what came of it."""

    def __init__(self, store: Asks, in_force: InForce, vault: Vault, parts: Parts, world: World) -> None:
        self._store = store
        self._in_force = in_force
        self._vault = vault
        self._parts = parts
        self._world = world
        self._look: asyncio.Task[Report] | None = None
        self._fresh_until_s = 0.0
        self._hung: dict[Place, asyncio.Task[Trial]] = {}

    async def report(self) -> Report:
        """The last report if it is fresh, else a new one, for everybody who asks meanwhile."""
        look = self._look
        if look is None or (look.done() and self._world.monotonic_s() >= self._fresh_until_s):
            look = self._look = asyncio.create_task(self._reported())
        return await asyncio.shield(look)

    async def answer(self) -> tuple[Status, dict[str, object]]:
        """The overall status, and the report as a document."""
        report = await self.report()
        return report.status, health_document(report, self._world.now_s())

    async def close(self) -> None:
        """Ends what is under way."""
        tasks = [task for task in (self._look, *self._hung.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _reported(self) -> Report:
        config, now_s = self._in_force.config, self._world.now_s()
        refusal = self._in_force.refusal
        trials = await asyncio.gather(*(self._trial(config.shard_map, shard) for shard in config.shard_map.shards))
        used = await asyncio.to_thread(self._parts.used)
        monotonic_s = self._world.monotonic_s()
        found = (
            judge_database(trials),
            judge_breakers(self._parts.breakers(), self._world.now_s(), monotonic_s),
            judge_performance(self._parts.recent.paces(monotonic_s)),
            judge_resources(used),
            judge_configuration(config, self._in_force.faults, None if refusal is None else str(refusal)),
            judge_cache(self._parts.caches()),
        )
        self._fresh_until_s = monotonic_s + FRESH_S
        return Report(now_s, dict(zip(CHECKS, found, strict=True)))

    async def _trial(self, shard_map: ShardMap, shard: Shard) -> Trial:
        """What came of trying the shard within TRIAL_S. A driver that hangs is left behind, and not asked again."""
        place = routing.primary(shard)
        say = partial(Trial, shard.id, place.node.name, shard.state)
        if shard.state is ShardState.MAINTENANCE:
            return say(Status.DEGRADED, 0.0, {}, routing.MAINTENANCE)
        if place not in self._hung:
            task = asyncio.create_task(self._tried(shard_map, shard, say))
            self._hung[place] = task
            task.add_done_callback(lambda _: self._hung.pop(place))
            await asyncio.wait([task], timeout=TRIAL_S + LATE_S)
            if task.done():
                return task.result()
            task.cancel()
        return say(Status.UNHEALTHY, 1000 * TRIAL_S, {}, "no answer in time")

    async def _tried(self, shard_map: ShardMap, shard: Shard, say: Callable[..., Trial]) -> Trial:
        began_s, took_ms = self._world.monotonic_s(), dict[str, float]()
        ranges = shard_map.ranges_of(shard.id)
        slot = ranges[0].first if ranges and shard.state is ShardState.ACTIVE else None
        try:
            reason = await self._asked(routing.primary(shard), slot, shard_map.epoch, took_ms)
            status = Status.HEALTHY
        except SlotMoved:
            status, reason = Status.DEGRADED, "the shard knows a newer map"
        except Collision:
            status, reason = Status.DEGRADED, "the shard took another transaction first"
        except ShardUnavailable as failure:
            status, reason = Status.UNHEALTHY, failure.reason
        except SidecarError as failure:
            status, reason = Status.UNHEALTHY, str(failure)
        except Exception:
            log.exception("trying a shard failed", extra={"shard": shard.id})
            status, reason = Status.UNHEALTHY, "see the sidecar's log"
        return say(status, 1000 * (self._world.monotonic_s() - began_s), took_ms, reason)

    async def _asked(self, place: Place, slot: int | None, epoch: int, took_ms: dict[str, float]) -> str:
        """What is to be said although all went well. Fills `took_ms`."""
        said = "" if slot is not None else "it takes no new memories"
        if slot is not None:
            try:
                return await self._in_transaction(place, slot, epoch, took_ms)
            except QuotaExceeded as full:
                took_ms.clear()
                said = str(full)
        memory_id = MemoryId(slot or 0, self._new_uuid())
        run = partial(self._store.read, place, timeout_s=TRIAL_S)
        with self._timed("retrieve", took_ms):
            await run("get_memories", [memory_id.slot], [memory_id.uuid])
        with self._timed("search", took_ms):
            await self._find(run, self._vault.sealer, epoch)
        return said

    async def _in_transaction(self, place: Place, slot: int, epoch: int, took_ms: dict[str, float]) -> str:
        sealer, memory_id = self._vault.sealer, MemoryId(slot, self._new_uuid())
        rules = Rules(sealer, Limits(), None, lambda *_: None)
        indexed = await sealer.indexer.index(_PROBE)
        async with self._store.transaction(place, TRIAL_S) as transaction:
            run = transaction.run
            with self._timed("store", took_ms):
                await put_memory(run, place, Put(memory_id, _PROBE, Conditions(must_be_absent=True)), indexed, rules)
            with self._timed("retrieve", took_ms):
                [stored] = await fetch_memories(run, place, [Get(memory_id)])
            if stored is None or (await sealer.open(stored)).content != PROBE_WORD:
                raise ShardUnavailable(place.shard, "what was stored was not read back")
            with self._timed("search", took_ms):
                is_found = memory_id.uuid in await self._find(run, sealer, epoch)
            if not is_found:
                raise ShardUnavailable(place.shard, "what was stored was not found")
            with self._timed("delete", took_ms):
                await delete_memory(run, place, Delete(memory_id, Conditions()))
        return ""

    async def _find(self, run: Run, sealer: Sealer, epoch: int) -> set[object]:
        """The ids of memories with the probe's word."""
        words = [f"'{lexeme}'" for lexeme in sealer.indexer.lexemes(PROBE_WORD)]
        nothing = (None,) * 5
        filters = (None, None, "{}", None)
        rows = await run(
            "search_memories", " | ".join(words), words, [1.0] * len(words), 1.0, ranking.MAX_CANDIDATES,
            PROBE_USER, *nothing, *filters, 5, 65_536, epoch,
        )  # fmt: skip
        return {row["id"] for row in rows}

    def _new_uuid(self) -> UUID:
        return uuid7(int(self._world.now_s() * 1000), self._world.random_bytes(10))

    @contextmanager
    def _timed(self, operation: str, took_ms: dict[str, float]) -> Iterator[None]:
        began_s = self._world.monotonic_s()
        yield
        took_ms[operation] = 1000 * (self._world.monotonic_s() - began_s)
