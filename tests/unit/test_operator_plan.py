"""The plan of a cluster against a world that obeys it: it converges, rolls into no failure, and then is silent."""

import copy
from dataclasses import replace

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from engram_contract.names import MANAGED_BY, MANAGED_BY_LABEL, UPDATE_ANNOTATION
from engram_operator.plan.certificates import CA_S, DAY_S, Certificate, Stored
from engram_operator.plan.cluster import Track, plan_cluster
from engram_operator.plan.observed import Silence, TenantSeen
from engram_operator.plan.report import Round
from engram_operator.plan.shard import plan_databases
from engram_operator.plan.steps import (
    Apply,
    MakeCredentials,
    ReloadFiles,
    Remove,
    RestartPod,
    RestartPostgres,
    Switchover,
    TurnCertificates,
    Wait,
)
from engram_operator.reconcile.execute import preview
from tests.plan_world import BAD_IMAGE, CLUSTER, World, spec_of


def reasons(ended: Round) -> set[str]:
    return {wait.reason for _, wait in ended.waits} | {note.reason for _, note in ended.notes}


def condition(world: World, kind: str) -> tuple[str, str]:
    found = next(each for each in world.status["conditions"] if each["type"] == kind)
    return found["status"], found["reason"]


def test_a_new_cluster_comes_up_and_is_silent() -> None:
    world = World()
    assert world.settle(spec_of(shards=2)) == Round()
    assert condition(world, "Ready") == ("True", "Ready")
    assert (world.status["ready"], world.status["phase"]) == ("2/2", "Ready")
    assert [world.pods(shard) for shard in ("s0", "s1")] == [
        [f"{CLUSTER}-{s}-{i}" for i in (0, 1)] for s in ("s0", "s1")
    ]
    before = world.status
    assert world.round(spec_of(shards=2)) == Round()
    assert world.status == before


def test_new_settings_of_pods_roll_replicas_first_then_switch_over() -> None:
    world = World()
    world.settle(spec_of(replicas=2))
    world.taken.clear()
    assert world.settle(spec_of(replicas=2, postgres={"tls": {"enabled": False}, "image": "new:2"})) == Round()
    taken = [step for step in world.taken if not isinstance(step, Apply)]
    assert [type(step) for step in taken] == [RestartPod, RestartPod, Switchover, RestartPod]
    assert [step.name for step in taken if isinstance(step, RestartPod)] == ["mem-s0-2", "mem-s0-1", "mem-s0-0"]


def test_a_bad_image_costs_one_pod_and_taking_it_back_heals() -> None:
    world = World()
    good, bad = spec_of(replicas=2), spec_of(replicas=2, postgres={"tls": {"enabled": False}, "image": BAD_IMAGE})
    world.settle(good)
    world.taken.clear()
    assert reasons(world.settle(bad)) == {"PodStuck"}
    assert [step.name for step in world.taken if isinstance(step, RestartPod)] == ["mem-s0-2"]
    assert condition(world, "Degraded") == ("True", "PodStuck")
    assert condition(world, "ShardsReady")[0] == "True"
    assert condition(world, "Ready")[0] == "False"
    assert world.settle(good) == Round()
    assert condition(world, "Degraded")[0] == "False"


def test_members_go_one_by_one_and_never_the_primary() -> None:
    world = World()
    world.settle(spec_of(replicas=3))
    world.objects["ConfigMap", "mem-s0-leader"]["metadata"]["annotations"]["leader"] = "mem-s0-3"
    world.live(0)
    world.taken.clear()
    assert world.settle(spec_of(replicas=0)) == Round()
    assert world.pods() == ["mem-s0-0"]
    assert sum(isinstance(step, Switchover) for step in world.taken) >= 1


