"""Which pods lack a sidecar or run an old one, what is done about them, and where it stops."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from engram_contract.names import (
    AGENT_LABEL,
    INJECT_LABEL,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    SIDECAR_BEFORE_ANNOTATION,
    SIDECAR_HASH_ANNOTATION,
    TENANT_ANNOTATION,
)
from engram_contract.policy import Agent
from engram_contract.spec import TenantSpec
from engram_operator.injection import Sidecar, build_container, build_patch, build_volume, sidecar_hash
from engram_operator.manifests.terms import FILE_GRACE_S
from engram_operator.plan.conditions import MAX_MESSAGE_CHARS, Verdict, build_condition
from engram_operator.plan.findings import CURRENT, INJECTED, MAX_NAMED, judge
from engram_operator.plan.sidecars import (
    HEARD_S,
    Census,
    Generations,
    Published,
    Report,
    SidecarsSeen,
    Standing,
    take_census,
)
from engram_operator.plan.watchdog import (
    AT_ONCE,
    RETRY_S,
    STUCK_S,
    Course,
    EvictPod,
    Hold,
    Surroundings,
    UpgradeSidecar,
    injecting_since_s,
    plan_restarts,
    plan_upgrades,
    wanted_pods,
    without,
)
from engram_operator.tuning import Tuning
from tests.operator_stage import patched

Json = dict[str, Any]
NOW_S = 1_767_225_600.0
OLD = Sidecar("engram-sidecar:1", "IfNotPresent", {"limits": {"memory": "256Mi"}})
NEW = replace(OLD, image="engram-sidecar:2")
OURS = {MANAGED_BY_LABEL: MANAGED_BY}  # a shard may lie in the namespace too
NOTHING = Course()
PORT_TAKEN = [{"name": "app", "image": "app:1", "ports": [{"containerPort": 7711}]}]


def moment(age_s: float) -> str:
    return datetime.fromtimestamp(NOW_S - age_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def tenant(**spec: object) -> TenantSpec:
    metadata = {"name": "team", "namespace": "ns"}
    whole = {"clusterRef": {"name": "mem"}, **spec}
    body = {"apiVersion": "engram.dev/v1alpha1", "kind": "MemoryTenant", "metadata": metadata, "spec": whole}
    return TenantSpec.from_resource(body)


RESTARTS = tenant(watchdog={"enabled": True, "restart": True})
IN_PLACE = tenant(sidecar={"upgrade": "InPlace"})


def bare(name: str, **over: Any) -> Json:  # noqa: ANN401  members of a manifest
    """A pod that asks for a memory and was admitted without; `over` is age_s, ready, labels, annotations, owner, ..."""
    labels = {INJECT_LABEL: "true", **over.get("labels", {})}
    metadata: Json = {"name": name, "uid": f"uid-{name}", "resourceVersion": "7", "namespace": "ns", "labels": labels}
    metadata |= {"annotations": over.get("annotations", {}), "creationTimestamp": moment(over.get("age_s", 3600.0))}
    if over.get("is_ending"):
        metadata["deletionTimestamp"] = moment(over.get("ended_s", 1.0))
    if owner := over.get("owner"):
        kind, _, owner_name = owner.partition(" ")
        controller = {"kind": kind, "name": owner_name, "uid": f"uid-{owner_name}", "controller": True}
        metadata["ownerReferences"] = [controller]
    ready = "True" if over.get("ready", True) else "False"
    status = {"phase": over.get("phase", "Running"), "conditions": [{"type": "Ready", "status": ready}]}
    status["startTime"] = metadata["creationTimestamp"]
    return {"metadata": metadata, "spec": {"containers": over.get("containers", PORT_FREE)}, "status": status}


PORT_FREE = [{"name": "app", "image": "app:1"}]


def injected(name: str, sidecar: Sidecar = OLD, to: str = "team", **over: Any) -> Json:  # noqa: ANN401  as `bare`
    """The same after the injector; `container` is the id of the sidecar's, `waiting` why it does not run."""
    before = bare(name, **over)
    pod: Json = patched(before, build_patch(before, to, sidecar))
    is_up = over.get("ready", True) and not over.get("waiting")
    state = (
        {"running": {"startedAt": pod["status"]["startTime"]}}
        if is_up
        else {"waiting": {"reason": over.get("waiting", "PodInitializing")}}
    )
    said = {"name": "engram", "ready": is_up, "started": is_up, "state": state}
    pod["status"]["initContainerStatuses"] = [{**said, "containerID": over.get("container", f"c-{name}")}]
    if "before" in over:
        pod["metadata"]["annotations"][SIDECAR_BEFORE_ANNOTATION] = over["before"]
    return pod


def seen(*pods: Json, sidecar: Sidecar | None = OLD, **over: Any) -> SidecarsSeen:  # noqa: ANN401  of SidecarsSeen
    whole: Json = {"labels": {}, "tenants": ("team",), "now_s": NOW_S} | over
    return SidecarsSeen(pods=pods, sidecar=sidecar, **whole)


def census(*pods: Json, **over: Any) -> Census:  # noqa: ANN401  as `seen`
    return take_census("team", seen(*pods, **over))


