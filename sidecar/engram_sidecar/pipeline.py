"""The story of one request: admit -> locate -> (caches) -> choose a node -> ask -> answer.

Stages, in order; nothing goes back but a stale map:
1. admit    the tenant's policy bounds the time to live; what a pod stores is its own agent's
2. locate   the id, the name or the routing key gives the slot, the map gives the shard; the map is read once per
attempt
3. caches   recall.py: a read by id is answered from what was read before, if that is exact enough; a write drops it,
before and after it asks
4. choose   routing.py: the primary of the shard, or why there is none; replicas.py: a replica in its place, where the
request's session allows it
5. ask      writes.py, idempotency.py, finding.py and store.py: one attempt; a shard that is full borrows room first
(quotas.py)
A shard that does not own the slot (SlotMoved) is asked for its map; with a newer one the request starts over, at most
MAP_ATTEMPTS times.

Promises
1. An answer of success was committed by the shard that owns the slot.
2. A list or a search names every shard that it lacks.
3. Writes of a batch on one shard happen together or not at all; outcomes stand in the order of the operations.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from engram_contract.placement import user_slot
from engram_contract.policy import Limits
from engram_contract.shardmap import ShardMap, Strategy
from engram_contract.slots import MemoryId
from engram_sidecar import routing
from engram_sidecar.config import InForce
from engram_sidecar.errors import (
    Collision,
    Flaw,
    IdempotencyKeyInUse,
    NotFound,
    OutcomeUnknown,
    ShardUnavailable,
    SidecarError,
    SlotMoved,
    Unprocessable,
)
from engram_sidecar.finding import Finder
from engram_sidecar.following import MAP_ATTEMPTS, Follower
from engram_sidecar.idempotency import KEPT_S, Claim, Once, Write, pass_on
from engram_sidecar.ids import HomeIds, Ids, month_of
from engram_sidecar.kept import Recalled
from engram_sidecar.quotas import Borrower
from engram_sidecar.recall import Recall
from engram_sidecar.records import (
    Cursor,
    Delete,
    Draft,
    Found,
    Get,
    Hit,
    Memory,
    Operation,
    Patch,
    Put,
    Replay,
    Selection,
)
from engram_sidecar.sealing import Vault
from engram_sidecar.store import Asks, Place
from engram_sidecar.writes import (
    Outcome,
    Rules,
    Run,
    delete_memory,
    fetch_memories,
    opened,
    put_memory,
    unless_refused,
    write_group,
)

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class World:
    """What a pipeline takes from outside: Unix time in seconds, monotonic seconds, random bytes.

    `timeout_s`: how long a question to a shard may take.
    """

    now_s: Callable[[], float]
    monotonic_s: Callable[[], float]
    random_bytes: Callable[[int], bytes]
    timeout_s: float = 10.0


class Repeats(Asks, Protocol):
    """Asks places, and repeats what happens once."""

    async def repeat(self, place: Place, attempt: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer of a write that happens once, however often it is run."""


