"""Objects that the API server must take or refuse: those of tests/unit/resources.yaml, and those made from the schemas.

A made object is a good one of resources.yaml with one thing changed at one place: of every property the type, bounds,
words, pattern, required members and strangers are tried. So a new property is tried from its first day in crds/, and
fails here until resources.yaml has a good object with it.
"""

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import yaml

from engram_contract.names import API_VERSION, CLUSTER_KIND, TENANT_KIND
from engram_contract.spec import BadSpec, ClusterSpec, TenantSpec
from engram_contract.spec_parts import OWNED_PARAMETERS, OWNED_PREFIXES
from tests.e2e.cluster import CRDS
from tests.e2e.stage import ROOT

SPECS: Final[dict[str, type[ClusterSpec] | type[TenantSpec]]] = {CLUSTER_KIND: ClusterSpec, TENANT_KIND: TenantSpec}
PLURAL: Final = {crd["spec"]["names"]["kind"]: crd["spec"]["names"]["plural"] for crd in CRDS}
SCHEMAS: Final = {
    crd["spec"]["names"]["kind"]: crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    for crd in CRDS
}
WRITTEN: Final = yaml.safe_load((ROOT / "tests" / "unit" / "resources.yaml").read_text())
OF_WRONG_TYPE: Final = {"object": "a text", "array": {}, "string": 7, "integer": "1", "boolean": "true", "": []}
LONG_DURATION: Final = "99999d99999h99999m99999s"
Value = Any  # JSON has no narrower type
Json = dict[str, Value]
Path = tuple[str | int, ...]
Answer = tuple[int, Json]  # the status and the body


@dataclass(frozen=True, slots=True)
class Case:
    """A resource, perhaps with its spec before a change, and where the API server must refuse it, "" if nowhere."""

    why: str
    kind: str
    spec: Value
    refused: str = ""
    says: str = ""  # a part of the refusal, so that it is this rule that refuses and not another at the same place
    name: str = "memory"
    old: Value = None

    @property
    def body(self) -> Json:
        """The resource to send."""
        return resource(self.kind, self.spec, self.name)

    @property
    def before(self) -> Json:
        """The resource before the change."""
        return resource(self.kind, self.old, self.name)


def resource(kind: str, spec: Value, name: str) -> Json:
    """A whole resource."""
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


def is_taken_by_contract(case: Case) -> bool:
    """Whether spec.py, the other door, takes the resource."""
    try:
        SPECS[case.kind].from_resource(case.body)
    except BadSpec:
        return False
    return True


# ------------------------------------------------------------------------------------------------ on the API server


def folder(kind: str, namespace: str) -> str:
    """The path of a namespace's objects of a kind."""
    return f"/apis/{API_VERSION}/namespaces/{namespace}/{PLURAL[kind]}"


def refusals(answer: Json) -> dict[str, str]:
    """Every path that the API server names, with what it says there."""
    found: dict[str, str] = {}
    for cause in answer.get("details", {}).get("causes", ()):
        found[cause["field"]] = f"{found.get(cause['field'], '')} {cause['message']}"
    strangers: list[str] = re.findall(r'unknown field "([^"]*)"', answer.get("message", ""))
    return found | dict.fromkeys(strangers, "unknown field")


def is_same_place(refused_at: str, expected: str) -> bool:
    """Whether one is the other or a member of it; `spec` as a whole is no place, unless it is the one expected."""
    longer, shorter = sorted((refused_at, expected), key=len, reverse=True)
    return longer == shorter or (shorter != "spec" and longer.startswith((f"{shorter}.", f"{shorter}[")))


# ------------------------------------------------------------------------------------------------------ written by hand


def written() -> Iterator[Case]:
    """The good and the bad of resources.yaml, and the settings that Engram owns."""
    for case in WRITTEN["good"]:
        yield _case(case, case["why"])
    for case in WRITTEN["bad"]:
        if "only_spec" not in case:
            told = {name: case[name] for name in ("metadata", "old", "spec") if name in case}
            yield _case(case, f"{case['refused']} of {json.dumps(told)}")
    for name in (*OWNED_PARAMETERS, *(f"{prefix}x" for prefix in OWNED_PREFIXES)):
        spec = {"postgres": {"parameters": {name: "1"}}}
        yield Case(
            f"{CLUSTER_KIND} {name} is Engram's", CLUSTER_KIND, spec, "spec.postgres.parameters", "owned by Engram"
        )


def _case(case: Json, why: str) -> Case:
    kind, name = case["kind"], case.get("metadata", {}).get("name", "memory")
    old = _whole(kind, case["old"]) if "old" in case else None
    return Case(f"{kind} {why}", kind, _whole(kind, case["spec"]), case.get("refused", ""), name=name, old=old)


def _whole(kind: str, spec: Value) -> Value:
    """The spec as resources.yaml means it: a tenant without clusterRef gets one."""
    is_short = kind == TENANT_KIND and isinstance(spec, dict)
    return {"clusterRef": {"name": "memory"}} | spec if is_short else spec


# ----------------------------------------------------------------------------------------------- made from the schemas


