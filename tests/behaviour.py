"""What the HTTP interface promises, told over HTTP alone: this suite asks nothing but an address.

Each test names its own users, so that it finds its own memories whatever lies beside them.
"""

import uuid
from typing import Any

import pytest

from tests.harness import Answer, Http

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def user() -> str:
    return f"user-{uuid.uuid4()}"


@pytest.fixture
def space() -> str:
    return f"space-{uuid.uuid4()}"


@pytest.fixture
def own_agent(http: Http) -> str | None:
    """The agent that every memory is of here, because the pod is it; None where callers name agents."""
    agent: str | None = http("POST", "/v1/memories", {"user": f"user-{uuid.uuid4()}"}).json["agent"]
    return agent


def item(space: str, key: str = "k", **more: str) -> dict[str, Any]:
    return {"namespace": [space], "key": key, **more}


def contents(answer: Answer) -> list[str]:
    assert answer.status == 200, answer.body
    return [memory["content"] for memory in answer.json.get("memories", answer.json.get("results"))]


# One memory


def test_a_created_memory_is_read_back_as_it_was_sent(http: Http, user: str, own_agent: str | None) -> None:
    sent = {
        "content": "Prefers tea — ☕ no",
        "value": {"n": 1, "x": [None, True, 1.5, "ü", {}]},
        "type": "semantic",
        "user": user,
        "agent": own_agent or "a",
        "session": "s",
        "namespace": ["p", "q"],
        "importance": 0.5,
    }
    created = http("POST", "/v1/memories", sent)
    assert created.status == 201
    assert created.headers["etag"] == created.json["etag"]
    read = http("GET", created.headers["location"])
    assert read.status == 200
    assert {name: read.json[name] for name in sent} == sent
    assert read.json["version"] == 1
    assert read.json["shard"] in {"s0", "s1"}
    assert read.json["created"] == read.json["updated"] < read.json["expires"]


def test_a_missing_memory_is_404_and_an_empty_one_is_200(http: Http, space: str) -> None:
    assert http("GET", "/v1/items", **item(space)).status == 404
    assert http("PUT", "/v1/items", {}, **item(space)).status == 201
    empty = http("GET", "/v1/items", **item(space))
    assert (empty.status, empty.json["content"], empty.json["value"]) == (200, "", None)


@pytest.mark.parametrize(
    "path", ["/v1/memories/x", "/v1/memories/4000-01a1fd5f-0000-7000-8000-000000000000", "/v1/memories/%ff"]
)
def test_what_is_no_id_is_404(http: Http, path: str) -> None:
    answer = http("GET", path)
    assert (answer.status, answer.headers["content-type"]) == (404, "application/problem+json")


def test_a_keyed_memory_is_one_memory_under_its_name_and_its_id(http: Http, space: str) -> None:
    created = http("PUT", "/v1/items", {"content": "one"}, **item(space))
    by_id = http("GET", f"/v1/memories/{created.json['id']}")
    assert by_id.json["key"] == "k"
    assert http("PUT", "/v1/items", {"content": "two"}, **item(space)).json["id"] == created.json["id"]
    assert http("GET", f"/v1/memories/{created.json['id']}").json["content"] == "two"


def test_put_keeps_created_and_counts_versions(http: Http, space: str) -> None:
    first = http("PUT", "/v1/items", {"content": "one"}, **item(space))
    second = http("PUT", "/v1/items", {"content": "two"}, **item(space))
    assert (first.status, second.status) == (201, 200)
    assert second.json["created"] == first.json["created"]
    assert second.json["version"] == 2


def test_an_item_of_one_user_is_not_that_of_another(http: Http, space: str) -> None:
    for owner in ({}, {"user": "u1"}, {"user": "u2"}):
        assert http("PUT", "/v1/items", {"content": owner.get("user", "shared")}, **item(space, **owner)).status == 201
    assert http("GET", "/v1/items", **item(space)).json["content"] == "shared"
    assert http("GET", "/v1/items", **item(space, user="u1")).json["content"] == "u1"
    assert http("GET", "/v1/items", **item(space, user="u2")).json["content"] == "u2"


def test_patch_merges_and_null_removes(http: Http, space: str) -> None:
    http("PUT", "/v1/items", {"content": "c", "value": {"a": 1, "b": {"c": 2}}, "importance": 0.5}, **item(space))
    patched = http("PATCH", "/v1/items", {"value": {"b": {"d": 3}, "a": None}, "importance": None}, **item(space))
    assert patched.status == 200
    assert patched.json["value"] == {"b": {"c": 2, "d": 3}}
    assert (patched.json["importance"], patched.json["content"], patched.json["version"]) == (None, "c", 2)


def test_patch_keeps_the_expiry_unless_it_says_another(http: Http, space: str) -> None:
    first = http("PUT", "/v1/items", {"ttl_s": 1000}, **item(space)).json
    assert http("PATCH", "/v1/items", {"content": "x"}, **item(space)).json["expires"] == first["expires"]
    assert http("PATCH", "/v1/items", {"ttl_s": 9000}, **item(space)).json["expires"] > first["expires"]


def test_patch_of_a_missing_memory_is_404(http: Http, space: str) -> None:
    assert http("PATCH", "/v1/items", {"content": "x"}, **item(space)).status == 404


