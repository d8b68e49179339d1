"""The interface's documents: every wrong member named, limits at the exact byte, patches, cursors and times."""

import base64
import json
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_contract.policy import Limits
from engram_contract.shardmap import Node, Shard, ShardState, Strategy, first_map, restated
from engram_contract.slots import MemoryId
from engram_sidecar import wire
from engram_sidecar.errors import BadRequest, Flaw, Unprocessable
from engram_sidecar.filters import parse_filter
from engram_sidecar.records import Cursor, Draft, Found, Hit, Memory, Selection, ShardFailure, ShardReport

LIMITS = Limits()
MEMBERS = tuple(field.name for field in fields(Draft))  # what a body may say is what a draft holds
SMALL = Limits(
    content_bytes=8, value_bytes=8, key_bytes=8, namespace_segments=3, namespace_segment_bytes=8, namespace_bytes=16,
    name_bytes=8, query_bytes=8, search_results=5,
)  # fmt: skip
ID = MemoryId(0x0AF9, UUID("017f22e2-79b0-7cc3-98c4-dc0c0c07398f"))
NOON = datetime(2026, 5, 31, 12, tzinfo=UTC)
MEMORY = Memory(
    id=ID,
    namespace=("notes", "2026"),
    key="tea",
    type="semantic",
    user="ada",
    agent="coder",
    session="s1",
    content="green tea",
    value='{"cups": 2, "at": [10000000000000000000000]}',
    importance=0.5,
    created=NOON,
    updated=NOON + timedelta(microseconds=1),
    expires=NOON + timedelta(days=1),
    version=10,
)

moments = st.datetimes(timezones=st.just(UTC))


def flaws_of(raised: pytest.ExceptionInfo[Unprocessable]) -> dict[str, str]:
    return {flaw.place: flaw.detail for flaw in raised.value.flaws}


# -------------------------------------------------------------------------------------------------------------- drafts


def test_an_empty_body_stores_the_defaults() -> None:
    assert wire.parse_draft({}, LIMITS) == Draft()


def test_every_member_of_a_body_arrives() -> None:
    body = {
        "content": "x", "value": {"a": [1, None]}, "type": "a-b_9", "user": "u", "agent": "a", "session": "s",
        "namespace": ["n", "m"], "key": "k", "importance": 1, "ttl_s": 60,
    }  # fmt: skip
    draft = wire.parse_draft(body, LIMITS)
    assert tuple(body) == tuple(wire._checks(Limits()))
    assert draft == Draft("x", '{"a":[1,null]}', "a-b_9", "u", "a", "s", ("n", "m"), "k", 1.0, 60.0)
    assert isinstance(draft.importance, float)


@pytest.mark.parametrize("member", ["user", "agent", "session", "key", "importance", "ttl_s", "value"])
def test_a_member_that_may_be_null_has_its_default_then(member: str) -> None:
    assert wire.parse_draft({member: None}, LIMITS) == Draft()


