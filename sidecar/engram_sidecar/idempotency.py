"""Writes that happen once: a caller's key, what was done under it, and that told again.

    request + Idempotency-Key --> claim (the key's turn, what was done) --nothing--> write --> keep --> commit
                                                                        '--done--> the first outcome again

Promises
1. What was done and that it was done are one transaction of the shard that did it: after a kill at any line a
repetition meets both or neither, from whichever sidecar it comes.
2. What is kept lies in the slots of what was written, so it moves with them, and whoever may do the write meets it.
Each slot has its own, so a batch of which one shard's part was done goes on with the rest.
3. Nothing that a caller wrote is kept: digests of key and request under the tenant's index key, statuses, ids, tags.
4. Only what was done is kept. A refused request leaves nothing, and its key is as new.

Source: IETF draft "The Idempotency-Key HTTP Header Field" (httpapi).
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from engram_contract.names import IDEMPOTENCY_HEADER
from engram_contract.slots import MemoryId
from engram_sidecar.errors import BadRequest, IdempotencyKeyInUse, IdempotencyKeyReused, NotFound, SidecarError
from engram_sidecar.records import Delete, ETag, Memory, Patch, Put, Replay
from engram_sidecar.store import Transaction

MAX_KEY_CHARS: Final = 255
KEPT_S: Final = 86_400.0  # as engram.keep_outcomes keeps them
CREATED: Final = 201
DONE: Final = 200
REMOVED: Final = 204
ABSENT: Final = 404

# A string of RFC 9651, or what most callers send: the bare characters.
_QUOTED: Final = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')
_BARE: Final = re.compile(r"[!#-~][!-~]*")
_ESCAPED: Final = re.compile(r'\\(["\\])')

Write = Put | Patch | Delete


@dataclass(frozen=True, slots=True)
class Once:
    """A request that is to happen once: the caller's key, and what tells it from any other request."""

    key: str
    request: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Claim:
    """The digests of a key and of the request that came with it."""

    key: UUID
    asked: UUID


def parse_key(lines: Sequence[str]) -> str | None:
    """The key in the header's lines; None without the header. Raises BadRequest."""
    if not lines:
        return None
    if len(lines) > 1:
        raise BadRequest(f"{IDEMPOTENCY_HEADER}: stands twice")
    text = lines[0].strip(" \t")
    quoted = _QUOTED.fullmatch(text)
    key = _ESCAPED.sub(r"\1", quoted[1]) if quoted else text if _BARE.fullmatch(text) else ""
    if not 1 <= len(key) <= MAX_KEY_CHARS:
        reason = f"must be 1 to {MAX_KEY_CHARS} printable characters of ASCII, without spaces unless quoted"
        raise BadRequest(f"{IDEMPOTENCY_HEADER}: {reason}")
    return key


def status_of(operation: Write, memory: Memory | None) -> int:
    """The status of a write that was done and left this memory."""
    if memory is None:
        return REMOVED
    return CREATED if isinstance(operation, Put) and memory.version == 1 else DONE


async def claim_key(
    transaction: Transaction, claim: Claim, writes: Sequence[tuple[int, Write]]
) -> dict[int, Replay | SidecarError]:
    """Number of a write -> what it came to when it was done, for those that were; the key's turn until the commit.

    Raises IdempotencyKeyInUse, IdempotencyKeyReused.
    """
    by_slot = _by_slot(writes)
    found: dict[int, Replay | SidecarError] = {}
    for row in await transaction.run("claim_key", claim.key, sorted(by_slot)):
        if row["outcomes"] is None:
            raise IdempotencyKeyInUse
        if row["asked"] != claim.asked:
            raise IdempotencyKeyReused
        told = json.loads(row["outcomes"])
        for (number, write), (status, *rest) in zip(by_slot[row["slot"]], told, strict=True):
            found[number] = _told(write, status, rest)
    return found


async def keep_outcomes(
    transaction: Transaction, claim: Claim, writes: Sequence[tuple[int, Write]], outcomes: Sequence[object]
) -> None:
    """Keeps what these writes came to, by their numbers; nothing if none of them was done."""
    if all(isinstance(outcomes[number], SidecarError) for number, _ in writes):
        return
    by_slot = _by_slot(writes)
    kept = [json.dumps([_kept(write, outcomes[number]) for number, write in each]) for each in by_slot.values()]
    await transaction.run("keep_outcomes", claim.key, claim.asked, list(by_slot), kept)


async def pass_on(transaction: Transaction, claim: Claim, slot: int) -> bool:
    """True if something was done under the key in this slot; else nothing ever will be."""
    rows = await transaction.run("claim_key", claim.key, [slot])
    if any(row["slot"] is None for row in rows):
        raise IdempotencyKeyInUse
    if not rows:
        await transaction.run("keep_outcomes", claim.key, claim.asked, [slot], [None])
    return any(row["outcomes"] is not None for row in rows)


def digest(index_key: bytes, *parts: bytes) -> UUID:
    """What stands for these parts in a shard."""
    made = hashlib.blake2b(digest_size=16, key=index_key, person=b"engram-requests")
    for part in parts:
        made.update(len(part).to_bytes(8, "big") + part)
    return UUID(bytes=made.digest())


def _by_slot(writes: Sequence[tuple[int, Write]]) -> dict[int, list[tuple[int, Write]]]:
    """The writes of each slot in order: a repetition has the same ones there, whatever else its shard does then."""
    found: defaultdict[int, list[tuple[int, Write]]] = defaultdict(list)
    for number, write in writes:
        found[write.id.slot].append((number, write))
    return dict(found)


def _kept(write: Write, outcome: object) -> list[object]:
    if isinstance(outcome, Memory):
        tag = outcome.etag
        return [status_of(write, outcome), str(outcome.id.uuid), tag.version, tag.created_us]
    return [ABSENT if isinstance(outcome, NotFound) else REMOVED]


def _told(write: Write, status: int, rest: Sequence[object]) -> Replay | SidecarError:
    if status == ABSENT:
        return NotFound(str(write.id))
    if not rest:
        return Replay(status, write.id)
    uuid, version, created_us = rest
    return Replay(status, MemoryId(write.id.slot, UUID(str(uuid))), ETag(int(str(version)), int(str(created_us))))