def test_the_name_of_a_keyed_memory_is_fixed(http: Http, space: str) -> None:
    created = http("PUT", "/v1/items", {}, **item(space)).json
    refused = http("PATCH", f"/v1/memories/{created['id']}", {"key": "other"})
    assert (refused.status, refused.json["errors"][0]["pointer"]) == (422, "/key")


def test_the_user_of_a_memory_is_fixed(http: Http, user: str) -> None:
    created = http("POST", "/v1/memories", {"user": user}).json
    refused = http("PATCH", f"/v1/memories/{created['id']}", {"user": user + "x"})
    assert (refused.status, refused.json["errors"][0]["pointer"]) == (422, "/user")


def test_delete_says_whether_the_memory_was_there(http: Http, space: str) -> None:
    http("PUT", "/v1/items", {}, **item(space))
    assert http("DELETE", "/v1/items", **item(space)).status == 204
    assert http("DELETE", "/v1/items", **item(space)).status == 404
    assert http("GET", "/v1/items", **item(space)).status == 404


def test_head_answers_as_get_without_a_body(http: Http, space: str) -> None:
    tag = http("PUT", "/v1/items", {}, **item(space)).headers["etag"]
    head = http("HEAD", "/v1/items", **item(space))
    assert (head.status, head.body, head.headers["etag"]) == (200, b"", tag)


# Conditions


def test_if_match_lets_one_of_two_writers_through(http: Http, space: str) -> None:
    tag = http("PUT", "/v1/items", {"content": "0"}, **item(space)).headers["etag"]
    assert http("PUT", "/v1/items", {"content": "1"}, headers={"If-Match": tag}, **item(space)).status == 200
    late = http("PUT", "/v1/items", {"content": "2"}, headers={"If-Match": tag}, **item(space))
    assert late.status == 412
    assert http("GET", "/v1/items", **item(space)).json["content"] == "1"


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_if_match_of_a_missing_memory_is_412(http: Http, space: str, method: str) -> None:
    body: object = None if method == "DELETE" else {}
    for tag in ("*", '"1-1"'):
        assert http(method, "/v1/items", body, headers={"If-Match": tag}, **item(space)).status == 412
    assert http("GET", "/v1/items", **item(space)).status == 404


def test_if_none_match_star_creates_once(http: Http, space: str) -> None:
    assert http("PUT", "/v1/items", {}, headers={"If-None-Match": "*"}, **item(space)).status == 201
    assert http("PUT", "/v1/items", {}, headers={"If-None-Match": "*"}, **item(space)).status == 412


def test_a_read_with_the_known_tag_is_304(http: Http, space: str) -> None:
    tag = http("PUT", "/v1/items", {}, **item(space)).headers["etag"]
    for known in (tag, f'"x", {tag}', f"W/{tag}", "*"):
        answer = http("GET", "/v1/items", headers={"If-None-Match": known}, **item(space))
        assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", tag)
    assert http("GET", "/v1/items", headers={"If-None-Match": '"1-1"'}, **item(space)).status == 200


def test_a_weak_tag_never_lets_a_write_through(http: Http, space: str) -> None:
    tag = http("PUT", "/v1/items", {}, **item(space)).headers["etag"]
    assert http("PUT", "/v1/items", {}, headers={"If-Match": f"W/{tag}"}, **item(space)).status == 412


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("tag", ["1-1", '"1-1', '"a" "b"', "", "W/1", "*, *"])
def test_a_malformed_tag_is_400(http: Http, space: str, method: str, tag: str) -> None:
    body: object = {} if method in {"PUT", "PATCH"} else None
    answer = http(method, "/v1/items", body, headers={"If-None-Match": tag}, **item(space))
    assert answer.status == 400, answer.body


def test_the_tag_of_a_memory_that_was_made_again_is_another(http: Http, space: str) -> None:
    old = http("PUT", "/v1/items", {}, **item(space)).headers["etag"]
    http("DELETE", "/v1/items", **item(space))
    http("PUT", "/v1/items", {}, **item(space))
    assert http("PUT", "/v1/items", {}, headers={"If-Match": old}, **item(space)).status == 412


# Time to live


def test_an_expired_memory_is_gone_everywhere_at_once(http: Http, space: str, user: str) -> None:
    http("PUT", "/v1/items", {"content": "ephemeral", "ttl_s": 0.001}, **item(space, user=user))
    kept = http("PUT", "/v1/items", {"content": "ephemeral kept"}, **item(space, "kept", user=user)).json
    assert http("GET", "/v1/items", **item(space, user=user)).status == 404
    assert contents(http("GET", "/v1/memories", user=user)) == ["ephemeral kept"]
    assert contents(http("POST", "/v1/search", {"query": "ephemeral", "user": user})) == ["ephemeral kept"]
    assert contents(http("POST", "/v1/search", {"query": "ephemeral"})).count("ephemeral") == 0
    assert http("PATCH", "/v1/items", {"content": "x"}, **item(space, user=user)).status == 404
    assert http("PUT", "/v1/items", {}, headers={"If-Match": "*"}, **item(space, user=user)).status == 412
    assert http("DELETE", "/v1/items", **item(space, user=user)).status == 404
    again = http("PUT", "/v1/items", {}, headers={"If-None-Match": "*"}, **item(space, user=user))
    assert (again.status, again.json["version"]) == (201, 1)
    assert again.json["created"] > kept["created"]


