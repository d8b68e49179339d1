"""A tenant's Secret is its sidecar's alone: every way round that, tried where neither operator nor injector runs.

The pods are what the injector makes of an agent's pod, each with one thing changed. No node takes them. The policy is
that of the installed chart (templates/tenant-guard.yaml).
"""

import copy
import http
import json
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from engram_contract.names import (
    ADMIN_PORT_ANNOTATION,
    AGENT_LABEL,
    CONFIG_VOLUME,
    INJECT_LABEL,
    LOG_LEVEL_ANNOTATION,
    tenant_objects,
)
from engram_operator.injection import Sidecar, build_patch
from tests.e2e.cluster import Cluster, CommandFailed
from tests.e2e.releases import IMAGES, NAMESPACE, RELEASE, image, install
from tests.operator_stage import patched

Json = dict[str, Any]
Change = Callable[[Json], object]
TENANT: Final = "support"
SECRET: Final = tenant_objects(TENANT)
GUARD: Final = f"{RELEASE}-tenant-guard"
POLICIES: Final = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
BINDING: Final = f"/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings/{GUARD}"
OLD_IMAGE: Final = "registry.example/engram-sidecar:0.0.9"  # among the values
NEXT: Final = {**IMAGES["sidecar"], "tag": "next"}
NOT_OURS: Final = "registry.example/other:1"
RESOURCES: Final = {"requests": {"cpu": "10m", "memory": "32Mi"}}


def build_pod(name: str = "agent", annotations: Json | None = None, **spec: object) -> Json:
    """A pod that no node takes."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {INJECT_LABEL: "true"}, "annotations": annotations or {}},
        "spec": {
            "nodeSelector": {"engram.dev/e2e": "nowhere"},
            "containers": [{"name": "app", "image": NOT_OURS}],
            "initContainers": [{"name": "setup", "image": NOT_OURS}],
            **spec,
        },
    }


def build_agent(name: str = "agent", annotations: Json | None = None, sidecar: str = "") -> Json:
    """The same with a sidecar, as the injector would have it."""
    before = build_pod(name, annotations)
    patch = build_patch(before, TENANT, Sidecar(sidecar or image("sidecar"), "IfNotPresent", RESOURCES))
    after: Json = patched(before, patch)
    return after


def sidecar_of(pod: Json) -> Json:
    found: Json = pod["spec"]["initContainers"][0]
    return found


def with_env(container: str, entry: Json) -> Change:
    """A variable for a container: the app, another init container or the sidecar."""

    def change(pod: Json) -> None:
        spec = pod["spec"]
        (found,) = [each for each in [*spec["containers"], *spec["initContainers"]] if each["name"] == container]
        found["env"] = [*found.get("env", ()), entry]

    return change


def with_sidecar(**members: object) -> Change:
    """The sidecar with these members."""
    return lambda pod: sidecar_of(pod).update(copy.deepcopy(members))


def with_spec(**members: object) -> Change:
    """The pod's spec with these members."""
    return lambda pod: pod["spec"].update(copy.deepcopy(members))


def with_volume(volume: Json, container: str = "app") -> Change:
    """One more volume, mounted by a container."""

    def change(pod: Json) -> None:
        spec = pod["spec"]
        spec["volumes"].append({"name": "more", **volume})
        (found,) = [each for each in [*spec["containers"], *spec["initContainers"]] if each["name"] == container]
        found.setdefault("volumeMounts", []).append({"name": "more", "mountPath": "/more"})

    return change


def with_mount(container: str, name: str = CONFIG_VOLUME, path: str = "/stolen", **members: object) -> Change:
    """One more mount for a container."""

    def change(pod: Json) -> None:
        spec = pod["spec"]
        (found,) = [each for each in [*spec["containers"], *spec["initContainers"]] if each["name"] == container]
        found.setdefault("volumeMounts", []).append({"name": name, "mountPath": path, **members})

    return change


def with_source(source: Json) -> Change:
    """One more source in the sidecar's own volume."""
    return lambda pod: pod["spec"]["volumes"][-1]["projected"]["sources"].append(source)


def with_own_mount(**members: object) -> Change:
    """The sidecar's mount of its own volume, changed."""
    return lambda pod: sidecar_of(pod)["volumeMounts"][0].update(members)


