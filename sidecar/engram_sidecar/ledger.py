"""What the shards know of the tenant as a whole: what it uses, the audit of its operations, and which there are.

Every shard of the map is asked: the home shard, which takes the audit, may have been another one. One that does not
answer is named; if none does, that is an error and never an empty answer.
"""

import asyncio
from collections import Counter

from engram_contract.shardmap import Shard, ShardMap
from engram_sidecar.config import InForce
from engram_sidecar.errors import ShardUnavailable
from engram_sidecar.finding import scatter
from engram_sidecar.records import ShardFailure, ShardReport
from engram_sidecar.reports import (
    NAMESPACES_OF_SHARD,
    AuditPage,
    Encryption,
    Mark,
    Namespaces,
    Recorded,
    Usage,
    largest,
    newest,
)
from engram_sidecar.resealing import count_stale
from engram_sidecar.routing import primary
from engram_sidecar.sealing import Vault
from engram_sidecar.store import Asks, Place


class Ledger:
    """Reads usage and audit."""

    def __init__(self, store: Asks, in_force: InForce, vault: Vault, timeout_s: float) -> None:
        self._store = store
        self._vault = vault
        self._in_force = in_force
        self._timeout_s = timeout_s

    async def usage(self) -> tuple[list[Usage], Encryption, tuple[ShardFailure, ...]]:
        """What the shards hold by type and under which keys, and those that did not tell. Raises ShardUnavailable."""
        sealer, stale = self._vault.sealer, Counter[int]()

        async def ask(place: Place) -> list[Usage]:
            rows = await self._store.read(place, "tenant_usage", timeout_s=self._timeout_s)
            stale.update(await count_stale(self._store, place, sealer, self._timeout_s))
            return [Usage(row["type"], row["memories"], row["bytes"]) for row in rows]

        found, failures = await scatter(self._in_force.config.shard_map.shards, ask)
        return found, Encryption(sealer.encrypts, sealer.key_version, stale), failures

    async def audit(self, limit: int, before: Mark | None) -> AuditPage:
        """The newest entries below a mark. Raises ShardUnavailable."""

        async def ask(place: Place) -> list[Recorded]:
            bound = (None, None) if before is None else before.bound_for(place.shard)
            rows = await self._store.read(place, "list_audit", limit + 1, *bound, timeout_s=self._timeout_s)
            return [
                Recorded(Mark(row["at"], row["number"], place.shard), row["recorded"], row["entry"]) for row in rows
            ]

        found, failures = await scatter(self._in_force.config.shard_map.shards, ask)
        return newest(found, limit, failures)

    async def namespaces(self) -> Namespaces:
        """How many memories lie in each namespace; a shard tells of its largest ones only. Raises ShardUnavailable."""

        async def ask(place: Place) -> list[list[tuple[tuple[str, ...], int]]]:
            rows = await self._store.read(place, "count_namespaces", NAMESPACES_OF_SHARD + 1, timeout_s=self._timeout_s)
            return [[(tuple(row["namespace"]), row["memories"]) for row in rows]]

        return largest(*await scatter(self._in_force.config.shard_map.shards, ask))

    async def shards(self, *, with_counts: bool) -> tuple[ShardMap, list[ShardReport]]:
        """The map and its shards, with the number of live memories if asked for."""
        shard_map = self._in_force.config.shard_map

        async def report(shard: Shard) -> ShardReport:
            if not with_counts:
                return ShardReport(shard)
            try:
                [row] = await self._store.read(primary(shard), "count_memories", timeout_s=self._timeout_s)
            except ShardUnavailable as error:
                return ShardReport(shard, error=error.reason)
            return ShardReport(shard, memories=row["memories"])

        return shard_map, list(await asyncio.gather(*(report(shard) for shard in shard_map.shards)))
