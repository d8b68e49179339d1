"""Batches: each kind of operation, the first wrong place of a document, results as the single operations have them."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from engram_contract.policy import Limits
from engram_contract.slots import MemoryId
from engram_sidecar.batches import outcome_document, parse_batch
from engram_sidecar.errors import (
    FailedDependency,
    NotFound,
    PreconditionFailed,
    ShardReadOnly,
    ShardUnavailable,
    SidecarError,
    TooLarge,
    Unprocessable,
)
from engram_sidecar.records import Conditions, Delete, Draft, ETag, Get, Memory, Operation, Patch, Put
from engram_sidecar.wire import memory_document

LIMITS = Limits()
MADE = MemoryId(1, UUID("017f22e2-79b0-7cc3-98c4-dc0c0c07398f"))
NAMED = MemoryId(2, UUID("5c146b14-3c52-8afd-938a-375d0df1fbf6"))
GIVEN = MemoryId(3, UUID("017f22e2-79b0-7cc3-98c4-dc0c0c073990"))
TAG = '"1-1f"'
PLACE = "/operations/0/memory"
NOON = datetime(2026, 5, 31, 12, tzinfo=UTC)
MEMORY = Memory(GIVEN, (), None, "episodic", None, None, None, "tea", "null", None, NOON, NOON, None, 1)


class FixedIds:
    """Gives one id to every new memory and one to every name, and keeps the drafts that it was asked for."""

    def __init__(self) -> None:
        self.asked: list[Draft] = []

    def new_id(self, draft: Draft) -> MemoryId:
        self.asked.append(draft)
        return MADE

    def id_of(self, draft: Draft) -> MemoryId:
        self.asked.append(draft)
        return NAMED


def parsed(*operations: object) -> list[Operation]:
    return parse_batch({"operations": list(operations)}, LIMITS, FixedIds())


FIRST = "/operations/0/memory"


@pytest.mark.parametrize(
    ("document", "operation"),
    [
        (
            {"op": "create", "memory": {"content": "x", "user": "u"}},
            Put(MADE, Draft("x", user="u"), Conditions(must_be_absent=True)),
        ),
        ({"op": "put", "id": str(GIVEN), "memory": {"content": "x"}}, Put(GIVEN, Draft("x"))),
        (
            {"op": "put", "id": str(GIVEN), "memory": {"user": "u", "namespace": ["n"], "key": "k"}},
            Put(GIVEN, Draft(user="u", namespace=("n",), key="k")),
        ),
        (
            {"op": "put", "user": "u", "namespace": ["n"], "key": "k", "memory": {"content": "x"}},
            Put(NAMED, Draft("x", user="u", namespace=("n",), key="k")),
        ),
        ({"op": "put", "key": "k", "memory": {}}, Put(NAMED, Draft(key="k"))),
        ({"op": "get", "id": str(GIVEN)}, Get(GIVEN)),
        ({"op": "get", "user": None, "key": "k"}, Get(NAMED)),
        ({"op": "patch", "id": str(GIVEN), "memory": {"content": None}}, Patch(GIVEN, {"content": None}, place=FIRST)),
        ({"op": "patch", "namespace": [], "key": "k", "memory": {}}, Patch(NAMED, {}, place=FIRST)),
        ({"op": "delete", "id": str(GIVEN)}, Delete(GIVEN)),
        ({"op": "delete", "key": "k"}, Delete(NAMED)),
        (
            {"op": "delete", "id": str(GIVEN), "if_match": TAG},
            Delete(GIVEN, Conditions(must_exist=True, if_match=(ETag(1, 31),))),
        ),
        (
            {"op": "put", "id": str(GIVEN), "memory": {}, "if_none_match": "*"},
            Put(GIVEN, Draft(), Conditions(must_be_absent=True)),
        ),
        (
            {"op": "patch", "key": "k", "memory": {}, "if_match": "*", "if_none_match": TAG},
            Patch(NAMED, {}, Conditions(must_exist=True, if_none_match=(ETag(1, 31),)), FIRST),
        ),
    ],
)
def test_an_operation_is_what_its_document_says(document: dict[str, object], operation: Operation) -> None:
    assert parsed(document) == [operation]


def test_operations_stay_in_their_order() -> None:
    documents = [{"op": "get", "id": str(GIVEN)}, {"op": "delete", "key": "k"}, {"op": "create", "memory": {}}]
    assert [type(operation) for operation in parsed(*documents)] == [Get, Delete, Put]
    assert parsed() == []


def test_ids_are_made_from_what_the_operation_says() -> None:
    ids = FixedIds()
    documents = [
        {"op": "create", "memory": {"user": "ada", "content": "x"}},
        {"op": "put", "user": "bob", "namespace": ["n"], "key": "k", "memory": {"content": "y"}},
        {"op": "get", "id": str(GIVEN)},
    ]
    parse_batch({"operations": documents}, LIMITS, ids)
    assert ids.asked == [Draft("x", user="ada"), Draft(user="bob", namespace=("n",), key="k")]


@pytest.mark.parametrize(
    "document",
    [None, [], "x", {}, {"operations": None}, {"operations": {}}, {"operations": [], "atomic": True}, {"ops": []}],
)
def test_a_document_of_another_form_is_refused(document: object) -> None:
    with pytest.raises(Unprocessable) as raised:
        parse_batch(document, LIMITS, FixedIds())
    assert [flaw.place for flaw in raised.value.flaws] == [""]


@pytest.mark.parametrize(
    ("document", "places"),
    [
        (None, [""]),
        ("get", [""]),
        ([], [""]),
        ({}, ["/op"]),
        ({"op": None}, ["/op"]),
        ({"op": ["get"]}, ["/op"]),
        ({"op": {}}, ["/op"]),
        ({"op": "GET"}, ["/op"]),
        ({"op": "create"}, ["/memory"]),
        ({"op": "create", "memory": None}, ["/memory"]),
        ({"op": "create", "memory": {"key": "k"}}, ["/memory/key"]),
        ({"op": "create", "memory": {"x": 1, "content": 2}}, ["/memory/x", "/memory/content"]),
        ({"op": "create", "id": str(GIVEN), "memory": {}}, ["/id"]),
        ({"op": "create", "memory": {}, "if_none_match": "*"}, ["/if_none_match"]),
        ({"op": "get", "id": str(GIVEN), "memory": {}}, ["/memory"]),
        ({"op": "get", "id": str(GIVEN), "if_match": TAG}, ["/if_match"]),
        ({"op": "get", "id": str(GIVEN), "a/b~": 1}, ["/a~1b~0"]),
        ({"op": "delete", "id": str(GIVEN), "memory": {}}, ["/memory"]),
        ({"op": "get"}, [""]),
        ({"op": "get", "user": "u", "namespace": ["n"]}, [""]),
        ({"op": "get", "key": None}, [""]),
        ({"op": "get", "key": ""}, ["/key"]),
        ({"op": "get", "key": 1, "user": ""}, ["/key", "/user"]),
        ({"op": "get", "id": "x"}, ["/id"]),
        ({"op": "get", "id": None}, ["/id"]),
        ({"op": "get", "id": str(GIVEN).upper()}, ["/id"]),
        ({"op": "get", "id": str(GIVEN), "key": "k"}, ["/key"]),
        ({"op": "get", "id": str(GIVEN), "user": None}, ["/user"]),
        ({"op": "put", "id": str(GIVEN)}, ["/memory"]),
        ({"op": "put", "key": "k"}, ["/memory"]),
        ({"op": "put", "key": "k", "memory": {"user": "u", "key": "k"}}, ["/memory/user", "/memory/key"]),
        ({"op": "put", "key": "k", "memory": {"ttl_s": 0}}, ["/memory/ttl_s"]),
        ({"op": "patch", "id": str(GIVEN)}, ["/memory"]),
        ({"op": "patch", "id": str(GIVEN), "memory": []}, ["/memory"]),
        ({"op": "delete", "id": str(GIVEN), "if_match": 1}, ["/if_match"]),
        ({"op": "delete", "id": str(GIVEN), "if_none_match": [TAG]}, ["/if_none_match"]),
        ({"op": "delete", "id": str(GIVEN), "if_match": "1"}, [""]),
        ({"op": "delete", "id": str(GIVEN), "if_match": ""}, [""]),
    ],
    ids=lambda value: f"{value!r:.60}",
)
def test_the_first_wrong_operation_is_named_by_its_place(document: object, places: list[str]) -> None:
    fine = {"op": "get", "id": str(GIVEN)}
    with pytest.raises(Unprocessable) as raised:
        parsed(fine, document, {"op": "nonsense"})
    assert sorted(flaw.place for flaw in raised.value.flaws) == sorted(f"/operations/1{place}" for place in places)


def test_a_malformed_tag_says_which_header_it_would_be() -> None:
    with pytest.raises(Unprocessable, match="If-None-Match"):
        parsed({"op": "delete", "id": str(GIVEN), "if_none_match": "x"})


def test_the_number_of_operations_is_bounded() -> None:
    few = replace(LIMITS, batch_operations=2)
    get = {"op": "get", "id": str(GIVEN)}
    assert len(parse_batch({"operations": [get, get]}, few, FixedIds())) == 2
    with pytest.raises(TooLarge, match="at most 2 operations") as raised:
        parse_batch({"operations": [get, get, "wrong too"]}, few, FixedIds())
    assert raised.value.limit == 2


# ------------------------------------------------------------------------------------------------------------ outcomes


@pytest.mark.parametrize(
    ("operation", "version", "status"),
    [
        (Put(GIVEN, Draft()), 1, 201),
        (Put(GIVEN, Draft()), 2, 200),
        (Get(GIVEN), 1, 200),
        (Patch(GIVEN, {}), 2, 200),
        (Patch(GIVEN, {}), 1, 200),
    ],
)
def test_a_result_has_the_status_of_the_single_operation(operation: Operation, version: int, status: int) -> None:
    memory = replace(MEMORY, version=version)
    assert outcome_document(operation, (memory, "s1")) == {"status": status, "memory": memory_document(memory, "s1")}


def test_what_was_removed_has_no_document() -> None:
    assert outcome_document(Delete(GIVEN), (None, "s1")) == {"status": 204}


@pytest.mark.parametrize(
    ("error", "status", "members"),
    [
        (NotFound("x"), 404, {}),
        (ShardReadOnly("s1"), 409, {"shard": "s1"}),
        (PreconditionFailed("x"), 412, {}),
        (FailedDependency(), 424, {}),
        (ShardUnavailable("s1", "gone"), 503, {"shard": "s1"}),
        (SidecarError("of no kind"), 500, {}),
    ],
)
def test_a_failure_is_a_problem_with_its_status(error: SidecarError, status: int, members: dict[str, Any]) -> None:
    found: Any = outcome_document(Put(GIVEN, Draft()), (error, "s1"))
    assert found.keys() == {"status", "problem"}
    assert found["status"] == found["problem"]["status"] == status
    assert found["problem"].items() >= members.items()