def without_variable(name: str) -> Change:
    def change(pod: Json) -> None:
        sidecar_of(pod)["env"] = [each for each in sidecar_of(pod)["env"] if each["name"] != name]

    return change


def with_variable(name: str, **members: object) -> Change:
    """A variable of the sidecar's, set otherwise."""

    def change(pod: Json) -> None:
        without_variable(name)(pod)
        sidecar_of(pod)["env"].append({"name": name, **members})

    return change


def both(*changes: Change) -> Change:
    return lambda pod: [change(pod) for change in changes]


def as_main_container(pod: Json) -> None:
    """The sidecar among the app's containers, where nobody waits for it."""
    moved = pod["spec"]["initContainers"].pop(0)
    moved.pop("restartPolicy")
    pod["spec"]["containers"].append(moved)


def named(name: str) -> Change:
    def change(pod: Json) -> None:
        sidecar_of(pod)["name"] = name

    return change


REF: Final = {"secretRef": {"name": SECRET}}
KEY: Final = {"secretKeyRef": {"name": SECRET, "key": "credentials.json"}}
VARIABLE: Final = {"name": "STOLEN", "valueFrom": KEY}
SECRET_SOURCE: Final = {"secret": {"name": SECRET}}
EXEC: Final = {"exec": {"command": ["cat", "/etc/engram/credentials.json"]}}
TOKEN: Final = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105  a path
FLEX: Final = {"driver": "example.com/flex"}
CSI: Final = {"driver": "csi.example.com"}
RBD: Final = {"monitors": ["m"], "image": "i"}
CEPH: Final = {"monitors": ["m"]}
SCALE: Final = {"gateway": "g", "system": "s", "volumeName": "v"}
ISCSI: Final = {"targetPortal": "127.0.0.1", "iqn": "iqn.2026-01.com.example:a", "lun": 0, "chapAuthSession": True}

