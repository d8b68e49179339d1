"""The pods of a tenant and their sidecars, as the pods themselves tell of them. Pure.

    pods of the namespace --take_census--> missed     should have a sidecar and have none
                                           outdated   have one that the injector would make otherwise now
                                           old_config have one that serves by something else than what is published
                                           silent     have one that has not told for long by what it serves

A pod with a sidecar belongs to the tenant whose Secret it mounts; one without to the tenant that the injector would
take: the one that its annotation names, else the only one of the namespace. What has ended or is ending counts nowhere.

What a sidecar tells, it tells with the tenant's own login. Who has that can lie about this tenant's pods and about no
other's: hide an old configuration or make one up, until the sidecar itself tells anew.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any, Final

from engram_contract.names import (
    AGENT_LABEL,
    CONFIG_VOLUME,
    INJECT_LABEL,
    SIDECAR_BEFORE_ANNOTATION,
    SIDECAR_CONTAINER,
    SIDECAR_HASH_ANNOTATION,
    TENANT_ANNOTATION,
    tenant_objects,
)
from engram_contract.policy import Agent, is_admitted
from engram_operator.admission import wants_memory
from engram_operator.errors import BadAnnotation
from engram_operator.injection import Sidecar, build_container, build_volume, find_obstacle, is_sidecar, sidecar_hash
from engram_operator.manifests.terms import FILE_GRACE_S
from engram_operator.plan.drift import first_difference
from engram_operator.plan.members import condition_of, seconds_of, trouble_of
from engram_operator.plan.steps import Manifest
from engram_operator.tuning import Tuning

GRACE_S: Final = 10.0  # a pod is reported only after this: most that come without a sidecar are gone again by then
SPREAD_S: Final = 180.0  # the kubelet brings new files within two minutes, and a sidecar tells of them a moment later
HEARD_S: Final = 180.0  # a sidecar tells of itself when it starts and every minute; after three it is silent


class Standing(Enum):
    """How that by which a sidecar serves stands to what is published."""

    CURRENT = "current"
    OLD = "old"
    AHEAD = "ahead"  # by numbers that are not published: of another tenant of this name, or made up
    SILENT = "silent"  # it should have told, and has not
    UNKNOWN = "unknown"  # it is too early to say, or nobody can tell at present


NOT_PUBLISHED: Final = frozenset({Standing.OLD, Standing.AHEAD})


@dataclass(frozen=True, slots=True)
class Owner:
    """The controller of a pod."""

    kind: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class RunningSidecar:
    """The sidecar of a pod. `is_up`: it runs, has started, is ready, and is not the container that was to go.

    `started_s`: since when it could have told of itself, Unix seconds; None if it has never run.
    """

    index: int  # among the init containers
    image: str
    container_id: str
    is_up: bool
    before_id: str  # the container that the last upgrade in place was to end; empty if there was none
    asked_image: str  # that this upgrade asked for
    has_failed: bool  # a container of the time after that upgrade has ended
    gone_s: float | None  # when the container that was to go ended, while no other has begun; Unix seconds
    started_s: float | None


@dataclass(frozen=True, slots=True)
class AgentPod:
    """A pod as the watchdog sees it. `workload` is its controller as people know it: the Deployment of a ReplicaSet."""

    manifest: Manifest
    name: str
    uid: str
    workload: str
    owner: Owner | None
    created_s: float
    is_ready: bool
    ends_s: float | None  # when its time to end is over; None unless it is ending
    trouble: str  # why it does not start, empty if it does or needs only time
    sidecar: RunningSidecar | None
    obstacle: str | None  # why it would come back without a sidecar; None if it would not, or need not be made anew
    tenant: str  # that it is a pod of; empty if that is not clear, or if it wants none
    standing: Standing = Standing.UNKNOWN

    @property
    def is_done(self) -> bool:
        """Whether it is ready, and its sidecar, if it has one, is the container that its spec asks for."""
        return self.is_ready and (self.sidecar is None or self.sidecar.is_up)

    @property
    def has_old_config(self) -> bool:
        """Whether its sidecar serves by something else than what is published."""
        return self.standing in NOT_PUBLISHED


@dataclass(frozen=True, slots=True)
class Generations:
    """Which map, policy, credentials and keys, by their numbers."""

    epoch: int
    policy: int
    credentials: int
    keys: int


@dataclass(frozen=True, slots=True)
class Report:
    """By what a sidecar serves, as it told a shard `age_s` ago; that is at most HEARD_S."""

    pod: str
    pod_uid: str
    told: Generations
    age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Published:
    """What the tenant's files say now, and since when (Unix seconds).

    `heard_since_s`: since when all shards answer, and so the one to which sidecars tell; None while one does not.
    `file_grace_s`: how long kubelets may take to bring the files.
    """

    files: Generations
    since_s: float
    heard_since_s: float | None
    file_grace_s: float = FILE_GRACE_S

    @property
    def spread_s(self) -> float:
        """So long nobody is told of a sidecar that lags: longer where kubelets are slower than usual."""
        return SPREAD_S * max(1.0, self.file_grace_s / FILE_GRACE_S)


@dataclass(frozen=True, slots=True)
class SidecarsSeen:
    """What was observed of a namespace. `tenants` are the first two of its MemoryTenants; `reports` are by pod name.

    `sidecar` is None where no injector is installed: then nobody knows how a sidecar should be.
    """

    pods: tuple[Manifest, ...]
    labels: Mapping[str, str]  # of the namespace
    tenants: tuple[str, ...]
    sidecar: Sidecar | None
    now_s: float
    published: Published | None = None
    reports: Mapping[str, Report] = field(default_factory=dict)
    allowed: tuple[Agent, ...] = ()  # agents of the tenant that is looked after


@dataclass(frozen=True, slots=True)
class Census:
    """The living pods of one tenant, each list in order of names. `namespace` has every pod that has not ended.

    `outdated` says of each what differs, `image` if it is no more than that.
    """

    namespace: tuple[AgentPod, ...]
    pods: tuple[AgentPod, ...]
    missed: tuple[AgentPod, ...]
    outdated: Mapping[str, str]
    applied: Mapping[str, int] | None  # the lowest numbers that any of the living sidecars told
    next_s: float | None  # when the youngest pod without a sidecar is due to be reported
    published: Published | None  # None if that is not known at present: then nobody knows which sidecars are current

    @property
    def injected(self) -> tuple[AgentPod, ...]:
        """Those with a sidecar."""
        return tuple(each for each in self.pods if each.sidecar is not None)

    @property
    def old_config(self) -> tuple[AgentPod, ...]:
        """Those whose sidecar serves by something else than what is published."""
        return tuple(each for each in self.pods if each.has_old_config)

    @property
    def silent(self) -> tuple[AgentPod, ...]:
        """Those whose sidecar has not told for long by what it serves."""
        return tuple(each for each in self.pods if each.standing is Standing.SILENT)


def take_census(tenant: str, seen: SidecarsSeen) -> Census:
    """The tenant's pods. O(pods)."""
    living = tuple(
        sorted((read_pod(each, seen) for each in seen.pods if not has_ended(each)), key=lambda each: each.name)
    )
    pods = tuple(each for each in living if each.tenant == tenant and each.ends_s is None)
    without = [each for each in pods if each.sidecar is None]
    due_s = [each.created_s + GRACE_S - seen.now_s for each in without]
    differences = {} if seen.sidecar is None else _differences(pods, tenant, seen.sidecar)
    reports = [asdict(report.told) for pod in pods if pod.sidecar and (report := _report_of(pod.manifest, seen))]
    return Census(
        namespace=living,
        pods=pods,
        missed=tuple(pod for pod, left_s in zip(without, due_s, strict=True) if left_s <= 0),
        outdated=differences,
        applied={name: min(each[name] for each in reports) for name in reports[0]} if reports else None,
        published=seen.published,
        next_s=max((left_s for left_s in due_s if left_s > 0), default=None),
    )


