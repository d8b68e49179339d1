"""What the injector adds to a pod, to which pods it adds nothing and says why, and that twice is once."""

import base64
import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_contract import names
from engram_contract.names import (
    ADMIN_PORT_ANNOTATION,
    AGENT_LABEL,
    APPLIED_ANNOTATION,
    CONFIG_VOLUME,
    CPU_LIMIT_ANNOTATION,
    CPU_REQUEST_ANNOTATION,
    DRAIN_ANNOTATION,
    ENV_URL,
    HTTP_PORT,
    HTTP_PORT_ANNOTATION,
    INJECT_LABEL,
    INJECTED_LABEL,
    LOG_LEVEL_ANNOTATION,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    MEMORY_LIMIT_ANNOTATION,
    MEMORY_REQUEST_ANNOTATION,
    ROTATE_ANNOTATION,
    ROTATE_KEY_ANNOTATION,
    SHAPE_ANNOTATION,
    SIDECAR_BEFORE_ANNOTATION,
    SIDECAR_CONTAINER,
    SIDECAR_HASH_ANNOTATION,
    STAGED_ANNOTATION,
    TENANT_ANNOTATION,
    UPDATE_ANNOTATION,
)
from engram_contract.policy import Agent
from engram_operator.admission import Candidate, Review, Verdict, judge
from engram_operator.errors import BadReview
from engram_operator.injection import Sidecar, build_container, build_patch, build_volume, find_obstacle, sidecar_url
from engram_operator.tuning import Tuning
from tests.operator_stage import patched

SIDECAR = Sidecar("engram-sidecar:1", "IfNotPresent", {"requests": {"cpu": "50m"}, "limits": {"memory": "256Mi"}})
PAGE = Path(__file__).resolve().parents[2] / "docs" / "sidecar.md"
APP = {"name": "app", "image": "app:1"}
SIDECAR_URL = sidecar_url(HTTP_PORT)


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
    assert {each["name"]: each["valueFrom"]["fieldRef"]["fieldPath"] for each in container["env"][1:]} == {
        "ENGRAM_HOST": "status.podIP",
        "ENGRAM_AGENT": "metadata.labels['engram.dev/agent']",
        "ENGRAM_SERVICE_ACCOUNT": "spec.serviceAccountName",
        "ENGRAM_POD_NAME": "metadata.name",
        "ENGRAM_POD_UID": "metadata.uid",
    }
    assert container["env"][0] == {"name": "ENGRAM_CONFIG_DIR", "value": "/etc/engram"}
    assert container["startupProbe"] == {
        "httpGet": {"path": "/readyz", "port": 7712, "scheme": "HTTP"},
        "periodSeconds": 1,
        "failureThreshold": 120,
        "timeoutSeconds": 1,
    }
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"


