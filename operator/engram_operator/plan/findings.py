"""What one look at a tenant's pods came to: conditions, parts of the status, counts. Pure.

    census, courses --judge--> SidecarsInjected, SidecarsCurrent; status.sidecars and names; engram_pods

Promises
1. What is not known is not said: without what is published there is no number of old configurations, and no condition
   that all are current.
2. However many pods there are and whatever they are called, what is said is short.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from engram_contract.spec import SidecarUpgrade, TenantSpec
from engram_operator.injection import Sidecar
from engram_operator.plan.conditions import Verdict
from engram_operator.plan.sidecars import AgentPod, Census
from engram_operator.plan.watchdog import PACE_S, RESTARTING, Course, Hold, has_cure, listed, why_kept

INJECTED: Final = "SidecarsInjected"
CURRENT: Final = "SidecarsCurrent"
OLD_CONFIG: Final = "OldConfig"
SILENT: Final = "Silent"
STATES: Final = {"oldConfig": "old_config"}  # of engram_pods, where they are not called as in the status
MAX_NAMED: Final = 32  # pods in each list of the status, as the CRD has it


@dataclass(frozen=True, slots=True)
class Findings:
    """What one look came to, for status, metrics and people."""

    verdicts: tuple[Verdict, ...]
    status: Mapping[str, Any]
    counts: Mapping[str, int]
    holds: tuple[Hold, ...]
    again_s: float | None


def judge(tenant: TenantSpec, census: Census, sidecar: Sidecar | None, restarts: Course, upgrades: Course) -> Findings:
    """The findings after the steps were done. A step that failed is a hold of its course, and none of its steps."""
    is_watched = tenant.watchdog.enabled
    missed = census.missed if is_watched else ()
    sidecars: dict[str, Any] = {"missed": len(missed), "outdated": len(census.outdated)}
    names = {"missedPods": _names(missed)}
    if census.published is not None:
        sidecars["oldConfig"] = len(census.old_config)
        names["oldConfigPods"] = _names(census.old_config)
        if census.published.heard_since_s is not None:
            sidecars["silent"] = len(census.silent)
            names["silentPods"] = _names(census.silent)
    counts = {STATES.get(name, name): count for name, count in sidecars.items()} | {"injected": len(census.injected)}
    sidecars["pods"] = len(census.injected) + len(missed)
    if census.applied is not None:
        sidecars["applied"] = dict(census.applied)
    holds = (*restarts.holds, *upgrades.holds)
    pauses = [hold.seconds for hold in holds]
    pauses += [PACE_S] if restarts.steps or upgrades.steps else []
    pauses += [census.next_s] if census.next_s is not None and is_watched else []
    return Findings(
        verdicts=(_injected(tenant, missed, restarts), _current(tenant, census, sidecar, restarts, upgrades)),
        status={"sidecars": sidecars, **names},
        counts=counts,
        holds=holds,
        again_s=max(1.0, min(pauses)) if pauses else None,
    )


def _names(pods: Sequence[AgentPod]) -> list[str]:
    return [pod.name for pod in pods[:MAX_NAMED]]


def _injected(tenant: TenantSpec, missed: Sequence[AgentPod], restarts: Course) -> Verdict:
    if not tenant.watchdog.enabled:
        return Verdict(INJECTED, "WatchdogDisabled", "spec.watchdog.enabled is false: nobody looks", holds=None)
    if not missed:
        return Verdict(INJECTED, "AllInjected", "every pod that should have a sidecar has one", holds=True)
    kept = {pod.name: why_kept(pod) for pod in missed}
    concerning = _concerning(restarts, missed)
    said = [f"pods without a sidecar: {_named(kept)}", *_held(concerning)]
    return Verdict(INJECTED, _pressing(concerning, "PodsMissed"), "; ".join(said), holds=False)


def _current(
    tenant: TenantSpec, census: Census, sidecar: Sidecar | None, restarts: Course, upgrades: Course
) -> Verdict:
    reasons = list(_staleness(tenant, census, restarts, upgrades))
    is_stale = bool(reasons)
    if census.silent:
        names = listed([pod.name for pod in census.silent])
        reasons.append((SILENT, f"sidecars that do not tell by what they serve, so nobody knows: {names}"))
    if reasons:
        message = "; ".join(message for _, message in reasons)
        return Verdict(CURRENT, reasons[0][0], message, holds=False if is_stale else None)
    if sidecar is None:
        return Verdict(CURRENT, "InjectorDisabled", "no injector is installed: nobody knows the image", holds=None)
    if census.injected and (census.published is None or census.published.heard_since_s is None):
        said = "the tenant is not ready, or a shard does not answer: nobody knows by what its sidecars serve"
        return Verdict(CURRENT, "NotHeard", said, holds=None)
    said = "every sidecar is as the injector makes it now, and none serves by something old"
    return Verdict(CURRENT, "AllCurrent", said, holds=True)


def _staleness(tenant: TenantSpec, census: Census, restarts: Course, upgrades: Course) -> Iterator[tuple[str, str]]:
    """Reason and message of all that is not current, the most pressing first."""
    if upgrades.holds:
        yield min(upgrades.holds, key=lambda hold: not hold.is_fault).reason, "; ".join(_held(upgrades))
    if upgrades.steps:
        yield "Upgrading", listed([str(step) for step in upgrades.steps])
    if census.outdated:
        how = "" if tenant.sidecar.upgrade is SidecarUpgrade.IN_PLACE else ", until they are made anew"
        yield "Outdated", f"sidecars that the injector would make otherwise now{how}: {_named(census.outdated)}"
    if census.old_config:
        concerning = _concerning(restarts, census.old_config)
        said = [f"sidecars that serve by an old configuration: {_named(_why_old(tenant, census))}", *_held(concerning)]
        yield _pressing(concerning, OLD_CONFIG), "; ".join(said)


def _why_old(tenant: TenantSpec, census: Census) -> Mapping[str, str | None]:
    """Each with an old configuration, and why it stays so though the spec asks for restarts."""
    if not tenant.watchdog.restart:
        return {pod.name: None for pod in census.old_config}
    since = "it was made after that was published"
    return {pod.name: why_kept(pod) if has_cure(pod, census) else since for pod in census.old_config}


def _concerning(course: Course, pods: Sequence[AgentPod]) -> Course:
    """What of a course is about these pods."""
    names, workloads = {pod.name for pod in pods}, {pod.workload for pod in pods} | {""}
    return Course(
        tuple(step for step in course.steps if step.name in names),
        tuple(hold for hold in course.holds if hold.workload in workloads),
    )


def _pressing(course: Course, usual: str) -> str:
    """The reason that matters most: what wants a person, then what is under way."""
    faults = [hold.reason for hold in course.holds if hold.is_fault]
    others = [hold.reason for hold in course.holds]
    going = [RESTARTING] if course.steps or RESTARTING in others else []
    return [*faults, *going, *others, usual][0]


def _held(course: Course) -> list[str]:
    """What the holds say, faults first, if there are any."""
    holds = sorted(course.holds, key=lambda hold: not hold.is_fault)
    return [listed([hold.message for hold in holds])] if holds else []


def _named(why: Mapping[str, str | None]) -> str:
    return listed([f"{name} ({reason})" if reason else name for name, reason in why.items()])
