"""Pods that ask for a memory and cannot have one because it is not clear whose: in no tenant's status. Pure.

What they name --is_doubtful--> namespaces to look at --find_unclaimed--> the pods, each with the reason

The injector told whoever made them, in a warning that nobody kept.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from engram_contract.names import TENANT_ANNOTATION
from engram_operator.admission import LABEL_CHARS, find_doubt, wants_memory
from engram_operator.plan.members import seconds_of
from engram_operator.plan.sidecars import GRACE_S, has_ended, read_sidecar
from engram_operator.plan.steps import Manifest


@dataclass(frozen=True, slots=True)
class Unclaimed:
    """A pod of no tenant, and why."""

    name: str
    uid: str
    reason: str


def named_tenant(metadata: Mapping[str, Any]) -> str:
    """The tenant that a pod names, cut where no tenant's name is longer; empty if it names none."""
    return str((metadata.get("annotations") or {}).get(TENANT_ANNOTATION) or "")[: LABEL_CHARS + 1]


def is_doubtful(namespace: str, named: str, tenants: Collection[str]) -> bool:
    """Whether it is not clear whose a pod is that names this tenant, or none, in a namespace of these tenants."""
    return _doubt(namespace, named, tenants) is not None


def find_unclaimed(
    namespace: str, tenants: Collection[str], pods: Iterable[Manifest], *, is_wide: bool, now_s: float
) -> tuple[Unclaimed, ...]:
    """The living pods of nobody, in order of names. `is_wide`: the namespace asks for all of its pods."""
    found = []
    for pod in pods:
        metadata = pod["metadata"]
        is_settled = now_s - seconds_of(metadata["creationTimestamp"]) >= GRACE_S
        if not is_settled or has_ended(pod) or "deletionTimestamp" in metadata or read_sidecar(pod) is not None:
            continue
        if wants_memory(metadata.get("labels") or {}, is_namespace_wide=is_wide):
            reason = _doubt(namespace, named_tenant(metadata), tenants)
            if reason is not None:
                found.append(Unclaimed(metadata["name"], metadata["uid"], reason))
    return tuple(sorted(found, key=lambda each: each.name))


def _doubt(namespace: str, named: str, tenants: Collection[str]) -> str | None:
    candidates = [each for each in tenants if each == named] if named else tenants
    return find_doubt(namespace, named, candidates)