def test_the_sidecar_is_told_where_to_send_traces_if_the_installation_has_a_place() -> None:
    endpoint = "http://collector.monitoring:4318"
    (container,) = injected(pod(), sidecar=replace(SIDECAR, otlp_endpoint=endpoint))["spec"]["initContainers"]
    told = {"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": endpoint}
    assert told in container["env"]
    assert not any(each["name"].startswith("OTEL_") for each in injected(pod())["spec"]["initContainers"][0]["env"])


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
                {
                    "secret": {
                        "name": "engram-tenant-support",
                        "items": [{"key": "keys.json", "path": "keys.json"}],
                        "optional": True,
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
    found = find_obstacle(before, SIDECAR)
    assert (found is None) if part is None else (found is not None and part in found)


def test_an_obstacle_is_found_behind_a_copied_annotation_too() -> None:
    before = pod(containers=[{**APP, "name": "engram"}])
    before["metadata"]["annotations"] = {SIDECAR_HASH_ANNOTATION: "0"}
    assert find_obstacle(before, SIDECAR) is not None


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
    assert find_obstacle(before, SIDECAR) is not None


def test_a_copied_annotation_and_volume_make_no_pod_ours_without_our_sidecar() -> None:
    before = injected(pod())
    before["spec"]["initContainers"] = []
    assert "engram-config" in (find_obstacle(before, SIDECAR) or "")


def test_a_container_of_an_injected_pod_that_mounts_the_credentials_is_an_obstacle() -> None:
    before = injected(pod())
    assert find_obstacle(before, SIDECAR) is None
    before["spec"]["containers"][0]["volumeMounts"] = [{"name": CONFIG_VOLUME, "mountPath": "/x"}]
    assert "credentials" in (find_obstacle(before, SIDECAR) or "")


def test_another_sidecar_replaces_the_old_one_where_it_stands() -> None:
    old = injected(pod(initContainers=[{"name": "setup", "image": "x"}], volumes=[{"name": "data", "emptyDir": {}}]))
    old["spec"]["initContainers"].insert(0, {"name": "mesh", "image": "y", "env": [{"name": ENV_URL, "value": "z"}]})
    assert find_obstacle(old, SIDECAR) is None
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


def annotated(**annotations: str) -> dict[str, Any]:
    return {**pod(), "metadata": {"annotations": annotations}}


def test_a_pod_tunes_its_own_sidecar() -> None:
    asked = {
        CPU_REQUEST_ANNOTATION: "100m",
        MEMORY_LIMIT_ANNOTATION: "1Gi",
        LOG_LEVEL_ANNOTATION: "debug",
        DRAIN_ANNOTATION: "0",
        HTTP_PORT_ANNOTATION: "8711",
        ADMIN_PORT_ANNOTATION: "8712",
    }
    before = annotated(**asked)
    assert find_obstacle(before, SIDECAR) is None
    spec = injected(before)["spec"]
    (container,) = spec["initContainers"]
    assert container["resources"] == {"requests": {"cpu": "100m"}, "limits": {"memory": "1Gi"}}
    assert {each["name"]: each.get("value") for each in container["env"]}.items() >= {
        ("ENGRAM_LOG_LEVEL", "debug"),
        ("ENGRAM_DRAIN_SECONDS", "0"),
        ("ENGRAM_HTTP_PORT", "8711"),
        ("ENGRAM_ADMIN_PORT", "8712"),
    }
    assert container["ports"][0]["containerPort"] == 8712
    assert {container[f"{kind}Probe"]["httpGet"]["port"] for kind in ("startup", "liveness", "readiness")} == {8712}
    assert spec["containers"][0]["env"] == [{"name": ENV_URL, "value": "http://127.0.0.1:8711"}]
    assert SIDECAR.resources == {"requests": {"cpu": "50m"}, "limits": {"memory": "256Mi"}}, (
        "the next pod's are its own"
    )


def test_ports_are_judged_as_the_pod_tunes_them() -> None:
    before = pod(containers=[{**APP, "ports": [{"containerPort": 7711}]}])
    before["metadata"]["annotations"] = {HTTP_PORT_ANNOTATION: "8711"}
    assert find_obstacle(before, SIDECAR) is None
    before["spec"]["containers"][0]["ports"] = [{"containerPort": 8711}]
    assert "declares port 8711" in (find_obstacle(before, SIDECAR) or "")


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        (CPU_REQUEST_ANNOTATION, "much", "no amount of CPU"),
        (CPU_LIMIT_ANNOTATION, "0", "more than 0"),
        (CPU_LIMIT_ANNOTATION, "10m", None),
        (CPU_LIMIT_ANNOTATION, "60m", ""),
        (MEMORY_REQUEST_ANNOTATION, "257Mi", "above its limit 256Mi"),
        (MEMORY_REQUEST_ANNOTATION, "256Mi", ""),
        (MEMORY_REQUEST_ANNOTATION, "-1", "no amount of bytes"),
        (MEMORY_LIMIT_ANNOTATION, "1GB", "no amount of bytes"),
        (MEMORY_LIMIT_ANNOTATION, "", "no amount of bytes"),
        (LOG_LEVEL_ANNOTATION, "WARN", "none of debug, info, warning, error"),
        (LOG_LEVEL_ANNOTATION, "", "none of debug"),
        (DRAIN_ANNOTATION, "121", "from 0 to 120"),
        (DRAIN_ANNOTATION, "120", ""),
        (DRAIN_ANNOTATION, "1.5", "no whole number"),
        (HTTP_PORT_ANNOTATION, "1023", "from 1024 to 65535"),
        (HTTP_PORT_ANNOTATION, "65536", "from 1024 to 65535"),
        (HTTP_PORT_ANNOTATION, "7712", "both"),
        (ADMIN_PORT_ANNOTATION, "7711", "both"),
        (ADMIN_PORT_ANNOTATION, "x" * 9_000, "no whole number"),
    ],
)
def test_a_bad_annotation_is_named_with_its_reason(name: str, value: str, reason: str | None) -> None:
    found = find_obstacle(annotated(**{name: value}), SIDECAR)
    if reason == "":
        assert found is None
    else:
        assert found is not None
        assert found.startswith(f"annotation {name}: ")
        assert (reason or "above its limit 10m") in found