class Pipeline:
    """Answers one tenant's requests."""

    def __init__(
        self,
        store: Repeats,
        in_force: InForce,
        vault: Vault,
        recall: Recall,
        limits: Limits,
        world: World,
    ) -> None:
        self._store = store
        self._recall = recall
        self._vault = vault
        self._in_force = in_force
        self._limits = limits
        self._world = world
        self._timeout_s = world.timeout_s
        self._follower = Follower(store, in_force, world.timeout_s)
        self._borrower = Borrower(store, world.timeout_s)
        self._finder = Finder(store, vault, world.monotonic_s, world.timeout_s)

    # One memory

    def id_of(self, draft: Draft) -> MemoryId:
        """The id of a named memory. Raises ValueError for a draft without a key."""
        return Ids(self._in_force.config.shard_map, self._world.now_s(), self._world.random_bytes).id_of(draft)

    async def ids_for(self, once: Once | None) -> Ids:
        """Makes the ids of a request. Raises ShardUnavailable, IdempotencyKeyInUse."""
        shard_map, now_s = self._in_force.config.shard_map, self._world.now_s()
        if once is None:
            return Ids(shard_map, now_s, self._world.random_bytes)
        first_s = now_s - KEPT_S  # when a request that this one repeats may have come
        if shard_map.strategy is Strategy.TIME and month_of(first_s) != month_of(now_s):
            earlier = HomeIds(shard_map, now_s, self._world.random_bytes, first_s)
            if await self._was_done(self._claim(once), earlier.new_id(Draft()).slot):
                return earlier
        return HomeIds(shard_map, now_s, self._world.random_bytes, now_s)

    async def get(self, memory_id: MemoryId) -> Recalled:
        """The live memory. Raises NotFound, KeyMissing, SealBroken."""
        recalled = await self._recall.get(memory_id)
        if not recalled.tag:
            raise NotFound(str(memory_id))
        return recalled

    async def put(self, put: Put) -> Hit:
        """The memory as it is now stored. Raises Unprocessable, PreconditionFailed."""
        if self._in_force.identity is not None:
            put = self._in_force.identity.signed_put(put)
        rules = self._rules()
        rules.check_identity(put.id, put.draft, "")
        indexed = await rules.sealer.indexer.index(put.draft)

        async def attempt(shard_map: ShardMap) -> Hit:
            place = routing.place_to_write(shard_map, put.id.slot)
            write = partial(put_memory, self._writer(place), place, put, indexed, rules)
            return Hit(await self._borrower.with_room(shard_map, place, [put], write), place.shard)

        async with self._recall.writing([put.id]):
            return await self._follower.ask(attempt)

    async def patch(self, patch: Patch) -> Hit:
        """The memory after a merge patch. Raises NotFound, PreconditionFailed, Unprocessable."""
        if self._in_force.identity is not None:
            patch = self._in_force.identity.signed_patch(patch)
        rules = self._rules()

        async def attempt(shard_map: ShardMap) -> Hit:
            place = routing.place_to_write(shard_map, patch.id.slot)
            [outcome] = await self._write_group(shard_map, place, [patch], rules)
            if not isinstance(outcome, Memory):
                raise outcome if isinstance(outcome, SidecarError) else NotFound(str(patch.id))
            return Hit(outcome, place.shard)

        async with self._recall.writing([patch.id]):
            return await self._follower.ask(attempt)

    async def delete(self, delete: Delete) -> None:
        """The memory is gone. Raises NotFound, PreconditionFailed."""

        async def attempt(shard_map: ShardMap) -> None:
            place = routing.place_to_write(shard_map, delete.id.slot)
            await delete_memory(self._writer(place), place, delete)

        async with self._recall.writing([delete.id]):
            await self._follower.ask(attempt)

    async def write_once(self, write: Write, once: Once) -> tuple[Memory | Replay | None, str]:
        """What the write came to, now or when it was done under its key, and the shard.

        Raises what put, patch and delete raise, IdempotencyKeyInUse, IdempotencyKeyReused.
        """
        identity, rules, claim = self._in_force.identity, self._rules(), self._claim(once)
        operation = write if identity is None else identity.signed(write, "")
        if isinstance(operation, Put):
            rules.check_identity(operation.id, operation.draft, "")

        async def attempt(shard_map: ShardMap) -> tuple[Memory | Replay | None, str]:
            place = routing.place_to_write(shard_map, operation.id.slot)
            [outcome] = await self._write_group(shard_map, place, [operation], rules, claim)
            if isinstance(outcome, SidecarError):
                raise outcome
            return outcome, place.shard

        async with self._recall.writing([operation.id]):
            return await self._follower.ask(attempt)

    # Several memories

    async def batch(self, operations: Sequence[Operation], once: Once | None = None) -> list[tuple[Outcome, str]]:
        """(outcome, shard) of each operation, in order. A shard that failed concerns its operations only.

        Raises Unprocessable, before anything is written, if a put cannot have its id.
        """
        operations, rules = self._signed(operations), self._rules()
        claim = None if once is None else self._claim(once)
        self._check_identities(operations)
        async with self._recall.writing([each.id for each in operations if not isinstance(each, Get)]) as writing:
            outcomes = await self._run_groups(operations, rules, claim)
            unknown = (OutcomeUnknown, IdempotencyKeyInUse)
            writing.is_unknown = any(isinstance(outcome, unknown) for outcome, _ in outcomes)
        self._recall.saw(outcome for outcome, _ in outcomes if isinstance(outcome, Memory))
        return unless_refused(outcomes)

    async def _run_groups(
        self, operations: Sequence[Operation], rules: Rules, claim: Claim | None
    ) -> list[tuple[Outcome, str]]:
        outcomes: list[tuple[Outcome, str]] = [(None, "")] * len(operations)
        waiting = list(enumerate(operations))
        for _ in range(MAP_ATTEMPTS):
            shard_map = self._in_force.config.shard_map
            groups: defaultdict[str, list[tuple[int, Operation]]] = defaultdict(list)
            for number, operation in waiting:
                groups[shard_map.shard_of(operation.id.slot).id].append((number, operation))
            answers = await asyncio.gather(
                *(self._run_group(shard_map, group, rules, claim) for group in groups.values())
            )
            waiting = []
            for (shard, group), answer in zip(groups.items(), answers, strict=True):
                told = await self._learn_for(shard_map, shard, len(group)) if isinstance(answer, SlotMoved) else answer
                if told is None:
                    waiting.extend(group)
                    continue
                for (number, _op), outcome in zip(group, told, strict=True):
                    outcomes[number] = (outcome, shard)
            if not waiting:
                break
        for number, operation in waiting:
            shard = self._in_force.config.shard_map.shard_of(operation.id.slot).id
            outcomes[number] = (ShardUnavailable(shard, "the slot is moving"), shard)
        return outcomes

    async def _learn_for(self, shard_map: ShardMap, shard: str, count: int) -> Sequence[Outcome] | None:
        """None if the shard told its map; else why not, for each of `count` operations."""
        try:
            await self._follower.learn(shard_map, shard)
        except ShardUnavailable as failure:
            return [failure] * count
        return None

    def _signed(self, operations: Sequence[Operation]) -> Sequence[Operation]:
        identity = self._in_force.identity
        if identity is None:
            return operations
        return [identity.signed(each, f"/operations/{number}/memory") for number, each in enumerate(operations)]

    def _check_identities(self, operations: Sequence[Operation]) -> None:
        for number, operation in enumerate(operations):
            if isinstance(operation, Put):
                self._check_identity(operation.id, operation.draft, f"/operations/{number}/memory")

    async def _run_group(
        self, shard_map: ShardMap, group: Sequence[tuple[int, Operation]], rules: Rules, claim: Claim | None
    ) -> "Sequence[Outcome] | SlotMoved":
        operations = [operation for _, operation in group]
        slot = operations[0].id.slot
        only_reads = all(isinstance(operation, Get) for operation in operations)
        try:
            if only_reads:
                place = routing.place_to_read(shard_map, slot)
                gets = [operation for operation in operations if isinstance(operation, Get)]
                memories = await fetch_memories(self._reader(place), place, gets)
                return [await opened(rules.sealer, get, memory) for get, memory in zip(gets, memories, strict=True)]
            place = routing.place_to_write(shard_map, slot)
            return await self._write_group(shard_map, place, operations, rules, claim)
        except SlotMoved as moved:
            return moved
        except SidecarError as failure:
            return [failure] * len(operations)

    async def _write_group(
        self,
        shard_map: ShardMap,
        place: Place,
        operations: Sequence[Operation],
        rules: Rules,
        claim: Claim | None = None,
    ) -> list[Outcome]:
        write = partial(write_group, self._store, place, operations, rules, self._timeout_s, claim)
        if claim is not None:
            write = partial(self._store.repeat, place, write)
        return await self._borrower.with_room(shard_map, place, operations, write)

    async def _was_done(self, claim: Claim, slot: int) -> bool:
        """Whether something was done under the key in this slot; if not, nothing will be."""

        async def attempt(shard_map: ShardMap) -> bool:
            place = routing.place_to_write(shard_map, slot)

            async def look() -> bool:
                try:
                    async with self._store.transaction(place, self._timeout_s) as transaction:
                        return await pass_on(transaction, claim, slot)
                except Collision as collision:
                    raise IdempotencyKeyInUse from collision

            return await self._borrower.with_room(shard_map, place, (), partial(self._store.repeat, place, look))

        return await self._follower.ask(attempt)

    def _claim(self, once: Once) -> Claim:
        identity = self._in_force.identity
        return self._vault.sealer.claim(once, "" if identity is None else identity.agent)

    async def list_newest(self, selection: Selection, limit: int, after: Cursor | None) -> Found:
        """The newest memories of a selection, below the cursor."""
        return self._seen(await self._follower.ask(partial(self._finder.list_newest, selection, limit, after)))

    async def search(self, query: str, selection: Selection, limit: int) -> Found:
        """The best memories for a query; of stop words only, or none, the newest ones, unscored."""
        lexemes = self._vault.sealer.indexer.lexemes(query)
        if not lexemes:
            newest = await self.list_newest(selection, limit, None)
            is_truncated = len(newest.hits) < limit and newest.next is not None
            return Found(newest.hits, newest.failures, is_truncated=is_truncated, refused=newest.refused)
        return self._seen(await self._follower.ask(partial(self._finder.search, lexemes, selection, limit)))

    def _seen(self, found: Found) -> Found:
        """Nobody is shown less of these memories from now on."""
        self._recall.saw(hit.memory for hit in found.hits)
        return found

    # What all of them share

    def _reader(self, place: Place) -> Run:
        return partial(self._store.read, place, timeout_s=self._timeout_s)

    def _writer(self, place: Place) -> Run:
        return partial(self._store.write, place, timeout_s=self._timeout_s)

    def _rules(self) -> Rules:
        """Those of a request that begins now."""
        policy = self._in_force.config.policy
        return Rules(self._vault.sealer, self._limits, policy.retention_s or None, self._check_identity)

    def _check_identity(self, memory_id: MemoryId, draft: Draft, place: str = "") -> None:
        """Raises Unprocessable if a memory with this id cannot be called so, or cannot be found again by its user."""
        shard_map = self._in_force.config.shard_map
        if memory_id.is_named or draft.name is not None:
            if draft.name is None or self.id_of(draft) != memory_id:
                fixed = "user, namespace and key are the memory's name, fixed at creation"
                raise Unprocessable(Flaw(f"{place}/key", fixed))
            return
        is_by_user = shard_map.strategy is Strategy.USER and not shard_map.scattered
        if is_by_user and user_slot(shard_map.tenant, draft.user) != memory_id.slot:
            fixed = "the user is fixed at creation: the id's slot belongs to another user"
            raise Unprocessable(Flaw(f"{place}/user", fixed))
