"""The chart as Helm renders it: the cases of chart_values.yaml, and the objects that come of one."""

import json
import shutil
import subprocess
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.e2e.releases import CHART

MONITORING_API: Final = "monitoring.coreos.com/v1"
KUBE_VERSION: Final = "1.30.0"  # the oldest that the chart allows
POLICY_KINDS: Final = {"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
CLUSTER_KINDS: Final = {"ClusterRole", "ClusterRoleBinding", "MutatingWebhookConfiguration"} | POLICY_KINDS
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One way to install the chart."""

    why: str
    values: Json = field(default_factory=dict)
    release: str = "engram"
    namespace: str = "engram-system"
    monitored: bool = False
    kinds: Json = field(default_factory=dict)


CASES: Final = [Case(**each) for each in yaml.safe_load(Path(__file__).with_name("chart_values.yaml").read_text())]


def helm(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """A run of Helm without a cluster; the test is left out, and says so, where there is no Helm."""
    program = shutil.which("helm")
    if program is None:
        pytest.skip("helm is not on the PATH: the chart was not rendered")
    return subprocess.run([program, *arguments], input=text, capture_output=True, text=True, check=False, timeout=60)


@cache
def _render(release: str, namespace: str, values: str, is_monitored: bool) -> str:
    apis = ["--api-versions", MONITORING_API] if is_monitored else []
    command = ("template", release, str(CHART), "--namespace", namespace, "--kube-version", KUBE_VERSION, *apis)
    done = helm(*command, "--values", "-", text=values)
    assert done.returncode == 0, done.stderr
    return done.stdout


def render(case: Case, **values: object) -> list[Json]:
    """The objects of a case, without the CRDs; `values` go over its own."""
    text = _render(case.release, case.namespace, json.dumps(case.values | values), case.monitored)
    return [each for each in yaml.safe_load_all(text) if each]


def kind_of(objects: list[Json], kind: str) -> list[Json]:
    """The objects of a kind."""
    return [each for each in objects if each["kind"] == kind]


def deployment(objects: list[Json], component: str) -> Json:
    """The Deployment of a component."""
    (found,) = [each for each in kind_of(objects, "Deployment") if each["metadata"]["name"].endswith(f"-{component}")]
    return found


def pod(objects: list[Json], component: str) -> Json:
    """The spec of a component's pods."""
    return dict(deployment(objects, component)["spec"]["template"]["spec"])


def environment(spec: Json) -> Json:
    """The environment of a pod's first container: text, or where it comes from."""
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in spec["containers"][0]["env"]}
