"""The chart's plain files against their sources: CRDs, version, metrics, runbooks, names. No Helm is needed here."""

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from engram_contract import names
from engram_operator.injection import IDENTITY, Sidecar, build_container
from engram_operator.tuning import Tuning

ROOT = Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "charts" / "engram"
TEMPLATES = {path.name: path.read_text() for path in sorted(CHART.glob("templates/*"))}
ALERTS = [
    rule for group in yaml.safe_load((CHART / "files/alerts.yaml").read_text())["groups"] for rule in group["rules"]
]
DASHBOARD: dict[str, Any] = json.loads((CHART / "files/dashboard.json").read_text())
RUNBOOKS = (ROOT / "docs" / "runbooks.md").read_text()
ALERT_TESTS = yaml.safe_load((ROOT / "tests" / "e2e" / "chart_alerts.yaml").read_text())["tests"]
ENDINGS = {"Counter": ("_total",), "Gauge": ("",), "Histogram": ("_bucket", "_sum", "_count")}
WORDS = {"by", "without", "on", "ignoring", "and", "or", "unless", "bool", "offset"}


def declared(path: Path) -> Iterator[str]:
    """The series of every metric that a source file makes."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ENDINGS:
            name = node.args[0]
            assert isinstance(name, ast.Constant), f"{path}: a metric's name must be written out"
            assert isinstance(name.value, str)
            yield from (f"{name.value}{ending}" for ending in ENDINGS[node.func.id])


def series_of(expr: str) -> set[str]:
    """The series that a PromQL expression reads."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]', " ", expr)
    bare = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)", " ", bare)
    found = re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*\b(?!\s*\()", bare)
    return set(found) - WORDS


SERIES = {
    name for room in ("operator", "sidecar") for path in ROOT.glob(f"{room}/**/*metrics.py") for name in declared(path)
}
PANELS = {panel["title"]: [each["expr"] for each in panel.get("targets", ())] for panel in DASHBOARD["panels"]}


def test_the_crds_are_copies_byte_by_byte() -> None:
    originals = {path.name: path.read_bytes() for path in ROOT.glob("crds/*")}
    assert {path.name: path.read_bytes() for path in CHART.glob("crds/*")} == originals, "cp crds/* charts/engram/crds/"


def test_the_chart_has_the_version_of_the_distribution() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (chart["version"], chart["appVersion"]) == (version, version)
    assert chart["kubeVersion"] == ">=1.30.0-0", "ValidatingAdmissionPolicy is stable and on from 1.30"


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: str(rule["alert"]))
def test_an_alert_reads_metrics_that_exist_and_says_what_to_do(rule: dict[str, Any]) -> None:
    name = rule["alert"]
    assert series_of(rule["expr"])
    assert series_of(rule["expr"]) <= SERIES
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert re.fullmatch(r"\d+[mh]", rule["for"])
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"https://{names.GROUP}/docs/runbooks#{name.lower()}"
    assert f"\n## {name}\n\n" in RUNBOOKS


def test_alerts_and_runbooks_are_the_same_list() -> None:
    alerts = [rule["alert"] for rule in ALERTS]
    assert len(alerts) == len(set(alerts)) >= 6
    assert re.findall(r"^## (\S+)$", RUNBOOKS, re.MULTILINE) == alerts


def test_every_alert_is_seen_to_fire_and_to_stay_silent() -> None:
    cases = [case for test in ALERT_TESTS for case in test["alert_rule_test"]]
    fires = {case["alertname"] for case in cases if case.get("exp_alerts")}
    silent = {case["alertname"] for case in cases if not case.get("exp_alerts")}
    assert fires == silent == {rule["alert"] for rule in ALERTS}


def test_every_panel_reads_metrics_that_exist() -> None:
    asked = {title: set[str]().union(*map(series_of, exprs)) for title, exprs in PANELS.items() if exprs}
    assert len(asked) >= 6
    assert {title: series - SERIES for title, series in asked.items() if not series or series - SERIES} == {}
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            assert re.findall(r"label_values\((\w+),", variable["query"]["query"])[0] in SERIES


def test_the_dashboard_shows_every_metric() -> None:
    shown = set[str]().union(*(series_of(expr) for exprs in PANELS.values() for expr in exprs))
    bare = partial(re.sub, r"_(bucket|sum|count)$", "")
    assert {*map(bare, SERIES)} == {*map(bare, shown)}