def missed(found: Census) -> list[str]:
    return [pod.name for pod in found.missed]


# ------------------------------------------------------------------------------------------------------------- census


@pytest.mark.parametrize(
    ("pod", "is_missed"),
    [
        (bare("a"), True),
        (injected("a"), False),
        (bare("a", age_s=5.0), False),
        (bare("a", is_ending=True), False),
        (bare("a", phase="Succeeded"), False),
        (bare("a", phase="Failed"), False),
        (bare("a", phase="Pending", ready=False), True),
        (bare("a", labels={INJECT_LABEL: "false"}), False),
        (bare("a", annotations={TENANT_ANNOTATION: "team"}), True),
        (bare("a", annotations={TENANT_ANNOTATION: "other"}), False),
        (bare("a", containers=PORT_TAKEN), True),
    ],
)
def test_a_pod_is_missed_that_asks_for_this_tenant_and_has_no_sidecar(pod: Json, is_missed: bool) -> None:
    assert missed(census(pod)) == (["a"] if is_missed else [])


@pytest.mark.parametrize(
    ("labels", "is_missed"),
    [
        ({}, True),
        ({INJECT_LABEL: "false"}, False),
        ({INJECT_LABEL: ""}, True),
        (OURS, False),
    ],
)
def test_a_namespace_asks_for_every_pod_of_it_that_does_not_say_no(labels: dict[str, str], is_missed: bool) -> None:
    pod = bare("a")
    pod["metadata"]["labels"] = labels
    assert missed(census(pod)) == []
    assert missed(census(pod, labels={INJECT_LABEL: "true"})) == (["a"] if is_missed else [])


@pytest.mark.parametrize("kind", ["containers", "initContainers"])
def test_a_container_of_the_pods_own_that_is_called_as_the_sidecar_is_an_obstacle_and_no_sidecar(kind: str) -> None:
    pod = bare("a", owner="ReplicaSet web")
    pod["spec"][kind] = [{"name": "engram", "image": "mine:1", "restartPolicy": "Always"}]
    found = census(pod)
    assert (missed(found), found.injected) == (["a"], ())
    assert "a container of yours has the sidecar's name engram" in verdict(INJECTED, tenant(), found).message


def test_of_several_tenants_a_pod_has_to_name_its_own() -> None:
    pods = (bare("a"), bare("b", annotations={TENANT_ANNOTATION: "team"}))
    assert missed(census(*pods, tenants=("other", "team"))) == ["b"]


def test_a_sidecar_is_of_the_tenant_whose_secret_it_mounts() -> None:
    found = census(injected("a"), injected("b", to="other"), injected("c", annotations={TENANT_ANNOTATION: "other"}))
    assert [pod.name for pod in found.injected] == ["a", "c"]


def test_the_youngest_says_when_to_look_again() -> None:
    assert census(bare("a", age_s=4.0), bare("b", age_s=1.0)).next_s == 9.0
    assert census(bare("a"), injected("b", age_s=1.0)).next_s is None


@pytest.mark.parametrize(
    ("sidecar", "difference"),
    [
        (OLD, None),
        (NEW, "image"),
        (replace(OLD, resources={"limits": {"memory": "1Gi"}}), "resources.limits.memory"),
        (replace(NEW, resources={"limits": {"memory": "1Gi"}}), "resources.limits.memory"),
        (None, None),
    ],
)
def test_a_sidecar_is_outdated_that_would_be_made_otherwise_now(
    sidecar: Sidecar | None, difference: str | None
) -> None:
    assert census(injected("a"), sidecar=sidecar).outdated == ({"a": difference} if difference else {})


def test_an_image_that_was_changed_by_hand_is_outdated_too() -> None:
    pod = injected("a")
    pod["spec"]["initContainers"][0]["image"] = "mine:1"
    assert census(pod).outdated == {"a": "image"}


def test_a_sidecar_without_its_hash_that_is_as_it_should_be_is_current() -> None:
    pod = injected("a")
    del pod["metadata"]["annotations"][SIDECAR_HASH_ANNOTATION]
    assert census(pod).outdated == {}


FILES = Generations(epoch=3, policy=7, credentials=2, keys=1)
PUBLISHED = Published(FILES, since_s=NOW_S - 600, heard_since_s=NOW_S - 3600)
SPREADING = replace(PUBLISHED, since_s=NOW_S - 60)


def report(name: str, **numbers: int) -> Report:
    """What the sidecar of the pod of this name told: what is published, but for `numbers`."""
    return Report(name, f"uid-{name}", replace(FILES, **numbers))


def told(*reports: Report) -> dict[str, Report]:
    return {each.pod: each for each in reports}


