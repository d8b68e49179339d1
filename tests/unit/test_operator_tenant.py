"""What a MemoryTenant needs, by what its shards say."""

from dataclasses import replace
from typing import Any

import pytest

from engram_contract.names import tenant_role
from engram_contract.shardmap import ShardMap, ShardState
from engram_contract.spec import ClusterSpec, TenantSpec
from engram_operator.plan.observed import Silence
from engram_operator.plan.steps import Apply, PrepareTenant, PublishMap, Step, Wait
from engram_operator.plan.tenant import (
    OnShard,
    TenantObserved,
    build_tenant_status,
    places_of,
    plan_tenant,
    refused_tenant_status,
)

ROLE = tenant_role("ns", "team")
FRESH = OnShard(is_current=False, mark="", shard_map=None)
RESOURCE: dict[str, Any] = {"metadata": {"name": "team", "namespace": "ns", "uid": "u", "generation": 3}}


def cluster(**spec: object) -> ClusterSpec:
    metadata = {"name": "mem", "namespace": "ns"}
    body = {
        "apiVersion": "engram.dev/v1alpha1",
        "kind": "MemoryCluster",
        "metadata": metadata,
        "spec": {"shards": 2} | spec,
    }
    return ClusterSpec.from_resource(body)


def tenant(**spec: object) -> TenantSpec:
    body = {"apiVersion": "engram.dev/v1alpha1", "kind": "MemoryTenant", **RESOURCE}
    return TenantSpec.from_resource(body | {"spec": {"clusterRef": {"name": "mem"}} | spec})


def seen(**shards: OnShard | Silence) -> TenantObserved:
    return TenantObserved(RESOURCE, shards, places_of(cluster()), None, None, (), ("secret",), "mark", "")


def kinds(steps: tuple[Step, ...]) -> list[str]:
    return [step.manifest["kind"] if isinstance(step, Apply) else type(step).__name__ for step in steps]


def first() -> ShardMap:
    found = plan_tenant(tenant(), cluster(), seen(s0=FRESH, s1=FRESH)).shard_map
    assert found is not None
    return found


def settled(shard_map: ShardMap) -> OnShard:
    return OnShard(is_current=True, mark="mark", shard_map=shard_map)


def test_shards_come_before_files() -> None:
    plan = plan_tenant(tenant(), cluster(), seen(s0=FRESH, s1=FRESH))
    prepared, published = [PrepareTenant.__name__] * 2, [PublishMap.__name__] * 2
    assert kinds(plan.steps) == [*prepared, *published, "Secret", "ConfigMap"]
    assert plan.shard_map is not None
    assert [plan.shard_map.slots_of(shard) for shard in ("s0", "s1")] == [8192, 8192]
    assert {shard.nodes[0].host for shard in plan.shard_map.shards} == {"mem-s0-rw.ns.svc", "mem-s1-rw.ns.svc"}


def test_a_tenant_that_has_everything_needs_nothing() -> None:
    known = first()
    plan = plan_tenant(tenant(), cluster(), seen(s0=FRESH, s1=FRESH))
    secret, config = (step.manifest for step in plan.steps if isinstance(step, Apply))
    whole = replace(seen(s0=settled(known), s1=settled(known)), secret=secret, config=config, known=(known,))
    again = plan_tenant(tenant(), cluster(), whole)
    assert again.steps == ()
    status = build_tenant_status(tenant(), RESOURCE, again, (), 0.0)
    assert (status["mapEpoch"], status["phase"]) == (1, "Ready")
    assert status["shards"] == [{"id": "s0", "slots": 8192}, {"id": "s1", "slots": 8192}]


def test_no_first_map_is_made_while_a_shard_is_silent_that_may_know_one() -> None:
    plan = plan_tenant(tenant(), cluster(), seen(s0=FRESH, s1=Silence("away")))
    assert plan.shard_map is None
    assert [type(step) for step in plan.steps] == [Wait]
    assert "s1: away" in str(plan.steps[0])


def test_the_files_wait_for_a_silent_shard_and_the_others_do_not() -> None:
    known = first()
    spec = cluster(shardOverrides=[{"id": "s1", "weight": 3}])
    plan = plan_tenant(tenant(), spec, seen(s0=settled(known), s1=Silence("away")))
    assert kinds(plan.steps) == ["PublishMap", "Wait"]
    assert plan.shard_map is not None
    assert plan.shard_map.epoch == 2


def test_a_shard_in_maintenance_is_left_alone() -> None:
    known = first()
    spec = cluster(shardOverrides=[{"id": "s1", "state": "Maintenance"}])
    plan = plan_tenant(tenant(), spec, seen(s0=settled(known), s1=Silence("off")))
    assert kinds(plan.steps) == ["PublishMap", "Secret", "ConfigMap"]
    assert plan.shard_map is not None
    assert plan.shard_map.shard("s1").state is ShardState.MAINTENANCE
    assert plan.shard_map.scattered


def test_the_newest_map_counts_wherever_it_is_known() -> None:
    known = replace(first(), epoch=7)
    plan = plan_tenant(tenant(), cluster(), seen(s0=settled(first()), s1=settled(known)))
    assert plan.shard_map is not None
    assert plan.shard_map.epoch == 7
    assert [step.shard for step in plan.steps if isinstance(step, PublishMap)] == ["s0"]


@pytest.mark.parametrize(
    ("spec", "tenancy", "reason"),
    [
        ({}, {"residency": "moon"}, "NoActiveShard"),
        ({"shards": 1}, {}, "ShardMissing"),
    ],
)
def test_what_cannot_be_placed_is_said(spec: dict[str, Any], tenancy: dict[str, Any], reason: str) -> None:
    shards = {"s0": settled(first()), "s1": settled(first())} if spec else {"s0": FRESH, "s1": FRESH}
    plan = plan_tenant(tenant(**tenancy), cluster(**spec), seen(**shards))
    assert [step.reason for step in plan.steps if isinstance(step, Wait)] == [reason]
    assert plan.shard_map is None


def test_another_password_is_another_mark() -> None:
    known = first()
    plan = plan_tenant(tenant(), cluster(), replace(seen(s0=settled(known), s1=settled(known)), mark="new"))
    assert kinds(plan.steps)[:2] == ["PrepareTenant", "PrepareTenant"]
    assert ROLE in str(plan.steps[0])


def test_a_secret_of_this_name_that_is_somebody_elses_is_left_alone() -> None:
    foreign = {"metadata": {"name": "engram-tenant-team"}, "data": {"mine": "x"}}
    plan = plan_tenant(tenant(), cluster(), replace(seen(s0=FRESH, s1=FRESH), secret=foreign))
    assert [step.reason for step in plan.steps if isinstance(step, Wait)] == ["NameTaken"]
    assert len(plan.steps) == 1


def test_a_refused_tenant_says_why_and_keeps_what_its_sidecars_go_by() -> None:
    before = build_tenant_status(
        tenant(), RESOURCE, plan_tenant(tenant(), cluster(), seen(s0=FRESH, s1=FRESH)), (), 0.0
    )
    status = refused_tenant_status(RESOURCE | {"status": before}, "spec.plan: is wrong", 0.0)
    assert {name for name in status if status[name] != before[name]} == {"phase", "conditions"}
    (ready,) = status["conditions"]
    assert (ready["status"], ready["reason"], ready["message"]) == ("False", "BadSpec", "spec.plan: is wrong")