def test_ready_waits_for_members_that_are_to_go_and_have_not_yet() -> None:
    """A StatefulSet's controller says that it saw the change, and deletes no pod while a lower one is not ready."""
    world = World()
    world.settle(spec_of(replicas=1))
    late = copy.deepcopy(world.objects["Pod", "mem-s0-1"])
    world.settle(spec_of(replicas=0))
    world.objects["Pod", "mem-s0-1"] = late
    assert reasons(world.round(spec_of(replicas=0))) == {"MembersLeaving"}
    assert condition(world, "Ready") == ("False", "MembersLeaving")


def test_a_sick_rest_keeps_its_members() -> None:
    world = World()
    world.settle(spec_of(replicas=2))
    world.objects["Pod", "mem-s0-1"] |= {"image": BAD_IMAGE}
    world.objects["Pod", "mem-s0-1"]["status"]["conditions"][0]["status"] = "False"
    world.live(0)
    ended = world.settle(spec_of(replicas=0))
    assert reasons(ended) == {"PodStuck"}
    assert len(world.pods()) == 3


def test_a_newer_operator_restarts_nothing_until_it_may() -> None:
    world = World()
    world.settle(spec_of())
    world.site = replace(world.site, postgres_image="engram-postgres:2")
    world.taken.clear()
    assert world.settle(spec_of()) == Round()
    assert world.taken == []
    assert "image" in world.status["update"]
    world.annotations = {UPDATE_ANNOTATION: "now"}
    assert world.settle(spec_of()) == Round()
    assert {world.objects["Pod", name]["image"] for name in world.pods()} == {"engram-postgres:2"}
    assert world.status["update"] == ""


def test_automatic_updates_need_no_word() -> None:
    world = World()
    world.settle(spec_of(updatePolicy="Automatic"))
    world.site = replace(world.site, postgres_image="engram-postgres:2")
    world.settle(spec_of(updatePolicy="Automatic"))
    assert {world.objects["Pod", name]["image"] for name in world.pods()} == {"engram-postgres:2"}


def test_volumes_grow_with_a_pod_that_is_down() -> None:
    world = World()
    world.settle(spec_of(storage={"size": "1Gi"}))
    for name in world.pods():
        world.objects["Pod", name]["status"]["conditions"][0]["status"] = "False"
        world.objects["Pod", name]["age"] = -100
    world.round(spec_of(storage={"size": "2Gi"}))
    sizes = {each["spec"]["resources"]["requests"]["storage"] for each in world.observe().claims("s0")}
    assert sizes == {"2Gi"}


def test_a_class_that_cannot_grow_is_said_and_the_rest_goes_on() -> None:
    world = World(expandable=False)
    world.settle(spec_of(storage={"size": "1Gi"}))
    ended = world.settle(spec_of(storage={"size": "2Gi"}, replicas=2))
    assert reasons(ended) == {"StorageNotExpandable"}
    assert len(world.pods()) == 3
    assert condition(world, "Degraded") == ("True", "StorageNotExpandable")
    assert world.settle(spec_of(storage={"size": "1Gi"}, replicas=2)) == Round()


@pytest.mark.parametrize(("value", "first"), [(200, "mem-s0-1"), (50, "mem-s0-0")])
def test_a_setting_that_goes_down_begins_with_the_primary(value: int, first: str) -> None:
    world = World()
    world.settle(spec_of())
    reason = {"max_connections": {"old_value": "100", "new_value": str(value)}}
    for name in world.pods():
        world.objects["Pod", name]["pending"] = {"pending_restart": True, "pending_restart_reason": reason}
    world.live(0)
    world.taken.clear()
    assert world.settle(spec_of()) == Round()
    restarts = [step for step in world.taken if isinstance(step, RestartPostgres)]
    assert restarts[0].name == first
    assert {step.name for step in restarts} == set(world.pods())


def test_ready_waits_for_what_postgres_knows_and_patroni_has_not_told_yet() -> None:
    world = World()
    world.settle(spec_of())
    for pod in world.pods():
        world.objects["Pod", pod]["pending"] = {"pending_restart": True, "pending_restart_reason": {}}
    assert reasons(world.round(spec_of())) == {"SettingsNotTaken"}
    assert condition(world, "Ready") == ("False", "SettingsNotTaken")
    assert world.settle(spec_of()) == Round()