@pytest.mark.parametrize(
    ("said", "published", "standing"),
    [
        (report("a"), PUBLISHED, Standing.CURRENT),
        (report("a"), SPREADING, Standing.CURRENT),
        (report("a", epoch=2), PUBLISHED, Standing.OLD),
        (report("a", policy=6), PUBLISHED, Standing.OLD),
        (report("a", credentials=1), PUBLISHED, Standing.OLD),
        (report("a", keys=0), PUBLISHED, Standing.OLD),
        # A tenant that was made anew begins anew; and nobody hides behind a number that is none.
        (report("a", policy=8), PUBLISHED, Standing.AHEAD),
        (report("a", epoch=2, policy=2**62), PUBLISHED, Standing.AHEAD),
        (report("a", policy=8), SPREADING, Standing.UNKNOWN),
        (report("a", epoch=2), SPREADING, Standing.UNKNOWN),
        (report("a", epoch=2), None, Standing.UNKNOWN),
        (replace(report("a"), pod_uid="uid-of-another"), PUBLISHED, Standing.SILENT),
        (report("b"), PUBLISHED, Standing.SILENT),
        (report("b"), replace(PUBLISHED, heard_since_s=None), Standing.UNKNOWN),
        (report("b"), replace(PUBLISHED, heard_since_s=NOW_S - HEARD_S + 1), Standing.UNKNOWN),
    ],
)
def test_a_sidecar_is_current_old_silent_or_nobody_knows(
    said: Report, published: Published | None, standing: Standing
) -> None:
    found = census(injected("a"), published=published, reports=told(said))
    assert found.pods[0].standing is standing
    assert [pod.name for pod in found.old_config] == (["a"] if standing in (Standing.OLD, Standing.AHEAD) else [])
    assert [pod.name for pod in found.silent] == (["a"] if standing is Standing.SILENT else [])


ENDED = {"lastState": {"terminated": {"containerID": "c-before"}}}


@pytest.mark.parametrize(
    ("said", "is_silent"),
    [
        ({"state": {"running": {"startedAt": moment(HEARD_S)}}}, True),
        ({"state": {"running": {"startedAt": moment(HEARD_S - 1)}}}, False),
        ({"state": {"waiting": {"reason": "PodInitializing"}}, "ready": False, "containerID": ""}, False),
        ({"state": {"running": {"startedAt": moment(9.0)}}, **ENDED}, False),  # an upgrade in place
        ({"state": {"running": {"startedAt": moment(9.0)}}, **ENDED, "ready": False}, True),
        ({"state": {"waiting": {"reason": "CrashLoopBackOff"}}, **ENDED, "ready": False}, True),
    ],
)
def test_a_sidecar_is_silent_that_had_the_time_to_tell_and_did_not(said: Json, is_silent: bool) -> None:
    pod = injected("a")
    pod["status"]["initContainerStatuses"][0] |= said
    assert bool(census(pod, published=PUBLISHED).silent) is is_silent


def test_a_pod_without_a_sidecar_is_missed_and_not_silent() -> None:
    found = census(bare("a"), published=PUBLISHED, reports=told(report("a", epoch=2)))
    assert (missed(found), found.silent, found.old_config, found.applied) == (["a"], (), (), None)


def test_applied_is_the_lowest_that_any_living_sidecar_told() -> None:
    reports = told(report("a"), report("b", epoch=2, policy=9), report("gone", epoch=1, keys=0))
    found = census(injected("a"), injected("b"), reports=reports)
    assert found.applied == {"epoch": 2, "policy": 7, "credentials": 2, "keys": 1}
    assert census(injected("a")).applied is None


# ----------------------------------------------------------------------------------------------------------- restarts

THREE = {"uid-web": 3}


def restarts(*pods: Json, wanted: dict[str, int] | None = None, since_s: float | None = NOW_S - 60) -> Course:
    around = Surroundings(THREE if wanted is None else wanted, since_s)
    return plan_restarts(RESTARTS, census(*pods), around, NOW_S)


def evicted(course: Course) -> list[str]:
    return [step.name for step in course.steps if isinstance(step, EvictPod)]


def reasons(course: Course) -> list[str]:
    return [hold.reason for hold in course.holds]


def web(**pods: Json) -> tuple[Json, ...]:
    """Three pods of one ReplicaSet: without a sidecar, but as `pods` says."""
    return tuple(pods.get(name, bare(name, owner="ReplicaSet web")) for name in ("a", "b", "c"))


DONE = injected("a", owner="ReplicaSet web", age_s=30.0)


@pytest.mark.parametrize(
    ("pods", "first", "reason"),
    [
        (web(), ["a"], []),
        (web(b=bare("b", owner="ReplicaSet web", ready=False)), ["b"], []),
        (web(c=bare("c", owner="ReplicaSet web", age_s=9999.0)), ["c"], []),
        (web(a=DONE), ["b"], []),
        (web(a=injected("a", owner="ReplicaSet web", age_s=30.0, ready=False)), [], ["Restarting"]),
        (web(a=bare("a", owner="ReplicaSet web", is_ending=True)), [], ["Restarting"]),
        ((*web(), bare("d", owner="ReplicaSet web", is_ending=True)), [], ["Restarting"]),
        ((*web(), bare("d", owner="ReplicaSet web", is_ending=True, ended_s=600.0)), ["a"], []),
        (web(a=injected("a", owner="ReplicaSet web", ready=False)), [], ["NotReady"]),
        (web(a=injected("a", owner="ReplicaSet web", age_s=30.0, container="c", before="c x:2")), [], ["Restarting"]),
        (web()[:2], [], ["Restarting"]),
        (web(a=bare("a", owner="ReplicaSet web", age_s=30.0)), [], ["NotInjected"]),
        (web(a=bare("a", owner="ReplicaSet web", age_s=5.0)), ["b"], []),  # too young to be judged, and ready
        (web(a=bare("a", owner="ReplicaSet web", age_s=5.0, ready=False)), [], ["Restarting"]),
        ((bare("a"),), [], []),
        ((bare("a", owner="Job once"),), [], []),
        ((bare("a", owner="Workflow once"),), [], []),
        ((bare("a", owner="ReplicaSet web", containers=PORT_TAKEN),), [], []),
        ((bare("a", owner="ReplicaSet other"),), [], ["OwnerUnknown"]),
    ],
)
def test_one_pod_of_a_workload_is_evicted_and_the_next_when_it_is_back(
    pods: tuple[Json, ...], first: list[str], reason: list[str]
) -> None:
    course = restarts(*pods)
    assert (evicted(course), reasons(course)) == (first, reason)


