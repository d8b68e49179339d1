"""The steps that bring one Managed shard to what is asked: objects, volumes, members, restarts, databases. Pure.

    objects and volumes --> size --> members that are stuck --> a primary --> its databases --> restarts

Volumes come before anything that waits for a pod: a full disk must not stand in the way of its own remedy. Databases
come before restarts, because a shard with one sick replica serves and has to be usable.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from engram_contract.quantities import bytes_of
from engram_contract.spec import ClusterSpec
from engram_operator.manifests.dcs import build_dcs_owners
from engram_operator.manifests.patroni import settings_of
from engram_operator.manifests.storage import build_claim
from engram_operator.plan.drift import first_difference, plan_apply
from engram_operator.plan.members import ordinal_of, primary_of
from engram_operator.plan.observed import Database, Loaded, Observed, Silence
from engram_operator.plan.roles import KUBELET_S, plan_roles
from engram_operator.plan.rollout import LOOK_S, PATIENCE_S, Crew, plan_repair, plan_rollout, wait_for
from engram_operator.plan.sizing import plan_members
from engram_operator.plan.steps import Apply, Manifest, Note, PrepareShard, ReloadFiles, Remove, Step, Wait

RETELL_S: Final = 10.0  # Patroni reads a change within two
STRANGER_S: Final = 10.0  # between looks at a server or a Secret that is not ours, of which no event tells


@dataclass(frozen=True, slots=True)
class Wanted:
    """A shard as its builders made it, and its StatefulSet as it may be now; `held` is what it may not be yet."""

    id: str
    scope: str
    objects: tuple[Manifest, ...]
    statefulset: Manifest
    held: str

    @property
    def parts(self) -> tuple[Manifest, ...]:
        """All of its objects."""
        return (*self.objects, self.statefulset)


def plan_shard(spec: ClusterSpec, wanted: Wanted, seen: Observed, *, is_file_new: bool) -> Iterator[Step]:
    """What to do about one shard now. `is_file_new`: Patroni's Secret names the roles of the present credentials."""
    lost = tuple(_plan_beginning(spec, wanted, seen))
    if lost:
        yield from lost
        return
    yield from plan_objects(wanted.objects, seen)
    yield from plan_objects(build_dcs_owners(wanted.scope, wanted.statefulset, seen.objects), seen)
    yield from _plan_claims(spec, wanted.id, seen)
    live = seen.live("StatefulSet", wanted.scope)
    crew = crew_of(wanted, seen, live)
    desired = wanted.statefulset
    before: tuple[Step, ...] = ()
    if live is not None:
        size, before = plan_members(crew, desired["spec"]["replicas"], live["spec"]["replicas"])
        desired = desired | {"spec": desired["spec"] | {"replicas": size}}
    step = plan_apply(desired, live)
    if step is not None:
        yield step
        yield Wait("StatefulSetChanged", f"{wanted.scope} is to follow its StatefulSet", LOOK_S)
        return
    yield from _plan_members(spec, wanted, seen, crew, before, is_file_new=is_file_new)


def _plan_members(
    spec: ClusterSpec, wanted: Wanted, seen: Observed, crew: Crew, before: tuple[Step, ...], *, is_file_new: bool
) -> Iterator[Step]:
    live = seen.live("StatefulSet", wanted.scope) or {}
    if (live.get("status") or {}).get("observedGeneration") != live["metadata"].get("generation"):
        yield Wait("StatefulSetChanged", f"{wanted.scope} is to follow its StatefulSet", LOOK_S)
        return
    repair = tuple(plan_repair(crew))
    if repair:
        yield from repair
        return
    primary = primary_of(crew.members, crew.leader)
    if primary is None:
        yield wait_for_primary(crew, is_late=seen.down_for_s() > PATIENCE_S)
        return
    told = seen.databases.get(wanted.id, Silence("it has not been asked yet"))
    yield from plan_databases(wanted.id, told, seen, needs_pooler=spec.pooler.enabled)
    if isinstance(told, Silence) or not told.is_current or seen.credentials is None:
        return
    yield from plan_roles(wanted.id, told, seen.credentials, crew.members, is_file_new=is_file_new)
    yield from before
    if before:
        return
    if len(crew.members) != spec.replicas + 1:
        reason = "MembersMissing" if len(crew.members) < spec.replicas + 1 else "MembersLeaving"
        yield Wait(reason, f"{wanted.scope} has {len(crew.members)} members and is to have {spec.replicas + 1}", LOOK_S)
        return
    settings = settings_of(spec)
    yield from _plan_refused(crew, seen, settings)
    yield from tuple(plan_rollout(crew)) or _plan_reading(spec, wanted, crew, seen, settings)


def _plan_reading(spec: ClusterSpec, wanted: Wanted, crew: Crew, seen: Observed, settings: str) -> Iterator[Step]:
    """Patroni tells of a restart that settings need seconds after Postgres has read them, so Postgres is asked.

    Patroni writes Postgres' file once for each change. If it could not, as on a full disk, it is told again.
    """
    for member in crew.members:
        told = seen.loaded.get(member.name, Silence("it has not been asked yet"))
        if isinstance(told, Silence):
            yield Wait("MemberSilent", f"{member.name}: {told.reason}", LOOK_S)
            return
        if told.settings != settings and seen.unready_for_s() > RETELL_S:
            yield ReloadFiles(wanted.id, (member.ip,))
        if told.settings != settings or told.needs_restart:
            yield Wait("SettingsNotTaken", f"{member.name}: Postgres does not run with its settings yet", LOOK_S)
            return
        if spec.postgres.tls.enabled and not told.verifies:
            yield ReloadFiles(wanted.id, (member.ip,))
            message = f"{member.name} is to demand its primary's certificate, when the kubelet has brought the file"
            yield Wait("Securing", message, KUBELET_S)
            return


