"""The interface over HTTP: request to records, outcome to response. Routes are in one table.

Promises
1. Every answer to a request that could be read is JSON: a document of the interface or a problem (RFC 9457), and names
the configuration that was in force when the request came, or a newer one was used.
2. No field, header or path names a tenant: the tenant is the process's own.
3. A pod that the tenant's policy does not admit gets nothing but that refusal.
"""

import asyncio
import logging
from dataclasses import dataclass, replace
from functools import partial
from typing import Final
from urllib.parse import unquote_to_bytes

from aiohttp import web

from engram_contract.names import CONFIG_HEADER
from engram_contract.slots import MemoryId
from engram_sidecar import wire
from engram_sidecar.audit import Trail, batch_parts
from engram_sidecar.batches import operation_count, outcome_document, parse_batch
from engram_sidecar.config import InForce
from engram_sidecar.errors import Flaw, PreconditionFailed, SidecarError, Unprocessable
from engram_sidecar.etags import parse_tags
from engram_sidecar.express import GONE, Target
from engram_sidecar.idempotency import Once, Write
from engram_sidecar.intake import (
    Answered,
    Call,
    Handler,
    Intake,
    check_host,
    conditions_of,
    once_of,
    path_id,
    problem_response,
)
from engram_sidecar.kept import key_of
from engram_sidecar.limiting import Limiter
from engram_sidecar.metrics import Metrics
from engram_sidecar.openapi import openapi_document
from engram_sidecar.overview import HEALTH, Overview, Routes
from engram_sidecar.patience import begin_request
from engram_sidecar.pipeline import Pipeline
from engram_sidecar.problems import Problem, problem, to_problem
from engram_sidecar.records import Conditions, Delete, Draft, Hit, Patch, Put, Replay
from engram_sidecar.responses import (
    REPLAYED,
    Results,
    beside_loop,
    encoded_response,
    replay_response,
    results_of,
    stored_response,
)
from engram_sidecar.searches import Searches
from engram_sidecar.shortcut import Shortcut
from engram_sidecar.timing import part
from engram_sidecar.tracing import Tracer

log = logging.getLogger(__name__)

_SERVER_ERROR: Final = 500
_RATE_LIMITED: Final = 429
_QUOTA_EXCEEDED: Final = 507  # the tenant's state and no failure of ours

_BY_ID: Final = ("/v1/memories/", "/v1/cache/")  # the rest of the path is a memory's id


@dataclass(frozen=True, slots=True)
class Watch:
    """What looks on while requests are answered."""

    metrics: Metrics
    trail: Trail
    tracer: Tracer


@dataclass(frozen=True, slots=True)
class Doors:
    """What a request may be answered or refused by before a shard is asked: what is kept, and the tenant's rate."""

    shortcut: Shortcut
    searches: Searches
    limiter: Limiter