def test_ready_waits_until_every_member_has_read_the_settings() -> None:
    world = World()
    world.settle(spec_of())
    changed = spec_of(postgres={"tls": {"enabled": False}, "parameters": {"work_mem": "8MB"}})
    assert [type(step) for step in world.round(changed).done] == [Apply]
    world.objects["Pod", "mem-s0-1"]["deaf"] = True  # Patroni could not write Postgres' file: the disk was full
    world.objects["Pod", "mem-s0-1"]["read"] = "of before"
    assert reasons(world.round(changed)) == {"SettingsNotTaken"}
    world.taken.clear()
    assert world.settle(changed) == Round()
    assert [type(step) for step in world.taken] == [ReloadFiles]


def test_a_setting_that_postgres_does_not_take_is_a_fault_with_its_name() -> None:
    world = World()
    world.settle(spec_of())
    wrong = spec_of(postgres={"tls": {"enabled": False}, "parameters": {"work_mem": "potato"}})
    for pod in world.pods():
        world.objects["Pod", pod]["refused"] = ["work_mem"]
    world.settle(wrong)
    assert condition(world, "Degraded") == ("True", "SettingsRefused")
    assert "spec.postgres.parameters.work_mem" in world.status["conditions"][0]["message"]


def test_what_bears_the_labels_and_is_no_member_changes_nothing() -> None:
    world = World()
    world.settle(spec_of())
    labels = world.objects["Pod", "mem-s0-0"]["metadata"]["labels"]
    claim = copy.deepcopy(world.objects["PersistentVolumeClaim", "data-mem-s0-0"])
    claim["metadata"] |= {"name": "data-mem-s0-0-restored", "labels": labels}
    pod = copy.deepcopy(world.objects["Pod", "mem-s0-0"])
    pod["metadata"] = {"name": "debug", "uid": "x", "labels": labels}
    seen = world.observe()
    strays = {("PersistentVolumeClaim", "data-mem-s0-0-restored"): claim, ("Pod", "debug"): pod}
    stray = replace(seen, objects={**seen.objects, **strays})
    assert [each.name for each in stray.members("s0")] == ["mem-s0-0", "mem-s0-1"]
    assert len(stray.claims("s0")) == 2
    assert plan_cluster(spec_of(), stray, world.site) == plan_cluster(spec_of(), seen, world.site)


def test_what_an_external_servers_owner_has_to_mend_is_a_fault_at_once() -> None:
    told = Silence("Secret dsn is not there", "BadDsn", lasts=True)
    (wait,) = plan_databases("s0", told, World().observe())
    assert wait == Wait("BadDsn", "s0: Secret dsn is not there", 10.0, is_fault=True)


def test_a_plan_that_is_only_shown_waits_for_nothing_that_would_come_after_its_first_step() -> None:
    now, later = Wait("PodNotReady", "now", 2.0), Wait("RollingUpdate", "later", 2.0)
    tracks = (Track("s0", (RestartPod("mem-s0-0", "u", "why"), later)), Track("s1", (now,)))
    assert preview(tracks) == Round(waits=(("s1", now),), is_complete=False)


def test_a_certificate_that_was_spoiled_is_made_anew_and_what_the_members_serve_stays() -> None:
    spec = spec_of(postgres={"tls": {"enabled": True}})
    secrets = {
        ("Secret", name): {"kind": "Secret", "metadata": {"name": name, "labels": {MANAGED_BY_LABEL: MANAGED_BY}}}
        for name in ("mem-ca", "mem-tls")
    }
    authority = Certificate("ca", World.now_s - DAY_S, World.now_s + CA_S)
    seen = replace(World().observe(), objects=secrets, certificates=Stored((authority,), None))
    steps = [step for track in plan_cluster(spec, seen, World().site).tracks for step in track.steps]
    assert any(isinstance(step, TurnCertificates) for step in steps)
    assert not any(isinstance(step, Remove) for step in steps)


