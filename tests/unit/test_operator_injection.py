"""What the injector adds to a pod, to which pods it adds nothing and says why, and that twice is once."""

import base64
import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_contract.names import (
    CONFIG_VOLUME,
    ENV_URL,
    INJECT_LABEL,
    INJECTED_LABEL,
    SIDECAR_CONTAINER,
    SIDECAR_HASH_ANNOTATION,
    TENANT_ANNOTATION,
)
from engram_operator.admission import Review, Verdict, judge
from engram_operator.errors import BadReview
from engram_operator.injection import SIDECAR_URL, Sidecar, build_container, build_patch, build_volume, find_obstacle
from tests.operator_stage import patched

SIDECAR = Sidecar("engram-sidecar:1", "IfNotPresent", {"requests": {"cpu": "50m"}, "limits": {"memory": "256Mi"}})
APP = {"name": "app", "image": "app:1"}


def pod(**spec: Any) -> dict[str, Any]:  # noqa: ANN401  members of a manifest
    return {"metadata": {"labels": {INJECT_LABEL: "true"}}, "spec": {"containers": [APP], **spec}}


def injected(before: dict[str, Any], tenant: str = "support", sidecar: Sidecar = SIDECAR) -> dict[str, Any]:
    after: dict[str, Any] = patched(before, build_patch(before, tenant, sidecar))
    return after