def test_the_tenants_retention_bounds_the_time_to_live(http: Http, space: str) -> None:
    bounded = http("PUT", "/v1/items", {}, **item(space)).json["expires"]
    assert http("PUT", "/v1/items", {"ttl_s": 1e9}, **item(space)).json["expires"][:7] == bounded[:7]


# Lists


def test_a_list_is_newest_first_and_its_pages_have_everything_once(http: Http, user: str) -> None:
    made = [http("POST", "/v1/memories", {"user": user, "content": str(n)}).json["content"] for n in range(25)]
    seen: list[str] = []
    query: dict[str, Any] = {"user": user, "limit": 7}
    while True:
        page = http("GET", "/v1/memories", **query)
        seen += contents(page)
        if page.json["next"] is None:
            break
        query["cursor"] = page.json["next"]
    assert seen == made[::-1]


def test_pages_over_all_shards_have_everything_once(http: Http, space: str) -> None:
    names = {str(n) for n in range(40)}
    for name in names:
        http("POST", "/v1/memories", {"user": f"{space}-{name}", "namespace": [space], "content": name})
    seen: list[str] = []
    query: dict[str, Any] = {"namespace": space, "limit": 7}
    while True:
        page = http("GET", "/v1/memories", **query)
        seen += contents(page)
        assert page.json["complete"] is True
        if page.json["next"] is None:
            break
        query["cursor"] = page.json["next"]
    assert sorted(seen) == sorted(names)


def test_a_list_takes_each_selection(http: Http, user: str, own_agent: str | None) -> None:
    first, second = own_agent or "a", own_agent or "b"
    for number, (agent, session, kind) in enumerate(
        [(first, "s", "semantic"), (first, "t", "episodic"), (second, "t", "working")]
    ):
        memory = {"user": user, "agent": agent, "session": session, "type": kind, "content": str(number)}
        assert http("POST", "/v1/memories", memory).status == 201
    of_first = ["2", "1", "0"] if own_agent else ["1", "0"]
    assert contents(http("GET", "/v1/memories", user=user, agent=first)) == of_first
    assert contents(http("GET", "/v1/memories", user=user, session="t")) == ["2", "1"]
    assert contents(http("GET", "/v1/memories", user=user, type="semantic")) == ["0"]
    assert contents(http("GET", "/v1/memories", user=user, type="semantic", agent="nobody")) == []


def test_a_namespace_prefix_is_of_whole_parts(http: Http, space: str) -> None:
    paths = [
        ["a"],
        ["a", "b"],
        ["a", "b", "c"],
        ["a", "bc"],
        ["a", "b_"],
        ["a", "b%"],
        ["ab"],
        ["a", "b\x01"],
        ["a", "b.c"],
    ]
    for path in paths:
        http("POST", "/v1/memories", {"namespace": [space, *path], "content": "/".join(path)})

    def below(*prefix: str) -> set[str]:
        listed = contents(http("GET", "/v1/memories", namespace=[space, *prefix]))
        found = contents(http("POST", "/v1/search", {"query": "", "namespace": [space, *prefix], "limit": 100}))
        assert sorted(listed) == sorted(found)
        return set(listed)

    assert below("a", "b") == {"a/b", "a/b/c"}
    assert below("a", "bc") == {"a/bc"}
    assert below("a", "b_") == {"a/b_"}
    assert below("a", "b%") == {"a/b%"}
    assert below("a") == {"/".join(path) for path in paths} - {"ab"}
    assert below("ab") == {"ab"}
    assert below("b") == set()


# Search


def test_a_search_finds_one_word_of_many_and_ranks_better_matches_first(http: Http, user: str) -> None:
    texts = ["The deployment failed with a timeout", "Deployment of the payment service", "Likes green tea"]
    for text in texts:
        http("POST", "/v1/memories", {"user": user, "content": text})
    found = http("POST", "/v1/search", {"query": "why did the payment deployment fail?", "user": user}).json
    assert found["results"][0]["content"] in texts[:2]
    assert {hit["content"] for hit in found["results"]} == set(texts[:2])
    scores = [hit["score"] for hit in found["results"]]
    assert scores == sorted(scores, reverse=True)
    assert all(
        0 < score <= 1 and hit["legs"] == {"lexical": score}
        for score, hit in zip(scores, found["results"], strict=True)
    )
    assert found["legs"] == ["lexical"]


def test_a_search_looks_into_the_strings_of_the_value(http: Http, user: str) -> None:
    http("POST", "/v1/memories", {"user": user, "value": {"note": ["a zeppelin"]}})
    assert len(contents(http("POST", "/v1/search", {"query": "zeppelins", "user": user}))) == 1


def test_a_changed_memory_is_found_by_its_new_words_only(http: Http, space: str, user: str) -> None:
    http("PUT", "/v1/items", {"content": "marmalade"}, **item(space, user=user))
    http("PATCH", "/v1/items", {"content": "chutney"}, **item(space, user=user))
    assert contents(http("POST", "/v1/search", {"query": "marmalade", "user": user})) == []
    assert contents(http("POST", "/v1/search", {"query": "chutney", "user": user})) == ["chutney"]


def test_a_query_of_stop_words_answers_the_newest(http: Http, user: str) -> None:
    for number in range(3):
        http("POST", "/v1/memories", {"user": user, "content": str(number)})
    for query in ("", "the of and", "?!"):
        found = http("POST", "/v1/search", {"query": query, "user": user, "limit": 2}).json
        assert [hit["content"] for hit in found["results"]] == ["2", "1"]
        assert found["results"][0]["score"] is None