def read_pod(manifest: Manifest, seen: SidecarsSeen) -> AgentPod:
    """One pod."""
    metadata, status = manifest["metadata"], manifest.get("status") or {}
    owner = _owner_of(metadata)
    sidecar = read_sidecar(manifest)
    standing = _standing_of(manifest, sidecar, seen)
    return AgentPod(
        manifest=manifest,
        name=metadata["name"],
        uid=metadata["uid"],
        workload=_workload_of(metadata, owner),
        owner=owner,
        created_s=seconds_of(metadata["creationTimestamp"]),
        is_ready=condition_of(status, "Ready").get("status") == "True",
        ends_s=seconds_of(metadata["deletionTimestamp"]) if "deletionTimestamp" in metadata else None,
        trouble=trouble_of(status),
        sidecar=sidecar,
        obstacle=_obstacle_of(manifest, seen) if sidecar is None or standing in NOT_PUBLISHED else None,
        tenant=_mounted_tenant(manifest) if sidecar else _asked_tenant(metadata, seen),
        standing=standing,
    )


def _obstacle_of(manifest: Manifest, seen: SidecarsSeen) -> str | None:
    """Why the injector would not give it a sidecar of this tenant."""
    account = str((manifest.get("spec") or {}).get("serviceAccountName") or "default")
    agent = str((manifest["metadata"].get("labels") or {}).get(AGENT_LABEL) or account)
    if not is_admitted(seen.allowed, agent, account):
        return f"the tenant does not allow agent {agent} with ServiceAccount {account} (its spec.allowedAgents)"
    return None if seen.sidecar is None else find_obstacle(manifest, seen.sidecar)


