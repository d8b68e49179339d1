"""What the tests deploy: this checkout's images as the cluster at hand knows them, and one release of the chart."""

import http
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

from engram_contract.names import PROTECTED_LABEL
from engram_operator.clients import kube
from tests.cluster.layout import INSIDE_VARIABLE
from tests.e2e.cluster import CRDS, E2E_LABEL, Cluster
from tests.e2e.stage import ROOT

CHART: Final = ROOT / "charts" / "engram"
REGISTRY: Final = os.environ.get("ENGRAM_E2E_REGISTRY") or "localhost"
TAG: Final = os.environ.get("ENGRAM_E2E_TAG") or "test"
IMAGES: Final = {
    part: {"repository": f"{REGISTRY}/engram-{part}", "tag": TAG} for part in ("operator", "sidecar", "postgres")
}
VALUES: Final = {
    "images": IMAGES,
    "imagePullPolicy": "IfNotPresent",
    "tenants": {"fileGraceSeconds": 45},  # the tests nudge the kubelet, which brings a Secret at once then
}
NAMESPACE: Final = "engram-system"
RELEASE: Final = "engram"
CRD_NAMES: Final = [crd["metadata"]["name"] for crd in CRDS]
POLICIES: Final = "validatingadmissionpolicybindings,validatingadmissionpolicies"
HELM_WAIT_S: Final = 300.0
RESTRICTED: Final = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}


def image(part: str) -> str:
    """The whole name of one of our images, the chart's or another."""
    return f"{REGISTRY}/engram-{part}:{TAG}"


@cache
def need_image(part: str) -> str:
    """The whole name of an image that only some tests need (postgres-wheel, redis); our test cluster gets it now."""
    if INSIDE_VARIABLE in os.environ:
        subprocess.run([sys.executable, "-m", "tests.cluster", "images", part], check=True, cwd=ROOT)
    return image(part)


def install(cluster: Cluster, **more: Any) -> str:  # noqa: ANN401  values of any shape
    """What Helm says after the release is installed or upgraded, and ready."""
    command = ("upgrade", "--install", RELEASE, str(CHART), "--namespace", NAMESPACE)
    wait = ("--wait", "--timeout", f"{HELM_WAIT_S:.0f}s", "--values", "-")
    return cluster.helm(*command, *wait, input=json.dumps(VALUES | more), deadline_s=HELM_WAIT_S + 30)


@contextmanager
def released(cluster: Cluster) -> Iterator[str]:
    """What Helm says of a release on a cluster that had nothing of ours, in a namespace for `restricted` pods only."""
    remove(cluster)
    labels = {E2E_LABEL: "true", **RESTRICTED}
    status, body = cluster.request("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE, "labels": labels}})
    assert status == http.HTTPStatus.CREATED, body
    try:
        yield install(cluster)
    finally:
        remove(cluster)


def remove(cluster: Cluster) -> None:
    """Nothing of the release is left, its CRDs included, whatever was there."""
    cluster.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--ignore-not-found", "--wait", "--timeout", "120s")
    # Of a run that was killed, Helm may know nothing any more, and a policy that is gone refuses for a moment yet.
    cluster.kubectl("delete", POLICIES, "-l", "app.kubernetes.io/part-of=engram", "--ignore-not-found")
    cluster.delete_namespaces(NAMESPACE, is_forced=True)
    for name in CRD_NAMES:
        path = kube.CRDS.path(None, name)
        cluster.request("PATCH", path, {"metadata": {"labels": {PROTECTED_LABEL: "false"}}})
    cluster.kubectl("delete", "crd", "--ignore-not-found", "--wait", *CRD_NAMES)
