"""What clusters are made of: three whole ones as files, and what holds for each. As a program this writes the files."""

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from engram_contract.names import CLUSTER_LABEL, MANAGED_BY_LABEL, PROTECTED_LABEL, SHARD_LABEL
from engram_contract.quantities import bytes_of, millicores_of
from engram_contract.spec_cluster import MAX_CLUSTER_NAME_CHARS, ClusterSpec
from engram_operator.manifests.access import build_rules
from engram_operator.manifests.cluster import Present, build_cluster, build_shard
from engram_operator.manifests.credentials import Credentials, KeyPair, build_credentials_file, build_keys_secret
from engram_operator.manifests.meta import Manifest, Owner, quantity_of_bytes, quantity_of_millis
from engram_operator.manifests.names import ClusterNames
from engram_operator.manifests.patroni import build_dynamic, build_local
from engram_operator.manifests.site import Site
from engram_operator.manifests.storage import build_claim

GOLDEN = Path(__file__).resolve().parent / "golden"
NAMESPACE, UID = "golden", "00000000-0000-4000-8000-000000000001"
SITE = Site("engram-system", (("app.kubernetes.io/component", "operator"),), "engram-postgres:1", "redis:8")
CREDENTIALS = Credentials("c1", "super", "a", "repl", "rewind", "rest", "pool", "cache")
PAIR = KeyPair(b"certificate", b"key", b"authority")
SPECS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": {
        "shards": 2,
        "replicas": 2,
        "storage": {"size": "1.5Gi", "storageClassName": "fast"},
        "postgres": {
            "image": "registry.example/postgres:18",
            "resources": {"requests": {"cpu": "1.5", "memory": "2Gi"}, "limits": {"cpu": 2, "memory": "4000M"}},
            "parameters": {"work_mem": "8MB", "max_connections": 250},
        },
        "pooler": {"enabled": True, "maxConnections": 80},
        "scheduling": {
            "antiAffinity": "Required",
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [
                {"key": "memory", "value": "only", "effect": "NoSchedule"},
                {"key": "spot", "operator": "Exists"},
            ],
        },
        "cache": {"provider": "Managed", "capacity": "100Mi"},
        "access": {
            "namespaceSelector": {
                "matchLabels": {"team": "a"},
                "matchExpressions": [
                    {"key": "stage", "operator": "In", "values": ["prod", "test"]},
                    {"key": "old", "operator": "DoesNotExist"},
                ],
            }
        },
    },
    "smallest": {
        "replicas": 0,
        "storage": {"size": "256Mi", "reclaimPolicy": "Delete"},
        "postgres": {"tls": {"enabled": False}},
        "cache": {"provider": "None"},
        "deletionProtection": False,
    },
}
EMPTY: tuple[object, ...] = (None, "", [], {})


def spec_of(body: dict[str, Any], name: str = "memory") -> ClusterSpec:
    metadata = {"name": name, "namespace": NAMESPACE}
    return ClusterSpec.from_resource(
        {"apiVersion": "engram.dev/v1alpha1", "kind": "MemoryCluster", "metadata": metadata, "spec": body}
    )


def objects_of(spec: ClusterSpec, site: Site = SITE) -> list[Manifest]:
    """The cluster and all its shards, in the order in which they are applied."""
    owner = Owner(spec.namespace, spec.name, UID)
    pair = PAIR if spec.postgres.tls.enabled else None
    shards = [each for shard in spec.shards for each in build_shard(spec, shard.id, owner, site)]
    members = {shard.id: spec.replicas + 1 for shard in spec.shards}
    return [*build_cluster(spec, owner, site, CREDENTIALS, Present(pair, members)), *shards]


class _Whole(yaml.SafeDumper):
    """Every dict written out, however often it occurs."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def text_of(name: str) -> str:
    """The whole golden file."""
    return yaml.dump_all(objects_of(spec_of(SPECS[name])), Dumper=_Whole, sort_keys=False, width=120)


def members(thing: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Every member of every dict below, with its path."""
    if isinstance(thing, dict):
        for key, value in thing.items():
            yield f"{path}.{key}", value
            yield from members(value, f"{path}.{key}")
    elif isinstance(thing, list):
        for value in thing:
            yield from members(value, f"{path}[]")


