"""The components of the interface's description: what bodies and answers look like, from the limits in force. Pure."""

from typing import Final

from engram_contract.policy import Limits
from engram_sidecar.filters import COMPARISONS, FIELD_KINDS, MAX_ALTERNATIVES
from engram_sidecar.openapi_reports import report_schemas
from engram_sidecar.openapi_types import Schema, nullable, ref
from engram_sidecar.wire import MAX_TTL_S

ID_PATTERN: Final = "^[0-3][0-9a-f]{3}-[0-9a-f]{8}-[0-9a-f]{4}-[78][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"
_TYPE_PATTERN: Final = "^[a-z][a-z0-9_-]{0,62}$"
# No U+0000: the store cannot hold it.
_TEXT_PATTERN: Final = "^[^\\u0000]*$"


def text(max_bytes: int, description: str, *, min_length: int = 1) -> Schema:
    """A text that the store can hold."""
    return {
        "type": "string",
        "minLength": min_length,
        "maxLength": max_bytes,
        "pattern": _TEXT_PATTERN,
        "description": f"{description} At most {max_bytes} bytes of UTF-8.",
    }


def write_members(limits: Limits) -> dict[str, Schema]:
    """What a caller may write of a memory, by member."""
    return {
        "content": text(limits.content_bytes, "What is remembered, as text. Searched.", min_length=0) | {"default": ""},
        "value": {
            "description": f"Any JSON value, at most {limits.value_bytes} bytes. Its strings are searched.",
            "default": None,
        },
        "type": {"type": "string", "pattern": _TYPE_PATTERN, "default": "episodic", "description": "Kind of memory."},
        "user": nullable(text(limits.name_bytes, "Whose memory it is.")),
        "agent": nullable(text(limits.name_bytes, "Which agent stored it.")),
        "session": nullable(text(limits.name_bytes, "Conversation or run.")),
        "namespace": {
            "type": "array",
            "items": text(limits.namespace_segment_bytes, "One part."),
            "maxItems": limits.namespace_segments,
            "default": [],
            "description": f"Path of whole parts, at most {limits.namespace_bytes} bytes in all.",
        },
        "key": nullable(text(limits.key_bytes, "Name within user and namespace.")),
        "importance": nullable({"type": "number", "minimum": 0, "maximum": 1}),
        "ttl_s": nullable(
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
        "id": {"type": "string", "pattern": ID_PATTERN},
        "shard": {"type": "string"},
        **{name: {"description": schema.get("description", "")} for name, schema in write_members(limits).items()},
        "created": time,
        "updated": time,
        "expires": nullable(time),
        "version": {"type": "integer", "minimum": 1},
        "etag": {"type": "string"},
    }
    del members["ttl_s"]
    return {"type": "object", "properties": members, "required": list(members), "additionalProperties": False}


def schemas(limits: Limits) -> dict[str, Schema]:
    """Every component, by name."""
    write = write_members(limits)
    failed = {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {"shard": {"type": "string"}, "reason": {"type": "string"}},
            "required": ["shard", "reason"],
        },
    }
    completeness: dict[str, Schema] = {"complete": {"type": "boolean"}, "failed_shards": failed}
    refused: dict[str, Schema] = {
        "refused": {
            "type": "array",
            "description": "Memories that belong here and could not be decrypted.",
            "items": {
                "type": "object",
                "properties": {"id": {"type": "string"}, "shard": {"type": "string"}, "reason": {"type": "string"}},
                "required": ["id", "shard", "reason"],
            },
        }
    }
    hit = {
        "allOf": [
            {"type": "object", "properties": {"score": nullable({"type": "number", "minimum": 0, "maximum": 1})}},
            {"type": "object", "properties": {"legs": {"type": "object", "additionalProperties": {"type": "number"}}}},
        ],
        "type": "object",
        "required": ["id", "score", "legs"],
    }
    return {
        "Memory": _memory(limits),
        "Stored": {
            "description": "The memory as it was stored; told again after it was changed, only which state it was.",
            "anyOf": [ref("Memory"), ref("Replay")],
        },
        "Replay": {
            "type": "object",
            "properties": {
                "id": {"type": "string", "pattern": ID_PATTERN},
                "shard": {"type": "string"},
                "version": {"type": "integer", "minimum": 1},
                "etag": {"type": "string"},
            },
            "required": ["id", "shard", "version", "etag"],
            "additionalProperties": False,
        },
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
            "properties": {name: nullable(schema) for name, schema in write.items()},
            "additionalProperties": False,
        },
        "Page": {
            "type": "object",
            "properties": {
                "memories": {"type": "array", "items": ref("Memory")},
                "next": nullable({"type": "string"}),
                **completeness,
                **refused,
            },
            "required": ["memories", "next", "complete", "failed_shards", "refused"],
        },
        "Search": _search(limits),
        "Results": {
            "type": "object",
            "properties": {
                "results": {"type": "array", "items": hit},
                "legs": {"type": "array", "items": {"type": "string"}},
                "truncated": {"type": "boolean", "description": "Fewer than asked for: the answer was full."},
                **completeness,
                **refused,
            },
            "required": ["results", "legs", "truncated", "complete", "failed_shards", "refused"],
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
                            "memory": ref("Stored"),
                            "replayed": {"const": True, "description": "Done before, under the same key."},
                            "problem": ref("Problem"),
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
        **report_schemas(completeness),
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
                "quota": {"enum": ["memories", "bytes"], "description": "Which quota is used up; limit says its size."},
                "agent": {"type": "string"},
                "service_account": {"type": "string"},
            },
            "required": ["type", "title", "status", "detail"],
        },
    }


def _search(limits: Limits) -> Schema:
    write = write_members(limits)
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "query": text(limits.query_bytes, "Words; none or stop words only: newest first.", min_length=0),
            **{name: write[name] for name in ("user", "agent", "session", "namespace")},
            "type": nullable(write["type"]),
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
        scalar = nullable(kinds[kind])
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
    write = write_members(limits)
    operation = {
        "type": "object",
        "required": ["op"],
        "additionalProperties": False,
        "properties": {
            "op": {"enum": ["create", "put", "get", "patch", "delete"]},
            "id": {"type": "string", "pattern": ID_PATTERN},
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
