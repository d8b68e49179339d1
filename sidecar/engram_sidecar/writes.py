"""How memories are changed in one shard: single statements, and groups that happen together.

Promises
1. A condition is judged by the statement that writes, on the row it locked; nothing is lost between looking and
writing.
2. A write that changed nothing is explained by a second look: the slot is not ours, the memory is not there, or a
tag was wrong.
3. A group leaves either all its writes or none; its reads see the state before it.
4. A group with a claim does what was not done yet under its key, and tells the rest again (idempotency.py).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final, Protocol

from engram_contract.policy import Limits
from engram_contract.slots import MemoryId
from engram_sidecar.errors import (
    Collision,
    FailedDependency,
    IdempotencyKeyInUse,
    IdempotencyKeyReused,
    KeyMissing,
    NodeRefused,
    NotFound,
    PreconditionFailed,
    SealBroken,
    SidecarError,
    SlotMoved,
)
from engram_sidecar.idempotency import Claim, claim_key, keep_outcomes
from engram_sidecar.indexing import Indexed
from engram_sidecar.records import (
    Conditions,
    Delete,
    Draft,
    ETag,
    Get,
    Memory,
    Operation,
    Patch,
    Put,
    Replay,
    to_memory,
)
from engram_sidecar.sealing import Sealer
from engram_sidecar.store import COLLISION_ATTEMPTS, Asks, Place, Row, Transaction
from engram_sidecar.wire import apply_patch

DELETE_ATTEMPTS: Final = 3
# The arguments of a statement are put together and encoded in one go: some 6 ms of either.
STATEMENT_PUTS: Final = 125
STATEMENT_CHARS: Final = 1 << 20

# What an operation came to: the memory read or stored, None for one that was removed, that told again, or why not.
Outcome = Memory | None | Replay | SidecarError


@dataclass(frozen=True, slots=True)
class Rules:
    """What the tenant's policy and map say about writes.

    `check_identity` raises Unprocessable if a draft cannot have the id.
    """

    sealer: Sealer
    limits: Limits
    retention_s: float | None
    check_identity: Callable[[MemoryId, Draft, str], None]


class Run(Protocol):
    """Runs a named query: in a transaction of its own or in an open one."""

    async def __call__(self, query: str, *args: object) -> list[Row]:
        """The rows."""


def _tags(tags: Sequence[ETag] | None) -> list[str] | None:
    """As engram.is_accepted reads them."""
    return None if tags is None else [f"{tag.version}-{tag.created_us}" for tag in tags]


def put_arguments(
    put: Put, indexed: Indexed, retention_s: float | None, sealed: bytes | None = None
) -> tuple[object, ...]:
    """The arguments of put_memory. The shorter of time to live and retention counts; what is sealed is left out."""
    draft = put.draft if sealed is None else replace(put.draft, content="", value="null")
    bounds = [seconds for seconds in (draft.ttl_s, retention_s) if seconds is not None]
    return (
        put.id.slot, put.id.uuid, list(draft.namespace), draft.key, draft.type, draft.user, draft.agent, draft.session,
        draft.content, draft.value, draft.importance, indexed.terms, indexed.term_count, min(bounds, default=None),
        put.keeps_expiry, put.conditions.must_exist, put.conditions.must_be_absent,
        _tags(put.conditions.if_match), _tags(put.conditions.if_none_match), sealed,
    )  # fmt: skip


_MUST_BE_ABSENT: Final = 16  # its place among the arguments of put_memory


def is_repeatable(query: str, arguments: Sequence[object]) -> bool:
    """True if a write whose outcome is unknown may be run again (decision 12).

    With an accepted tag it happens once at most: if it has, the tag is another one. A put without any condition leaves
    the same memory (RFC 9110 section 9.2.2). One that must be absent could undo somebody's delete, a delete without a
    tag remove what somebody made anew, and of all other writes nothing is known.
    """
    if query == "put_memory":
        return not arguments[_MUST_BE_ABSENT]
    if query == "delete_memory":
        _, _, if_match, _ = arguments
        return if_match is not None
    return False


def run_arguments(puts: Sequence[tuple[object, ...]]) -> tuple[list[object], ...]:
    """The arguments of put_memories: an array of each argument of put_memory."""
    columns = zip(*puts, strict=True)
    return tuple([_array(each) if isinstance(each, list) else each for each in column] for column in columns)


def _array(parts: Sequence[str]) -> str:
    """The text of an array of Postgres: its arrays of arrays would have to be of one length each."""
    quoted = ('"' + part.replace("\\", "\\\\").replace('"', '\\"') + '"' for part in parts)
    return "{" + ",".join(quoted) + "}"


def stored_memory(put: Put, row: Row) -> Memory:
    """The memory after a put that answered this row."""
    draft = put.draft
    return Memory(
        id=put.id,
        namespace=draft.namespace,
        key=draft.key,
        type=draft.type,
        user=draft.user,
        agent=draft.agent,
        session=draft.session,
        content=draft.content,
        value=draft.value,
        importance=draft.importance,
        created=row["created"],
        updated=row["updated"],
        expires=row["expires"],
        version=row["version"],
    )


async def fetch_memories(run: Run, place: Place, gets: Sequence[Get]) -> list[Memory | None]:
    """The live memories asked for, as they are stored, in order. Raises SlotMoved if a slot is another shard's."""
    rows = await run("get_memories", [get.id.slot for get in gets], [get.id.uuid for get in gets])
    if not all(row["owned"] for row in rows):
        raise SlotMoved(place.shard)
    return [None if row["id"] is None else to_memory(row) for row in rows]


