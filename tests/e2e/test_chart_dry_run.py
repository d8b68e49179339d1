"""What a real API server would do with everything that the chart renders, over the matrix of chart_values.yaml.

The Prometheus operator's kinds are stand-ins with the fields that the chart uses, held strictly.
"""

import http
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
import yaml

from tests.e2e.chart import CASES, MONITORING_API, Case, Json, deployment, kind_of, render
from tests.e2e.cluster import Cluster, CommandFailed
from tests.e2e.releases import CHART, RESTRICTED

STAND_INS: Final = Path(__file__).with_name("chart_monitoring_crds.yaml")


@pytest.fixture(scope="module")
def place(cluster: Cluster) -> Iterator[str]:
    """A namespace that lets in `restricted` pods only, while the stand-ins of the Prometheus operator are there."""
    stand_ins = STAND_INS.read_text()
    cluster.kubectl("apply", "--server-side", "-f", "-", input=stand_ins)
    try:
        names = [each["metadata"]["name"] for each in yaml.safe_load_all(stand_ins)]
        cluster.kubectl("wait", "--for=condition=Established", "--timeout=60s", *(f"crd/{name}" for name in names))
        with cluster.namespace("chart") as namespace:
            cluster.kubectl("label", "namespace", namespace, *(f"{key}={value}" for key, value in RESTRICTED.items()))
            yield namespace
    finally:
        cluster.kubectl("delete", "--ignore-not-found", "-f", "-", input=stand_ins)


def documents(objects: list[Json]) -> str:
    """The objects as kubectl reads them."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})


def dry_run(cluster: Cluster, objects: list[Json]) -> list[str]:
    """What the API server would do with the objects. Fails for an unknown field and for a warning as for an error."""
    strict = ("--dry-run=server", "--validate=strict", "--warnings-as-errors", "-o", "name")
    return cluster.kubectl("apply", "--server-side", *strict, "-f", "-", input=documents(objects)).split()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.why)
def test_the_api_server_takes_every_object(cluster: Cluster, place: str, case: Case) -> None:
    objects = render(replace(case, namespace=place))
    assert len(dry_run(cluster, objects)) == len(objects)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.why)
def test_the_pods_pass_pod_security_restricted(cluster: Cluster, place: str, case: Case) -> None:
    """Pod Security refuses pods, not Deployments, so the pods themselves are asked about. Their accounts must exist."""
    objects = render(replace(case, namespace=place))
    cluster.kubectl("apply", "--server-side", "-f", "-", input=documents(kind_of(objects, "ServiceAccount")))
    for each in kind_of(objects, "Deployment"):
        template = each["spec"]["template"]
        metadata = template["metadata"] | {"name": each["metadata"]["name"], "namespace": place}
        assert dry_run(cluster, [{"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}])


def test_the_dry_run_would_notice(cluster: Cluster, place: str) -> None:
    """The two tests above can fail: a field too much, and a pod that may become root."""
    (account,) = [one for one in kind_of(render(Case("", namespace=place)), "ServiceAccount") if "operator" in str(one)]
    with pytest.raises(CommandFailed, match="automount"):
        dry_run(cluster, [account | {"automount": True}])
    pod = deployment(render(Case("", namespace=place)), "operator")["spec"]["template"]["spec"]
    pod |= {"securityContext": {}, "serviceAccountName": "default"}
    account_path = f"/api/v1/namespaces/{place}/serviceaccounts/default"
    cluster.wait_until("the default account", lambda: cluster.request("GET", account_path)[0] == http.HTTPStatus.OK)
    metadata = {"name": "careless", "namespace": place}
    with pytest.raises(CommandFailed, match="PodSecurity"):
        dry_run(cluster, [{"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod}])


def test_helm_sees_by_itself_that_monitors_can_be_made(cluster: Cluster, place: str) -> None:
    """`auto` asks the API server; test_chart_on_cluster.py sees it find nothing."""
    arguments = ("upgrade", "--install", "probe", str(CHART), "--namespace", place, "--dry-run=server", "--skip-crds")
    shown = cluster.helm(*arguments)
    assert MONITORING_API in shown
    assert all(f"kind: {kind}\n" in shown for kind in ("ServiceMonitor", "PodMonitor", "PrometheusRule"))