def test_nothing_is_evicted_unless_the_tenant_asks() -> None:
    around = Surroundings(THREE, 0.0)
    assert plan_restarts(tenant(), census(*web()), around, NOW_S) == Course()


@pytest.mark.parametrize(("since_s", "reason"), [(None, "InjectorDown"), (NOW_S - 3, "Restarting")])
def test_nothing_is_evicted_before_the_injector_answers(since_s: float | None, reason: str) -> None:
    course = restarts(*web(), since_s=since_s)
    assert (evicted(course), reasons(course)) == ([], [reason])


@pytest.mark.parametrize(
    ("age_s", "since_s", "first"),
    [(100.0, NOW_S - 3600, []), (100.0, NOW_S - 95, ["a"]), (RETRY_S + 1, NOW_S - 3600, [])],
)
def test_an_injector_that_does_not_inject_is_not_tried_again(age_s: float, since_s: float, first: list[str]) -> None:
    pods = [bare(name, owner="ReplicaSet web", age_s=age_s) for name in ("a", "b", "c")]
    course = restarts(*pods, since_s=since_s)
    assert evicted(course) == first
    if not first:
        (hold,) = course.holds
        assert (hold.is_fault, hold.reason) == (True, "NotInjected")


@pytest.mark.parametrize(("labels", "is_evicted"), [({AGENT_LABEL: "boss"}, False), ({AGENT_LABEL: "bot-1"}, True)])
def test_a_pod_whose_agent_is_not_allowed_is_told_and_left(labels: dict[str, str], is_evicted: bool) -> None:
    pods = [bare(name, owner="ReplicaSet web", labels=labels) for name in ("a", "b", "c")]
    allowed = (Agent("bot-*", "default"),)
    found = take_census("team", replace(seen(*pods), allowed=allowed))
    course = plan_restarts(RESTARTS, found, Surroundings(THREE, NOW_S - 60), NOW_S)
    assert bool(evicted(course)) is is_evicted
    told = [pod.obstacle for pod in found.missed if pod.obstacle]
    assert all("spec.allowedAgents" in each for each in told)
    assert bool(told) is not is_evicted


def test_a_deployment_is_one_workload_also_while_it_rolls() -> None:
    old = bare("old", owner="ReplicaSet web-1", labels={"pod-template-hash": "1"})
    new = injected("new", owner="ReplicaSet web-2", labels={"pod-template-hash": "2"}, ready=False)
    course = restarts(old, new, wanted={"uid-web-1": 1, "uid-web-2": 1})
    assert [hold.message for hold in course.holds] == ["Deployment web: new is not ready"]


def test_few_workloads_are_under_way_at_a_time() -> None:
    pods = [bare(f"p{number}", owner=f"StatefulSet set{number}") for number in range(AT_ONCE + 3)]
    wanted = {f"uid-set{number}": 1 for number in range(AT_ONCE + 3)}
    assert len(evicted(restarts(*pods, wanted=wanted))) == 1, "nobody has seen a pod with a sidecar that is ready"
    pods.append(injected("proof", owner="StatefulSet other"))
    assert len(evicted(restarts(*pods, wanted=wanted))) == AT_ONCE
    pods[0] = injected("p0-new", owner="StatefulSet set0", age_s=5.0, ready=False)
    pods[1] = bare("p1", owner="StatefulSet set1", is_ending=True)
    assert len(evicted(restarts(*pods, wanted=wanted))) == AT_ONCE - 2


def test_sidecars_that_do_not_come_up_stop_the_restarts_of_the_whole_tenant() -> None:
    down = [injected(f"d{n}", owner=f"StatefulSet d{n}", ready=False, waiting="ErrImagePull") for n in range(AT_ONCE)]
    course = restarts(*web(), *down)
    assert (evicted(course), reasons(course)) == ([], ["Restarting"])


def old_config(name: str, **over: Any) -> Json:  # noqa: ANN401  as `injected`
    """A pod with a sidecar; its report is in OLD_ONES."""
    return injected(name, **({"owner": "ReplicaSet web"} | over))