async def opened(sealer: Sealer, get: Get, memory: Memory | None) -> Memory | SidecarError:
    """The memory in the clear, or why there is none to show."""
    if memory is None:
        return NotFound(str(get.id))
    try:
        return await sealer.open(memory)
    except (KeyMissing, SealBroken) as refusal:
        return refusal


async def put_memory(run: Run, place: Place, put: Put, indexed: Indexed, rules: Rules) -> Memory:
    """The memory as it is now stored, in the clear. Raises PreconditionFailed, SlotMoved, KeyMissing."""
    sealed = await rules.sealer.seal(put.id, put.draft)
    rows = await run("put_memory", *put_arguments(put, indexed, rules.retention_s, sealed))
    if not rows:
        await fetch_memories(run, place, [Get(put.id)])
        raise PreconditionFailed(_mismatch(put.conditions))
    return stored_memory(put, rows[0])


async def delete_memory(run: Run, place: Place, delete: Delete) -> None:
    """The memory is gone. Raises NotFound, PreconditionFailed, SlotMoved."""
    conditions = delete.conditions
    tags = (_tags(conditions.if_match), _tags(conditions.if_none_match))
    for _ in range(DELETE_ATTEMPTS):
        if not conditions.must_be_absent and await run("delete_memory", delete.id.slot, delete.id.uuid, *tags):
            return
        [memory] = await fetch_memories(run, place, [Get(delete.id)])
        if memory is None and not conditions.must_exist:
            raise NotFound(str(delete.id))
        if memory is None or conditions.must_be_absent or not is_met(conditions, memory):
            raise PreconditionFailed(_mismatch(conditions))
        # Made anew between the two statements: it is there to be removed after all.
    raise PreconditionFailed(_mismatch(conditions))


def is_met(conditions: Conditions, memory: Memory) -> bool:
    """True if a write on this existing memory may go on."""
    tag = memory.etag
    return (
        not conditions.must_be_absent
        and (conditions.if_match is None or tag in conditions.if_match)
        and tag not in conditions.if_none_match
    )


def _mismatch(conditions: Conditions) -> str:
    if conditions.must_be_absent:
        return "If-None-Match: the memory exists"
    if conditions.if_match is None and conditions.must_exist:
        return "If-Match: there is no such memory"
    return "the memory's entity tag is another one now"


