"""The interface's description (OpenAPI 3.1), built from the limits in force, so it cannot say other numbers. Pure."""

from collections.abc import Sequence
from typing import Final

from engram_contract.names import (
    CONFIG_HEADER,
    CONSISTENCY_HEADER,
    IDEMPOTENCY_HEADER,
    REPLAYED_HEADER,
    SESSION_HEADER,
)
from engram_contract.policy import Limits
from engram_contract.session import MAX_CHARS, TOKEN_PATTERN
from engram_sidecar.consistency import Level
from engram_sidecar.openapi_schemas import ID_PATTERN, schemas, text, write_members
from engram_sidecar.openapi_types import Schema, ref
from engram_sidecar.rates import UNCOUNTED
from engram_sidecar.reports import DEFAULT_AUDIT_ENTRIES, MAX_AUDIT_ENTRIES, MAX_NAMESPACES

_HEADERS: Final = {
    CONFIG_HEADER: {
        "description": "Which configuration was in force when the request came; keys only if data is encrypted.",
        "schema": {"type": "string", "examples": ["map=3, policy=7, credentials=2, keys=1"]},
    },
    SESSION_HEADER: {
        "description": "What the session has written and seen so far, and where; to be sent with its next request. "
        "Absent where no memory was read or written.",
        "schema": {"type": "string", "maxLength": MAX_CHARS},
    },
    "Age": {
        "description": "What was written longer ago than so many seconds was seen; of reads by a replica or a cache.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "Cache-Status": {
        "description": "RFC 9211: whether the answer is what the sidecar keeps (hit), and if not, why; of reads of one "
        "memory.",
        "schema": {"type": "string", "examples": ["engram; hit; ttl=290", "engram; fwd=uri-miss"]},
    },
}

_RETRY_AFTER: Final = {
    "description": "Seconds after which it is worth trying again, where that is known.",
    "schema": {"type": "integer", "minimum": 1},
}

_SESSION: Final = [
    {
        "name": SESSION_HEADER,
        "in": "header",
        "description": "The token of the session's last answer; where its requests overlap several, by commas.",
        "schema": {"type": "string", "pattern": TOKEN_PATTERN},
    },
    {
        "name": CONSISTENCY_HEADER,
        "in": "header",
        "description": "What a read has to see: all that its session wrote and saw, all that was written before it "
        "began, or all that was written before the age that the answer tells.",
        "schema": {"type": "string", "enum": [level.value for level in Level], "default": Level.SESSION.value},
    },
]


def _parameter(name: str, schema: Schema, *, where: str = "query", required: bool = False) -> Schema:
    return {"name": name, "in": where, "required": required, "schema": schema}


def _key() -> Schema:
    pattern = r'^([!#-~][!-~]{0,254}|"([ !#-\[\]-~]|\\["\\]){1,255}")$'
    described = (
        "A string of RFC 9651, or bare: up to 255 characters. For 24 hours a write with this key happens once; the same"
        " request is answered alike, another one with the same key is 422."
    )
    return {**_parameter(IDEMPOTENCY_HEADER, {"type": "string", "pattern": pattern}, where="header"),
            "description": described}  # fmt: skip


def _body(name: str, *, merge: bool = False) -> Schema:
    kinds = ("application/merge-patch+json", "application/json") if merge else ("application/json",)
    return {"required": True, "content": {kind: {"schema": ref(name)} for kind in kinds}}


def _operation(
    operation_id: str,
    summary: str,
    answers: dict[int, str | None],
    problems: tuple[int, ...],
    parameters: Sequence[Schema] = (),
    **members: object,
) -> Schema:
    """An operation; `answers` maps status -> schema of the body, None for no body."""
    responses: dict[str, Schema] = {}
    for status, schema in answers.items():
        described: Schema = {"description": summary, "headers": dict(_HEADERS)}
        if schema is not None:
            described["content"] = {"application/json": {"schema": ref(schema)}}
        if schema in {"Memory", "Stored"}:
            described["headers"]["ETag"] = {"schema": {"type": "string"}}
        if schema in {"Stored", "BatchResults"} or status == 204:  # noqa: PLR2004  what a write is answered
            described["headers"][REPLAYED_HEADER] = {
                "description": "The write was done before, under the same key.", "schema": {"const": "true"}
            }  # fmt: skip
        responses[str(status)] = described
    limited = () if operation_id in UNCOUNTED else (429,)
    for status in (*problems, *limited, 403, 421, 500, 503, 504):
        empty: Schema = {"description": "Problem", "headers": dict(_HEADERS), "content": {}}
        responses.setdefault(str(status), empty)["content"]["application/problem+json"] = {"schema": ref("Problem")}
    for waited in {"429", "503"} & responses.keys():
        responses[waited]["headers"] |= {"Retry-After": _RETRY_AFTER}
    asked = [*parameters, *_SESSION]
    return {"operationId": operation_id, "summary": summary, "responses": responses, "parameters": asked, **members}