def test_a_search_over_all_shards_ranks_as_one(http: Http, space: str) -> None:
    for number in range(20):
        http(
            "POST",
            "/v1/memories",
            {"user": f"{space}{number}", "namespace": [space], "content": "wombat " + "filler " * number},
        )
    found = http("POST", "/v1/search", {"query": "wombat", "namespace": [space], "limit": 20}).json["results"]
    assert [hit["content"].count("filler") for hit in found] == list(range(20))
    assert {hit["shard"] for hit in found} == {"s0", "s1"}


def test_filters_are_typed(http: Http, user: str) -> None:
    for value in (9, 10, "9", True, None, [9], {"v": 9}):
        http("POST", "/v1/memories", {"user": user, "value": {"v": value}, "content": repr(value)})
    http("POST", "/v1/memories", {"user": user, "value": {}, "content": "missing"})

    def found(condition: object, name: str = "v") -> set[str]:
        body = {"user": user, "filter": {"value": {name: condition}}, "limit": 100}
        return set(contents(http("POST", "/v1/search", body)))

    assert found(9) == {"9"}
    assert found("9") == {"'9'"}
    assert found({"eq": True}) == {"True"}
    assert found(None) == {"None"}
    assert found({"gt": 9}) == {"10"}
    assert found({"gte": "9"}) == {"'9'"}
    assert found({"in": [10, "9", True]}) == {"10", "'9'", "True"}
    assert found({"in": []}) == set()
    assert found({"ne": 9}) == {"10", "'9'", "True", "None", "[9]", "{'v': 9}", "missing"}
    assert found(9, "/v/v") == {"{'v': 9}"}
    assert found(9, "/v/0") == {"[9]"}


def test_filters_take_times_and_fields(http: Http, user: str) -> None:
    memory = http("POST", "/v1/memories", {"user": user, "importance": 0.7, "session": "s"}).json

    def found(**condition: object) -> int:
        return len(contents(http("POST", "/v1/search", {"user": user, "filter": condition})))

    assert found(created=memory["created"]) == 1
    assert found(created={"gt": memory["created"]}) == 0
    assert found(created={"lte": memory["created"].replace("Z", "+00:00")}) == 1
    assert found(created={"lt": "2020-01-01T00:00:00+14:00"}) == 0
    assert found(importance={"gte": 0.7, "lt": 0.8}) == 1
    assert found(session={"in": ["s", "t"]}, type="episodic") == 1
    assert found(key=None) == 1


# Batches


def test_a_batch_answers_in_order_and_reads_the_state_before_it(http: Http, space: str) -> None:
    http("PUT", "/v1/items", {"content": "old"}, **item(space, "a"))
    answer = http(
        "POST",
        "/v1/batch",
        {
            "operations": [
                {"op": "put", "namespace": [space], "key": "a", "memory": {"content": "new"}},
                {"op": "get", "namespace": [space], "key": "a"},
                {"op": "get", "namespace": [space], "key": "missing"},
                {"op": "create", "memory": {"content": "c", "user": space}},
                {"op": "patch", "namespace": [space], "key": "a", "memory": {"value": 1}},
                {"op": "delete", "namespace": [space], "key": "missing"},
            ]
        },
    )
    results = answer.json["results"]
    assert [result["status"] for result in results] == [200, 200, 404, 201, 200, 404]
    assert results[1]["memory"]["content"] == "old"
    now = http("GET", "/v1/items", **item(space, "a")).json
    assert (now["content"], now["value"], now["version"]) == ("new", 1, 3)


def test_a_failed_write_undoes_its_shards_writes_and_no_others(http: Http, space: str) -> None:
    keys = [str(number) for number in range(30)]
    made = {key: http("PUT", "/v1/items", {"content": "0"}, **item(space, key)).json["shard"] for key in keys}
    bad = keys[0]
    operations: list[dict[str, object]] = [
        {"op": "put", "namespace": [space], "key": key, "memory": {"content": "1"}} for key in keys
    ]
    operations[0]["if_match"] = '"1-1"'
    results = http("POST", "/v1/batch", {"operations": operations}).json["results"]
    for key, result in zip(keys, results, strict=True):
        is_beside = made[key] == made[bad]
        assert result["status"] == (412 if key == bad else 424 if is_beside else 200)
        assert http("GET", "/v1/items", **item(space, key)).json["content"] == ("0" if is_beside else "1")
    assert {made[key] for key in keys} == {"s0", "s1"}


def test_a_batch_judges_each_put_by_its_own_conditions(http: Http, space: str) -> None:
    """In one run: made, only changed, only if it is this state, only if it is not that one, only if it is absent."""
    etags = [
        http("PUT", "/v1/items", {"content": "0"}, user="one", **item(space, key)).headers["etag"] for key in "abcd"
    ]  # of one user, so on one shard
    conditions: dict[str, dict[str, object]] = {
        "a": {"if_match": "*"},
        "b": {"if_match": f'"9-9", {etags[1]}'},
        "c": {"if_none_match": '"9-9"'},
        "d": {},
        "e": {"if_none_match": "*"},
    }
    failing = ({"a": {"if_none_match": "*"}}, {"b": {"if_match": '"9-9"'}}, {"c": {"if_none_match": etags[2]}},
               {"e": {"if_match": "*"}}, {"e": {"if_match": etags[0]}})  # fmt: skip
    for replaced in (*failing, {}):
        operations = [
            {"op": "put", "user": "one", "namespace": [space], "key": key, "memory": {"content": "1"}, **each}
            for key, each in (conditions | replaced).items()
        ]
        results = http("POST", "/v1/batch", {"operations": operations}).json["results"]
        expected = [412 if key in replaced else 424 for key in conditions] if replaced else [200, 200, 200, 200, 201]
        assert [result["status"] for result in results] == expected, replaced
    versions = [http("GET", "/v1/items", user="one", **item(space, key)).json["version"] for key in "abcde"]
    assert versions == [2, 2, 2, 2, 1]


