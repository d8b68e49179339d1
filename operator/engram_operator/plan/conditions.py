"""Conditions in the standard form of Kubernetes, for every kind that has them. Pure.

Promise: the time of a condition changes only with its status, so an unchanged world is an equal condition.
"""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime
from typing import Any, Final

MAX_MESSAGE_CHARS: Final = 1024


@dataclass(frozen=True, slots=True)
class Verdict:
    """One condition before it gets its generation and its time. `holds` is True, False or, if nobody knows, None."""

    type: str
    reason: str
    message: str
    _: KW_ONLY
    holds: bool | None


def build_condition(verdict: Verdict, resource: Mapping[str, Any], now_s: float) -> dict[str, Any]:
    """The condition of this resource, as of Unix seconds."""
    status = "Unknown" if verdict.holds is None else str(verdict.holds)
    conditions = (resource.get("status") or {}).get("conditions") or ()
    old: Mapping[str, Any] = next((each for each in conditions if each.get("type") == verdict.type), {})
    moment = time_of(now_s)
    return {
        "type": verdict.type,
        "status": status,
        "observedGeneration": resource["metadata"]["generation"],
        "lastTransitionTime": old["lastTransitionTime"] if old.get("status") == status else moment,
        "reason": verdict.reason,
        "message": verdict.message[:MAX_MESSAGE_CHARS],
    }


def time_of(now_s: float) -> str:
    """Unix seconds as Kubernetes writes a time."""
    return datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
