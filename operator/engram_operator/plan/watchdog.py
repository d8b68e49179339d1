"""What is done about pods whose sidecar is not as it should be, one of a workload at a time. Pure.

    census --plan_restarts--> EvictPod        only if spec.watchdog.restart: a pod that its controller makes anew
           --plan_upgrades--> UpgradeSidecar  only if spec.sidecar.upgrade is InPlace: the container alone starts anew

Made anew is a pod without a sidecar, and one whose sidecar serves by an old configuration. Not one whose sidecar is
silent: what keeps it from its shard is most often not in the pod; one that does nothing at all the kubelet restarts.

Promises
1. Nothing is begun in a workload in which something is under way: a pod that is not ready and was done already, one
   that its controller still owes. So a fault stops at the first pod.
2. An eviction only while the injector answers, of a pod that it could inject, and not again where it was there and did
   not. Disruption budgets hold, because it is an eviction and no deletion.
3. For its configuration a pod goes only if it is older than what is published, or ahead of it, and not while a kubelet
   may still bring it that; and no further one before the one that was made anew has told that it serves by what is
   published.
4. A pod that is not ready goes first: to lose it costs nothing.

Everything is read from the pods: a crash between two steps leaves nothing to remember.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from engram_contract.names import SIDECAR_BEFORE_ANNOTATION, SIDECAR_CONTAINER, SIDECAR_HASH_ANNOTATION
from engram_contract.spec import SidecarUpgrade, TenantSpec
from engram_operator.injection import Sidecar, build_volume, sidecar_hash
from engram_operator.plan.members import condition_of, seconds_of
from engram_operator.plan.sidecars import AgentPod, Census, Published, Standing, expected_sidecar
from engram_operator.plan.steps import Manifest

RESTARTING: Final = "Restarting"  # of a hold: a pod of the workload is on its way
# Those that make a pod anew as soon as one is evicted. A Job counts it as a failure, and of others nobody knows.
RESTARTED_KINDS: Final = frozenset({"DaemonSet", "ReplicaSet", "StatefulSet"})
AT_ONCE: Final = 4  # pods of a tenant that are under way at a time, each of another workload
RETRY_S: Final = 600.0  # a pod that has not come up for so long has another reason
SETTLE_S: Final = 10.0  # until every API server knows that the injector is there
ENDING_S: Final = 60.0  # a pod that is to have ended for longer is on a node that does not answer, and held up nobody
STUCK_S: Final = 120.0  # after the end of its old container a sidecar is there again by then, or is not coming
FRESH_S: Final = 60.0  # a younger sidecar is not changed: while a release rolls out, its injector may be ahead of us
PACE_S: Final = 3.0  # between looks while something is under way
HOLD_S: Final = 10.0  # between looks while something else is waited for
SHOWN: Final = 8  # names in a message


@dataclass(frozen=True, slots=True)
class EvictPod:
    """The pod goes by the Eviction API, and its controller makes it anew."""

    name: str
    uid: str
    workload: str
    why: str = "it has no sidecar"

    def __str__(self) -> str:
        return f"evict pod {self.name} of {self.workload} ({self.why})"


@dataclass(frozen=True, slots=True)
class UpgradeSidecar:
    """The sidecar's container gets a new image, and the pod stays. If it has changed, `operations` change nothing."""

    name: str
    workload: str
    image: str
    operations: tuple[Mapping[str, Any], ...]

    def __str__(self) -> str:
        return f"upgrade the sidecar of {self.name} of {self.workload} to {self.image}"


@dataclass(frozen=True, slots=True)
class Hold:
    """Why something that is due is not done now; looked at again after so many seconds. A fault wants a person.

    `workload` is whose pods wait; empty if all do.
    """

    reason: str
    message: str
    seconds: float = HOLD_S
    is_fault: bool = False
    workload: str = ""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What restarts depend on beside the pods. `wanted` has the number of pods that each controller is to have, by uid.

    `injecting_since_s` is when everything was there that injection takes (Unix seconds); None while it is not.
    """

    wanted: Mapping[str, int]
    injecting_since_s: float | None


@dataclass(frozen=True, slots=True)
class Course:
    """What is to be done, and what is not and why."""

    steps: tuple[EvictPod | UpgradeSidecar, ...] = ()
    holds: tuple[Hold, ...] = ()


def injecting_since_s(injector: Manifest | None, tenant: Manifest) -> float | None:
    """When the injector's Deployment and the tenant were both there (Unix seconds); None if no injector answers now."""
    status = (injector or {}).get("status") or {}
    if not status.get("availableReplicas"):
        return None
    moments = [tenant["metadata"].get("creationTimestamp"), condition_of(status, "Available").get("lastTransitionTime")]
    return max((seconds_of(moment) for moment in moments if moment), default=0.0)


