"""What people stored is not deleted by a slip: every way to delete it, tried on a cluster where no operator runs.

A refusal names the object and the one edit that opens it; here the edit is taken out of the message and done as it
stands there. The policies are those of the installed chart (templates/protection.yaml).
"""

import http
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from engram_contract.names import API_VERSION, CLUSTER_KIND, PROTECTED_LABEL, TENANT_KIND
from engram_operator.clients import kube
from tests.e2e.cluster import E2E_LABEL, Cluster, CommandFailed, Json
from tests.e2e.releases import CRD_NAMES, NAMESPACE, RELEASE, install
from tests.e2e.stage import ROOT

POLICIES: Final = {f"{RELEASE}-keep-{what}" for what in ("clusters", "data", "namespaces", "crds")}
NAMESPACE_END_S: Final = 60.0
CRDS_PATH: Final = kube.CRDS.path(None)
GUARDED: Final = {PROTECTED_LABEL: "true"}


@dataclass(frozen=True, slots=True)
class Thing:
    """An object that the tests make, and how it is asked for."""

    api: str  # apiVersion
    kind: str
    resource: str
    name: str
    body: Json = field(default_factory=dict)
    labels: Json = field(default_factory=dict)

    def folder(self, namespace: str) -> str:
        """The path of its collection."""
        root = f"/apis/{self.api}" if "/" in self.api else f"/api/{self.api}"
        return f"{root}/namespaces/{namespace}/{self.resource}"

    def path(self, namespace: str) -> str:
        """Its own path."""
        return f"{self.folder(namespace)}/{self.name}"

    def manifest(self, namespace: str, **metadata: object) -> Json:
        """What makes it."""
        own = {"name": self.name, "namespace": namespace, "labels": self.labels}
        return {"apiVersion": self.api, "kind": self.kind, "metadata": own | metadata, **self.body}