def test_a_batch_keeps_what_it_is_given_and_its_order(http: Http, space: str) -> None:
    namespaces = [[space, *rest] for rest in ([], ["a b", 'c"d'], ["e\\f", "{,}", "NULL", "ü"], ["'"], ["\\"])]
    memories = [
        {"user": space, "namespace": namespace, "content": f'{number}"\\', "value": {"n": [number, None, '"\\']},
         "type": "semantic" if number % 2 else "episodic", "importance": number / 10, "session": f"s{number}"}
        for number, namespace in enumerate(namespaces)
    ]  # fmt: skip
    operations = [{"op": "create", "memory": memory} for memory in memories]
    results = http("POST", "/v1/batch", {"operations": operations}).json["results"]
    assert [result["status"] for result in results] == [201] * 5
    listed = http("GET", "/v1/memories", user=space).json["memories"]
    assert [memory["id"] for memory in listed] == [result["memory"]["id"] for result in reversed(results)]
    for memory, sent in zip(reversed(listed), memories, strict=True):
        assert {name: memory.get(name) for name in sent} == sent


def test_a_batch_may_write_one_memory_several_times(http: Http, space: str) -> None:
    address: dict[str, object] = {"namespace": [space], "key": "k"}
    operations = [
        {"op": "put", **address, "memory": {"content": "1"}},
        {"op": "put", **address, "memory": {"content": "2"}},
        {"op": "delete", **address},
        {"op": "put", **address, "memory": {"content": "3"}, "if_none_match": "*"},
    ]
    results = http("POST", "/v1/batch", {"operations": operations}).json["results"]
    assert [result["status"] for result in results] == [201, 200, 204, 201]
    assert http("GET", "/v1/items", **item(space)).json["content"] == "3"


def test_an_empty_batch_is_an_empty_answer(http: Http) -> None:
    assert http("POST", "/v1/batch", {"operations": []}).json == {"results": []}


# Idempotency keys


def keyed(key: str, **more: str) -> dict[str, str]:
    return {"Idempotency-Key": key, **more}


@pytest.fixture
def once() -> str:
    return f"key-{uuid.uuid4()}"


def test_a_create_with_a_key_happens_once_and_is_answered_alike(http: Http, user: str, once: str) -> None:
    body = {"content": "paid 5", "user": user}
    first = http("POST", "/v1/memories", body, headers=keyed(once))
    again = http("POST", "/v1/memories", body, headers=keyed(once))
    assert (first.status, "idempotency-replayed" in first.headers) == (201, False)
    assert (again.status, again.headers["idempotency-replayed"]) == (201, "true")
    assert (again.json, again.headers["etag"]) == (first.json, first.headers["etag"])
    assert again.headers["location"] == first.headers["location"]
    assert contents(http("GET", "/v1/memories", user=user)) == ["paid 5"]
    assert http("POST", "/v1/memories", body).json["id"] != first.json["id"]  # without the key it is another one


def test_a_put_with_a_key_undoes_nothing_that_came_since(http: Http, space: str, once: str) -> None:
    first = http("PUT", "/v1/items", {"content": "one"}, headers=keyed(once), **item(space))
    http("PUT", "/v1/items", {"content": "two"}, **item(space))
    again = http("PUT", "/v1/items", {"content": "one"}, headers=keyed(once), **item(space))
    assert (again.status, again.headers["etag"]) == (first.status, first.headers["etag"]) == (201, first.json["etag"])
    told = {name: first.json[name] for name in ("id", "shard", "version", "etag")}
    assert again.json == told  # what it was then is gone, and what it is now was not the outcome
    assert http("GET", "/v1/items", **item(space)).json["content"] == "two"


def test_a_patch_with_a_key_is_applied_once(http: Http, space: str, once: str) -> None:
    first = http("PUT", "/v1/items", {"value": {"n": 1}}, **item(space))
    headers = keyed(once, **{"If-Match": first.headers["etag"]})
    changed = http("PATCH", "/v1/items", {"value": {"n": 2}}, headers=headers, **item(space))
    again = http("PATCH", "/v1/items", {"value": {"n": 2}}, headers=headers, **item(space))
    # The tag is another one by now: without the key this would be 412, and the caller none the wiser.
    assert (again.status, again.json) == (200, changed.json)
    assert again.json["version"] == 2


def test_a_delete_with_a_key_spares_what_was_made_anew(http: Http, space: str, once: str) -> None:
    http("PUT", "/v1/items", {"content": "old"}, **item(space))
    assert http("DELETE", "/v1/items", headers=keyed(once), **item(space)).status == 204
    http("PUT", "/v1/items", {"content": "new"}, **item(space))
    again = http("DELETE", "/v1/items", headers=keyed(once), **item(space))
    assert (again.status, again.headers["idempotency-replayed"], again.body) == (204, "true", b"")
    assert http("GET", "/v1/items", **item(space)).json["content"] == "new"


