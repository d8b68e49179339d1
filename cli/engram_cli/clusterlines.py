"""What is shown of a MemoryCluster, as lines with a sign each: a tree for one, rows for many. Pure; knows no terminal.

A sign says with a character what its colour says too, so that nothing is lost without colours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from engram_cli.clusterview import ClusterView, ConditionView, MemberView, ShardView, age

MIB: Final = 1 << 20
GIB: Final = 1 << 30
PLAN_LINES: Final = 10  # of the plan in a tree; `plan` shows all
CELL_CHARS: Final = 60  # of a message in a table; the tree and the JSON tell it whole
# A condition that is as it should be needs no line, but for Ready.
GOOD: Final = {"Ready": "True", "ShardsReady": "True", "BackupHealthy": "True"}
ALARMING: Final = frozenset({"Ready", "Degraded", "ShardsReady"})
PHASES_AT_WORK: Final = frozenset({"Creating", "Updating"})


class Sign(Enum):
    """What a line means for its reader."""

    GOOD = "good"
    BAD = "bad"
    WARN = "warn"
    BUSY = "busy"
    UNKNOWN = "unknown"
    NONE = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a tree and what hangs from it. `head` is what the eye looks for, `rest` what is said of it."""

    sign: Sign
    head: str
    rest: str = ""
    below: tuple["Line", ...] = ()


def cluster_line(view: ClusterView, said: Sequence[str], now_s: float) -> Line:
    """The whole tree of one cluster."""
    of_generation = f"generation {view.generation} {'observed' if view.is_current else 'not observed yet'}"
    tenants = f"{view.tenants} tenant" + "s" * (view.tenants != 1)
    shards = f"{view.ready_shards} shards ready" if view.ready_shards else ""
    rest = _joined(_phase(view), shards, tenants if view.shards else "", of_generation)
    sign = Sign.WARN if said and view.is_ready else cluster_sign(view)
    return Line(sign, f"{view.namespace}/{view.name}", rest, tuple(_below(view, said, now_s)))


def cluster_sign(view: ClusterView) -> Sign:
    """What the cluster's own line means."""
    ready = view.condition("Ready")
    if view.is_ready:
        return Sign.GOOD
    if ready is None:
        return Sign.UNKNOWN
    degraded = view.condition("Degraded")
    if ready.status == "False" and (degraded is None or degraded.status == "True"):
        return Sign.BAD
    return Sign.BUSY if view.phase in PHASES_AT_WORK else Sign.WARN


def list_row(view: ClusterView, said: Sequence[str]) -> tuple[str, ...]:
    """A cluster in one row: name, phase, shards that are ready, generation, and what it waits for."""
    ready = view.condition("Ready")
    of_generation = f"{view.generation}" if view.is_current else f"{view.generation} not observed yet"
    waits = "; ".join(said) or ("" if view.is_ready or ready is None else _brief(ready.message))
    return (view.name, _phase(view), view.ready_shards or "-", of_generation, waits)


def shard_row(shard: ShardView) -> tuple[str, ...]:
    """A shard: id, state, primary, slots, schema, Postgres, size, message."""
    slots = "-" if shard.slots is None else str(shard.slots)
    figures = (shard.schema_version or "-", shard.postgres_version or "-", size(shard.size_bytes) or "-")
    return (shard.id, shard.state or "-", shard.primary or "-", slots, *figures, _brief(shard.message))


def member_row(shard: ShardView, member: MemberView) -> tuple[str, ...]:
    """A member: shard, name, role, ready, timeline, lag, message."""
    timeline = "-" if member.timeline is None else str(member.timeline)
    ready = "yes" if member.is_ready else "no"
    return (shard.id, member.name, member.role or "-", ready, timeline, _lag(member) or "-", _brief(member.message))


def shard_sign(shard: ShardView) -> Sign:
    """What the shard's own line means."""
    if shard.ready == "True":
        return Sign.WARN if any(not each.is_ready for each in shard.members) else Sign.GOOD
    return Sign.BAD if shard.ready == "False" else Sign.UNKNOWN


def member_sign(member: MemberView) -> Sign:
    """What the member's own line means."""
    return Sign.GOOD if member.is_ready else Sign.BAD


def size(size_bytes: int | None) -> str:
    """An amount of bytes for people; empty if unknown."""
    if size_bytes is None:
        return ""
    if size_bytes >= GIB:
        return f"{size_bytes / GIB:.1f} GiB"
    return f"{size_bytes // MIB} MiB"


def _below(view: ClusterView, said: Sequence[str], now_s: float) -> Iterator[Line]:
    yield from (Line(Sign.WARN, "note", each) for each in said)
    if view.is_ending:
        yield Line(Sign.WARN, "deleted", "the cluster goes as soon as its finalizers allow")
    yield from _conditions(view, now_s)
    if view.update:
        yield Line(Sign.WARN, "update held back", view.update)
    if view.plan is not None:
        yield _plan(view, view.plan)
    told = [each.message for each in view.conditions if not _goes_without_saying(each)]
    yield from (_shard(each, told) for each in view.shards)
    if view.orphans:
        orphans = tuple(Line(Sign.WARN, each.name, f"{each.reason}: {each.message}") for each in view.orphans)
        yield Line(Sign.WARN, "orphans", "no longer asked for, and cannot go", orphans)