def test_the_page_has_every_annotation_once() -> None:
    table = re.findall(r"^\| `([a-z.]+/[a-z-]+)` \|", PAGE.read_text(), re.MULTILINE)
    made = {
        SIDECAR_HASH_ANNOTATION,
        SIDECAR_BEFORE_ANNOTATION,
        APPLIED_ANNOTATION,
        SHAPE_ANNOTATION,
        STAGED_ANNOTATION,
    }
    asked_of_others = {ROTATE_ANNOTATION, ROTATE_KEY_ANNOTATION, UPDATE_ANNOTATION}
    every = {value for name, value in vars(names).items() if name.endswith("_ANNOTATION")}
    assert sorted(table) == sorted(every - made - asked_of_others)


def test_an_address_that_an_earlier_injection_gave_follows_the_port_and_others_stay() -> None:
    own = {"name": ENV_URL, "value": "http://elsewhere"}
    once = injected(
        pod(containers=[APP, {**APP, "name": "b", "env": [{"name": "A"}]}, {**APP, "name": "c", "env": [own]}])
    )
    once["metadata"]["annotations"][HTTP_PORT_ANNOTATION] = "8711"
    twice = injected(once)
    new = {"name": ENV_URL, "value": "http://127.0.0.1:8711"}
    assert [each["env"] for each in twice["spec"]["containers"]] == [[new], [{"name": "A"}, new], [own]]
    assert len(twice["spec"]["initContainers"]) == 1
    assert build_patch(twice, "support", SIDECAR) == ()
    del twice["metadata"]["annotations"][HTTP_PORT_ANNOTATION]
    assert injected(twice)["spec"] == injected(pod(containers=once["spec"]["containers"]))["spec"]


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
    assert after["spec"]["initContainers"][0] == build_container(SIDECAR, Tuning(SIDECAR.resources))
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


SUPPORT = Candidate("support", (Agent("*", "*"),))


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
    answer = json.loads(judge(asked, (SUPPORT,), SIDECAR).to_json(asked.uid))
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
    verdict = judge(Review.from_json(review(before)), tuple(map(Candidate, tenants)), SIDECAR)
    response = json.loads(verdict.to_json("u-1"))["response"]
    assert response["allowed"] is True
    assert "patch" not in response
    (warning,) = response["warnings"]
    assert words in warning
    assert len(warning) <= 256


def test_every_warning_fits_into_what_the_api_server_shows_whole() -> None:
    for more in ({"ports": [{"containerPort": 7711}]}, {"volumeMounts": [{"name": CONFIG_VOLUME}]}):
        conflict = find_obstacle(pod(containers=[{"name": "c" * 63, **more}]), SIDECAR)
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
    assert judge(Review.from_json(asked), (SUPPORT,), SIDECAR) == Verdict()


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
        review(pod(serviceAccountName=7)),
        review(pod(containers=[{**APP, "env": "x"}])),
        review(pod(containers=[{**APP, "volumeMounts": [7]}])),
        b"[" * 100_000,
    ],
)
def test_what_is_no_review_is_said_to_be_none(body: bytes) -> None:
    with pytest.raises(BadReview):
        Review.from_json(body)


def tenant(allowed: object) -> Candidate:
    return Candidate.from_resource({"metadata": {"name": "support"}, "spec": {"allowedAgents": allowed}})


BOTS = [{"name": "bot-*", "serviceAccount": "runner"}, {"name": "clerk"}]


