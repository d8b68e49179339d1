"""What a MemoryTenant needs on its shards and beside its pods, in order. Pure.

    role and database on every shard --> its part of the quota --> the map in every shard
        --> Secret and ConfigMap beside the pods

So a file never names what a shard does not know. A shard in Maintenance is left alone: its slots wait with it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from engram_contract.credentials import Keyring
from engram_contract.names import TENANT_LABEL, tenant_objects, tenant_role
from engram_contract.policy import Policy
from engram_contract.shardmap import BadMap, NoActiveShard, Node, Shard, ShardMap, ShardState
from engram_contract.spec import ClusterSpec, TenantSpec
from engram_operator.manifests.tenant import build_tenant_config, build_tenant_secret
from engram_operator.manifests.terms import FILE_GRACE_S
from engram_operator.plan.conditions import Verdict, build_condition, time_of
from engram_operator.plan.drift import plan_apply
from engram_operator.plan.login import Login
from engram_operator.plan.maps import plan_map, tenant_database
from engram_operator.plan.members import condition_of, seconds_of
from engram_operator.plan.observed import Silence
from engram_operator.plan.quotas import Amount, Holding, plan_quotas, sum_of
from engram_operator.plan.sidecars import Generations, Published, Report
from engram_operator.plan.steps import (
    KeepCacheUser,
    Manifest,
    MendLogin,
    PrepareTenant,
    PublishMap,
    Step,
    SweepTenant,
    Wait,
)

MAX_TYPES: Final = 32  # of memories in a status; there are some ten, and a tenant may make up more
MAX_TYPE_CHARS: Final = 256
KEPT: Final = ("mapEpoch", "shards", "published", "usage")


@dataclass(frozen=True, slots=True)
class OnShard:
    """What one shard knows of the tenant.

    `mark` is that of the password which its role was given; empty if nobody may log in as it. `altered` is what the
    role changed of itself since. `is_read` is false where the schema is an older release's: only the map is known then.
    """

    is_current: bool
    mark: str
    shard_map: ShardMap | None
    holding: Holding = field(default_factory=Holding)
    reports: tuple[Report, ...] = ()
    is_sweep_due: bool = False
    altered: tuple[str, ...] = ()
    is_read: bool = True


UNPREPARED: Final = OnShard(is_current=False, mark="", shard_map=None)


@dataclass(frozen=True, slots=True)
class Files:
    """What goes into the tenant's Secret and ConfigMap beside the map, and why it is not all that was asked for."""

    login: Login
    keyring: Keyring
    policy: Policy
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class TenantObserved:
    """The tenant, its cluster, and what the shards and its own objects say.

    Sidecars dial `places`, each shard's primary, and to read `members`: all servers of a shard that has replicas.
    """

    resource: Manifest
    shards: Mapping[str, OnShard | Silence]
    places: Mapping[str, Node]
    secret: Manifest | None
    config: Manifest | None
    members: Mapping[str, tuple[Node, ...]] = field(default_factory=dict)
    has_cache_user: bool = True  # also where there is no cache of ours, or none that answers: it costs speed alone

    @property
    def told(self) -> tuple[OnShard, ...]:
        """What the shards said that answered."""
        return tuple(each for each in self.shards.values() if isinstance(each, OnShard))

    @property
    def own_secret(self) -> Manifest | None:
        """The tenant's Secret: nothing is believed that somebody else's says."""
        return self.secret if self.is_ours(self.secret) else None

    def is_ours(self, manifest: Manifest | None) -> bool:
        """Whether an object of the tenant's name is the tenant's, or there is none.

        By its label or by its owner: who takes one of them away is no reason to leave the tenant alone.
        """
        if manifest is None:
            return True
        mine, metadata = self.resource["metadata"], manifest["metadata"]
        is_labelled = (metadata.get("labels") or {}).get(TENANT_LABEL) == mine["name"]
        return is_labelled or any(each["uid"] == mine["uid"] for each in metadata.get("ownerReferences") or ())


