"""Errors to problem documents (RFC 9457): one table from error to status, the only place that knows both. Pure."""

from dataclasses import dataclass
from typing import Final

from engram_contract.names import PROBLEM_BASE
from engram_sidecar.errors import (
    BadRequest,
    DeadlineExceeded,
    FailedDependency,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    ShardReadOnly,
    ShardUnavailable,
    SidecarError,
    TooLarge,
    Unprocessable,
)

# (status, name of the type, title); the first class that fits counts.
_TABLE: Final[tuple[tuple[type[SidecarError], int, str, str], ...]] = (
    (BadRequest, 400, "bad-request", "The request is malformed"),
    (NotFound, 404, "not-found", "No such memory"),
    (ShardReadOnly, 409, "shard-read-only", "The memory's shard takes no changes"),
    (PreconditionFailed, 412, "precondition-failed", "The memory is not in the expected state"),
    (TooLarge, 413, "too-large", "The request is too large"),
    (Unprocessable, 422, "unprocessable", "Members of the request are wrong"),
    (FailedDependency, 424, "failed-dependency", "Another operation on the same shard failed"),
    (OutcomeUnknown, 503, "outcome-unknown", "The write may or may not have happened"),
    (DeadlineExceeded, 504, "deadline-exceeded", "The memory's shard did not answer in time"),
    (ShardUnavailable, 503, "shard-unavailable", "The memory's shard does not answer"),
)
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
    match error:
        case Unprocessable():
            found.document["errors"] = [
                {"parameter" if flaw.is_parameter else "pointer": flaw.place, "detail": flaw.detail}
                for flaw in error.flaws
            ]
        case TooLarge():
            found.document["limit"] = error.limit
        case ShardUnavailable():
            found.document["shard"] = error.shard
            found.headers["Retry-After"] = str(error.retry_after_s)
        case ShardReadOnly():
            found.document["shard"] = error.shard
        case _:
            pass
    return found