@pytest.mark.parametrize(
    ("allowed", "label", "account", "words"),
    [
        (None, None, None, None),
        (None, None, "runner", None),
        (None, "", "runner", None),
        ([], "runner", "runner", None),
        (None, "bot", None, "has no spec.allowedAgents, so it does not admit agent bot of ServiceAccount default"),
        (BOTS, "bot-7", "runner", None),
        (BOTS, None, "clerk", None),
        (BOTS, "bot-7", "clerk", "does not admit agent bot-7 of ServiceAccount clerk (spec.allowedAgents)"),
        (BOTS, None, None, "does not admit agent default of ServiceAccount default"),
        ([{"name": "Bot!"}], "bot", None, "of MemoryTenant support, spec.allowedAgents[0].name: "),
        ([{"nme": "bot"}], "bot", None, "of MemoryTenant support, spec.allowedAgents[0].nme: unknown field"),
        ("bot", "bot", None, "spec.allowedAgents: 'bot' is no list"),
        (7, None, None, "spec.allowedAgents: 7 is no list"),
    ],
)
def test_only_agents_that_the_tenant_admits_get_its_memory(
    allowed: object, label: str | None, account: str | None, words: str | None
) -> None:
    before = pod(**({} if account is None else {"serviceAccountName": account}))
    before["metadata"]["labels"] |= {} if label is None else {AGENT_LABEL: label}
    verdict = judge(Review.from_json(review(before)), (tenant(allowed),), SIDECAR)
    assert bool(verdict.operations) == (words is None)
    assert (words or "") in verdict.warning


@pytest.mark.parametrize("spec", [None, [], "x", {}, {"isolation": 7, "unknown": {}}])
def test_what_else_is_wrong_with_a_tenant_is_not_admissions_business(spec: object) -> None:
    found = Candidate.from_resource({"metadata": {"name": "support"}, "spec": spec})
    assert judge(Review.from_json(review(pod())), (found,), SIDECAR).operations


@pytest.mark.parametrize(
    ("label", "is_namespace_wide", "is_injected"),
    [
        (None, True, True),
        ("", True, True),
        ("yes", True, True),
        ("true", True, True),
        ("false", True, False),
        (None, False, False),
        ("true", False, True),
    ],
)
def test_a_namespace_asks_for_every_pod_that_does_not_decline(
    label: str | None, is_namespace_wide: bool, is_injected: bool
) -> None:
    before = {**pod(), "metadata": {"labels": {} if label is None else {INJECT_LABEL: label}}}
    asked = Review.from_json(review(before), is_namespace_wide=is_namespace_wide)
    assert bool(judge(asked, (SUPPORT,), SIDECAR).operations) == is_injected


def test_a_shard_in_a_namespace_that_asks_is_let_alone() -> None:
    before = {**pod(), "metadata": {"labels": {MANAGED_BY_LABEL: MANAGED_BY}}}
    assert judge(Review.from_json(review(before), is_namespace_wide=True), (SUPPORT,), SIDECAR) == Verdict()


def test_a_namespaces_pod_with_an_obstacle_is_told_too() -> None:
    asked = Review.from_json(review({**pod(hostNetwork=True), "metadata": {}}), is_namespace_wide=True)
    assert "hostNetwork" in judge(asked, (SUPPORT,), SIDECAR).warning


@pytest.mark.parametrize(
    ("body", "flaw"),
    [
        ({"metadata": {"name": "t", "deletionTimestamp": "2026-11-21T00:00:00Z"}}, "is being deleted"),
        (
            {"metadata": {"name": "t"}, "status": {"conditions": [{"type": "Ready", "reason": "NotAdmitted"}]}},
            "namespaceSelector",
        ),
        ({"metadata": {"name": "t"}, "status": {"conditions": [{"type": "Ready", "reason": "ShardSilent"}]}}, ""),
        ({"metadata": {"name": "t"}, "status": {"conditions": ["odd", None]}}, ""),
        ({"metadata": {"name": "t"}, "status": "odd"}, ""),
    ],
)
def test_a_tenant_whose_files_never_come_gets_no_pods(body: dict[str, Any], flaw: str) -> None:
    found = Candidate.from_resource(body)
    assert bool(found.flaw) is bool(flaw)
    assert flaw in found.flaw
