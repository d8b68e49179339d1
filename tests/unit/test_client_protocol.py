"""What the client sends and how it reads answers: tables, without a socket."""

import doctest
import json
import math
from datetime import UTC, datetime
from typing import Any

import pytest

import engram.aio
import engram.sync
from engram import (
    AgentNotAllowed,
    Conflict,
    DeadlineExceeded,
    EngramError,
    Item,
    NotFound,
    NotModified,
    Operation,
    OutcomeUnknown,
    Pointer,
    QuotaExceeded,
    ReadOnlyShard,
    Refused,
    RolledBack,
    Share,
    TypeUsage,
    Unavailable,
    UnexpectedAnswer,
    protocol,
)
from engram.answers import Answer, decode, error_of
from engram.discovery import base_url
from engram_contract.session import Position, Token, mark_of

ID = "0a1b-01890a5d-ac96-774b-bcce-b302099a8057"
BODY: dict[str, Any] = {
    "id": ID,
    "shard": "s1",
    "namespace": ["a", "b"],
    "key": None,
    "type": "episodic",
    "user": "ada",
    "agent": None,
    "session": None,
    "content": "tea",
    "value": {"n": 1},
    "importance": 0.5,
    "created": "2026-01-02T03:04:05.000006Z",
    "updated": "2026-01-02T03:04:05.000006Z",
    "expires": None,
    "version": 3,
    "etag": '"3"',
}

NOT_FOUND = {"type": "https://engram.dev/problems/not-found", "status": 404, "detail": "none"}


def answer(status: int, body: object = None, **headers: str) -> Answer:
    """An answer with a JSON body."""
    return Answer(status, headers, b"" if body is None else json.dumps(body).encode())


@pytest.mark.parametrize(
    ("request_", "method", "target", "headers", "body"),
    [
        (protocol.build_create({"content": "tea"}), "POST", "/v1/memories", {}, {"content": "tea"}),
        (protocol.build_put(ID, {}, '"1"'), "PUT", f"/v1/memories/{ID}", {"If-Match": '"1"'}, {}),
        (protocol.build_put("x", {}, None, "*"), "PUT", "/v1/memories/x", {"If-None-Match": "*"}, {}),
        (protocol.build_patch(ID, {"ttl_s": None}), "PATCH", f"/v1/memories/{ID}", {}, {"ttl_s": None}),
        (protocol.build_get(ID, '"9"'), "GET", f"/v1/memories/{ID}", {"If-None-Match": '"9"'}, None),
        (protocol.build_get("../shards"), "GET", "/v1/memories/%2E%2E%2Fshards", {}, None),
        (protocol.build_get("a?b#c d"), "GET", "/v1/memories/a%3Fb%23c%20d", {}, None),
        (protocol.build_delete(ID, '"2"'), "DELETE", f"/v1/memories/{ID}", {"If-Match": '"2"'}, None),
        (
            protocol.build_get(Item(("a", "b&c"), "k=1", "ü")),
            "GET",
            "/v1/items?namespace=a&namespace=b%26c&key=k%3D1&user=%C3%BC",
            {},
            None,
        ),
        (protocol.build_get(Item((), "")), "GET", "/v1/items?key=", {}, None),
        (protocol.build_page({}), "GET", "/v1/memories", {}, None),
        (
            protocol.build_page({"user": "", "namespace": ("a", "b")}, 5, "c+1"),
            "GET",
            "/v1/memories?user=&namespace=a&namespace=b&limit=5&cursor=c%2B1",
            {},
            None,
        ),
        (protocol.build_search("", {}), "POST", "/v1/search", {}, {"query": ""}),
        (
            protocol.build_search("tea", {"user": "ada", "filter": {"value": {"n": {"gt": 1}}}}, 3),
            "POST",
            "/v1/search",
            {},
            {"query": "tea", "user": "ada", "filter": {"value": {"n": {"gt": 1}}}, "limit": 3},
        ),
        (protocol.build_shards(count=False), "GET", "/v1/shards", {}, None),
        (protocol.build_shards(count=True), "GET", "/v1/shards?count=true", {}, None),
        (protocol.build_usage(), "GET", "/v1/usage", {}, None),
        (protocol.build_audit(), "GET", "/v1/audit", {}, None),
        (protocol.build_health(), "GET", "/v1/health", {}, None),
        (protocol.build_metrics(), "GET", "/v1/metrics", {}, None),
        (protocol.build_metrics(5), "GET", "/v1/metrics?namespaces=5", {}, None),
        (protocol.build_cache_statistics(), "GET", "/v1/cache", {}, None),
        (protocol.build_clear_cache(), "DELETE", "/v1/cache", {}, None),
        (protocol.build_clear_cache(""), "DELETE", "/v1/cache/", {}, None),  # no id is not all of them
        (protocol.build_clear_cache("../a b"), "DELETE", "/v1/cache/%2E%2E%2Fa%20b", {}, None),
        (protocol.build_audit(5, "a=b"), "GET", "/v1/audit?limit=5&before=a%3Db", {}, None),
    ],
)
def test_each_method_sends_one_exact_request(
    request_: protocol.Request[object], method: str, target: str, headers: dict[str, str], body: object
) -> None:
    sent = {name: value for name, value in request_.headers if name != "Content-Type"}
    assert (request_.method, request_.target, sent) == (method, target, headers)
    assert (None if request_.body is None else json.loads(request_.body)) == body
    types = [value for name, value in request_.headers if name == "Content-Type"]
    merge = "application/merge-patch+json" if method == "PATCH" else "application/json"
    assert types == ([] if body is None else [merge])