def openapi_document(limits: Limits) -> Schema:
    """The whole description."""
    write = write_members(limits)
    tag = {"anyOf": [{"const": "*"}, {"type": "string", "pattern": '^"[!#-~]*"$'}]}
    conditions = [_parameter("If-Match", tag, where="header"), _parameter("If-None-Match", tag, where="header")]
    writing = [*conditions, _key()]
    by_id = [_parameter("id", {"type": "string", "pattern": ID_PATTERN}, where="path", required=True)]
    by_name = [
        _parameter("namespace", write["namespace"]),
        _parameter("key", text(limits.key_bytes, "Name within user and namespace."), required=True),
        _parameter("user", text(limits.name_bytes, "Whose memory it is.")),
    ]
    texts = {name: text(limits.name_bytes, "Only those of this one.") for name in ("user", "agent", "session")}
    selection = [
        *(_parameter(name, schema) for name, schema in texts.items()),
        _parameter("type", write["type"]),
        _parameter("namespace", write["namespace"]),
        _parameter("limit", {"type": "integer", "minimum": 1, "maximum": limits.list_memories, "default": 100}),
        _parameter("cursor", {"type": "string"}),
    ]
    write_problems = (400, 408, 409, 412, 413, 415, 422, 507)

    def memory_routes(suffix: str, address: list[Schema], body: str) -> Schema:
        return {
            "get": _operation(
                f"get{suffix}", "The memory.", {200: "Memory", 304: None}, (400, 404, 412, 422),
                parameters=[*address, *conditions],
            ),
            "put": _operation(
                f"put{suffix}", "Stores the memory whole.", {200: "Stored", 201: "Stored"}, (*write_problems, 404),
                parameters=[*address, *writing], requestBody=_body(body),
            ),
            "patch": _operation(
                f"patch{suffix}", "Changes members.", {200: "Stored"}, (*write_problems, 404),
                parameters=[*address, *writing], requestBody=_body("MergePatch", merge=True),
            ),
            "delete": _operation(
                f"delete{suffix}", "Removes the memory.", {204: None}, (400, 404, 409, 412, 422, 507),
                parameters=[*address, *writing],
            ),
        }  # fmt: skip

    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Engram",
            "version": "1",
            "description": "The memory of one tenant, on localhost. A keyed memory's id is derived from its name.",
        },
        "paths": {
            "/v1/memories": {
                "post": _operation(
                    "create", "Stores a new memory.", {201: "Stored"}, write_problems, parameters=[_key()],
                    requestBody=_body("MemoryCreate"),
                ),
                "get": _operation("list", "Memories, newest first.", {200: "Page"}, (400, 422), parameters=selection),
            },
            "/v1/memories/{id}": memory_routes("", by_id, "MemoryWrite"),
            "/v1/items": memory_routes("Item", by_name, "ItemWrite"),
            "/v1/search": {
                "post": _operation(
                    "search", "The best memories for words and filters.", {200: "Results"}, (400, 408, 413, 415, 422),
                    requestBody=_body("Search"),
                )
            },
            "/v1/batch": {
                "post": _operation(
                    "batch", "Several operations, together or not at all on each shard.", {200: "BatchResults"},
                    (400, 408, 409, 413, 415, 422), parameters=[_key()], requestBody=_body("Batch"),
                )
            },
            "/v1/shards": {
                "get": _operation(
                    "shards", "The shard map.", {200: "Shards"}, (400, 422),
                    parameters=[_parameter("count", {"type": "boolean", "default": False})],
                )
            },
            "/v1/health": {
                "get": _operation(
                    "health", "Every part, really tried within the last seconds; 503 if one is unhealthy.",
                    {200: "Health", 503: "Health"}, (400, 422),
                )
            },
            "/v1/metrics": {
                "get": _operation(
                    "metrics", "The metrics of this sidecar, as a document.", {200: "Metrics"}, (400, 422),
                    parameters=[
                        _parameter("namespaces", {
                            "type": "integer", "minimum": 1, "maximum": MAX_NAMESPACES,
                            "description": "So many of the fullest namespaces too; they are counted now.",
                        }),
                    ],
                )
            },
            "/v1/cache": {
                "get": _operation("cache", "How the caches do, of reads by id.", {200: "Cache"}, (400, 422)),
                "delete": _operation(
                    "clearCache", "Nothing that is kept is shown any more, by no sidecar of the tenant.",
                    {200: "Cleared"}, (400, 422),
                ),
            },
            "/v1/cache/{id}": {
                "delete": _operation(
                    "clearCacheEntry", "Nothing that is kept of this memory is shown any more.", {200: "Cleared"},
                    (400, 404, 422), parameters=by_id,
                ),
            },
            "/v1/usage": {
                "get": _operation("usage", "What the tenant stores, and its quota.", {200: "Usage"}, (400, 422))
            },
            "/v1/audit": {
                "get": _operation(
                    "audit", "Recorded operations, newest first.", {200: "Audit"}, (400, 422),
                    parameters=[
                        _parameter("limit", {
                            "type": "integer", "minimum": 1, "maximum": MAX_AUDIT_ENTRIES,
                            "default": DEFAULT_AUDIT_ENTRIES,
                        }),
                        _parameter("before", {"type": "string", "description": "`next` of the page before."}),
                    ],
                )
            },
        },
        "components": {"schemas": schemas(limits)},
    }  # fmt: skip
