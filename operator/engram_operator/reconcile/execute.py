"""The steps of a plan, done: each track in its order until its first Wait, each write within the term.

Promises
1. Before every write the term is asked, and what is left of it is the write's deadline.
2. An object that is to be made is looked for first: one of the same name that is not ours is never touched.
3. What one step may not do ends its own track and is told; what concerns all (no API server, a lost term) ends all.

Must never: decide. What is done, and in which order, stands in the plan.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

from engram_contract.names import CLUSTER_KIND, CLUSTER_LABEL
from engram_operator.clients.kube import NAMESPACES, OWNED, Kube, Manifest
from engram_operator.clients.patroni import reload_files, restart_postgres
from engram_operator.errors import (
    ApiConflict,
    ApiError,
    ApiRefused,
    ApiUnavailable,
    LostLease,
    NameTaken,
    OperatorError,
)
from engram_operator.leadership import Term
from engram_operator.manifests.dcs import build_switchover
from engram_operator.manifests.names import ClusterNames
from engram_operator.plan.cluster import Track
from engram_operator.plan.report import Round
from engram_operator.plan.steps import (
    Apply,
    MakeCredentials,
    Note,
    PrepareShard,
    ReloadFiles,
    Remove,
    RestartPod,
    RestartPostgres,
    RetireRoles,
    RotateCredentials,
    Step,
    Switchover,
    TurnCertificates,
    TurnRoles,
    Wait,
)
from engram_operator.reconcile.writing import delete, left_s, remove

FIELD_MANAGER: Final = "engram-operator"
# One for each writer: two applies of one object under one name would delete each other's fields.
MANAGERS: Final = {"Namespace": f"{FIELD_MANAGER}-protection", "PersistentVolumeClaim": f"{FIELD_MANAGER}-volumes"}
SWITCHOVER_MANAGER: Final = f"{FIELD_MANAGER}-switchover"
CLUSTER_TRACK: Final = "cluster"
RETRY_S: Final = 5.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Hands:
    """What acting takes beyond the API server: steps on Secrets and in databases, by those who know how."""

    kube: Kube
    term: Term
    namespace: str
    cluster: str
    restapi: Callable[[], tuple[str, str]]  # user and password of Patroni's REST API
    make_credentials: Callable[[], Awaitable[None]]
    turn_certificates: Callable[[str], Awaitable[None]]
    prepare_shard: Callable[[str], Awaitable[None]]
    turn_roles: Callable[[str], Awaitable[None]]
    retire_roles: Callable[[str, tuple[str, ...]], Awaitable[None]]
    rotate_credentials: Callable[[str], Awaitable[None]]


async def execute(hands: Hands, tracks: Iterable[Track]) -> Round:
    """What was done, and where each track ended. Raises ApiUnavailable, LostLease."""
    ended = Round()
    for track in tracks:
        for step in track.steps:
            if isinstance(step, Note):
                ended = replace(ended, notes=(*ended.notes, (track.name, step)))
                continue
            if isinstance(step, Wait):
                ended = replace(ended, waits=(*ended.waits, (track.name, step)))
                break
            try:
                await _act(hands, step)
            except (ApiUnavailable, LostLease):
                raise
            except OperatorError as error:
                ended = replace(ended, waits=(*ended.waits, (track.name, _wait_of(step, error))))
                if track.name == CLUSTER_TRACK:
                    return ended
                break
            ended = replace(ended, done=(*ended.done, step))
            if isinstance(step, MakeCredentials | TurnCertificates | RotateCredentials):
                return ended  # everything after it was planned without what it made
    return ended


def preview(tracks: Iterable[Track]) -> Round:
    """How the plan would begin, with nothing done. What comes after a step that is not taken is not waited for."""
    waits: list[tuple[str, Wait]] = []
    notes: list[tuple[str, Note]] = []
    for track in tracks:
        for step in track.steps:
            if isinstance(step, Wait):
                waits.append((track.name, step))
            elif isinstance(step, Note):
                notes.append((track.name, step))
            else:
                break
    return Round(waits=tuple(waits), notes=tuple(notes), is_complete=False)


async def _act(hands: Hands, step: Step) -> None:
    match step:
        case Apply(manifest):
            await _apply(hands, manifest)
        case Remove(manifest):
            await remove(hands.kube, hands.term, manifest, MANAGERS["Namespace"])
        case RestartPod(name, uid):
            pod = {"namespace": hands.namespace, "name": name, "uid": uid}
            await delete(hands.kube, hands.term, "Pod", pod)
        case Switchover():
            manifest = build_switchover(hands.namespace, hands.cluster, step.scope, step.primary, step.candidate)
            await hands.kube.apply(OWNED["ConfigMap"], manifest, SWITCHOVER_MANAGER, timeout_s=left_s(hands.term))
        case MakeCredentials():
            await _refuse_strangers(hands, "Secret", ClusterNames(hands.cluster, hands.namespace).credentials)
            await hands.make_credentials()
        case TurnCertificates(name):
            await _refuse_strangers(hands, "Secret", ClusterNames(hands.cluster, hands.namespace).ca)
            await hands.turn_certificates(name)
        case RotateCredentials(request):
            await hands.rotate_credentials(request)
        case _:
            left_s(hands.term)
            await _act_inside(hands, step)


async def _act_inside(hands: Hands, step: Step) -> None:
    """What goes to Postgres and Patroni themselves."""
    match step:
        case PrepareShard(shard):
            await hands.prepare_shard(shard)
        case TurnRoles(shard):
            await hands.turn_roles(shard)
        case RetireRoles(shard, names):
            await hands.retire_roles(shard, names)
        case ReloadFiles(_, ips):
            for ip in ips:
                await reload_files(ip, *hands.restapi())
        case RestartPostgres():
            await restart_postgres(step.ip, *hands.restapi(), role=step.role)
        case _:
            raise AssertionError(f"nobody does {type(step).__name__} here")


async def _apply(hands: Hands, manifest: Manifest) -> None:
    kind, metadata = manifest["kind"], manifest["metadata"]
    resource = NAMESPACES if kind == "Namespace" else OWNED[kind]
    if kind not in MANAGERS:
        await _refuse_strangers(hands, kind, metadata["name"])
    manager = MANAGERS.get(kind, FIELD_MANAGER)
    answer = await hands.kube.apply(resource, manifest, manager, timeout_s=left_s(hands.term))
    log.debug("applied", extra={"object_kind": kind, "object_name": metadata["name"], "uid": answer["metadata"]["uid"]})


async def _refuse_strangers(hands: Hands, kind: str, name: str) -> None:
    """Raises NameTaken if there is an object of this name that does not bear the cluster's label."""
    live = await hands.kube.find(OWNED[kind], hands.namespace, name)
    if live is not None and not _belongs(live, hands.cluster):
        raise NameTaken(f"{kind} {name} is there and does not belong to {hands.cluster}: delete or rename it")


def _belongs(live: Manifest, cluster: str) -> bool:
    """Whether it bears the cluster's label; or its owner does say so, where somebody took the label away."""
    metadata = live["metadata"]
    owners = [(each["kind"], each["name"]) for each in metadata.get("ownerReferences") or ()]
    return (metadata.get("labels") or {}).get(CLUSTER_LABEL) == cluster or (CLUSTER_KIND, cluster) in owners


def _wait_of(step: Step, error: OperatorError) -> Wait:
    """The failure of one step as what its track waits for."""
    if isinstance(error, ApiConflict):
        return Wait("Conflict", f"{step}: {error}", 1.0)
    if isinstance(error, ApiRefused | ApiError):
        return Wait("ApiRefused", f"{step}: {error}", RETRY_S * 2, is_fault=True)
    return Wait(type(error).__name__, f"{step}: {error}", RETRY_S, is_fault=True)