def _plan_refused(crew: Crew, seen: Observed, settings: str) -> Iterator[Step]:
    """What Postgres runs without, though it is asked for. Said also while a member cannot start for that reason."""
    refused = set[str]()
    for member in crew.members:
        told = seen.loaded.get(member.name)
        if isinstance(told, Loaded) and told.settings == settings:
            refused |= {*told.refused}
    if refused:
        wrong = ", ".join(f"spec.postgres.parameters.{name}" for name in sorted(refused))
        yield Note("SettingsRefused", f"{crew.scope}: Postgres does not know it, or cannot read its value: {wrong}")


def crew_of(wanted: Wanted, seen: Observed, live: Manifest | None) -> Crew:
    """The members of a shard and what they are measured by."""
    revision = str(((live or {}).get("status") or {}).get("updateRevision") or "")
    return Crew(wanted.scope, seen.members(wanted.id), seen.leader(wanted.scope), revision, seen.now_s)


def plan_objects(manifests: Iterable[Manifest], seen: Observed) -> Iterator[Step]:
    """What differs is applied; an object of the same name that is somebody else's is left alone."""
    for manifest in manifests:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        step = plan_apply(manifest, seen.live(kind, name))
        if step is not None:
            yield step


def plan_databases(
    shard_id: str, told: Database | Silence, seen: Observed, *, needs_pooler: bool = False
) -> Iterator[Step]:
    """The schema before any map names the shard, or the wait for an answer."""
    if isinstance(told, Silence):
        is_late = seen.down_for_s() > PATIENCE_S  # a switchover or a restart takes seconds
        seconds = STRANGER_S if told.lasts else LOOK_S
        yield Wait(told.code, f"{shard_id}: {told.reason}", seconds, is_fault=told.lasts or is_late)
    elif told.faults:
        yield Wait("DatabaseUnfit", f"{shard_id}: {'; '.join(told.faults)}", 30.0, is_fault=True)
    elif not told.is_current:
        yield PrepareShard(shard_id, f"schema is at {told.schema_version or 'nothing'}")
    elif needs_pooler and not told.has_pooler:
        yield PrepareShard(shard_id, "the pooler cannot ask for its clients' verifiers yet")


def wait_for_primary(crew: Crew, *, is_late: bool) -> Wait:
    """Why there is no primary, as far as the pods tell."""
    sick = [each for each in crew.members if not each.is_healthy]
    if not crew.members:
        return Wait("NoMembers", f"{crew.scope} has no pods yet", LOOK_S)
    if sick:
        told = wait_for(sick, crew.now_s)
        return Wait(told.reason, f"{crew.scope} has no primary: {told.message}", told.seconds, told.is_fault)
    return Wait("NoPrimary", f"{crew.scope}: Patroni has not chosen a primary", LOOK_S, is_fault=is_late)


def _plan_beginning(spec: ClusterSpec, wanted: Wanted, seen: Observed) -> Iterator[Step]:
    """What must not be left of an earlier shard of this name, or must not be missing, before members start.

    Patroni keeps in `<scope>-config` whose data it is. Without volumes it would wait for that data for ever; and with
    volumes but without it, an empty volume that is first would begin another database beside them.
    """
    if seen.live("StatefulSet", wanted.scope) is not None:
        return
    claims = seen.claims(wanted.id)
    config = seen.live("ConfigMap", f"{wanted.scope}-config")
    if not claims and config is not None and seen.leader(wanted.scope).is_initialized:
        for part in ("config", "leader", "failover", "sync"):
            left = seen.live("ConfigMap", f"{wanted.scope}-{part}")
            if left is not None:
                yield Remove(left, "it tells of volumes that are gone")
        yield Wait("StateRemoved", f"{wanted.scope} begins anew", LOOK_S)
    elif claims and config is None and len(claims) < spec.replicas + 1:
        message = (
            f"{wanted.scope} has {len(claims)} retained volumes and no ConfigMap {wanted.scope}-config, which says"
            f" whose data they hold: set spec.replicas to {len(claims) - 1} until it serves, so that no empty volume"
            " comes first"
        )
        yield Wait("StateLost", message, 30.0, is_fault=True)


def _plan_claims(spec: ClusterSpec, shard_id: str, seen: Observed) -> Iterator[Step]:
    for claim in sorted(seen.claims(shard_id), key=lambda each: ordinal_of(each["metadata"]["name"])):
        asked = bytes_of(str(claim["spec"]["resources"]["requests"]["storage"]))
        size = max(asked, spec.storage.size_bytes)
        name = claim["metadata"]["name"]
        storage_class = claim["spec"].get("storageClassName") or ""
        if size > asked and seen.expandable.get(storage_class) is False:
            message = (
                f"{name} cannot grow: its StorageClass {storage_class} does not allow it (allowVolumeExpansion). "
                "Let the class allow it, if its provisioner can, or move to a cluster of another class"
            )
            yield Note("StorageNotExpandable", message)
            size = asked
        wanted = build_claim(claim, size, is_protected=spec.deletion_protection)
        place = first_difference(wanted, claim)
        if place is not None:
            yield Apply(wanted, f"{place.lstrip('.')} differs")
