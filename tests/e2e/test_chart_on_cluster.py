"""The life of one release on a real cluster, from an empty one to uninstall and back.

The tests tell one story, top to bottom, on one installation, with the images of ENGRAM_E2E_REGISTRY and ENGRAM_E2E_TAG.
At the end nothing of it is left, CRDs included.
"""

import http
import json
import re
from functools import partial
from typing import Final

import yaml

from engram_contract.names import (
    API_VERSION,
    CLUSTER_KIND,
    CLUSTERS,
    CONTROL_ADMIN_PORT,
    INJECT_LABEL,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    PROTECTED_LABEL,
    SIDECAR_CONTAINER,
    TENANT_KIND,
    TENANTS,
)
from tests.e2e.chart import CLUSTER_KINDS, MONITORING_API, Json
from tests.e2e.cluster import Cluster, CommandFailed, holds
from tests.e2e.releases import CHART, CRD_NAMES, IMAGES, NAMESPACE, RELEASE, VALUES, install

WEBHOOK: Final = f"/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{RELEASE}-injector"
LEASE: Final = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/{RELEASE}-operator"
# One kind of each API by which a shard is made.
MADE_OF: Final = {
    "/api/v1": "services",
    "/apis/apps/v1": "statefulsets",
    "/apis/networking.k8s.io/v1": "networkpolicies",
    "/apis/policy/v1": "poddisruptionbudgets",
    "/apis/rbac.authorization.k8s.io/v1": "rolebindings",
}
SECRET: Final = f"/api/v1/namespaces/{NAMESPACE}/secrets/{RELEASE}-webhook-tls"


def has(cluster: Cluster, path: str) -> bool:
    """Whether there is an object at this path."""
    status, body = cluster.request("GET", path)
    assert status in (http.HTTPStatus.OK, http.HTTPStatus.NOT_FOUND), body
    return status == http.HTTPStatus.OK


def read(cluster: Cluster, path: str) -> Json:
    """The object at this path."""
    status, body = cluster.request("GET", path)
    assert status == http.HTTPStatus.OK, body
    return body


def ca_bundle(cluster: Cluster) -> str:
    """The CA that the API server checks the injector against; empty if none was published."""
    return str(read(cluster, WEBHOOK)["webhooks"][0]["clientConfig"].get("caBundle", ""))


def holder(cluster: Cluster) -> str:
    """The pod that holds the Lease; empty if none does."""
    return str(read(cluster, LEASE)["spec"].get("holderIdentity") or "").partition("_")[0]


def pods(cluster: Cluster, component: str) -> list[Json]:
    """The pods of a component that are not going."""
    path = f"/api/v1/namespaces/{NAMESPACE}/pods"
    status, found = cluster.request("GET", path, labelSelector=f"app.kubernetes.io/component={component}")
    assert status == http.HTTPStatus.OK, found
    return [each for each in found["items"] if "deletionTimestamp" not in each["metadata"]]


def agent(name: str, **annotations: str) -> Json:
    """A pod that asks for a memory and that no node will ever run."""
    security = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    image = f"{IMAGES['operator']['repository']}:{IMAGES['operator']['tag']}"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {INJECT_LABEL: "true"}, "annotations": annotations},
        "spec": {
            "nodeSelector": {"engram.dev/e2e": "no-such-node"},
            "containers": [{"name": "app", "image": image, "securityContext": security}],
        },
    }


def await_account(cluster: Cluster, namespace: str) -> None:
    """Pods can be made in the namespace."""
    account = f"/api/v1/namespaces/{namespace}/serviceaccounts/default"
    cluster.wait_until(f"the default account of {namespace}", lambda: has(cluster, account))


def create_pod(cluster: Cluster, namespace: str, pod: Json, *, is_tried: bool = False) -> Json:
    """The pod as the API server made it, or would make it."""
    await_account(cluster, namespace)
    query = {"dryRun": "All"} if is_tried else {}
    status, made = cluster.request("POST", f"/api/v1/namespaces/{namespace}/pods", pod, **query)
    assert status == http.HTTPStatus.CREATED, made
    return made


def warnings(cluster: Cluster, namespace: str, pod: Json) -> str:
    """What the API server warns of when the pod is made; empty if of nothing. Nothing is made."""
    await_account(cluster, namespace)
    try:
        command = ("create", "--namespace", namespace, "--dry-run=server", "--warnings-as-errors", "-f", "-")
        cluster.kubectl(*command, input=json.dumps(pod))
    except CommandFailed as failed:
        return str(failed)
    return ""


