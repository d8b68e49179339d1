"""The chart's rights are exactly what the two processes ask the API server for: no verb less, and none more."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from engram_operator.clients import kube

ROOT = Path(__file__).resolve().parent.parent.parent
CODE = ROOT / "operator" / "engram_operator"
TEMPLATES = ROOT / "charts" / "engram" / "templates"
OF_INJECTOR = {"injector.py", "tls.py"}  # every other module that calls the API server is the operator's
VERBS = {
    "fetch": {"get"},
    "fetch_some": {"list"},
    "create": {"create"},
    "replace": {"update"},
    "apply": {"patch", "create"},
    "patch": {"patch"},
    "delete": {"delete"},
}
UNNAMED = {("leases", "create"), ("memorytenants", "get"), ("memorytenants", "list")}  # not limited to one name
Right = tuple[str, str]


def calls(path: Path) -> Iterator[Right]:
    """Resource and verb of each `kube.verb(RESOURCE, ...)` in a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in VERBS):
            continue
        if re.search(r"\bkube$", ast.unparse(node.func.value).replace("_kube", "kube")):
            resource = getattr(kube, ast.unparse(node.args[0]))
            yield from ((resource.plural, verb) for verb in VERBS[node.func.attr])


def rules(component: str) -> list[dict[str, Any]]:
    """The rules of a component's roles, with an x for what Helm fills in."""
    text = (TEMPLATES / f"{component}-rbac.yaml").read_text()
    lines = [re.sub(r"\{\{.*?\}\}", "x", line) for line in text.splitlines() if not re.match(r"\s*\{\{-", line)]
    roles = [each for each in yaml.safe_load_all("\n".join(lines)) if each and each["kind"].endswith("Role")]
    return [rule for role in roles for rule in role["rules"]]


@pytest.mark.parametrize("component", ["operator", "injector"])
def test_the_rights_are_what_the_code_asks_for(component: str) -> None:
    modules = [path for path in CODE.rglob("*.py") if (path.name in OF_INJECTOR) == (component == "injector")]
    asked = {right for path in modules for right in calls(path)}
    given = {(resource, verb) for rule in rules(component) for resource in rule["resources"] for verb in rule["verbs"]}
    assert asked
    assert given == asked


@pytest.mark.parametrize("component", ["operator", "injector"])
def test_a_right_is_limited_to_a_name_wherever_it_can_be(component: str) -> None:
    for rule in rules(component):
        rights = {(resource, verb) for resource in rule["resources"] for verb in rule["verbs"]}
        assert ("resourceNames" in rule) == (not rights & UNNAMED), rule
        assert not {"*"} & {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}
