"""Answers to reads by id as they are kept, shown and counted."""

from dataclasses import dataclass
from math import inf

from engram_contract.slots import MemoryId
from engram_sidecar.consistency import Level, Session, Source


def key_of(memory_id: MemoryId) -> bytes:
    """What a memory's entry is called: a third of the memory that its id takes."""
    return memory_id.slot.to_bytes(2) + memory_id.uuid.bytes


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer to a read by id. `body`: the JSON document, sealed or not; empty if there is no such memory."""

    body: bytes
    tag: str
    shard: str
    source: Source
    fresh_until_s: float
    is_sealed: bool


@dataclass(frozen=True, slots=True)
class Recalled:
    """The answer to a read by id: the document as JSON and its entity tag, both empty if there is no such memory."""

    body: bytes
    tag: str
    shard: str
    source: Source


@dataclass(slots=True)
class Writing:
    """Writes under way, and what came of them. `is_unknown`: nobody knows whether they happened."""

    is_unknown: bool = False
    may_have_happened: bool = True


@dataclass(slots=True)
class Count:
    """How reads by id were answered so far. Each counts once, and one that failed not at all."""

    hits: int = 0
    stale: int = 0
    collapsed: int = 0  # by another request's load
    shared: int = 0  # by L2
    misses: int = 0  # by the shard
    stores: int = 0  # answers that were kept


def order(tag: str, other: str) -> int | None:
    """1 for the later of two states of a memory, -1 for the earlier one; None if there was none of it between them."""
    if not tag or not other:
        return None
    (version, created), (other_version, other_created) = (
        [int(part, 16) for part in each.strip('"').split("-")] for each in (tag, other)
    )
    if created != other_created:  # it was made anew, by a server whose clock may be behind
        return None
    return 1 if version > other_version else -1


def shown(recalled: Recalled, session: Session, *, is_own: bool = False) -> Recalled:
    """What was kept, or loaded since the session's request came (`is_own`), is shown to it.

    An eventual read of a replica raises nothing.
    """
    source = recalled.source
    session.met(source, recalled.shard)
    if source.look is not None or (source.shown is not None and not source.is_shared):
        session.is_as_old_as(source.behind_s)
    if source.shown is not None and (source.look is None or session.level is not Level.EVENTUAL):
        is_last_word = is_own and source.look is None and not source.is_shared
        session.reached(recalled.shard, source.shown, is_last_word=is_last_word)
    return recalled


def ttl(left_s: float) -> str:
    """How long an entry lasts, as a parameter of Cache-Status; one that lasts until it is evicted says nothing."""
    return "" if left_s == inf else f"; ttl={int(left_s)}"