def test_a_batch_with_a_key_happens_once_on_all_shards(http: Http, once: str) -> None:
    users = [f"user-{uuid.uuid4()}" for _ in range(32)]  # so many are on both shards
    operations = [{"op": "create", "memory": {"user": each, "content": "x"}} for each in users]
    first = http("POST", "/v1/batch", {"operations": operations}, headers=keyed(once))
    again = http("POST", "/v1/batch", {"operations": operations}, headers=keyed(once))
    assert {result["memory"]["shard"] for result in first.json["results"]} == {"s0", "s1"}
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json["results"] == [{**result, "replayed": True} for result in first.json["results"]]
    for each in users:
        assert contents(http("GET", "/v1/memories", user=each)) == ["x"]


@pytest.mark.parametrize("is_failing", [False, True])
def test_a_batch_of_all_kinds_is_repeated_without_a_second_effect(
    http: Http, user: str, space: str, once: str, is_failing: bool
) -> None:
    http("PUT", "/v1/items", {"value": {"n": 1}}, **item(space, user=user))
    named = {"namespace": [space], "key": "k", "user": user}
    last = {"op": "put", **named, "memory": {}, "if_none_match": "*"}
    operations = [
        {"op": "create", "memory": {"user": user, "content": "made"}},
        {"op": "patch", **named, "memory": {"value": {"n": 2}}},
        {"op": "get", **named},
        {"op": "delete", "namespace": [space], "key": "absent", "user": user},
        *([last] if is_failing else []),
    ]
    first = http("POST", "/v1/batch", {"operations": operations}, headers=keyed(once)).json["results"]
    again = http("POST", "/v1/batch", {"operations": operations}, headers=keyed(once)).json["results"]
    if is_failing:  # nothing was done, so nothing is told again
        assert [each["status"] for each in first] == [each["status"] for each in again] == [424, 424, 200, 404, 412]
        assert http("GET", "/v1/items", **item(space, user=user)).json["version"] == 1
        return
    assert [each["status"] for each in first] == [each["status"] for each in again] == [201, 200, 200, 404]
    assert [each["memory"] for each in again[:2]] == [each["memory"] for each in first[:2]]
    assert (first[2]["memory"]["version"], again[2]["memory"]["version"]) == (1, 2)  # a read is no write
    assert http("GET", "/v1/items", **item(space, user=user)).json["version"] == 2


@pytest.mark.parametrize(
    "kind", ["another create", "another body", "a condition", "another method", "a delete", "another memory", "a batch"]
)
def test_a_key_is_of_one_request(http: Http, user: str, once: str, kind: str) -> None:
    named: dict[str, Any] = {"key": "k", "user": user}
    first = http("PUT", "/v1/items", {"content": "one"}, headers=keyed(once), **named)
    assert first.status == 201
    match kind:
        case "another create":
            other = http("POST", "/v1/memories", {"content": "one", "user": user}, headers=keyed(once))
        case "another body":
            other = http("PUT", "/v1/items", {"content": "two"}, headers=keyed(once), **named)
        case "a condition":
            headers = keyed(once, **{"If-None-Match": "*"})
            other = http("PUT", "/v1/items", {"content": "one"}, headers=headers, **named)
        case "another method":
            other = http("PATCH", "/v1/items", {"content": "one"}, headers=keyed(once), **named)
        case "a delete":
            other = http("DELETE", "/v1/items", headers=keyed(once), **named)
        case "another memory":
            other = http("PUT", "/v1/items", {"content": "one"}, headers=keyed(once), **{**named, "key": "l"})
        case _:
            operations = [{"op": "delete", **named}]
            other = http("POST", "/v1/batch", {"operations": operations}, headers=keyed(once))
    assert (other.status, other.json["type"].rpartition("/")[2]) == (422, "idempotency-key-reused")
    assert http("GET", "/v1/items", key="k", user=user).json == first.json


def test_a_refused_request_leaves_its_key_as_new(http: Http, space: str, once: str) -> None:
    headers = keyed(once, **{"If-Match": "*"})
    assert http("PUT", "/v1/items", {"content": "x"}, headers=headers, **item(space)).status == 412
    assert http("DELETE", "/v1/items", headers=keyed(once), **item(space)).status == 404
    assert http("PUT", "/v1/items", {"content": "y"}, headers=keyed(once), **item(space)).status == 201


@pytest.mark.parametrize(
    "key", ["k", '"k"', '"with a blank"', '"a \\" and a \\\\"', "x" * 255, '"' + "x" * 255 + '"', "a-1_b.c~!#"]
)
def test_a_key_may_be_a_string_of_structured_fields_or_bare(http: Http, user: str, key: str) -> None:
    body = {"content": "x", "user": user}
    first = http("POST", "/v1/memories", body, headers=keyed(key))
    assert first.status == 201
    assert http("POST", "/v1/memories", body, headers=keyed(key)).json == first.json


