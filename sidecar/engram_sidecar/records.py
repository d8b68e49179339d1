"""The nouns of the data plane: what a request asks for and what a memory is. Values only."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol

from engram_contract.placement import Name
from engram_contract.shardmap import Shard
from engram_contract.slots import MemoryId
from engram_sidecar.errors import SidecarError
from engram_sidecar.filters import NO_FILTER, Filter

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_US: Final = timedelta(microseconds=1)


def unix_us(moment: datetime) -> int:
    """Microseconds since 1970, exact: a float has not the digits."""
    return (moment - EPOCH) // _US


def from_unix_us(micros: int) -> datetime:
    """The time that `unix_us` told. Raises OverflowError for one that no calendar has."""
    return EPOCH + timedelta(microseconds=micros)


@dataclass(frozen=True, slots=True)
class ETag:
    """Which state of a memory: its version, and its creation in microseconds since 1970.

    The creation, because a memory that was deleted and made again counts from 1 anew.
    """

    version: int
    created_us: int

    def __str__(self) -> str:
        """The strong entity tag of RFC 9110 section 8.8.3, quotes included."""
        return f'"{self.version:x}-{self.created_us:x}"'

    @property
    def created(self) -> datetime:
        """The creation as a time."""
        return from_unix_us(self.created_us)


@dataclass(frozen=True, slots=True)
class Memory:
    """One stored memory. `value` is JSON text, times are in UTC.

    As long as it is `sealed`, its content and value are in that envelope and the two fields say nothing.
    """

    id: MemoryId
    namespace: tuple[str, ...]
    key: str | None
    type: str
    user: str | None
    agent: str | None
    session: str | None
    content: str
    value: str
    importance: float | None
    created: datetime
    updated: datetime
    expires: datetime | None
    version: int
    sealed: bytes | None = field(default=None, repr=False)

    @property
    def etag(self) -> ETag:
        """The tag of this state."""
        return ETag(self.version, unix_us(self.created))

    def opened(self, content: str, value: str) -> "Memory":
        """The same in the clear. By hand: `replace` takes three times as long, and a search opens hundreds."""
        return Memory(
            self.id,
            self.namespace,
            self.key,
            self.type,
            self.user,
            self.agent,
            self.session,
            content,
            value,
            self.importance,
            self.created,
            self.updated,
            self.expires,
            self.version,
        )


@dataclass(frozen=True, slots=True)
class Draft:
    """What a caller wants stored. `value` is JSON text; `ttl_s` None means the tenant's retention."""

    content: str = ""
    value: str = "null"
    type: str = "episodic"
    user: str | None = None
    agent: str | None = None
    session: str | None = None
    namespace: tuple[str, ...] = ()
    key: str | None = None
    importance: float | None = None
    ttl_s: float | None = None

    @property
    def name(self) -> Name | None:
        """What the memory is called, or None if it has no key."""
        return None if self.key is None else Name(self.user, self.namespace, self.key)


@dataclass(frozen=True, slots=True)
class Conditions:
    """If-Match and If-None-Match of a write (RFC 9110 section 13). `must_exist` and `must_be_absent` are their `*`."""

    must_exist: bool = False
    must_be_absent: bool = False
    if_match: tuple[ETag, ...] | None = None
    if_none_match: tuple[ETag, ...] = ()


ALWAYS: Final = Conditions()


@dataclass(frozen=True, slots=True)
class Get:
    """Read one memory."""

    id: MemoryId


@dataclass(frozen=True, slots=True)
class Put:
    """Store one memory whole. `keeps_expiry` leaves the time of expiry of an existing memory as it is."""

    id: MemoryId
    draft: Draft
    conditions: Conditions = ALWAYS
    keeps_expiry: bool = False


@dataclass(frozen=True, slots=True)
class Patch:
    """Change members of one memory: a JSON merge patch (RFC 7396) on its write members."""

    id: MemoryId
    patch: dict[str, object]
    conditions: Conditions = ALWAYS
    place: str = ""  # JSON pointer to the patch within the request


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove one memory."""

    id: MemoryId
    conditions: Conditions = ALWAYS


Operation = Get | Put | Patch | Delete


@dataclass(frozen=True, slots=True)
class Replay:
    """What a write came to when it was done, told again to who repeated it with its idempotency key.

    `etag` is that of the memory that it left, None if it removed one; `memory` is there if it is still in that state.
    """

    status: int
    id: MemoryId
    etag: ETag | None = None
    memory: Memory | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which memories a list or a search looks at. `namespace` is a prefix of whole parts; () is every namespace."""

    user: str | None = None
    agent: str | None = None
    session: str | None = None
    type: str | None = None
    namespace: tuple[str, ...] = ()
    filter: Filter = NO_FILTER


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a page ended: the next one starts below this creation time and id."""

    created: datetime
    id: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A memory that was found. `score` is 0 to 1, higher is better; None where nothing was scored.

    `is_cut`: its shard found more, and left that out because the answer was full. `is_passed_over`: it is not what was
    asked for, and stands only for how far its shard was read. `refusal`: why it cannot be opened.
    """

    memory: Memory
    shard: str
    score: float | None = None
    is_cut: bool = False
    is_passed_over: bool = False
    refusal: SidecarError | None = None


@dataclass(frozen=True, slots=True)
class ShardFailure:
    """A shard whose memories are missing from an answer, and why."""

    shard: str
    reason: str


@dataclass(frozen=True, slots=True)
class Found:
    """The answer of a list or a search. Complete only if no shard failed and no memory was `refused`.

    `is_truncated`: fewer than were asked for, because the answer was full or too much had to be read for it.
    """

    hits: tuple[Hit, ...]
    failures: tuple[ShardFailure, ...] = ()
    next: Cursor | None = None
    legs: tuple[str, ...] = ()
    is_truncated: bool = False
    refused: tuple[Hit, ...] = ()


@dataclass(frozen=True, slots=True)
class ShardReport:
    """A shard of the map; `memories` if they were counted, `error` if they could not be."""

    shard: Shard
    memories: int | None = None
    error: str | None = None


class Columns(Protocol):
    """A row of an answer: its values by the names of their columns."""

    def __getitem__(self, name: str, /) -> Any:  # noqa: ANN401  the columns have their own types
        """The value."""


def to_memory(row: Columns) -> Memory:
    """The record in a row of get_memories, list_memories, search_memories or lock_stale; sealed if it was stored so."""
    return Memory(
        id=MemoryId(row["slot"], row["id"]),
        namespace=tuple(row["namespace"]),
        key=row["key"],
        type=row["type"],
        user=row["user_id"],
        agent=row["agent_id"],
        session=row["session_id"],
        content=row["content"],
        value=row["value"],
        importance=row["importance"],
        created=row["created"],
        updated=row["updated"],
        expires=row["expires"],
        version=row["version"],
        sealed=row["sealed"],
    )