def wanted_pods(controllers: Iterable[Manifest]) -> dict[str, int]:
    """The number of pods that each controller is to have, by its uid."""
    found = {}
    for each in controllers:
        spec, status = each.get("spec") or {}, each.get("status") or {}
        found[each["metadata"]["uid"]] = int(status.get("desiredNumberScheduled", spec.get("replicas", 1)))
    return found


def owner_kinds(census: Census, now_s: float) -> frozenset[str]:
    """Of which kinds the controllers are whose pods could be made anew."""
    return frozenset(pod.owner.kind for pod in _due_anew(census, now_s) if pod.owner is not None)


def has_restarts(tenant: TenantSpec, census: Census, now_s: float) -> bool:
    """Whether a pod is to be made anew, so that its surroundings matter."""
    return tenant.watchdog.restart and bool(owner_kinds(census, now_s))


def plan_restarts(tenant: TenantSpec, census: Census, around: Surroundings, now_s: float) -> Course:
    """The evictions that are due; one alone in the whole tenant until a pod was seen to be as it should be."""
    if not has_restarts(tenant, census, now_s):
        return Course()
    if around.injecting_since_s is None:
        return Course(holds=(Hold("InjectorDown", "the injector has no pod that answers", is_fault=True),))
    due: list[EvictPod] = []
    holds: list[Hold] = []
    for workload, pods in _by_workload(_due_anew(census, now_s)).items():
        first = _first(pods)
        siblings = [pod for pod in census.namespace if pod.workload == workload]
        hold = _hold_of_restart(workload, siblings, census, around, now_s)
        if hold is None and first.sidecar is not None:
            hold = _hold_of_renewal(workload, siblings, pods)
        if hold is not None:
            holds.append(replace(hold, workload=workload))
        elif first.sidecar is None:
            due.append(EvictPod(first.name, first.uid, workload))
        else:
            due.append(EvictPod(first.name, first.uid, workload, "its sidecar serves by an old configuration"))
    under_way = _restarting(tenant, census, now_s)
    is_proven = any(pod.is_done and not pod.has_old_config for pod in census.injected)
    room = max(0, (AT_ONCE if is_proven else 1) - len(under_way))
    if due and not room:
        holds.append(Hold(RESTARTING, f"not ready yet: {listed(sorted(under_way))}", PACE_S))
    return Course(tuple(due[:room]), tuple(holds))


def _due_anew(census: Census, now_s: float) -> list[AgentPod]:
    """The pods that a restart would mend."""
    old = [pod for pod in census.old_config if _had_time(pod, census.published, now_s) and has_cure(pod, census)]
    return [pod for pod in (*census.missed, *old) if why_kept(pod) is None]


def _had_time(pod: AgentPod, published: Published | None, now_s: float) -> bool:
    """Whether the pod would have what is published by now, if its kubelet were to bring it."""
    return published is not None and now_s - max(published.since_s, pod.created_s) >= published.file_grace_s


def has_cure(pod: AgentPod, census: Census) -> bool:
    """Whether another pod in this one's place would serve by what is published.

    If it is older than that, or ahead of it. One that lags, though it was made since, would do so once more.
    """
    return census.published is not None and (pod.created_s < census.published.since_s or pod.standing is Standing.AHEAD)


def _restarting(tenant: TenantSpec, census: Census, now_s: float) -> frozenset[str]:
    """The workloads with a pod that goes or comes. A sidecar that does not come up counts for good: so may the next."""
    missed = {pod.uid for pod in census.missed}
    found = set()
    for pod in census.namespace:
        if pod.tenant != tenant.name or pod.uid in missed:
            continue
        if pod.ends_s is not None:
            is_lacking = pod.sidecar is None or pod.has_old_config
            is_moving = is_lacking and now_s - pod.ends_s < ENDING_S
        else:
            is_down = pod.sidecar is not None and not pod.sidecar.is_up
            is_moving = is_down or (not pod.is_done and now_s - pod.created_s < RETRY_S)
        if is_moving:
            found.add(pod.workload)
    return frozenset(found)