@dataclass(frozen=True, slots=True)
class TenantPlan:
    """The steps, and the map that they are about; None if there can be none.

    `keeps_login` is false where the Secret is somebody else's: the tenant's login stays what the shards have.
    """

    steps: tuple[Step, ...]
    shard_map: ShardMap | None
    keeps_login: bool = True


def plan_tenant(tenant: TenantSpec, cluster: ClusterSpec, seen: TenantObserved, files: Files) -> TenantPlan:
    """Everything that is due for a tenant."""
    role = tenant_role(tenant.namespace, tenant.name)
    database = tenant_database(role, tenant.isolation)
    # Only what shards say counts, and only of this tenant: the ConfigMap is anybody's who may write in the namespace.
    known = [told.shard_map for told in seen.told if told.shard_map is not None and told.shard_map.tenant == role]
    silent = {name: each.reason for name, each in seen.shards.items() if isinstance(each, Silence)}
    if not known and silent:
        # Who knows the newest map may be the one that is silent: a first map over it would be a second truth.
        return TenantPlan((_silence(silent),), None)
    shards = tuple(
        Shard(
            each.id,
            database,
            (seen.places[each.id],),
            each.weight,
            each.state,
            each.residency,
            seen.members.get(each.id, ()),
        )
        for each in cluster.shards
        if each.id in seen.places
    )
    try:
        shard_map = plan_map(role, cluster.strategy, shards, tenant.residency, known)
    except NoActiveShard as error:
        return TenantPlan((Wait("NoActiveShard", f"spec.residency: {error}", 60.0, is_fault=True),), None)
    except BadMap as error:
        return TenantPlan((Wait("ShardMissing", f"the cluster's shards: {error}", 10.0, is_fault=True),), None)
    return TenantPlan(tuple(_steps(tenant, seen, files, shard_map)), shard_map, keeps_login=seen.is_ours(seen.secret))


def usage_of(seen: TenantObserved) -> Mapping[str, Amount] | None:
    """What the tenant stores, by type; None while a shard that keeps some of it does not tell."""
    if any(isinstance(each, Silence) or not each.is_read for each in seen.shards.values()):
        return None
    whole: dict[str, Amount] = {}
    for told in seen.told:
        for kind, amount in told.holding.used.items():
            name = kind[:MAX_TYPE_CHARS]  # by SQL a tenant may store any; a status takes no longer one
            whole[name] = whole.get(name, Amount()) + amount
    return whole


def _steps(tenant: TenantSpec, seen: TenantObserved, files: Files, shard_map: ShardMap) -> Iterator[Step]:
    role = tenant_role(tenant.namespace, tenant.name)
    database = tenant_database(role, tenant.isolation)
    served = [shard.id for shard in shard_map.shards if shard.state is not ShardState.MAINTENANCE]
    asked = {shard: seen.shards.get(shard, Silence("it is not there yet")) for shard in served}
    told = {shard: each for shard, each in asked.items() if isinstance(each, OnShard)}
    for shard, known in told.items():
        if known.is_sweep_due:  # before the rest: what an endless transaction of the tenant's would hold up
            yield SweepTenant(shard)
    if seen.is_ours(seen.secret):
        yield from _logins(told, files.login.mark, database, role)
        yield from _quotas(files.policy, seen, shard_map)
    else:  # without its password no role is made: what lacks it waits, and the others go on
        told = {shard: known for shard, known in told.items() if known.is_current}
        if len(told) == len(asked):
            yield from _quotas(files.policy, seen, shard_map)
    for shard, known in told.items():
        if known.shard_map != shard_map:
            yield PublishMap(shard, shard_map)
    silent = {shard: each.reason for shard, each in asked.items() if isinstance(each, Silence)}
    if silent:
        yield _silence(silent)
        return
    yield from _objects(tenant, seen, files, shard_map)


def _logins(told: Mapping[str, OnShard], mark: str, database: str, role: str) -> Iterator[Step]:
    for shard, known in told.items():
        if not known.is_current or known.mark != mark:
            yield PrepareTenant(shard, database, role)
        elif known.altered:
            yield MendLogin(shard, database, role, known.altered)


