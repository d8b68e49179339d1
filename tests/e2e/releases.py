"""What the tests deploy: this checkout's images as the cluster at hand knows them, and one release of the chart."""

import json
import os
from typing import Any, Final

from tests.e2e.cluster import CRDS, Cluster
from tests.e2e.stage import ROOT

CHART: Final = ROOT / "charts" / "engram"
REGISTRY: Final = os.environ.get("ENGRAM_E2E_REGISTRY") or "localhost"
TAG: Final = os.environ.get("ENGRAM_E2E_TAG") or "test"
IMAGES: Final = {
    part: {"repository": f"{REGISTRY}/engram-{part}", "tag": TAG} for part in ("operator", "sidecar", "postgres")
}
VALUES: Final = {"images": IMAGES, "imagePullPolicy": "IfNotPresent"}
NAMESPACE: Final = "engram-system"
RELEASE: Final = "engram"
CRD_NAMES: Final = [crd["metadata"]["name"] for crd in CRDS]
HELM_WAIT_S: Final = 300.0
RESTRICTED: Final = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}


def image(part: str) -> str:
    """The whole name of one of our images."""
    return f"{IMAGES[part]['repository']}:{IMAGES[part]['tag']}"


def install(cluster: Cluster, **more: Any) -> str:  # noqa: ANN401  values of any shape
    """What Helm says after the release is installed or upgraded, and ready."""
    command = ("upgrade", "--install", RELEASE, str(CHART), "--namespace", NAMESPACE)
    wait = ("--wait", "--timeout", f"{HELM_WAIT_S:.0f}s", "--values", "-")
    return cluster.helm(*command, *wait, input=json.dumps(VALUES | more), deadline_s=HELM_WAIT_S + 30)


def remove(cluster: Cluster) -> None:
    """Nothing of the release is left, its CRDs included, whatever was there."""
    cluster.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--ignore-not-found", "--wait", "--timeout", "120s")
    cluster.delete_namespaces(NAMESPACE, is_forced=True)
    cluster.kubectl("delete", "crd", "--ignore-not-found", "--wait", *CRD_NAMES)