def test_helm_installs_everything_and_waits_until_it_is_ready(cluster: Cluster, release: str) -> None:
    for component in ("operator", "injector"):
        assert len([pod for pod in pods(cluster, component) if holds(pod, "Ready")]) == 2
    for name in CRD_NAMES:
        cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", f"crd/{name}")
    assert read(cluster, SECRET)["type"] == "kubernetes.io/tls"
    assert cluster.wait_until("the CA to be published", lambda: ca_bundle(cluster))
    leader = cluster.wait_until("a leader", lambda: holder(cluster))
    assert leader in {pod["metadata"]["name"] for pod in pods(cluster, "operator")}
    assert MONITORING_API not in cluster.helm("get", "manifest", RELEASE, "--namespace", NAMESPACE)


def test_the_notes_say_how_to_look_and_what_is_protected(cluster: Cluster, release: str) -> None:
    for command in re.findall(r"^  kubectl ((?:-n|get) .*)$", release, re.MULTILINE):
        cluster.kubectl(*command.split())
    assert "rollout status deployment/engram-injector" in release
    assert "kubectl patch mc NAME" in release, "how a protected cluster is opened"


def test_the_processes_have_every_right_that_they_need(cluster: Cluster, release: str) -> None:
    """Also those for a whole shard, of which the pods need not start for that."""
    with cluster.namespace("working") as namespace:
        folder = f"/apis/{API_VERSION}/namespaces/{namespace}"
        kinds = {CLUSTERS: (CLUSTER_KIND, {}), TENANTS: (TENANT_KIND, {"clusterRef": {"name": "memory"}})}
        for plural, (kind, spec) in kinds.items():
            body = {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": "memory"}, "spec": spec}
            status, answer = cluster.request("POST", f"{folder}/{plural}", body)
            assert status == http.HTTPStatus.CREATED, answer
        for api, plural in MADE_OF.items():
            path = f"{api}/namespaces/{namespace}/{plural}"
            cluster.wait_until(f"the operator to make {plural}", partial(made_by_operator, cluster, path))
        for plural in kinds:
            cluster.wait_until(f"{plural} to have a status", partial(status_of, cluster, f"{folder}/{plural}/memory"))
        assert read(cluster, f"/api/v1/namespaces/{namespace}")["metadata"]["labels"][PROTECTED_LABEL] == "true"
        assert_nothing_was_forbidden(cluster)


def made_by_operator(cluster: Cluster, path: str) -> list[Json]:
    """What of a collection the operator made."""
    status, found = cluster.request("GET", path, labelSelector=f"{MANAGED_BY_LABEL}={MANAGED_BY}")
    assert status == http.HTTPStatus.OK, found
    return list(found["items"])


def status_of(cluster: Cluster, path: str) -> Json:
    """What the operator says of an object; empty if nothing yet."""
    return dict(read(cluster, path).get("status", {}))


def assert_nothing_was_forbidden(cluster: Cluster) -> None:
    """By their own count, no process was refused for want of a right."""
    for component in ("operator", "injector"):
        for pod in pods(cluster, component):
            path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod['metadata']['name']}:{CONTROL_ADMIN_PORT}/proxy/metrics"
            status, text = cluster.fetch("GET", path)
            assert status == http.HTTPStatus.OK, text
            assert "engram_operator_api_requests_total{" in text
            assert not re.search(r'^engram_operator_api_requests_total\{.*code="403"', text, re.MULTILINE), text


def test_a_pod_without_a_tenant_is_admitted_as_it_is_and_told_why(cluster: Cluster, release: str) -> None:
    with cluster.namespace("untenanted") as namespace:
        refusal = f"namespace {namespace} has no MemoryTenant"
        cluster.wait_until("the injector to answer", lambda: refusal in warnings(cluster, namespace, agent("first")))
        made = create_pod(cluster, namespace, agent("lonely"))
        assert "initContainers" not in made["spec"]
        assert [each["name"] for each in made["spec"]["containers"]] == ["app"]


