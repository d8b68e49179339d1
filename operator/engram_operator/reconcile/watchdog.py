"""The watchdog's part of a tenant's reconcile: its pods are looked at, mended where the spec says so, and reported.

    pods, namespace, its tenants --> census --> (injector, controllers) --> plan --> evict, upgrade --> Watched

It follows the tenant's own steps, whatever they came to, and adds to its status. What keeps it from looking is a
condition Unknown, never an end of the tenant's reconcile.

Promises
1. Each eviction and each patch is within the term, and of the very pod that was looked at.
2. Without a pod that lacks something, it only reads: four calls.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from engram_contract.names import API_VERSION, INJECT_LABEL, INJECTED_LABEL, TENANT_KIND
from engram_contract.spec import TenantSpec
from engram_operator.clients.kube import (
    DAEMON_SETS,
    DEPLOYMENTS,
    MEMORY_TENANTS,
    NAMESPACES,
    OWNED,
    REPLICA_SETS,
    Kube,
    Manifest,
)
from engram_operator.errors import ApiConflict, ApiError, ApiHeld, ApiNotFound
from engram_operator.events import About, Recorder
from engram_operator.leadership import Leadership
from engram_operator.metrics import OperatorMetrics
from engram_operator.plan.conditions import Verdict, build_condition
from engram_operator.plan.findings import CURRENT, INJECTED, OLD_CONFIG, SILENT, Findings, judge
from engram_operator.plan.sidecars import Census, Published, Report, SidecarsSeen, take_census
from engram_operator.plan.steps import Wait
from engram_operator.plan.watchdog import (
    PACE_S,
    RESTARTING,
    SHOWN,
    Course,
    EvictPod,
    Hold,
    Surroundings,
    UpgradeSidecar,
    has_restarts,
    injecting_since_s,
    owner_kinds,
    plan_restarts,
    plan_upgrades,
    wanted_pods,
    without,
)
from engram_operator.reconcile.writing import left_s
from engram_operator.settings import Injection
from engram_operator.workqueue import Key

FIELD_MANAGER: Final = "engram-operator-watchdog"
UNSEEN_S: Final = 30.0
LOOKED_AT: Final = ("sidecars", "missedPods", "oldConfigPods", "silentPods")
BOTH: Final = 2  # tenants of a namespace: more than one is all that matters


@dataclass(frozen=True, slots=True)
class Watched:
    """What a look came to: parts of the status, lines for the log, and when to look again (None: no hurry)."""

    verdicts: tuple[Verdict, ...]
    status: Mapping[str, Any]
    done: tuple[str, ...] = ()
    waits: tuple[Wait, ...] = ()
    again_s: float | None = None

    def added_to(self, status: dict[str, Any], resource: Manifest, now_s: float) -> dict[str, Any]:
        """A tenant's status with the watchdog's parts."""
        conditions = [build_condition(verdict, resource, now_s) for verdict in self.verdicts]
        return {**status, **self.status, "conditions": [*status["conditions"], *conditions]}


class Watchdog:
    """Looks after the pods of tenants while we lead. `injection` is None where no injector is installed."""

    def __init__(
        self,
        kube: Kube,
        leadership: Leadership,
        injection: Injection | None,
        recorder: Recorder,
        metrics: OperatorMetrics,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._kube = kube
        self._leadership = leadership
        self._injection = injection
        self._recorder = recorder
        self._metrics = metrics
        self._wall_clock = wall_clock
        self._counts: dict[Key, Mapping[str, int]] = {}  # of each tenant, as they were reported last

    async def look(
        self,
        tenant: TenantSpec,
        resource: Manifest,
        published: Published | None = None,
        reports: Mapping[str, Report] | None = None,
        *,
        is_served: bool = True,
    ) -> Watched:
        """One look at all pods of a tenant, with what is done about them. Raises LostLease.

        Where the tenant is not served (`is_served`) no pod is made anew: its sidecar would wait for files.
        """
        try:
            seen = await self._observe(tenant, published, reports or {})
            census = take_census(tenant.name, seen)
            restarts = await self._restart(tenant, resource, census) if is_served else Course()
            planned = plan_upgrades(tenant, census, seen.sidecar, restarts, seen.now_s)
            upgrades = await self._act(tenant, planned)
        except ApiError as error:
            return self._unseen(resource, str(error))
        findings = judge(tenant, census, seen.sidecar, restarts, upgrades)
        self._count(tenant, findings)
        steps = (*restarts.steps, *upgrades.steps)
        await self._tell(resource, findings, steps)
        waits = tuple(Wait(hold.reason, hold.message, hold.seconds, hold.is_fault) for hold in findings.holds[:SHOWN])
        return Watched(findings.verdicts, findings.status, tuple(map(str, steps)), waits, findings.again_s)

    def forget(self, key: Key) -> None:
        """The tenant is gone: its pods are nobody's."""
        self._counts.pop(key, None)
        self._metrics.set_pods(self._counts.values())

    async def _observe(
        self, tenant: TenantSpec, published: Published | None, reports: Mapping[str, Report]
    ) -> SidecarsSeen:
        namespace, tenants = await asyncio.gather(
            self._kube.fetch(NAMESPACES, None, tenant.namespace),
            self._kube.fetch_some(MEMORY_TENANTS, tenant.namespace, limit=BOTH),
        )
        labels = namespace["metadata"].get("labels") or {}
        # Where the namespace asks, every pod counts that does not say no; else those that ask, or that have a sidecar.
        is_all = labels.get(INJECT_LABEL) == "true"
        selectors = ("",) if is_all else (f"{INJECT_LABEL}=true", f"{INJECTED_LABEL}=true")
        lists = await asyncio.gather(
            *(self._kube.fetch_labelled(OWNED["Pod"], tenant.namespace, each) for each in selectors)
        )
        pods = {pod["metadata"]["uid"]: pod for each in lists for pod in each}
        return SidecarsSeen(
            pods=tuple(pods.values()),
            labels=labels,
            tenants=tuple(each["metadata"]["name"] for each in tenants),
            sidecar=self._injection.sidecar if self._injection else None,
            now_s=self._wall_clock(),
            published=published,
            reports=reports,
            allowed=tenant.allowed_agents,
        )

    async def _restart(self, tenant: TenantSpec, resource: Manifest, census: Census) -> Course:
        now_s = self._wall_clock()
        if not has_restarts(tenant, census, now_s):
            return Course()
        wanted = await self._fetch_wanted(tenant.namespace, owner_kinds(census, now_s))
        around = Surroundings(wanted, injecting_since_s(await self._fetch_injector(), resource))
        return await self._act(tenant, plan_restarts(tenant, census, around, now_s))

    async def _fetch_wanted(self, namespace: str, kinds: frozenset[str]) -> Mapping[str, int]:
        """The number of pods that each controller of a kind is to have, by uid."""
        found: list[Manifest] = []
        if "DaemonSet" in kinds:
            found += await self._kube.fetch_all(DAEMON_SETS, namespace)
        if "ReplicaSet" in kinds:
            found += await self._kube.fetch_all(REPLICA_SETS, namespace)
        if "StatefulSet" in kinds:
            found += await self._kube.fetch_all(OWNED["StatefulSet"], namespace)
        return wanted_pods(found)

    async def _fetch_injector(self) -> Manifest | None:
        if self._injection is None:
            return None
        return await self._kube.find(DEPLOYMENTS, self._injection.namespace, self._injection.deployment)

    async def _act(self, tenant: TenantSpec, course: Course) -> Course:
        """The course as it went: a step that failed is a hold."""
        failed = {}
        for step in course.steps:
            timeout_s = left_s(self._leadership.held())
            try:
                if isinstance(step, EvictPod):
                    await self._kube.evict(OWNED["Pod"], tenant.namespace, step.name, step.uid, timeout_s=timeout_s)
                    self._metrics.count_eviction()
                else:
                    await self._upgrade(tenant, step, timeout_s)
                    self._metrics.count_upgrade()
            except ApiError as error:
                failed[step.name] = _hold_of(step, error)
        return without(course, failed)

    async def _upgrade(self, tenant: TenantSpec, step: UpgradeSidecar, timeout_s: float) -> None:
        await self._kube.patch(
            OWNED["Pod"], step.name, step.operations, FIELD_MANAGER, namespace=tenant.namespace, timeout_s=timeout_s
        )

    def _count(self, tenant: TenantSpec, findings: Findings) -> None:
        self._counts[Key(TENANT_KIND, tenant.namespace, tenant.name)] = findings.counts
        self._metrics.set_pods(self._counts.values())

    def _unseen(self, resource: Manifest, reason: str) -> Watched:
        """What was told last stays, and that nobody could look."""
        before = resource.get("status") or {}
        kept = {name: before[name] for name in LOOKED_AT if name in before}
        message = f"the pods could not be looked at: {reason}"
        verdicts = tuple(Verdict(kind, "NotLookedAt", message, holds=None) for kind in (INJECTED, CURRENT))
        return Watched(verdicts, kept, waits=(Wait("NotLookedAt", message, UNSEEN_S),), again_s=UNSEEN_S)

    async def _tell(self, resource: Manifest, findings: Findings, steps: tuple[EvictPod | UpgradeSidecar, ...]) -> None:
        """Events for people: what was done, and what somebody should look at."""
        about = About.of({"apiVersion": API_VERSION, "kind": TENANT_KIND} | resource)
        for step in steps:
            await self._recorder.record(about, "Normal", type(step).__name__, str(step))
        faults = [(hold.reason, hold.message) for hold in findings.holds if hold.is_fault][:SHOWN]
        # Where pods are evicted, the evictions were told.
        lacks = [each for each in findings.verdicts if (each.type, each.holds) == (INJECTED, False)]
        lacks = [each for each in lacks if each.reason != RESTARTING]
        lacks += [each for each in findings.verdicts if each.type == CURRENT and each.reason in (OLD_CONFIG, SILENT)]
        for reason, message in faults or [(each.reason, each.message) for each in lacks]:
            await self._recorder.record(about, "Warning", reason, message)


def _hold_of(step: EvictPod | UpgradeSidecar, error: ApiError) -> Hold:
    """Why a step was not done."""
    if isinstance(error, ApiHeld):
        message = f"{step.workload}: a disruption budget keeps {step.name}"
        return Hold("DisruptionBudget", message, workload=step.workload)
    if isinstance(error, ApiConflict | ApiNotFound):
        message = f"{step}: the pod has changed since it was looked at"
        return Hold("Conflict", message, PACE_S, workload=step.workload)
    return Hold(type(error).__name__, f"{step}: {error}", is_fault=True, workload=step.workload)
