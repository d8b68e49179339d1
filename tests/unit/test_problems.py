"""Problems: every error that a caller can meet has a status, every other one is a 500 that tells nothing."""

import json
import re
from collections.abc import Iterator

import pytest

from engram_contract.names import PROBLEM_BASE
from engram_sidecar import errors
from engram_sidecar.errors import (
    AgentNotAllowed,
    BadConfig,
    BadRequest,
    BreakerOpen,
    CacheUnavailable,
    DeadlineExceeded,
    FailedDependency,
    Flaw,
    IdempotencyKeyInUse,
    IdempotencyKeyReused,
    KeyMissing,
    NodeRefused,
    NotFound,
    OutcomeUnknown,
    PortTaken,
    PreconditionFailed,
    QuotaExceeded,
    RateLimited,
    SealBroken,
    ShardReadOnly,
    ShardUnavailable,
    Shed,
    SidecarError,
    SlotMoved,
    TooLarge,
    Unprocessable,
)
from engram_sidecar.problems import problem, to_problem

ANSWERED = [
    (BadRequest("the form"), 400, "bad-request"),
    (AgentNotAllowed("bot", "default"), 403, "agent-not-allowed"),
    (NotFound("0af9-..."), 404, "not-found"),
    (ShardReadOnly("s1"), 409, "shard-read-only"),
    (IdempotencyKeyInUse(), 409, "idempotency-key-in-use"),
    (PreconditionFailed("If-Match"), 412, "precondition-failed"),
    (TooLarge("bytes", 8), 413, "too-large"),
    (Unprocessable(Flaw("/x", "is wrong")), 422, "unprocessable"),
    (IdempotencyKeyReused(), 422, "idempotency-key-reused"),
    (FailedDependency("another"), 424, "failed-dependency"),
    (RateLimited(10), 429, "rate-limited"),
    (KeyMissing(3), 503, "key-missing"),
    (SealBroken("authentication"), 500, "seal-broken"),
    (QuotaExceeded("s1", "memories", 100), 507, "quota-exceeded"),
    (ShardUnavailable("s1", "gone"), 503, "shard-unavailable"),
    (NodeRefused("s1", "no session"), 503, "node-refused"),
    (BreakerOpen("s1", "left alone"), 503, "breaker-open"),
    (Shed("s1", "too many wait"), 503, "overloaded"),
    (OutcomeUnknown("s1", "lost"), 503, "outcome-unknown"),
    (DeadlineExceeded("s1", "late"), 504, "deadline-exceeded"),
]
# The first two end the start of the process, the third never leaves the pipeline.
UNANSWERED = [
    BadConfig("/secret/path"),
    PortTaken("127.0.0.1", 7711),
    CacheUnavailable("no connection"),
    SlotMoved("s1"),
]


def kinds(root: type[SidecarError]) -> Iterator[type[SidecarError]]:
    for kind in root.__subclasses__():
        yield kind
        yield from kinds(kind)


def test_the_tables_name_every_error_of_the_data_plane() -> None:
    assert {type(row[0]) for row in ANSWERED} | {type(error) for error in UNANSWERED} == set(kinds(SidecarError))


@pytest.mark.parametrize(("error", "status", "name"), ANSWERED, ids=lambda value: type(value).__name__)
def test_an_error_has_its_status_and_says_why(error: SidecarError, status: int, name: str) -> None:
    found = to_problem(error)
    assert found.status == found.document["status"] == status
    assert found.document["type"] == PROBLEM_BASE + name
    assert found.document["detail"] == str(error)
    assert found.document.keys() >= {"type", "title", "status", "detail"}
    json.dumps(found.document)


def test_the_tree_in_the_module_of_errors_tells_the_same_statuses() -> None:
    told = dict(re.findall(r"[├└]── (\w+)\s+(\d{3}):?", errors.__doc__ or ""))
    assert told == {type(error).__name__: str(status) for error, status, _ in ANSWERED}
    assert re.findall(r"[├└]── (\w+)\s+(?!\d{3})\S", errors.__doc__ or "") == [type(e).__name__ for e in UNANSWERED]


def test_types_and_titles_are_unique() -> None:
    documents = [to_problem(row[0]).document for row in ANSWERED]
    assert len({document["type"] for document in documents}) == len(ANSWERED)
    assert len({document["title"] for document in documents}) == len(ANSWERED)


@pytest.mark.parametrize(
    "error",
    [*UNANSWERED, SidecarError("a secret"), RuntimeError("a secret"), KeyError("a secret"), AssertionError()],
    ids=lambda error: type(error).__name__,
)
def test_any_other_error_is_a_500_that_tells_nothing(error: Exception) -> None:
    found = to_problem(error)
    assert found.status == 500
    assert found.headers == {}
    assert found.document == {
        "type": PROBLEM_BASE + "internal",
        "title": "Engram failed",
        "status": 500,
        "detail": "see the sidecar's log",
    }


@pytest.mark.parametrize("kind", [NotFound, BadRequest, PreconditionFailed, FailedDependency])
def test_an_error_without_words_is_told_by_its_title(kind: type[SidecarError]) -> None:
    document = to_problem(kind()).document
    assert document["detail"] == document["title"] != ""


def test_wrong_members_are_told_by_pointer_and_parameters_by_name() -> None:
    error = Unprocessable(Flaw("/a~1b", "is wrong"), Flaw("limit", "is high", is_parameter=True), Flaw("", "is none"))
    assert to_problem(error).document["errors"] == [
        {"pointer": "/a~1b", "detail": "is wrong"},
        {"parameter": "limit", "detail": "is high"},
        {"pointer": "", "detail": "is none"},
    ]
    assert str(error) == "/a~1b: is wrong; limit: is high; body: is none"


def test_a_limit_is_told_as_a_number() -> None:
    document = to_problem(TooLarge("operations in a batch", 1000)).document
    assert (document["limit"], document["detail"]) == (1000, "at most 1000 operations in a batch")


@pytest.mark.parametrize("kind", [ShardUnavailable, OutcomeUnknown, DeadlineExceeded])
def test_a_shard_that_does_not_answer_is_named_with_a_time_to_try_again(kind: type[ShardUnavailable]) -> None:
    found = to_problem(kind("s1", "maintenance", 30))
    assert found.document["shard"] == "s1"
    assert found.headers == {"Retry-After": "30"}
    assert to_problem(kind("s1", "gone")).headers == {"Retry-After": "1"}


def test_a_read_only_shard_is_named_without_a_time() -> None:
    found = to_problem(ShardReadOnly("s1"))
    assert (found.document["shard"], found.headers) == ("s1", {})


def test_a_full_quota_is_told_by_what_is_full_and_its_size_and_without_a_time_to_try_again() -> None:
    found = to_problem(QuotaExceeded("s1", "memories", 100))
    assert (found.document["quota"], found.document["limit"], found.headers) == ("memories", 100, {})


def test_an_agent_that_is_not_allowed_is_named_with_its_service_account() -> None:
    document = to_problem(AgentNotAllowed("bot", "default")).document
    assert (document["agent"], document["service_account"]) == ("bot", "default")


def test_a_problem_may_say_more() -> None:
    found = problem(405, "method-not-allowed", "Not here", "allowed: GET", allowed=["GET"])
    assert found.document == {
        "type": PROBLEM_BASE + "method-not-allowed", "title": "Not here", "status": 405, "detail": "allowed: GET",
        "allowed": ["GET"],
    }  # fmt: skip
