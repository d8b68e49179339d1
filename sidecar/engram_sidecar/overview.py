"""The interface's answers about the tenant and this sidecar as a whole: no request here reads or writes a memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from engram_sidecar import reports, wire
from engram_sidecar.audit import Subject
from engram_sidecar.checkup import Checkup
from engram_sidecar.clearing import Cleared, Clearing
from engram_sidecar.config import InForce
from engram_sidecar.errors import Flaw, Unprocessable
from engram_sidecar.intake import Call, Handler, Intake, path_id
from engram_sidecar.ledger import Ledger
from engram_sidecar.responses import health_response, json_response
from engram_sidecar.snapshot import Snapshots

HEALTH: Final = "health"  # its 503 is an answer, and no failure to give one
_FRESH: Final = {"Cache-Control": "no-store"}  # what is so now is of no use later

Routes = Mapping[str, Mapping[str, tuple[str, Handler]]]


@dataclass(frozen=True, slots=True)
class Desks:
    """Who knows what is asked for here."""

    ledger: Ledger
    checkup: Checkup
    clearing: Clearing
    snapshots: Snapshots


class Overview:
    """Answers by its desks. `routes`: path -> method -> (operation as metrics and audit name it, handler)."""

    def __init__(self, intake: Intake, in_force: InForce, desks: Desks) -> None:
        self._intake = intake
        self._in_force = in_force
        self._desks = desks
        self.routes: Routes = {
            "/v1/shards": {"GET": ("shards", self._shards)},
            "/v1/health": {"GET": (HEALTH, self._health)},
            "/v1/metrics": {"GET": ("metrics", self._metrics)},
            "/v1/cache": {"GET": ("cache", self._cache), "DELETE": ("clear", self._clear)},
            "/v1/cache/{id}": {"DELETE": ("clear", self._clear_one)},
            "/v1/usage": {"GET": ("usage", self._usage)},
            "/v1/audit": {"GET": ("audit", self._audit)},
        }

    async def _shards(self, call: Call) -> web.Response:
        query = self._intake.query(call, ("count",))
        wanted = query.get("count", ["false"])[0]
        if wanted not in {"true", "false"}:
            raise Unprocessable(Flaw("count", "must be true or false", is_parameter=True))
        shard_map, found = await self._desks.ledger.shards(with_counts=wanted == "true")
        return json_response(wire.shards_document(shard_map, found))

    async def _health(self, call: Call) -> web.Response:
        self._intake.query(call, ())
        return health_response(*await self._desks.checkup.answer())

    async def _metrics(self, call: Call) -> web.Response:
        query = self._intake.query(call, ("namespaces",))
        document = {**await self._desks.snapshots.take(), "namespaces": None}
        if "namespaces" in query:
            wanted = wire.parse_limit(query["namespaces"][0], reports.MAX_NAMESPACES, "namespaces", is_parameter=True)
            document["namespaces"] = reports.namespaces_document(await self._desks.ledger.namespaces(), wanted)
            # These are names of the app's: who asked for them is in the audit, who asked for numbers is not.
            call.parts = [("namespaces", 200, Subject(details={"namespaces": wanted}))]
        return json_response(document, headers=_FRESH)

    async def _cache(self, call: Call) -> web.Response:
        self._intake.query(call, ())
        return json_response(self._desks.clearing.statistics(), headers=_FRESH)

    async def _clear(self, call: Call) -> web.Response:
        self._intake.query(call, ())
        return _cleared(call, await self._desks.clearing.clear())

    async def _clear_one(self, call: Call) -> web.Response:
        self._intake.query(call, ())
        return _cleared(call, await self._desks.clearing.clear_one(path_id(call)))

    async def _usage(self, call: Call) -> web.Response:
        self._intake.query(call, ())
        quota = self._in_force.config.policy.quota
        return json_response(reports.usage_document(quota, *await self._desks.ledger.usage()))

    async def _audit(self, call: Call) -> web.Response:
        query = self._intake.query(call, ("limit", "before"))
        asked = query.get("limit", [str(reports.DEFAULT_AUDIT_ENTRIES)])[0]
        limit = wire.parse_limit(asked, reports.MAX_AUDIT_ENTRIES, "limit", is_parameter=True)
        before = reports.Mark.parse(query["before"][0]) if "before" in query else None
        return json_response(reports.audit_document(await self._desks.ledger.audit(limit, before)))


def _cleared(call: Call, cleared: Cleared) -> web.Response:
    call.subject.details = cleared.document
    return json_response(cleared.document)
