"""Which events make a reconcile, and whose."""

from typing import Any

import pytest

from engram_contract.names import CLUSTER_KIND, CLUSTER_LABEL, TENANT_KIND, TENANT_LABEL
from engram_operator.plan.hearing import Watched
from engram_operator.triggers import MEMORY_CLUSTERS, MEMORY_TENANTS, PODS, WATCHED, Triggers
from engram_operator.workqueue import Key

SERVICES = next(each for each in WATCHED if each.plural == "services")
CLUSTER, TENANT = Key(CLUSTER_KIND, "ns", "mem"), Key(TENANT_KIND, "ns", "team")


def manifest(name: str, version: int = 1, **more: Any) -> dict[str, Any]:  # noqa: ANN401  any part of a manifest
    metadata = {"name": name, "namespace": "ns", "uid": name, "resourceVersion": str(version)}
    return {"metadata": metadata | more.pop("metadata", {}), **more}


def pod(**more: Any) -> dict[str, Any]:  # noqa: ANN401  as above
    labels = {"labels": {CLUSTER_LABEL: "mem", "role": "replica"}}
    return manifest("mem-s0-0", metadata=labels | more.pop("metadata", {}), **more)


def heard(*events: tuple[Watched, str | None, dict[str, Any]]) -> list[Key]:
    keys: list[Key] = []
    triggers = Triggers(keys.append)
    for event in events:
        triggers.hear(*event)
    return keys


def test_an_event_names_its_owner() -> None:
    assert heard((MEMORY_CLUSTERS, None, manifest("mem"))) == [CLUSTER]
    assert heard((SERVICES, "DELETED", manifest("x", metadata={"labels": {CLUSTER_LABEL: "mem"}}))) == [CLUSTER]
    assert heard((SERVICES, "ADDED", manifest("x", metadata={"labels": {TENANT_LABEL: "team"}}))) == [TENANT]
    assert heard((SERVICES, "ADDED", manifest("x"))) == []


def test_our_own_status_is_no_news() -> None:
    first = manifest("mem", metadata={"generation": 1})
    status = manifest("mem", 2, metadata={"generation": 1}, status={"phase": "Ready"})
    edit = manifest("mem", 3, metadata={"generation": 2})
    assert heard((MEMORY_CLUSTERS, None, first), (MEMORY_CLUSTERS, "MODIFIED", status)) == [CLUSTER]
    assert heard((MEMORY_CLUSTERS, None, first), (MEMORY_CLUSTERS, "MODIFIED", edit)) == [CLUSTER, CLUSTER]


@pytest.mark.parametrize(
    ("later", "is_news"),
    [
        ({"metadata": {"annotations": {"status": '{"xlog_location": 2, "role": "replica"}'}}}, False),
        ({"metadata": {"annotations": {"status": '{"xlog_location": 1, "role": "primary"}'}}}, True),
        ({"metadata": {"annotations": {"status": '{"role": "replica", "pending_restart": true}'}}}, True),
        ({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}, True),
        ({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}, True),
    ],
)
def test_patronis_heartbeat_is_no_news_and_what_it_says_is(later: dict[str, Any], is_news: bool) -> None:
    first = pod(metadata={"annotations": {"status": '{"xlog_location": 1, "role": "replica"}'}})
    kept = first["metadata"] | later.get("metadata", {})
    second = first | {"metadata": kept} | {key: value for key, value in later.items() if key != "metadata"}
    assert heard((PODS, None, first), (PODS, "MODIFIED", second)) == [CLUSTER] * (1 + is_news)


def test_a_tenant_concerns_its_cluster_and_a_cluster_its_tenants() -> None:
    tenant = manifest("team", spec={"clusterRef": {"name": "mem"}})
    assert heard((MEMORY_TENANTS, None, tenant)) == [TENANT, CLUSTER]
    cluster = manifest("mem", metadata={"generation": 1})
    assert heard((MEMORY_TENANTS, None, tenant), (MEMORY_CLUSTERS, None, cluster))[2:] == [CLUSTER, TENANT]
    gone = (MEMORY_TENANTS, "DELETED", tenant)
    assert heard((MEMORY_TENANTS, None, tenant), gone, (MEMORY_CLUSTERS, None, cluster))[4:] == [CLUSTER]


def test_pods_that_came_or_went_concern_the_tenants_of_their_namespace() -> None:
    keys: list[Key] = []
    triggers = Triggers(keys.append)
    triggers.hear(MEMORY_TENANTS, None, manifest("team", spec={"clusterRef": {"name": "mem"}}))
    keys.clear()
    triggers.look_at("other")
    assert keys == []
    triggers.look_at(TENANT.namespace)
    assert keys == [TENANT]


def test_what_is_unheard_concerns_its_owner_or_all_clusters_of_its_namespace() -> None:
    keys: list[Key] = []
    triggers = Triggers(keys.append)
    triggers.hear(MEMORY_CLUSTERS, None, manifest("mem"))
    triggers.hear(MEMORY_CLUSTERS, None, manifest("other"))
    triggers.hear(SERVICES, None, manifest("x", metadata={"labels": {CLUSTER_LABEL: "mem"}}))
    keys.clear()
    triggers.miss(SERVICES, ("ns", "x"))
    assert keys == [CLUSTER]
    keys.clear()
    triggers.miss(SERVICES, ("ns", "never-seen"))
    assert keys == [CLUSTER, Key(CLUSTER_KIND, "ns", "other")]