# What somebody tries, and words of the refusal: the field, and why.
EVIL: Final[dict[str, tuple[Change, str]]] = {
    "a variable of the app": (with_env("app", VARIABLE), "container app, env"),
    "a variable of an init container": (with_env("setup", VARIABLE), "container setup, env"),
    "a variable of the sidecar": (with_env("engram", VARIABLE | {"name": "AWS_X"}), "container engram, env"),
    "all as variables": (lambda pod: pod["spec"]["containers"][0].update(envFrom=[REF]), "container app, env"),
    "all as variables of the sidecar": (with_sidecar(envFrom=[REF]), "container engram, env"),
    "a pull secret": (with_spec(imagePullSecrets=[{"name": SECRET}]), "spec.imagePullSecrets"),
    "a volume of its own": (with_volume({"secret": {"secretName": SECRET}}), "volume more"),
    "a projected volume of its own": (
        with_volume({"projected": {"sources": [SECRET_SOURCE]}}),
        "container app, volumeM",
    ),
    "among other things": (
        with_volume({"projected": {"sources": [{"configMap": {"name": "a"}}, SECRET_SOURCE]}}),
        "volume more",
    ),
    "another tenant's": (with_volume({"secret": {"secretName": tenant_objects("sales")}}), "volume more"),
    "for a CSI driver": (with_volume({"csi": CSI | {"nodePublishSecretRef": {"name": SECRET}}}), "volume more"),
    "as a CSI attribute": (with_volume({"csi": CSI | {"volumeAttributes": {"secretName": SECRET}}}), "volume more"),
    "for a flex driver": (with_volume({"flexVolume": FLEX | REF}), "volume more"),
    "as a flex option": (with_volume({"flexVolume": FLEX | {"options": {"secret": SECRET}}}), "volume more"),
    "for Azure": (with_volume({"azureFile": {"shareName": "s", "secretName": SECRET}}), "volume more"),
    "for Ceph": (with_volume({"cephfs": CEPH | REF}), "volume more"),
    "for RBD": (with_volume({"rbd": RBD | REF}), "volume more"),
    "for iSCSI": (with_volume({"iscsi": ISCSI | REF}), "volume more"),
    "for ScaleIO": (with_volume({"scaleIO": SCALE | REF}), "volume more"),
    "for StorageOS": (with_volume({"storageos": {"volumeName": "v"} | REF}), "volume more"),
    "for Cinder": (with_volume({"cinder": {"volumeID": "v"} | REF}), "volume more"),
    "the sidecar's mount for the app": (with_mount("app"), "container app, volumeMounts"),
    "the sidecar's mount for an init container": (with_mount("setup"), "container setup, volumeMounts"),
    "the sidecar as a main container": (as_main_container, "container engram, volumeMounts"),
    "a sidecar of another name": (named("engram2"), "container engram2, volumeMounts"),
    "the sidecar's mount elsewhere": (with_own_mount(mountPath="/app"), "/app is neither"),
    "a part of the sidecar's mount": (with_own_mount(subPath="credentials.json"), "/etc/engram is neither"),
    "the sidecar's mount to write": (with_own_mount(readOnly=False), "/etc/engram is neither"),
    "a map of one's own": (with_source({"configMap": {"name": "forged"}}), f"volume {CONFIG_VOLUME}"),
    "a file under another name": (
        with_source({"secret": {"name": SECRET, "items": [{"key": "credentials.json", "path": "x"}]}}),
        f"volume {CONFIG_VOLUME}",
    ),
    "a file over the program": (
        both(with_volume({"emptyDir": {}}), with_mount("engram", "more", "/usr/lib/python3")),
        "/usr/lib/python3 is neither",
    ),
    "a file over the program, by a detour": (
        both(with_volume({"emptyDir": {}}), with_mount("engram", "more", "/var/run/secrets/../../../app")),
        "/app is neither",
    ),
    "a file over the map": (
        both(with_volume({"emptyDir": {}}), with_mount("engram", "more", "/etc/engram/map.json")),
        "/etc/engram/map.json is neither",
    ),
    "another image": (with_sidecar(image=NOT_OURS), f"image: {NOT_OURS} is not"),
    "our image in another version": (with_sidecar(image=image("sidecar") + "1"), "is not this installation's"),
    "a command": (with_sidecar(command=["sh"]), "container engram, command"),
    "arguments": (with_sidecar(args=["-c", "x"]), "container engram, args"),
    "a folder to start in": (with_sidecar(workingDir="/var/run/secrets/x"), "container engram, workingDir"),
    "a hook": (with_sidecar(lifecycle={"postStart": EXEC}), "container engram, lifecycle"),
    "a terminal": (with_sidecar(stdin=True, tty=True), "container engram, stdin"),
    "an output over a file": (with_sidecar(terminationMessagePath="/app/x"), "terminationMessagePath"),
    "a startup probe that runs": (with_sidecar(startupProbe=EXEC), "container engram, startupProbe"),
    "a liveness probe that runs": (with_sidecar(livenessProbe=EXEC), "container engram, livenessProbe"),
    "a readiness probe that runs": (with_sidecar(readinessProbe=EXEC), "container engram, readinessProbe"),
    "an init container that ends": (
        lambda pod: [
            sidecar_of(pod).pop(name) for name in ("restartPolicy", "startupProbe", "livenessProbe", "readinessProbe")
        ],
        "container engram, restartPolicy",
    ),
    "a module for Python": (with_env("engram", {"name": "PYTHONPATH", "value": "/x"}), "env: PYTHONPATH"),
    "a library": (with_env("engram", {"name": "LD_PRELOAD", "value": "/x"}), "env: LD_PRELOAD"),
    "a home with modules": (with_env("engram", {"name": "HOME", "value": "/var/run/secrets/x"}), "env: HOME"),
    "a path with programs": (with_env("engram", {"name": "PATH", "value": "/var/run/secrets/x"}), "env: PATH"),
    "an unknown switch": (with_env("engram", {"name": "ENGRAM_DEBUG", "value": "1"}), "env: ENGRAM_DEBUG"),
    "other files": (with_variable("ENGRAM_CONFIG_DIR", value="/var/run/secrets/x"), "env: ENGRAM_CONFIG_DIR"),
    "another agent": (with_variable("ENGRAM_AGENT", value="boss"), "env: ENGRAM_AGENT"),
    "another agent, of another label": (
        with_variable("ENGRAM_AGENT", valueFrom={"fieldRef": {"fieldPath": "metadata.labels['x']"}}),
        "env: ENGRAM_AGENT",
    ),
    "another account": (with_variable("ENGRAM_SERVICE_ACCOUNT", value="boss"), "env: ENGRAM_SERVICE_ACCOUNT"),
    "another pod": (with_variable("ENGRAM_POD_NAME", value="x"), "env: ENGRAM_POD_NAME"),
    "another uid": (with_variable("ENGRAM_POD_UID", value="x"), "env: ENGRAM_POD_UID"),
    "no agent": (without_variable("ENGRAM_AGENT"), "env: ENGRAM_AGENT must be there"),
    "no account": (without_variable("ENGRAM_SERVICE_ACCOUNT"), "env: ENGRAM_SERVICE_ACCOUNT must be there"),
    "an agent twice": (with_env("engram", {"name": "ENGRAM_AGENT", "value": "boss"}), "env: ENGRAM_AGENT"),
    "privileges": (
        with_sidecar(securityContext={"privileged": True}),
        "container engram, securityContext",
    ),
    "capabilities": (
        with_sidecar(securityContext={"capabilities": {"add": ["SYS_PTRACE"]}}),
        "container engram, securityContext",
    ),
    "the host's network": (with_spec(hostNetwork=True), "spec.hostNetwork"),
    "the host's processes": (with_spec(hostPID=True), "spec.hostPID"),
    "processes shared": (with_spec(shareProcessNamespace=True), "spec.shareProcessNamespace"),
}