def test_a_batch_names_ids_and_items_and_leaves_out_what_is_not_set() -> None:
    operations = [
        Operation.create(content="a"),
        Operation.put(ID, if_match='"1"', content="b"),
        Operation.put(Item(("n",), "k", "ada"), if_none_match="*", value=[1]),
        Operation.get(Item((), "k")),
        Operation.patch(ID, importance=None),
        Operation.delete(ID, if_match='"2"'),
    ]
    body = protocol.build_batch(operations).body
    assert body is not None
    assert json.loads(body)["operations"] == [
        {"op": "create", "memory": {"content": "a"}},
        {"op": "put", "id": ID, "memory": {"content": "b"}, "if_match": '"1"'},
        {"op": "put", "namespace": ["n"], "key": "k", "user": "ada", "memory": {"value": [1]}, "if_none_match": "*"},
        {"op": "get", "namespace": [], "key": "k"},
        {"op": "patch", "id": ID, "memory": {"importance": None}},
        {"op": "delete", "id": ID, "if_match": '"2"'},
    ]


def test_unicode_is_sent_as_utf_8_and_comes_back_equal() -> None:
    text = 'ü 𝄞 \u0000 \u2028 \\ "'
    body = protocol.build_create({"content": text}).body
    assert body is not None
    assert decode(body) == {"content": text}
    assert "𝄞".encode() in body


def nested(levels: int, core: object) -> object:
    """`core` within so many lists."""
    for _ in range(levels):
        core = [core]
    return core


def endless() -> list[object]:
    """A list that holds itself."""
    value: list[object] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "pointer"),
    [
        (math.nan, "/value"),
        ([1, {"a/b~": math.inf}], "/value/1/a~1b~0"),
        ("\ud800", "/value"),
        ({"\udfff": 1}, None),
        (b"bytes", "/value"),
        ({1, 2}, "/value"),
        ((1, -math.inf), "/value/1"),
        (endless(), None),
        (nested(100_000, 1), None),
    ],
)
def test_what_json_cannot_say_is_refused_before_it_is_sent(value: object, pointer: str | None) -> None:
    with pytest.raises(Refused, match="not sent") as refused:
        protocol.build_create({"value": value})
    assert refused.value.status == 0
    if pointer is not None:
        assert [each.pointer for each in refused.value.pointers] == [pointer]


@pytest.mark.parametrize(
    "build",
    [
        lambda: protocol.build_get("\ud800"),
        lambda: protocol.build_get(Item((), "\ud800")),
        lambda: protocol.build_page({"user": "\udc00"}),
        lambda: protocol.build_get(ID, "a\r\nHost: elsewhere"),
        lambda: protocol.build_delete(ID, "ü"),
    ],
)
def test_a_name_or_etag_that_http_cannot_carry_is_refused_before_it_is_sent(build: Any) -> None:  # noqa: ANN401
    with pytest.raises(Refused, match="not sent"):
        build()


