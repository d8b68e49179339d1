"""docs/reference/crds.md is the CRDs as a table: this file, run as a program, writes it; the test holds it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "reference" / "crds.md"
HEAD = """# Fields of MemoryCluster and MemoryTenant

Written from `crds/*.yaml` by `python tests/unit/test_crd_reference.py`. `kubectl explain mc.spec` says the same.
Durations are days, hours, minutes and seconds in this order (`30d`, `1d12h`, `0s`), amounts Kubernetes quantities
(`10Gi`, `500m`), schedules cron in UTC. `status` is written by the operator alone.
"""


def kind_of(schema: dict[str, Any]) -> str:
    """The type in a word or two."""
    if schema.get("x-kubernetes-int-or-string"):
        return "quantity"
    if "enum" in schema:
        return " \\| ".join(f"`{word}`" for word in schema["enum"])
    return f"list of {schema['items']['type']}" if schema["type"] == "array" else str(schema["type"])


def rows(schema: dict[str, Any], path: str) -> Iterator[str]:
    """A line of the table for every property below, sections before what they hold."""
    for name, part in schema.get("properties", {}).items():
        mark = " (required)" if name in schema.get("required", ()) else ""
        yield f"| `{path}{name}`{mark} | {kind_of(part)} | {part['description']} |"
        yield from rows(part, f"{path}{name}.")
        yield from rows(part.get("items", {}), f"{path}{name}[].")


def rules(schema: dict[str, Any], path: str) -> Iterator[str]:
    """A line for every rule, with the place that it speaks of."""
    for rule in schema.get("x-kubernetes-validations", ()):
        yield f"- `{path}`: {rule['message']}."
    for name, part in schema.get("properties", {}).items():
        yield from rules(part, f"{path}.{name}".lstrip("."))
    if "items" in schema:
        yield from rules(schema["items"], f"{path}[]")


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    for path in sorted(ROOT.glob("crds/*.yaml")):
        crd = yaml.safe_load(path.read_text())
        schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        lines += [f"## {crd['spec']['names']['kind']}\n", schema["description"] + "\n"]
        lines += ["| Field | Type | Meaning |", "| --- | --- | --- |"]
        lines += [*rows(schema["properties"]["spec"], "spec."), *rows(schema["properties"]["status"], "status.")]
        lines += ["\nRules\n", *rules(schema["properties"]["spec"], "spec"), ""]
    return "\n".join(lines)


def test_the_reference_is_what_the_crds_say() -> None:
    assert PAGE.read_text() == page(), "write it again: python tests/unit/test_crd_reference.py"


if __name__ == "__main__":
    PAGE.write_text(page())