KIND: Final[dict[str, Json]] = {
    "an injected pod": build_agent(),
    "a tuned one": build_agent(annotations={ADMIN_PORT_ANNOTATION: "8712", LOG_LEVEL_ANNOTATION: "debug"}),
    "a pod without any of it": build_pod(),
    "a Secret of another name": build_pod(volumes=[{"name": "v", "secret": {"secretName": "engram-tenants"}}]),
    "a container named like the sidecar": build_pod(
        initContainers=[{"name": "engram", "image": NOT_OURS, "command": ["x"], "workingDir": "/"}]
    ),
    "on the host's network": build_pod(hostNetwork=True, hostPID=True),
    "everything empty": build_pod(
        initContainers=[],
        volumes=[{"name": "a", "projected": {"sources": []}}, {"name": "b", "csi": CSI}, {"name": "c", "emptyDir": {}}],
        containers=[{"name": "app", "image": NOT_OURS, "env": [{"name": "A"}], "envFrom": []}],
        imagePullSecrets=[{}],
    ),
    # As many as no process could be started with, and more than any cost limit should see.
    "twenty thousand variables": build_pod(
        containers=[{"name": "app", "image": NOT_OURS, "env": [{"name": f"A{n}", "value": "x"} for n in range(20_000)]}]
    ),
    "two thousand Secrets": build_pod(
        volumes=[{"name": f"v{n}", "secret": {"secretName": f"engram-{n}"}} for n in range(2_000)],
        containers=[
            {
                "name": "app",
                "image": NOT_OURS,
                "env": [
                    {"name": f"A{n}", "valueFrom": {"secretKeyRef": {"name": "engram-a", "key": "b"}}}
                    for n in range(2_000)
                ],
            }
        ],
    ),
}
MORE_KIND: Final[dict[str, Change]] = {
    "variables of other injectors": with_env("engram", {"name": "AWS_ROLE_ARN", "value": "x"}),
    "tokens of other injectors": both(
        with_volume({"emptyDir": {}}), with_mount("engram", "more", f"{TOKEN}-of-others")
    ),
    "other sidecars before it": lambda pod: pod["spec"]["initContainers"].insert(
        0, {"name": "mesh", "image": NOT_OURS, "restartPolicy": "Always"}
    ),
}


def create(cluster: Cluster, namespace: str, pod: Json, **query: str) -> tuple[int, str]:
    """The status, and what the API server says of it."""
    status, answer = cluster.request("POST", f"/api/v1/namespaces/{namespace}/pods", pod, **query)
    return status, str(answer.get("message", ""))


