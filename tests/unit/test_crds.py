"""The CRDs and the dataclasses are one schema in two places: held equal here, member by member.

That both also judge alike, rules included, is tried by test_crd_verdicts.py.
"""

import re
from collections.abc import Iterator
from dataclasses import MISSING, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from engram_contract.kinds import Bytes, Cpu, Duration, Items, OneOf, Pairs, Schedule, Text, Whole
from engram_contract.names import CLUSTER_KIND, GROUP, TENANT_KIND, VERSION
from engram_contract.parse import RESOURCE, Choice, Flag, Kind, Member, Section, members_of
from engram_contract.spec import ClusterSpec, TenantSpec

ROOT = Path(__file__).resolve().parent.parent.parent
CRDS = {crd["spec"]["names"]["kind"]: crd for crd in (yaml.safe_load(p.read_text()) for p in ROOT.glob("crds/*.yaml"))}
SCHEMAS = {kind: crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"] for kind, crd in CRDS.items()}
SPECS = {CLUSTER_KIND: ClusterSpec, TENANT_KIND: TenantSpec}
FROM_METADATA = {"namespace", "name"}
Json = dict[str, Any]


def expected(kind: Kind) -> Json:  # noqa: C901  one case for each kind
    """What the schema of a member of this kind must hold."""
    found: Json = {}
    match kind:
        case Flag():
            found = {"type": "boolean"}
        case Choice(enum):
            found = {"type": "string", "enum": [word.value for word in enum]}
        case Whole(low, high):
            found = {"type": "integer", "minimum": low, "maximum": high}
        case OneOf(numbers):
            found = {"type": "integer", "enum": list(numbers)}
        case Text(max_chars, pattern):
            found = {"type": "string", "maxLength": max_chars} | ({"pattern": pattern} if pattern else {})
        case Bytes() | Cpu():
            found = {"anyOf": [{"type": "integer"}, {"type": "string"}], "pattern": kind.pattern}
        case Duration() | Schedule():
            found = {"type": "string", "pattern": kind.pattern}
        case Items():
            list_type = "atomic" if kind.key is None else "map" if kind.key else "set"
            found = {"type": "array", "maxItems": kind.max_items, "x-kubernetes-list-type": list_type}
            found |= {"x-kubernetes-list-map-keys": [kind.key]} if kind.key else {}
        case Pairs():
            found = {"type": "object", "maxProperties": kind.max_items}
        case Section():
            found = {"type": "object"}
    return found


def pairs_of(cls: type, schema: Json, path: str) -> Iterator[tuple[str, Member, Json]]:
    """Every member of the dataclass with its property, sections and items included; fails where one side has more."""
    own = [member for member in members_of(cls) if cls not in SPECS.values() or member.field not in FROM_METADATA]
    members = {member.name(RESOURCE): member for member in own}
    assert list(schema["properties"]) == list(members), path
    assert schema.get("required", []) == [name for name, m in members.items() if m.default is MISSING], path
    for name, member in members.items():
        part = schema["properties"][name]
        yield f"{path}.{name}", member, part
        kind = member.kind
        if isinstance(kind, Items):
            kind, part = kind.item, part["items"]
            assert expected(kind).items() <= part.items(), path
        if isinstance(kind, Section):
            yield from pairs_of(kind.cls, part, f"{path}.{name}")


PAIRS = [pair for kind, cls in SPECS.items() for pair in pairs_of(cls, SCHEMAS[kind]["properties"]["spec"], kind)]


@pytest.mark.parametrize(("member", "schema"), [pytest.param(m, s, id=path) for path, m, s in PAIRS])
def test_a_property_is_its_field(member: Member, schema: Json) -> None:
    assert expected(member.kind).items() <= schema.items()
    default = member.default
    if default is MISSING or default is None or default == ():
        assert "default" not in schema
    elif is_dataclass(default):
        assert schema["default"] == {}
    else:
        assert member.kind.read(schema["default"], RESOURCE) == default
        shown = str(schema["default"]).lower() if isinstance(default, bool) else str(schema["default"])
        assert re.search(rf'Default "?{re.escape(shown)}"?[,.]', schema["description"]), (
            "the description tells the default"
        )


def every_schema(schema: Json, path: str) -> Iterator[tuple[str, Json]]:
    yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from every_schema(part, f"{path}.{name}")
    for name in ("items", "additionalProperties"):
        if name in schema:
            yield from every_schema(schema[name], f"{path}.{name}")


EVERY = [pair for kind, schema in SCHEMAS.items() for pair in every_schema(schema, kind)]


@pytest.mark.parametrize(
    "schema", [pytest.param(schema, id=path) for path, schema in EVERY if not path.endswith(".metadata")]
)
def test_every_part_is_described_bounded_and_structural(schema: Json) -> None:
    assert schema["description"].endswith(".")
    assert "type" in schema or schema.get("x-kubernetes-int-or-string")
    assert "x-kubernetes-preserve-unknown-fields" not in schema
    assert all(rule["message"] for rule in schema.get("x-kubernetes-validations", ()))
    assert re.fullmatch(r"\^.*\$", schema.get("pattern", "^$")), "a pattern says the whole text"
    if schema.get("type") == "array":
        assert "maxItems" in schema
    if "additionalProperties" in schema:
        assert "maxProperties" in schema


@pytest.mark.parametrize(
    ("kind", "short", "columns"),
    [
        (CLUSTER_KIND, "mc", ["Shards", "Ready", "Phase", "Last Backup", "Age"]),
        (TENANT_KIND, "mt", ["Cluster", "Isolation", "Plan", "Ready", "Memories", "Age"]),
    ],
)
def test_kubectl_shows_the_kind_as_the_design_says(kind: str, short: str, columns: list[str]) -> None:
    spec = CRDS[kind]["spec"]
    (version,) = spec["versions"]
    assert CRDS[kind]["metadata"]["name"] == f"{spec['names']['plural']}.{GROUP}"
    assert (spec["group"], version["name"], version["subresources"]) == (GROUP, VERSION, {"status": {}})
    assert (spec["names"]["shortNames"], spec["names"]["categories"]) == ([short], ["memory"])
    assert [column["name"] for column in version["additionalPrinterColumns"] if "priority" not in column] == columns
