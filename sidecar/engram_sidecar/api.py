"""The interface's only door to HTTP: request to records, outcome to response. Routes are in one table.

Promises
1. Every answer to a request that could be read is JSON: a document of the interface or a problem (RFC 9457).
2. No field, header or path names a tenant: the tenant is the process's own.
3. Only requests to a loopback name are answered (else 421): a web page cannot reach the memory by DNS rebinding.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import parse_qsl, unquote_to_bytes

from aiohttp import web

from engram_contract.policy import Limits
from engram_contract.slots import MemoryId
from engram_sidecar import jsontext, wire
from engram_sidecar.batches import outcome_document, parse_batch
from engram_sidecar.errors import BadRequest, Flaw, NotFound, PreconditionFailed, SidecarError, TooLarge, Unprocessable
from engram_sidecar.etags import parse_tags, write_conditions
from engram_sidecar.metrics import Metrics
from engram_sidecar.openapi import openapi_document
from engram_sidecar.pipeline import Pipeline
from engram_sidecar.problems import Problem, problem, to_problem
from engram_sidecar.records import Conditions, Delete, Draft, Found, Hit, Patch, Put

log = logging.getLogger(__name__)

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})
_JSON: Final = frozenset({"application/json", "application/merge-patch+json"})
_CHUNK_BYTES: Final = 65_536
_INLINE_BYTES: Final = 65_536  # a larger body is parsed beside the loop
_ENCODINGS: Final = frozenset({"", "identity", "gzip", "deflate"})
_SERVER_ERROR: Final = 500


@dataclass(frozen=True, slots=True)
class Call:
    """One request, read as far as its route needs it."""

    request: web.BaseRequest
    path_id: str = ""


class Api:
    """Answers HTTP requests by a pipeline."""

    def __init__(
        self,
        pipeline: Pipeline,
        limits: Limits,
        metrics: Metrics,
        now_s: Callable[[], float],
        body_timeout_s: float,
    ) -> None:
        self._pipeline = pipeline
        self._limits = limits
        self._metrics = metrics
        self._now_s = now_s
        self._body_timeout_s = body_timeout_s
        self._openapi = wire.encode(openapi_document(limits))
        # path -> method -> (operation as metrics name it, handler). `{id}` stands for the last segment.
        self._routes: Mapping[str, Mapping[str, tuple[str, Callable[[Call], Awaitable[web.Response]]]]] = {
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
            "/v1/shards": {"GET": ("shards", self._shards)},
            "/openapi.json": {"GET": ("openapi", self._describe)},
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """The response to any request."""
        started_s = self._now_s()
        operation = "none"
        try:
            _check_host(request)
            operation, handler, call = self._route(request)
            response = await handler(call)
        except _Answered as answered:
            response = answered.response
        except SidecarError as error:
            response = _problem_response(to_problem(error))
        except (ConnectionError, asyncio.CancelledError):
            raise  # the caller is gone
        except Exception as error:
            log.exception("request failed", extra={"operation": operation})
            response = _problem_response(to_problem(error))
        is_success = response.status < _SERVER_ERROR
        self._metrics.observe(operation, is_success=is_success, seconds=self._now_s() - started_s)
        return response

    def _route(self, request: web.BaseRequest) -> tuple[str, Callable[[Call], Awaitable[web.Response]], Call]:
        path = request.rel_url.raw_path
        path_id = ""
        if path not in self._routes and path.startswith("/v1/memories/"):
            path_id = unquote_to_bytes(path.removeprefix("/v1/memories/")).decode(errors="replace")
            path = "/v1/memories/{id}"
        methods = self._routes.get(path)
        if methods is None:
            raise _Answered(
                _problem_response(problem(404, "no-such-route", "No such route", f"there is no {path[:200]}"))
            )
        method = "GET" if request.method == "HEAD" else request.method
        if method not in methods:
            allowed = ", ".join(sorted({*methods, *({"HEAD"} if "GET" in methods else ())}))
            refused = problem(405, "method-not-allowed", "The method is not allowed here", f"allowed: {allowed}")
            refused.headers["Allow"] = allowed
            raise _Answered(_problem_response(refused))
        operation, handler = methods[method]
        return operation, handler, Call(request, path_id)

    # One memory, by id

    async def _create(self, call: Call) -> web.Response:
        self._query(call, ())
        body = await self._json(call.request)
        draft = wire.parse_draft(body, self._limits)
        if draft.key is not None:
            raise Unprocessable(Flaw("/key", "a memory with a key is stored by PUT /v1/items"))
        put = Put(self._pipeline.new_id(draft), draft, Conditions(must_be_absent=True))
        hit = await self._pipeline.put(put)
        return _memory_response(hit, 201, {"Location": f"/v1/memories/{hit.memory.id}"})

    async def _get(self, call: Call) -> web.Response:
        self._query(call, ())
        return await self._answer_get(call.request, _path_id(call))

    async def _put(self, call: Call) -> web.Response:
        self._query(call, ())
        conditions = _conditions(call.request)
        memory_id = _path_id(call)
        draft = wire.parse_draft(await self._json(call.request), self._limits)
        return await self._answer_put(Put(memory_id, draft, conditions))

    async def _patch(self, call: Call) -> web.Response:
        self._query(call, ())
        conditions = _conditions(call.request)
        return await self._answer_patch(call.request, _path_id(call), conditions)

    async def _delete(self, call: Call) -> web.Response:
        self._query(call, ())
        await self._pipeline.delete(Delete(_path_id(call), _conditions(call.request)))
        return web.Response(status=204)

    # One memory, by name

    async def _get_item(self, call: Call) -> web.Response:
        return await self._answer_get(call.request, self._item_id(call))

    async def _put_item(self, call: Call) -> web.Response:
        named = self._item_draft(call)
        conditions = _conditions(call.request)
        body = await self._json(call.request)
        rest = wire.parse_draft(body, self._limits, without=("user", "namespace", "key"))
        draft = replace(rest, user=named.user, namespace=named.namespace, key=named.key)
        return await self._answer_put(Put(self._pipeline.id_of(draft), draft, conditions))

    async def _patch_item(self, call: Call) -> web.Response:
        memory_id = self._item_id(call)
        return await self._answer_patch(call.request, memory_id, _conditions(call.request))

    async def _delete_item(self, call: Call) -> web.Response:
        await self._pipeline.delete(Delete(self._item_id(call), _conditions(call.request)))
        return web.Response(status=204)

    def _item_draft(self, call: Call) -> Draft:
        query = self._query(call, ("user", "namespace", "key"), repeated=("namespace",))
        key = query.get("key", [None])[0]
        return wire.parse_name(query.get("user", [None])[0], query.get("namespace", []), key, self._limits)

    def _item_id(self, call: Call) -> MemoryId:
        return self._pipeline.id_of(self._item_draft(call))

    # What both addresses share

    async def _answer_get(self, request: web.BaseRequest, memory_id: MemoryId) -> web.Response:
        expected = request.headers.getall("If-Match", [])
        accepted = parse_tags(",".join(expected), "If-Match") if expected else None
        header = request.headers.getall("If-None-Match", [])
        known = parse_tags(",".join(header), "If-None-Match", weak=True) if header else ()
        hit = await self._pipeline.get(memory_id)
        if accepted is not None and hit.memory.etag not in accepted:
            raise PreconditionFailed("If-Match: the memory's entity tag is another one now")
        if known is None or hit.memory.etag in known:
            return web.Response(status=304, headers={"ETag": str(hit.memory.etag)})
        return _memory_response(hit, 200)

    async def _answer_put(self, put: Put) -> web.Response:
        hit = await self._pipeline.put(put)
        is_new = hit.memory.version == 1
        headers = {"Location": f"/v1/memories/{hit.memory.id}"} if is_new else {}
        return _memory_response(hit, 201 if is_new else 200, headers)

    async def _answer_patch(
        self, request: web.BaseRequest, memory_id: MemoryId, conditions: Conditions
    ) -> web.Response:
        patch = await self._json(request)
        if not isinstance(patch, dict):
            raise Unprocessable(Flaw("", "must be an object: a JSON merge patch"))
        return _memory_response(await self._pipeline.patch(Patch(memory_id, patch, conditions)), 200)

    # Several memories

    async def _list(self, call: Call) -> web.Response:
        names = ("user", "agent", "session", "type", "namespace", "limit", "cursor")
        query = self._query(call, names, repeated=("namespace",))
        single: dict[str, object] = {name: values[0] for name, values in query.items()}
        single["namespace"] = query.get("namespace", [])
        selection = wire.parse_selection(single, self._limits, "", is_query=True)
        limit = wire.parse_limit(single.get("limit", "100"), self._limits.list_memories, "limit", is_parameter=True)
        after = wire.parse_cursor(query["cursor"][0]) if "cursor" in query else None
        found = await self._pipeline.list_newest(selection, limit, after)
        return self._found_response("list", found, wire.page_document(found))

    async def _search(self, call: Call) -> web.Response:
        self._query(call, ())
        query, selection, limit = wire.parse_search(await self._json(call.request), self._limits)
        found = await self._pipeline.search(query, selection, limit)
        return self._found_response("search", found, wire.results_document(found))

    def _found_response(self, operation: str, found: Found, document: dict[str, object]) -> web.Response:
        if found.failures:
            self._metrics.count_incomplete(operation)
        return _json_response(document)

    async def _batch(self, call: Call) -> web.Response:
        self._query(call, ())
        operations = parse_batch(await self._json(call.request), self._limits, self._pipeline)
        outcomes = await self._pipeline.batch(operations)
        results = [outcome_document(op, outcome) for op, outcome in zip(operations, outcomes, strict=True)]
        return _json_response({"results": results})

    async def _shards(self, call: Call) -> web.Response:
        query = self._query(call, ("count",))
        wanted = query.get("count", ["false"])[0]
        if wanted not in {"true", "false"}:
            raise Unprocessable(Flaw("count", "must be true or false", is_parameter=True))
        shard_map, reports = await self._pipeline.shards(with_counts=wanted == "true")
        return _json_response(wire.shards_document(shard_map, reports))

    async def _describe(self, _call: Call) -> web.Response:
        return web.Response(body=self._openapi, content_type="application/json")

    # Reading requests

    def _query(self, call: Call, names: tuple[str, ...], repeated: tuple[str, ...] = ()) -> dict[str, list[str]]:
        """The query's parameters. Raises BadRequest, Unprocessable for an unknown or repeated one."""
        try:
            pairs = parse_qsl(
                call.request.rel_url.raw_query_string,
                keep_blank_values=True,
                errors="strict",
                max_num_fields=self._limits.namespace_segments + 16,
            )
        except ValueError as error:
            reason = "the query is not UTF-8 in percent-encoding, or has too many parameters"
            raise BadRequest(reason) from error
        found: dict[str, list[str]] = {}
        for name, value in pairs:
            if name not in names:
                known = f"there are {', '.join(names)}" if names else "there are none here"
                raise Unprocessable(Flaw(name[:100], f"is not a parameter; {known}", is_parameter=True))
            if name in found and name not in repeated:
                raise Unprocessable(Flaw(name, "stands twice", is_parameter=True))
            found.setdefault(name, []).append(value)
        return found

    async def _json(self, request: web.BaseRequest) -> object:
        """The body's JSON value. Raises BadRequest, TooLarge, or answers 415.

        The type must be said: a web page may send a body of another type, or of none, to localhost without being asked.
        """
        is_json = "Content-Type" in request.headers and request.content_type in _JSON
        if not is_json or request.headers.get("Content-Encoding", "").strip().lower() not in _ENCODINGS:
            detail = "send it with the header Content-Type: application/json, plain or compressed by gzip or deflate"
            wrong = problem(415, "unsupported-media-type", "The body is not said to be JSON", detail)
            raise _Answered(_problem_response(wrong))
        raw = await self._body(request)
        try:
            if len(raw) <= _INLINE_BYTES:
                return jsontext.parse(raw, max_depth=self._limits.json_depth)
            return await asyncio.to_thread(jsontext.parse, raw, max_depth=self._limits.json_depth)
        except jsontext.BadJson as error:
            reason = f"the body is not JSON that can be stored: {error}"
            raise BadRequest(reason) from error

    async def _body(self, request: web.BaseRequest) -> bytes:
        await _continue(request)
        limit = self._limits.body_bytes
        if (request.content_length or 0) > limit:
            raise TooLarge("bytes of body", limit)
        body = bytearray()
        try:
            async with asyncio.timeout(self._body_timeout_s):
                async for chunk in request.content.iter_chunked(_CHUNK_BYTES):
                    body += chunk
                    if len(body) > limit:
                        raise TooLarge("bytes of body", limit)
        except TimeoutError as error:
            slow = problem(408, "request-timeout", "The body did not come in time", f"{self._body_timeout_s:g} s")
            raise _Answered(_problem_response(slow)) from error
        except web.RequestPayloadError as error:
            reason = "the body's transfer or content encoding is broken"
            raise BadRequest(reason) from error
        return bytes(body)


