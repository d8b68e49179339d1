"""What came back: an answer of the sidecar as a typed value, or as the error that fits the caller's reaction.

Promises
1. Members that this version does not know are ignored, so an older client reads a newer sidecar.
2. An integer beyond 64 bits is a float: the store prints 1e22 as its digits, and it was a float when it was stored.
3. An answer of another program is an UnexpectedAnswer, never a KeyError.

Pure. Source of the error bodies: RFC 9457.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final, TypeVar

from engram.errors import (
    AgentNotAllowed,
    Conflict,
    DeadlineExceeded,
    EngramError,
    NotFound,
    NotModified,
    OutcomeUnknown,
    Pointer,
    QuotaExceeded,
    ReadOnlyShard,
    Refused,
    RolledBack,
    Superseded,
    Unavailable,
    UnexpectedAnswer,
)
from engram.records import (
    AuditEntry,
    AuditPage,
    BatchResult,
    FailedShard,
    Hit,
    Memory,
    Outcome,
    Page,
    RefusedMemory,
    SearchResult,
    Shard,
    Shards,
    Share,
    TypeUsage,
    Usage,
)
from engram_contract import names

Result = TypeVar("Result")

INT64: Final = range(-(2**63), 2**63)
KINDS: Final = {(404, "not-found"): NotFound, (503, "outcome-unknown"): OutcomeUnknown}
LEAVES: Final = {304: NotModified, 424: RolledBack, 504: DeadlineExceeded}
# Refusals of the tenant's, and the members that they carry. Another program's 403 or 507 says nothing of the tenant.
MEMBERS: Final[Mapping[tuple[int, str], tuple[Callable[..., EngramError], tuple[str, ...]]]] = {
    (403, "agent-not-allowed"): (AgentNotAllowed, ("agent", "service_account")),
    (507, "quota-exceeded"): (QuotaExceeded, ("quota", "limit")),
}
WAITS: Final = frozenset({408, 429, 503})
REFUSALS: Final = frozenset({400, 405, 406, 411, 413, 414, 415, 421, 422, 431})
RETRY_AFTER_S: Final = 1.0  # where an answer names none: long enough for a breaker's next probe, short for a person


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer, read whole. The names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def parse_memory(answer: Answer) -> Memory:
    """The memory that the answer holds; raises an EngramError for any other answer."""
    return parse(answer, memory_of)


def parse_stored(answer: Answer) -> Memory:
    """The memory that a write left; raises Superseded if it is told again and the memory is another one by now."""
    found = parse(answer, lambda body: memory_of(body) if "content" in body else _superseded(answer.status, body))
    if isinstance(found, Superseded):
        raise found
    return found


def parse_deleted(answer: Answer) -> bool:
    """True if a memory was deleted, False if there was none."""
    if answer.status == HTTPStatus.NO_CONTENT:
        return True
    error = error_of(answer)
    if isinstance(error, NotFound):
        return False
    raise error


def parse_page(answer: Answer) -> Page:
    """One page of a listing."""
    return parse(
        answer,
        lambda body: Page(
            tuple(memory_of(each) for each in body["memories"]),
            body["next"],
            body["complete"],
            failed_shards(body),
            _refused(body),
        ),
    )


def parse_search(answer: Answer) -> SearchResult:
    """The hits of a search."""
    return parse(
        answer,
        lambda body: SearchResult(
            tuple(Hit(memory_of(each), each["score"], each["legs"]) for each in body["results"]),
            body["complete"],
            failed_shards(body),
            tuple(body["legs"]),
            _refused(body),
        ),
    )


def parse_batch(answer: Answer) -> BatchResult:
    """The outcomes of a batch, each with its memory or its error."""
    return parse(answer, lambda body: BatchResult(tuple(_outcome(each) for each in body["results"])))


def parse_shards(answer: Answer) -> Shards:
    """The shard map of the sidecar."""
    return parse(
        answer,
        lambda body: Shards(
            body["epoch"], body["strategy"], body["scattered"], tuple(_shard(each) for each in body["shards"])
        ),
    )


def parse_usage(answer: Answer) -> Usage:
    """What the tenant uses of its quota."""
    return parse(
        answer,
        lambda body: Usage(
            _share(body["memories"]),
            _share(body["bytes"]),
            tuple(TypeUsage(each["type"], each["memories"], each["bytes"]) for each in body["types"]),
            body["complete"],
            failed_shards(body),
        ),
    )


def parse_audit(answer: Answer) -> AuditPage:
    """One page of the audit."""
    return parse(
        answer,
        lambda body: AuditPage(
            tuple(_entry(each) for each in body["entries"]), body["next"], body["complete"], failed_shards(body)
        ),
    )


def memory_of(body: Mapping[str, Any]) -> Memory:
    """The memory written as a JSON object; raises KeyError, TypeError or ValueError if it is none."""
    expires = body["expires"]
    return Memory(
        id=body["id"],
        shard=body["shard"],
        namespace=tuple(body["namespace"]),
        key=body["key"],
        type=body["type"],
        user=body["user"],
        agent=body["agent"],
        session=body["session"],
        content=body["content"],
        value=body["value"],
        importance=body["importance"],
        created=datetime.fromisoformat(body["created"]),
        updated=datetime.fromisoformat(body["updated"]),
        expires=None if expires is None else datetime.fromisoformat(expires),
        version=body["version"],
        etag=body["etag"],
    )


def _superseded(status: int, body: Mapping[str, Any]) -> Superseded:
    detail = f"done before, as {body['etag']} of {body['id']}, which is another one by now"
    return Superseded(detail, status=status, id=body["id"], etag=body["etag"])


def error_of(answer: Answer) -> EngramError:
    """The error of an answer that is not the one that was asked for."""
    try:
        body = decode(answer.body) if answer.body else {}
    except ValueError:
        body = {}
    return _error(answer.status, body if isinstance(body, dict) else {}, answer.headers)


def decode(text: bytes) -> Any:  # noqa: ANN401  JSON has no narrower type
    """The JSON value of a text in UTF-8; raises ValueError."""
    return json.loads(text, parse_int=_number)


def _number(digits: str) -> int | float:
    # 20 characters hold every 64-bit integer; Python refuses to convert some thousand digits at all.
    number = int(digits) if len(digits) <= 20 else None  # noqa: PLR2004
    return number if number is not None and number in INT64 else float(digits)


def parse(answer: Answer, read: Callable[[Any], Result]) -> Result:
    """What `read` makes of the document; the error that the answer is, UnexpectedAnswer if it is none of a sidecar."""
    if answer.status not in {200, 201}:
        raise error_of(answer)
    try:
        return read(decode(answer.body))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        reason = f"not an answer of a sidecar (status {answer.status}): {answer.body[:80]!r}"
        raise UnexpectedAnswer(reason, status=answer.status) from error


def failed_shards(body: Mapping[str, Any]) -> tuple[FailedShard, ...]:
    """The shards that an answer lacks."""
    return tuple(FailedShard(each["shard"], each["reason"]) for each in body["failed_shards"])


def _refused(body: Mapping[str, Any]) -> tuple[RefusedMemory, ...]:
    return tuple(RefusedMemory(each["id"], each["shard"], each["reason"]) for each in body.get("refused", ()))


def _share(body: Mapping[str, Any]) -> Share:
    return Share(body["used"], body["limit"], body["remaining"], body["percent"])


def _entry(body: Mapping[str, Any]) -> AuditEntry:
    namespace = body.get("namespace")
    return AuditEntry(
        at=datetime.fromisoformat(body["at"]),
        operation=body["operation"],
        outcome=body["outcome"],
        status=body["status"],
        agent=body.get("agent"),
        pod=body.get("pod"),
        user=body.get("user"),
        memory=body.get("memory"),
        namespace=None if namespace is None else tuple(namespace),
        key=body.get("key"),
        details=body.get("details") or {},
    )


def _shard(body: Mapping[str, Any]) -> Shard:
    ranges = tuple((first, last) for first, last in body["ranges"])
    return Shard(
        body["shard"], body["state"], body["weight"], body["slots"], ranges, body.get("memories"), body.get("error")
    )


def _outcome(body: Mapping[str, Any]) -> Outcome:
    status, problem, memory = body["status"], body.get("problem"), body.get("memory")
    error = None if problem is None else _error(status, problem, {})
    if memory is not None and "content" not in memory:
        return Outcome(status, None, _superseded(status, memory))
    return Outcome(status, None if memory is None else memory_of(memory), error)


def _error(status: int, problem: Mapping[str, Any], headers: Mapping[str, str]) -> EngramError:
    """The leaf for a status; what the reaction needs is taken from the problem and the headers."""
    detail = str(problem.get("detail") or problem.get("title") or f"status {status} without a reason")
    kind = str(problem.get("type")).removeprefix(names.PROBLEM_BASE)
    # A 404 of any other kind is that of a web server that has no such page.
    leaf = KINDS.get((status, kind)) or LEAVES.get(status)
    if leaf is not None:
        return leaf(detail, status=status)
    if (status, kind) in MEMBERS:
        refusal, members = MEMBERS[status, kind]
        return refusal(detail, status=status, **{name: problem.get(name) for name in members})
    return _other_error(status, detail, problem, headers)


def _other_error(status: int, detail: str, problem: Mapping[str, Any], headers: Mapping[str, str]) -> EngramError:
    """The leaf of a status that says enough without the problem's type."""
    shard = problem.get("shard")
    if status == HTTPStatus.CONFLICT and "retry-after" in headers:  # the first request with this key is under way
        return Unavailable(detail, status=status, retry_after_s=_retry_after_s(headers.get("retry-after")))
    if status == HTTPStatus.CONFLICT:
        return ReadOnlyShard(detail, status=status, shard=shard)
    if status == HTTPStatus.PRECONDITION_FAILED:
        return Conflict(detail, status=status, etag=headers.get("etag"))
    if status in WAITS:
        retry_after_s = _retry_after_s(headers.get("retry-after"))
        return Unavailable(detail, status=status, retry_after_s=retry_after_s, shard=shard)
    if status in REFUSALS:
        return Refused(detail, status=status, pointers=_pointers(problem), limit=problem.get("limit"))
    return UnexpectedAnswer(detail, status=status)


def _pointers(problem: Mapping[str, Any]) -> tuple[Pointer, ...]:
    listed = problem.get("errors")
    flaws = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    return tuple(
        Pointer(str(each.get("pointer", each.get("parameter", ""))), str(each.get("detail", ""))) for each in flaws
    )


def _retry_after_s(header: str | None) -> float:
    """Seconds; the form with a date (RFC 9110 section 10.2.3) is never sent by a sidecar and counts as absent."""
    return float(header) if header is not None and header.isascii() and header.isdigit() else RETRY_AFTER_S
