"""Each method of the client as a value: what to send and how to read the answer. No I/O, so both clients share it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from engram import answers, statusanswers
from engram.answers import Answer
from engram.encoding import (
    JSON_HEADERS,
    MERGE_PATCH_HEADERS,
    Headers,
    encode_body,
    encode_conditions,
    encode_key,
    encode_memory_path,
    encode_target,
)
from engram.records import (
    AuditPage,
    BatchResult,
    Consistency,
    Item,
    ItemFields,
    Memory,
    MemoryFields,
    Operation,
    Page,
    SearchFields,
    SearchResult,
    Selection,
    Shards,
    Usage,
)
from engram.status import CacheStatistics, Cleared, Health, Metrics
from engram_contract.names import CONSISTENCY_HEADER, SESSION_HEADER
from engram_contract.session import BadToken, Token

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Request(Generic[Result]):
    """One request: `target` is path and query, percent-encoded; `parse` gives the result or raises an EngramError."""

    method: str
    target: str
    parse: Callable[[Answer], Result]
    headers: Headers = ()
    body: bytes | None = None
    is_repeatable: bool = False  # sent twice it happens once


def next_token(known: Token, sent: Token, told: str | None) -> Token:
    """The client's token after an answer: what it was told, with what other requests were told meanwhile."""
    if told is None:
        return known
    try:
        token = Token.parse(told)
    except BadToken:
        return known
    return token if known is sent else known.merged(token)


def session_headers(token: Token, consistency: Consistency | None) -> Headers:
    """What a request says of its session and of what it has to see."""
    said = ((SESSION_HEADER, None if token == Token() else str(token)), (CONSISTENCY_HEADER, consistency))
    return tuple((name, value) for name, value in said if value is not None)


def build_create(fields: MemoryFields) -> Request[Memory]:
    """A new memory; the sidecar makes the id."""
    return Request("POST", "/v1/memories", answers.parse_stored, JSON_HEADERS, encode_body(fields))


def build_put(
    target: str | Item, fields: ItemFields, if_match: str | None = None, if_none_match: str | None = None
) -> Request[Memory]:
    """The memory `target` with exactly these members."""
    headers = JSON_HEADERS + encode_conditions(if_match, if_none_match)
    return Request("PUT", _address(target), answers.parse_stored, headers, encode_body(fields))


def build_get(target: str | Item, if_none_match: str | None = None) -> Request[Memory]:
    """A read of one memory."""
    return Request("GET", _address(target), answers.parse_memory, encode_conditions(None, if_none_match))


def build_patch(target: str | Item, fields: ItemFields, if_match: str | None = None) -> Request[Memory]:
    """A change of the members given (JSON merge patch, RFC 7396)."""
    headers = MERGE_PATCH_HEADERS + encode_conditions(if_match, None)
    return Request("PATCH", _address(target), answers.parse_stored, headers, encode_body(fields))


def build_delete(target: str | Item, if_match: str | None = None) -> Request[bool]:
    """The end of one memory."""
    return Request("DELETE", _address(target), answers.parse_deleted, encode_conditions(if_match, None))


def keyed(request: Request[Result], key: str | None) -> Request[Result]:
    """The write with an idempotency key, if there is one."""
    if key is None:
        return request
    return replace(request, headers=request.headers + encode_key(key), is_repeatable=True)


def build_page(selection: Selection, limit: int | None = None, cursor: str | None = None) -> Request[Page]:
    """One page of the selected memories, newest first."""
    names = ("user", "agent", "session", "type")
    equal = [(name, value) for name, value in selection.items() if name in names and isinstance(value, str)]
    prefix = [("namespace", each) for each in selection.get("namespace", ())]
    target = encode_target("/v1/memories", [*equal, *prefix, ("limit", limit), ("cursor", cursor)])
    return Request("GET", target, answers.parse_page)


def build_search(query: str, fields: SearchFields, limit: int | None = None) -> Request[SearchResult]:
    """A search for `query` among the selected memories."""
    members = {"query": query, **fields, "limit": limit}
    body = {name: each for name, each in members.items() if each is not None}
    return Request("POST", "/v1/search", answers.parse_search, JSON_HEADERS, encode_body(body))


def build_batch(operations: Iterable[Operation]) -> Request[BatchResult]:
    """Several operations at once: one transaction on each shard that they touch."""
    body = {"operations": [_operation(each) for each in operations]}
    return Request("POST", "/v1/batch", answers.parse_batch, JSON_HEADERS, encode_body(body))


def build_shards(count: bool) -> Request[Shards]:  # noqa: FBT001  the sidecar's own query parameter
    """The shard map, with the number of memories of each shard if they are to be counted."""
    return Request("GET", encode_target("/v1/shards", [("count", "true" if count else None)]), answers.parse_shards)


def build_usage() -> Request[Usage]:
    """What the tenant uses of its quota."""
    return Request("GET", "/v1/usage", answers.parse_usage)


def build_audit(limit: int | None = None, before: str | None = None) -> Request[AuditPage]:
    """One page of the audit."""
    return Request("GET", encode_target("/v1/audit", [("limit", limit), ("before", before)]), answers.parse_audit)


def build_health() -> Request[Health]:
    """How well the sidecar and its shards do."""
    return Request("GET", "/v1/health", statusanswers.parse_health)


def build_metrics(namespaces: int | None = None) -> Request[Metrics]:
    """The sidecar's metrics, with so many of the fullest namespaces."""
    return Request("GET", encode_target("/v1/metrics", [("namespaces", namespaces)]), statusanswers.parse_metrics)


def build_cache_statistics() -> Request[CacheStatistics]:
    """How the sidecar's caches do."""
    return Request("GET", "/v1/cache", statusanswers.parse_cache)


def build_clear_cache(memory_id: str | None = None) -> Request[Cleared]:
    """The end of all that is kept, or of one memory's entry. Sent twice it does no more than once."""
    target = "/v1/cache" if memory_id is None else encode_memory_path(memory_id, "/v1/cache/")
    return Request("DELETE", target, statusanswers.parse_cleared, is_repeatable=True)


def _address(target: str | Item) -> str:
    if isinstance(target, str):
        return encode_memory_path(target)
    segments = [("namespace", each) for each in target.namespace]
    return encode_target("/v1/items", [*segments, ("key", target.key), ("user", target.user)])


def _operation(operation: Operation) -> dict[str, Any]:
    target = operation.target
    if isinstance(target, Item):
        place: dict[str, Any] = {"namespace": list(target.namespace), "key": target.key, "user": target.user}
    else:
        place = {"id": target}
    members = {
        **place,
        "memory": operation.memory,
        "if_match": operation.if_match,
        "if_none_match": operation.if_none_match,
    }
    return {"op": operation.op} | {name: each for name, each in members.items() if each is not None}