def token(lsn: int, shard: str = "s0") -> Token:
    return Token(1, {mark_of(shard): Position(1, lsn)})


def test_the_next_request_sends_what_the_answer_said_of_the_session() -> None:
    sent = Token()
    assert protocol.session_headers(sent, None) == ()
    known = protocol.next_token(sent, sent, str(token(5)))
    assert protocol.session_headers(known, "strong") == (
        ("Engram-Session", str(token(5))),
        ("Engram-Consistency", "strong"),
    )
    assert protocol.next_token(known, known, None) is known
    assert protocol.next_token(known, known, str(token(3))) == token(3), "the sidecar has the last word"


def test_answers_that_cross_lose_nothing_of_each_other() -> None:
    sent = Token()
    first = protocol.next_token(sent, sent, str(token(9)))
    assert protocol.next_token(first, sent, str(token(7))) == token(9)
    both = protocol.next_token(first, sent, str(token(4, "s1")))
    assert both.positions == {**token(9).positions, **token(4, "s1").positions}


def test_a_token_that_this_client_cannot_read_leaves_the_one_it_has() -> None:
    assert protocol.next_token(token(5), token(5), "of another release") == token(5)


def test_a_memory_is_read_with_its_types() -> None:
    memory = protocol.build_get(ID).parse(answer(200, BODY | {"a_member_of_the_future": 1}))
    assert memory.namespace == ("a", "b")
    assert memory.created == datetime(2026, 1, 2, 3, 4, 5, 6, UTC)
    assert (memory.id, memory.version, memory.etag, memory.value) == (ID, 3, '"3"', {"n": 1})
    assert hash(memory.etag)
    assert memory == protocol.build_create({}).parse(answer(201, BODY))


@pytest.mark.parametrize(
    ("digits", "number"),
    [
        ("9223372036854775807", 9223372036854775807),
        ("-9223372036854775808", -9223372036854775808),
        ("9223372036854775808", 9223372036854775808.0),
        ("10000000000000000000000", 1e22),
        ("1" * 5000, math.inf),
        ("1.0", 1.0),
        ("-0", 0),
    ],
)
def test_an_integer_beyond_64_bits_is_a_float(digits: str, number: float) -> None:
    value = decode(digits.encode())
    assert value == number
    assert type(value) is type(number)


@pytest.mark.parametrize(("status", "deleted"), [(204, True), (404, False)])
def test_a_delete_says_whether_there_was_one(status: int, deleted: bool) -> None:
    body = None if deleted else NOT_FOUND
    assert protocol.build_delete(ID).parse(answer(status, body)) is deleted


@pytest.mark.parametrize(
    ("status", "leaf"),
    [
        (304, NotModified),
        (400, Refused),
        (404, UnexpectedAnswer),
        (405, Refused),
        (409, ReadOnlyShard),
        (412, Conflict),
        (413, Refused),
        (415, Refused),
        (421, Refused),
        (408, Unavailable),
        (422, Refused),
        (424, RolledBack),
        (429, Unavailable),
        (503, Unavailable),
        (504, DeadlineExceeded),
        (500, UnexpectedAnswer),
        (302, UnexpectedAnswer),
        (204, UnexpectedAnswer),
    ],
)
@pytest.mark.parametrize("body", [None, {"title": "why"}, ["no problem"], "text"])
def test_each_status_is_one_error(status: int, leaf: type[EngramError], body: object) -> None:
    with pytest.raises(leaf) as raised:
        protocol.build_get(ID).parse(answer(status, body))
    assert type(raised.value) is leaf
    assert raised.value.status == status


def test_a_full_quota_and_an_agent_that_is_not_allowed_are_errors_of_their_own() -> None:
    kinds = "https://engram.dev/problems/"
    full = error_of(answer(507, {"type": kinds + "quota-exceeded", "detail": "x", "quota": "memories", "limit": 100}))
    assert isinstance(full, QuotaExceeded)
    assert (full.quota, full.limit, full.status) == ("memories", 100, 507)
    assert type(error_of(answer(507, {"detail": "another program's disk is full"}))) is UnexpectedAnswer
    refused = {"type": kinds + "agent-not-allowed", "detail": "x", "agent": "bot", "service_account": "default"}
    stranger = error_of(answer(403, refused))
    assert isinstance(stranger, AgentNotAllowed)
    assert (stranger.agent, stranger.service_account) == ("bot", "default")
    assert type(error_of(answer(403))) is UnexpectedAnswer


