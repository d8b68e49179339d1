"""The interface against a dict: random operations, each answer compared, zero divergences.

The short form does at least 10,000 operations, the long one (`make soak K=model`) 50,000.
"""

import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from engram_sidecar.jsontext import parse_stored
from tests.harness import Http, SidecarThread

STEPS = 100
EXAMPLES = 50  # some 3,700 operations
COUNTED = {"operations": 0}

KEYS = st.sampled_from(["a", "b", "ä", "a b", "a/b", "%", "\x01", "k" * 1024])
NAMESPACES = st.sampled_from([(), ("a",), ("a", "b"), ("a", "bc"), ("a_",), ("a%",), ("ab",)])
USERS = st.sampled_from([None, "u1", "u2"])
TEXT = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=20)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
BODIES = st.fixed_dictionaries({"value": VALUES, "content": TEXT})
TAGS = st.sampled_from(["none", "current", "stale", "star"])


def merged(target: Any, patch: Any) -> Any:  # noqa: ANN401
    """RFC 7396, written anew from its section 2."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result


def in_digits(value: Any) -> Any:  # noqa: ANN401
    """The value with whole doubles as the integers that their shortest decimal form names, as `jsonb` prints them.

    The double 6.570507930163637e+16 is the number 65705079301636370 to JSON, and another one to Python.
    """
    match value:
        case float() if value.is_integer() and -(2**63) <= int(Decimal(repr(value))) < 2**63:
            return int(Decimal(repr(value)))
        case list():
            return [in_digits(item) for item in value]
        case dict():
            return {name: in_digits(item) for name, item in value.items()}
        case _:
            return value


class Against(RuleBasedStateMachine):
    """Keeps what should be stored beside what is."""

    http: Http

    def __init__(self) -> None:
        super().__init__()
        self.run = uuid.uuid4().hex
        self.model: dict[tuple[str | None, tuple[str, ...], str], dict[str, Any]] = {}

    def address(self, name: tuple[str | None, tuple[str, ...], str]) -> dict[str, Any]:
        user, namespace, key = name
        return {"namespace": [self.run, *namespace], "key": key, **({} if user is None else {"user": user + self.run})}

    def condition(self, tag: str, known: dict[str, Any] | None) -> tuple[dict[str, str], bool]:
        """(header, whether a write goes on)."""
        match tag:
            case "current" if known is not None:
                return {"If-Match": known["etag"]}, True
            case "stale" | "current":
                return {"If-Match": '"1-1"'}, False
            case "star":
                return {"If-None-Match": "*"}, known is None
            case _:
                return {}, True

    @rule(user=USERS, namespace=NAMESPACES, key=KEYS, body=BODIES, tag=TAGS)
    def put(self, user: str | None, namespace: tuple[str, ...], key: str, body: dict[str, Any], tag: str) -> None:
        COUNTED["operations"] += 1
        name = (user, namespace, key)
        known = self.model.get(name)
        headers, goes_on = self.condition(tag, known)
        answer = self.http("PUT", "/v1/items", body, headers=headers, **self.address(name))
        if not goes_on:
            assert answer.status == 412, answer
            return
        assert answer.status == (201 if known is None else 200), answer
        version = 1 if known is None else known["version"] + 1
        assert answer.json["version"] == version
        self.model[name] = {**body, "version": version, "etag": answer.headers["etag"], "id": answer.json["id"]}

    @rule(user=USERS, namespace=NAMESPACES, key=KEYS, patch=BODIES, tag=TAGS)
    def patch(self, user: str | None, namespace: tuple[str, ...], key: str, patch: dict[str, Any], tag: str) -> None:
        COUNTED["operations"] += 1
        name = (user, namespace, key)
        known = self.model.get(name)
        headers, goes_on = self.condition(tag, known)
        if tag == "star":
            headers, goes_on = {"If-Match": "*"}, known is not None
        answer = self.http("PATCH", "/v1/items", patch, headers=headers, **self.address(name))
        if known is None or not goes_on:
            assert answer.status == (412 if headers else 404), answer
            return
        assert answer.status == 200, answer
        value = None if patch["value"] is None else merged(known["value"], patch["value"])
        version = known["version"] + 1
        etag = answer.headers["etag"]
        self.model[name] = {**known, "value": value, "content": patch["content"], "version": version, "etag": etag}
        assert self.seen(answer) == self.expected(name)

    @rule(user=USERS, namespace=NAMESPACES, key=KEYS, tag=TAGS)
    def delete(self, user: str | None, namespace: tuple[str, ...], key: str, tag: str) -> None:
        COUNTED["operations"] += 1
        name = (user, namespace, key)
        known = self.model.get(name)
        headers, goes_on = self.condition(tag, known)
        answer = self.http("DELETE", "/v1/items", headers=headers, **self.address(name))
        if tag == "star":
            assert answer.status == (404 if known is None else 412), answer
        elif known is None:
            assert answer.status == (412 if headers else 404), answer
        elif goes_on:
            assert answer.status == 204, answer
            del self.model[name]
        else:
            assert answer.status == 412, answer

    @rule(user=USERS, namespace=NAMESPACES, key=KEYS, by_id=st.booleans())
    def get(self, user: str | None, namespace: tuple[str, ...], key: str, by_id: bool) -> None:
        COUNTED["operations"] += 1
        name = (user, namespace, key)
        known = self.model.get(name)
        if by_id and known is not None:
            answer = self.http("GET", f"/v1/memories/{known['id']}")
        else:
            answer = self.http("GET", "/v1/items", **self.address(name))
        if known is None:
            assert answer.status == 404, answer
        else:
            assert self.seen(answer) == self.expected(name)

    @rule(data=st.data())
    def batch(self, data: st.DataObject) -> None:
        """Puts and deletes of several names; none has a condition, so all go on."""
        COUNTED["operations"] += 1
        names = data.draw(st.lists(st.tuples(USERS, NAMESPACES, KEYS), min_size=1, max_size=5))
        operations = []
        expected = []
        for name in names:
            if data.draw(st.booleans()):
                body = data.draw(BODIES)
                operations.append({"op": "put", **self.address(name), "memory": body})
                known = self.model.get(name)
                expected.append(201 if known is None else 200)
                self.model[name] = {**body, "version": 1 if known is None else known["version"] + 1}
            else:
                operations.append({"op": "delete", **self.address(name)})
                expected.append(204 if self.model.pop(name, None) else 404)
        results = self.http("POST", "/v1/batch", {"operations": operations}).json["results"]
        assert [result["status"] for result in results] == expected
        for name, result in zip(names, results, strict=True):
            if name in self.model and "memory" in result:
                self.model[name] |= {"etag": result["memory"]["etag"], "id": result["memory"]["id"]}

    @rule(user=USERS, prefix=NAMESPACES)
    def list_below(self, user: str | None, prefix: tuple[str, ...]) -> None:
        COUNTED["operations"] += 1
        query: dict[str, Any] = {"namespace": [self.run, *prefix], "limit": 7}
        if user is not None:
            query["user"] = user + self.run
        seen = []
        while True:
            page = self.http("GET", "/v1/memories", **query).json
            seen += page["memories"]
            if page["next"] is None:
                break
            query["cursor"] = page["next"]
        expected = sorted(
            known["id"]
            for (owner, namespace, _), known in self.model.items()
            if namespace[: len(prefix)] == prefix and user in (None, owner)
        )
        assert sorted(memory["id"] for memory in seen) == expected

    def expected(self, name: tuple[str | None, tuple[str, ...], str]) -> dict[str, Any]:
        known = self.model[name]
        return {"value": in_digits(known["value"]), "content": known["content"], "version": known["version"]}

    @staticmethod
    def seen(answer: Any) -> dict[str, Any]:  # noqa: ANN401
        assert answer.status == 200, answer
        memory = parse_stored(answer.body.decode())
        assert isinstance(memory, dict)
        return {"value": in_digits(memory["value"]), "content": memory["content"], "version": memory["version"]}


def run_against_a_dict(sidecar: SidecarThread, wanted: int) -> int:
    """How many operations were compared: at least as many as wanted. How long an example gets is hypothesis' choice."""
    begun = COUNTED["operations"]
    Against.http = Http(sidecar.ports.http_port)
    while COUNTED["operations"] < begun + wanted:
        before = COUNTED["operations"]
        run_state_machine_as_test(
            Against,
            settings=settings(
                max_examples=EXAMPLES,
                derandomize=False,  # in CI too: the next batch is another one
                stateful_step_count=STEPS,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                print_blob=True,
                phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking against a server takes minutes
            ),
        )
        assert COUNTED["operations"] > before
    Against.http.close()
    return COUNTED["operations"] - begun


def test_the_interface_does_what_a_dict_does(sidecar: SidecarThread) -> None:
    assert run_against_a_dict(sidecar, 10_000) >= 10_000


@pytest.mark.soak
def test_the_interface_does_what_a_dict_does_for_long(
    sidecar: SidecarThread, record_property: Callable[[str, object], None]
) -> None:
    compared = run_against_a_dict(sidecar, 50_000)
    record_property("operations", compared)
    assert compared >= 50_000