class _Answered(Exception):
    """Ends the reading of a request: the answer is ready."""

    def __init__(self, response: web.Response) -> None:
        super().__init__()
        self.response = response


async def _continue(request: web.BaseRequest) -> None:
    """Lets a client that asked go on with its body (RFC 9110 section 10.1.1)."""
    expected = request.headers.get("Expect", "").lower()
    if expected == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    elif expected:
        unknown = problem(417, "expectation-failed", "The expectation is not known", "there is 100-continue")
        raise _Answered(_problem_response(unknown))


def _check_host(request: web.BaseRequest) -> None:
    host = request.headers.get("Host", "")
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and not host.endswith("]") else host
    if name.lower() not in _LOOPBACK:
        wrong = problem(421, "misdirected", "Engram answers on loopback only", "the Host header must be localhost")
        raise _Answered(_problem_response(wrong))


def _path_id(call: Call) -> MemoryId:
    memory_id = wire.parse_id(call.path_id)
    if memory_id is None:
        reason = "no memory can have this id"
        raise NotFound(reason)
    return memory_id


def _conditions(request: web.BaseRequest) -> Conditions:
    return write_conditions(request.headers.getall("If-Match", []), request.headers.getall("If-None-Match", []))


def _json_response(document: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(body=wire.encode(document), status=status, headers=headers, content_type="application/json")


def _memory_response(hit: Hit, status: int, headers: Mapping[str, str] | None = None) -> web.Response:
    tags = {"ETag": str(hit.memory.etag), **(headers or {})}
    return _json_response(wire.memory_document(hit.memory, hit.shard), status, tags)


def _problem_response(found: Problem) -> web.Response:
    body = wire.encode(found.document)
    return web.Response(body=body, status=found.status, headers=found.headers, content_type="application/problem+json")
