"""Client of an Engram sidecar: memories for agents, asynchronous (`AsyncEngram`) and synchronous (`Engram`).

    from engram import Engram

    with Engram() as memories:
        memories.wait_ready()
        stored = memories.create(content="Prefers window seats", user="ada")
        memories.search("seats", user="ada").hits[0].memory.id == stored.id

The address is the argument `url`, else ENGRAM_URL, else localhost at ENGRAM_HTTP_PORT, else localhost:7711.
"""

from engram.aio import AsyncEngram
from engram.errors import (
    AgentNotAllowed,
    Conflict,
    DeadlineExceeded,
    EngramError,
    NotFound,
    NotModified,
    NotReachable,
    OutcomeUnknown,
    Pointer,
    QuotaExceeded,
    ReadOnlyShard,
    Refused,
    RolledBack,
    Superseded,
    Unavailable,
    UnexpectedAnswer,
)
from engram.records import (
    AuditEntry,
    AuditPage,
    BatchResult,
    Consistency,
    FailedShard,
    Hit,
    Item,
    ItemFields,
    Memory,
    MemoryFields,
    Operation,
    Outcome,
    Page,
    RefusedMemory,
    SearchFields,
    SearchResult,
    Selection,
    Shard,
    Shards,
    Share,
    TypeUsage,
    Usage,
)
from engram.sync import Engram

__all__ = [
    "AgentNotAllowed",
    "AsyncEngram",
    "AuditEntry",
    "AuditPage",
    "BatchResult",
    "Conflict",
    "Consistency",
    "DeadlineExceeded",
    "Engram",
    "EngramError",
    "FailedShard",
    "Hit",
    "Item",
    "ItemFields",
    "Memory",
    "MemoryFields",
    "NotFound",
    "NotModified",
    "NotReachable",
    "Operation",
    "Outcome",
    "OutcomeUnknown",
    "Page",
    "Pointer",
    "QuotaExceeded",
    "ReadOnlyShard",
    "Refused",
    "RefusedMemory",
    "RolledBack",
    "SearchFields",
    "SearchResult",
    "Selection",
    "Shard",
    "Shards",
    "Share",
    "Superseded",
    "TypeUsage",
    "Unavailable",
    "UnexpectedAnswer",
    "Usage",
]