def of_kind(objects: list[Manifest], kind: str) -> list[Manifest]:
    return [each for each in objects if each["kind"] == kind]


@pytest.fixture(params=SPECS, name="objects")
def _objects(request: pytest.FixtureRequest) -> list[Manifest]:
    return objects_of(spec_of(SPECS[request.param]))


@pytest.mark.parametrize("name", SPECS)
def test_a_cluster_is_what_its_file_shows(name: str) -> None:
    file = GOLDEN / f"{name}.yaml"
    assert file.read_text() == text_of(name), "look at the difference, then: python tests/unit/test_manifests.py"


def test_nothing_is_empty(objects: list[Manifest]) -> None:
    assert [path for each in objects for path, value in members(each) if value in EMPTY] == []


def test_an_empty_selector_stays_since_it_selects_everything() -> None:
    objects = objects_of(spec_of({"access": {"namespaceSelector": {}}}))
    assert [path for each in objects for path, value in members(each) if value in EMPTY] == [
        ".spec.ingress[].from[].namespaceSelector"
    ] * 2


def test_what_selects_members_selects_them(objects: list[Manifest]) -> None:
    for each in of_kind(objects, "StatefulSet"):
        labels = each["spec"]["template"]["metadata"]["labels"]
        assert each["spec"]["selector"]["matchLabels"].items() <= labels.items()
        selectors = [
            {key: value for key, value in service["spec"]["selector"].items() if key != "role"}
            for service in of_kind(objects, "Service")
        ]
        assert any(selector.items() <= labels.items() for selector in selectors)
        policies = [policy["spec"]["podSelector"]["matchLabels"] for policy in of_kind(objects, "NetworkPolicy")]
        assert sum(selector.items() <= labels.items() for selector in policies) == 1


def test_every_mount_has_a_volume_and_every_volume_a_mount(objects: list[Manifest]) -> None:
    for each in of_kind(objects, "StatefulSet"):
        pod, claims = each["spec"]["template"]["spec"], each["spec"].get("volumeClaimTemplates", [])
        volumes = {volume["name"] for volume in pod["volumes"]} | {claim["metadata"]["name"] for claim in claims}
        assert {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]} == volumes


def test_every_object_that_a_pod_needs_comes_before_it(objects: list[Manifest]) -> None:
    seen: set[tuple[str, str]] = set()
    for each in objects:
        if each["kind"] == "StatefulSet":
            found = dict(members(each["spec"]["template"]))
            text = json.dumps(each["spec"]["template"]["spec"]["volumes"])
            named = {("Secret", name) for name in re.findall(r'"secret(?:Name"|": {"name"): "([^"]+)"', text)}
            named |= {("ConfigMap", name) for name in re.findall(r'"configMap": {"name": "([^"]+)"', text)}
            account = found.get(".spec.serviceAccountName")
            assert named | ({("ServiceAccount", str(account))} if account else set()) <= seen
            assert ("Service", each["spec"]["serviceName"]) in seen
        seen.add((each["kind"], each["metadata"]["name"]))


@pytest.mark.parametrize(
    ("body", "ownerless"),
    [
        ({}, {"memory-credentials", "memory-s0-config"}),
        ({"storage": {"reclaimPolicy": "Delete"}}, set[str]()),
    ],
)
def test_what_the_volumes_need_lives_as_long_as_they(body: dict[str, Any], ownerless: set[str]) -> None:
    objects = objects_of(spec_of(body))
    free = {each["metadata"]["name"] for each in objects if "ownerReferences" not in each["metadata"]}
    assert free == ownerless