def why_kept(pod: AgentPod) -> str | None:
    """Why a pod stays as it is, None if it could be made anew with a sidecar."""
    if pod.owner is None:
        return "it has no controller that would make it anew"
    if pod.owner.kind not in RESTARTED_KINDS:
        return f"a {pod.owner.kind} may not make it anew"
    return pod.obstacle


def _hold_of_restart(
    workload: str, siblings: Sequence[AgentPod], census: Census, around: Surroundings, now_s: float
) -> Hold | None:
    missed = {pod.uid for pod in census.missed}
    lacking = missed | {pod.uid for pod in census.old_config}
    living = [pod for pod in siblings if pod.ends_s is None]
    for pod in living:
        if not pod.is_done and pod.uid not in lacking:
            # What has not come up for so long has another reason, and is no cause to leave other workloads alone.
            reason, seconds = (RESTARTING, PACE_S) if now_s - pod.created_s < RETRY_S else ("NotReady", HOLD_S)
            return Hold(reason, f"{workload}: {pod.name} is not ready", seconds)
    for owner in sorted({pod.owner for pod in living if pod.owner is not None}, key=lambda each: each.name):
        have, wanted = sum(pod.owner == owner for pod in living), around.wanted.get(owner.uid)
        if wanted is None:
            return Hold("OwnerUnknown", f"{workload}: {owner.kind} {owner.name} is not there", is_fault=True)
        if have < wanted:
            return Hold(RESTARTING, f"{workload}: {owner.name} has {have} of {wanted} pods", PACE_S)
    newest = max(living, key=lambda pod: pod.created_s)
    settled_s = (around.injecting_since_s or 0.0) + SETTLE_S
    if newest.uid in missed and newest.created_s > settled_s:
        # Not tried again: whatever keeps it from its sidecar, the next one would be made in vain too.
        said = f"{workload}: {newest.name} was made while the injector was there, and has no sidecar either"
        return Hold("NotInjected", f"{said}; kubectl rollout restart once the reason is gone", is_fault=True)
    # The injector answers, but API servers may not know it yet.
    return Hold(RESTARTING, "the injector has just begun to answer", SETTLE_S) if now_s < settled_s else None


def _hold_of_renewal(workload: str, siblings: Sequence[AgentPod], due: Sequence[AgentPod]) -> Hold | None:
    """Why no further pod goes for its configuration: there is one of which nobody knows that it was cured by that."""
    going = {pod.uid for pod in due}
    others = [pod for pod in siblings if pod.uid not in going and pod.sidecar is not None and pod.ends_s is None]
    for pod in others:
        if pod.has_old_config:
            said = f"{workload}: {pod.name} was made since and serves by an old configuration too"
            return Hold("NotTakenUp", f"{said}: kubectl logs {pod.name} -c {SIDECAR_CONTAINER}", is_fault=True)
    silent = next((pod for pod in others if pod.standing is not Standing.CURRENT), None)
    if silent is None:
        return None
    reason, seconds = ("Silent", HOLD_S) if silent.standing is Standing.SILENT else (RESTARTING, PACE_S)
    return Hold(reason, f"{workload}: {silent.name} has not told yet by what it serves", seconds)


def plan_upgrades(
    tenant: TenantSpec, census: Census, sidecar: Sidecar | None, restarts: Course, now_s: float
) -> Course:
    """The upgrades in place that are due; one alone in the whole tenant until the image was seen to run in a pod."""
    if sidecar is None or tenant.sidecar.upgrade is not SidecarUpgrade.IN_PLACE:
        return Course()
    old = [pod for pod in census.injected if pod.sidecar and pod.sidecar.image != sidecar.image]
    new = [pod for pod in census.injected if pod.sidecar and pod.sidecar.image == sidecar.image]
    under_way = [pod for pod in new if pod.sidecar and pod.sidecar.before_id and not pod.sidecar.is_up]
    holds = [_hold_of_unready(pod, now_s) for pod in under_way]
    if any(hold.is_fault for hold in holds):
        return Course(holds=tuple(holds))  # an image that does not start here starts nowhere
    due: list[AgentPod] = []
    for workload, pods in _by_workload(old).items():
        first = _first(pods)
        siblings = [pod for pod in census.namespace if pod.workload == workload]
        hold = _hold_of_upgrade(first, siblings, sidecar, restarts, now_s)
        if hold is None:
            due.append(first)
        elif hold not in holds:
            holds.append(hold)
    room = max(0, (AT_ONCE if any(pod.is_done for pod in new) else 1) - len(under_way))
    chosen = sorted(due, key=lambda pod: pod.is_ready)[:room]
    return Course(tuple(_upgrade(pod, sidecar, census, tenant.name) for pod in chosen), tuple(holds))


