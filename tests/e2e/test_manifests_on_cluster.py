"""What the operator builds is what the API server gives back: else each look at an object would find it changed.

The objects are those of tests/unit/golden. They are applied as the operator applies, in a namespace that takes
`restricted` pods only; a StatefulSet without members, because here counts what is written, not what runs.
"""

import http
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from engram_contract.names import API_VERSION, CLUSTER_KIND
from engram_operator.manifests.meta import quantity_of_bytes, quantity_of_millis
from tests.e2e.cluster import Cluster
from tests.e2e.releases import RESTRICTED

GOLDEN: Final = Path(__file__).resolve().parents[1] / "unit" / "golden"
SPACE: Final = "golden"  # the namespace and the owner that the files name
OWNER_UID: Final = "00000000-0000-4000-8000-000000000001"
MANAGER: Final = "engram-operator"
PATHS: Final = {
    "ConfigMap": "api/v1",
    "NetworkPolicy": "apis/networking.k8s.io/v1",
    "PodDisruptionBudget": "apis/policy/v1",
    "Role": "apis/rbac.authorization.k8s.io/v1",
    "RoleBinding": "apis/rbac.authorization.k8s.io/v1",
    "Secret": "api/v1",
    "Service": "api/v1",
    "ServiceAccount": "api/v1",
    "StatefulSet": "apis/apps/v1",
}
Json = dict[str, Any]