CLAIM: Final = {"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}}
SHARD: Final = {
    "spec": {
        "replicas": 0,
        "serviceName": "shard",
        "selector": {"matchLabels": {"app": "shard"}},
        "template": {
            "metadata": {"labels": {"app": "shard"}},
            "spec": {"containers": [{"name": "postgres", "image": "localhost/none"}]},
        },
    }
}
# Paused, so that an operator which somebody else runs on this cluster makes nothing of it.
MEMORY: Final = Thing(API_VERSION, CLUSTER_KIND, "memoryclusters", "memory", {"spec": {"paused": True}})
DISK: Final = Thing("v1", "PersistentVolumeClaim", "persistentvolumeclaims", "disk", CLAIM, GUARDED)
KEYS: Final = Thing("v1", "Secret", "secrets", "keys", {}, GUARDED)
SET: Final = Thing("apps/v1", "StatefulSet", "statefulsets", "shard", SHARD, GUARDED)
PROTECTED: Final = (MEMORY, DISK, KEYS, SET)
each_protected = pytest.mark.parametrize("thing", PROTECTED, ids=lambda thing: thing.kind)

# What follows `kubectl`; {0} is the resource, {1} the name.
COMMANDS: Final = {
    "by its name": "delete {0} {1}",
    "by force": "delete {0} {1} --force --grace-period=0",
    "at once": "delete {0} {1} --now",
    "without what it owns": "delete {0} {1} --cascade=orphan",
    "after what it owns": "delete {0} {1} --cascade=foreground",
    "with all of its kind": "delete {0} --all",
    "with all, by force": "delete {0} --all --force --grace-period=0",
    "by a selector": "delete {0} --field-selector metadata.name={1}",
    "to be made anew": "replace --force -f -",
}
BODIES: Final = {
    "plainly": {},
    "for good": {"gracePeriodSeconds": 0},
    "without what it owns": {"propagationPolicy": "Orphan"},
    "after what it owns": {"propagationPolicy": "Foreground"},
}


def make(cluster: Cluster, namespace: str, thing: Thing, **metadata: object) -> Json:
    """The thing as the API server made it."""
    status, made = cluster.request("POST", thing.folder(namespace), thing.manifest(namespace, **metadata))
    assert status == http.HTTPStatus.CREATED, made
    return made


def make_namespace(cluster: Cluster, name: str, **labels: str) -> None:
    """A namespace that no fixture opens before it goes; the next run would remove it."""
    metadata = {"name": name, "labels": {E2E_LABEL: "true", **labels}}
    status, made = cluster.request("POST", "/api/v1/namespaces", {"metadata": metadata})
    assert status == http.HTTPStatus.CREATED, made


def is_there(cluster: Cluster, path: str) -> bool:
    """Whether there is an object, and it is not on its way out."""
    status, body = cluster.request("GET", path)
    return status == http.HTTPStatus.OK and "deletionTimestamp" not in body["metadata"]


def is_gone(cluster: Cluster, path: str) -> bool:
    """Whether there is no object at all."""
    return cluster.request("GET", path)[0] == http.HTTPStatus.NOT_FOUND


def refusal(cluster: Cluster, command: str, text: str | None = None) -> str:
    """What kubectl says of a command that is refused."""
    with pytest.raises(CommandFailed) as failed:
        cluster.kubectl(*shlex.split(command), input=text)
    return str(failed.value)


def refused(cluster: Cluster, path: str, body: Json | None = None, **query: str) -> str:
    """What the API server says of a DELETE that it refuses."""
    status, answer = cluster.request("DELETE", path, body, **query)
    assert status == http.HTTPStatus.FORBIDDEN, answer
    return str(answer["message"])


def edit_of(message: str) -> list[str]:
    """The edit that a refusal names, as arguments of kubectl."""
    (command,) = re.findall(r": kubectl (.*)$", message.strip(), re.MULTILINE)
    return shlex.split(command)


def keep(cluster: Cluster, namespace: str) -> None:
    """One of each protected thing."""
    for thing in PROTECTED:
        make(cluster, namespace, thing)


@pytest.fixture(scope="module")
def unattended(cluster: Cluster, release: str) -> Iterator[None]:
    """An installation whose operator is away, and whose policies are in force."""
    scale = ("scale", "deployment", f"{RELEASE}-operator", "--namespace", NAMESPACE)
    cluster.kubectl(*scale, "--replicas=0")
    try:
        pods = f"/api/v1/namespaces/{NAMESPACE}/pods"
        label = "app.kubernetes.io/component=operator"
        cluster.wait_until(
            "the operator to be away", lambda: not cluster.request("GET", pods, labelSelector=label)[1]["items"]
        )
        await_policies(cluster)
        yield
    finally:
        cluster.kubectl(*scale, "--replicas=2")


def await_policies(cluster: Cluster) -> None:
    """Each of the four refuses. The API server takes a moment for a new policy; a dry run deletes nothing meanwhile."""
    with cluster.namespace("chart-probe") as namespace:
        keep(cluster, namespace)
        home = f"/api/v1/namespaces/{namespace}"
        cluster.request("PATCH", home, {"metadata": {"labels": GUARDED}})
        crds = [f"{CRDS_PATH}/{name}" for name in CRD_NAMES]
        for path in (*(thing.path(namespace) for thing in PROTECTED), home, *crds):
            cluster.wait_until(f"{path} to be protected", partial(is_refused, cluster, path))


def is_refused(cluster: Cluster, path: str) -> bool:
    """Whether a DELETE would be refused."""
    return cluster.request("DELETE", path, dryRun="All")[0] == http.HTTPStatus.FORBIDDEN


def is_open(cluster: Cluster, path: str) -> bool:
    """Whether a DELETE would go through."""
    return cluster.request("DELETE", path, dryRun="All")[0] == http.HTTPStatus.OK


@pytest.fixture(scope="module")
def home(cluster: Cluster, unattended: None) -> Iterator[str]:
    """A namespace with one of each protected thing, none of which a test ever gets to delete."""
    with cluster.namespace("chart-kept") as namespace:
        keep(cluster, namespace)
        yield namespace


def test_the_policies_are_there_and_their_types_are_right(cluster: Cluster, unattended: None) -> None:
    """A wrong field in an expression would make it fail, and with failurePolicy Fail refuse for ever."""

    def checked() -> list[Json]:
        _, found = cluster.request("GET", "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies")
        ours = [each for each in found["items"] if each["metadata"]["name"] in POLICIES]
        seen = [each.get("status", {}).get("observedGeneration") == each["metadata"]["generation"] for each in ours]
        return ours if len(ours) == len(POLICIES) and all(seen) else []

    for policy in cluster.wait_until("the types to be checked", checked):
        assert policy["status"]["typeChecking"] == {}, policy["status"]


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@each_protected
def test_no_command_deletes_what_is_protected(cluster: Cluster, home: str, thing: Thing, command: str) -> None:
    text = json.dumps(thing.manifest(home))
    message = refusal(cluster, f"{command.format(thing.resource, thing.name)} --namespace {home}", text)
    assert f"{thing.kind} {home}/{thing.name} is protected" in message
    assert {thing.name, home} <= {*edit_of(message)}
    assert is_there(cluster, thing.path(home))


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@each_protected
def test_no_request_deletes_what_is_protected(cluster: Cluster, home: str, thing: Thing, body: Json) -> None:
    metadata = cluster.request("GET", thing.path(home))[1]["metadata"]
    exactly = {"preconditions": {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}}
    for message in (
        refused(cluster, thing.path(home), body | exactly),
        refused(cluster, thing.folder(home), body),
        refused(cluster, thing.folder(home), body, fieldSelector=f"metadata.name={thing.name}"),
    ):
        assert f"{thing.kind} {home}/{thing.name} is protected" in message
        assert {thing.name, home} <= {*edit_of(message)}
    assert is_there(cluster, thing.path(home))


@each_protected
def test_the_edit_that_a_refusal_names_opens_this_object_alone(
    cluster: Cluster, unattended: None, thing: Thing
) -> None:
    with cluster.namespace("chart-open") as namespace:
        keep(cluster, namespace)
        cluster.kubectl(*edit_of(refused(cluster, thing.path(namespace))))
        others = [each.path(namespace) for each in PROTECTED if each is not thing]
        assert [is_refused(cluster, each) for each in others] == [True, True, True]
        cluster.kubectl("delete", thing.resource, thing.name, "--namespace", namespace)
        assert all(is_there(cluster, each) for each in others)


@pytest.mark.parametrize("flags", ["", "--force --grace-period=0", "--now", "--cascade=orphan"])
def test_a_labelled_namespace_stays_until_it_is_opened(cluster: Cluster, unattended: None, flags: str) -> None:
    with cluster.namespace("chart-land") as namespace:
        cluster.kubectl("label", "namespace", namespace, f"{PROTECTED_LABEL}=true")
        path = f"/api/v1/namespaces/{namespace}"
        uid = cluster.request("GET", path)[1]["metadata"]["uid"]
        for message in (
            refusal(cluster, f"delete namespace {namespace} {flags}"),
            refusal(cluster, f"delete namespaces --field-selector metadata.name={namespace} {flags}"),
            refused(cluster, path, {"preconditions": {"uid": uid}, "gracePeriodSeconds": 0}),
        ):
            assert f"Namespace {namespace} is protected" in message
        assert is_there(cluster, path)
        cluster.kubectl(*edit_of(message))
        cluster.kubectl("delete", "namespace", namespace)


@pytest.mark.parametrize("name", CRD_NAMES)
def test_our_crds_stay_until_they_are_opened(cluster: Cluster, home: str, name: str) -> None:
    path = f"{CRDS_PATH}/{name}"
    uid = cluster.request("GET", path)[1]["metadata"]["uid"]
    for message in (
        refusal(cluster, f"delete crd {name}"),
        refusal(cluster, f"delete crd {name} --force --grace-period=0"),
        refusal(cluster, f"delete -f {ROOT / 'crds'}"),
        refused(cluster, path, {"preconditions": {"uid": uid}, "propagationPolicy": "Orphan"}),
        refused(cluster, CRDS_PATH, fieldSelector=f"metadata.name={name}"),
    ):
        assert f"CustomResourceDefinition {name} is protected" in message
    assert is_there(cluster, path)
    assert is_there(cluster, MEMORY.path(home))
    cluster.kubectl(*edit_of(message))
    cluster.kubectl("delete", "crd", name, "--dry-run=server")
    cluster.kubectl("label", "crd", name, f"{PROTECTED_LABEL}-")


def test_an_opened_crd_is_deleted(cluster: Cluster, unattended: None) -> None:
    """That of the tenants, of which the tests have none at this moment."""
    (name,) = [each for each in CRD_NAMES if each.startswith("memorytenants")]
    cluster.kubectl(*edit_of(refused(cluster, f"{CRDS_PATH}/{name}")))
    try:
        cluster.kubectl("delete", "crd", name)
    finally:
        cluster.apply_crds()


UNPROTECTED: Final = {
    "a claim of somebody": Thing("v1", DISK.kind, DISK.resource, "disk", CLAIM),
    "a Secret of somebody": Thing("v1", KEYS.kind, KEYS.resource, "keys"),
    "a StatefulSet of somebody": Thing("apps/v1", SET.kind, SET.resource, "shard", SHARD),
    "a claim that was opened": Thing("v1", DISK.kind, DISK.resource, "disk", CLAIM, {PROTECTED_LABEL: "false"}),
    "a kind that keeps nothing": Thing("v1", "ConfigMap", "configmaps", "notes", {}, GUARDED),
    "a cluster that was opened": Thing(
        API_VERSION, CLUSTER_KIND, MEMORY.resource, "memory", {"spec": {"paused": True, "deletionProtection": False}}
    ),
    "a tenant": Thing(
        API_VERSION, TENANT_KIND, "memorytenants", "assistant", {"spec": {"clusterRef": {"name": "memory"}}}
    ),
}


@pytest.mark.parametrize("thing", UNPROTECTED.values(), ids=UNPROTECTED)
def test_what_is_not_protected_is_not_hindered(cluster: Cluster, unattended: None, thing: Thing) -> None:
    with cluster.namespace("chart-free") as namespace:
        make(cluster, namespace, thing)
        cluster.kubectl("delete", thing.resource, thing.name, "--namespace", namespace, "--wait=false")
        assert not is_there(cluster, thing.path(namespace))
        make(cluster, namespace, replace(thing, name="second"))
        cluster.kubectl("delete", thing.resource, "second", "--force", "--grace-period=0", "--namespace", namespace)


def test_another_crd_and_another_namespace_are_not_hindered(cluster: Cluster, unattended: None) -> None:
    schema = {"openAPIV3Schema": {"type": "object"}}
    version = {"name": "v1", "served": True, "storage": True, "schema": schema}
    names = {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"}
    name = "things.chart.engram.dev"
    spec = {"group": "chart.engram.dev", "scope": "Namespaced", "names": names, "versions": [version]}
    kind = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition"}
    crd = kind | {"metadata": {"name": name}, "spec": spec}
    cluster.kubectl("create", "-f", "-", input=json.dumps(crd))
    cluster.kubectl("delete", "crd", name)
    make_namespace(cluster, "chart-other", **{PROTECTED_LABEL: "false"})
    cluster.kubectl("delete", "namespace", "chart-other")


def test_an_admitted_delete_of_a_namespace_ends_with_all_that_is_in_it(cluster: Cluster, unattended: None) -> None:
    """Nobody labelled it, so it may go; what is in it must not keep it for ever. Here no test opens anything."""
    make_namespace(cluster, "chart-ends")
    keep(cluster, "chart-ends")
    path = "/api/v1/namespaces/chart-ends"
    status, answer = cluster.request("DELETE", path)
    assert status == http.HTTPStatus.OK, answer
    cluster.wait_until("the end of the namespace", partial(is_gone, cluster, path), NAMESPACE_END_S)


@pytest.mark.parametrize("cascade", ["background", "foreground"])
def test_an_opened_cluster_goes_with_what_it_owns(cluster: Cluster, unattended: None, cascade: str) -> None:
    """The garbage collector may, although the owned objects still bear the label."""
    with cluster.namespace("chart-owns") as namespace:
        owner = make(cluster, namespace, MEMORY)
        reference = {"apiVersion": API_VERSION, "kind": CLUSTER_KIND, "name": MEMORY.name, "controller": True}
        owners = [reference | {"uid": owner["metadata"]["uid"], "blockOwnerDeletion": False}]
        owned = [thing for thing in PROTECTED if thing is not MEMORY]
        for thing in owned:
            make(cluster, namespace, thing, ownerReferences=owners)
        cluster.kubectl(*edit_of(refused(cluster, MEMORY.path(namespace))))
        cluster.kubectl("delete", MEMORY.resource, MEMORY.name, "--namespace", namespace, f"--cascade={cascade}")
        for thing in owned:
            path = thing.path(namespace)
            cluster.wait_until(f"the end of {path}", partial(is_gone, cluster, path), NAMESPACE_END_S)


def test_helm_does_not_uninstall_a_cluster_that_came_with_a_chart(
    cluster: Cluster, unattended: None, tmp_path: Path
) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "Chart.yaml").write_text("apiVersion: v2\nname: app\nversion: 1.0.0\n")
    with cluster.namespace("chart-app") as namespace:
        (tmp_path / "templates" / "memory.json").write_text(json.dumps(MEMORY.manifest(namespace)))
        cluster.helm("install", "app", str(tmp_path), "--namespace", namespace)
        with pytest.raises(CommandFailed) as failed:
            cluster.helm("uninstall", "app", "--namespace", namespace, "--debug")  # without it, Helm keeps the reason
        assert f"MemoryCluster {namespace}/memory is protected" in str(failed.value)
        assert is_there(cluster, MEMORY.path(namespace))
        cluster.kubectl(*edit_of(refused(cluster, MEMORY.path(namespace))))
        cluster.helm("uninstall", "app", "--namespace", namespace, "--wait")
        assert is_gone(cluster, MEMORY.path(namespace))


def test_without_the_value_nothing_is_refused(cluster: Cluster, home: str) -> None:
    """The last test, because it upgrades the release; so the tests above tell of the policies and of nothing else."""
    install(cluster, deletionProtection={"enabled": False})
    for thing in PROTECTED:
        cluster.wait_until(f"{thing.kind} to be let go", partial(is_open, cluster, thing.path(home)))
