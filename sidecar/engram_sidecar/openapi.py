"""The interface's description (OpenAPI 3.1), built from the limits in force, so it cannot say other numbers. Pure."""

from typing import Any, Final

from engram_contract.policy import Limits
from engram_sidecar.filters import COMPARISONS, FIELD_KINDS, MAX_ALTERNATIVES
from engram_sidecar.wire import MAX_TTL_S

Schema = dict[str, Any]

_ID_PATTERN: Final = "^[0-3][0-9a-f]{3}-[0-9a-f]{8}-[0-9a-f]{4}-[78][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"
_TYPE_PATTERN: Final = "^[a-z][a-z0-9_-]{0,62}$"
# No U+0000: the store cannot hold it.
_TEXT_PATTERN: Final = "^[^\\u0000]*$"


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _text(max_bytes: int, description: str, *, min_length: int = 1) -> Schema:
    return {
        "type": "string",
        "minLength": min_length,
        "maxLength": max_bytes,
        "pattern": _TEXT_PATTERN,
        "description": f"{description} At most {max_bytes} bytes of UTF-8.",
    }


def _write_members(limits: Limits) -> dict[str, Schema]:
    return {
        "content": _text(limits.content_bytes, "What is remembered, as text. Searched.", min_length=0)
        | {"default": ""},
        "value": {
            "description": f"Any JSON value, at most {limits.value_bytes} bytes. Its strings are searched.",
            "default": None,
        },
        "type": {"type": "string", "pattern": _TYPE_PATTERN, "default": "episodic", "description": "Kind of memory."},
        "user": _nullable(_text(limits.name_bytes, "Whose memory it is.")),
        "agent": _nullable(_text(limits.name_bytes, "Which agent stored it.")),
        "session": _nullable(_text(limits.name_bytes, "Conversation or run.")),
        "namespace": {
            "type": "array",
            "items": _text(limits.namespace_segment_bytes, "One part."),
            "maxItems": limits.namespace_segments,
            "default": [],
            "description": f"Path of whole parts, at most {limits.namespace_bytes} bytes in all.",
        },
        "key": _nullable(_text(limits.key_bytes, "Name within user and namespace.")),
        "importance": _nullable({"type": "number", "minimum": 0, "maximum": 1}),
        "ttl_s": _nullable(
            {
                "type": "number",
                "minimum": 1e-6,
                "maximum": MAX_TTL_S,
                "description": "Seconds until it expires; null: the tenant's retention.",
            }
        ),
    }


def _memory(limits: Limits) -> Schema:
    time = {"type": "string", "format": "date-time"}
    members = {
        "id": {"type": "string", "pattern": _ID_PATTERN},
        "shard": {"type": "string"},
        **{name: {"description": schema.get("description", "")} for name, schema in _write_members(limits).items()},
        "created": time,
        "updated": time,
        "expires": _nullable(time),
        "version": {"type": "integer", "minimum": 1},
        "etag": {"type": "string"},
    }
    del members["ttl_s"]
    return {"type": "object", "properties": members, "required": list(members), "additionalProperties": False}