@pytest.mark.parametrize("key", ["", " ", '""', "x" * 256, "two words", '"open', '"a" ; p=1', "a\tb", "ü", '"a\\b"'])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_a_key_that_cannot_be_is_400_and_names_the_header(http: Http, space: str, method: str, key: str) -> None:
    path, query = ("/v1/memories", {}) if method == "POST" else ("/v1/items", item(space))
    answer = http(method, path, raw=None if method == "DELETE" else b"{}", headers=keyed(key), **query)
    assert (answer.status, "Idempotency-Key" in answer.json["detail"]) == (400, True)


# Bad input


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"content": 1}, "/content"),
        ({"content": None}, "/content"),
        ({"content": "x" * (2**20 + 1)}, "/content"),
        ({"value": "x" * 2**20}, "/value"),
        ({"user": ""}, "/user"),
        ({"user": 1}, "/user"),
        ({"user": "x" * 257}, "/user"),
        ({"user": "ü" * 129}, "/user"),
        ({"type": "Bad Type"}, "/type"),
        ({"namespace": "a"}, "/namespace"),
        ({"namespace": [""]}, "/namespace"),
        ({"namespace": ["a"] * 17}, "/namespace"),
        ({"namespace": ["a" * 257]}, "/namespace"),
        ({"namespace": ["a" * 250] * 5}, "/namespace"),
        ({"importance": 1.1}, "/importance"),
        ({"importance": True}, "/importance"),
        ({"ttl_s": 0}, "/ttl_s"),
        ({"ttl_s": -1}, "/ttl_s"),
        ({"ttl_s": 1e300}, "/ttl_s"),
        ({"key": "k"}, "/key"),
        ({"colour": 1}, "/colour"),
        ({"a/b~c": 1}, "/a~1b~0c"),
        ([], ""),
        (None, ""),
    ],
)
def test_a_wrong_member_is_422_and_named(http: Http, body: object, pointer: str) -> None:
    import json  # noqa: PLC0415  the body None is the JSON text null here

    answer = http("POST", "/v1/memories", raw=json.dumps(body).encode())
    assert answer.status == 422
    assert [error["pointer"] for error in answer.json["errors"]] == [pointer]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"{}{}",
        b"\xff",
        b"\xef\xbb\xbf{}",
        b'{"value": NaN}',
        b'{"value": -Infinity}',
        b'{"value": 1e999}',
        b'{"value": 9223372036854775808}',
        b'{"value": ' + b"9" * 5000 + b"}",
        b'{"content": "a", "content": "b"}',
        b'{"value": {"a": {"b": 1, "b": 2}}}',
        b'{"content": "\\u0000"}',
        b'{"content": "\\ud800"}',
        b'{"value": {"\\u0000": 1}}',
        b'{"content": "\x00"}',
        b'{"value": ' + b"[" * 65 + b"]" * 65 + b"}",
        b'{"value": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"{'content': 1}",
    ],
)
def test_json_that_cannot_be_stored_is_400(http: Http, raw: bytes) -> None:
    answer = http("POST", "/v1/memories", raw=raw)
    assert (answer.status, answer.headers["content-type"]) == (400, "application/problem+json"), answer.body


@pytest.mark.parametrize(
    "value",
    [
        2**63 - 1,
        -(2**63),
        1e22,
        1.7e308,
        5e-324,
        -0.0,
        0.1,
        "𝄞",
        "\x7f\x01",
        {"": ""},
        [[[[]]]],
        "\u2028",
        1e19,
        123456789012345678,
    ],
)
def test_a_value_survives_the_round_trip(http: Http, space: str, value: object) -> None:
    from engram_sidecar.jsontext import parse_stored  # noqa: PLC0415  integers beyond 64 bits are doubles

    http("PUT", "/v1/items", {"value": value}, **item(space))
    read = parse_stored(http("GET", "/v1/items", **item(space)).body.decode())
    assert isinstance(read, dict)
    assert read["value"] == value


@pytest.mark.parametrize(
    ("query", "place"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "1001"}, "limit"),
        ({"limit": "x"}, "limit"),
        ({"limit": ["1", "2"]}, "limit"),
        ({"user": ""}, "user"),
        ({"colour": "red"}, "colour"),
        ({"namespace": ["a", ""]}, "namespace"),
        ({"type": "A"}, "type"),
        ({"user": "\x00"}, "user"),
    ],
)
def test_a_wrong_parameter_is_422_and_named(http: Http, query: dict[str, Any], place: str) -> None:
    answer = http("GET", "/v1/memories", **query)
    assert answer.status == 422
    assert answer.json["errors"][0]["parameter"] == place


@pytest.mark.parametrize("cursor", ["x", "", "MTIz", "OTk5OTk5OTk5OTk5OTk5OTk5OTk5OS4w", "ü"])
def test_a_made_up_cursor_is_400(http: Http, cursor: str) -> None:
    assert http("GET", "/v1/memories", cursor=cursor).status == 400


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"query": 1}, "/query"),
        ({"query": "x" * 5000}, "/query"),
        ({"limit": 101}, "/limit"),
        ({"limit": True}, "/limit"),
        ({"filter": []}, "/filter"),
        ({"filter": {"colour": 1}}, "/filter/colour"),
        ({"filter": {"created": "yesterday"}}, "/filter/created"),
        ({"filter": {"created": {"gt": "2026-02-30T00:00:00Z"}}}, "/filter/created/gt"),
        ({"filter": {"importance": "high"}}, "/filter/importance"),
        ({"filter": {"value": {"a": {"like": 1}}}}, "/filter/value/a/like"),
        ({"filter": {"value": {"a": {"eq": [1]}}}}, "/filter/value/a/eq"),
        ({"filter": {"value": {"a": {}}}}, "/filter/value/a"),
        ({"filter": {"value": {"/a~2": 1}}}, "/filter/value/~1a~02"),
        ({"filter": {"value": {str(n): n for n in range(65)}}}, "/filter"),
        ({"filter": {"value": {"a": {"in": [1] * 257}}}}, "/filter/value/a/in"),
    ],
)
def test_a_wrong_search_is_422_and_named(http: Http, body: object, pointer: str) -> None:
    answer = http("POST", "/v1/search", body)
    assert answer.status == 422, answer.body
    assert answer.json["errors"][0]["pointer"] == pointer


