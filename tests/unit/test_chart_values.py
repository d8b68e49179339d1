"""Every value of the chart: described, in the schema, read by a template, and in docs/install.md.

Run as a program this file writes the table of docs/install.md; the test holds it.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "charts" / "engram"
PAGE = ROOT / "docs" / "install.md"
MARK = "<!-- values -->\n"
TEXT = (CHART / "values.yaml").read_text()
VALUES: dict[str, Any] = yaml.safe_load(TEXT)
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
# Read as a whole, under another name, by the helpers that both components share.
SHARED = {
    "priorityClassName",
    "nodeSelector",
    "tolerations",
    "affinity",
    "topologySpreadConstraints",
    "terminationGracePeriodSeconds",
}
DIGEST = "sha256:" + "a" * 64


@dataclass(frozen=True, slots=True)
class Value:
    """One value: where it is, what the comment above it says, and its default."""

    path: str
    text: str
    default: object


def at(path: str) -> Any:  # noqa: ANN401  whatever stands there
    """What values.yaml has at a dotted path."""
    found: Any = VALUES
    for name in path.split("."):
        found = found[name]
    return found


def described() -> Iterator[Value]:
    """Every key of values.yaml below a comment `# --`."""
    path: list[str] = []
    text = ""
    for line in TEXT.splitlines():
        if comment := re.fullmatch(r" *# -- (.*)", line):
            text = comment[1]
        elif key := re.match(r"( *)([A-Za-z]\w*):", line):
            path[len(key[1]) // 2 :] = [key[2]]
            if text:
                yield Value(".".join(path), text, at(".".join(path)))
            text = ""


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without its reference."""
    name = schema.get("$ref", "").rpartition("/")[2]
    return SCHEMA["definitions"][name] if name else schema


def leaves(schema: dict[str, Any], values: object, path: str) -> Iterator[str]:
    """The paths of all values: a section with named members is a way, not a value."""
    schema = resolved(schema)
    members = schema.get("properties", {})
    is_way = isinstance(values, dict) and set(values) and set(values) <= set(members) and not path.endswith("resources")
    if not is_way:
        yield path
        return
    assert isinstance(values, dict)
    for name, member in members.items():
        if name != "global":
            yield from leaves(member, values.get(name), f"{path}.{name}" if path else name)


def objects(schema: object) -> Iterator[dict[str, Any]]:
    """Every schema of an object within."""
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield schema
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            yield from objects(part)


def cell(default: object) -> str:
    """A default in a table."""
    return "`" + json.dumps(default).replace("|", "\\|") + "`"


def table() -> str:
    """The table of docs/install.md."""
    rows = (f"| `{value.path}` | {cell(value.default)} | {value.text} |" for value in described())
    return "\n".join(["| Value | Default | What it is |", "| --- | --- | --- |", *rows, ""])


def flaws(**changes: object) -> list[str]:
    """Where the schema refuses values.yaml with these changes at dotted paths (`__` for a dot)."""
    changed = json.loads(json.dumps(VALUES))
    for path, value in changes.items():
        *way, last = path.split("__")
        place = changed
        for name in way:
            place = place.setdefault(name, {})
        place[last] = value
    validator = jsonschema.Draft7Validator(SCHEMA)
    return [".".join(map(str, error.absolute_path)) for error in validator.iter_errors(changed)]


def test_every_value_is_described_and_in_the_schema_and_has_a_default() -> None:
    paths = [value.path for value in described()]
    assert paths == list(dict.fromkeys(paths))
    assert sorted(paths) == sorted(leaves(SCHEMA, VALUES, ""))


def test_every_value_is_read_by_a_template() -> None:
    text = "\n".join(path.read_text() for path in CHART.glob("templates/*"))
    unread = set()
    for value in described():
        section, _, name = value.path.rpartition(".")
        is_read = (
            f".Values.{value.path}" in text
            or (section.startswith("images.") and f".Values.{section}" in text)
            or (section in {"operator", "injector"} and name in SHARED and f".values.{name}" in text)
            or (section.startswith("monitoring.") and f'"name" "{section.split(".")[1]}"' in text)
        )
        unread |= set() if is_read else {value.path}
    assert unread == set()


def test_the_defaults_are_good_and_the_schema_is_a_schema() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert flaws() == []
    assert flaws(**{"global": {}}) == []


