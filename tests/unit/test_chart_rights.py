"""The chart's rights are exactly what the two processes ask the API server for: no verb less, and none more.

What is asked for is read from the code: the calls of `Kube`, each with its resource, the list of what is watched, and
the rights that the operator grants to the shards, which it must have itself. A call whose resource is a variable is in
`unwritten`, with the kinds that get there; one that is not fails the test.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from engram_contract.names import API_VERSION, CLUSTERS, GROUP, TENANTS
from engram_operator import tenants
from engram_operator.clients import kube
from engram_operator.clients.kube import OWNED, Resource
from engram_operator.hearing import resource_of
from engram_operator.plan.cluster import PRUNED
from engram_operator.reconcile.execute import MANAGERS
from engram_operator.triggers import WATCHED

ROOT = Path(__file__).resolve().parent.parent.parent
CODE = ROOT / "operator" / "engram_operator"
TEMPLATES = ROOT / "charts" / "engram" / "templates"
OF_INJECTOR = {"injector.py", "tenants.py", "tls.py"}  # every other module that calls the API server is the operator's
Right = tuple[str, str, str]  # group, resource, verb

VERBS = {
    "fetch": {"get"},
    "find": {"get"},
    "fetch_some": {"list"},
    "fetch_labelled": {"list"},
    "fetch_all": {"list"},
    "fetch_metadata": {"list"},
    "create": {"create"},
    "replace": {"update"},
    "apply": {"patch", "create"},
    "apply_status": {"patch"},
    "patch": {"patch"},
    "delete": {"delete"},
    "evict": {"create"},
}
SUBRESOURCES = {"apply_status": "/status", "evict": "/eviction"}
RULE = ("apiGroups", "resources", "verbs")
# Objects that others make: an apply of one that is gone is refused, which is right.
NEVER_MADE = {"namespaces", "persistentvolumeclaims"}


@cache
def built() -> frozenset[str]:
    """The kinds of which a builder or a plan makes manifests: dicts that have a kind and metadata."""
    found = set[str]()
    for room in ("manifests", "plan"):
        for path in CODE.joinpath(room).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Dict):
                    members = {each.value: value for each, value in named(node)}
                    kind = members.get("kind")
                    if isinstance(kind, ast.Constant) and "metadata" in members:
                        found.add(str(kind.value))
    return frozenset(found)


def named(node: ast.Dict) -> Iterator[tuple[ast.Constant, ast.expr]]:
    """The members of a dict with a key that is written out."""
    for key, value in zip(node.keys, node.values, strict=True):
        if isinstance(key, ast.Constant):
            yield key, value


def of_kinds(kinds: Iterable[str]) -> set[Resource]:
    """The resources of these kinds."""
    return {kube.NAMESPACES if kind == "Namespace" else OWNED[kind] for kind in kinds}


def watched() -> set[Resource]:
    """What is watched, as the API's paths spell it."""
    return {resource_of(each) for each in WATCHED}


def unwritten() -> dict[tuple[str, str, str], set[Resource]]:
    """The calls whose resource is a variable, by module, method and text, with what gets there."""
    return {
        ("execute.py", "apply", "resource"): of_kinds(built()),
        ("execute.py", "find", "OWNED[kind]"): of_kinds(built() - {*MANAGERS}),
        ("observe.py", "fetch_labelled", "resource"): of_kinds(OWNED),
        ("tenant_steps.py", "apply", "OWNED[manifest['kind']]"): of_kinds({"ConfigMap", "Secret"}),
        ("writing.py", "apply", "OWNED[kind]"): of_kinds({*PRUNED, "Secret"}),
        ("writing.py", "delete", "OWNED[kind]"): of_kinds({*PRUNED, "Pod", "Secret"}),
        ("writing.py", "apply_status", "kind[0]"): {kube.MEMORY_CLUSTERS, kube.MEMORY_TENANTS},
        ("hearing.py", "fetch_metadata", "resource_of(self.watched)"): watched(),
    }