def _schemas(limits: Limits) -> dict[str, Schema]:
    write = _write_members(limits)
    failed = {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {"shard": {"type": "string"}, "reason": {"type": "string"}},
            "required": ["shard", "reason"],
        },
    }
    completeness = {"complete": {"type": "boolean"}, "failed_shards": failed}
    hit = {
        "allOf": [
            {"type": "object", "properties": {"score": _nullable({"type": "number", "minimum": 0, "maximum": 1})}},
            {"type": "object", "properties": {"legs": {"type": "object", "additionalProperties": {"type": "number"}}}},
        ],
        "type": "object",
        "required": ["id", "score", "legs"],
    }
    return {
        "Memory": _memory(limits),
        "MemoryWrite": {"type": "object", "properties": write, "additionalProperties": False},
        "MemoryCreate": {
            "type": "object",
            "properties": {name: schema for name, schema in write.items() if name != "key"},
            "additionalProperties": False,
        },
        "ItemWrite": {
            "type": "object",
            "properties": {n: s for n, s in write.items() if n not in {"user", "namespace", "key"}},
            "additionalProperties": False,
        },
        "MergePatch": {
            "type": "object",
            "description": "A JSON merge patch (RFC 7396) on the members of MemoryWrite.",
            "properties": {name: _nullable(schema) for name, schema in write.items()},
            "additionalProperties": False,
        },
        "Page": {
            "type": "object",
            "properties": {
                "memories": {"type": "array", "items": _ref("Memory")},
                "next": _nullable({"type": "string"}),
                **completeness,
            },
            "required": ["memories", "next", "complete", "failed_shards"],
        },
        "Search": _search(limits),
        "Results": {
            "type": "object",
            "properties": {
                "results": {"type": "array", "items": hit},
                "legs": {"type": "array", "items": {"type": "string"}},
                "truncated": {"type": "boolean", "description": "Fewer than asked for: the answer was full."},
                **completeness,
            },
            "required": ["results", "legs", "truncated", "complete", "failed_shards"],
        },
        "Batch": _batch(limits),
        "BatchResults": {
            "type": "object",
            "properties": {
                "results": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {
                            "status": {"type": "integer"},
                            "memory": _ref("Memory"),
                            "problem": _ref("Problem"),
                        },
                        "required": ["status"],
                    },
                }
            },
            "required": ["results"],
        },
        "Shards": {
            "type": "object",
            "properties": {
                "epoch": {"type": "integer"},
                "strategy": {"type": "string"},
                "scattered": {"type": "boolean"},
                "shards": {"type": "array", "items": {"type": "object"}},
            },
            "required": ["epoch", "strategy", "scattered", "shards"],
        },
        "Problem": {
            "type": "object",
            "description": "RFC 9457.",
            "properties": {
                "type": {"type": "string"},
                "title": {"type": "string"},
                "status": {"type": "integer"},
                "detail": {"type": "string"},
                "errors": {"type": "array", "items": {"type": "object"}},
                "shard": {"type": "string"},
                "limit": {"type": "integer"},
            },
            "required": ["type", "title", "status", "detail"],
        },
    }


def _search(limits: Limits) -> Schema:
    write = _write_members(limits)
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "query": _text(limits.query_bytes, "Words; none or stop words only: newest first.", min_length=0),
            **{name: write[name] for name in ("user", "agent", "session", "namespace")},
            "type": _nullable(write["type"]),
            "filter": _filter(),
            "limit": {"type": "integer", "minimum": 1, "maximum": limits.search_results, "default": 10},
        },
    }


def _filter() -> Schema:
    number = {"type": "number"}
    kinds: dict[str, Schema] = {
        "number": number,
        "time": {"type": "string", "format": "date-time"},
        "text": {"type": "string", "pattern": _TEXT_PATTERN},
        "any": {"anyOf": [number, {"type": "string", "pattern": _TEXT_PATTERN}, {"type": "boolean"}]},
    }

    def condition(kind: str) -> Schema:
        scalar = _nullable(kinds[kind])
        some = {"type": "array", "items": scalar, "maxItems": MAX_ALTERNATIVES}
        operators = {**dict.fromkeys(COMPARISONS, scalar), "in": some}
        compared = {"type": "object", "properties": operators, "additionalProperties": False, "minProperties": 1}
        return {"anyOf": [scalar, compared]}

    return {
        "type": "object",
        "description": "Field -> condition, a scalar or operators. Typed: 9 is not the string 9.",
        "properties": {
            **{field: condition(kind) for field, kind in FIELD_KINDS.items()},
            "value": {
                "type": "object",
                "description": "Member of the value, or a JSON pointer into it -> condition.",
                "propertyNames": {"pattern": "^[^/\\u0000][^\\u0000]*$|^(/([^~/\\u0000]|~[01])*)+$|^$"},
                "additionalProperties": condition("any"),
            },
        },
        "additionalProperties": False,
    }


def _batch(limits: Limits) -> Schema:
    write = _write_members(limits)
    operation = {
        "type": "object",
        "required": ["op"],
        "additionalProperties": False,
        "properties": {
            "op": {"enum": ["create", "put", "get", "patch", "delete"]},
            "id": {"type": "string", "pattern": _ID_PATTERN},
            **{name: write[name] for name in ("user", "namespace", "key")},
            "memory": {"type": "object"},
            "if_match": {"type": "string"},
            "if_none_match": {"type": "string"},
        },
    }
    return {
        "type": "object",
        "required": ["operations"],
        "additionalProperties": False,
        "properties": {"operations": {"type": "array", "maxItems": limits.batch_operations, "items": operation}},
    }