@pytest.fixture(scope="module")
def unattended(cluster: Cluster, release: str) -> Iterator[None]:
    """An installation with a newer sidecar than the one before it, of which nobody runs but the API server itself."""
    install(cluster, images=IMAGES | {"sidecar": NEXT}, tenantGuard={"allowedImages": [OLD_IMAGE]})
    cluster.kubectl("delete", "mutatingwebhookconfiguration", f"{RELEASE}-injector")
    for component in ("operator", "injector"):
        cluster.kubectl("scale", f"deployment/{RELEASE}-{component}", "--namespace", NAMESPACE, "--replicas=0")
    pods = f"/api/v1/namespaces/{NAMESPACE}/pods"
    cluster.wait_until("everybody to be away", lambda: not cluster.request("GET", pods)[1]["items"])
    yield
    cluster.kubectl("delete", f"deployment/{RELEASE}-operator", f"deployment/{RELEASE}-injector", "-n", NAMESPACE)


@pytest.fixture(scope="module")
def home(cluster: Cluster, unattended: None) -> Iterator[str]:
    """A namespace where pods can be made and the policy is in force."""
    with cluster.namespace("guarded") as namespace:
        account = f"/api/v1/namespaces/{namespace}/serviceaccounts/default"
        cluster.wait_until("the default account", lambda: cluster.request("GET", account)[0] == http.HTTPStatus.OK)
        cluster.wait_until("the policy", lambda: is_guarded(cluster, namespace))
        yield namespace


def is_guarded(cluster: Cluster, namespace: str) -> bool:
    """Whether the policy as it is now is in force: the older image passes, and another does not."""
    old, other = (build_agent(sidecar=name) for name in (OLD_IMAGE, NOT_OURS))
    return [create(cluster, namespace, pod, dryRun="All")[0] for pod in (old, other)] == [201, 403]


def test_the_policy_is_there_and_its_types_are_right(cluster: Cluster, unattended: None) -> None:
    def checked() -> Json:
        policy = cluster.request("GET", f"{POLICIES}/{GUARD}")[1]
        seen = policy.get("status", {}).get("observedGeneration") == policy["metadata"]["generation"]
        return policy if seen else {}

    policy = cluster.wait_until("the types to be checked", checked)
    assert policy["status"]["typeChecking"] == {}, policy["status"]


@pytest.mark.parametrize(("change", "words"), EVIL.values(), ids=EVIL)
def test_no_pod_gets_at_a_tenants_secret_beside_its_sidecar(
    cluster: Cluster, home: str, change: Change, words: str
) -> None:
    pod = build_agent()
    change(pod)
    status, message = create(cluster, home, pod, dryRun="All")
    assert (status, GUARD in message, words in message) == (403, True, True), message


@pytest.mark.parametrize("pod", KIND.values(), ids=KIND)
def test_other_pods_are_let_alone(cluster: Cluster, home: str, pod: Json) -> None:
    assert create(cluster, home, pod, dryRun="All") == (201, "")


@pytest.mark.parametrize("change", MORE_KIND.values(), ids=MORE_KIND)
def test_a_sidecar_bears_what_other_injectors_do_to_all_containers(cluster: Cluster, home: str, change: Change) -> None:
    pod = build_agent()
    change(pod)
    assert create(cluster, home, pod, dryRun="All") == (201, "")


def test_the_last_releases_sidecar_passes_because_its_injectors_may_still_answer(cluster: Cluster, home: str) -> None:
    for name in (image("sidecar"), f"{NEXT['repository']}:{NEXT['tag']}", OLD_IMAGE):
        assert create(cluster, home, build_agent(sidecar=name), dryRun="All") == (201, "")