@pytest.mark.parametrize(
    ("body", "flaws"),
    [
        (None, {"": "must be an object"}),
        ([], {"": "must be an object"}),
        ("x", {"": "must be an object"}),
        ({"contents": "x"}, {"/contents": "is not a member"}),
        ({"": 1}, {"/": "is not a member"}),
        ({"a/b": 1, "m~n": 1}, {"/a~1b": "is not a member", "/m~0n": "is not a member"}),
        ({"a" + "~" * 200: 1}, {"/a" + "~0" * 99: "is not a member"}),
        ({"id": str(ID), "version": 1}, {"/id": "is not a member", "/version": "is not a member"}),
        ({"content": None}, {"/content": "must be a string"}),
        ({"content": 1}, {"/content": "must be a string"}),
        ({"content": "a\x00b"}, {"/content": "U+0000"}),
        ({"content": "\ud800"}, {"/content": "lone surrogate"}),
        ({"type": ""}, {"/type": "1 to 63"}),
        ({"type": None}, {"/type": "1 to 63"}),
        ({"type": "Episodic"}, {"/type": "a letter first"}),
        ({"type": "9a"}, {"/type": "a letter first"}),
        ({"type": "a b"}, {"/type": "a letter first"}),
        ({"type": "a\n"}, {"/type": "a letter first"}),
        ({"type": "\u00e9"}, {"/type": "a letter first"}),
        ({"type": "a" * 64}, {"/type": "1 to 63"}),
        ({"user": ""}, {"/user": "must not be empty"}),
        ({"agent": 7}, {"/agent": "must be a string"}),
        ({"session": ["s"]}, {"/session": "must be a string"}),
        ({"key": ""}, {"/key": "must not be empty"}),
        ({"key": "\x00"}, {"/key": "U+0000"}),
        ({"namespace": None}, {"/namespace": "must be an array"}),
        ({"namespace": "a"}, {"/namespace": "must be an array"}),
        ({"namespace": {"0": "a"}}, {"/namespace": "must be an array"}),
        ({"namespace": [""]}, {"/namespace": "must not be empty"}),
        ({"namespace": ["a", 1]}, {"/namespace": "must be a string"}),
        ({"namespace": ["a", None]}, {"/namespace": "must be a string"}),
        ({"importance": -0.01}, {"/importance": "from 0 to 1"}),
        ({"importance": 1.01}, {"/importance": "from 0 to 1"}),
        ({"importance": True}, {"/importance": "must be a number"}),
        ({"importance": "1"}, {"/importance": "must be a number"}),
        ({"ttl_s": 0}, {"/ttl_s": "greater than 0"}),
        ({"ttl_s": -1}, {"/ttl_s": "from 0"}),
        ({"ttl_s": 1e-7}, {"/ttl_s": "greater than 0"}),
        ({"ttl_s": wire.MAX_TTL_S + 1}, {"/ttl_s": "from 0"}),
        ({"ttl_s": False}, {"/ttl_s": "must be a number"}),
        ({"ttl_s": "60"}, {"/ttl_s": "must be a number"}),
        (
            {"content": 1, "user": "", "x": 1, "key": "k", "ttl_s": 0},
            {"/content": "string", "/user": "empty", "/x": "not a member", "/ttl_s": "greater"},
        ),
    ],
    ids=lambda value: f"{value!a:.40}",
)
def test_every_wrong_member_is_named_at_once(body: object, flaws: dict[str, str]) -> None:
    with pytest.raises(Unprocessable) as raised:
        wire.parse_draft(body, LIMITS)
    found = flaws_of(raised)
    assert found.keys() == flaws.keys()
    assert all(part in found[place] for place, part in flaws.items())
    with pytest.raises(Unprocessable) as raised:
        wire.parse_draft(body, LIMITS, "/operations/3/memory")
    assert set(flaws_of(raised)) == {f"/operations/3/memory{place}" for place in flaws}


@pytest.mark.parametrize(
    ("member", "value"),
    [("importance", 0), ("importance", 1), ("ttl_s", 1e-6), ("ttl_s", wire.MAX_TTL_S), ("type", "a" * 63),
     ("content", ""), ("namespace", []), ("user", " "), ("key", "\x01")],
)  # fmt: skip
def test_the_outermost_values_are_taken(member: str, value: object) -> None:
    expected = tuple(value) if isinstance(value, list) else value
    assert getattr(wire.parse_draft({member: value}, LIMITS), member) == expected