OLD_ONES = told(*(report(name, policy=6) for name in "abc"))
AHEAD = told(*(report(name, policy=999) for name in "abc"))
LONG_AGO = replace(PUBLISHED, since_s=NOW_S - 36_000)
WITHIN = replace(PUBLISHED, since_s=NOW_S - FILE_GRACE_S + 1)
GONE = old_config("a", is_ending=True)


@pytest.mark.parametrize(
    ("pods", "reports", "published", "first", "reason"),
    [
        ("abc", {}, PUBLISHED, ["a"], []),
        ("abc", {}, WITHIN, [], []),
        ("abc", {}, None, [], []),
        ("bc", {}, PUBLISHED, [], ["Restarting"]),  # the controller owes one
        ("Abc", {"a": report("a")}, PUBLISHED, ["b"], []),
        ("Abc", {"a": report("x")}, PUBLISHED, [], ["Restarting"]),  # the new one has not told yet
        ("Abc", {}, PUBLISHED, [], ["NotTakenUp"]),
        ("Sbc", {}, PUBLISHED, [], ["Silent"]),
        ("Abc", {"b": report("b")}, PUBLISHED, [], ["NotTakenUp"]),
        ("A", {}, PUBLISHED, [], []),  # it would be so once more
        ("abc", AHEAD, LONG_AGO, ["a"], []),
        ("abc", {}, LONG_AGO, [], []),
        ("Abc", AHEAD, LONG_AGO, [], ["NotTakenUp"]),
        ("Abc", AHEAD | {"a": report("a")}, LONG_AGO, ["b"], []),
        ("abC", {}, PUBLISHED, ["C"], []),  # one without a sidecar goes first
    ],
)
def test_a_pod_with_an_old_configuration_is_made_anew_once_the_one_before_has_taken_up_the_new(
    pods: str, reports: dict[str, Report], published: Published | None, first: list[str], reason: list[str]
) -> None:
    made = {"A": old_config("a", age_s=100.0), "S": old_config("S", age_s=250.0)}
    made |= {"C": bare("C", owner="ReplicaSet web")}
    found = census(
        *(made.get(each) or old_config(each) for each in pods), published=published, reports=OLD_ONES | reports
    )
    around = Surroundings(THREE, NOW_S - 60)
    course = plan_restarts(RESTARTS, found, around, NOW_S)
    assert (evicted(course), reasons(course)) == (first, reason)
    assert plan_restarts(tenant(), found, around, NOW_S) == Course()


def test_a_silent_pod_is_not_made_anew() -> None:
    found = census(*map(old_config, "abc"), published=PUBLISHED)
    assert len(found.silent) == 3
    assert plan_restarts(RESTARTS, found, Surroundings(THREE, 0.0), NOW_S) == Course()


def test_for_its_configuration_no_pod_goes_that_would_come_back_without_a_sidecar() -> None:
    pods = [old_config(name, labels={AGENT_LABEL: "boss"}) for name in "abc"]
    found = take_census(
        "team", replace(seen(*pods, published=PUBLISHED, reports=OLD_ONES), allowed=(Agent("bot-*", "default"),))
    )
    assert plan_restarts(RESTARTS, found, Surroundings(THREE, 0.0), NOW_S) == Course()
    assert "does not allow agent boss" in verdict(CURRENT, RESTARTS, found).message
    found = census(*map(old_config, "abc"), published=PUBLISHED, reports=OLD_ONES)
    assert reasons(plan_restarts(RESTARTS, found, Surroundings(THREE, None), NOW_S)) == ["InjectorDown"]


def test_until_one_took_up_the_new_configuration_one_goes_alone() -> None:
    pods = [old_config(f"p{n}", owner=f"StatefulSet s{n}") for n in range(AT_ONCE + 2)]
    wanted, reports = (
        {f"uid-s{n}": 1 for n in range(AT_ONCE + 2)},
        told(*(report(pod["metadata"]["name"], keys=0) for pod in pods)),
    )
    around = Surroundings(wanted, 0.0)

    def found(*more: Json, **of: Report) -> Census:
        return census(*pods, *more, published=PUBLISHED, reports=reports | of)

    assert len(evicted(plan_restarts(RESTARTS, found(), around, NOW_S))) == 1
    proof = old_config("proof", owner="StatefulSet proof")
    assert len(evicted(plan_restarts(RESTARTS, found(proof, proof=report("proof")), around, NOW_S))) == AT_ONCE
    pods[0] = old_config("p0", owner="StatefulSet s0", is_ending=True)
    assert len(evicted(plan_restarts(RESTARTS, found(proof, proof=report("proof")), around, NOW_S))) == AT_ONCE - 1


@pytest.mark.parametrize(
    ("status", "since_s"),
    [
        ({}, None),
        ({"availableReplicas": 0, "conditions": [{"type": "Available", "lastTransitionTime": moment(9.0)}]}, None),
        ({"availableReplicas": 1, "conditions": [{"type": "Available", "lastTransitionTime": moment(9.0)}]}, NOW_S - 9),
        ({"availableReplicas": 1, "conditions": [{"type": "Available", "lastTransitionTime": moment(99)}]}, NOW_S - 50),
        ({"availableReplicas": 1}, NOW_S - 50),
    ],
)
def test_injection_takes_an_injector_and_a_tenant(status: Json, since_s: float | None) -> None:
    assert injecting_since_s({"status": status}, {"metadata": {"creationTimestamp": moment(50.0)}}) == since_s