def test_usage_is_read_with_its_shares_and_types() -> None:
    share = {"used": 3, "limit": 4, "remaining": 1, "percent": 75.0}
    types = [{"type": "episodic", "memories": 3, "bytes": 9}]
    body = {"memories": share, "bytes": share, "types": types, "complete": True, "failed_shards": []}
    usage = protocol.build_usage().parse(answer(200, body))
    assert (usage.memories, usage.bytes) == (Share(3, 4, 1, 75.0),) * 2
    assert usage.types == (TypeUsage("episodic", 3, 9),)
    assert usage.complete


def test_the_audit_is_read_with_times_and_names() -> None:
    entry = {"at": "2026-01-02T03:04:05.000006Z", "operation": "store", "outcome": "success", "status": 201}
    body = {
        "entries": [entry | {"namespace": ["a"], "agent": "bot"}], "next": "n", "complete": True, "failed_shards": [],
    }  # fmt: skip
    page = protocol.build_audit().parse(answer(200, body))
    [first] = page
    assert (first.at, first.namespace, first.agent) == (datetime(2026, 1, 2, 3, 4, 5, 6, UTC), ("a",), "bot")
    assert (first.memory, first.details, page.next) == (None, {}, "n")


def test_an_error_carries_what_the_reaction_needs() -> None:
    down = error_of(answer(503, {"detail": "shard s1 is down", "shard": "s1"}, **{"retry-after": "7"}))
    assert isinstance(down, Unavailable)
    assert (down.retry_after_s, down.shard, str(down)) == (7.0, "s1", "shard s1 is down")
    locked = error_of(answer(409, {"detail": "read only", "shard": "s0"}))
    assert isinstance(locked, ReadOnlyShard)
    assert locked.shard == "s0"
    changed = error_of(answer(412, {"detail": "changed"}, etag='"4"'))
    assert isinstance(changed, Conflict)
    assert changed.etag == '"4"'
    wrong = error_of(answer(422, {"detail": "no", "errors": [{"pointer": "/ttl_s", "detail": "below 0"}]}))
    assert isinstance(wrong, Refused)
    assert wrong.pointers == (Pointer("/ttl_s", "below 0"),)
    assert str(wrong) == "no (/ttl_s: below 0)"
    by_parameter = error_of(answer(422, {"detail": "no", "errors": [{"parameter": "limit", "detail": "below 1"}]}))
    assert isinstance(by_parameter, Refused)
    assert by_parameter.pointers == (Pointer("limit", "below 1"),)
    lost = error_of(answer(503, {"type": "https://engram.dev/problems/outcome-unknown", "detail": "lost"}))
    assert type(lost) is OutcomeUnknown
    large = error_of(answer(413, {"detail": "too large", "limit": 8388608}))
    assert isinstance(large, Refused)
    assert large.limit == 8388608


@pytest.mark.parametrize("request_", [protocol.build_get(ID), protocol.build_delete(ID)])
def test_only_a_sidecar_can_say_that_there_is_no_memory(request_: protocol.Request[object]) -> None:
    missing_page = Answer(404, {"content-type": "text/html"}, b"<html>no such page</html>")
    with pytest.raises(UnexpectedAnswer):
        request_.parse(missing_page)
    with pytest.raises(NotFound):
        protocol.build_get(ID).parse(answer(404, NOT_FOUND))


