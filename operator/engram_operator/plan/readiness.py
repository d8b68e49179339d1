"""Why a process is not ready, in one line for people; None if it is. What was seen is the argument."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from engram_contract.names import CLUSTERS, GROUP, TENANTS, VERSION

OUR_CRDS: Final = (f"{CLUSTERS}.{GROUP}", f"{TENANTS}.{GROUP}")
ANSWER_MAX_AGE_S: Final = 30.0  # three rounds of looking without one answer
TICK_MAX_AGE_S: Final = 60.0  # far more than any call may take: a loop that is silent for so long hangs


@dataclass(frozen=True, slots=True)
class OperatorSeen:
    """What an operator knows of its world. Ages in seconds, None for never."""

    answer_age_s: float | None
    crd_faults: tuple[str, ...] | None
    is_leader: bool
    certificate_fault: str | None
    publication_fault: str | None


@dataclass(frozen=True, slots=True)
class InjectorSeen:
    """What an injector knows of its world."""

    certificate_fault: str | None
    tenants_fault: str | None


def operator_fault(seen: OperatorSeen) -> str | None:
    """Why an operator is not ready."""
    if seen.answer_age_s is None:
        return "the API server has not answered yet"
    if seen.answer_age_s > ANSWER_MAX_AGE_S:
        return f"the API server has not answered for {seen.answer_age_s:.0f} s"
    if seen.crd_faults is None:
        return "the CRDs were not looked at yet"
    if seen.crd_faults:
        return "; ".join(seen.crd_faults)
    # Not the leader alone: until the CA is published every pod starts without a memory, whichever operator is asked.
    return (seen.certificate_fault if seen.is_leader else None) or seen.publication_fault


def injector_fault(seen: InjectorSeen) -> str | None:
    """Why an injector is not ready."""
    return seen.certificate_fault or seen.tenants_fault


def liveness_fault(tick_age_s: float) -> str | None:
    """Why an operator should be started anew."""
    return f"the lease loop has not run for {tick_age_s:.0f} s" if tick_age_s > TICK_MAX_AGE_S else None


def crd_fault(name: str, crd: Mapping[str, Any] | None) -> str | None:
    """Why a CRD, None if there is none, does not serve our version."""
    if crd is None:
        return f"CRD {name} is not installed: kubectl apply -f crds/"
    versions = (crd.get("spec") or {}).get("versions") or ()
    if not any(version.get("name") == VERSION and version.get("served") for version in versions):
        return f"CRD {name} does not serve {VERSION}: kubectl apply -f crds/"
    conditions = (crd.get("status") or {}).get("conditions") or ()
    if not any(each.get("type") == "Established" and each.get("status") == "True" for each in conditions):
        return f"CRD {name} is not established yet"
    return None