# A character and how many bytes it has in UTF-8; the limit is 8 bytes.
@pytest.mark.parametrize(("character", "size"), [("a", 1), ("\u00e9", 2), ("\u8336", 3), ("\U0001f375", 4)])
@pytest.mark.parametrize("member", ["content", "user", "agent", "session", "key"])
def test_a_text_is_bounded_in_bytes_to_the_byte(member: str, character: str, size: int) -> None:
    most = character * (8 // size) + "a" * (8 % size)
    assert len(most.encode()) == 8
    wire.parse_draft({member: most}, SMALL)
    for over in (most + "a", character * (8 // size + 1)):
        with pytest.raises(Unprocessable) as raised:
            wire.parse_draft({member: over}, SMALL)
        assert flaws_of(raised) == {f"/{member}": "must be at most 8 bytes of UTF-8"}


@pytest.mark.parametrize(
    ("namespace", "detail"),
    [
        (["a" * 8, "b" * 8], None),
        (["\u00e9" * 4, "b" * 8], None),
        (["a", "b", "c"], None),
        (["a" * 9], "at most 8 bytes"),
        (["\u8336" * 3], "at most 8 bytes"),
        (["a" * 8, "b" * 8, "c"], "at most 16 bytes of UTF-8 in all"),
        (["\u00e9" * 4, "\u00e9" * 4, "c"], "at most 16 bytes of UTF-8 in all"),
        (["a", "b", "c", "d"], "at most 3 parts"),
    ],
)
def test_a_namespace_is_bounded_in_parts_and_bytes(namespace: list[str], detail: str | None) -> None:
    if detail is None:
        assert wire.parse_draft({"namespace": namespace}, SMALL).namespace == tuple(namespace)
        return
    with pytest.raises(Unprocessable, match=detail):
        wire.parse_draft({"namespace": namespace}, SMALL)


@pytest.mark.parametrize(
    ("value", "size"),
    [("a" * 6, 8), ("a" * 7, 9), ("\u00e9" * 3, 8), ("\u00e9" * 3 + "a", 9), ('"' * 3, 8), ("\n" * 3 + "a", 9),
     ([1, 2, 3], 7), ([1, 2, 30], 8), ([1, 20, 30], 9), ({"a": 10}, 8), ({"a": 100}, 9), (12345678, 8), (-12345678, 9)],
    ids=repr,
)  # fmt: skip
def test_a_value_is_bounded_by_its_json_text(value: object, size: int) -> None:
    assert len(wire.encode(value)) == size
    if size <= 8:
        assert json.loads(wire.parse_draft({"value": value}, SMALL).value) == value
        return
    with pytest.raises(Unprocessable, match="at most 8 bytes of JSON"):
        wire.parse_draft({"value": value}, SMALL)


# The store prints 1e300 as 301 digits: what comes back would be far above the limit that was asked for.
@pytest.mark.parametrize(
    ("value", "is_taken"),
    [
        ([1e300] * 2, True),
        ([1e300] * 4, False),
        ([5e-324] * 4, False),
        ([1.5] * 200, True),
        (["1e300"] * 100, True),
        ("00e10" * 180, True),
        ({"9e99": '\\"9e99'}, True),
        (['"', 1e300, '"'] * 4, False),
    ],
    ids=lambda value: f"{value!r:.30}",
)
def test_a_number_with_an_exponent_counts_as_the_store_prints_it(value: object, *, is_taken: bool) -> None:
    limits = replace(LIMITS, value_bytes=1000)
    if is_taken:
        assert json.loads(wire.parse_draft({"value": value}, limits).value) == value
        return
    with pytest.raises(Unprocessable, match="at most 1000 bytes of JSON"):
        wire.parse_draft({"value": value}, limits)


def test_of_very_many_flaws_the_first_are_told() -> None:
    body = {f"x{at}": 1 for at in range(1000)}
    for parse in (wire.parse_draft, wire.parse_search):
        with pytest.raises(Unprocessable) as raised:
            parse(body, LIMITS)
        assert list(flaws_of(raised)) == [f"/x{at}" for at in range(wire.MAX_FLAWS)]


def test_the_largest_content_and_value_of_the_interface_are_taken() -> None:
    body = {"content": "\u00e9" * (1 << 19), "value": "a" * ((1 << 20) - 2), "key": "k" * 1024, "user": "u" * 256}
    assert len(wire.parse_draft(body, LIMITS).content.encode()) == 1 << 20
    over = {"content": body["content"] + "a", "value": body["value"] + "a", "key": "k" * 1025, "user": "u" * 257}
    with pytest.raises(Unprocessable) as raised:
        wire.parse_draft(over, LIMITS)
    assert set(flaws_of(raised)) == {"/content", "/value", "/key", "/user"}


def test_what_the_address_tells_is_no_member_of_the_body() -> None:
    with pytest.raises(Unprocessable) as raised:
        wire.parse_draft({"user": "u", "key": "k", "content": "x"}, LIMITS, without=("user", "namespace", "key"))
    assert set(flaws_of(raised)) == {"/user", "/key"}


def test_a_name_is_the_users_namespace_and_key() -> None:
    draft = wire.parse_name("ada", ["notes"], "tea", LIMITS)
    assert draft == Draft(user="ada", namespace=("notes",), key="tea")
    assert wire.parse_name(None, [], "tea", LIMITS) == Draft(key="tea")


@pytest.mark.parametrize(
    ("user", "namespace", "key", "wrong"),
    [(None, [], None, {"key"}), ("", [""], "", {"user", "namespace", "key"}), ("u", ["a"] * 17, "k", {"namespace"})],
)
def test_the_wrong_parts_of_a_name_are_query_parameters(
    user: str | None, namespace: list[str], key: str | None, wrong: set[str]
) -> None:
    with pytest.raises(Unprocessable) as raised:
        wire.parse_name(user, namespace, key, LIMITS)
    assert set(flaws_of(raised)) == wrong
    assert all(flaw.is_parameter for flaw in raised.value.flaws)


# --------------------------------------------------------------------------------------------------------- merge patch


@pytest.mark.parametrize(  # RFC 7396, appendix A, all of it
    ("original", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_a_merge_patch_does_what_its_rfc_shows(original: object, patch: object, result: object) -> None:
    before = json.dumps([original, patch])
    assert wire.merge_patch(original, patch) == result
    assert json.dumps([original, patch]) == before


def test_the_patch_that_changes_nothing_gives_what_is_stored() -> None:
    draft = wire.apply_patch(MEMORY, {}, LIMITS)
    assert json.loads(draft.value) == {"cups": 2, "at": [1e22]}
    expected = Draft(
        "green tea", draft.value, "semantic", "ada", "coder", "s1", ("notes", "2026"), "tea", 0.5, ttl_s=None
    )
    assert draft == expected


@pytest.mark.parametrize("member", tuple(wire._checks(Limits())))
def test_a_member_that_a_patch_removes_has_its_default(member: str) -> None:
    kept = wire.apply_patch(MEMORY, {}, LIMITS)
    assert wire.apply_patch(MEMORY, {member: None}, LIMITS) == replace(kept, **{member: getattr(Draft(), member)})


@pytest.mark.parametrize(
    ("patch", "member", "expected"),
    [
        ({"value": {"cups": 3}}, "value", '{"cups":3,"at":[1e22]}'),
        ({"value": {"cups": None, "at": None}}, "value", "{}"),
        ({"value": {"at": [1]}}, "value", '{"cups":2,"at":[1]}'),
        ({"value": 7}, "value", "7"),
        ({"namespace": ["a"]}, "namespace", ("a",)),
        ({"ttl_s": 60}, "ttl_s", 60.0),
        ({"content": "rum"}, "content", "rum"),
    ],
)
def test_a_patch_reaches_into_the_value(patch: dict[str, Any], member: str, expected: object) -> None:
    assert getattr(wire.apply_patch(MEMORY, patch, LIMITS), member) == expected


def test_a_patch_that_makes_a_wrong_memory_is_refused() -> None:
    with pytest.raises(Unprocessable) as raised:
        wire.apply_patch(MEMORY, {"type": "X", "etag": "1"}, LIMITS)
    assert set(flaws_of(raised)) == {"/type", "/etag"}
    with pytest.raises(Unprocessable, match="merge patch"):
        wire.apply_patch(MEMORY, ["content"], LIMITS)
    with pytest.raises(Unprocessable, match="/value"):
        wire.apply_patch(MEMORY, {"value": {"more": "a"}}, replace(LIMITS, value_bytes=32))


# -------------------------------------------------------------------------------------------------------------- search


def test_a_search_without_members_asks_for_the_newest_ten() -> None:
    assert wire.parse_search({}, LIMITS) == ("", Selection(), 10)


def test_every_member_of_a_search_arrives() -> None:
    body = {"query": "tea", "user": "u", "agent": "a", "session": "s", "type": "t", "namespace": ["n"], "limit": 100,
            "filter": {"key": "k"}}  # fmt: skip
    selection = Selection("u", "a", "s", "t", ("n",), parse_filter({"key": "k"}))
    assert wire.parse_search(body, LIMITS) == ("tea", selection, 100)


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ([], ""),
        ({"q": "x"}, "/q"),
        ({"a/b": "x"}, "/a~1b"),
        ({"query": 1}, "/query"),
        ({"query": "\x00"}, "/query"),
        ({"query": "a" * 9}, "/query"),
        ({"query": "\u8336" * 3}, "/query"),
        ({"user": ""}, "/user"),
        ({"type": "T"}, "/type"),
        ({"namespace": "a"}, "/namespace"),
        ({"filter": []}, "/filter"),
        ({"filter": {"x": 1}}, "/filter/x"),
        ({"limit": 0}, "/limit"),
        ({"limit": 6}, "/limit"),
        ({"limit": 1.5}, "/limit"),
        ({"limit": True}, "/limit"),
        ({"limit": "5"}, "/limit"),
    ],
)
def test_a_wrong_member_of_a_search_is_named(body: object, place: str) -> None:
    with pytest.raises(Unprocessable) as raised:
        wire.parse_search(body, SMALL)
    assert set(flaws_of(raised)) == {place}


@pytest.mark.parametrize("query", ["", "a" * 8, "\u8336\u8336aa"])
def test_a_query_is_bounded_in_bytes_to_the_byte(query: str) -> None:
    assert wire.parse_search({"query": query, "limit": 5}, SMALL) == (query, Selection(), 5)


def test_the_wrong_parameters_of_a_list_are_named_together() -> None:
    with pytest.raises(Unprocessable) as raised:
        wire.parse_selection({"user": "", "type": "", "namespace": ["a", ""]}, LIMITS, "", is_query=True)
    assert set(flaws_of(raised)) == {"user", "type", "namespace"}
    assert all(flaw.is_parameter for flaw in raised.value.flaws)


@pytest.mark.parametrize("text", ["", "0", "1001", "-1", "+5", " 5", "5 ", "5.0", "1e2", "0x5", "\u0665", "9" * 5000])
def test_a_limit_in_a_query_is_plain_digits(text: str) -> None:
    with pytest.raises(Unprocessable) as raised:
        wire.parse_limit(text, 1000, "limit", is_parameter=True)
    assert raised.value.flaws == (Flaw("limit", "must be an integer from 1 to 1000", is_parameter=True),)


@pytest.mark.parametrize(("text", "limit"), [("1", 1), ("007", 7), ("1000", 1000)])
def test_a_limit_in_a_query_is_read(text: str, limit: int) -> None:
    assert wire.parse_limit(text, 1000, "limit", is_parameter=True) == limit


@pytest.mark.parametrize("text", ["", str(ID).upper(), "x", str(ID.uuid)])
def test_what_no_memory_is_called_is_no_id(text: str) -> None:
    assert wire.parse_id(text) is None
    assert wire.parse_id(str(ID)) == ID


# --------------------------------------------------------------------------------------------------- times and cursors


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (NOON, "2026-05-31T12:00:00.000000Z"),
        (NOON.replace(microsecond=7), "2026-05-31T12:00:00.000007Z"),
        (NOON.astimezone(timezone(timedelta(hours=9, minutes=30))), "2026-05-31T12:00:00.000000Z"),
        (datetime.min.replace(tzinfo=UTC), "0001-01-01T00:00:00.000000Z"),
        (datetime(999, 12, 31, tzinfo=UTC), "0999-12-31T00:00:00.000000Z"),
        (datetime.max.replace(tzinfo=UTC), "9999-12-31T23:59:59.999999Z"),
        (None, None),
    ],
)
def test_a_time_is_written_in_utc_with_microseconds(moment: datetime | None, text: str | None) -> None:
    assert wire.timestamp(moment) == text


@settings(max_examples=50)
@given(moments, moments)
def test_texts_of_times_compare_like_times(one: datetime, other: datetime) -> None:
    left, right = str(wire.timestamp(one)), str(wire.timestamp(other))
    assert (left < right, left == right) == (one < other, one == other)
    assert datetime.fromisoformat(left) == one


@settings(max_examples=50)
@given(moments, st.uuids())
def test_a_cursor_reads_back(created: datetime, uuid: UUID) -> None:
    cursor = Cursor(created, str(uuid))
    text = wire.write_cursor(cursor)
    assert wire.parse_cursor(text) == cursor
    assert text.replace("-", "").replace("_", "").isalnum()


def opaque(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


GARBAGE = [
    "", "=", "x", "xx", "xxxxx", "....", "%00", "\u00e9", "\x00", "a b", "\ud800",
    opaque(""), opaque("1"), opaque("."), opaque("1."), opaque(f".{ID.uuid}"), opaque(f"x.{ID.uuid}"),
    opaque(f"1.{ID}"), opaque("1.xyz"), opaque(f"1.5.{ID.uuid}"), opaque(f"{10**30}.{ID.uuid}"),
    opaque(f"{'9' * 5000}.{ID.uuid}"), opaque(f"{-(10**17)}.{ID.uuid}"), opaque(f"nan.{ID.uuid}"),
    base64.urlsafe_b64encode(b"\xff\xfe.x").decode(),
]  # fmt: skip


@pytest.mark.parametrize("text", GARBAGE, ids=lambda text: f"{text!a:.30}")
def test_a_text_that_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="cursor"):
        wire.parse_cursor(text)


@settings(max_examples=50)
@given(st.text() | st.text("ABCabc019-_="))
def test_any_text_is_a_cursor_or_a_bad_request(text: str) -> None:
    try:
        cursor = wire.parse_cursor(text)
    except BadRequest:
        return
    assert wire.parse_cursor(wire.write_cursor(cursor)) == cursor


# ----------------------------------------------------------------------------------------------------------- documents


def test_a_memory_is_shown_whole() -> None:
    assert json.loads(wire.encode(wire.memory_document(MEMORY, "s1"))) == {
        "id": "0af9-017f22e2-79b0-7cc3-98c4-dc0c0c07398f",
        "shard": "s1",
        "namespace": ["notes", "2026"],
        "key": "tea",
        "type": "semantic",
        "user": "ada",
        "agent": "coder",
        "session": "s1",
        "content": "green tea",
        "value": {"cups": 2, "at": [10**22]},
        "importance": 0.5,
        "created": "2026-05-31T12:00:00.000000Z",
        "updated": "2026-05-31T12:00:00.000001Z",
        "expires": "2026-06-01T12:00:00.000000Z",
        "version": 10,
        "etag": f'"a-{int(NOON.timestamp() * 1_000_000):x}"',
    }


def test_a_page_says_what_it_lacks_and_where_it_goes_on() -> None:
    last = Cursor(NOON, str(ID.uuid))
    page = wire.page_document(Found((Hit(MEMORY, "s1"),), (ShardFailure("s0", "maintenance"),), last))
    assert page["memories"] == [wire.memory_document(MEMORY, "s1")]
    assert wire.parse_cursor(str(page["next"])) == last
    assert (page["complete"], page["failed_shards"]) == (False, [{"shard": "s0", "reason": "maintenance"}])
    whole = {"complete": True, "failed_shards": [], "refused": []}
    assert wire.page_document(Found(())) == {"memories": [], "next": None, **whole}


def test_results_have_scores_only_where_something_was_scored() -> None:
    found = Found((Hit(MEMORY, "s1", 0.25), Hit(MEMORY, "s0")), legs=("lexical",))
    results = json.loads(wire.encode(wire.results_document(found)))
    assert [(one["score"], one["legs"], one["shard"]) for one in results["results"]] == [
        (0.25, {"lexical": 0.25}, "s1"),
        (None, {}, "s0"),
    ]
    assert (results["legs"], results["complete"], results["failed_shards"]) == (["lexical"], True, [])


def test_the_shards_are_told_with_what_they_own() -> None:
    shards = [Shard(f"s{at}", "engram", (Node("a", "localhost", 5432),), weight=at + 1) for at in range(2)]
    resting = [shards[0], replace(shards[1], state=ShardState.READONLY)]
    shard_map = restated(first_map("t_a", Strategy.TIME, shards), resting)
    told = wire.shards_document(shard_map, [ShardReport(resting[0], memories=7), ShardReport(resting[1], error="gone")])
    assert (told["epoch"], told["strategy"], told["scattered"]) == (2, "Time", True)
    assert told["shards"] == [
        {"shard": "s0", "state": "Active", "weight": 1, "slots": 5461, "ranges": [[0, 5460]], "memories": 7,
         "error": None},
        {"shard": "s1", "state": "ReadOnly", "weight": 2, "slots": 10923, "ranges": [[5461, 16383]], "memories": None,
         "error": "gone"},
    ]  # fmt: skip
