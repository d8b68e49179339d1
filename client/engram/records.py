"""What the client gives and takes: frozen values, equal if their members are equal. No I/O."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypedDict, Unpack

from engram.errors import EngramError, Superseded

# What a read has to see: what this client wrote and saw (the default), all that was written before, or what is near.
Consistency = Literal["session", "strong", "eventual"]


class ItemFields(TypedDict, total=False):
    """The members that a caller writes beside the name; what is absent takes its default (or, in a patch, stays).

    `content` is the text that search reads; `value` any JSON; `type` "episodic" unless told;
    `importance` 0 to 1; `ttl_s` seconds from now until the memory is gone (None = never).
    """

    content: str
    value: Any
    type: str
    agent: str | None
    session: str | None
    importance: float | None
    ttl_s: float | None


class MemoryFields(ItemFields, total=False):
    """The members that a caller writes of a memory that has an id."""

    user: str | None
    namespace: Sequence[str]


class Selection(TypedDict, total=False):
    """Which memories a listing is about: those equal in all that is given; `namespace` is a prefix of segments."""

    user: str
    agent: str
    session: str
    type: str
    namespace: Sequence[str]


class SearchFields(Selection, total=False):
    """What narrows a search: the selection, and a typed filter like `{"value": {"/address/city": "Rome"}}`."""

    filter: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Memory:
    """One memory as it is stored. Times are aware datetimes in UTC; `etag` is what `if_match` takes."""

    id: str
    shard: str
    namespace: tuple[str, ...]
    key: str | None
    type: str
    user: str | None
    agent: str | None
    session: str | None
    content: str
    value: Any
    importance: float | None
    created: datetime
    updated: datetime
    expires: datetime | None
    version: int
    etag: str


@dataclass(frozen=True, slots=True)
class FailedShard:
    """A shard whose memories are missing from an answer, and why."""

    shard: str
    reason: str


@dataclass(frozen=True, slots=True)
class RefusedMemory:
    """A memory that belongs into an answer and that the sidecar could not decrypt, and why."""

    id: str
    shard: str
    reason: str


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing, newest first. `next` is the cursor of the next page, None on the last one."""

    memories: tuple[Memory, ...]
    next: str | None
    complete: bool
    failed_shards: tuple[FailedShard, ...]
    refused: tuple[RefusedMemory, ...] = ()

    def __iter__(self) -> Iterator[Memory]:
        """The memories of this page."""
        return iter(self.memories)


@dataclass(frozen=True, slots=True)
class Hit:
    """A memory that a search found: `score` 0 to 1, `legs` the part of each way of searching in it.

    The score is None where nothing was looked for: an empty query gives the newest.
    """

    memory: Memory
    score: float | None
    legs: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The hits, best first. Not `complete` where shards could not be asked or memories not be decrypted."""

    hits: tuple[Hit, ...]
    complete: bool
    failed_shards: tuple[FailedShard, ...]
    legs: tuple[str, ...]
    refused: tuple[RefusedMemory, ...] = ()

    def __iter__(self) -> Iterator[Hit]:
        """The hits, best first."""
        return iter(self.hits)


@dataclass(frozen=True, slots=True)
class Item:
    """The name of a keyed memory: unique by user, namespace and key."""

    namespace: tuple[str, ...]
    key: str
    user: str | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a batch, made by its constructors; `target` is an id or an Item."""

    op: str
    target: str | Item | None = None
    memory: MemoryFields | ItemFields | None = None
    if_match: str | None = None
    if_none_match: str | None = None

    @classmethod
    def create(cls, **fields: Unpack[MemoryFields]) -> "Operation":
        """A new memory with an id that the sidecar makes."""
        return cls("create", memory=fields)

    @classmethod
    def put(
        cls,
        target: str | Item,
        *,
        if_match: str | None = None,
        if_none_match: str | None = None,
        **fields: Unpack[MemoryFields],
    ) -> "Operation":
        """The memory `target` with exactly these members, new or replaced."""
        return cls("put", target, fields, if_match, if_none_match)

    @classmethod
    def get(cls, target: str | Item) -> "Operation":
        """A read of `target`; it sees the writes that stand before it in the batch."""
        return cls("get", target)

    @classmethod
    def patch(cls, target: str | Item, *, if_match: str | None = None, **fields: Unpack[MemoryFields]) -> "Operation":
        """The members given, changed by a JSON merge patch; the others stay."""
        return cls("patch", target, fields, if_match)

    @classmethod
    def delete(cls, target: str | Item, *, if_match: str | None = None) -> "Operation":
        """The end of `target`."""
        return cls("delete", target, None, if_match)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one operation: the memory where there is one, the error where it failed."""

    status: int
    memory: Memory | None
    error: EngramError | None

    @property
    def ok(self) -> bool:
        """True if the operation was done, now or before under its idempotency key."""
        return self.error is None or isinstance(self.error, Superseded)


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The outcomes, in the order of the operations."""

    outcomes: tuple[Outcome, ...]

    def __iter__(self) -> Iterator[Outcome]:
        """The outcomes, in the order of the operations."""
        return iter(self.outcomes)

    def __len__(self) -> int:
        """The number of operations."""
        return len(self.outcomes)

    def __getitem__(self, index: int) -> Outcome:
        """The outcome of the operation at `index`."""
        return self.outcomes[index]

    @property
    def ok(self) -> bool:
        """True if every operation was done."""
        return all(each.ok for each in self.outcomes)


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard as the sidecar sees it. `memories` only if counted; `error` where it could not be asked."""

    shard: str
    state: str
    weight: int
    slots: int
    ranges: tuple[tuple[int, int], ...]
    memories: int | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Shards:
    """The shard map that the sidecar routes by."""

    epoch: int
    strategy: str
    scattered: bool
    shards: tuple[Shard, ...]

    def __iter__(self) -> Iterator[Shard]:
        """The shards, in the order of the map."""
        return iter(self.shards)


@dataclass(frozen=True, slots=True)
class Share:
    """How much of a quota is used."""

    used: int
    limit: int
    remaining: int
    percent: float


@dataclass(frozen=True, slots=True)
class TypeUsage:
    """What is stored of one type of memory."""

    type: str
    memories: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What the tenant stores, of its quota and by type. Where `complete` is False, `failed_shards` are not counted."""

    memories: Share
    bytes: Share
    types: tuple[TypeUsage, ...]
    complete: bool
    failed_shards: tuple[FailedShard, ...]


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One operation that was answered: who, on which memory, with which outcome ("success" or "error")."""

    at: datetime
    operation: str
    outcome: str
    status: int
    agent: str | None
    pod: str | None
    user: str | None
    memory: str | None
    namespace: tuple[str, ...] | None
    key: str | None
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Recorded operations, newest first. `next` goes on where this page ends, None on the last one."""

    entries: tuple[AuditEntry, ...]
    next: str | None
    complete: bool
    failed_shards: tuple[FailedShard, ...]

    def __iter__(self) -> Iterator[AuditEntry]:
        """The entries of this page."""
        return iter(self.entries)