def test_a_running_pod_takes_labels_the_current_image_and_a_debugger_and_nothing_worse(
    cluster: Cluster, home: str
) -> None:
    path = f"/api/v1/namespaces/{home}/pods/running"
    assert create(cluster, home, build_agent("running", sidecar=OLD_IMAGE)) == (201, "")

    def patch(body: Json) -> tuple[int, str]:
        status, answer = cluster.request("PATCH", path, body)
        return status, str(answer.get("message", ""))

    def imaged(name: str) -> Json:
        spec = cluster.request("GET", path)[1]["spec"]
        containers = [each | ({"image": name} if each["name"] == "engram" else {}) for each in spec["initContainers"]]
        return {"spec": {"initContainers": containers}}

    assert patch({"metadata": {"labels": {"a": "b"}}}) == (200, "")
    status, message = patch({"metadata": {"labels": {AGENT_LABEL: "boss"}}})
    assert (status, f"metadata.labels, {AGENT_LABEL}" in message) == (403, True), message
    status, message = patch(imaged(NOT_OURS))
    assert (status, f"image: {NOT_OURS}" in message) == (403, True), message
    assert patch(imaged(f"{NEXT['repository']}:{NEXT['tag']}")) == (200, "")
    cluster.kubectl("debug", "-n", home, "running", "--image", NOT_OURS, "--attach=false", "--container=d1")
    cluster.kubectl("debug", "-n", home, "running", "--image", NOT_OURS, "--attach=false", "--target=app", "-c=d2")
    with pytest.raises(CommandFailed) as failed:
        cluster.kubectl("debug", "-n", home, "running", "--image", NOT_OURS, "--attach=false", "--target=engram")
    assert "targetContainerName: must not be engram" in str(failed.value)
    for more, words in (
        ({"volumeMounts": [{"name": CONFIG_VOLUME, "mountPath": "/x"}]}, "container d3, volumeMounts"),
        ({"env": [VARIABLE]}, "container d3, env"),
        ({"envFrom": [REF]}, "container d3, env"),
    ):
        pod = cluster.request("GET", path)[1]
        pod["spec"]["ephemeralContainers"].append({"name": "d3", "image": NOT_OURS, **more})
        status, answer = cluster.request("PUT", f"{path}/ephemeralcontainers", pod)
        assert (status, words in str(answer.get("message"))) == (403, True), answer


def test_a_pod_from_before_the_policy_can_still_be_labelled_and_end(cluster: Cluster, home: str) -> None:
    binding = cluster.request("GET", BINDING)[1]
    metadata = {name: binding["metadata"][name] for name in ("name", "labels")}
    evil = build_agent("earlier")
    with_volume({"secret": {"secretName": SECRET}})(evil)
    evil["metadata"]["finalizers"] = ["example.com/kept"]
    cluster.kubectl("delete", "validatingadmissionpolicybinding", GUARD)
    try:
        cluster.wait_until("the policy to be away", lambda: create(cluster, home, evil)[0] == 201)
    finally:
        cluster.request("POST", BINDING.rpartition("/")[0], {**binding, "metadata": metadata})
    cluster.wait_until("the policy", lambda: is_guarded(cluster, home))
    path = f"/api/v1/namespaces/{home}/pods/earlier"
    assert cluster.request("PATCH", path, {"metadata": {"labels": {"a": "b"}}})[0] == 200
    assert cluster.request("DELETE", path)[0] == 200
    assert cluster.request("PATCH", path, {"metadata": {"finalizers": None}})[0] == 200
    cluster.wait_until("its end", lambda: cluster.request("GET", path)[0] == 404)


def test_a_controller_is_told_why_its_pods_are_refused(cluster: Cluster, home: str) -> None:
    pod = build_agent()
    with_env("app", VARIABLE)(pod)
    labels = pod["metadata"]["labels"] | {"app": "thief"}
    template = {"metadata": {"labels": labels, "annotations": pod["metadata"]["annotations"]}, "spec": pod["spec"]}
    spec = {"replicas": 1, "selector": {"matchLabels": {"app": "thief"}}, "template": template}
    body = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {"name": "thief", "namespace": home},
        "spec": spec,
    }
    cluster.kubectl("create", "-f", "-", input=json.dumps(body))
    path = f"/apis/apps/v1/namespaces/{home}/replicasets/thief"

    def told() -> str:
        conditions = cluster.request("GET", path)[1].get("status", {}).get("conditions") or ()
        return next((each["message"] for each in conditions if each["type"] == "ReplicaFailure"), "")

    assert "container app, env" in cluster.wait_until("the refusal", told)
    assert not cluster.request("GET", f"/api/v1/namespaces/{home}/pods", labelSelector="app=thief")[1]["items"]