def _conditions(view: ClusterView, now_s: float) -> Iterator[Line]:
    """The conditions that matter, those that say the same in one line."""
    told: dict[tuple[str, str], list[ConditionView]] = {}
    for each in view.conditions:
        if not _goes_without_saying(each):
            told.setdefault((each.reason, each.message), []).append(each)
    for (reason, message), alike in told.items():
        names = ", ".join(_named(each) for each in alike)
        since_s = next((each.since_s for each in alike if each.since_s is not None), None)
        since = "" if since_s is None else f", for {age(now_s - since_s)}"
        old = f", of generation {alike[0].generation}" if alike[0].generation < view.generation else ""
        sign = min((_condition_sign(each, view) for each in alike), key=_urgency)
        yield Line(sign, names, f"{message} ({reason}{since}{old})")


def _goes_without_saying(condition: ConditionView) -> bool:
    return condition.type != "Ready" and condition.status == GOOD.get(condition.type, "False")


def _named(condition: ConditionView) -> str:
    if condition.status == "Unknown":
        return f"{condition.type} unknown"
    return condition.type if condition.status == "True" else f"not {condition.type}"


def _condition_sign(condition: ConditionView, view: ClusterView) -> Sign:
    if condition.status == "Unknown" or condition.generation < view.generation:
        return Sign.UNKNOWN
    if condition.status == GOOD.get(condition.type, "False"):
        return Sign.GOOD
    if condition.type in ALARMING:  # while it is made, or held, that is not alarming
        return Sign.BAD if condition.type == "Degraded" else cluster_sign(view)
    return Sign.BUSY if condition.type in {"Progressing", "ReshardingActive"} else Sign.WARN


def _urgency(sign: Sign) -> int:
    return (Sign.BAD, Sign.WARN, Sign.UNKNOWN, Sign.BUSY, Sign.GOOD, Sign.NONE).index(sign)


def _plan(view: ClusterView, plan: Sequence[str]) -> Line:
    why = "paused" if view.is_paused else "planOnly" if view.is_plan_only else "as it was held until now"
    if not plan:
        return Line(Sign.NONE, "plan", f"nothing is left to do ({why})")
    steps = [Line(Sign.NONE, f"{number}.", step) for number, step in enumerate(plan[:PLAN_LINES], 1)]
    if len(plan) > PLAN_LINES:
        steps.append(Line(Sign.NONE, "...", f"{len(plan) - PLAN_LINES} more: kubectl engram plan {view.name}"))
    count = f"{len(plan)} step" + "s" * (len(plan) != 1)
    return Line(Sign.WARN, "plan", f"{count}, not carried out ({why})", tuple(steps))


def _shard(shard: ShardView, told: Sequence[str]) -> Line:
    """A shard with its members. What was told above, or of a member before, is not told at length again."""
    rest = _joined(
        shard.state,
        f"primary {shard.primary}" if shard.primary else "no primary" if shard.members else "",
        "" if shard.slots is None else f"{shard.slots} slots",
        f"schema {shard.schema_version}" if shard.schema_version else "",
        f"Postgres {shard.postgres_version}" if shard.postgres_version else "",
        size(shard.size_bytes),
    )
    heard, below = [*told], []
    if shard.message and not _is_heard(shard.message, heard):
        below.append(Line(Sign.BUSY if shard.ready == "True" else Sign.WARN, "waits", shard.message))
        heard.append(shard.message)
    for each in shard.members:
        is_heard = _is_heard(each.message, heard)
        below.append(_member(each, each.message.partition(": ")[0] if is_heard else each.message))
        heard.append(each.message)
    return Line(shard_sign(shard), shard.id, rest, tuple(below))


def _is_heard(message: str, heard: Sequence[str]) -> bool:
    return any(message in each for each in heard)


def _member(member: MemberView, message: str) -> Line:
    timeline = "" if member.timeline is None else f"timeline {member.timeline}"
    lag = _lag(member)
    rest = _joined(
        member.role or "no role yet", "ready" if member.is_ready else "not ready", timeline, f"lag {lag}" if lag else ""
    )
    return Line(member_sign(member), member.name, f"{rest}: {message}" if message else rest)


def _lag(member: MemberView) -> str:
    """How far behind, for people; empty for a primary. The status tells whole mebibytes, so 0 is less than one."""
    if member.role in {"", "primary"}:
        return ""
    if member.lag_bytes is None:
        return "unknown"
    return "under 1 MiB" if member.lag_bytes < MIB else size(member.lag_bytes)


def _brief(message: str) -> str:
    return message if len(message) <= CELL_CHARS else f"{message[: CELL_CHARS - 4].rstrip()} ..."


def _phase(view: ClusterView) -> str:
    return view.phase or "no status yet"


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