def expected_sidecar(manifest: Manifest, sidecar: Sidecar) -> dict[str, Any] | None:
    """The container that the injector would make for this pod now; None if its annotations ask for what cannot be."""
    annotations = manifest["metadata"].get("annotations") or {}
    try:
        return build_container(sidecar, Tuning.from_annotations(annotations, sidecar.resources))
    except BadAnnotation:
        return None


def has_ended(manifest: Manifest) -> bool:
    """Whether the pod does nothing any more."""
    return (manifest.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def _owner_of(metadata: Mapping[str, Any]) -> Owner | None:
    for each in metadata.get("ownerReferences") or ():
        if each.get("controller"):
            return Owner(each["kind"], each["name"], each["uid"])
    return None


def _workload_of(metadata: Mapping[str, Any], owner: Owner | None) -> str:
    """While a Deployment rolls, its pods have two ReplicaSets; each is named after it and the hash of its template."""
    if owner is None:
        return f"Pod {metadata['name']}"
    ending = f"-{(metadata.get('labels') or {}).get('pod-template-hash')}"
    if owner.kind == "ReplicaSet" and owner.name.endswith(ending):
        return f"Deployment {owner.name.removesuffix(ending)}"
    return f"{owner.kind} {owner.name}"


def _asked_tenant(metadata: Mapping[str, Any], seen: SidecarsSeen) -> str:
    """The tenant that the injector would give it, by the pod's label or, where the pod has none, the namespace's."""
    if not wants_memory(metadata.get("labels") or {}, is_namespace_wide=seen.labels.get(INJECT_LABEL) == "true"):
        return ""
    named = str((metadata.get("annotations") or {}).get(TENANT_ANNOTATION) or "")
    return named or (seen.tenants[0] if len(seen.tenants) == 1 else "")


def _mounted_tenant(manifest: Manifest) -> str:
    for volume in (manifest.get("spec") or {}).get("volumes") or ():
        if volume.get("name") == CONFIG_VOLUME:
            for source in (volume.get("projected") or {}).get("sources") or ():
                name = str((source.get("secret") or {}).get("name") or "")
                if name.startswith(tenant_objects("")):
                    return name.removeprefix(tenant_objects(""))
    return ""


def read_sidecar(manifest: Manifest) -> RunningSidecar | None:
    """The pod's sidecar, None if it has none of a tenant."""
    spec, status = manifest.get("spec") or {}, manifest.get("status") or {}
    containers = enumerate(spec.get("initContainers") or ())
    index, container = next((pair for pair in containers if is_sidecar(pair[1])), (0, None))
    if container is None or not _mounted_tenant(manifest):
        return None  # also for one of its author's own that has the same name: it is an obstacle
    states = status.get("initContainerStatuses") or ()
    said: Manifest = next((each for each in states if each.get("name") == SIDECAR_CONTAINER), {})
    marked = str((manifest["metadata"].get("annotations") or {}).get(SIDECAR_BEFORE_ANNOTATION) or "")
    before_id, _, asked_image = marked.partition(" ")
    container_id = str(said.get("containerID") or "")
    return RunningSidecar(
        index=index,
        image=str(container.get("image") or ""),
        container_id=container_id,
        is_up=bool(said.get("ready") and said.get("started") and "running" in (said.get("state") or {}))
        and container_id != before_id,
        before_id=before_id,
        asked_image=asked_image,
        has_failed=bool(before_id) and _ended_id(said) not in ("", before_id),
        gone_s=_gone_s(said) if before_id == container_id else None,
        started_s=_started_s(status, said),
    )


def _gone_s(said: Mapping[str, Any]) -> float | None:
    moment = ((said.get("state") or {}).get("terminated") or {}).get("finishedAt")
    return None if moment is None else seconds_of(moment)


def _started_s(status: Mapping[str, Any], said: Mapping[str, Any]) -> float | None:
    """One that ends again and again could have told since the pod began: else each start were a new grace."""
    is_failing = bool(_ended_id(said)) and not said.get("ready")
    running = (said.get("state") or {}).get("running") or {}
    moment = status.get("startTime") if is_failing else running.get("startedAt")
    return None if moment is None else seconds_of(moment)


def _ended_id(said: Mapping[str, Any]) -> str:
    """The container that ended last."""
    states = ((said.get(name) or {}).get("terminated") or {} for name in ("state", "lastState"))
    return next((str(each["containerID"]) for each in states if each.get("containerID")), "")


def _differences(pods: tuple[AgentPod, ...], tenant: str, sidecar: Sidecar) -> dict[str, str]:
    """By pod what the injector would make otherwise now; `image` only where nothing else differs."""
    volume = build_volume(tenant)
    found = {}
    for pod in pods:
        expected = expected_sidecar(pod.manifest, sidecar)
        if pod.sidecar is None or expected is None:
            continue
        marked = (pod.manifest["metadata"].get("annotations") or {}).get(SIDECAR_HASH_ANNOTATION)
        if marked == sidecar_hash(expected, volume) and pod.sidecar.image == sidecar.image:
            continue
        rest = {name: value for name, value in expected.items() if name != "image"}
        spec = pod.manifest["spec"]
        live = next(each for each in spec["volumes"] if each["name"] == CONFIG_VOLUME)
        place = first_difference(rest, spec["initContainers"][pod.sidecar.index]) or first_difference(volume, live)
        if place is not None:
            found[pod.name] = place.lstrip(".")
        elif pod.sidecar.image != sidecar.image:
            found[pod.name] = "image"
    return found


def _report_of(manifest: Manifest, seen: SidecarsSeen) -> Report | None:
    """What the pod's sidecar told. A pod of the same name before it may have told something too."""
    report = seen.reports.get(manifest["metadata"]["name"])
    return report if report is not None and report.pod_uid == manifest["metadata"]["uid"] else None


def _standing_of(manifest: Manifest, sidecar: RunningSidecar | None, seen: SidecarsSeen) -> Standing:
    """A sidecar takes nothing older than what it has, so one that is ahead stays so."""
    report, published = _report_of(manifest, seen), seen.published
    if sidecar is None or published is None:
        return Standing.UNKNOWN
    if report is None:
        moments = (sidecar.started_s, published.heard_since_s)
        is_due = all(moment is not None and seen.now_s - moment >= HEARD_S for moment in moments)
        return Standing.SILENT if is_due else Standing.UNKNOWN
    told, files = asdict(report.told), asdict(published.files)
    if told == files:
        return Standing.CURRENT
    if seen.now_s - published.since_s < published.spread_s:
        return Standing.UNKNOWN
    return Standing.AHEAD if any(told[name] > files[name] for name in files) else Standing.OLD
