"""The whole plan for a MemoryCluster: what is asked for and what was seen -> steps in their order. Pure.

    the cluster's own objects --> each shard, by itself --> what nobody asks for any more goes

Each track ends at its first Wait; one shard that waits holds up no other. The plan is computed anew from what is seen
after every round, so a crash between any two steps leaves nothing to remember. Printed, it is the dry run.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from engram_contract.names import PROTECTED_LABEL, ROTATE_ANNOTATION, TENANT_LABEL
from engram_contract.spec import CacheProvider, ClusterSpec, Provider
from engram_operator.manifests.cluster import Present, build_cluster, build_shard
from engram_operator.manifests.credentials import PLACEHOLDER, KeyPair, build_keys_secret
from engram_operator.manifests.meta import Owner
from engram_operator.manifests.names import ClusterNames
from engram_operator.manifests.site import Site
from engram_operator.plan import certificates
from engram_operator.plan.members import read_member
from engram_operator.plan.observed import Observed, Silence
from engram_operator.plan.roles import all_have_roles, is_rotation_due, is_rotation_over
from engram_operator.plan.rollout import LOOK_S, wait_for
from engram_operator.plan.shape import inputs_of, plan_shape
from engram_operator.plan.shard import Wanted, plan_databases, plan_objects, plan_shard
from engram_operator.plan.shards import Shards, plan_shards
from engram_operator.plan.steps import (
    Apply,
    MakeCredentials,
    Manifest,
    Remove,
    RotateCredentials,
    Step,
    TurnCertificates,
    Wait,
)

TOLD_S: Final = 600.0  # a new CA is in every pod's files by then: the kubelet needs up to two minutes
PRUNED: Final = (
    "StatefulSet",
    "PodDisruptionBudget",
    "Service",
    "NetworkPolicy",
    "ConfigMap",
    "Secret",
    "RoleBinding",
    "Role",
    "ServiceAccount",
)


@dataclass(frozen=True, slots=True)
class Track:
    """Steps that follow each other. `name` is a shard's id, or says what the steps are about."""

    name: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, and what became of each shard id. `update` is what a newer operator would change and may not."""

    tracks: tuple[Track, ...]
    shards: Shards
    update: str

    @property
    def lines(self) -> tuple[str, ...]:
        """The plan for people."""
        return tuple(f"{track.name}: {step}" for track in self.tracks for step in track.steps)


def plan_cluster(spec: ClusterSpec, seen: Observed, site: Site) -> Plan:
    """Every step that is due now, in order."""
    shards = plan_shards(spec, seen)
    owner = Owner(spec.namespace, spec.name, seen.metadata["uid"])
    credentials = seen.credentials or PLACEHOLDER
    if seen.credentials is not None and is_rotation_over(seen.databases, shards.all_kept, seen.credentials):
        credentials = replace(credentials, superuser_previous="")
    is_mixed = not all(each.has_tls for shard in shards.all_kept for each in seen.members(shard))
    present = Present(_certificate(spec, seen), _members(spec, shards, seen), is_mixed)
    objects = build_cluster(spec, owner, site, credentials, present)
    patroni = _PatroniFile.of(spec, seen, objects, shards)
    wanted = tuple(_wanted(spec, shard, seen, site) for shard in shards.all_kept) if _is_managed(spec) else ()
    due = [each for each in objects if not patroni.has_to_wait or each["metadata"]["name"] != patroni.name]
    base = Track("cluster", (*_plan_base(spec, seen), *plan_objects(due, seen), *shards.notes))
    if _is_managed(spec):
        tracks = [Track(each.id, tuple(plan_shard(spec, each, seen, is_file_new=patroni.is_new))) for each in wanted]
        held = sorted({each.held for each in wanted} - {""})
    else:
        told = {each: seen.databases.get(each, Silence("it has not been asked yet")) for each in shards.all_kept}
        tracks = [Track(each, tuple(plan_databases(each, database, seen))) for each, database in told.items()]
        held = []
    kept = {_key(each) for each in (*objects, *(part for each in wanted for part in each.parts))}
    names = ClusterNames(spec.name, spec.namespace)
    kept.add(("Secret", names.ca))  # with its key: made by a step, not by a builder
    if spec.postgres.tls.enabled:
        kept.add(("Secret", names.tls))  # also while the CA's is damaged: the members serve what they have
    prune = Track("prune", tuple(_plan_prune(kept, seen)))
    cache = Track("cache", tuple(_plan_cache(spec, seen)))
    return Plan((base, *tracks, cache, prune), shards, "; ".join(held))


def _plan_cache(spec: ClusterSpec, seen: Observed) -> Iterator[Step]:
    """What a Managed Redis waits for. It costs speed, so no shard waits for it; but somebody should know."""
    if spec.cache.provider is not CacheProvider.MANAGED:
        return
    pod = seen.live("Pod", f"{ClusterNames(spec.name, spec.namespace).redis}-0")
    if pod is None:
        yield Wait("CacheNotReady", "Redis has no pod yet", LOOK_S)
        return
    member = read_member(pod)
    if not member.is_healthy:
        told = wait_for([member], seen.now_s)
        yield Wait("CacheNotReady", f"Redis: {told.message}", told.seconds, told.is_fault)


def _wanted(spec: ClusterSpec, shard_id: str, seen: Observed, site: Site) -> Wanted:
    owner = Owner(spec.namespace, spec.name, seen.metadata["uid"])
    *objects, built = build_shard(spec, shard_id, owner, site)
    scope = built["metadata"]["name"]
    inputs = inputs_of(spec, seen.annotations)
    statefulset, held = plan_shape(built, seen.live("StatefulSet", scope), inputs, spec.update_policy)
    return Wanted(shard_id, scope, tuple(objects), statefulset, held)


@dataclass(frozen=True, slots=True)
class _PatroniFile:
    """The Secret of the passwords that Patroni reads: it may name a role only when every shard has it."""

    name: str
    is_new: bool
    has_to_wait: bool

    @classmethod
    def of(cls, spec: ClusterSpec, seen: Observed, objects: Iterable[Manifest], shards: Shards) -> "_PatroniFile":
        name = ClusterNames(spec.name, spec.namespace).patroni
        wanted = next((each for each in objects if _key(each) == ("Secret", name)), {})
        live = seen.live("Secret", name)
        is_new = live is not None and live.get("data") == wanted.get("data")
        is_known = seen.credentials is not None and all_have_roles(seen.databases, shards.all_kept, seen.credentials)
        return cls(name, is_new, has_to_wait=live is not None and not is_new and not is_known)


def _members(spec: ClusterSpec, shards: Shards, seen: Observed) -> dict[str, int]:
    """How many members each shard has or will have, whichever is more: one that is to go needs its rights till then."""
    found = {}
    for shard in shards.all_kept:
        live = seen.live("StatefulSet", ClusterNames(spec.name, spec.namespace).shard(shard).scope)
        found[shard] = max(spec.replicas + 1, live["spec"]["replicas"] if live else 0)
    return found


def _certificate(spec: ClusterSpec, seen: Observed) -> KeyPair | None:
    """What the members get of the CA's Secret; None without TLS, and while there is none that can be served."""
    if not spec.postgres.tls.enabled or seen.certificates is None or seen.certificates.serving is None:
        return None
    secret = seen.live("Secret", ClusterNames(spec.name, spec.namespace).ca) or {}
    return KeyPair.from_data(secret.get("data") or {})