@pytest.mark.parametrize("is_protected", [True, False])
def test_protection_marks_what_must_not_go(is_protected: bool) -> None:
    spec = spec_of({"deletionProtection": is_protected, "cache": {"provider": "None"}})
    marked = {
        (each["kind"], each["metadata"]["name"])
        for each in objects_of(spec)
        if PROTECTED_LABEL in each["metadata"]["labels"]
    }
    everything = {("Secret", "memory-credentials"), ("StatefulSet", "memory-s0")}
    assert marked == (everything if is_protected else set())
    labels = {} if is_protected else {PROTECTED_LABEL: "true"}  # what is to change; an unmarked claim may stay unmarked
    claim = {"metadata": {"name": "data-memory-s0-1", "namespace": NAMESPACE, "uid": UID, "labels": labels}}
    mark = build_claim(claim, 1 << 30, is_protected=is_protected)["metadata"]
    assert mark["labels"] == {PROTECTED_LABEL: "true" if is_protected else "false"}
    keys = build_keys_secret(spec, Owner(NAMESPACE, "memory", UID), {"ca.key": b"key"})["metadata"]["labels"]
    assert (PROTECTED_LABEL in keys) is is_protected


def test_a_claim_never_changes_with_the_protection() -> None:
    def claims(is_protected: bool) -> object:
        shard = of_kind(objects_of(spec_of({"deletionProtection": is_protected})), "StatefulSet")[-1]
        return shard["spec"]["volumeClaimTemplates"]

    assert claims(is_protected=True) == claims(is_protected=False)


def test_patronis_own_objects_are_not_watched_by_the_operator() -> None:
    configs = [each for each in objects_of(spec_of({})) if each["metadata"]["name"] == "memory-s0-config"]
    assert [MANAGED_BY_LABEL in each["metadata"]["labels"] for each in configs] == [False]
    assert configs[0]["metadata"]["labels"].items() >= {CLUSTER_LABEL: "memory", SHARD_LABEL: "s0"}.items()


def test_patroni_may_change_exactly_its_own_state_and_its_members() -> None:
    named = {
        (rule["resources"][0], name): rule["verbs"]
        for rule in build_rules(ClusterNames("memory", NAMESPACE), {"s0": 2, "s1": 2})
        for name in rule.get("resourceNames", ())
    }
    states = [f"memory-{shard}-{part}" for shard in ("s0", "s1") for part in ("config", "failover", "leader", "sync")]
    pods = [f"memory-{shard}-{index}" for shard in ("s0", "s1") for index in (0, 1)]
    assert named == {("configmaps", name): ["get", "patch"] for name in states} | {
        ("pods", name): ["patch"] for name in pods
    }


def names_of(cluster: str, shards_count: int = 1) -> list[tuple[str, str]]:
    """Kind and name of all that a cluster has, with Patroni's objects, pods and volumes."""
    objects = objects_of(spec_of({"shards": shards_count}, cluster))
    found = {(each["kind"], each["metadata"]["name"]) for each in objects}
    shard = ClusterNames(cluster, NAMESPACE).shard(f"s{shards_count - 1}")
    found |= {("ConfigMap", name) for name in shard.dcs} | {("Pod", f"{cluster}-redis-0")}
    return [*found, ("Pod", shard.pod(15)), ("PersistentVolumeClaim", shard.claim(15))]


def test_every_name_is_a_label_also_in_the_largest_cluster() -> None:
    names = names_of("c" * MAX_CLUSTER_NAME_CHARS, shards_count=128)
    assert [name for _, name in names if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name)] == []


def test_clusters_in_one_namespace_share_no_object() -> None:
    clusters = ("a", "a-s0", "a-s0-s0", "a-redis", "a-shards", "a-s0-redis", "a-pods", "a-tls")
    names = [name for cluster in clusters for name in names_of(cluster)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "0"), (1023, "1023"), (1000, "1k"), (1024, "1Ki"), (10 << 30, "10Gi"), (1536 << 20, "1536Mi"), (10**7, "10M")],
)
def test_bytes_are_written_as_the_api_server_does(amount: int, text: str) -> None:
    assert quantity_of_bytes(amount) == text


@pytest.mark.parametrize(("millis", "text"), [(250, "250m"), (1000, "1"), (1500, "1500m"), (2_000_000, "2k")])
def test_cpu_is_written_as_the_api_server_does(millis: int, text: str) -> None:
    assert quantity_of_millis(millis) == text


