"""The members of a shard as its pods, its StatefulSet and Patroni's ConfigMaps tell of them. Pure.

Patroni (4.1, its Kubernetes DCS) keeps the leader in the annotations of `<scope>-leader` and what each member says of
itself in the annotation `status` of its pod. What cannot be read is None or empty, never a guess.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from engram_contract.names import ROLE_LABEL
from engram_operator.manifests.names import TLS_VOLUME
from engram_operator.plan.steps import Manifest

# What a container waits for that no time will bring.
STUCK: Final = frozenset(
    {
        "CrashLoopBackOff",
        "CreateContainerConfigError",
        "CreateContainerError",
        "ErrImageNeverPull",
        "ErrImagePull",
        "ImageInspectError",
        "ImagePullBackOff",
        "InvalidImageName",
        "RunContainerError",
    }
)
PRIMARY_FIRST: Final = frozenset(
    {
        "max_connections",
        "max_locks_per_transaction",
        "max_prepared_transactions",
        "max_wal_senders",
        "max_worker_processes",
    }
)
SYNC_ROLE: Final = "sync_standby"  # Patroni's word; it writes it beside the member, not in it


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting that Postgres takes over only when it starts."""

    name: str
    old: str
    new: str

    @property
    def goes_down(self) -> bool:
        """Whether a standby must keep the old value until the primary has the new one (Postgres manual, 26.4.3)."""
        if self.name not in PRIMARY_FIRST or not (self.old.isdigit() and self.new.isdigit()):
            return False
        return int(self.new) < int(self.old)


@dataclass(frozen=True, slots=True)
class Member:
    """One pod of a shard. Patroni says role and state; `unready_since_s` is Unix seconds, None while ready."""

    name: str
    uid: str
    ordinal: int
    ip: str
    revision: str
    is_ready: bool
    is_ending: bool
    unready_since_s: float | None
    trouble: str  # why its containers do not start; empty if they do
    role: str = ""
    state: str = ""
    timeline: int | None = None
    position: int | None = None  # in the log, bytes
    restart_for: tuple[Setting, ...] | None = None  # what a restart of Postgres would change; None if nothing
    version: str = ""
    has_tls: bool = False  # whether it was made with certificates; the spec may say otherwise by now

    @property
    def is_healthy(self) -> bool:
        """Whether it serves and will go on."""
        return self.is_ready and not self.is_ending

    @property
    def is_stuck(self) -> bool:
        """Whether only somebody's change can make it start."""
        return bool(self.trouble)


@dataclass(frozen=True, slots=True)
class Leader:
    """What Patroni's ConfigMaps say of a shard: who leads, where the log was, whether a switchover is asked for."""

    name: str = ""
    position: int | None = None
    sync: tuple[str, ...] = ()
    has_request: bool = False
    is_initialized: bool = False


def read_member(pod: Manifest) -> Member:
    """The member of a pod."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    said = _json_of((metadata.get("annotations") or {}).get("status"))
    ready = condition_of(status, "Ready")
    is_ready = ready.get("status") == "True"
    labels = metadata.get("labels") or {}
    return Member(
        name=metadata["name"],
        uid=metadata["uid"],
        ordinal=ordinal_of(metadata["name"]),
        ip=str(status.get("podIP") or ""),
        revision=str(labels.get("controller-revision-hash") or ""),
        is_ready=is_ready,
        is_ending="deletionTimestamp" in metadata,
        unready_since_s=None
        if is_ready
        else seconds_of(ready.get("lastTransitionTime") or metadata["creationTimestamp"]),
        trouble=trouble_of(status),
        role=str(said.get("role") or labels.get(ROLE_LABEL) or ""),
        state=str(said.get("state") or ""),
        timeline=_whole(said.get("timeline")),
        position=_whole(said.get("xlog_location")),
        restart_for=_settings(said) if said.get("pending_restart") is True else None,
        version=str(said.get("server_version") or ""),
        has_tls=any(each["name"] == TLS_VOLUME for each in (pod.get("spec") or {}).get("volumes") or ()),
    )


def read_leader(config_maps: Mapping[str, Manifest], scope: str) -> Leader:
    """What the four ConfigMaps of the scope say, those that are there."""

    def noted(what: str) -> Mapping[str, str]:
        found = config_maps.get(f"{scope}-{what}") or {}
        return (found.get("metadata") or {}).get("annotations") or {}

    sync = str(noted("sync").get("sync_standby") or "")
    failover = noted("failover")
    return Leader(
        name=str(noted("leader").get("leader") or ""),
        position=_whole(noted("leader").get("optime")),
        sync=tuple(name for name in sync.split(",") if name),
        has_request=bool(failover.get("leader") or failover.get("member")),
        is_initialized=bool(noted("config").get("initialize")),
    )


def primary_of(members: Iterable[Member], leader: Leader) -> Member | None:
    """The member that leads and serves, or None. A frozen Patroni leaves its label, so that alone proves nothing."""
    return next((each for each in members if each.name == leader.name and each.is_healthy), None)


def lag_bytes(member: Member, primary: Member | None, leader: Leader) -> int | None:
    """How far a member is behind what the primary last told; None if unknown."""
    if primary is not None and member.name == primary.name:
        return 0
    ahead = max(
        (each for each in (leader.position, primary.position if primary else None) if each is not None), default=None
    )
    return None if ahead is None or member.position is None else max(0, ahead - member.position)


def ordinal_of(pod_name: str) -> int:
    """The number at the end of the name of a StatefulSet's pod."""
    return int(pod_name.rpartition("-")[2])


def seconds_of(moment: str) -> float:
    """Unix seconds of a time as Kubernetes writes it."""
    return datetime.fromisoformat(moment).timestamp()


def condition_of(status: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """The condition of this type, empty if there is none."""
    return next((each for each in status.get("conditions") or () if each["type"] == kind), {})


def trouble_of(status: Mapping[str, Any]) -> str:
    """Why a pod of this status does not start, empty if nothing but time is needed."""
    scheduled = condition_of(status, "PodScheduled")
    if scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable":
        return f"Unschedulable: {scheduled.get('message', '')}"
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in STUCK:
            ended = (container.get("lastState") or {}).get("terminated") or {}
            code = f", last exit code {ended['exitCode']}" if "exitCode" in ended else ""
            return f"{waiting['reason']}: {waiting.get('message') or container['name']}{code}"
    return ""


def _settings(said: Mapping[str, Any]) -> tuple[Setting, ...]:
    reasons = said.get("pending_restart_reason")
    pairs = reasons.items() if isinstance(reasons, Mapping) else ()
    return tuple(Setting(name, str(each.get("old_value")), str(each.get("new_value"))) for name, each in sorted(pairs))


def _json_of(text: object) -> Mapping[str, Any]:
    try:
        found = json.loads(text) if isinstance(text, str) else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _whole(value: object) -> int | None:
    try:
        return int(value) if isinstance(value, int | str) and not isinstance(value, bool) else None
    except ValueError:
        return None
