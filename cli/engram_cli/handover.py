"""A switchover of one shard: whether it may be asked for, and what became of it. Pure.

    asked --Patroni takes it, the old primary stops--> between --the candidate leads--> leading --labelled--> done
      +--request gone, the old primary leads--> refused           +--another member leads--> another

Decided from the live pods and Patroni's ConfigMaps, never from the status: so it works while the operator is down.
Source: Patroni 4.1, `Ha.process_manual_failover_from_leader`, `Ha.is_failover_possible`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from typing import Any

from engram_cli.clusterview import OPERATOR_PATIENCE_S, ClusterView, age, seconds_of
from engram_cli.errors import Failure, Misuse
from engram_contract.names import PRIMARY_ROLE, ROLE_LABEL
from engram_operator.manifests.names import ClusterNames
from engram_operator.plan.members import Leader, Member, lag_bytes, read_leader, read_member
from engram_operator.plan.rollout import MAX_LAG_BYTES, Crew, candidate_of

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class LiveShard:
    """A shard as it is at this moment. `labelled` are the pods to which the Service of the primary leads."""

    scope: str
    members: tuple[Member, ...]
    leader: Leader
    labelled: frozenset[str]
    is_synchronous: bool

    @property
    def primary(self) -> Member | None:
        """The member that leads, healthy or not; None if there is none."""
        return next((each for each in self.members if each.name == self.leader.name), None)

    def lag_bytes(self, member: Member) -> int | None:
        """How far a member is behind the primary; None if unknown."""
        return lag_bytes(member, self.primary, self.leader)


@dataclass(frozen=True, slots=True)
class Handover:
    """A switchover that may be asked for."""

    namespace: str
    cluster: str
    shard: str
    scope: str
    primary: str
    candidate: str
    lag_bytes: int
    is_synchronous: bool


class Stage(Enum):
    """How far a switchover is; the value is what is said of it."""

    ASKED = "Patroni is asked"
    BETWEEN = "the old primary stops"
    LEADING = "the candidate leads and becomes the primary"
    DONE = "the Service of the primary leads to it"
    REFUSED = "Patroni refused"
    ANOTHER = "another member leads"


STEPS = (Stage.ASKED, Stage.BETWEEN, Stage.LEADING, Stage.DONE)
ENDS = frozenset({Stage.DONE, Stage.REFUSED, Stage.ANOTHER})


def read_shard(items: Sequence[Json], scope: str) -> LiveShard:
    """A shard from the pods and the ConfigMaps that bear the label of its scope."""
    pods = [each for each in items if each["kind"] == "Pod"]
    maps = {each["metadata"]["name"]: dict(each) for each in items if each["kind"] == "ConfigMap"}
    leader = read_leader(maps, scope)
    return LiveShard(
        scope=scope,
        members=tuple(read_member(dict(each)) for each in pods),
        leader=leader,
        labelled=frozenset(
            e["metadata"]["name"] for e in pods if e["metadata"]["labels"].get(ROLE_LABEL) == PRIMARY_ROLE
        ),
        is_synchronous=bool(leader.sync) or _asks_for_sync(maps.get(f"{scope}-config")),
    )


def lead_notices(view: ClusterView, config_maps: Sequence[Json], now_s: float) -> Iterator[str]:
    """Where the status is behind what Patroni says of its leaders, and too long for an operator at work."""
    maps = {each["metadata"]["name"]: dict(each) for each in config_maps}
    for shard in view.shards:
        scope = ClusterNames(view.name, view.namespace).shard(shard.id).scope
        leads = read_leader(maps, scope).name
        since_s = seconds_of(_annotations(maps.get(f"{scope}-leader")).get("acquireTime"))
        if not leads or not shard.primary or leads == shard.primary or since_s is None:
            continue
        if now_s - since_s >= OPERATOR_PATIENCE_S:
            what = f"{leads} leads {shard.id} for {age(now_s - since_s)}, and the status still names {shard.primary}"
            yield f"{what}: the operator does not seem to be at work"


def choose_shard(view: ClusterView, shard_id: str) -> str:
    """What Patroni calls this shard; raises Misuse if the cluster has no such shard, or none that is ours to switch."""
    if view.is_external:
        raise Misuse(f"{view.name} is of provider External: whoever runs its databases switches them over")
    known = [each.id for each in view.shards]
    if known and shard_id not in known:
        raise Misuse(f"{view.name} has no shard {shard_id}{_near(shard_id, known)}; it has {', '.join(known)}")
    return ClusterNames(view.name, view.namespace).shard(shard_id).scope


def plan_handover(view: ClusterView, shard_id: str, live: LiveShard, to: str | None) -> Handover:
    """The switchover to `to`, or to the best candidate. Raises Misuse or Failure with what stands in its way."""
    primary = _present_primary(live, shard_id)
    candidate = _named(live, shard_id, to) if to is not None else _best(live, shard_id)
    return Handover(
        namespace=view.namespace,
        cluster=view.name,
        shard=shard_id,
        scope=live.scope,
        primary=primary,
        candidate=candidate.name,
        lag_bytes=live.lag_bytes(candidate) or 0,
        is_synchronous=live.is_synchronous,
    )


def judge(handover: Handover, live: LiveShard) -> Stage:
    """How far the switchover is, by what is seen after it was asked for."""
    leads = live.leader.name
    if leads == handover.candidate:
        return Stage.DONE if handover.candidate in live.labelled else Stage.LEADING
    if leads == handover.primary:
        return Stage.ASKED if live.leader.has_request else Stage.REFUSED
    return Stage.ANOTHER if leads else Stage.BETWEEN


def fate(handover: Handover, stage: Stage, live: LiveShard, timeout_s: float) -> Failure:
    """Why a switchover that did not get done is no success."""
    logs = f"kubectl logs -n {handover.namespace} {handover.primary} says why"
    if stage is Stage.REFUSED:
        return Failure(f"Patroni refused: {handover.primary} still leads {handover.shard}; {logs}")
    if stage is Stage.ANOTHER:
        return Failure(f"{live.leader.name} leads {handover.shard} now, not {handover.candidate}; {logs}")
    leads = f"{live.leader.name} leads" if live.leader.name else "nobody leads"
    rest = "; the request still stands, Patroni may yet carry it out" if live.leader.has_request else ""
    return Failure(f"not done within {timeout_s:.0f} s: {leads} {handover.shard}{rest}; {logs}")


def _present_primary(live: LiveShard, shard_id: str) -> str:
    if not live.members:
        raise Failure(f"{shard_id} has no pods at present")
    if live.leader.has_request:
        raise Failure(f"a switchover of {shard_id} is asked for already: wait until Patroni is done with it")
    if live.primary is None:
        raise Failure(f"{shard_id} has no primary at present: Patroni elects one by itself as soon as it can")
    if len(live.members) == 1:
        raise Failure(f"{shard_id} has no replica: nobody could take over from {live.primary.name}")
    return live.primary.name


def _named(live: LiveShard, shard_id: str, to: str) -> Member:
    """The member `to`, if it may lead."""
    names = [each.name for each in live.members]
    member = next((each for each in live.members if each.name == to), None)
    if member is None:
        raise Misuse(f"{shard_id} has no member {to}{_near(to, names)}; it has {', '.join(names)}")
    if to == live.leader.name:
        raise Misuse(f"{to} is the primary of {shard_id} already")
    hindrance = _hindrance(live, member)
    if hindrance:
        raise Failure(f"{to} cannot take over: {hindrance}")
    return member


def _best(live: LiveShard, shard_id: str) -> Member:
    """The member that the operator would choose."""
    able = [each for each in live.members if not _hindrance(live, each)]
    best = candidate_of(Crew(live.scope, live.members, live.leader, "", 0.0), able)
    if best is None:
        others = (each for each in live.members if each.name != live.leader.name)
        why = "; ".join(f"{each.name} {_hindrance(live, each) or 'is not known to follow'}" for each in others)
        raise Failure(f"no member of {shard_id} can take over at present: {why}")
    return best


def _hindrance(live: LiveShard, member: Member) -> str:
    """Why a replica may not lead; empty if it may."""
    if member.is_ending:
        return "its pod is about to end"
    if not member.is_ready:
        return f"it is not ready{f' ({member.trouble})' if member.trouble else ''}"
    if live.is_synchronous and member.name not in live.leader.sync:
        those = ", ".join(live.leader.sync) or "none at present"
        return f"it is not a synchronous standby ({those}), and Patroni takes no other"
    lag = live.lag_bytes(member)
    if lag is None:
        return "nobody knows how far it is behind"
    if lag > MAX_LAG_BYTES:
        return f"it is {lag >> 20} MiB behind, {MAX_LAG_BYTES >> 20} MiB at most"
    return ""


def _near(asked: str, known: Sequence[str]) -> str:
    near = get_close_matches(asked, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _asks_for_sync(config: Json | None) -> bool:
    try:
        found = json.loads(_annotations(config).get("config") or "{}")
    except ValueError:
        return False
    return isinstance(found, dict) and bool(found.get("synchronous_mode"))


def _annotations(config_map: Json | None) -> Mapping[str, str]:
    found: Mapping[str, str] = ((config_map or {}).get("metadata") or {}).get("annotations") or {}
    return found