def test_a_controller_says_how_many_pods_it_is_to_have() -> None:
    controllers: list[Json] = [
        {"metadata": {"uid": "rs"}, "spec": {"replicas": 3}},
        {"metadata": {"uid": "default"}, "spec": {}},
        {"metadata": {"uid": "ds"}, "spec": {}, "status": {"desiredNumberScheduled": 5}},
    ]
    assert wanted_pods(controllers) == {"rs": 3, "default": 1, "ds": 5}


# ----------------------------------------------------------------------------------------------------------- upgrades


def upgraded(name: str, **over: Any) -> Json:  # noqa: ANN401  as `injected`
    """A pod whose sidecar got the new image in place; its container was `c-old`."""
    pod = injected(name, NEW, **({"owner": "ReplicaSet web"} | over))
    pod["metadata"]["annotations"][SIDECAR_BEFORE_ANNOTATION] = f"c-old {NEW.image}"
    return pod


def upgrades(*pods: Json, sidecar: Sidecar = NEW, of: TenantSpec = IN_PLACE, restarts: Course = NOTHING) -> Course:
    return plan_upgrades(of, census(*pods, sidecar=sidecar), sidecar, restarts, NOW_S)


def old(name: str, **over: Any) -> Json:  # noqa: ANN401  as `injected`
    return injected(name, **({"owner": "ReplicaSet web"} | over))


@pytest.mark.parametrize(
    ("pods", "first", "reason"),
    [
        ((old("a"), old("b")), ["a"], []),
        ((old("a"), old("b", ready=False)), ["b"], []),
        ((upgraded("a"), old("b")), ["b"], []),
        ((upgraded("a", container="c-old"), old("b")), [], ["Upgrading"]),  # the kubelet has not heard yet
        ((upgraded("a", ready=False), old("b")), [], ["Upgrading"]),
        ((upgraded("a", ready=False, waiting="ErrImagePull"), old("b")), [], ["UpgradeStuck"]),
        ((upgraded("a", ready=False, waiting="ErrImagePull"), old("b", owner="ReplicaSet x")), [], ["UpgradeStuck"]),
        ((upgraded("a", container="c-old"), old("b", owner="ReplicaSet x")), [], ["Upgrading"]),  # not proven yet
        ((upgraded("a"), upgraded("b", ready=False), old("c", owner="ReplicaSet x")), ["c"], ["Upgrading"]),
        ((old("a"), bare("b", owner="ReplicaSet web", ready=False)), [], ["Upgrading"]),
        ((old("a"), bare("b", owner="ReplicaSet x", ready=False)), ["a"], []),
        ((old("a", age_s=20.0), old("b", age_s=20.0)), [], ["Upgrading"]),
        ((old("a", owner=""),), ["a"], []),
        ((upgraded("a"), upgraded("b")), [], []),
        ((old("a"), old("b", is_ending=True)), [], ["Upgrading"]),
        ((old("a"), old("b", is_ending=True, ended_s=600.0)), ["a"], []),
        ((old("a", before=f"c-a {NEW.image}"),), [], ["ImageSetBack"]),
        ((old("a", before="c-a engram-sidecar:bad"),), ["a"], []),
    ],
)
def test_one_sidecar_of_a_workload_is_upgraded_and_the_next_when_it_is_ready(
    pods: tuple[Json, ...], first: list[str], reason: list[str]
) -> None:
    course = upgrades(*pods)
    assert ([step.name for step in course.steps], reasons(course)) == (first, reason)


def test_a_better_image_heals_the_pod_on_which_the_bad_one_stopped() -> None:
    stuck = upgraded("z", ready=False, waiting="ErrImagePull")
    better = replace(NEW, image="engram-sidecar:3")
    course = upgrades(old("a", owner="ReplicaSet x"), old("b"), stuck, sidecar=better)
    assert [step.name for step in course.steps] == ["z"]


def test_until_an_image_was_seen_to_run_one_pod_alone_gets_it() -> None:
    pods = [old(f"p{number}", owner=f"ReplicaSet x{number}") for number in range(AT_ONCE + 3)]
    assert len(upgrades(*pods).steps) == 1
    assert len(upgrades(*pods, upgraded("done")).steps) == AT_ONCE
    assert len(upgrades(*pods, upgraded("done"), upgraded("now", ready=False)).steps) == AT_ONCE - 1


def test_an_app_that_fails_by_itself_stops_its_own_workload_alone() -> None:
    failing = upgraded("a", ready=False)
    failing["status"]["initContainerStatuses"][0] |= {"ready": True, "started": True, "state": {"running": {}}}
    looping = {"name": "app", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}
    failing["status"]["containerStatuses"] = [looping]
    course = upgrades(failing, old("b"), old("c", owner="ReplicaSet x"))
    assert ([step.name for step in course.steps], reasons(course)) == (["c"], ["UpgradeStuck"])