def test_the_sidecar_is_a_native_one_that_meets_the_restricted_profile() -> None:
    (container,) = injected(pod())["spec"]["initContainers"]
    assert (container["name"], container["restartPolicy"], container["image"]) == ("engram", "Always", SIDECAR.image)
    assert container["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65_532,
        "runAsGroup": 65_532,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["resources"] == SIDECAR.resources
    assert container["ports"] == [{"name": "engram-admin", "containerPort": 7712, "protocol": "TCP"}]
    assert {each["name"] for each in container["env"]} == {"ENGRAM_CONFIG_DIR", "ENGRAM_HOST"}
    assert container["env"][1]["valueFrom"]["fieldRef"]["fieldPath"] == "status.podIP"
    assert container["startupProbe"] == {
        "httpGet": {"path": "/readyz", "port": 7712, "scheme": "HTTP"},
        "periodSeconds": 1,
        "failureThreshold": 120,
        "timeoutSeconds": 1,
    }
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"


def test_only_the_sidecar_mounts_the_tenants_secret_and_never_a_part_of_it() -> None:
    spec: dict[str, list[dict[str, Any]]] = injected(pod(initContainers=[{"name": "setup", "image": "x"}]))["spec"]
    (volume,) = spec["volumes"]
    assert volume == {
        "name": CONFIG_VOLUME,
        "projected": {
            "defaultMode": 0o444,
            "sources": [
                {
                    "secret": {
                        "name": "engram-tenant-support",
                        "items": [{"key": "credentials.json", "path": "credentials.json"}],
                    }
                },
                {
                    "configMap": {
                        "name": "engram-tenant-support",
                        "items": [
                            {"key": "map.json", "path": "map.json"},
                            {"key": "policy.json", "path": "policy.json"},
                        ],
                    }
                },
            ],
        },
    }
    first, *others = [*spec["initContainers"], *spec["containers"]]
    assert first["volumeMounts"] == [{"name": CONFIG_VOLUME, "mountPath": "/etc/engram", "readOnly": True}]
    assert "subPath" not in json.dumps(spec)
    assert all("volumeMounts" not in other for other in others)


def test_everybody_else_is_told_where_the_memory_is() -> None:
    own = {"name": ENV_URL, "value": "http://elsewhere"}
    before = pod(
        initContainers=[{"name": "setup", "image": "x"}],
        containers=[APP, {**APP, "name": "b", "env": [{"name": "A"}]}, {**APP, "name": "c", "env": [own]}],
    )
    spec = injected(before)["spec"]
    url = {"name": ENV_URL, "value": SIDECAR_URL}
    assert [each["name"] for each in spec["initContainers"]] == ["engram", "setup"]
    assert spec["initContainers"][1]["env"] == [url]
    assert [each["env"] for each in spec["containers"]] == [[url], [{"name": "A"}, url], [own]]


@pytest.mark.parametrize(
    "metadata", [None, {}, {"labels": None}, {"labels": {}, "annotations": {}}, {"generateName": "agent-"}]
)
@pytest.mark.parametrize("volumes", [None, [], [{"name": "data", "emptyDir": {}}]])
def test_what_is_missing_is_made(metadata: object, volumes: object) -> None:
    after = injected({"metadata": metadata, "spec": {"containers": None, "volumes": volumes, "initContainers": None}})
    assert after["metadata"]["labels"] == {INJECTED_LABEL: "true"}
    assert list(after["metadata"]["annotations"]) == [SIDECAR_HASH_ANNOTATION]
    assert [each["name"] for each in after["spec"]["volumes"]][-1] == CONFIG_VOLUME
    assert build_patch(after, "support", SIDECAR) == ()


@pytest.mark.parametrize(
    ("before", "part"),
    [
        (pod(hostNetwork=True), "hostNetwork"),
        (pod(hostPID=True), "hostPID"),
        (pod(shareProcessNamespace=True), "shareProcessNamespace"),
        (pod(os={"name": "windows"}), "Linux"),
        (pod(containers=[{**APP, "name": "engram"}]), "name engram"),
        (pod(initContainers=[{**APP, "name": "engram"}]), "name engram"),
        (pod(initContainers=[{**APP, "name": "engram", "restartPolicy": "Always"}]), "name engram"),
        (pod(volumes=[{"name": "engram-config", "emptyDir": {}}]), "name engram-config"),
        (pod(containers=[{**APP, "ports": [{"containerPort": 7711}]}]), "container app declares port 7711"),
        (pod(initContainers=[{**APP, "ports": [{"containerPort": 1}, {"containerPort": 7712}]}]), "port 7712"),
        ({**pod(), "metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}}, "static pod"),
        (pod(), None),
        (pod(containers=[{**APP, "ports": [{"name": "engram-admin", "containerPort": 80}]}]), "port engram-admin"),
        (pod(resources={"limits": {"memory": "1Gi"}}), "spec.resources"),
        (pod(resources={}), None),
        (pod(containers=[{**APP, "volumeMounts": [{"name": "engram-config"}]}]), "container app mounts engram-config"),
        (pod(initContainers=[{**APP, "volumeMounts": [{"name": "engram-config"}]}]), "mounts engram-config"),
        (pod(ephemeralContainers=[{**APP, "volumeMounts": [{"name": "engram-config"}]}]), "mounts engram-config"),
        (pod(containers=[{**APP, "volumeDevices": [{"name": "engram-config"}]}]), "uses engram-config"),
        (pod(hostNetwork=False, os={"name": "linux"}, containers=[{**APP, "ports": [{"containerPort": 80}]}]), None),
    ],
)
def test_an_obstacle_is_named(before: dict[str, Any], part: str | None) -> None:
    found = find_obstacle(before)
    assert (found is None) if part is None else (found is not None and part in found)


def test_an_obstacle_is_found_behind_a_copied_annotation_too() -> None:
    before = pod(containers=[{**APP, "name": "engram"}])
    before["metadata"]["annotations"] = {SIDECAR_HASH_ANNOTATION: "0"}
    assert find_obstacle(before) is not None


STRANGERS: list[dict[str, Any]] = [
    {"name": CONFIG_VOLUME, "emptyDir": {}},
    {"name": CONFIG_VOLUME, "projected": {"sources": []}},
    {"name": CONFIG_VOLUME, "projected": {"sources": [{"secret": {"name": 7}}]}},
    {"name": CONFIG_VOLUME, "projected": {"sources": [{"secret": {"name": "engram-tenant-a", "items": []}}]}},
    build_volume("support") | {"projected": {**build_volume("support")["projected"], "defaultMode": 0o777}},
]


@pytest.mark.parametrize("volume", STRANGERS)
def test_a_copied_annotation_makes_no_volume_ours(volume: dict[str, Any]) -> None:
    before = injected(pod())
    before["spec"]["volumes"] = [volume]
    assert find_obstacle(before) is not None


def test_a_copied_annotation_and_volume_make_no_pod_ours_without_our_sidecar() -> None:
    before = injected(pod())
    before["spec"]["initContainers"] = []
    assert "engram-config" in (find_obstacle(before) or "")


def test_a_container_of_an_injected_pod_that_mounts_the_credentials_is_an_obstacle() -> None:
    before = injected(pod())
    assert find_obstacle(before) is None
    before["spec"]["containers"][0]["volumeMounts"] = [{"name": CONFIG_VOLUME, "mountPath": "/x"}]
    assert "credentials" in (find_obstacle(before) or "")


def test_another_sidecar_replaces_the_old_one_where_it_stands() -> None:
    old = injected(pod(initContainers=[{"name": "setup", "image": "x"}], volumes=[{"name": "data", "emptyDir": {}}]))
    old["spec"]["initContainers"].insert(0, {"name": "mesh", "image": "y", "env": [{"name": ENV_URL, "value": "z"}]})
    assert find_obstacle(old) is None
    new = injected(old, "sales", Sidecar("engram-sidecar:2", "Always", {}))
    assert [each["name"] for each in new["spec"]["initContainers"]] == ["mesh", "engram", "setup"]
    assert [each["name"] for each in new["spec"]["volumes"]] == ["data", CONFIG_VOLUME]
    assert new["spec"]["initContainers"][1]["image"] == "engram-sidecar:2"
    assert new["spec"]["volumes"][1] == build_volume("sales")
    marks = [each["metadata"]["annotations"][SIDECAR_HASH_ANNOTATION] for each in (old, new)]
    assert marks[0] != marks[1]


def test_a_container_that_came_after_us_is_told_at_the_second_call() -> None:
    once = injected(pod())
    once["spec"]["containers"].append({"name": "late", "image": "x"})
    assert build_patch(once, "support", SIDECAR) == (
        {"op": "add", "path": "/spec/containers/1/env", "value": [{"name": ENV_URL, "value": SIDECAR_URL}]},
    )


NAMES = st.sampled_from(["a", "b", "setup", "mesh", "x~y/z"])
ENV = st.lists(st.fixed_dictionaries({"name": st.sampled_from(["A", "B", ENV_URL]), "value": NAMES}), max_size=3)
CONTAINERS = st.lists(
    st.fixed_dictionaries(
        {"name": NAMES, "image": NAMES}, optional={"env": st.none() | ENV, "ports": st.just([{"containerPort": 80}])}
    ),
    max_size=3,
)
MARKS = st.none() | st.dictionaries(st.sampled_from([INJECTED_LABEL, "app", "x~y/z"]), NAMES, max_size=3)
PODS = st.fixed_dictionaries(
    {
        "metadata": st.fixed_dictionaries({}, optional={"labels": MARKS, "annotations": MARKS, "name": NAMES}),
        "spec": st.fixed_dictionaries(
            {"containers": CONTAINERS},
            optional={
                "initContainers": st.none() | CONTAINERS,
                "volumes": st.none() | st.lists(st.fixed_dictionaries({"name": NAMES}), max_size=2),
                "nodeName": NAMES,
            },
        ),
    }
)


@given(before=PODS)
def test_the_patch_adds_the_sidecar_and_nothing_else_and_twice_is_once(before: dict[str, Any]) -> None:
    after = injected(before)
    assert build_patch(after, "support", SIDECAR) == ()
    assert without_ours(after) == without_ours(before)
    assert after["spec"]["initContainers"][0] == build_container(SIDECAR)
    assert after["spec"]["volumes"][-1] == build_volume("support")
    assert after["metadata"]["labels"][INJECTED_LABEL] == "true"
    others = [*after["spec"]["initContainers"][1:], *after["spec"]["containers"]]
    assert all(ENV_URL in {each["name"] for each in other["env"]} for other in others)


def without_ours(given: dict[str, Any]) -> dict[str, Any]:
    """The pod without all that is the injector's; what is empty then is as good as absent."""
    result = copy.deepcopy(given)
    for kind, mark in (("labels", INJECTED_LABEL), ("annotations", SIDECAR_HASH_ANNOTATION)):
        kept = {name: value for name, value in (result["metadata"].get(kind) or {}).items() if name != mark}
        result["metadata"][kind] = kept
    spec = result["spec"]
    spec["volumes"] = [each for each in spec.get("volumes") or () if each["name"] != CONFIG_VOLUME]
    spec["initContainers"] = [each for each in spec.get("initContainers") or () if each["name"] != SIDECAR_CONTAINER]
    for container in [*spec["initContainers"], *spec["containers"]]:
        added = {"name": ENV_URL, "value": SIDECAR_URL}
        container["env"] = [each for each in container.get("env") or () if each != added]
    return result


def review(before: dict[str, Any], **request: Any) -> bytes:  # noqa: ANN401  members of a request
    asked = {
        "uid": "u-1",
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "operation": "CREATE",
        "namespace": "agents",
        "object": before,
        **request,
    }
    return json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": asked}).encode()


def test_a_review_is_answered_with_the_patch_and_the_uid() -> None:
    asked = Review.from_json(review(pod()))
    answer = json.loads(judge(asked, ("support",), SIDECAR).to_json(asked.uid))
    assert (answer["apiVersion"], answer["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    response = answer["response"]
    assert (response["uid"], response["allowed"], response["patchType"]) == ("u-1", True, "JSONPatch")
    assert patched(pod(), json.loads(base64.b64decode(response["patch"]))) == injected(pod())
    assert "warnings" not in response


@pytest.mark.parametrize(
    ("annotation", "tenants", "words"),
    [
        ("", (), "namespace agents has no MemoryTenant; create one"),
        ("", ("a", "b"), f"several MemoryTenants; name one in the annotation {TENANT_ANNOTATION}"),
        ("gone", (), "no MemoryTenant 'gone'"),
        ("../../secrets", (), "no MemoryTenant '../../secrets'"),
        ("x" * 9_000, (), "no MemoryTenant 'xxx"),
    ],
)
def test_a_pod_whose_tenant_is_not_clear_is_allowed_with_a_warning(
    annotation: str, tenants: tuple[str, ...], words: str
) -> None:
    before = pod()
    before["metadata"]["annotations"] = {TENANT_ANNOTATION: annotation}
    verdict = judge(Review.from_json(review(before)), tenants, SIDECAR)
    response = json.loads(verdict.to_json("u-1"))["response"]
    assert response["allowed"] is True
    assert "patch" not in response
    (warning,) = response["warnings"]
    assert words in warning
    assert len(warning) <= 256


def test_every_warning_fits_into_what_the_api_server_shows_whole() -> None:
    for more in ({"ports": [{"containerPort": 7711}]}, {"volumeMounts": [{"name": CONFIG_VOLUME}]}):
        conflict = find_obstacle(pod(containers=[{"name": "c" * 63, **more}]))
        assert conflict is not None
        assert len(json.loads(Verdict(warning=conflict).to_json("u"))["response"]["warnings"][0]) < 256


@pytest.mark.parametrize(
    "asked",
    [
        review({**pod(), "metadata": {"labels": {INJECT_LABEL: "false"}}}),
        review({**pod(), "metadata": {}}),
        review({**pod(), "metadata": {"labels": {INJECT_LABEL: "TRUE"}}}),
        review(pod(), operation="UPDATE"),
        review(pod(), subResource="ephemeralcontainers"),
        review(pod(), kind={"group": "apps", "kind": "Deployment"}),
        review(pod(), kind={"group": "", "kind": "Binding"}, object=None),
    ],
)
def test_who_does_not_ask_gets_nothing(asked: bytes) -> None:
    assert judge(Review.from_json(asked), ("support",), SIDECAR) == Verdict()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\xff",
        b'{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}',
        b'{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview","request":{"uid":"u"}}',
        review(pod(), uid=""),
        review(pod(), uid=7),
        review(pod(), namespace=None),
        review(pod(), namespace=""),
        review(pod(), namespace="../secrets"),
        review(pod(), namespace="a" * 64),
        review(pod(), uid="u" * 129),
        review(pod(), object=[]),
        review({"metadata": []}),
        review({"metadata": {"labels": "x"}}),
        review({"metadata": {"labels": {INJECT_LABEL: ["true"]}}}),
        review({"metadata": {"annotations": {TENANT_ANNOTATION: 7}}}),
        review({"spec": "x"}),
        review(pod(os="linux")),
        review(pod(containers={})),
        review(pod(initContainers=["x"])),
        review(pod(volumes=[None])),
        review(pod(containers=[{**APP, "env": "x"}])),
        review(pod(containers=[{**APP, "volumeMounts": [7]}])),
        b"[" * 100_000,
    ],
)
def test_what_is_no_review_is_said_to_be_none(body: bytes) -> None:
    with pytest.raises(BadReview):
        Review.from_json(body)
