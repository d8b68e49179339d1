"""Results of searches in L2: for `eventual` reads, until the tenant's next write.

Between a write's commit and its notice a result from before is still found. So it is for those who asked for no more
than what the Age says; sessions, which may have seen that write, ask the shards.

Promises
1. A result stays until any sidecar of the tenant tells of a write, no longer than remote.SEARCH_TTL_S, and no longer
than the first of its memories lives.
2. Only complete results are put there, and of a replica only what had reached all that was told.
3. Of a tenant that has keys they are sealed, and nobody can tell from the place what was searched for.
"""

import json
from collections.abc import Awaitable, Callable
from math import inf

from engram_sidecar.bulletin import Bulletin
from engram_sidecar.clock import monotonic_s
from engram_sidecar.consistency import Level, session_of_request
from engram_sidecar.errors import KeyMissing, SealBroken
from engram_sidecar.recall import Recall
from engram_sidecar.records import Found
from engram_sidecar.remote import Remote
from engram_sidecar.responses import Results, results_of
from engram_sidecar.sealing import Vault
from engram_sidecar.wire import results_document


class Searches:
    """One tenant's searches. `unix_s`: Unix time."""

    def __init__(
        self, recall: Recall, bulletin: Bulletin, remote: Remote, vault: Vault, unix_s: Callable[[], float]
    ) -> None:
        self._recall = recall
        self._bulletin = bulletin
        self._remote = remote
        self._vault = vault
        self._unix_s = unix_s

    async def get(self, asked: object, find: Callable[[], Awaitable[Found]]) -> Results:
        """The results for a search's document, of L2 or else found. Raises what `find` raises."""
        session, ticket = session_of_request(), self._remote.ticket()
        if session.level is not Level.EVENTUAL or ticket is None:
            return await results_of(await find(), results_document)
        name = self._vault.sealer.search_name(normalized(asked))
        kept = await self._remote.get_search(name, ticket)
        if kept is not None and (results := await self._opened(name, kept)) is not None:
            now_s = monotonic_s()
            session.cached("fwd=uri-miss; detail=shared")
            session.is_as_old_as(max(now_s - (self._bulletin.sound_s or now_s), 0.0))
            return results
        session.cached("fwd=uri-miss")
        found = await find()
        results = await results_of(found, results_document)
        expiries = (hit.memory.expires.timestamp() for hit in found.hits if hit.memory.expires is not None)
        left_s = min(expiries, default=inf) - self._unix_s()
        is_whole = not (found.failures or found.refused)
        if is_whole and all(self._recall.may_keep(shard, source) for shard, source in session.sources):
            sealed = await self._vault.sealer.seal_text(name, str(results.count), results.body.decode())
            await self._remote.fill_search(name, sealed, left_s, ticket)
        return results

    async def _opened(self, name: str, kept: bytes) -> Results | None:
        try:
            first, body = await self._vault.sealer.open_text(name, kept)
            return Results(body.encode(), int(first))
        except (KeyMissing, SealBroken, ValueError):
            return None


def normalized(asked: object) -> bytes:
    """The same for searches that ask the same: whatever the order of their members, case and spaces of the query."""
    if isinstance(asked, dict) and isinstance(asked.get("query"), str):
        asked = {**asked, "query": " ".join(asked["query"].lower().split())}
    return json.dumps(asked, sort_keys=True).encode()
