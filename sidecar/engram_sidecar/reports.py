"""Usage and audit as the interface shows them: rows of the shards to documents, and the audit's cursor. Pure."""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from engram_contract.kinds import MAX_INT64
from engram_contract.policy import Quota
from engram_sidecar import jsontext
from engram_sidecar.errors import BadRequest
from engram_sidecar.records import ShardFailure, from_unix_us, unix_us
from engram_sidecar.wire import timestamp

MAX_NAMESPACES: Final = 100  # in a snapshot of the metrics
NAMESPACES_OF_SHARD: Final = 1_000  # that a shard tells of: with fewer on each, the sums over shards are exact
MAX_AUDIT_ENTRIES: Final = 1_000
DEFAULT_AUDIT_ENTRIES: Final = 100


@dataclass(frozen=True, slots=True)
class Usage:
    """What a tenant stores of one type on one shard."""

    type: str
    memories: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Encryption:
    """Whether the tenant's memories are encrypted, by which key (0: none), and how many lie under which other one."""

    is_enabled: bool
    key_version: int
    stale: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Namespaces:
    """Namespace -> memories, over the shards. Not exact if a shard has more of them than it told of."""

    memories: Mapping[tuple[str, ...], int]
    is_exact: bool
    failures: tuple[ShardFailure, ...]


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """Where an entry stands among all: its time, then its number on its shard, then the shard."""

    at: datetime
    number: int
    shard: str

    def __str__(self) -> str:
        """The mark as opaque text."""
        return base64.urlsafe_b64encode(f"{unix_us(self.at)}.{self.number}.{self.shard}".encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> "Mark":
        """The mark that was written so. Raises BadRequest."""
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True).decode()
            micros, number, shard = raw.split(".")
            return cls(from_unix_us(int(micros)), min(int(number), MAX_INT64 - 1), shard)
        except (ValueError, OverflowError) as error:
            raise BadRequest("before: take it from `next` of the page before, unchanged") from error

    def bound_for(self, shard: str) -> tuple[datetime, int]:
        """(time, number) below which that shard's entries come after this one."""
        return self.at, self.number + (shard < self.shard)


@dataclass(frozen=True, slots=True)
class Recorded:
    """One entry of the audit: where it stands, when the shard took it, and its JSON."""

    mark: Mark
    recorded: datetime
    entry: str


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Entries, newest first, and the mark of the last one if there are more."""

    entries: tuple[Recorded, ...]
    next: Mark | None
    failures: tuple[ShardFailure, ...]


def newest(found: Sequence[Recorded], limit: int, failures: tuple[ShardFailure, ...]) -> AuditPage:
    """The page of at most `limit` entries. Each shard was asked for one more than that."""
    ordered = sorted(found, key=lambda recorded: recorded.mark, reverse=True)
    page = tuple(ordered[:limit])
    return AuditPage(page, page[-1].mark if len(ordered) > limit else None, failures)


def audit_document(page: AuditPage) -> dict[str, object]:
    """The answer to a question for the audit."""
    return {
        "entries": [_entry_document(recorded) for recorded in page.entries],
        "next": None if page.next is None else str(page.next),
        **_completeness(page.failures),
    }


def _entry_document(recorded: Recorded) -> dict[str, object]:
    entry = jsontext.parse_stored(recorded.entry)
    members = entry if isinstance(entry, dict) else {}
    return {"at": timestamp(recorded.mark.at), "recorded": timestamp(recorded.recorded), **members}


def largest(found: Sequence[Sequence[tuple[tuple[str, ...], int]]], failures: tuple[ShardFailure, ...]) -> Namespaces:
    """What the shards told, together. Each was asked for one more than NAMESPACES_OF_SHARD."""
    memories = Counter[tuple[str, ...]]()
    for of_shard in found:
        memories.update(dict(of_shard[:NAMESPACES_OF_SHARD]))
    return Namespaces(memories, all(len(each) <= NAMESPACES_OF_SHARD for each in found), failures)


def namespaces_document(namespaces: Namespaces, count: int) -> dict[str, object]:
    """The fullest ones. Where it is not exact each may have more than it says, and another one more than these."""
    ordered = sorted(namespaces.memories.items(), key=lambda each: (-each[1], each[0]))
    return {
        "largest": [{"namespace": list(name), "memories": memories} for name, memories in ordered[:count]],
        "exact": namespaces.is_exact and not namespaces.failures,
        **_completeness(namespaces.failures),
    }


def usage_document(
    quota: Quota, found: Sequence[Usage], encryption: Encryption, failures: tuple[ShardFailure, ...]
) -> dict[str, object]:
    """What is used of the quota, in all and by type. Without a shard that failed it is too little, and says so."""
    types: dict[str, list[int]] = {}
    for usage in found:
        sums = types.setdefault(usage.type, [0, 0])
        sums[0] += usage.memories
        sums[1] += usage.size_bytes
    memories, size = sum(sums[0] for sums in types.values()), sum(sums[1] for sums in types.values())
    return {
        "memories": _share(memories, quota.memories),
        "bytes": _share(size, quota.storage_bytes),
        "types": [{"type": name, "memories": sums[0], "bytes": sums[1]} for name, sums in sorted(types.items())],
        "encryption": {
            "enabled": encryption.is_enabled,
            "key_version": encryption.key_version,
            "stale": [{"key_version": key, "memories": count} for key, count in sorted(encryption.stale.items())],
        },
        **_completeness(failures),
    }


def _share(used: int, limit: int) -> dict[str, object]:
    percent = round(100 * used / limit, 2) if limit else 100.0
    return {"used": used, "limit": limit, "remaining": max(limit - used, 0), "percent": percent}


def _completeness(failures: tuple[ShardFailure, ...]) -> dict[str, object]:
    return {
        "complete": not failures,
        "failed_shards": [{"shard": failure.shard, "reason": failure.reason} for failure in failures],
    }
