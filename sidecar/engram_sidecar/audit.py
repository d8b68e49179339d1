"""The audit: who did what to which memory and with which outcome, never what it says.

    request --record--> Buffer --every second, in one statement--> the home shard

Promises
1. An entry holds names and numbers: no content, no value, no words of a query.
2. What could not be written is kept and tried again. Beyond CAPACITY the oldest are lost, and counted.
3. At the drain whatever is there is written, if the shard takes it.
An entry whose write had an unknown outcome is written again: twice rather than never.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from engram_contract.slots import MemoryId
from engram_sidecar import routing
from engram_sidecar.config import InForce
from engram_sidecar.errors import ShardUnavailable
from engram_sidecar.metrics import Metrics
from engram_sidecar.records import Delete, Draft, Get, Memory, Operation, Patch, Put, Replay, Selection
from engram_sidecar.settings import Settings
from engram_sidecar.store import Store
from engram_sidecar.wire import encode, timestamp
from engram_sidecar.writes import Outcome

log = logging.getLogger(__name__)

CAPACITY: Final = 10_000  # some megabytes; at 100 requests a second an outage of 100 s
FLUSH_S: Final = 1.0
AT_ONCE: Final = 250  # entries in a statement, put together in one go: some 3 ms
LOWEST_ERROR: Final = 400
_KINDS: Final = {Get: "retrieve", Put: "store", Patch: "update", Delete: "delete"}
# They tell nothing of a memory.
NOT_AUDITED: Final = frozenset({"none", "openapi", "shards", "usage", "health", "cache", "metrics"})


@dataclass(slots=True)
class Subject:
    """What a request is about, filled in as far as it is understood."""

    memory: MemoryId | None = None
    user: str | None = None
    agent: str | None = None
    namespace: tuple[str, ...] | None = None
    key: str | None = None
    details: Mapping[str, object] = field(default_factory=dict)

    def is_draft(self, draft: Draft) -> None:
        """The request names or stores this."""
        self.user, self.namespace, self.key = draft.user, draft.namespace, draft.key
        self.agent = draft.agent or self.agent

    def is_put(self, put: Put) -> None:
        """The request stores this."""
        self.is_draft(put.draft)
        self.memory = put.id

    def is_selection(self, selection: Selection) -> None:
        """The request looks for memories of these."""
        self.user, self.agent, self.namespace = selection.user, selection.agent, selection.namespace or None

    def is_memory(self, memory: Memory) -> None:
        """The request found or stored this."""
        self.memory = memory.id
        self.is_named(memory.user, memory.namespace, memory.key)

    def is_named(self, user: str | None, namespace: tuple[str, ...], key: str | None) -> None:
        """The request found or stored what has this name."""
        self.user, self.namespace, self.key = user, namespace, key


def batch_parts(
    operations: Sequence[Operation], outcomes: Sequence[tuple[Outcome, str]], results: Sequence[Mapping[str, object]]
) -> list[tuple[str, int, Subject]]:
    """(operation, status, subject) of each operation of a batch."""
    parts = []
    for operation, (outcome, _shard), result in zip(operations, outcomes, results, strict=True):
        subject = Subject(memory=operation.id, details={"batch": len(operations)})
        if isinstance(operation, Put):
            subject.is_put(operation)
        if isinstance(outcome, Memory):
            subject.is_memory(outcome)
        if isinstance(outcome, Replay):
            subject.memory, subject.details = outcome.id, {**subject.details, "replayed": True}
        parts.append((_KINDS[type(operation)], int(str(result["status"])), subject))
    return parts


@dataclass(frozen=True, slots=True)
class Entry:
    """One operation that was answered, at `at_s`, Unix time."""

    at_s: float
    operation: str
    status: int
    subject: Subject


class Buffer:
    """Entries that wait, the oldest first; at most `capacity`. `on_lost` is called for each that finds no room."""

    def __init__(self, on_lost: Callable[[], None], capacity: int = CAPACITY) -> None:
        self._entries: deque[Entry] = deque()
        self._on_lost = on_lost
        self._capacity = capacity

    def __len__(self) -> int:
        """How many wait."""
        return len(self._entries)

    def add(self, entry: Entry) -> None:
        """The entry waits; the oldest makes room for it."""
        self._entries.append(entry)
        self._keep_to_capacity()

    def take(self, count: int) -> list[Entry]:
        """The oldest entries, which wait no more."""
        return [self._entries.popleft() for _ in range(min(count, len(self._entries)))]

    def give_back(self, entries: list[Entry]) -> None:
        """What was taken waits again, before all others."""
        self._entries.extendleft(reversed(entries))
        self._keep_to_capacity()

    def _keep_to_capacity(self) -> None:
        while len(self._entries) > self._capacity:
            self._entries.popleft()
            self._on_lost()


class Trail:
    """Records operations while the policy asks for it, and writes them to the home shard."""

    def __init__(
        self, in_force: InForce, store: Store, settings: Settings, metrics: Metrics, now_s: Callable[[], float]
    ) -> None:
        self.buffer = Buffer(metrics.count_audit_lost)
        metrics.watch_audit(lambda: len(self.buffer))
        self._in_force = in_force
        self._store = store
        self._now_s = now_s
        self._timeout_s = settings.request_timeout_s
        self._agent = None if settings.identity is None else settings.identity.agent
        self._pod = None if settings.pod is None else settings.pod.name
        self._fault = ""

    def record(self, operation: str, status: int, subject: Subject) -> None:
        """Keeps the operation, if it is one that the policy wants recorded."""
        if self._in_force.config.policy.audit and operation not in NOT_AUDITED:
            self.buffer.add(Entry(self._now_s(), operation, status, subject))

    async def run(self) -> None:
        """Writes what was recorded, every second. Runs until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_S)
            await self.flush()

    async def close(self) -> None:
        """Writes what waits, if the shard takes it; what it does not is lost."""
        await self.flush()
        if len(self.buffer):
            log.error("audit lost, the home shard did not take it before the end", extra={"entries": len(self.buffer)})

    async def flush(self) -> None:
        """Writes what waits, until nothing does or the shard does not take it."""
        while entries := self.buffer.take(AT_ONCE):
            try:
                await self._write(entries)
            except ShardUnavailable as failure:
                self.buffer.give_back(entries)
                self._tell(str(failure))
                return
            except asyncio.CancelledError:
                self.buffer.give_back(entries)
                raise
            self._tell("")

    async def _write(self, entries: Iterable[Entry]) -> None:
        text = encode([self._document(entry) for entry in entries]).decode()
        home = routing.home(self._in_force.config.shard_map)
        await self._store.write(home, "record_audit", text, timeout_s=self._timeout_s)

    def _tell(self, fault: str) -> None:
        if fault and fault != self._fault:
            log.warning("audit not written, it is kept", extra={"reason": fault, "waiting": len(self.buffer)})
        self._fault = fault

    def _document(self, entry: Entry) -> dict[str, object]:
        subject = entry.subject
        return {
            "at": timestamp(datetime.fromtimestamp(entry.at_s, UTC)),
            "operation": entry.operation,
            "outcome": "error" if entry.status >= LOWEST_ERROR else "success",
            "status": entry.status,
            "agent": self._agent or subject.agent,
            "pod": self._pod,
            "user": subject.user,
            "memory": None if subject.memory is None else str(subject.memory),
            "namespace": subject.namespace,
            "key": subject.key,
            "details": subject.details,
        }