@pytest.mark.parametrize(
    "name", ['"', "\\", "a.b", "$", "a b", "ü", "'; DROP TABLE engram.memories; --", "\n", "/", "@", "{}"]
)
def test_any_name_may_be_filtered_by(http: Http, user: str, name: str) -> None:
    http("POST", "/v1/memories", {"user": user, "value": {name: "x", "": {"": 1}}})
    pointer = "/" + name.replace("~", "~0").replace("/", "~1")
    for asked in ([name] if not name.startswith("/") else []) + [pointer]:
        assert len(contents(http("POST", "/v1/search", {"user": user, "filter": {"value": {asked: "x"}}}))) == 1


@pytest.mark.parametrize(
    ("operation", "pointer"),
    [
        (1, "/operations/0"),
        ({}, "/operations/0/op"),
        ({"op": "drop"}, "/operations/0/op"),
        ({"op": "get"}, "/operations/0"),
        ({"op": "get", "id": "x"}, "/operations/0/id"),
        ({"op": "get", "id": 1}, "/operations/0/id"),
        ({"op": "get", "key": "k", "memory": {}}, "/operations/0/memory"),
        ({"op": "get", "id": "0000-01a1fd5f-0000-7000-8000-000000000000", "key": "k"}, "/operations/0/key"),
        ({"op": "create", "memory": {"key": "k"}}, "/operations/0/memory/key"),
        ({"op": "create", "memory": {"user": 1}}, "/operations/0/memory/user"),
        ({"op": "put", "key": "k"}, "/operations/0/memory"),
        ({"op": "put", "key": "k", "memory": {"key": "x"}}, "/operations/0/memory/key"),
        ({"op": "patch", "key": "k", "memory": []}, "/operations/0/memory"),
        ({"op": "put", "key": "k", "memory": {}, "if_match": "x"}, "/operations/0"),
        ({"op": "put", "key": "k", "memory": {}, "if_match": 1}, "/operations/0/if_match"),
    ],
)
def test_a_wrong_operation_is_422_and_nothing_of_the_batch_happens(
    http: Http, space: str, operation: object, pointer: str
) -> None:
    good = {"op": "put", "namespace": [space], "key": "good", "memory": {}}
    answer = http("POST", "/v1/batch", {"operations": [operation, good]})
    assert answer.status == 422, answer.body
    assert answer.json["errors"][0]["pointer"] == pointer
    assert http("GET", "/v1/items", **item(space, "good")).status == 404


def test_too_large_is_413_with_the_limit(http: Http) -> None:
    huge = http("POST", "/v1/batch", {"operations": [{"op": "get", "key": "k"}] * 1001})
    assert (huge.status, huge.json["limit"]) == (413, 1000)
    big = Http(http.port)
    answer = big("POST", "/v1/memories", raw=b'{"content": "' + b"x" * (9 << 20) + b'"}')
    assert (answer.status, answer.json["limit"]) == (413, 8 << 20)
    big.close()


def test_a_key_of_64_kib_is_refused_by_name(http: Http, space: str) -> None:
    answer = http(
        "POST", "/v1/batch", {"operations": [{"op": "put", "namespace": [space], "key": "k" * 65536, "memory": {}}]}
    )
    assert (answer.status, answer.json["errors"][0]["pointer"]) == (422, "/operations/0/key")
    direct = Http(http.port)
    assert direct("GET", "/v1/items", key="k" * 65536).status in {400, 414, 422}
    direct.close()


def test_a_body_that_is_not_said_to_be_json_is_415(http: Http) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert http("POST", "/v1/memories", raw=b"{}", headers={"Content-Type": kind}).status == 415


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7711", "localhost.evil.example", "10.0.0.1", ""])
def test_a_foreign_host_is_421(http: Http, host: str) -> None:
    assert http("GET", "/v1/shards", headers={"Host": host}).status == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]", "[::1]:7711"])
def test_a_loopback_host_is_answered(http: Http, host: str) -> None:
    assert http("GET", "/v1/shards", headers={"Host": host}).status == 200


def test_a_wrong_method_is_405_with_what_is_allowed(http: Http) -> None:
    answer = http("DELETE", "/v1/search")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert http("PUT", "/v1/memories", {}).headers["allow"] == "GET, HEAD, POST"
    assert http("GET", "/nothing").status == 404


def test_the_map_tells_shards_and_slots(http: Http) -> None:
    answer = http("GET", "/v1/shards", count="true").json
    assert sum(shard["slots"] for shard in answer["shards"]) == 16384
    assert all(isinstance(shard["memories"], int) for shard in answer["shards"])
    assert http("GET", "/v1/shards", count="maybe").status == 422