def _hold_of_upgrade(
    first: AgentPod, siblings: Sequence[AgentPod], sidecar: Sidecar, restarts: Course, now_s: float
) -> Hold | None:
    """Why nothing is begun in a workload of which `first` would be the next."""
    workload = first.workload
    if any(isinstance(step, EvictPod) and step.workload == workload for step in restarts.steps):
        return Hold("Upgrading", f"{workload}: a pod is made anew", PACE_S)
    for pod in siblings:
        if pod.ends_s is not None and now_s - pod.ends_s < ENDING_S:
            return Hold("Upgrading", f"{workload}: {pod.name} is ending", PACE_S)
        is_old = pod.sidecar is not None and pod.sidecar.image != sidecar.image
        if pod.ends_s is None and not is_old and not pod.is_done:
            return _hold_of_unready(pod, now_s)
    if first.sidecar is not None and first.sidecar.asked_image == sidecar.image:
        said = f"{workload}: something sets the sidecar's image of {first.name} back to {first.sidecar.image}"
        return Hold("ImageSetBack", said, is_fault=True)
    if now_s - first.created_s < FRESH_S:
        return Hold("Upgrading", f"{workload}: {first.name} has just been made", FRESH_S)
    return None


def _hold_of_unready(pod: AgentPod, now_s: float) -> Hold:
    """Says nothing of the kubelet's words, which change every few seconds: each change would be a write."""
    image = pod.sidecar.image if pod.sidecar else "no sidecar"
    # A kubelet may go on to say no more than that the container before has ended.
    is_gone = pod.sidecar is not None and pod.sidecar.gone_s is not None and now_s - pod.sidecar.gone_s >= STUCK_S
    if pod.sidecar is not None and pod.sidecar.before_id and (pod.trouble or pod.sidecar.has_failed or is_gone):
        message = f"{pod.workload}: {pod.name} does not get ready with {image}: kubectl describe pod {pod.name}"
        return Hold("UpgradeStuck", message, is_fault=True)
    return Hold("Upgrading", f"{pod.workload}: {pod.name} is not ready ({image})", PACE_S)


def _upgrade(pod: AgentPod, sidecar: Sidecar, census: Census, tenant: str) -> UpgradeSidecar:
    """The hash changes with the image only where nothing else differs: else the pod is still outdated, and says so."""
    running = pod.sidecar
    if running is None:
        raise AssertionError(f"{pod.name} has no sidecar")
    metadata = pod.manifest["metadata"]
    place = f"/spec/initContainers/{running.index}"
    # One that has never run is of the new image from its beginning, and nobody has to wait for its end.
    annotations = {SIDECAR_BEFORE_ANNOTATION: f"{running.container_id or running.before_id} {sidecar.image}"}
    expected = expected_sidecar(pod.manifest, sidecar)
    if census.outdated.get(pod.name) == "image" and expected is not None:
        annotations[SIDECAR_HASH_ANNOTATION] = sidecar_hash(expected, build_volume(tenant))
    present = metadata.get("annotations") or {}
    operations: list[Mapping[str, Any]] = [
        {"op": "test", "path": "/metadata/uid", "value": pod.uid},
        {"op": "test", "path": f"{place}/image", "value": running.image},
        # Another version is a conflict: between look and patch the container may have started anew by itself.
        {"op": "replace", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]},
        {"op": "replace", "path": f"{place}/image", "value": sidecar.image},
        {"op": "add", "path": "/metadata/annotations", "value": {**present, **annotations}},
    ]
    return UpgradeSidecar(pod.name, pod.workload, sidecar.image, tuple(operations))


def _by_workload(pods: Sequence[AgentPod]) -> Mapping[str, list[AgentPod]]:
    found: dict[str, list[AgentPod]] = {}
    for pod in pods:
        found.setdefault(pod.workload, []).append(pod)
    return found


def _first(pods: Sequence[AgentPod]) -> AgentPod:
    return min(pods, key=lambda pod: (pod.sidecar is not None, pod.is_ready, pod.created_s, pod.name))


def without(course: Course, failed: Mapping[str, Hold]) -> Course:
    """The course with the steps that failed, by the names of their pods, as holds."""
    steps = tuple(step for step in course.steps if step.name not in failed)
    return replace(course, steps=steps, holds=(*course.holds, *failed.values()))


def listed(names: Sequence[str]) -> str:
    """Some of the names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