def test_an_image_that_starts_and_ends_again_and_again_is_stuck_also_while_it_runs() -> None:
    looping = upgraded("a", ready=False)
    said = looping["status"]["initContainerStatuses"][0]
    said |= {"state": {"running": {}}, "lastState": {"terminated": {"containerID": "c-old"}}}
    assert reasons(upgrades(looping, old("b", owner="ReplicaSet x"))) == ["Upgrading"]
    said["lastState"]["terminated"]["containerID"] = "c-new"
    assert reasons(upgrades(looping, old("b", owner="ReplicaSet x"))) == ["UpgradeStuck"]


@pytest.mark.parametrize(("ago_s", "reason"), [(STUCK_S - 1, "Upgrading"), (STUCK_S, "UpgradeStuck")])
def test_a_sidecar_that_has_ended_and_is_not_followed_by_another_is_stuck_whatever_the_kubelet_says(
    ago_s: float, reason: str
) -> None:
    gone = upgraded("a", ready=False, container="c-old")
    ended = {"containerID": "c-old", "exitCode": 0, "reason": "Completed", "finishedAt": moment(ago_s)}
    gone["status"]["initContainerStatuses"][0]["state"] = {"terminated": ended}
    assert reasons(upgrades(gone, old("b", owner="ReplicaSet x"))) == [reason]


def test_a_pod_that_has_not_begun_gets_the_image_and_holds_up_nobody_else() -> None:
    pending = old("a", ready=False, container="")
    (step,) = upgrades(pending).steps
    assert isinstance(step, UpgradeSidecar)
    after = patched(pending, step.operations)
    scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    after["status"]["conditions"].append(scheduled)
    course = upgrades(after, old("b", owner="ReplicaSet x"))
    assert ([step.name for step in course.steps], course.holds) == (["b"], ())


def test_a_workload_is_not_upgraded_in_the_round_in_which_a_pod_of_it_is_evicted() -> None:
    restarts = Course((EvictPod("b", "uid-b", "ReplicaSet web"),))
    assert reasons(upgrades(old("a"), restarts=restarts)) == ["Upgrading"]
    assert upgrades(old("a"), restarts=restarts).steps == ()


def test_nothing_is_upgraded_unless_the_tenant_asks() -> None:
    assert upgrades(old("a"), of=tenant()) == Course()


def test_an_upgrade_changes_image_and_marks_and_nothing_of_a_pod_that_has_changed() -> None:
    pod = old("a")
    (step,) = upgrades(pod).steps
    assert isinstance(step, UpgradeSidecar)
    after = patched(pod, step.operations)
    assert after["spec"]["initContainers"][0]["image"] == NEW.image
    digest = sidecar_hash(build_container(NEW, Tuning(NEW.resources)), build_volume("team"))
    marks = {SIDECAR_HASH_ANNOTATION: digest, SIDECAR_BEFORE_ANNOTATION: f"c-a {NEW.image}"}
    assert after["metadata"]["annotations"] == marks
    assert census(after, sidecar=NEW).outdated == {}
    assert {name for name in pod["metadata"] if pod["metadata"][name] != after["metadata"][name]} == {"annotations"}
    tests = [each["path"] for each in step.operations if each["op"] == "test"]
    assert tests == ["/metadata/uid", "/spec/initContainers/0/image"]


def test_where_more_than_the_image_differs_the_sidecar_goes_on_to_be_outdated() -> None:
    sidecar = replace(NEW, resources={"limits": {"memory": "1Gi"}})
    pod = old("a")
    (step,) = upgrades(pod, sidecar=sidecar).steps
    assert isinstance(step, UpgradeSidecar)
    after = patched(pod, step.operations)
    assert after["spec"]["initContainers"][0]["image"] == NEW.image
    assert census(after, sidecar=sidecar).outdated == {"a": "resources.limits.memory"}


# ------------------------------------------------------------------------------------------------------------- report


def verdict(
    kind: str, of: TenantSpec, found: Census, restarts: Course = NOTHING, upgrades: Course = NOTHING
) -> Verdict:
    findings = judge(of, found, NEW, restarts, upgrades)
    return next(each for each in findings.verdicts if each.type == kind)


def test_what_is_missed_is_said_with_the_reason_why_it_stays_so() -> None:
    found = census(bare("alone"), bare("busy", owner="ReplicaSet web", containers=PORT_TAKEN), *web(c=injected("c")))
    said = verdict(INJECTED, tenant(), found)
    assert (said.holds, said.reason) == (False, "PodsMissed")
    assert "alone (it has no controller that would make it anew)" in said.message
    assert "busy (container app declares port 7711" in said.message
    assert ", b" in said.message


@pytest.mark.parametrize(
    ("of", "found", "holds", "reason"),
    [
        (tenant(), census(injected("a")), True, "AllInjected"),
        (tenant(), census(), True, "AllInjected"),
        (tenant(watchdog={"enabled": False}), census(bare("a")), None, "WatchdogDisabled"),
        (RESTARTS, census(bare("a")), False, "PodsMissed"),
    ],
)
def test_injected_is_true_false_or_unknown(of: TenantSpec, found: Census, holds: bool | None, reason: str) -> None:
    said = verdict(INJECTED, of, found)
    assert (said.holds, said.reason) == (holds, reason)