def test_more_shards_than_the_maps_are_refused_and_fewer_while_they_own_slots() -> None:
    world = World()
    world.settle(spec_of(shards=2))
    world.tenants = (TenantSeen("ns", "team", 3, {"s0": 8192, "s1": 8192}),)
    assert reasons(world.settle(spec_of(shards=3))) == {"ReshardNeeded"}
    assert world.pods("s2") == []
    assert reasons(world.settle(spec_of(shards=1))) == {"ShardsNotEmpty"}
    assert len(world.pods("s1")) == 2
    assert world.status["orphans"][0]["reason"] == "OwnsSlots"
    assert (world.status["phase"], world.status["mapEpoch"], world.status["ready"]) == ("Blocked", 3, "1/1")
    world.tenants = ()
    world.settle(spec_of(shards=1))
    assert world.pods("s1") == []
    assert {key for key in world.objects if "s1" in key[1] and key[0] != "PersistentVolumeClaim"} <= {
        ("ConfigMap", f"mem-s1-{part}") for part in ("config", "leader", "failover", "sync")
    }


def test_a_shard_that_cannot_be_asked_is_never_removed() -> None:
    world = World()
    world.settle(spec_of(shards=2))
    world.kill_primary("s1")
    for name in world.pods("s1"):
        world.objects["Pod", name]["status"]["conditions"][0]["status"] = "False"
        world.objects["Pod", name]["age"] = -1000
    world.round(spec_of(shards=1))
    assert ("StatefulSet", "mem-s1") in world.objects
    assert world.status["orphans"][0]["reason"] == "NotAsked"


EDITS = st.fixed_dictionaries(
    {
        "replicas": st.integers(0, 3),
        "image": st.sampled_from(["engram-postgres:1", "engram-postgres:2", BAD_IMAGE]),
        "rounds": st.integers(0, 12),
        "kills": st.booleans(),
    }
)


# Without shrinking: a world that never settles takes seconds, and the list of edits reads well as it is.
@settings(max_examples=10, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.lists(EDITS, min_size=1, max_size=6), st.integers(0, 3))
def test_whatever_is_asked_for_in_between_the_last_word_counts(edits: list[dict[str, object]], replicas: int) -> None:
    world = World()
    for edit in edits:
        spec = spec_of(replicas=edit["replicas"], postgres={"tls": {"enabled": False}, "image": edit["image"]})
        world.generation += 1
        for _ in range(int(str(edit["rounds"]))):
            world.round(spec)
        if edit["kills"]:
            world.kill_primary()
    world.generation += 1
    last = spec_of(replicas=replicas, postgres={"tls": {"enabled": False}, "image": "engram-postgres:9"})
    assert world.settle(last, rounds=200) == Round()
    assert len(world.pods()) == replicas + 1
    assert {world.objects["Pod", name]["image"] for name in world.pods()} == {"engram-postgres:9"}
    assert condition(world, "Ready") == ("True", "Ready")


@pytest.mark.parametrize(
    ("fault", "has_volumes", "reason"),
    [("", True, "CredentialsLost"), ("the Secret has no key superuser", False, "CredentialsDamaged")],
)
def test_passwords_that_volumes_need_are_never_made_anew(fault: str, has_volumes: bool, reason: str) -> None:
    world = World()
    if has_volumes:
        world.settle(spec_of())
    seen = replace(world.observe(), credentials=None, credentials_fault=fault)
    plan = plan_cluster(spec_of(), seen, world.site)
    assert not [step for track in plan.tracks for step in track.steps if isinstance(step, MakeCredentials)]
    assert [step.reason for step in plan.tracks[0].steps if isinstance(step, Wait)] == [reason]