@pytest.mark.parametrize("header", [None, "", "soon", "-1", "Wed, 21 Oct 2026 07:28:00 GMT"])
def test_a_retry_after_that_is_no_number_waits_a_second(header: str | None) -> None:
    error = error_of(Answer(503, {} if header is None else {"retry-after": header}, b""))
    assert isinstance(error, Unavailable)
    assert error.retry_after_s == 1.0


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b"{}", b"null", b"\xff", json.dumps(BODY | {"created": "yesterday"}).encode()],
)
@pytest.mark.parametrize(
    "request_",
    [
        protocol.build_get(ID),
        protocol.build_page({}),
        protocol.build_search("", {}),
        protocol.build_batch([]),
        protocol.build_shards(count=False),
        protocol.build_usage(),
        protocol.build_audit(),
        protocol.build_health(),
        protocol.build_metrics(),
        protocol.build_cache_statistics(),
        protocol.build_clear_cache(),
    ],
)
def test_an_answer_of_another_program_is_said_to_be_one(request_: protocol.Request[object], body: bytes) -> None:
    with pytest.raises(UnexpectedAnswer, match="not an answer of a sidecar"):
        request_.parse(Answer(200, {}, body))


def test_a_search_names_the_shards_that_are_missing() -> None:
    body = {
        "results": [BODY | {"score": 0.75, "legs": {"lexical": 0.75}}],
        "complete": False,
        "failed_shards": [{"shard": "s0", "reason": "down"}],
        "legs": ["lexical"],
    }
    found = protocol.build_search("tea", {}).parse(answer(200, body))
    assert [(hit.memory.id, hit.score, hit.legs) for hit in found] == [(ID, 0.75, {"lexical": 0.75})]
    assert [(each.shard, each.reason) for each in found.failed_shards] == [("s0", "down")]
    assert not found.complete
    assert found.legs == ("lexical",)


def test_a_batch_answers_in_order_with_an_error_for_each_failure() -> None:
    body = {
        "results": [
            {"status": 201, "memory": BODY},
            {"status": 204},
            {"status": 404, "problem": NOT_FOUND},
            {"status": 424, "problem": {"status": 424, "detail": "undone"}},
        ]
    }
    result = protocol.build_batch([]).parse(answer(200, body))
    assert [each.status for each in result] == [201, 204, 404, 424]
    assert [each.ok for each in result] == [True, True, False, False]
    assert isinstance(result[2].error, NotFound)
    assert isinstance(result[3].error, RolledBack)
    assert result[0].memory is not None
    assert len(result) == 4
    assert not result.ok


@pytest.mark.parametrize(
    ("url", "environ", "base"),
    [
        (None, {}, "http://localhost:7711"),
        (None, {"ENGRAM_HTTP_PORT": "8000"}, "http://localhost:8000"),
        (None, {"ENGRAM_HTTP_PORT": "8000", "ENGRAM_URL": "http://127.0.0.1:9/"}, "http://127.0.0.1:9"),
        ("http://[::1]:5", {"ENGRAM_URL": "http://127.0.0.1:9"}, "http://[::1]:5"),
        (None, {"ENGRAM_URL": "", "ENGRAM_HTTP_PORT": ""}, "http://localhost:7711"),
    ],
)
def test_the_address_is_the_argument_then_the_environment(url: str | None, environ: dict[str, str], base: str) -> None:
    assert base_url(url, environ) == base


@pytest.mark.parametrize(
    ("url", "environ", "named"),
    [
        ("localhost:7711", {}, "url"),
        ("http://", {}, "url"),
        ("http://h:99999", {}, "url"),
        ("http://h:x", {}, "url"),
        ("http://[::1", {}, "url"),
        ("http://h/?a=b", {}, "url"),
        (None, {"ENGRAM_URL": "ftp://h"}, "ENGRAM_URL"),
        (None, {"ENGRAM_HTTP_PORT": "0"}, "ENGRAM_HTTP_PORT"),
        (None, {"ENGRAM_HTTP_PORT": "high"}, "ENGRAM_HTTP_PORT"),
        (None, {"ENGRAM_HTTP_PORT": "٣"}, "ENGRAM_HTTP_PORT"),
    ],
)
def test_a_bad_address_says_where_it_came_from(url: str | None, environ: dict[str, str], named: str) -> None:
    with pytest.raises(Refused, match=f"^{named} is not"):
        base_url(url, environ)


@pytest.mark.parametrize("module", [engram.aio, engram.sync])
def test_the_examples_of_the_docstrings_are_python(module: Any) -> None:  # noqa: ANN401
    results = doctest.testmod(module)
    assert (results.failed, results.attempted > 0) == (0, True)