def _objects(tenant: TenantSpec, seen: TenantObserved, files: Files, shard_map: ShardMap) -> Iterator[Step]:
    """What the tenant's sidecars read, once what it names is there. What is somebody else's is not touched."""
    if not seen.is_ours(seen.secret):
        yield _taken("Secret", tenant)
        return
    if not seen.has_cache_user:
        yield KeepCacheUser(tenant_role(tenant.namespace, tenant.name))
    uid = seen.resource["metadata"]["uid"]
    for manifest, live in (
        (build_tenant_secret(tenant, uid, files.login.stored, files.keyring), seen.secret),
        (build_tenant_config(tenant, uid, shard_map, files.policy), seen.config),
    ):
        if not seen.is_ours(live):
            yield _taken(manifest["kind"], tenant)
            return
        step = plan_apply(manifest, live)
        if step is not None:
            yield step


def _quotas(policy: Policy, seen: TenantObserved, shard_map: ShardMap) -> Iterator[Step]:
    """The quota's parts. All shards have to be asked: who is silent may hold some of it."""
    holdings = {name: told.holding for name, told in seen.shards.items() if isinstance(told, OnShard) and told.is_read}
    order = [shard.id for shard in shard_map.shards]
    if all(shard in holdings for shard in order):
        yield from plan_quotas(policy.quota, order, holdings)


def _taken(kind: str, tenant: TenantSpec) -> Wait:
    said = f"{kind} {tenant_objects(tenant.name)} is there and is not this tenant's: delete or rename it"
    return Wait("NameTaken", said, 10.0, is_fault=True)


def _silence(silent: Mapping[str, str]) -> Wait:
    said = "; ".join(f"{shard}: {reason}" for shard, reason in sorted(silent.items()))
    return Wait("ShardSilent", said, 5.0, is_fault=True)


def refused_tenant_status(resource: Manifest, reason: str, now_s: float) -> dict[str, Any]:
    """The status of a tenant whose spec this operator does not understand. Its map stands: sidecars go on with it."""
    verdict = Verdict("Ready", "BadSpec", reason, holds=False)
    return {
        **(resource.get("status") or {}),
        "observedGeneration": resource["metadata"]["generation"],
        "phase": "Refused",
        "conditions": [build_condition(verdict, resource, now_s), *_others(resource)],
    }


def _others(resource: Manifest) -> list[dict[str, Any]]:
    """The conditions that are no business of the spec's: what was seen of pods stands until it is seen anew."""
    known = (resource.get("status") or {}).get("conditions") or ()
    return [each for each in known if each["type"] != "Ready"]


@dataclass(frozen=True, slots=True)
class TenantRound:
    """How a round ended: what it waits for, the map, what is published, what is stored; None is not known this time."""

    waits: tuple[Wait, ...] = ()
    shard_map: ShardMap | None = None
    files: Files | None = None
    usage: Mapping[str, Amount] | None = None
    published: Published | None = None
    reports: tuple[Report, ...] = ()


def round_of(
    plan: TenantPlan,
    waits: tuple[Wait, ...],
    seen: TenantObserved,
    files: Files,
    changed_s: float | None,
    file_grace_s: float = FILE_GRACE_S,
) -> TenantRound:
    """A round that came to a plan. `changed_s`: when this round changed something, Unix seconds."""
    if waits or plan.shard_map is None:
        return TenantRound(waits, plan.shard_map, usage=usage_of(seen), reports=reports_of(seen))
    credentials = files.login.stored.credentials.generation
    numbers = Generations(plan.shard_map.epoch, files.policy.generation, credentials, files.keyring.current)
    before = seen.resource.get("status") or {}
    known_s = _published_s(before, numbers)
    if known_s is None:
        known_s = applied_s(seen.secret, seen.config) if changed_s is None else changed_s
    published = Published(numbers, known_s, _heard_since_s(before, seen, changed_s), file_grace_s)
    return TenantRound(waits, plan.shard_map, files, usage_of(seen), published, reports_of(seen))