@given(st.integers(0, 64 << 40), st.integers(1, 999_999))
def test_an_amount_is_the_same_when_it_is_read_again(amount_bytes: int, millis: int) -> None:
    assert bytes_of(quantity_of_bytes(amount_bytes)) == amount_bytes
    assert millicores_of(quantity_of_millis(millis)) == millis


def test_credentials_are_the_same_when_they_are_read_again() -> None:
    assert Credentials.from_data(CREDENTIALS.data) == CREDENTIALS
    shown = repr(CREDENTIALS)
    assert [word for word in ("super", "repl'", "rest'", "pool'") if f"'{word}" in shown] == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"superuser": None}, "no key superuser"),
        ({"letter": "Yw=="}, "letter is neither a nor b"),
        ({"redis": "not base64!"}, "key redis is no text"),
        ({"pooler": ""}, "key pooler is empty"),
    ],
)
def test_half_credentials_are_refused_by_the_name_of_the_key(change: dict[str, str | None], said: str) -> None:
    data = {key: value for key, value in (CREDENTIALS.data | change).items() if value is not None}
    with pytest.raises(ValueError, match=said):
        Credentials.from_data(data)


def test_the_letter_chooses_both_roles() -> None:
    users = json.loads(build_credentials_file(replace(CREDENTIALS, letter="b"), has_tls=True))
    names = {role: user["username"] for role, user in users["postgresql"]["authentication"].items()}
    assert names == {"superuser": "postgres", "replication": "replicator_b", "rewind": "rewinder_b"}
    assert users["postgresql"]["authentication"]["replication"]["sslmode"] == "verify-ca"


def test_what_a_user_sets_wins_and_what_is_the_pods_own_is_not_shared() -> None:
    spec = spec_of(SPECS["everything"])
    shared = build_dynamic(spec)["postgresql"]["parameters"]
    assert (shared["max_connections"], shared["work_mem"]) == ("250", "8MB")
    # Patroni takes the local file over the shared configuration: what stands in both, a user could not set.
    own = json.loads(build_local(spec))["postgresql"]["parameters"]
    assert own.keys() & shared.keys() == set()


@pytest.mark.parametrize(("replicas", "is_synchronous"), [(0, False), (1, True), (3, True)])
def test_a_commit_waits_for_a_replica_if_there_is_one(replicas: int, is_synchronous: bool) -> None:
    assert build_dynamic(spec_of({"replicas": replicas}))["synchronous_mode"] is is_synchronous


def test_wal_never_fills_the_smallest_volume() -> None:
    parameters = build_dynamic(spec_of(SPECS["smallest"]))["postgresql"]["parameters"]
    kept = sum(int(parameters[name][:-2]) for name in ("max_slot_wal_keep_size", "max_wal_size", "wal_keep_size"))
    assert kept <= 256 * 3 // 4


@pytest.mark.parametrize(("has_tls", "first"), [(True, "hostssl all"), (False, "host all")])
def test_without_tls_nobody_comes_in_where_there_is_tls(has_tls: bool, first: str) -> None:
    rules = json.loads(build_local(spec_of({"postgres": {"tls": {"enabled": has_tls}}})))["postgresql"]["pg_hba"]
    assert rules[1].startswith(first)
    assert [rule for rule in rules if rule.startswith("host ") and has_tls] == []


def test_patroni_reads_the_annotation_in_the_form_in_which_it_writes_it() -> None:
    config = next(each for each in objects_of(spec_of({})) if each["metadata"]["name"] == "memory-s0-config")
    text = config["metadata"]["annotations"]["config"]
    assert text == json.dumps(json.loads(text), separators=(",", ":"))


def test_redis_knows_the_operator_alone_and_not_its_password() -> None:
    secret = next(
        each for each in of_kind(objects_of(spec_of({})), "Secret") if each["metadata"]["name"] == "memory-redis"
    )
    users = base64.b64decode(secret["data"]["users.acl"]).decode().splitlines()
    assert [line.split()[1:3] for line in users] == [["default", "off"], ["operator", "on"]]
    assert CREDENTIALS.redis not in users[1]


if __name__ == "__main__":
    for golden in SPECS:
        (GOLDEN / f"{golden}.yaml").write_text(text_of(golden))
