"""What a MemoryTenant needs, by what its shards say."""

import base64
from dataclasses import replace
from typing import Any

import pytest

from engram_contract.credentials import Credentials, DataKey, Keyring
from engram_contract.names import tenant_role
from engram_contract.shardmap import ShardMap, ShardState
from engram_contract.spec import ClusterSpec, TenantSpec
from engram_operator.manifests.tenant import Stored
from engram_operator.plan.conditions import time_of
from engram_operator.plan.login import Login
from engram_operator.plan.observed import Silence
from engram_operator.plan.places import members_of, places_of
from engram_operator.plan.quotas import Amount, Holding
from engram_operator.plan.sidecars import Generations, Report
from engram_operator.plan.steps import Apply, PublishMap, Step, Wait
from engram_operator.plan.tenant import (
    Files,
    OnShard,
    TenantObserved,
    TenantPlan,
    TenantRound,
    build_tenant_status,
    plan_tenant,
    refused_tenant_status,
    reports_of,
    round_of,
    usage_of,
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


KEY = base64.b64encode(bytes(32)).decode()
LOGIN = Login(Stored(Credentials(ROLE, ("secret",), generation=1)), "secret")
FILES = Files(LOGIN, Keyring(1, (DataKey(1, KEY),), KEY), tenant().policy(generation=3))
HELD = Amount(100, 10**9)
HOME = Holding(base=HELD, total=HELD)
ELSEWHERE = Holding(base=Amount(), total=HELD)


def seen(**shards: OnShard | Silence) -> TenantObserved:
    return TenantObserved(RESOURCE, shards, places_of(cluster()), None, None)


def planned(
    observed: TenantObserved, *, spec: ClusterSpec | None = None, asked: TenantSpec | None = None, files: Files = FILES
) -> TenantPlan:
    return plan_tenant(asked or tenant(), spec or cluster(), observed, files)


def test_shards_with_replicas_name_their_members_by_their_own_addresses() -> None:
    spec = cluster(replicas=2)
    observed = replace(seen(s0=FRESH, s1=FRESH), members=members_of(spec))
    shard_map = planned(observed, spec=spec).shard_map
    assert shard_map is not None
    [node] = shard_map.shard("s0").nodes
    assert (node.host, node.port) == ("mem-s0-rw.ns.svc", 5432)
    assert [(each.name, each.host, each.port) for each in shard_map.shard("s0").members] == [
        (f"mem-s0-{index}", f"mem-s0-{index}.mem-pods.ns.svc", 5432) for index in range(3)
    ]


def test_behind_a_pooler_members_are_reached_through_their_own_poolers() -> None:
    ports = {each.port for nodes in members_of(cluster(pooler={"enabled": True})).values() for each in nodes}
    assert ports == {6432}


def test_a_shard_without_replicas_and_one_of_another_provider_have_no_members() -> None:
    external = {
        "provider": "External",
        "external": [{"id": "s0", "secretRef": {"name": "dsn", "key": "url"}}],
        "shards": 1,
    }
    assert members_of(cluster(replicas=0)) == members_of(cluster(**external)) == {}


def test_more_replicas_are_a_new_epoch_and_move_no_slot() -> None:
    few, many = cluster(), cluster(replicas=2)
    observed = replace(seen(s0=FRESH, s1=FRESH), members=members_of(few))
    before = planned(observed, spec=few).shard_map
    assert before is not None
    told = seen(s0=settled(before), s1=settled(before))
    after = planned(replace(told, members=members_of(many)), spec=many).shard_map
    assert after is not None
    assert (after.epoch, after.ranges) == (before.epoch + 1, before.ranges)
    assert [len(shard.members) for shard in (*before.shards, *after.shards)] == [2, 2, 3, 3]


def kinds(steps: tuple[Step, ...]) -> list[str]:
    return [step.manifest["kind"] if isinstance(step, Apply) else type(step).__name__ for step in steps]


def first() -> ShardMap:
    found = planned(seen(s0=FRESH, s1=FRESH)).shard_map
    assert found is not None
    return found


def settled(shard_map: ShardMap, holding: Holding = HOME) -> OnShard:
    return OnShard(is_current=True, mark=LOGIN.mark, shard_map=shard_map, holding=holding)


def test_shards_come_before_files() -> None:
    plan = planned(seen(s0=FRESH, s1=FRESH))
    wanted = [name for name in ("PrepareTenant", "SetQuota", "PublishMap") for _ in range(2)]
    assert kinds(plan.steps) == [*wanted, "Secret", "ConfigMap"]
    assert plan.shard_map is not None
    assert [plan.shard_map.slots_of(shard) for shard in ("s0", "s1")] == [8192, 8192]
    assert {shard.nodes[0].host for shard in plan.shard_map.shards} == {"mem-s0-rw.ns.svc", "mem-s1-rw.ns.svc"}


def test_a_tenant_that_has_everything_needs_nothing() -> None:
    known = first()
    plan = planned(seen(s0=FRESH, s1=FRESH))
    secret, config = (step.manifest for step in plan.steps if isinstance(step, Apply))
    whole = replace(seen(s0=settled(known), s1=settled(known, ELSEWHERE)), secret=secret, config=config)
    again = planned(whole)
    assert again.steps == ()
    ended = TenantRound((), again.shard_map, FILES, usage_of(whole))
    status = build_tenant_status(tenant(), RESOURCE, ended, 0.0)
    assert (status["mapEpoch"], status["phase"]) == (1, "Ready")
    assert status["published"] == {"policy": 3, "credentials": 1, "keys": 1}
    assert status["shards"] == [{"id": "s0", "slots": 8192}, {"id": "s1", "slots": 8192}]


NUMBERS = Generations(epoch=1, policy=3, credentials=1, keys=1)
BEFORE_S = 1_767_225_600.0
NOW_S = BEFORE_S + 9_000.0
READY = {"type": "Ready", "status": "True", "lastTransitionTime": time_of(BEFORE_S + 60)}


def ended(status: dict[str, Any], changed_s: float | None = NOW_S, **shards: OnShard | Silence) -> TenantRound:
    """A round of a tenant with this status, that changed something."""
    known = settled(first())
    observed = replace(seen(**{"s0": known, "s1": known} | shards), resource=RESOURCE | {"status": status})
    return round_of(TenantPlan((), first()), (), observed, FILES, changed_s)


@pytest.mark.parametrize(
    ("published", "epoch", "since_s"),
    [
        ({"policy": 3, "credentials": 1, "keys": 1}, 1, BEFORE_S),
        ({"policy": 2, "credentials": 1, "keys": 1}, 1, NOW_S),
        ({"policy": 3, "credentials": 2, "keys": 1}, 1, NOW_S),
        ({"policy": 3, "credentials": 1, "keys": 2}, 1, NOW_S),
        ({"policy": 3, "credentials": 1, "keys": 1}, 2, NOW_S),
        ({}, 1, NOW_S),
    ],
)
def test_a_configuration_is_as_old_as_its_numbers_whatever_else_a_round_changed(
    published: dict[str, int], epoch: int, since_s: float
) -> None:
    status = {"mapEpoch": epoch, "published": published | {"time": time_of(BEFORE_S)}}
    round_ = ended(status)
    assert round_.published is not None
    assert (round_.published.files, round_.published.since_s) == (NUMBERS, since_s)
    said = build_tenant_status(tenant(), RESOURCE | {"status": status}, round_, NOW_S)["published"]
    assert said == {"policy": 3, "credentials": 1, "keys": 1, "time": time_of(since_s)}


@pytest.mark.parametrize(
    ("conditions", "shard", "heard_since_s"),
    [
        ([READY], settled(ShardMap.from_json(first().to_json())), BEFORE_S + 60),
        ([READY], Silence("in maintenance"), None),
        ([READY | {"status": "False"}], FRESH, NOW_S),
        ([], FRESH, NOW_S),
    ],
)
def test_sidecars_are_heard_since_the_tenant_is_ready_and_all_shards_answer(
    conditions: list[dict[str, str]], shard: OnShard | Silence, heard_since_s: float | None
) -> None:
    published = ended({"conditions": conditions}, s1=shard).published
    assert published is not None
    assert published.heard_since_s == heard_since_s


def test_of_two_reports_the_younger_counts_whatever_its_numbers() -> None:
    old = Report("web-0", "before", Generations(9, 9, 9, 9), age_s=100.0)
    new = Report("web-0", "now", NUMBERS, age_s=3.0)
    other = Report("web-1", "x", NUMBERS, age_s=9.0)
    shards = {"s0": replace(FRESH, reports=(old, other)), "s1": replace(FRESH, reports=(new,))}
    assert reports_of(seen(**shards)) == (new, other)


def test_no_first_map_is_made_while_a_shard_is_silent_that_may_know_one() -> None:
    plan = planned(seen(s0=FRESH, s1=Silence("away")))
    assert plan.shard_map is None
    assert [type(step) for step in plan.steps] == [Wait]
    assert "s1: away" in str(plan.steps[0])


def test_the_files_wait_for_a_silent_shard_and_the_others_do_not() -> None:
    known = first()
    spec = cluster(shardOverrides=[{"id": "s1", "weight": 3}])
    plan = planned(spec=spec, observed=seen(s0=settled(known), s1=Silence("away")))
    assert kinds(plan.steps) == ["PublishMap", "Wait"]
    assert plan.shard_map is not None
    assert plan.shard_map.epoch == 2


def test_a_shard_in_maintenance_is_left_alone() -> None:
    known = first()
    spec = cluster(shardOverrides=[{"id": "s1", "state": "Maintenance"}])
    plan = planned(spec=spec, observed=seen(s0=settled(known), s1=Silence("off")))
    assert kinds(plan.steps) == ["PublishMap", "Secret", "ConfigMap"]
    assert plan.shard_map is not None
    assert plan.shard_map.shard("s1").state is ShardState.MAINTENANCE
    assert plan.shard_map.scattered


def test_a_map_of_another_tenant_is_nobodys_map() -> None:
    forged = replace(first(), tenant="t_somebody", epoch=99)
    plan = planned(seen(s0=settled(forged), s1=settled(first(), ELSEWHERE)))
    assert plan.shard_map == first()
    assert all("t_somebody" not in str(step) for step in plan.steps)


def test_the_newest_map_counts_wherever_it_is_known() -> None:
    known = replace(first(), epoch=7)
    plan = planned(seen(s0=settled(first()), s1=settled(known, ELSEWHERE)))
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
    plan = planned(seen(**shards), spec=cluster(**spec), asked=tenant(**tenancy))
    assert [step.reason for step in plan.steps if isinstance(step, Wait)] == [reason]
    assert plan.shard_map is None


def test_another_password_is_another_mark() -> None:
    known = first()
    changed = replace(FILES, login=Login(LOGIN.stored, "another"))
    plan = planned(seen(s0=settled(known), s1=settled(known, ELSEWHERE)), files=changed)
    assert kinds(plan.steps)[:2] == ["PrepareTenant", "PrepareTenant"]
    assert ROLE in str(plan.steps[0])


def test_a_secret_of_this_name_that_is_somebody_elses_is_left_alone() -> None:
    foreign = {"metadata": {"name": "engram-tenant-team"}, "data": {"mine": "x"}}
    plan = planned(replace(seen(s0=FRESH, s1=FRESH), secret=foreign))
    assert [step.reason for step in plan.steps if isinstance(step, Wait)] == ["NameTaken"]
    assert len(plan.steps) == 1
    assert not plan.keeps_login


@pytest.mark.parametrize("named", ["Secret", "ConfigMap"])
def test_a_stranger_of_the_tenants_name_stops_nothing_but_what_it_is_in_the_way_of(named: str) -> None:
    known = first()
    foreign = {"metadata": {"name": "engram-tenant-team"}}
    due = replace(settled(known), is_sweep_due=True, altered=("its password",), mark="another")
    owed = replace(settled(known, ELSEWHERE), shard_map=None)
    observed = replace(seen(s0=due, s1=owed), has_cache_user=False)
    observed = replace(observed, secret=foreign) if named == "Secret" else replace(observed, config=foreign)
    logins = ["PrepareTenant"] if named == "ConfigMap" else []
    files = ["KeepCacheUser", "Secret"] if named == "ConfigMap" else []
    plan = planned(observed)
    assert kinds(plan.steps) == ["SweepTenant", *logins, "PublishMap", *files, "Wait"]
    assert f"{named} engram-tenant-team is there" in str(plan.steps[-1])
    assert plan.keeps_login is (named == "ConfigMap")


def test_behind_a_strangers_secret_a_shard_that_has_no_role_yet_waits_and_the_others_go_on() -> None:
    known = first()
    owed = replace(settled(known, ELSEWHERE), shard_map=None)
    foreign = {"metadata": {"name": "engram-tenant-team"}}
    plan = planned(replace(seen(s0=FRESH, s1=owed), secret=foreign))
    assert kinds(plan.steps) == ["PublishMap", "Wait"]
    assert getattr(plan.steps[0], "shard", "") == "s1"


@pytest.mark.parametrize(
    "metadata",
    [
        {"labels": {"engram.dev/tenant": "team"}},
        {"ownerReferences": [{"uid": "u"}]},
        {"labels": {"engram.dev/tenant": "team"}, "ownerReferences": [{"uid": "of the tenant of before"}]},
    ],
)
def test_what_is_the_tenants_by_its_label_or_its_owner_is_mended(metadata: dict[str, Any]) -> None:
    known = first()
    ours = {"metadata": {"name": "engram-tenant-team"} | metadata}
    plan = planned(replace(seen(s0=settled(known), s1=settled(known, ELSEWHERE)), secret=ours, config=ours))
    assert kinds(plan.steps) == ["Secret", "ConfigMap"]


def test_what_a_shard_of_an_older_release_uses_is_not_known_and_no_quota_is_planned_from_it() -> None:
    known = first()
    unread = OnShard(is_current=False, mark="", shard_map=known, is_read=False)
    observed = seen(s0=unread, s1=settled(known, ELSEWHERE))
    assert kinds(planned(observed).steps)[:2] == ["PrepareTenant", "Secret"]
    assert usage_of(observed) is None


def test_pods_that_nobody_could_judge_this_time_are_not_named_in_the_status() -> None:
    before = {"oldConfigPods": ["a"], "silentPods": ["b"], "sidecars": {"oldConfig": 1}, "usage": {"memories": 3}}
    waiting = TenantRound((Wait("ShardSilent", "s0", 1.0, is_fault=True),))
    status = build_tenant_status(tenant(), RESOURCE | {"status": before}, waiting, 0.0)
    assert status["usage"] == {"memories": 3}
    assert not {"oldConfigPods", "silentPods", "sidecars"} & {*status}


def test_a_refused_tenant_says_why_and_keeps_what_its_sidecars_go_by() -> None:
    ended = TenantRound((), planned(seen(s0=FRESH, s1=FRESH)).shard_map, FILES)
    before = build_tenant_status(tenant(), RESOURCE, ended, 0.0)
    status = refused_tenant_status(RESOURCE | {"status": before}, "spec.plan: is wrong", 0.0)
    assert {name for name in status if status[name] != before[name]} == {"phase", "conditions"}
    (ready,) = status["conditions"]
    assert (ready["status"], ready["reason"], ready["message"]) == ("False", "BadSpec", "spec.plan: is wrong")


def test_what_is_refused_beside_a_tenant_that_is_served_is_said() -> None:
    files = replace(FILES, refusal="engram.dev/rotate-key is not carried out")
    ended = TenantRound((), planned(seen(s0=FRESH, s1=FRESH)).shard_map, files)
    (ready,) = build_tenant_status(tenant(), RESOURCE, ended, 0.0)["conditions"]
    assert ready["status"] == "True"
    assert ready["message"] == "sidecars can serve the tenant; engram.dev/rotate-key is not carried out"


def test_a_login_that_was_altered_is_mended_unless_it_is_prepared_anyway() -> None:
    known = first()
    altered = replace(settled(known), altered=("its password",))
    plan = planned(seen(s0=altered, s1=settled(known, ELSEWHERE)))
    assert kinds(plan.steps)[0] == "MendLogin"
    assert "its password" in str(plan.steps[0])
    rotated = replace(FILES, login=Login(LOGIN.stored, "another"))
    assert kinds(planned(seen(s0=altered, s1=settled(known, ELSEWHERE)), files=rotated).steps)[0] == "PrepareTenant"