def test_a_disabled_watchdog_counts_nothing_as_missed() -> None:
    findings = judge(tenant(watchdog={"enabled": False}), census(bare("a"), injected("b")), OLD, Course(), Course())
    assert findings.status == {
        "sidecars": {"pods": 1, "missed": 0, "outdated": 0},
        "missedPods": [],
    }
    assert (findings.again_s, findings.counts["missed"]) == (None, 0)


STUCK = Hold("UpgradeStuck", "x", is_fault=True)


@pytest.mark.parametrize(
    ("pods", "course", "holds", "reason"),
    [
        ((injected("a", NEW),), Course(), True, "AllCurrent"),
        ((), Course(), True, "AllCurrent"),
        ((injected("a"),), Course(), False, "Outdated"),
        ((injected("a"), injected("mute", NEW)), Course(), False, "Outdated"),
        ((injected("mute", NEW),), Course(), None, "Silent"),
        ((injected("mute", NEW), injected("old", NEW)), Course(), False, "OldConfig"),
        (
            (injected("a"),),
            Course(holds=(Hold("Upgrading", "w"), Hold("UpgradeStuck", "x", is_fault=True))),
            False,
            "UpgradeStuck",
        ),
    ],
)
def test_current_says_the_most_pressing_first(
    pods: tuple[Json, ...],
    course: Course,
    holds: bool | None,
    reason: str,
) -> None:
    reports = told(report("a"), report("old", keys=0))
    found = census(*pods, sidecar=NEW, published=PUBLISHED, reports=reports)
    said = verdict(CURRENT, IN_PLACE, found, upgrades=course)
    assert (said.holds, said.reason) == (holds, reason)
    for pod in (*found.silent, *found.old_config):
        assert pod.name in said.message


@pytest.mark.parametrize("published", [None, replace(PUBLISHED, heard_since_s=None)])
def test_without_an_answer_of_the_shards_nobody_knows_what_is_current(published: Published | None) -> None:
    findings = judge(tenant(), census(injected("a"), published=published), OLD, NOTHING, NOTHING)
    assert (findings.verdicts[1].holds, findings.verdicts[1].reason) == (None, "NotHeard")
    assert "silent" not in findings.counts
    assert "silentPods" not in findings.status
    assert ("oldConfig" in findings.status["sidecars"]) is (published is not None)


def test_without_an_injector_old_configurations_are_told_all_the_same() -> None:
    found = census(injected("a"), sidecar=None, published=PUBLISHED, reports=told(report("a", epoch=2)))
    findings = judge(tenant(), found, None, NOTHING, NOTHING)
    assert (findings.verdicts[1].holds, findings.verdicts[1].reason) == (False, "OldConfig")


def test_however_many_pods_there_are_what_is_said_is_short() -> None:
    long = [f"{number:03}{'x' * 250}" for number in range(200)]
    pods = [
        *(injected(f"o{name}"[:253], owner=f"ReplicaSet {name}") for name in long),
        *(injected(f"s{name}"[:253]) for name in long),
        *(bare(f"m{name}"[:253], owner=f"ReplicaSet {name}", containers=PORT_TAKEN) for name in long),
    ]
    reports = told(*(report(pod["metadata"]["name"], epoch=1) for pod in pods[:200]))
    found = census(*pods, published=PUBLISHED, reports=reports)
    around = Surroundings({}, 0.0)
    findings = judge(RESTARTS, found, NEW, plan_restarts(RESTARTS, found, around, NOW_S), NOTHING)
    assert findings.status["sidecars"] | {"applied": None} == {
        "pods": 600, "missed": 200, "outdated": 0, "oldConfig": 200, "silent": 200, "applied": None
    }  # fmt: skip
    for name, letter in (("missedPods", "m"), ("oldConfigPods", "o"), ("silentPods", "s")):
        assert [each[:4] for each in findings.status[name]] == [f"{letter}{n:03}" for n in range(MAX_NAMED)]
    for each in findings.verdicts:
        message = build_condition(each, {"metadata": {"generation": 1}}, NOW_S)["message"]
        assert len(message) <= MAX_MESSAGE_CHARS
        assert len(each.message) < 20_000


def test_without_an_injector_nobody_knows_what_is_current() -> None:
    findings = judge(tenant(), census(injected("a"), sidecar=None), None, Course(), Course())
    assert [(each.holds, each.reason) for each in findings.verdicts][1] == (None, "InjectorDisabled")


def test_a_step_that_failed_is_a_hold_and_no_step() -> None:
    steps = (EvictPod("a", "uid-a", "w"), EvictPod("b", "uid-b", "x"))
    course = without(Course(steps, (Hold("Restarting", "z"),)), {"a": Hold("DisruptionBudget", "kept")})
    assert evicted(course) == ["b"]
    assert reasons(course) == ["Restarting", "DisruptionBudget"]
    said = verdict(INJECTED, RESTARTS, census(*web()), restarts=replace(course, steps=()))
    assert said.reason == "Restarting"
    said = verdict(INJECTED, RESTARTS, census(*web()), restarts=without(NOTHING, {"a": course.holds[1]}))
    assert said.reason == "DisruptionBudget"
    assert "kept" in said.message
