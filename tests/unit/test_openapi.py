"""The description of the interface: sound in itself, its numbers are the limits, its verdicts are the parser's.

Whether a running sidecar keeps it is for the integration tier, which fuzzes every route by it.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import jsonschema
import pytest
from jsonschema import Draft202012Validator

from engram_contract.policy import Limits
from engram_contract.shardmap import Node, Shard, Strategy, first_map
from engram_contract.slots import BadMemoryId, MemoryId
from engram_sidecar import wire
from engram_sidecar.batches import outcome_document
from engram_sidecar.errors import BadRequest, Flaw, ShardUnavailable, TooLarge, Unprocessable
from engram_sidecar.etags import parse_tags
from engram_sidecar.openapi import openapi_document
from engram_sidecar.problems import to_problem
from engram_sidecar.records import Cursor, Draft, Found, Get, Hit, Memory, ShardFailure, ShardReport

LIMITS = Limits()
MEMBERS = tuple(field.name for field in fields(Draft))
DOCUMENT = openapi_document(LIMITS)
SCHEMAS = DOCUMENT["components"]["schemas"]
METHODS = {"get", "put", "post", "patch", "delete"}
OPERATIONS = [
    pytest.param(path, operation, id=operation["operationId"])
    for path, item in DOCUMENT["paths"].items()
    for operation in item.values()
]
ID = MemoryId(7, UUID("017f22e2-79b0-7cc3-98c4-dc0c0c07398f"))
NOON = datetime(2026, 5, 31, 12, tzinfo=UTC)
MEMORY = Memory(ID, ("n",), "k", "semantic", "ada", None, "s", "tea", '{"a": [1]}', 0.5, NOON, NOON, NOON, 1)


def inside(value: Any) -> Iterator[Any]:  # noqa: ANN401  JSON has no narrower type
    """The value and all that it holds."""
    yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from inside(item)


def one_of(member: str, values: list[Any]) -> list[dict[str, object]]:
    """A document for each value, with that one member."""
    return [{member: value} for value in values]


def resolved(reference: str) -> Any:  # noqa: ANN401  any part of the document
    place: Any = DOCUMENT
    for token in reference.removeprefix("#/").split("/"):
        place = place[token.replace("~1", "/").replace("~0", "~")]
    return place


def validator(name: str) -> Draft202012Validator:
    """The judge of one component."""
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]})


def is_valid(name: str, document: object) -> bool:
    return bool(validator(name).is_valid(json.loads(json.dumps(document))))


# ------------------------------------------------------------------------------------------------------ sound in itself


def test_it_is_json_of_openapi_3_1() -> None:
    assert json.loads(wire.encode(DOCUMENT)) == DOCUMENT
    assert DOCUMENT["openapi"].startswith("3.1.")
    assert DOCUMENT.keys() == {"openapi", "info", "paths", "components"}
    assert DOCUMENT["info"].keys() >= {"title", "version"}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_component_is_a_json_schema(name: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9._-]+", name)
    Draft202012Validator.check_schema(SCHEMAS[name])


def test_every_schema_of_a_parameter_header_or_body_is_a_json_schema() -> None:
    schemas = [part["schema"] for part in inside(DOCUMENT["paths"]) if isinstance(part, dict) and "schema" in part]
    assert len(schemas) > 50
    for schema in schemas:
        Draft202012Validator.check_schema(schema)


def test_every_reference_resolves_and_every_component_is_used() -> None:
    references = {part["$ref"] for part in inside(DOCUMENT) if isinstance(part, dict) and "$ref" in part}
    assert all(isinstance(resolved(reference), dict) for reference in references)
    assert references == {f"#/components/schemas/{name}" for name in SCHEMAS}


def test_a_default_is_a_value_that_its_schema_takes() -> None:
    described = [part for part in inside(DOCUMENT) if isinstance(part, dict) and "default" in part and "type" in part]
    assert described
    for schema in described:
        jsonschema.validate(schema["default"], schema, Draft202012Validator)


def test_what_is_required_is_described() -> None:
    for part in inside(SCHEMAS):
        if isinstance(part, dict) and "required" in part and part.get("additionalProperties") is False:
            assert set(part["required"]) <= part["properties"].keys()


@pytest.mark.parametrize(("path", "operation"), OPERATIONS)
def test_an_operation_declares_its_path_and_describes_its_answers(path: str, operation: dict[str, Any]) -> None:
    parameters = operation.get("parameters", [])
    names = [(parameter["in"], parameter["name"]) for parameter in parameters]
    assert len(set(names)) == len(names)
    assert {name for where, name in names if where == "path"} == set(re.findall(r"{(\w+)}", path))
    assert all(where in {"path", "query", "header"} for where, _ in names)
    assert all(parameter["required"] for parameter in parameters if parameter["in"] == "path")
    assert all(re.fullmatch("[2345][0-9][0-9]", status) for status in operation["responses"])
    assert all(answer["description"] for answer in operation["responses"].values())
    assert {"421", "500", "503", "504"} <= operation["responses"].keys()


def test_operations_have_ids_of_their_own_under_known_methods() -> None:
    ids = [param.id for param in OPERATIONS]
    assert len(set(ids)) == len(ids) > 0
    assert all(item.keys() <= METHODS for item in DOCUMENT["paths"].values())


@pytest.mark.parametrize(("path", "operation"), OPERATIONS)
def test_every_failure_is_a_problem(path: str, operation: dict[str, Any]) -> None:
    for status, answer in operation["responses"].items():
        kinds = set(answer.get("content", {}))
        if (operation["operationId"], status) == ("health", "503"):
            assert kinds == {"application/json", "application/problem+json"}, "unhealthy is an answer too"
            continue
        assert kinds == ({"application/problem+json"} if int(status) >= 400 else kinds & {"application/json"})


# ---------------------------------------------------------------------------------------------------------- its numbers


@pytest.mark.parametrize(
    ("component", "path", "limit"),
    [
        ("MemoryWrite", "content/maxLength", "content_bytes"),
        ("MemoryWrite", "user/anyOf/0/maxLength", "name_bytes"),
        ("MemoryWrite", "agent/anyOf/0/maxLength", "name_bytes"),
        ("MemoryWrite", "session/anyOf/0/maxLength", "name_bytes"),
        ("MemoryWrite", "key/anyOf/0/maxLength", "key_bytes"),
        ("MemoryWrite", "namespace/items/maxLength", "namespace_segment_bytes"),
        ("MemoryWrite", "namespace/maxItems", "namespace_segments"),
        ("Search", "query/maxLength", "query_bytes"),
        ("Search", "limit/maximum", "search_results"),
        ("Batch", "operations/maxItems", "batch_operations"),
    ],
)
def test_a_bound_is_the_limit_in_force(component: str, path: str, limit: str) -> None:
    for limits in (LIMITS, replace(LIMITS, **{limit: 7})):
        place: Any = openapi_document(limits)["components"]["schemas"][component]["properties"]
        for token in path.split("/"):
            place = place[int(token)] if isinstance(place, list) else place[token]
        assert place == getattr(limits, limit)


def test_the_limit_of_a_list_is_the_one_in_force() -> None:
    parameters = DOCUMENT["paths"]["/v1/memories"]["get"]["parameters"]
    [limit] = [parameter["schema"] for parameter in parameters if parameter["name"] == "limit"]
    assert (limit["maximum"], limit["default"]) == (LIMITS.list_memories, 100)


@pytest.mark.parametrize("name", [field.name for field in fields(Limits) if field.name != "json_depth"])
def test_every_limit_but_depth_and_body_changes_the_description(name: str) -> None:
    other = openapi_document(replace(LIMITS, **{name: 9}))
    assert (other == DOCUMENT) == (name == "body_bytes")


# --------------------------------------------------------------------------------------------------------- its verdicts


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"content": "x", "value": {"a": [None, True, "x", 1.5]}, "type": "a-b_9", "namespace": ["a"], "key": "k"},
        dict.fromkeys(("value", "user", "agent", "session", "key", "importance", "ttl_s")),
        {"content": "a" * LIMITS.content_bytes},
        {"content": "a" * (LIMITS.content_bytes + 1)},
        {"user": "a" * 256},
        {"user": "a" * 257},
        {"key": "a" * 1024},
        {"key": "a" * 1025},
        {"namespace": ["a"] * 16},
        {"namespace": ["a"] * 17},
        {"namespace": ["a" * 257]},
        {"importance": 0},
        {"importance": 1},
        {"importance": 1.01},
        {"importance": -0.01},
        {"ttl_s": 1e-6},
        {"ttl_s": 0},
        {"ttl_s": wire.MAX_TTL_S},
        {"ttl_s": wire.MAX_TTL_S + 1},
        {"type": "a" * 63},
        {"type": "a" * 64},
        *one_of("type", ["", "A", "9a", "a b", None, 1]),
        *one_of("content", ["", None, 1, "\x00", ["x"]]),
        *one_of("user", ["", " ", 1, "a\x00"]),
        *one_of("key", ["", 1, []]),
        *one_of("namespace", [[], None, "a", [""], [1], [None], {}]),
        *one_of("importance", [True, "1", []]),
        *one_of("ttl_s", [False, "1", -1]),
        {"id": str(ID)},
        {"": 1},
        [],
        None,
        "x",
    ],
    ids=lambda value: f"{value!a:.50}",
)
def test_a_body_is_taken_by_the_parser_if_the_description_takes_it(body: object) -> None:
    try:
        wire.parse_draft(body, LIMITS)
        is_taken = True
    except Unprocessable:
        is_taken = False
    assert is_valid("MemoryWrite", body) is is_taken


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"query": "tea", "user": "u", "type": "t", "namespace": ["n"], "limit": 100, "filter": {}},
        {"user": None, "agent": None, "session": None, "type": None},
        *one_of("limit", [0, 1, 100, 101, 5.0, 5.5, "5", True, None]),
        *one_of("query", ["", None, 1, "\x00", "a" * 4096, "a" * 4097]),
        *one_of("namespace", [[], None, "a", [""]]),
        *one_of("filter", [None, [], "x", {"content": "x"}, {"key": "k"}, {"key": 1}, {"key": {}}]),
        *one_of("filter", one_of("key", [{"eq": "x"}, {"like": "x"}, {"in": ["x"]}, {"in": "x"}, {"in": [1]}])),
        *one_of("filter", one_of("importance", [1, "1", True, None, {"gt": 0.5, "lte": 1}, {"gt": "0"}])),
        *one_of("filter", one_of("value", [{}, {"a": 1}, {"a": [1]}, {"a": {"ne": None}}, {"/a~2": 1}, 1])),
        {"q": "tea"},
        [],
    ],
    ids=lambda value: f"{value!a:.50}",
)
def test_a_search_is_taken_by_the_parser_if_the_description_takes_it(body: object) -> None:
    try:
        wire.parse_search(body, LIMITS)
        is_taken = True
    except Unprocessable:
        is_taken = False
    assert is_valid("Search", body) is is_taken


def test_bodies_have_the_members_that_the_parser_knows() -> None:
    assert tuple(SCHEMAS["MemoryWrite"]["properties"]) == tuple(wire._checks(Limits()))
    assert tuple(SCHEMAS["MergePatch"]["properties"]) == tuple(wire._checks(Limits()))
    assert set(wire._checks(Limits())) - SCHEMAS["MemoryCreate"]["properties"].keys() == {"key"}
    assert set(wire._checks(Limits())) - SCHEMAS["ItemWrite"]["properties"].keys() == {
        "user",
        "namespace",
        "key",
    }


@pytest.mark.parametrize("text", [str(ID), str(ID).upper(), f"4{str(ID)[1:]}", str(ID.uuid), "", f"{ID}0"])
def test_an_id_is_described_as_it_is_parsed(text: str) -> None:
    pattern = SCHEMAS["Memory"]["properties"]["id"]["pattern"]
    try:
        is_taken = str(MemoryId.parse(text)) == text
    except BadMemoryId:
        is_taken = False
    assert bool(re.search(pattern, text)) is is_taken


@pytest.mark.parametrize("text", ["*", '"1-1f"', '""', '"a,b"', "", "1-1f", '"a', '"a b"', '"a"b"', "**"])
def test_a_tag_is_described_as_it_is_parsed(text: str) -> None:
    [tag] = [p["schema"] for p in DOCUMENT["paths"]["/v1/items"]["put"]["parameters"] if p["name"] == "If-Match"]
    try:
        parse_tags(text, "If-Match")
        is_taken = True
    except BadRequest:
        is_taken = False
    assert Draft202012Validator(tag).is_valid(text) is is_taken


SHARD = Shard("s0", "engram", (Node("a", "localhost", 5432),))
FOUND = Found((Hit(MEMORY, "s0", 0.5),), (ShardFailure("s1", "gone"),), Cursor(NOON, str(ID.uuid)), ("lexical",))


@pytest.mark.parametrize(
    ("component", "answer"),
    [
        ("Memory", wire.memory_document(MEMORY, "s0")),
        ("Memory", wire.memory_document(replace(MEMORY, key=None, user=None, importance=None, expires=None), "s0")),
        ("Page", wire.page_document(FOUND)),
        ("Page", wire.page_document(Found(()))),
        ("Results", wire.results_document(FOUND)),
        ("Results", wire.results_document(Found((Hit(MEMORY, "s0"),)))),
        ("Shards", wire.shards_document(first_map("t_a", Strategy.USER, [SHARD]), [ShardReport(SHARD, 7)])),
        (
            "BatchResults",
            {"results": [outcome_document(Get(ID), (result, "s0")) for result in (MEMORY, None, TooLarge("x", 1))]},
        ),
        ("Problem", to_problem(Unprocessable(Flaw("/a", "is wrong"))).document),
        ("Problem", to_problem(ShardUnavailable("s0", "gone")).document),
        ("Problem", to_problem(RuntimeError()).document),
    ],
)
def test_an_answer_is_as_described(component: str, answer: dict[str, object]) -> None:
    validator(component).validate(json.loads(wire.encode(answer)))


def test_a_memory_is_described_member_by_member() -> None:
    assert SCHEMAS["Memory"]["properties"].keys() == wire.memory_document(MEMORY, "s0").keys()
    assert set(SCHEMAS["Memory"]["required"]) == SCHEMAS["Memory"]["properties"].keys()
    assert not is_valid("Memory", json.loads(wire.encode(wire.memory_document(MEMORY, "s0"))) | {"tenant": "t_a"})