def _plan_base(spec: ClusterSpec, seen: Observed) -> Iterator[Step]:
    """What everything else stands on: protection of the namespace before the first volume, passwords, certificates."""
    if _is_managed(spec):
        yield from plan_protection(seen, is_wanted=spec.deletion_protection or seen.has_protected_sibling)
    if seen.credentials is None:
        lost = _lost_credentials(spec, seen)
        yield lost or MakeCredentials()
        if lost:
            return
    if _is_managed(spec) and spec.postgres.tls.enabled:
        told = frozenset(
            each.fingerprint
            for each in (seen.certificates.bundle if seen.certificates else ())
            if each.age_s(seen.now_s) > TOLD_S
        )
        dns_names = ClusterNames(spec.name, spec.namespace).dns_names
        step = certificates.plan_certificates(seen.certificates, told, dns_names, seen.now_s)
        if step is not certificates.Step.KEEP or not _is_ca_marked(spec, seen):
            yield TurnCertificates(step.value)
    asked = seen.annotations.get(ROTATE_ANNOTATION, "")
    if seen.credentials is not None and _is_managed(spec) and is_rotation_due(seen.credentials, asked):
        yield RotateCredentials(asked)


def _lost_credentials(spec: ClusterSpec, seen: Observed) -> Wait | None:
    """Why no new passwords may be made: those in the volumes are others, and with new ones nothing could be opened."""
    name = ClusterNames(spec.name, spec.namespace).credentials
    if seen.credentials_fault:
        message = f"Secret {name} is damaged: {seen.credentials_fault}. Restore it"
        return Wait("CredentialsDamaged", message, 30.0, is_fault=True)
    if any(seen.of_kind("PersistentVolumeClaim")):
        message = (
            f"Secret {name} is gone, and there are volumes whose passwords it held. Restore it; or, if the volumes may"
            " go, delete their claims"
        )
        return Wait("CredentialsLost", message, 30.0, is_fault=True)
    return None


