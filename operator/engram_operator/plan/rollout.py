"""Which member of a shard is restarted next, if any: replicas first, then a switchover, then the old primary. Pure.

    stuck and outdated --> restart it: it cannot get worse, and a change that was taken back heals at once
    one not healthy    --> stop: never roll into a failure, so a bad change costs one pod
    outdated replica   --> restart it, the highest ordinal first
    outdated primary   --> switch over to a healthy member that is up to date, which makes it a replica
    alone              --> restart it
    new settings       --> the same with Postgres alone; a setting that goes down begins with the primary, in place

One step at a time: what follows is planned from what is observed after it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from engram_contract.names import PRIMARY_ROLE
from engram_operator.manifests.patroni import REPLICA_ROLE
from engram_operator.plan.members import Leader, Member
from engram_operator.plan.steps import RestartPod, RestartPostgres, Step, Switchover, Wait

LOOK_S: Final = 2.0  # while something is under way that no event announces
PATIENCE_S: Final = 60.0  # a member that is not ready for longer is a fault; a usual start takes seconds
MAX_LAG_BYTES: Final = 16 << 20  # a candidate that is further behind would make the switchover long


@dataclass(frozen=True, slots=True)
class Crew:
    """A shard's members as they are, and as its StatefulSet would make them. `revision` is a new pod's."""

    scope: str
    members: tuple[Member, ...]
    leader: Leader
    revision: str
    now_s: float

    def is_outdated(self, member: Member) -> bool:
        """Whether the pod is of an older template."""
        return bool(self.revision) and member.revision != self.revision

    @property
    def primary(self) -> Member | None:
        """The member that leads, healthy or not."""
        return next((each for each in self.members if each.name == self.leader.name), None)

    @property
    def replicas(self) -> tuple[Member, ...]:
        """All others, the highest ordinal first."""
        others = (each for each in self.members if each.name != self.leader.name)
        return tuple(sorted(others, key=lambda each: -each.ordinal))


def plan_repair(crew: Crew) -> Iterator[Step]:
    """Members that can only be helped by a restart with the present template, one of them."""
    if not any(each.is_ending for each in crew.members):
        for member in sorted(crew.members, key=lambda each: -each.ordinal):
            if member.is_stuck and crew.is_outdated(member):
                yield RestartPod(member.name, member.uid, f"it is stuck ({member.trouble}) and of an older template")
                yield Wait("Restarting", f"{member.name} is restarted", LOOK_S)
                return


def plan_rollout(crew: Crew) -> Iterator[Step]:
    """The next restart, and what it waits for; nothing if every member is as it should be."""
    sick = tuple(each for each in crew.members if not each.is_healthy)
    if sick:
        yield wait_for(sick, crew.now_s)
        return
    if crew.leader.has_request:
        yield Wait("SwitchingOver", f"{crew.scope} switches over", LOOK_S)
        return
    outdated = [each for each in crew.members if crew.is_outdated(each)]
    if outdated:
        yield from _plan_pods(crew, outdated)
        return
    waiting = [each for each in crew.members if each.restart_for is not None]
    if waiting:
        yield from _plan_settings(crew, waiting)


def wait_for(sick: Sequence[Member], now_s: float) -> Wait:
    """What the members that are not healthy wait for; a fault if it takes too long or will not end by itself."""
    worst = max(sick, key=lambda each: (each.is_stuck, each.is_ending, -(each.unready_since_s or now_s)))
    if worst.is_stuck:
        return Wait("PodStuck", f"{worst.name}: {worst.trouble}", 10.0, is_fault=True)
    if worst.is_ending:
        return Wait("PodEnding", f"{worst.name} ends", LOOK_S)
    unready_s = now_s - (worst.unready_since_s or now_s)
    if unready_s < PATIENCE_S:
        return Wait("PodNotReady", f"{worst.name} is not ready yet", LOOK_S)
    state = f" (Patroni says {worst.state})" if worst.state else ""
    return Wait("PodNotReady", f"{worst.name} is not ready since a while{state}", 10.0, is_fault=True)


def candidate_of(crew: Crew, members: Sequence[Member]) -> Member | None:
    """The best of these members to lead: a synchronous standby before others, then the least lag; None if none may.

    In synchronous mode Patroni makes nobody else the primary.
    """
    ahead = crew.leader.position or 0
    able = [each for each in members if each.is_healthy and each.name != crew.leader.name]
    if crew.leader.sync:
        able = [each for each in able if each.name in crew.leader.sync]
    able = [each for each in able if each.position is not None and ahead - each.position <= MAX_LAG_BYTES]
    return max(able, key=lambda each: (each.position or 0, -each.ordinal), default=None)


def plan_switchover(crew: Crew, members: Sequence[Member], because: str) -> Iterator[Step]:
    """A switchover to the best of these members, or the wait for one."""
    candidate = candidate_of(crew, members)
    if candidate is None:
        yield Wait("NoCandidate", f"no member of {crew.scope} can take over yet ({because})", LOOK_S)
        return
    yield Switchover(crew.scope, crew.leader.name, candidate.name, because)
    yield Wait("SwitchingOver", f"{crew.scope} switches over to {candidate.name}", LOOK_S)


def _plan_pods(crew: Crew, outdated: Sequence[Member]) -> Iterator[Step]:
    replica = next((each for each in crew.replicas if each in outdated), None)
    if replica is None and len(crew.members) > 1:
        yield from plan_switchover(crew, crew.replicas, f"{crew.leader.name} has to restart for a newer template")
        return
    first = replica or outdated[0]
    yield RestartPod(first.name, first.uid, "the pod is of an older template")
    yield Wait("RollingUpdate", f"{first.name} is restarted with the new template", LOOK_S)


def _plan_settings(crew: Crew, waiting: Sequence[Member]) -> Iterator[Step]:
    primary = crew.primary
    if primary is not None and primary in waiting and any(each.goes_down for each in primary.restart_for or ()):
        yield from _restart_postgres(crew, primary)
        return
    replica = next((each for each in crew.replicas if each in waiting), None)
    if replica is None and len(crew.members) > 1:
        yield from plan_switchover(crew, crew.replicas, f"{crew.leader.name} has to restart for new settings")
        return
    yield from _restart_postgres(crew, replica or waiting[0])


def _restart_postgres(crew: Crew, member: Member) -> Iterator[Step]:
    names = ", ".join(each.name for each in member.restart_for or ()) or "new settings"
    role = PRIMARY_ROLE if member.name == crew.leader.name else REPLICA_ROLE  # Patroni takes no other word here
    yield RestartPostgres(member.name, member.ip, role, names)
    yield Wait("RollingUpdate", f"Postgres in {member.name} restarts for {names}", LOOK_S)