def test_panels_have_ids_and_places_of_their_own() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    taken = [(x, y) for panel in DASHBOARD["panels"] for x, y in cells(panel["gridPos"])]
    assert len(ids) == len(set(ids))
    assert len(taken) == len(set(taken)), "two panels overlap"


def cells(place: dict[str, int]) -> Iterator[tuple[int, int]]:
    """The cells of the dashboard's grid that a panel covers."""
    for x in range(place["x"], place["x"] + place["w"]):
        yield from ((x, y) for y in range(place["y"], place["y"] + place["h"]))


def test_the_templates_spell_the_contract() -> None:
    environment = {value for name, value in vars(names).items() if name.startswith("ENV_")}
    text = "\n".join(TEMPLATES.values())
    assert set(re.findall(r"- name: (ENGRAM_\w+)", text)) <= environment
    for label in (names.INJECT_LABEL, names.INJECTED_LABEL):
        assert f"{label}" in text
    for port in (names.CONTROL_ADMIN_PORT, names.WEBHOOK_PORT):
        assert f"containerPort: {port}}}" in text
    for path in (names.WEBHOOK_PATH, names.NAMESPACE_WEBHOOK_PATH):
        assert f'"path" "{path}")' in TEMPLATES["webhook.yaml"]
    assert f"port: {names.ADMIN_PORT_NAME}," in TEMPLATES["monitors.yaml"]
    for port in (names.POSTGRES_PORT, names.PATRONI_PORT, names.REDIS_PORT):
        assert f"{{port: {port}, protocol: TCP}}" in TEMPLATES["network-policies.yaml"]
    assert f"{names.MANAGED_BY_LABEL}: {names.MANAGED_BY}" in TEMPLATES["network-policies.yaml"]
    assert f'$label := "{names.PROTECTED_LABEL}"' in TEMPLATES["protection.yaml"]
    for plural in (names.CLUSTERS, names.TENANTS):
        assert f'"{plural}.{names.GROUP}"' in TEMPLATES["protection.yaml"]


def test_the_guard_knows_what_the_injector_makes() -> None:
    guard, helpers = TEMPLATES["tenant-guard.yaml"], TEMPLATES["_helpers.tpl"]
    assert f"startsWith('{names.tenant_objects('')}')" in helpers
    tuned = dict.fromkeys((names.HTTP_PORT_ANNOTATION, names.DRAIN_ANNOTATION), "8701")
    tuned |= {names.ADMIN_PORT_ANNOTATION: "8702", names.LOG_LEVEL_ANNOTATION: "debug", names.DRAIN_ANNOTATION: "1"}
    container = build_container(Sidecar("i", "Always", {}, "http://otlp:4318"), Tuning.from_annotations(tuned, {}))
    for each in container["env"]:
        assert f"'{each['name']}'" in guard
    for name, path in IDENTITY.items():
        assert f"'{name}': '{path}'" in guard or f"'{name}': \"{path}\"" in guard
    assert f"m.mountPath == '{names.CONFIG_DIR}'" in guard
    assert f"c.name == '{names.SIDECAR_CONTAINER}'" in guard
    assert f"labels[?'{names.AGENT_LABEL}']" in guard
    assert f'eq .name "{names.ENV_SIDECAR_IMAGE}"' in guard
    assert {*container} & {"args", "command", "envFrom", "lifecycle", "stdin", "tty", "workingDir"} == set()


@pytest.mark.parametrize("name", ["operator-rbac.yaml", "injector-rbac.yaml"])
def test_every_verb_has_its_reason(name: str) -> None:
    verbs = re.findall(r"^      - (\w+)(.*)$", TEMPLATES[name], re.MULTILINE)
    assert verbs
    assert [verb for verb, comment in verbs if not re.match(r"\s+# \w", comment)] == []
    assert '"*"' not in TEMPLATES[name]
    assert len(re.findall(r"verbs:$", TEMPLATES[name], re.MULTILINE)) == len(re.findall(r"verbs:", TEMPLATES[name]))


def test_neither_the_secret_nor_the_ca_is_the_charts() -> None:
    """Helm would empty on an upgrade what it had set itself."""
    bare = "\n".join(re.sub(r"#.*|\{\{/\*.*?\*/\}\}", "", text) for text in TEMPLATES.values())
    assert "caBundle" not in bare
    assert not re.search(r"^kind: Secret$", bare, re.MULTILINE)
