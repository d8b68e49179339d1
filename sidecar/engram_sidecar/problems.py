"""Errors to problem documents (RFC 9457): one table from error to status, the only place that knows both. Pure."""

from dataclasses import dataclass
from typing import Final

from engram_contract.names import PROBLEM_BASE
from engram_sidecar.errors import (
    AgentNotAllowed,
    BadRequest,
    BreakerOpen,
    DeadlineExceeded,
    FailedDependency,
    IdempotencyKeyInUse,
    IdempotencyKeyReused,
    KeyMissing,
    NodeRefused,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    QuotaExceeded,
    RateLimited,
    SealBroken,
    ShardReadOnly,
    ShardUnavailable,
    Shed,
    SidecarError,
    TooLarge,
    Unprocessable,
)

# (status, name of the type, title); the first class that fits counts.
_TABLE: Final[tuple[tuple[type[SidecarError], int, str, str], ...]] = (
    (BadRequest, 400, "bad-request", "The request is malformed"),
    (AgentNotAllowed, 403, "agent-not-allowed", "The tenant does not allow this agent"),
    (NotFound, 404, "not-found", "No such memory"),
    (ShardReadOnly, 409, "shard-read-only", "The memory's shard takes no changes"),
    (IdempotencyKeyInUse, 409, "idempotency-key-in-use", "A request with this idempotency key is under way"),
    (PreconditionFailed, 412, "precondition-failed", "The memory is not in the expected state"),
    (TooLarge, 413, "too-large", "The request is too large"),
    (Unprocessable, 422, "unprocessable", "Members of the request are wrong"),
    (IdempotencyKeyReused, 422, "idempotency-key-reused", "The idempotency key is another request's"),
    (FailedDependency, 424, "failed-dependency", "Another operation on the same shard failed"),
    (RateLimited, 429, "rate-limited", "The tenant asks more than its quota of requests"),
    (SealBroken, 500, "seal-broken", "The stored memory is not what was sealed for it"),
    (KeyMissing, 503, "key-missing", "The tenant's keyring lacks a key"),
    (QuotaExceeded, 507, "quota-exceeded", "The tenant's quota is used up"),
    (NodeRefused, 503, "node-refused", "The memory's shard refuses to do it"),
    (BreakerOpen, 503, "breaker-open", "The memory's shard failed and is left alone for a while"),
    (Shed, 503, "overloaded", "Too many wait for the memory's shard"),
    (OutcomeUnknown, 503, "outcome-unknown", "The write may or may not have happened"),
    (DeadlineExceeded, 504, "deadline-exceeded", "The memory's shard did not answer in time"),
    (ShardUnavailable, 503, "shard-unavailable", "The memory's shard does not answer"),
)
_KEYS_RETRY_S: Final = 5  # within that a sidecar has read a keyring that was mended
_RATE_RETRY_S: Final = 1  # the next second has a rate of its own
_IN_USE_RETRY_S: Final = 1  # a write takes milliseconds; what takes longer waits for a node
_INTERNAL: Final = (500, "internal", "Engram failed")


@dataclass(frozen=True, slots=True)
class Problem:
    """A status, the problem document, and the headers that go with them."""

    status: int
    document: dict[str, object]
    headers: dict[str, str]


def problem(status: int, name: str, title: str, detail: str, **members: object) -> Problem:
    """A problem of a type of ours."""
    document = {"type": PROBLEM_BASE + name, "title": title, "status": status, "detail": detail, **members}
    return Problem(status, document, {})


def to_problem(error: BaseException) -> Problem:
    """The problem of an error; 500 without details for one that is not ours."""
    known = next((row[1:] for row in _TABLE if isinstance(error, row[0])), None)
    if known is None:
        return problem(*_INTERNAL, "see the sidecar's log")
    status, name, title = known
    found = problem(status, name, title, str(error) or title)
    found.headers.update(_headers(error))
    match error:
        case Unprocessable():
            found.document["errors"] = [
                {"parameter" if flaw.is_parameter else "pointer": flaw.place, "detail": flaw.detail}
                for flaw in error.flaws
            ]
        case TooLarge():
            found.document["limit"] = error.limit
        case AgentNotAllowed():
            found.document.update(agent=error.agent, service_account=error.service_account)
        case QuotaExceeded():
            found.document.update(quota=error.what, limit=error.limit)
        case RateLimited():
            found.document.update(quota="requests_per_second", limit=error.limit)
        case SealBroken():
            found.document["reason"] = error.reason
        case KeyMissing():
            found.document["key_version"] = error.version
        case ShardUnavailable() | ShardReadOnly():
            found.document["shard"] = error.shard
        case _:
            pass
    return found


def _headers(error: BaseException) -> dict[str, str]:
    """When it is worth trying again, where that is known."""
    match error:
        case ShardUnavailable():
            return {"Retry-After": str(error.retry_after_s)}
        case KeyMissing():
            return {"Retry-After": str(_KEYS_RETRY_S)}
        case RateLimited():
            return {"Retry-After": str(_RATE_RETRY_S)}
        case IdempotencyKeyInUse():
            return {"Retry-After": str(_IN_USE_RETRY_S)}
        case _:
            return {}