def _is_ca_marked(spec: ClusterSpec, seen: Observed) -> bool:
    """Whether the CA's Secret has the owner and the protection that the spec asks for now. What is in it is kept."""
    live = seen.live("Secret", ClusterNames(spec.name, spec.namespace).ca)
    if live is None:
        return True
    owner = Owner(spec.namespace, spec.name, seen.metadata["uid"])
    wanted, present = build_keys_secret(spec, owner, {})["metadata"], live["metadata"]
    owners = [[each["uid"] for each in of.get("ownerReferences") or ()] for of in (wanted, present)]
    guards = [(of.get("labels") or {}).get(PROTECTED_LABEL, "false") for of in (wanted, present)]
    return owners[0] == owners[1] and guards[0] == guards[1]


def plan_protection(seen: Observed, *, is_wanted: bool) -> Iterator[Step]:
    """The label by which admission refuses to delete the namespace. Never removed, for another tool may have set it."""
    metadata = seen.namespace["metadata"]
    present = (metadata.get("labels") or {}).get(PROTECTED_LABEL)
    wanted = "true" if is_wanted else "false"
    if present != wanted and (is_wanted or present is not None):
        labels = {PROTECTED_LABEL: wanted}
        manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": metadata["name"], "labels": labels}}
        yield Apply(manifest, f"its label {PROTECTED_LABEL} is {present or 'absent'}")


def _plan_prune(kept: set[tuple[str, str]], seen: Observed) -> Iterator[Step]:
    """Objects of ours that no builder makes any more. Volumes and pods are never among them."""
    for kind in PRUNED:
        for manifest in seen.of_kind(kind):
            if _key(manifest) not in kept and seen.is_ours(manifest) and not _is_tenants(manifest):
                yield Remove(manifest, "nothing asks for it any more")


def _is_managed(spec: ClusterSpec) -> bool:
    return spec.provider is Provider.MANAGED


def _is_tenants(manifest: Manifest) -> bool:
    return TENANT_LABEL in (manifest["metadata"].get("labels") or {})


def _key(manifest: Manifest) -> tuple[str, str]:
    return manifest["kind"], manifest["metadata"]["name"]