def test_no_object_takes_what_it_does_not_know() -> None:
    foreign = {"nodeAffinity", "podAffinity", "podAntiAffinity", "global"}  # Kubernetes judges these itself
    passed = [schema for schema in objects(SCHEMA) if schema.get("additionalProperties") in (None, True)]
    assert len(passed) == len(foreign)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("operators", {}),
        ("operator__replica", 2),
        ("operator__replicas", 0),
        ("operator__replicas", "2"),
        ("operator__resources", {"requests": {"cpu": "much"}}),
        ("operator__resources", {"requests": {"gpu": 1}}),
        ("operator__terminationGracePeriodSeconds", 1),
        ("operator__topologySpreadConstraints", [{"topologyKey": "zone"}]),
        ("operator__tolerations", [{"effect": "Never"}]),
        ("operator__affinity", {"node": {}}),
        ("injector__enabled", "yes"),
        ("injector__failurePolicy", "ignore"),
        ("injector__timeoutSeconds", 31),
        ("injector__namespaceSelector", {"matchLabel": {}}),
        ("injector__sidecar__resources", {}),
        ("injector__sidecar__resources", {"requests": {"cpu": 0}}),
        ("injector__sidecar__resources", {"requests": {"cpu": 0.0001}}),
        ("injector__sidecar__otlpEndpoint", "collector:4317"),
        ("injector__sidecar__otlpEndpoint", "http://user:secret@collector:4318"),
        ("images__operator__repository", "Not A Repository"),
        ("images__operator__repository", "registry/image:tag"),
        ("images__operator__tag", "a b"),
        ("images__sidecar__digest", "sha256:12"),
        ("images__redis__tag", 8),
        ("images__valkey", {"repository": "docker.io/valkey/valkey"}),
        ("imagePullPolicy", "Sometimes"),
        ("imagePullSecrets", ["name"]),
        ("nameOverride", "Upper"),
        ("fullnameOverride", "a" * 54),
        ("labels", {"app.kubernetes.io/instance": "mine"}),
        ("labels", {"a": 1}),
        ("labels", {"-a": "b"}),
        ("operator__nodeSelector", {"a": 1}),
        ("annotations", {"a": True}),
        ("annotations", {"a b": "c"}),
        ("networkPolicy__webhookFrom", ["10.0.0.1"]),
        ("networkPolicy__apiServer__ports", [0]),
        ("networkPolicy__apiServer__ports", [65536]),
        ("networkPolicy__apiServer__ports", []),
        ("networkPolicy__metricsFrom", [{}]),
        ("networkPolicy__dns__to", [{"ipBlock": {"cidr": "anywhere"}}]),
        ("networkPolicy__externalDatabases", {}),
        ("networkPolicy__externalDatabases", [{"to": []}]),
        ("networkPolicy__externalDatabases", [{"ports": [5432]}]),
        ("networkPolicy__externalDatabases", [{"to": [{}], "ports": [5432]}]),
        ("networkPolicy__externalDatabases", [{"to": [], "ports": ["postgres"]}]),
        ("deletionProtection__enabled", "true"),
        ("deletionProtection", False),
        ("monitoring__interval", "soon"),
        ("monitoring__serviceMonitor__enabled", "true"),
        ("monitoring__dashboards__enabled", "auto"),
    ],
)
def test_a_bad_value_is_refused_where_it_stands(path: str, value: object) -> None:
    found = flaws(**{path: value})
    way = path.replace("__", ".")
    known = way if way in {each.path for each in described()} else way.rpartition(".")[0]
    assert found
    assert all(place.startswith(known) for place in found)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("operator__resources", {}),
        (
            "operator__resources",
            {"requests": {"cpu": 1, "memory": 134217728}, "limits": {"cpu": "1.5", "memory": "1Gi"}},
        ),
        ("operator__nodeSelector", {"kubernetes.io/os": "linux"}),
        ("injector__sidecar__resources", {"requests": {"cpu": 0.5}}),
        ("injector__sidecar__otlpEndpoint", "https://collector.monitoring:4318/otlp"),
        ("networkPolicy__webhookFrom", [{"ipBlock": {"cidr": "10.0.0.1/32"}}]),
        ("images__operator__repository", "registry.example:5000/team/engram_operator"),
        ("images__operator__digest", DIGEST),
        ("injector__namespaceSelector", {"matchExpressions": [{"key": "stage", "operator": "In", "values": ["prod"]}]}),
        ("monitoring__serviceMonitor__enabled", True),
        ("networkPolicy__apiServer__to", [{"ipBlock": {"cidr": "10.0.0.1/32"}}]),
        ("fullnameOverride", "memory"),
        ("deletionProtection__enabled", False),
        ("networkPolicy__externalDatabases", [{"to": [{"ipBlock": {"cidr": "10.9.0.0/16"}}], "ports": [5432, 6543]}]),
    ],
)
def test_a_good_value_is_taken(path: str, value: object) -> None:
    assert flaws(**{path: value}) == []


def test_the_page_has_every_value() -> None:
    text = PAGE.read_text()
    assert text.partition(MARK)[2] == table(), "write it: python tests/unit/test_chart_values.py"


if __name__ == "__main__":
    PAGE.write_text(PAGE.read_text().partition(MARK)[0] + MARK + table())
