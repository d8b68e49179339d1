"""What the state of the parts comes to: healthy, degraded or unhealthy, for each check and over all. Pure.

The numbers are those of requirements 1.8. One degraded check degrades the whole, one unhealthy check makes it
unhealthy. What is shown names shards, nodes, operations and files: no address, no key, nothing of a memory.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from engram_sidecar.breaker import State
from engram_sidecar.cachestate import CacheState
from engram_sidecar.config import Config
from engram_sidecar.gate import Shown
from engram_sidecar.recent import Pace
from engram_sidecar.wire import timestamp

SLOW_MS: Final = 1_000.0
ERRORS_PERCENT: Final = 5.0
JUDGED_CALLS: Final = 20  # of which one that failed is five percent: fewer say little about a rate
JUDGED_READS: Final = 1_000  # before, most of what is asked for is asked for the first time
POOR_HIT_RATE: Final = 0.5
CPU_WARN_PERCENT: Final = 80.0
MEMORY_WARN_PERCENT: Final = 85.0
FULL_PERCENT: Final = 95.0
CHECKS: Final = ("database", "breakers", "performance", "resources", "configuration", "cache")


class Status(StrEnum):
    """How well a part does."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


_ORDER: Final = tuple(Status)


@dataclass(frozen=True, slots=True)
class Check:
    """One part's status, and what it was judged by."""

    status: Status
    details: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of trying one shard. `took_ms`: each operation that was done; `reason` is empty if nothing is amiss."""

    shard: str
    node: str
    state: str
    status: Status
    response_ms: float
    took_ms: Mapping[str, float]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Used:
    """How much of what it has the process uses; None where the system does not tell."""

    cpu_percent: float | None
    memory_percent: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """All checks, and when they were made, in Unix seconds."""

    at_s: float
    checks: Mapping[str, Check]

    @property
    def status(self) -> Status:
        """That of the worst check."""
        return worst(check.status for check in self.checks.values())


def worst(found: Iterable[Status]) -> Status:
    """The worst of these; healthy if there are none."""
    return max(found, key=_ORDER.index, default=Status.HEALTHY)


def judge_database(trials: Sequence[Trial]) -> Check:
    """Every shard, as it was tried."""
    shown = [
        {
            "shard": trial.shard,
            "node": trial.node,
            "state": trial.state,
            "status": trial.status,
            "response_ms": round(trial.response_ms, 3),
            "operations": {operation: round(took_ms, 3) for operation, took_ms in trial.took_ms.items()},
            "reason": trial.reason,
        }
        for trial in trials
    ]
    return Check(worst(trial.status for trial in trials), {"shards": shown})


def judge_breakers(breakers: Iterable[Shown], now_s: float, monotonic_s: float) -> Check:
    """Any breaker that is not closed is unhealthy. Breakers that never saw a failure are not shown."""
    shown: list[dict[str, object]] = []
    status = Status.HEALTHY
    for each in breakers:
        view = each.view
        if view.state is not State.CLOSED:
            status = Status.UNHEALTHY
        elif view.failed_s is None:
            continue
        failed_s = None if view.failed_s is None else now_s - (monotonic_s - view.failed_s)
        shown.append(
            {
                "shard": each.shard,
                "node": each.node,
                "operation": each.kind,
                "state": view.state,
                "failures": view.failures,
                "last_failure": None if failed_s is None else shown_time(failed_s),
            }
        )
    return Check(status, {"breakers": shown})


def judge_performance(paces: Mapping[str, Pace]) -> Check:
    """A mean over a second degrades; errors over five percent are unhealthy. Fewer than JUDGED_CALLS are not judged."""
    found = {operation: _judge_pace(pace) for operation, pace in paces.items()}
    shown = [
        {
            "operation": operation,
            "status": found[operation],
            "calls": pace.calls,
            "mean_ms": round(pace.mean_ms, 3),
            "error_percent": round(pace.error_percent, 2),
        }
        for operation, pace in sorted(paces.items())
    ]
    return Check(worst(found.values()), {"operations": shown})


def _judge_pace(pace: Pace) -> Status:
    if pace.calls < JUDGED_CALLS:
        return Status.HEALTHY
    if pace.error_percent > ERRORS_PERCENT:
        return Status.UNHEALTHY
    return Status.DEGRADED if pace.mean_ms > SLOW_MS else Status.HEALTHY


def judge_resources(used: Used) -> Check:
    """CPU and memory. There is no disk to fill: the sidecar writes none; those of the shards are the operator's."""
    found = (_share(used.cpu_percent, CPU_WARN_PERCENT), _share(used.memory_percent, MEMORY_WARN_PERCENT))
    return Check(
        worst(found), {"cpu_percent": _rounded(used.cpu_percent), "memory_percent": _rounded(used.memory_percent)}
    )


def _share(percent: float | None, warn_percent: float) -> Status:
    if percent is None or percent <= warn_percent:
        return Status.HEALTHY
    return Status.DEGRADED if percent < FULL_PERCENT else Status.UNHEALTHY


def _rounded(percent: float | None) -> float | None:
    return None if percent is None else round(percent, 1)


def judge_configuration(config: Config, faults: Mapping[str, str], refusal: str | None) -> Check:
    """A wrong file degrades, as an older one is in force; without access or a key to encrypt with: unhealthy."""
    keys = config.keyring
    lacks_key = config.policy.encryption and keys is None
    usual = Status.DEGRADED if faults else Status.HEALTHY
    details = {
        "generations": config.generations,
        "faults": [{"file": file, "reason": reason} for file, reason in sorted(faults.items())],
        "encryption": config.policy.encryption,
        "keys": 0 if keys is None else len(keys.keys),
        "refusal": refusal or "",
    }
    return Check(Status.UNHEALTHY if refusal is not None or lacks_key else usual, details)


def judge_cache(state: CacheState) -> Check:
    """A Redis that is not reached or not heard degrades, and so does a hit rate of a half or less."""
    is_lost = state.is_shared and not (state.is_reached and state.is_sound)
    is_poor = state.asked >= JUDGED_READS and state.hit_rate <= POOR_HIT_RATE
    details = {
        "configured": state.is_shared,
        "reached": state.is_shared and state.is_reached,
        "sound": state.is_sound,
        "reads": state.asked,
        "hit_rate": round(state.hit_rate, 3),
        "entries": state.entries,
        "size_bytes": state.size_bytes,
    }
    return Check(Status.DEGRADED if is_lost or is_poor else Status.HEALTHY, details)


def health_document(report: Report, now_s: float) -> dict[str, object]:
    """The answer at this moment to a question for health."""
    checks = {name: {"status": check.status, **check.details} for name, check in report.checks.items()}
    return {
        "status": report.status,
        "time": shown_time(report.at_s),
        "age_ms": round(1000 * max(now_s - report.at_s, 0.0)),
        "checks": checks,
    }


def shown_time(unix_s: float) -> str | None:
    """Unix time as answers have it."""
    return timestamp(datetime.fromtimestamp(unix_s, UTC))