async def write_group(
    store: Asks,
    place: Place,
    operations: Sequence[Operation],
    rules: Rules,
    timeout_s: float,
    claim: Claim | None = None,
) -> list[Outcome]:
    """What each operation came to, in order.

    After a failed one nothing of the group was written, and the other writes say so. Raises SlotMoved, the claim's
    refusals and the store's failures, which concern the whole group.
    """
    drafts = {number: op.draft for number, op in enumerate(operations) if isinstance(op, Put)}
    indexed = dict(zip(drafts, await rules.sealer.indexer.index_all(list(drafts.values())), strict=True))
    for attempt in range(COLLISION_ATTEMPTS):
        group = _Group(place, operations, indexed, rules, claim)
        try:
            async with store.transaction(place, timeout_s) as transaction:
                await group.run(transaction)
        except _Undone:
            return group.undone()
        except Collision as collision:
            if attempt + 1 == COLLISION_ATTEMPTS:
                raise NodeRefused(place.shard, "too many writers of the same memories") from collision
            continue
        return group.outcomes
    raise AssertionError  # the loop returns or raises


class _Undone(Exception):
    """Leaves the transaction so that it is rolled back."""


class _Group:
    """One run of a group in one transaction."""

    def __init__(
        self,
        place: Place,
        operations: Sequence[Operation],
        indexed: dict[int, Indexed],
        rules: Rules,
        claim: Claim | None,
    ) -> None:
        self._place = place
        self._claim = claim
        self._operations = operations
        self._indexed = indexed
        self._rules = rules
        self.outcomes: list[Outcome] = [FailedDependency()] * len(operations)

    async def run(self, transaction: Transaction) -> None:
        """Fills the outcomes; raises _Undone if a write failed."""
        asked = [(n, op) for n, op in enumerate(self._operations) if not isinstance(op, Get)]
        done = set() if self._claim is None or not asked else await self._recall(transaction, self._claim, asked)
        writes = [(n, op) for n, op in asked if n not in done]
        if writes:
            ids = [op.id for _, op in writes]
            await transaction.run("lock_memories", [i.slot for i in ids], [i.uuid for i in ids])
        await self._read(transaction)
        for kind, run in groupby(writes, key=lambda item: type(item[1])):
            if kind is Put:
                puts = [(n, op) for n, op in run if isinstance(op, Put)]
                for some in self._statements(puts):
                    await self._put_run(transaction, some)
            else:
                for number, operation in run:
                    await self._write(transaction, number, operation)
        if self._claim is not None and writes:
            await keep_outcomes(transaction, self._claim, writes, self.outcomes)

    def undone(self) -> list[Outcome]:
        """The outcomes when nothing was written: failures and reads stay, what had been done did not happen."""
        return [
            outcome if isinstance(outcome, SidecarError | Replay) or isinstance(operation, Get) else FailedDependency()
            for operation, outcome in zip(self._operations, self.outcomes, strict=True)
        ]

    async def _recall(
        self, transaction: Transaction, claim: Claim, asked: Sequence[tuple[int, Put | Patch | Delete]]
    ) -> set[int]:
        """The numbers of the writes that were done, whose outcomes stand."""
        found = await claim_key(transaction, claim, asked)
        left = {n: each for n, each in found.items() if isinstance(each, Replay) and each.etag is not None}
        gets = [Get(each.id) for each in left.values()]
        memories = await fetch_memories(transaction.run, self._place, gets) if gets else []
        for (number, replay), get, memory in zip(left.items(), gets, memories, strict=True):
            if memory is not None and memory.etag == replay.etag:
                shown = await opened(self._rules.sealer, get, memory)
                found[number] = replace(replay, memory=shown) if isinstance(shown, Memory) else replay
        for number, outcome in found.items():
            self.outcomes[number] = outcome
        return set(found)

    async def _read(self, transaction: Transaction) -> None:
        gets = [(n, op) for n, op in enumerate(self._operations) if isinstance(op, Get)]
        if not gets:
            return
        memories = await fetch_memories(transaction.run, self._place, [get for _, get in gets])
        for (number, get), memory in zip(gets, memories, strict=True):
            self.outcomes[number] = await opened(self._rules.sealer, get, memory)

    def _statements(self, puts: list[tuple[int, Put]]) -> Iterator[list[tuple[int, Put]]]:
        """The puts of each statement, in order: at least one, at most STATEMENT_PUTS, of STATEMENT_CHARS together."""
        some: list[tuple[int, Put]] = []
        chars = 0
        for number, put in puts:
            size = len(put.draft.content) + len(put.draft.value) + len(self._indexed[number].terms)
            if some and (chars + size > STATEMENT_CHARS or len(some) == STATEMENT_PUTS):
                yield some
                some, chars = [], 0
            some.append((number, put))
            chars += size
        yield some

    async def _put_run(self, transaction: Transaction, puts: list[tuple[int, Put]]) -> None:
        """Consecutive puts in one statement. A row names its memory, so a missing one tells which put failed."""
        if len({put.id.uuid for _, put in puts}) < len(puts):  # the statement could not tell them apart
            for number, put in puts:
                await self._write(transaction, number, put)
            return
        arguments = [
            put_arguments(
                put, self._indexed[number], self._rules.retention_s, await self._rules.sealer.seal(put.id, put.draft)
            )
            for number, put in puts
        ]
        rows = {row["id"]: row for row in await transaction.run("put_memories", *run_arguments(arguments))}
        for number, put in puts:
            if put.id.uuid not in rows:
                await fetch_memories(transaction.run, self._place, [Get(put.id)])
                self.outcomes[number] = PreconditionFailed(_mismatch(put.conditions))
                raise _Undone
            self.outcomes[number] = stored_memory(put, rows[put.id.uuid])

    async def _write(self, transaction: Transaction, number: int, operation: Operation) -> None:
        try:
            if isinstance(operation, Patch):
                self.outcomes[number] = await self._patch(transaction, operation)
            elif isinstance(operation, Put):
                indexed = self._indexed[number]
                self.outcomes[number] = await put_memory(transaction.run, self._place, operation, indexed, self._rules)
            elif isinstance(operation, Delete):
                await delete_memory(transaction.run, self._place, operation)
                self.outcomes[number] = None
        except NotFound as absent:
            self.outcomes[number] = absent
            if isinstance(operation, Patch):
                raise _Undone from absent
        except SlotMoved:
            raise
        except SidecarError as failure:
            self.outcomes[number] = failure
            raise _Undone from failure

    async def _patch(self, transaction: Transaction, patch: Patch) -> Memory:
        """The memory after the patch. Its row is locked, so nobody comes between."""
        [memory] = await fetch_memories(transaction.run, self._place, [Get(patch.id)])
        if memory is None:
            raise (
                PreconditionFailed(_mismatch(patch.conditions))
                if patch.conditions.must_exist
                else NotFound(str(patch.id))
            )
        if not is_met(patch.conditions, memory):
            raise PreconditionFailed(_mismatch(patch.conditions))
        memory = await self._rules.sealer.open(memory)
        draft = apply_patch(memory, patch.patch, self._rules.limits, patch.place)
        self._rules.check_identity(patch.id, draft, patch.place)
        put = Put(patch.id, draft, Conditions(must_exist=True), keeps_expiry="ttl_s" not in patch.patch)
        indexed = await self._rules.sealer.indexer.index(draft)
        return await put_memory(transaction.run, self._place, put, indexed, self._rules)


def unless_refused(outcomes: list[tuple[Outcome, str]]) -> list[tuple[Outcome, str]]:
    """The outcomes of a batch. Raises the refusal of its idempotency key, if that is all there is."""
    refusals = [each for each, _ in outcomes if isinstance(each, IdempotencyKeyInUse | IdempotencyKeyReused)]
    if refusals and len(refusals) == len(outcomes):
        raise refusals[0]
    return outcomes
