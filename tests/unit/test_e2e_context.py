"""Which cluster the e2e tests may go to, and what of a cluster they show after a failure: decided without one."""

import json
from datetime import UTC, datetime

import pytest

from tests.e2e.cluster import NO_CLUSTER, Door, judge_context
from tests.e2e.evidence import AUDIT_LINES, LINE_CHARS, audit_lines, cut, pod_lines


@pytest.mark.parametrize(
    ("allowed", "current", "door"),
    [
        (None, "", Door.ABSENT),
        (None, "production", Door.ABSENT),
        ("", "production", Door.ABSENT),
        (" , ", "production", Door.ABSENT),
        ("test", "test", Door.OPEN),
        ("test,kind-engram", "kind-engram", Door.OPEN),
        (" test , kind-engram ", "kind-engram", Door.OPEN),
        ("test", "production", Door.REFUSED),
        ("test", "", Door.REFUSED),
        ("test", "test2", Door.REFUSED),
        ("test2", "test", Door.REFUSED),
        ("test", "Test", Door.REFUSED),
        ("*", "production", Door.REFUSED),
        ("test,", "", Door.REFUSED),
        ("a b", "a", Door.REFUSED),
    ],
)
def test_only_a_context_on_the_list_opens_the_door(allowed: str | None, current: str, door: Door) -> None:
    assert judge_context(allowed, current, None).door is door


def test_an_open_door_leads_to_the_context() -> None:
    assert judge_context("a,b", "b", "unused").text == "b"


@pytest.mark.parametrize(("reason", "text"), [(None, NO_CLUSTER), ("", NO_CLUSTER), ("no runc here", "no runc here")])
def test_who_has_no_cluster_is_told_why(reason: str | None, text: str) -> None:
    assert judge_context(None, "production", reason).text == text


@pytest.mark.parametrize(("current", "said"), [("production", "'production'"), ("", "no context is current")])
def test_a_refusal_names_the_context_and_the_way_in(current: str, said: str) -> None:
    text = judge_context("a,b", current, None).text
    assert said in text
    assert "ENGRAM_E2E_CONTEXT=a,b" in text
    assert "kubectl config use-context" in text


def test_a_cut_counts_what_it_leaves_out_and_shortens_the_rest() -> None:
    assert cut(["a", "b"], 2) == ["a", "b"]
    assert cut(["a", "b", "c", "d"], 2) == ["a", "... 3 more lines"]
    assert [len(line) for line in cut(["x" * 1000], 1)] == [LINE_CHARS]


NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def _event(verb: str, code: int, user: str, uri: str = "/api", hour: int = 12) -> str:
    when = f"2026-01-01T{hour}:00:00.000000Z"
    event = {"verb": verb, "requestURI": uri, "requestReceivedTimestamp": when}
    return json.dumps(event | {"user": {"username": user}, "responseStatus": {"code": code}})


@pytest.mark.parametrize(
    ("line", "is_shown"),
    [
        (_event("create", 422, "admin"), True),
        (_event("create", 422, "admin", hour=11), False),
        (_event("get", 404, "admin"), False),
        (_event("patch", 200, "admin"), False),
        (_event("patch", 200, "admin", "/api?fieldManager=engram-operator&force=true"), True),
        (_event("update", 200, "system:serviceaccount:engram-system:operator"), True),
        (_event("watch", 200, "system:serviceaccount:engram-system:operator"), False),
        ("half a line", False),
        ("{}", False),
    ],
)
def test_the_audit_log_shows_changes_that_were_refused_or_ours(line: str, *, is_shown: bool) -> None:
    assert len(audit_lines([line], NOON)) == is_shown


def test_the_audit_log_shows_its_end() -> None:
    lines = audit_lines((_event("create", 400 + number, "admin") for number in range(99)), NOON)
    assert len(lines) == AUDIT_LINES
    assert "498" in lines[-1]


def test_a_pod_tells_what_it_waits_for() -> None:
    waiting = {"waiting": {"reason": "CrashLoopBackOff"}}
    pod = {
        "metadata": {"namespace": "a", "name": "b"},
        "spec": {"nodeName": "c"},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "False", "reason": "Not", "message": "not ready: [engram]"}],
            "containerStatuses": [
                {"name": "engram", "restartCount": 3, "state": waiting},
                {"name": "fine", "restartCount": 0, "state": {"running": {}}},
            ],
        },
    }
    assert list(pod_lines(pod)) == [
        "a/b Running Ready=False on c",
        "  Ready=False: Not: not ready: [engram]",
        "  engram restarted 3 times: waiting {'reason': 'CrashLoopBackOff'}",
    ]