@pytest.fixture(scope="module")
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace that enforces Pod Security `restricted`."""
    with cluster.namespace("manifests") as name:
        cluster.request("PATCH", f"/api/v1/namespaces/{name}", {"metadata": {"labels": RESTRICTED}})
        yield name


@pytest.fixture
def owner_uid(cluster: Cluster, crds: None, namespace: str) -> Iterator[str]:
    """The owner, which must exist: what has none is collected as garbage."""
    folder = f"/apis/{API_VERSION}/namespaces/{namespace}/memoryclusters"
    body = {"apiVersion": API_VERSION, "kind": CLUSTER_KIND, "metadata": {"name": "memory"}, "spec": {}}
    status, answer = cluster.request("POST", folder, body)
    assert status == http.HTTPStatus.CREATED, answer
    yield str(answer["metadata"]["uid"])
    cluster.request("DELETE", f"{folder}/memory")


def path_of(manifest: Json, *, is_named: bool = True) -> str:
    """Where the API server has the object."""
    kind, metadata = manifest["kind"], manifest["metadata"]
    plural = "networkpolicies" if kind == "NetworkPolicy" else f"{kind.lower()}s"
    folder = f"/{PATHS[kind]}/namespaces/{metadata['namespace']}/{plural}"
    return f"{folder}/{metadata['name']}" if is_named else folder


def apply(cluster: Cluster, manifest: Json, **query: str) -> Json:
    """The object after it was applied as the operator applies it."""
    status, answer = cluster.request(
        "APPLY", path_of(manifest), manifest, fieldManager=MANAGER, force="true", fieldValidation="Strict", **query
    )
    assert status in (http.HTTPStatus.OK, http.HTTPStatus.CREATED), (manifest["metadata"]["name"], answer)
    return answer


def differences(built: object, live: object, path: str = "") -> Iterator[str]:
    """Where the live object is not what was built; what it has beside that does not count."""
    if isinstance(built, dict) and isinstance(live, dict):
        for key, value in built.items():
            yield from differences(value, live.get(key), f"{path}.{key}")
    elif isinstance(built, list) and isinstance(live, list) and len(built) == len(live):
        for index, (one, other) in enumerate(zip(built, live, strict=True)):
            yield from differences(one, other, f"{path}[{index}]")
    elif (type(built), built) != (type(live), live):
        yield f"{path}: built {built!r}, live {live!r}"


def objects_of(name: str, namespace: str, uid: str) -> list[Json]:
    """The objects of a golden file, for this namespace and owner."""
    text = (GOLDEN / f"{name}.yaml").read_text().replace(f"namespace: {SPACE}\n", f"namespace: {namespace}\n")
    objects = list(yaml.safe_load_all(text.replace(OWNER_UID, uid)))
    for each in objects:
        if each["kind"] == "StatefulSet":
            each["spec"]["replicas"] = 0
    return objects


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("*.yaml")))
def test_every_object_comes_back_as_it_was_built(cluster: Cluster, namespace: str, owner_uid: str, name: str) -> None:
    objects = objects_of(name, namespace, owner_uid)
    try:
        first = [apply(cluster, each) for each in objects]
        lives = [cluster.request("GET", path_of(each))[1] for each in objects]
        found = [
            f"{each['kind']} {each['metadata']['name']}{difference}"
            for each, live in zip(objects, lives, strict=True)
            for difference in differences(each, live)
        ]
        assert found == []
        second = [apply(cluster, each) for each in objects]
        changed = [
            each["metadata"]["name"]
            for each, before, after in zip(objects, first, second, strict=True)
            if each["kind"] not in {"StatefulSet", "PodDisruptionBudget"}  # their controllers write a status meanwhile
            and before["metadata"]["resourceVersion"] != after["metadata"]["resourceVersion"]
        ]
        assert changed == [], "applied twice, they must be as they were"
        generations = [
            (one["metadata"].get("generation"), two["metadata"].get("generation"))
            for one, two in zip(first, second, strict=True)
        ]
        assert [pair for pair in generations if pair[0] != pair[1]] == []
    finally:
        for each in reversed(objects):
            cluster.request("DELETE", path_of(each), propagationPolicy="Background")
        cluster.wait_until(
            "the objects to be gone", lambda: all(cluster.request("GET", path_of(each))[0] == 404 for each in objects)
        )


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("*.yaml")))
def test_every_pod_is_restricted(cluster: Cluster, namespace: str, owner_uid: str, name: str) -> None:
    for each in objects_of(name, namespace, owner_uid):
        if each["kind"] != "StatefulSet":
            continue
        template = each["spec"]["template"]
        spec = {key: value for key, value in template["spec"].items() if key != "serviceAccountName"}
        claims = [{"name": "data", "persistentVolumeClaim": {"claimName": "c"}}] if "memory-s" in str(template) else []
        spec = spec | {"volumes": spec["volumes"] + claims}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", **template["metadata"]}, "spec": spec}
        status, answer = cluster.request("POST", f"/api/v1/namespaces/{namespace}/pods", body, dryRun="All")
        assert status == http.HTTPStatus.CREATED, answer


@pytest.mark.parametrize("amount", [1000, 1023, 1024, 10**9, 1500 << 20, 10 << 30, 3 << 40, 1024 * 1000])
def test_an_amount_of_bytes_is_kept_as_it_is_written(cluster: Cluster, namespace: str, amount: int) -> None:
    text = quantity_of_bytes(amount)
    assert limits_of(cluster, namespace, {"memory": text}) == {"memory": text}


@pytest.mark.parametrize("millis", [1, 250, 1000, 1500, 12_000, 2_000_000])
def test_an_amount_of_cpu_is_kept_as_it_is_written(cluster: Cluster, namespace: str, millis: int) -> None:
    text = quantity_of_millis(millis)
    assert limits_of(cluster, namespace, {"cpu": text}) == {"cpu": text}


def limits_of(cluster: Cluster, namespace: str, hard: Json) -> object:
    """The limits of a ResourceQuota as the API server would keep them."""
    body = {"metadata": {"name": "q"}, "spec": {"hard": hard}}
    status, answer = cluster.request("POST", f"/api/v1/namespaces/{namespace}/resourcequotas", body, dryRun="All")
    assert status == http.HTTPStatus.CREATED, answer
    return answer["spec"]["hard"]


def test_a_claims_template_cannot_change(cluster: Cluster, namespace: str, owner_uid: str) -> None:
    """Why the label that changes is not in it; and why a larger volume is more than a changed number."""
    shard = next(each for each in objects_of("smallest", namespace, owner_uid) if each["kind"] == "StatefulSet")
    apply(cluster, shard)
    try:
        for change in (
            {"metadata": {"labels": {"more": "x"}}},
            {"spec": {"resources": {"requests": {"storage": "1Gi"}}}},
        ):
            claim = shard["spec"]["volumeClaimTemplates"][0]
            changed = claim | {part: claim[part] | value for part, value in change.items()}
            body = shard | {"spec": shard["spec"] | {"volumeClaimTemplates": [changed]}}
            status, answer = cluster.request("APPLY", path_of(body), body, fieldManager=MANAGER, force="true")
            assert (status, answer["reason"]) == (http.HTTPStatus.UNPROCESSABLE_ENTITY, "Invalid"), answer
    finally:
        cluster.request("DELETE", path_of(shard))
