"""The CRDs and spec.py judge every resource alike: what one door takes, so does the other, and both name one place.

The CRD's side is judged as an API server does it: nulls and defaults, unknown fields, OpenAPI schema, list types, then
the CEL rules (by the Rust interpreter behind `common-expression-language`, with Kubernetes' own functions given here).
What only a real API server shows, the cost of a rule among it, is for the tests on a cluster.
"""

import copy
import itertools
import os
import re
from collections.abc import Iterator
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import cel
import jsonschema
import pytest
import yaml

from engram_contract.names import API_VERSION, CLUSTER_KIND, TENANT_KIND
from engram_contract.spec import BadSpec, ClusterSpec, TenantSpec
from engram_contract.spec_parts import OWNED_PARAMETERS, OWNED_PREFIXES

ROOT = Path(__file__).resolve().parent.parent.parent
CRDS = [yaml.safe_load(path.read_text()) for path in sorted(ROOT.glob("crds/*.yaml"))]
SCHEMAS = {c["spec"]["names"]["kind"]: c["spec"]["versions"][0]["schema"]["openAPIV3Schema"] for c in CRDS}
SPECS: dict[str, type[ClusterSpec] | type[TenantSpec]] = {CLUSTER_KIND: ClusterSpec, TENANT_KIND: TenantSpec}
CASES = yaml.safe_load((Path(__file__).parent / "resources.yaml").read_text())
WHOLE = [case for case in CASES["good"] if case["why"].startswith("every field")]
EXAMPLES = [
    pytest.param(body, id=f"{path.name}-{body['kind']}-{body['metadata']['name']}")
    for path in sorted(ROOT.glob("examples/*.yaml"))
    for body in yaml.safe_load_all(path.read_text())
    if body["kind"] in SPECS
]
Value = Any  # JSON has no narrower type
Json = dict[str, Value]
FILLED: dict[int, Value] = {}
# Every value in every place is for the long form; else every other value in a place, and those between in the next.
STRIDE = 1 if os.environ.get("ENGRAM_SOAK") == "1" else 2


def resource(kind: str, spec: Value, metadata: Json | None = None) -> Json:
    if kind == TENANT_KIND and isinstance(spec, dict):
        spec = {"clusterRef": {"name": "memory"}} | spec
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata or {"name": "memory"}, "spec": spec}


# ----------------------------------------------------------------------------------------------- the API server's door


def defaulted(schema: Json, value: Value) -> Value:
    """The value as the API server stores it: nulls dropped, then defaults set, from the outside in."""
    if isinstance(value, list) and "items" in schema:
        return [defaulted(schema["items"], item) for item in value]
    if not isinstance(value, dict):
        return value
    inside = schema.get("properties", {})
    is_known = inside.__contains__ if inside else lambda _: True
    kept = {name: item for name, item in value.items() if item is not None or not is_known(name)}
    absent = {name: filled(part) for name, part in inside.items() if "default" in part and name not in kept}
    return absent | {name: defaulted(inside.get(name, {}), item) for name, item in kept.items()}


def filled(part: Json) -> Value:
    """The default of a property with the defaults inside it; the same value each time, for nobody changes it."""
    if id(part) not in FILLED:
        FILLED[id(part)] = defaulted(part, part["default"])
    return FILLED[id(part)]


def refusals(schema: Json, value: Value, old: Value, path: str = "") -> Iterator[str]:
    """The paths at which unknown fields, list types or CEL rules refuse the value."""
    for rule in schema.get("x-kubernetes-validations", ()):
        if (old is not None or "oldSelf" not in rule["rule"]) and not holds(rule["rule"], value, old):
            yield path + rule.get("fieldPath", "")
    if isinstance(value, list):
        keys = schema.get("x-kubernetes-list-map-keys")
        names = [tuple(item.get(key) for key in keys) if keys else repr(item) for item in value]
        if schema["x-kubernetes-list-type"] != "atomic":
            yield from (f"{path}[{at}]" for at, name in enumerate(names) if name in names[:at])
        for at, item in enumerate(value):
            yield from refusals(schema["items"], item, None, f"{path}[{at}]")  # no rule below a list looks at the old
    elif isinstance(value, dict) and "properties" in schema:
        for name, item in value.items():
            if name in schema["properties"]:
                before = old.get(name) if isinstance(old, dict) else None
                yield from refusals(schema["properties"][name], item, before, f"{path}.{name}".lstrip("."))
            elif path != "metadata":
                yield f"{path}.{name}"


def quantity(text: str) -> float:
    """Kubernetes' CEL function; the property's pattern has let only amounts through."""
    number, unit = re.fullmatch(r"(-?[0-9.]+)([A-Za-z]*)", text).groups()  # type: ignore[union-attr]
    powers = {"": Decimal(1), "m": Decimal("0.001")} | {unit: Decimal(1000**at) for at, unit in enumerate("kMGTP", 1)}
    powers |= {f"{unit}i": Decimal(1024**at) for at, unit in enumerate("KMGTP", 1)}
    return float(Decimal(number) * powers[unit])


@cache
def compiled(rule: str) -> cel.Program:
    return cel.compile(rule)


def holds(rule: str, value: Value, old: Value) -> bool:
    context = cel.Context(variables={"self": value, "oldSelf": old})
    context.add_function("quantity", quantity)
    context.add_function("compareTo", lambda left, right: (left > right) - (left < right))
    context.add_function("substring", lambda text, start: text[start:])
    return compiled(rule).execute(context) is True