@dataclass(frozen=True, slots=True)
class Place:
    """A property within a good object that has it."""

    kind: str
    path: Path
    schema: Json
    is_required: bool
    good: Json

    @property
    def text(self) -> str:
        """The path as the API server writes it."""
        return joined("spec", self.path)

    @property
    def value(self) -> Value:
        """What the good object has here."""
        found: Value = self.good
        for step in self.path:
            found = found[step]
        return found

    def refused(self, why: str, value: Value, says: str, *below: str | int) -> Case:
        """The object with this value here, which must be refused here, or at a member below."""
        return Case(f"{self.kind} {self.text} {why}", self.kind, self._with(value), joined(self.text, below), says)

    def taken(self, why: str, value: Value) -> Case:
        """The object with this value here."""
        return Case(f"{self.kind} {self.text} {why}", self.kind, self._with(value))

    def without(self, says: str = "") -> Case:
        """The object without this property."""
        spec, parent = self._copied()
        del parent[self.path[-1]]
        return Case(f"{self.kind} {self.text} is absent", self.kind, spec, self.text if says else "", says)

    def _with(self, value: Value) -> Json:
        spec, parent = self._copied()
        parent[self.path[-1]] = value
        return spec

    def _copied(self) -> tuple[Json, Value]:
        spec = copy.deepcopy(self.good)
        parent: Value = spec
        for step in self.path[:-1]:
            parent = parent[step]
        return spec, parent


def joined(path: str, steps: Path) -> str:
    """A path as the API server writes it: spec.shardOverrides[0].id."""
    return path + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)


def places() -> Iterator[Place]:
    """Every property and every kind of item below spec; raises LookupError if no good object has it."""
    for kind, schema in SCHEMAS.items():
        yield from _places(kind, schema, ())


def _places(kind: str, schema: Json, path: Path) -> Iterator[Place]:
    parts = [(name, part, name in schema.get("required", ())) for name, part in schema.get("properties", {}).items()]
    inside: list[tuple[str | int, Json, bool]] = [*parts]
    if "items" in schema:
        inside.append((0, schema["items"], False))
    for step, part, is_required in inside:
        here = (*path, step)
        yield Place(kind, here, part, is_required, _good_with(kind, here))
        yield from _places(kind, part, here)


def _good_with(kind: str, path: Path) -> Json:
    for case in WRITTEN["good"]:
        spec = _whole(kind, case["spec"])
        if case["kind"] == kind and "old" not in case and _has(spec, path):
            needed = {name: spec[name] for name in ("shards", "provider", "clusterRef") if name in spec}
            return needed | {str(path[0]): spec[path[0]]}
    raise LookupError(f"resources.yaml has no good {kind} with {joined('spec', path)}")


def _has(value: Value, path: Path) -> bool:
    for step in path:
        if isinstance(step, int):
            if not (isinstance(value, list) and len(value) > step):
                return False
        elif not (isinstance(value, dict) and value.get(step) is not None):
            return False
        value = value[step]
    return True


def refused() -> Iterator[Case]:
    """For every property, an object for each thing that its schema forbids."""
    for place in places():
        yield place.refused("of a wrong type", OF_WRONG_TYPE[place.schema.get("type", "")], "must be of type")
        yield from _out_of_bounds(place)
        yield from _bad_texts(place)
        yield from _bad_lists(place)
        if place.is_required:
            yield place.without("Required value")
        if "properties" in place.schema:
            yield place.refused("with a stranger", place.value | {"stranger": 1}, "unknown field", "stranger")


def _out_of_bounds(place: Place) -> Iterator[Case]:
    schema = place.schema
    if "minimum" in schema:
        yield place.refused("below its minimum", schema["minimum"] - 1, "greater than or equal to")
    if "maximum" in schema:
        yield place.refused("above its maximum", schema["maximum"] + 1, "less than or equal to")
    if "enum" in schema:
        word = schema["enum"][0]
        yield place.refused("no word of its", word.lower() if isinstance(word, str) else 0, "Unsupported value")


def _bad_texts(place: Place) -> Iterator[Case]:
    schema = place.schema
    if schema.get("minLength"):
        yield place.refused("too short", "a" * (schema["minLength"] - 1), "should be at least")
    if "maxLength" in schema:
        yield place.refused("too long", _text(schema, schema["maxLength"] + 1) or "a" * 9999, "may not be more than")
    if "pattern" in schema:
        yield place.refused("against its pattern", "\t" * max(1, schema.get("minLength", 0)), "should match")


def _bad_lists(place: Place) -> Iterator[Case]:
    schema = place.schema
    if schema.get("type") == "array":
        items = place.value
        many = [items[0]] * (schema["maxItems"] + 1)
        yield place.refused("of too many items", many, "must have at most")
        if schema["x-kubernetes-list-type"] != "atomic":
            yield place.refused("with an item twice", [*items, items[0]], "Duplicate value", len(items))
    if "maxProperties" in schema:
        many_names = {f"a{number}": "1" for number in range(schema["maxProperties"] + 1)}
        yield place.refused("of too many names", many_names, "must have at most")


def taken() -> Iterator[Case]:
    """For every property, an object for each edge of what its schema takes, but where another rule refuses it."""
    yield from filter(is_taken_by_contract, _on_the_edges())


def _on_the_edges() -> Iterator[Case]:
    for place in places():
        schema = place.schema
        for name in ("minimum", "maximum", "default"):
            if name in schema:
                yield place.taken(f"at its {name}", schema[name])
        for word in schema.get("enum", ()):
            yield place.taken(f"{word}", word)
        for name in ("minLength", "maxLength"):
            text = _text(schema, schema[name]) if name in schema else None
            if text is not None:
                yield place.taken(f"at its {name}", text)
        if not place.is_required and not isinstance(place.path[-1], int):
            yield place.without()
            yield place.taken("null", None)
        if schema.get("type") in ("array", "object"):
            yield place.taken("empty", [] if schema["type"] == "array" else {})


def _text(schema: Json, length: int) -> str | None:
    """A text of this length that the pattern takes, if one of the usual ones does."""
    starts = ("", "https://", "redis://")
    usual = (*(start + "a" * (length - len(start)) for start in starts), LONG_DURATION, "0s", "1" * length)
    pattern = schema.get("pattern", ".*")
    return next((text for text in usual if len(text) == length and re.fullmatch(pattern, text)), None)