def calls(path: Path) -> Iterator[Right]:
    """What each `kube.verb(RESOURCE, ...)` of a module needs."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if re.search(r"\bkube$", ast.unparse(node.func.value).replace("_kube", "kube")):
            method = node.func.attr
            assert method in VERBS, f"{path.name}:{node.lineno}: what does kube.{method} need?"
            for resource in resources_of(path, method, node.args[0]):
                yield from rights_of(resource, method)


def resources_of(path: Path, method: str, argument: ast.expr) -> set[Resource]:
    """What a call is about, as its first argument says."""
    text = ast.unparse(argument)
    if isinstance(argument, ast.Name) and isinstance(getattr(kube, text, None), Resource):
        return {getattr(kube, text)}
    if member := re.fullmatch(r"OWNED\['(\w+)'\]", text):
        return {OWNED[member[1]]}
    key = (path.name, method, text)
    assert key in unwritten(), f"{key}: say in `unwritten` which resources get there"
    return unwritten()[key]


def rights_of(resource: Resource, method: str) -> Iterator[Right]:
    """The rights that a call of this method needs."""
    plural = resource.plural + SUBRESOURCES.get(method, "")
    for verb in VERBS[method] - ({"create"} if method == "apply" and plural in NEVER_MADE else set()):
        yield group_of(resource), plural, verb


def group_of(resource: Resource) -> str:
    """The API group; empty for the core."""
    return resource.prefix.split("/")[2] if resource.prefix.startswith("/apis/") else ""


def granted_to_shards() -> Iterator[Right]:
    """What the operator grants, and so must have itself: every rule that a builder spells."""
    for path in CODE.joinpath("manifests").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Dict):
                members = {key.value: value for key, value in named(node)}
                if "verbs" in members:
                    yield from rights_in({name: ast.literal_eval(members[name]) for name in RULE})


def rights_in(rule: dict[str, Any]) -> Iterator[Right]:
    """Every group with every resource with every verb: so does the API server read it."""
    for group in rule["apiGroups"]:
        for resource in rule["resources"]:
            yield from ((group, resource, verb) for verb in rule["verbs"])


def asked_by(component: str) -> set[Right]:
    """All that a component needs."""
    modules = [path for path in CODE.rglob("*.py") if (path.name in OF_INJECTOR) == (component == "injector")]
    asked = {right for path in modules for right in calls(path)}
    seen = watched() if component == "operator" else {resource_of(tenants.WATCHED)}
    asked |= {(group_of(each), each.plural, verb) for each in seen for verb in ("list", "watch")}
    return asked | (set(granted_to_shards()) if component == "operator" else set())


def rules(component: str) -> list[dict[str, Any]]:
    """The rules of a component's roles, with an x for what Helm fills in."""
    text = (TEMPLATES / f"{component}-rbac.yaml").read_text()
    lines = [re.sub(r"\{\{.*?\}\}", "x", line) for line in text.splitlines() if not re.match(r"\s*\{\{-", line)]
    roles = [each for each in yaml.safe_load_all("\n".join(lines)) if each and each["kind"].endswith("Role")]
    return [rule for role in roles for rule in role["rules"]]


def test_every_kind_that_is_made_is_watched_and_so_are_both_of_ours() -> None:
    ours = {Resource(f"/apis/{API_VERSION}", plural) for plural in (CLUSTERS, TENANTS)}
    assert watched() == ours | {*OWNED.values()}


def test_the_builders_make_what_the_operator_may_make() -> None:
    assert built() - {*MANAGERS} == {*PRUNED}, "whatever is made is also taken away when nobody asks for it any more"


@pytest.mark.parametrize("component", ["operator", "injector"])
def test_the_rights_are_what_the_code_asks_for(component: str) -> None:
    given = [right for rule in rules(component) for right in rights_in(rule)]
    assert sorted(given) == sorted(asked_by(component)), "no right is missing, none is too much, none stands twice"


@pytest.mark.parametrize("component", ["operator", "injector"])
def test_a_right_is_limited_to_a_name_wherever_it_can_be(component: str) -> None:
    ours = {"leases", "customresourcedefinitions", "deployments", "mutatingwebhookconfigurations"}
    limited = ours | ({"secrets"} if component == "injector" else set())  # the operator's are in every namespace
    for rule in rules(component):
        is_possible = bool(limited & {*rule["resources"]}) and rule["verbs"] != ["create"]  # which comes without a name
        assert ("resourceNames" in rule) == is_possible, rule
        assert not {"*"} & {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}


def test_the_operator_deletes_no_volume_and_writes_no_wish() -> None:
    given = {right for rule in rules("operator") for right in rights_in(rule)}
    assert {verb for _, resource, verb in given if resource == "persistentvolumeclaims"} == {"list", "watch", "patch"}
    wishes = {(resource, verb) for group, resource, verb in given if group == GROUP and "/" not in resource}
    read = {(resource, verb) for resource in (CLUSTERS, TENANTS) for verb in ("get", "list", "watch")}
    assert wishes == read | {(TENANTS, "patch")}
    # That is for the finalizer, which is no wish: the one patch of a tenant touches nothing else.
    writes = re.compile(r"\.(apply|create|delete|patch|replace)\(\s*MEMORY_TENANTS\b")
    writers = {path.name for path in CODE.rglob("*.py") if writes.search(path.read_text())}
    assert writers == {"erasure.py"}