def whole_match(_validator: Value, pattern: str, value: Value, _schema: Json) -> Iterator[jsonschema.ValidationError]:
    """A pattern as Go reads it: `$` is the end of the text, also before a newline."""
    if isinstance(value, str) and re.fullmatch(pattern, value) is None:
        yield jsonschema.ValidationError(f"{value!r} does not match")


def remembered(judge: Value, properties: Json, value: Value, _schema: Json) -> Iterator[jsonschema.ValidationError]:
    """Each member by its schema, unless the very same was sound before: most of a resource is alike in every case."""
    for name in [name for name in properties if name in value] if isinstance(value, dict) else ():
        seen = (id(properties[name]), repr(value[name]))
        if seen not in SOUND:
            errors = list(judge.descend(value[name], properties[name], path=name, schema_path=name))
            yield from errors
            SOUND.update([] if errors else [seen])


SOUND: set[tuple[int, str]] = set()
KEYWORDS = {"pattern": whole_match, "properties": remembered}
extend = jsonschema.validators.extend
OPENAPI = extend(jsonschema.Draft202012Validator, KEYWORDS)  # type: ignore[no-untyped-call]
JUDGES = {kind: OPENAPI(schema) for kind, schema in SCHEMAS.items()}


def refused_by_crd(kind: str, body: Json, old: Json | None = None) -> Iterator[str]:
    """Where the CRD refuses this resource; nothing if it takes it. Who asks only whether need not find every place."""
    schema, stored = SCHEMAS[kind], defaulted(SCHEMAS[kind], body)
    is_sound = True
    for error in JUDGES[kind].iter_errors(stored):
        is_sound = False
        yield error.json_path.removeprefix("$.").replace("$", "")
    if is_sound:
        yield from refusals(schema, stored, defaulted(schema, old) if old else None)


def refused_by_spec(kind: str, body: Json, old: Json | None = None) -> list[str]:
    """Where spec.py refuses this resource; empty if it takes it."""
    try:
        new = SPECS[kind].from_resource(body)
        if old is not None:
            new.check_change(SPECS[kind].from_resource(old))  # type: ignore[arg-type]  # the same kind on both sides
    except BadSpec as bad:
        return [bad.path]
    return []


# --------------------------------------------------------------------------------------------------------- the verdicts


@pytest.mark.parametrize("case", CASES["good"], ids=lambda case: case["why"])
def test_both_doors_take_a_good_resource(case: Json) -> None:
    body = resource(case["kind"], case["spec"], case.get("metadata"))
    old = resource(case["kind"], case["old"]) if "old" in case else None
    assert refused_by_spec(case["kind"], body, old) == []
    assert list(refused_by_crd(case["kind"], body, old)) == []


@pytest.mark.parametrize("case", CASES["bad"], ids=lambda case: f"{case['refused']}-{case['spec']}"[:100])
def test_both_doors_refuse_a_bad_resource_at_the_same_place(case: Json) -> None:
    body = resource(case["kind"], case["spec"], case.get("metadata"))
    old = resource(case["kind"], case["old"]) if "old" in case else None
    assert refused_by_spec(case["kind"], body, old) == [case["refused"]]
    by_crd = list(refused_by_crd(case["kind"], body, old))
    if "only_spec" in case:
        assert by_crd == []
    else:  # the CRD may name the parent of a member that is missing, or the member of a parent
        assert any(path.startswith(case["refused"]) or case["refused"].startswith(path) for path in by_crd), by_crd


@pytest.mark.parametrize("body", EXAMPLES)
def test_both_doors_take_the_examples(body: Json) -> None:
    assert refused_by_spec(body["kind"], body) == []
    assert list(refused_by_crd(body["kind"], body)) == []


def leaves(value: Value, path: tuple[Value, ...] = ()) -> Iterator[tuple[Value, ...]]:
    if path:
        yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in inside:
        yield from leaves(item, (*path, name))


@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case["kind"])
def test_both_doors_agree_on_any_value_in_any_place(case: Json) -> None:
    kind, whole = case["kind"], case["spec"]
    needed = {name: whole[name] for name in ("shards", "clusterRef") if name in whole}
    tried = 0
    hostile = itertools.chain(*CASES["hostile"])
    for (row, path), (column, value) in itertools.product(enumerate(leaves(whole)), enumerate(hostile)):
        if (row + column) % STRIDE:
            continue
        place = spec = copy.deepcopy(needed | {path[0]: whole[path[0]]})
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = value
        body = resource(kind, spec)
        is_refused = next(refused_by_crd(kind, body), None) is not None
        assert is_refused == bool(refused_by_spec(kind, body)), (path, value)
        tried += 1
    assert tried > 1000


@pytest.mark.parametrize("name", [*OWNED_PARAMETERS, *(f"{prefix}x" for prefix in OWNED_PREFIXES)])
def test_a_parameter_that_engram_owns_is_refused(name: str) -> None:
    body = resource(CLUSTER_KIND, {"postgres": {"parameters": {name: "1"}}})
    assert refused_by_spec(CLUSTER_KIND, body) == [f"spec.postgres.parameters.{name}"]
    assert list(refused_by_crd(CLUSTER_KIND, body)) == ["spec.postgres.parameters"]
