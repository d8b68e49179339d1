"""The two resources become frozen values: defaults, units, derived shards; what is wrong is named, also when hostile.

Which values are refused where stands in resources.yaml and is tried by test_crds.py against both doors.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_contract.policy import DAY_S, LOCAL_QUOTAS, Framework, Isolation, Plan
from engram_contract.quantities import blocks_bytes_of, bytes_of, millicores_of, schedule_of, seconds_of
from engram_contract.selector import LabelSelector, Operator, Requirement
from engram_contract.shardmap import ShardState, Strategy
from engram_contract.spec import BadSpec, ClusterSpec, Provider, ReclaimPolicy, ShardOverride, ShardSpec, TenantSpec


def cluster(**spec: object) -> dict[str, Any]:
    return {"apiVersion": "engram.dev/v1alpha1", "kind": "MemoryCluster", "metadata": {"name": "memory"}, "spec": spec}


def tenant(**spec: object) -> dict[str, Any]:
    reference = {"clusterRef": {"name": "memory"}}
    metadata = {"name": "clinic", "namespace": "health"}
    return {"apiVersion": "engram.dev/v1alpha1", "kind": "MemoryTenant", "metadata": metadata, "spec": reference | spec}


def test_a_cluster_by_default_is_one_protected_shard_with_a_replica() -> None:
    spec = ClusterSpec.from_resource(cluster())
    assert (spec.namespace, spec.name, spec.shards, spec.replicas) == ("default", "memory", (ShardSpec("s0"),), 1)
    assert (spec.strategy, spec.provider, spec.postgres.version) == (Strategy.USER, Provider.MANAGED, 18)
    assert (spec.deletion_protection, spec.paused, spec.plan_only) == (True, False, False)
    assert (spec.cache.ttl_s, spec.cache.local.ttl_s, spec.cache.local.entries) == (3600, 300, 1000)
    assert (spec.backup.schedule, spec.backup.retention_s) == ("0 2 * * *", 30 * DAY_S)


def test_overrides_apply_to_their_shards_alone() -> None:
    overrides = [{"id": "s2", "weight": 0, "state": "ReadOnly"}, {"id": "s0", "weight": 3, "residency": "eu"}]
    assert ClusterSpec.from_resource(cluster(shards=3, shardOverrides=overrides)).shards == (
        ShardSpec("s0", 3, ShardState.ACTIVE, "eu"),
        ShardSpec("s1"),
        ShardSpec("s2", 0, ShardState.READONLY),
    )


def test_amounts_arrive_in_our_units() -> None:
    resources = {"requests": {"cpu": "0.5", "memory": "1G"}, "limits": {"cpu": 2}}
    spec = ClusterSpec.from_resource(
        cluster(storage={"size": "1.5Gi"}, postgres={"resources": resources}, retention={"archiveAfter": "1d12h"})
    )
    assert spec.storage.size_bytes == 1_610_612_736
    assert (spec.postgres.resources.requests.cpu_millis, spec.postgres.resources.limits.cpu_millis) == (500, 2000)
    assert spec.postgres.resources.requests.memory_bytes == 1_000_000_000
    assert spec.retention.archive_after_s == 36 * 3600


def test_parameters_are_text_and_sorted() -> None:
    spec = ClusterSpec.from_resource(cluster(postgres={"parameters": {"work_mem": "8MB", "max_connections": 200}}))
    assert spec.postgres.parameters == (("max_connections", "200"), ("work_mem", "8MB"))


def test_a_tenant_by_default_is_strict_encrypted_audited_and_retained() -> None:
    spec = TenantSpec.from_resource(tenant())
    assert (spec.namespace, spec.name) == ("health", "clinic")
    assert (spec.cluster_ref.namespace, spec.cluster_ref.name) == ("health", "memory")
    assert (spec.isolation, spec.plan, spec.reclaim_policy) == (Isolation.STRICT, Plan.FREE, ReclaimPolicy.RETAIN)
    policy = spec.policy()
    assert (policy.retention_s, policy.quota.memories, policy.quota.storage_bytes) == (30 * DAY_S, 100, 1_000_000_000)
    assert (policy.encryption, policy.audit, policy.residency, policy.embedder) == (True, True, "default", None)


@pytest.mark.parametrize(
    ("spec", "memories", "rate"),
    [({"plan": "Pro"}, 1000, 100), ({"plan": "Enterprise"}, 10_000, 1000), ({"quota": {"memories": 7}}, 7, 10)],
)
def test_a_quota_of_its_own_goes_before_the_plans(spec: dict[str, Any], memories: int, rate: int) -> None:
    quota = TenantSpec.from_resource(tenant(**spec)).policy().quota
    assert (quota.memories, quota.requests_per_second) == (memories, rate)


@pytest.mark.parametrize(("spec", "rate"), [({"plan": "Pro"}, 0), ({"quota": {"requestsPerSecond": 7}}, 7)])
def test_local_mode_keeps_the_plans_quota_and_only_a_rate_of_the_tenants_own(spec: dict[str, Any], rate: int) -> None:
    local = TenantSpec.from_resource(tenant(**spec))
    assert local.policy(LOCAL_QUOTAS).quota == replace(local.policy().quota, requests_per_second=rate)


def test_compliance_lengthens_the_retention_of_memories_and_audit() -> None:
    policy = TenantSpec.from_resource(tenant(compliance=["GDPR", "HIPAA"], audit={"retention": "0s"})).policy()
    assert policy.compliance == (Framework.GDPR, Framework.HIPAA)
    assert (policy.retention_s, policy.audit_retention_s) == (2555 * DAY_S, 0)


def test_the_policy_has_the_model_but_not_its_secret() -> None:
    model = {"url": "https://m/v1", "model": "small", "dimensions": 8, "secretRef": {"name": "models", "key": "apiKey"}}
    text = TenantSpec.from_resource(tenant(embedding=model)).policy().to_json()
    assert '"model":"small"' in text
    assert "apiKey" not in text


def test_a_value_made_by_hand_keeps_the_rules_too() -> None:
    spec = ClusterSpec.from_resource(cluster(shards=2))
    with pytest.raises(BadSpec, match="s5 is none of the 2 shards"):
        replace(spec, shard_overrides=(ShardOverride("s5"),))


# ---------------------------------------------------------------------------------------------------------- the outside


@pytest.mark.parametrize(
    ("change", "path", "reason"),
    [
        ({"apiVersion": "engram.dev/v1"}, "apiVersion", "engram.dev/v1alpha1"),
        ({"kind": "MemoryTenant"}, "kind", "MemoryCluster"),
        ({"kind": None}, "kind", "MemoryCluster"),
        ({"sepc": {}}, "sepc", "did you mean spec"),
        ({"metadata": None}, "metadata.name", "required"),
        ({"metadata": []}, "metadata", "a list"),
        ({"metadata": {"name": 5}}, "metadata.name", "quote it"),
        ({"metadata": {"name": "A"}}, "metadata.name", "lower-case"),
        ({"metadata": {"name": "a", "namespace": "b.c"}}, "metadata.namespace", "lower-case"),
        ({"spec": {"shard": 2}}, "spec.shard", "did you mean shards"),
        ({"spec": {"deletionprotection": True}}, "spec.deletionprotection", "did you mean deletionProtection"),
        ({"spec": {"storage": {"storage_class_name": "a"}}}, "spec.storage.storage_class_name", "storageClassName"),
        ({"spec": {"shardingStrategy": "user"}}, "spec.shardingStrategy", "did you mean User"),
        ({"spec": {"entirelyStrange": 1}}, "spec.entirelyStrange", "unknown field"),
        ({"spec": {True: 1}}, "spec", "must be text"),
    ],
)
def test_what_is_wrong_is_named_with_a_hint(change: dict[str, Any], path: str, reason: str) -> None:
    with pytest.raises(BadSpec, match=reason) as caught:
        ClusterSpec.from_resource(cluster() | change)
    assert caught.value.path == path
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("body", [None, [], "MemoryCluster", 5, {}, {1: 2}])
def test_what_is_no_resource_is_refused(body: object) -> None:
    with pytest.raises(BadSpec):
        ClusterSpec.from_resource(body)


def test_status_and_foreign_metadata_are_none_of_its_business() -> None:
    body = cluster() | {"status": {"phase": "Ready"}}
    body["metadata"] |= {"labels": {"a": "b"}, "managedFields": []}
    assert ClusterSpec.from_resource(body) == ClusterSpec.from_resource(cluster())


HOSTILE = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.dates()),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text() | st.integers(), inside, max_size=4),
    max_leaves=10,
)
CLUSTER_FIELDS = [
    "shards",
    "replicas",
    "shardOverrides",
    "external",
    "storage",
    "postgres",
    "cache",
    "backup",
    "access",
]
TENANT_FIELDS = [
    "clusterRef",
    "isolation",
    "quota",
    "retention",
    "compliance",
    "allowedAgents",
    "embedding",
    "watchdog",
    "resilience",
]


def refusal_of(parse: Callable[[object], object], body: object) -> BadSpec | None:
    try:
        parse(body)
    except BadSpec as bad:
        return bad
    return None


@given(st.dictionaries(st.sampled_from(CLUSTER_FIELDS), HOSTILE, max_size=4))
def test_any_cluster_is_parsed_or_refused_by_name(spec: dict[str, object]) -> None:
    bad = refusal_of(lambda body: ClusterSpec.from_resource(body).shards, cluster(**spec))
    assert bad is None or (bad.path.startswith("spec.") and len(bad.reason) < 400)


@given(st.dictionaries(st.sampled_from(TENANT_FIELDS), HOSTILE, max_size=4))
def test_any_tenant_is_parsed_or_refused_by_name(spec: dict[str, object]) -> None:
    bad = refusal_of(lambda body: TenantSpec.from_resource(body).policy(), tenant(**spec))
    assert bad is None or (bad.path.startswith("spec.") and len(bad.reason) < 400)


ODD = {
    "digits": 10**5000,
    "long": "x" * 10**6,
    "wide": [[]] * 10**5,
    "bytes": b"\xff",
    "nan": float("nan"),
    "half": "\ud800",
}


@pytest.mark.parametrize("name", ODD)
def test_a_huge_or_odd_value_gives_a_short_message(name: str) -> None:
    with pytest.raises(BadSpec) as caught:
        ClusterSpec.from_resource(cluster(shardingStrategy=ODD[name]))
    assert len(str(caught.value)) < 300


# -------------------------------------------------------------------------------------------------- amounts and access


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("0", 0),
        ("1", 1),
        ("1k", 1000),
        ("1Ki", 1024),
        ("2M", 2_000_000),
        ("1.5Gi", 3 << 29),
        ("0.5", 1),
        ("1Pi", 1 << 50),
    ],
)
def test_bytes_are_kubernetes_quantities(text: str, amount: int) -> None:
    assert bytes_of(text) == amount


@pytest.mark.parametrize(("text", "millis"), [("1", 1000), ("0.5", 500), ("250m", 250), ("1.001", 1001)])
def test_cpu_is_in_thousandths(text: str, millis: int) -> None:
    assert millicores_of(text) == millis


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("16384", 1 << 27),
        ("128MB", 1 << 27),
        (" 1.5 GB ", 3 << 29),
        ("64kB", 1 << 16),
        ("1B", 1),
        ("1mb", None),
        ("", None),
    ],
)
def test_settings_in_blocks_are_read_as_postgres_reads_them(text: str, amount: int | None) -> None:
    assert blocks_bytes_of(text) == amount


@pytest.mark.parametrize(
    ("text", "seconds"), [("0s", 0), ("30d", 2_592_000), ("1d12h", 129_600), ("1h1m1s", 3661), ("90m", 5400)]
)
def test_durations_are_in_seconds(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "s", "-1s", "1h1d", "1w", "1.5h", "1 d", "1D", "1s\n", "123456d", "\u0661s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no duration"):
        seconds_of(text)


@pytest.mark.parametrize(
    "text", ["* * * * *", "*/15 0-6,12 1,15 1-12/3 0-7", "@hourly", "59 23 31 12 7", "00 02 * * *"]
)
def test_schedules_of_cron_are_taken(text: str) -> None:
    assert schedule_of(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "5-1 * * * *",
        "* * * * MON",
        "1, * * * *",
        "@reboot",
        "0 2 * * *\n",
        "0  2 * * *",
        "",
        "* * * *",
        "* * * * * *",
        "60 * * * *",
        "* 24 * * *",
        "* * 32 * *",
        "* * * 13 *",
        "* * * * 8",
        "*/0 * * * *",
    ],
)
def test_what_is_no_schedule_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"schedule|backwards"):
        schedule_of(text)


@pytest.mark.parametrize(
    ("requirement", "labels", "is_met"),
    [
        (Requirement("a", Operator.IN, ("1", "2")), {"a": "2"}, True),
        (Requirement("a", Operator.IN, ("1",)), {}, False),
        (Requirement("a", Operator.NOT_IN, ("1",)), {}, True),
        (Requirement("a", Operator.NOT_IN, ("1",)), {"a": "1"}, False),
        (Requirement("a", Operator.EXISTS), {"a": ""}, True),
        (Requirement("a", Operator.DOES_NOT_EXIST), {"a": ""}, False),
    ],
)
def test_a_requirement_is_met_as_kubernetes_meets_it(
    requirement: Requirement, labels: dict[str, str], is_met: bool
) -> None:
    assert requirement.matches(labels) is is_met


def test_a_cluster_admits_its_own_namespace_and_those_it_selects() -> None:
    closed = ClusterSpec.from_resource(cluster())
    assert closed.admits("default", {})
    assert not closed.admits("other", {"team": "agents"})
    opened = ClusterSpec.from_resource(cluster(access={"namespaceSelector": {"matchLabels": {"team": "agents"}}}))
    assert opened.admits("other", {"team": "agents", "x": "y"})
    assert not opened.admits("other", {"team": "sales"})
    assert LabelSelector().matches({})