def _published_s(status: Mapping[str, Any], numbers: Generations) -> float | None:
    """Since when the status says that these are published, Unix seconds; None if it does not.

    Not when an object was last written: anybody may touch it, and a round may write something else.
    """
    told = status.get("published") or {}
    is_same = told | {"epoch": status.get("mapEpoch"), "time": ""} == asdict(numbers) | {"time": ""}
    return seconds_of(told["time"]) if is_same and "time" in told else None


def _heard_since_s(status: Mapping[str, Any], seen: TenantObserved, changed_s: float | None) -> float | None:
    """Since when all shards answer, as the tenant's readiness has it, Unix seconds; None if one does not."""
    if any(isinstance(each, Silence) for each in seen.shards.values()):
        return None
    ready = condition_of(status, "Ready")
    return seconds_of(ready["lastTransitionTime"]) if ready.get("status") == "True" else changed_s


def reports_of(seen: TenantObserved) -> tuple[Report, ...]:
    """What each sidecar said last, whichever shard it said it to: a map may have given it another one."""
    newest: dict[str, Report] = {}
    for report in (each for told in seen.told for each in told.reports):
        if report.pod not in newest or report.age_s < newest[report.pod].age_s:
            newest[report.pod] = report
    return tuple(newest.values())


def applied_s(*manifests: Manifest | None) -> float:
    """When somebody last applied one of them, as the API server remembers, Unix seconds; 0 if it does not."""
    fields = [each for manifest in manifests if manifest for each in manifest["metadata"].get("managedFields") or ()]
    return max((seconds_of(each["time"]) for each in fields if "time" in each), default=0.0)


def build_tenant_status(tenant: TenantSpec, resource: Manifest, ended: TenantRound, now_s: float) -> dict[str, Any]:
    """The whole status; what was not looked at this time is as it was."""
    role = tenant_role(tenant.namespace, tenant.name)
    waiting = next(iter(ended.waits), None)
    is_ready = waiting is None and ended.shard_map is not None
    verdict = Verdict(
        "Ready",
        waiting.reason if waiting else "Ready",
        waiting.message if waiting else _ready_message(ended),
        holds=is_ready,
    )
    before = resource.get("status") or {}
    status: dict[str, Any] = {
        "observedGeneration": resource["metadata"]["generation"],
        "phase": "Ready" if is_ready else "Waiting",
        "role": role,
        "database": tenant_database(role, tenant.isolation),
        "conditions": [build_condition(verdict, resource, now_s)],
    }
    status |= {name: before[name] for name in KEPT if name in before}
    if ended.shard_map is not None:
        status["mapEpoch"] = ended.shard_map.epoch
        status["shards"] = [
            {"id": shard.id, "slots": ended.shard_map.slots_of(shard.id)} for shard in ended.shard_map.shards
        ]
    if ended.files is not None:
        status["published"] = {
            "policy": ended.files.policy.generation,
            "credentials": ended.files.login.stored.credentials.generation,
            "keys": ended.files.keyring.current,
        }
    if ended.published is not None:
        status["published"]["time"] = time_of(ended.published.since_s)
    if ended.usage is not None:
        status["usage"] = build_usage(ended.usage, before.get("usage") or {}, now_s)
    return status


def _ready_message(ended: TenantRound) -> str:
    said = "sidecars can serve the tenant"
    return said if ended.files is None or not ended.files.refusal else f"{said}; {ended.files.refusal}"


def build_usage(usage: Mapping[str, Amount], before: Mapping[str, Any], now_s: float) -> dict[str, Any]:
    """What is stored, with the time of the look that found it so first: an unchanged count writes nothing."""
    whole = sum_of(usage)
    found: dict[str, Any] = {
        "memories": max(whole.memories, 0),
        "storageBytes": max(whole.bytes, 0),
        "byType": [
            {"type": kind, "memories": max(each.memories, 0), "storageBytes": max(each.bytes, 0)}
            for kind, each in sorted(usage.items(), key=lambda item: (-item[1].memories, item[0]))[:MAX_TYPES]
        ],
    }
    is_same = all(before.get(name, []) == value for name, value in found.items())
    return found | {"time": before["time"] if is_same and "time" in before else time_of(now_s)}