def _parameter(name: str, schema: Schema, *, where: str = "query", required: bool = False) -> Schema:
    return {"name": name, "in": where, "required": required, "schema": schema}


def _body(name: str, *, merge: bool = False) -> Schema:
    kinds = ("application/merge-patch+json", "application/json") if merge else ("application/json",)
    return {"required": True, "content": {kind: {"schema": _ref(name)} for kind in kinds}}


def _operation(
    operation_id: str, summary: str, answers: dict[int, str | None], problems: tuple[int, ...], **members: object
) -> Schema:
    """An operation; `answers` maps status -> schema of the body, None for no body."""
    responses: dict[str, Schema] = {}
    for status, schema in answers.items():
        described: Schema = {"description": summary}
        if schema is not None:
            described["content"] = {"application/json": {"schema": _ref(schema)}}
        if schema == "Memory":
            described["headers"] = {"ETag": {"schema": {"type": "string"}}}
        responses[str(status)] = described
    for status in (*problems, 421, 500, 503, 504):
        problem = {"application/problem+json": {"schema": _ref("Problem")}}
        responses[str(status)] = {"description": "Problem", "content": problem}
    return {"operationId": operation_id, "summary": summary, "responses": responses, **members}


def openapi_document(limits: Limits) -> Schema:
    """The whole description."""
    write = _write_members(limits)
    tag = {"anyOf": [{"const": "*"}, {"type": "string", "pattern": '^"[!#-~]*"$'}]}
    conditions = [_parameter("If-Match", tag, where="header"), _parameter("If-None-Match", tag, where="header")]
    by_id = [_parameter("id", {"type": "string", "pattern": _ID_PATTERN}, where="path", required=True)]
    by_name = [
        _parameter("namespace", write["namespace"]),
        _parameter("key", _text(limits.key_bytes, "Name within user and namespace."), required=True),
        _parameter("user", _text(limits.name_bytes, "Whose memory it is.")),
    ]
    texts = {name: _text(limits.name_bytes, "Only those of this one.") for name in ("user", "agent", "session")}
    selection = [
        *(_parameter(name, schema) for name, schema in texts.items()),
        _parameter("type", write["type"]),
        _parameter("namespace", write["namespace"]),
        _parameter("limit", {"type": "integer", "minimum": 1, "maximum": limits.list_memories, "default": 100}),
        _parameter("cursor", {"type": "string"}),
    ]
    write_problems = (400, 408, 409, 412, 413, 415, 422)

    def memory_routes(suffix: str, address: list[Schema], body: str) -> Schema:
        return {
            "get": _operation(
                f"get{suffix}", "The memory.", {200: "Memory", 304: None}, (400, 404, 412, 422),
                parameters=[*address, *conditions],
            ),
            "put": _operation(
                f"put{suffix}", "Stores the memory whole.", {200: "Memory", 201: "Memory"}, (*write_problems, 404),
                parameters=[*address, *conditions], requestBody=_body(body),
            ),
            "patch": _operation(
                f"patch{suffix}", "Changes members.", {200: "Memory"}, (*write_problems, 404),
                parameters=[*address, *conditions], requestBody=_body("MergePatch", merge=True),
            ),
            "delete": _operation(
                f"delete{suffix}", "Removes the memory.", {204: None}, (400, 404, 409, 412, 422),
                parameters=[*address, *conditions],
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
                    "create", "Stores a new memory.", {201: "Memory"}, write_problems, requestBody=_body("MemoryCreate")
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
                    (400, 408, 413, 415, 422), requestBody=_body("Batch"),
                )
            },
            "/v1/shards": {
                "get": _operation(
                    "shards", "The shard map.", {200: "Shards"}, (400, 422),
                    parameters=[_parameter("count", {"type": "boolean", "default": False})],
                )
            },
        },
        "components": {"schemas": _schemas(limits)},
    }  # fmt: skip