class Api:
    """Answers HTTP requests by a pipeline."""

    def __init__(
        self,
        pipeline: Pipeline,
        intake: Intake,
        doors: Doors,
        in_force: InForce,
        watch: Watch,
        overview: Overview,
    ) -> None:
        self._pipeline = pipeline
        self._intake = intake
        self._limits = intake.limits
        self._in_force = in_force
        self._shortcut = doors.shortcut
        self._searches = doors.searches
        self._limiter = doors.limiter
        self._metrics = watch.metrics
        self._trail = watch.trail
        self._tracer = watch.tracer
        self._openapi = wire.encode(openapi_document(self._limits))
        # path -> method -> (operation as metrics and audit name it, handler). `{id}` stands for the last segment.
        self._routes: Routes = {
            "/v1/memories": {"POST": ("store", self._create), "GET": ("list", self._list)},
            "/v1/memories/{id}": {
                "GET": ("retrieve", self._get),
                "PUT": ("store", self._put),
                "PATCH": ("update", self._patch),
                "DELETE": ("delete", self._delete),
            },
            "/v1/items": {
                "GET": ("retrieve", self._get_item),
                "PUT": ("store", self._put_item),
                "PATCH": ("update", self._patch_item),
                "DELETE": ("delete", self._delete_item),
            },
            "/v1/search": {"POST": ("search", self._search)},
            "/v1/batch": {"POST": ("batch", self._batch)},
            **overview.routes,
            "/openapi.json": {"GET": ("openapi", self._describe)},
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """The response to any request."""
        kept = self._shortcut.answer(request)
        return await self._handle(request) if kept is None else kept

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        config, call = self._in_force.config, self._intake.begin(request)
        begin_request()
        exchange = self._tracer.begin(request.method, request.headers)
        operation = "none"
        try:
            check_host(request)
            call.read_session()
            operation, handler = self._route(call)
            await self._limiter.admit(operation)
            response = await handler(call)
        except Answered as answered:
            response = answered.response
        except SidecarError as error:
            response = problem_response(to_problem(error))
        except (ConnectionError, asyncio.CancelledError):
            self._trail.record(operation, GONE, call.subject)
            exchange.end(call.route, GONE, {}, self._intake.now_s() - call.started_s)
            raise  # the caller is gone
        except Exception as error:
            log.exception("request failed", extra={"operation": operation})
            response = problem_response(to_problem(error))
        response.headers[CONFIG_HEADER] = config.header
        response.headers.update(call.session.headers())
        is_success = response.status < _SERVER_ERROR or response.status == _QUOTA_EXCEEDED or operation == HEALTH
        ended_s = self._intake.now_s()
        exchange.end(call.route, response.status, response.headers, ended_s - call.started_s)
        self._metrics.observe(operation, call.route, response.status, call.started_s, ended_s, is_success=is_success)
        if call.parts:
            for each in call.parts:
                self._trail.record(*each)
        elif response.status != _RATE_LIMITED:  # it touched nothing, and a flood of it would fill the audit
            self._trail.record(operation, response.status, call.subject)
        return response

    def _route(self, call: Call) -> tuple[str, Handler]:
        if self._in_force.refusal is not None:
            return "refused", partial(_refuse, to_problem(self._in_force.refusal))
        path = template = call.request.rel_url.raw_path
        before = next((each for each in _BY_ID if path.startswith(each)), None)
        if before is not None and path not in self._routes:
            call.path_id = unquote_to_bytes(path.removeprefix(before)).decode(errors="replace")
            template = before + "{id}"
        methods = self._routes.get(template)
        if methods is None:
            raise Answered(
                problem_response(problem(404, "no-such-route", "No such route", f"there is no {path[:200]}"))
            )
        method = "GET" if call.request.method == "HEAD" else call.request.method
        if method not in methods:
            allowed = ", ".join(sorted({*methods, *({"HEAD"} if "GET" in methods else ())}))
            refused = problem(405, "method-not-allowed", "The method is not allowed here", f"allowed: {allowed}")
            refused.headers["Allow"] = allowed
            raise Answered(problem_response(refused))
        call.route = (call.request.method, template)
        return methods[method]

    # One memory, by id

    async def _create(self, call: Call) -> web.Response:
        self._intake.query(call, ())
        body = await self._intake.json(call)
        draft = wire.parse_draft(body, self._limits)
        if draft.key is not None:
            raise Unprocessable(Flaw("/key", "a memory with a key is stored by PUT /v1/items"))
        ids = await self._pipeline.ids_for(once_of(call))
        return await self._answer_put(call, Put(ids.new_id(draft), draft, Conditions(must_be_absent=True)))

    async def _get(self, call: Call) -> web.Response:
        self._intake.query(call, ())
        return await self._answer_get(call, path_id(call))

    async def _put(self, call: Call) -> web.Response:
        self._intake.query(call, ())
        conditions = conditions_of(call.request)
        memory_id = path_id(call)
        draft = wire.parse_draft(await self._intake.json(call), self._limits)
        return await self._answer_put(call, Put(memory_id, draft, conditions))

    async def _patch(self, call: Call) -> web.Response:
        self._intake.query(call, ())
        conditions = conditions_of(call.request)
        return await self._answer_patch(call, path_id(call), conditions)

    async def _delete(self, call: Call) -> web.Response:
        self._intake.query(call, ())
        return await self._answer_delete(call, Delete(path_id(call), conditions_of(call.request)))

    # One memory, by name

    async def _get_item(self, call: Call) -> web.Response:
        return await self._answer_get(call, self._item_id(call))

    async def _put_item(self, call: Call) -> web.Response:
        named = self._item_draft(call)
        conditions = conditions_of(call.request)
        body = await self._intake.json(call)
        rest = wire.parse_draft(body, self._limits, without=("user", "namespace", "key"))
        draft = replace(rest, user=named.user, namespace=named.namespace, key=named.key)
        return await self._answer_put(call, Put(self._pipeline.id_of(draft), draft, conditions))

    async def _patch_item(self, call: Call) -> web.Response:
        memory_id = self._item_id(call)
        return await self._answer_patch(call, memory_id, conditions_of(call.request))

    async def _delete_item(self, call: Call) -> web.Response:
        return await self._answer_delete(call, Delete(self._item_id(call), conditions_of(call.request)))

    def _item_draft(self, call: Call) -> Draft:
        query = self._intake.query(call, ("user", "namespace", "key"), repeated=("namespace",))
        key = query.get("key", [None])[0]
        named = wire.parse_name(query.get("user", [None])[0], query.get("namespace", []), key, self._limits)
        call.subject.is_draft(named)
        return named

    def _item_id(self, call: Call) -> MemoryId:
        named = self._item_draft(call)
        call.subject.memory = memory_id = self._pipeline.id_of(named)
        return memory_id

    # What both addresses share

    async def _answer_get(self, call: Call, memory_id: MemoryId) -> web.Response:
        request = call.request
        expected = request.headers.getall("If-Match", [])
        accepted = parse_tags(",".join(expected), "If-Match") if expected else None
        header = request.headers.getall("If-None-Match", [])
        known = parse_tags(",".join(header), "If-None-Match", weak=True) if header else ()
        subject = call.subject
        named = None if call.path_id else (subject.user, subject.namespace or (), subject.key)
        recalled = await self._pipeline.get(memory_id)
        if self._in_force.config.policy.audit:
            subject.is_named(*wire.named_in(recalled.body))
        if accepted is not None and recalled.tag not in map(str, accepted):
            raise PreconditionFailed("If-Match: the memory's entity tag is another one now")
        if known is None or recalled.tag in map(str, known):
            return web.Response(status=304, headers={"ETag": recalled.tag})
        self._shortcut.learn(request, Target(key_of(memory_id), memory_id, call.route, named))
        return encoded_response(recalled.body, headers={"ETag": recalled.tag})

    async def _answer_put(self, call: Call, put: Put) -> web.Response:
        call.subject.is_put(put)
        once = once_of(call)
        if once is not None:
            return await self._answer_once(call, put, once)
        return stored_response(put, await self._pipeline.put(put))

    async def _answer_patch(self, call: Call, memory_id: MemoryId, conditions: Conditions) -> web.Response:
        patch = await self._intake.json(call)
        if not isinstance(patch, dict):
            raise Unprocessable(Flaw("", "must be an object: a JSON merge patch"))
        write, once = Patch(memory_id, patch, conditions), once_of(call)
        if once is not None:
            return await self._answer_once(call, write, once)
        hit = await self._pipeline.patch(write)
        call.subject.is_memory(hit.memory)
        return stored_response(write, hit)

    async def _answer_delete(self, call: Call, delete: Delete) -> web.Response:
        once = once_of(call)
        if once is not None:
            return await self._answer_once(call, delete, once)
        await self._pipeline.delete(delete)
        return web.Response(status=204)

    async def _answer_once(self, call: Call, write: Write, once: Once) -> web.Response:
        outcome, shard = await self._pipeline.write_once(write, once)
        if isinstance(outcome, Replay):
            self._metrics.count_replayed()
            call.subject.memory, call.subject.details = outcome.id, {"replayed": True}
            return replay_response(outcome, shard)
        if outcome is None:
            return web.Response(status=204)
        call.subject.is_memory(outcome)
        return stored_response(write, Hit(outcome, shard))

    # Several memories

    async def _list(self, call: Call) -> web.Response:
        names = ("user", "agent", "session", "type", "namespace", "limit", "cursor")
        query = self._intake.query(call, names, repeated=("namespace",))
        single: dict[str, object] = {name: values[0] for name, values in query.items()}
        single["namespace"] = query.get("namespace", [])
        selection = wire.parse_selection(single, self._limits, "", is_query=True)
        limit = wire.parse_limit(single.get("limit", "100"), self._limits.list_memories, "limit", is_parameter=True)
        after = wire.parse_cursor(query["cursor"][0]) if "cursor" in query else None
        call.subject.is_selection(selection)
        found = await self._pipeline.list_newest(selection, limit, after)
        return self._results_response(call, "list", await results_of(found, wire.page_document))

    async def _search(self, call: Call) -> web.Response:
        self._intake.query(call, ())
        document = await self._intake.json(call)
        query, selection, limit = wire.parse_search(document, self._limits)
        call.subject.is_selection(selection)
        results = await self._searches.get(document, partial(self._pipeline.search, query, selection, limit))
        return self._results_response(call, "search", results)

    def _results_response(self, call: Call, operation: str, results: Results) -> web.Response:
        call.subject.details = {"found": results.count}
        if results.is_incomplete:
            self._metrics.count_incomplete(operation)
        return encoded_response(results.body)

    async def _batch(self, call: Call) -> web.Response:
        self._intake.query(call, ())
        document, once = await self._intake.json(call), once_of(call)
        ids = await self._pipeline.ids_for(once)
        with part("parse"):
            operations = await beside_loop(operation_count(document), lambda: parse_batch(document, self._limits, ids))
        outcomes = await self._pipeline.batch(operations, once)
        is_replayed = any(isinstance(outcome, Replay) for outcome, _ in outcomes)
        if is_replayed:
            self._metrics.count_replayed()

        def build() -> bytes:
            results = [outcome_document(op, outcome) for op, outcome in zip(operations, outcomes, strict=True)]
            call.parts = batch_parts(operations, outcomes, results)
            return wire.encode({"results": results})

        with part("encode"):
            body = await beside_loop(len(operations), build)
        return encoded_response(body, headers=REPLAYED if is_replayed else None)

    async def _describe(self, _call: Call) -> web.Response:
        return web.Response(body=self._openapi, content_type="application/json")


async def _refuse(refusal: Problem, _call: Call) -> web.Response:
    return problem_response(refusal)