def test_a_pod_with_a_tenant_gets_the_sidecar_that_the_chart_names(cluster: Cluster, release: str) -> None:
    with cluster.namespace("tenanted") as namespace:
        tenant = {"metadata": {"name": "assistant"}, "spec": {"clusterRef": {"name": "memory"}}}
        path = f"/apis/engram.dev/v1alpha1/namespaces/{namespace}/memorytenants"
        body = {"apiVersion": "engram.dev/v1alpha1", "kind": "MemoryTenant", **tenant}
        status, answer = cluster.request("POST", path, body)
        assert status == http.HTTPStatus.CREATED, answer
        made = create_pod(cluster, namespace, agent("companion"), is_tried=True)
        (sidecar,) = [each for each in made["spec"]["initContainers"] if each["name"] == SIDECAR_CONTAINER]
        assert sidecar["image"] == f"{IMAGES['sidecar']['repository']}:{IMAGES['sidecar']['tag']}"
        assert sidecar["imagePullPolicy"] == VALUES["imagePullPolicy"]
        default = yaml.safe_load((CHART / "values.yaml").read_text())["injector"]["sidecar"]["resources"]
        assert sidecar["resources"] == default


def test_pods_beside_the_injector_are_not_asked_about(cluster: Cluster, release: str) -> None:
    assert warnings(cluster, NAMESPACE, agent("inside")) == ""


def test_an_upgrade_keeps_the_ca_and_ends_ready(cluster: Cluster, release: str) -> None:
    before = ca_bundle(cluster)
    uids = {pod["metadata"]["uid"] for pod in pods(cluster, "injector")}
    install(cluster, injector={"timeoutSeconds": 7, "podAnnotations": {"e2e": "upgraded"}}, labels={"e2e": "upgraded"})
    webhook = read(cluster, WEBHOOK)["webhooks"][0]
    assert webhook["timeoutSeconds"] == 7, "the entry with the CA was not touched, so this proves nothing"
    assert webhook["clientConfig"]["caBundle"] == before
    assert uids.isdisjoint(pod["metadata"]["uid"] for pod in pods(cluster, "injector"))
    with cluster.namespace("after-upgrade") as namespace:
        cluster.wait_until(
            "the injector to answer", lambda: "no MemoryTenant" in warnings(cluster, namespace, agent("a"))
        )


def test_the_lease_moves_when_its_holder_is_killed(cluster: Cluster, release: str) -> None:
    first = cluster.wait_until("a leader", lambda: holder(cluster))
    cluster.kubectl("delete", "pod", first, "--namespace", NAMESPACE, "--grace-period=0", "--force", "--wait=false")

    def other() -> str:
        now = holder(cluster)
        return now if now != first else ""

    second = cluster.wait_until("another leader", other, 60.0)
    assert second in {pod["metadata"]["name"] for pod in pods(cluster, "operator")}
    cluster.wait_until(
        "two operators", lambda: [holds(pod, "Ready") for pod in pods(cluster, "operator")] == [True, True]
    )


def test_uninstall_leaves_what_people_stored_and_a_new_installation_finds_it(cluster: Cluster, release: str) -> None:
    with cluster.namespace("kept") as namespace:
        folder = f"/apis/engram.dev/v1alpha1/namespaces/{namespace}/memoryclusters"
        body = {
            "apiVersion": "engram.dev/v1alpha1",
            "kind": "MemoryCluster",
            "metadata": {"name": "memory"},
            "spec": {},
        }
        status, made = cluster.request("POST", folder, body)
        assert status == http.HTTPStatus.CREATED, made
        ca = ca_bundle(cluster)
        cluster.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--wait", "--timeout", "120s")

        assert read(cluster, f"{folder}/memory")["metadata"]["uid"] == made["metadata"]["uid"]
        assert cluster.has_crds()
        assert has(cluster, SECRET)
        assert has(cluster, LEASE)
        assert not has(cluster, WEBHOOK)
        selector = ("-l", f"app.kubernetes.io/instance={RELEASE}", "-o", "name", "--namespace", NAMESPACE)
        kinds = ("deployments", "services", "roles", "rolebindings", "networkpolicies", "poddisruptionbudgets")
        left = cluster.kubectl("get", ",".join([*kinds, *map(str.lower, CLUSTER_KINDS)]), *selector)
        assert left.split() == []
        cluster.wait_until("pods to be let alone", lambda: not warnings(cluster, namespace, agent("later")))

        install(cluster)
        assert read(cluster, f"{folder}/memory")["metadata"]["uid"] == made["metadata"]["uid"]
        assert cluster.wait_until("the CA to be published", lambda: ca_bundle(cluster)) == ca
