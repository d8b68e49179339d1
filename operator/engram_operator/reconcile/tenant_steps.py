"""The steps of a tenant's plan, done one after the other until the first that fails or waits.

Promise: each may be repeated. A step that only the cache refuses is passed over: a cache costs speed, nothing else.
"""

import logging
from dataclasses import dataclass

from engram_contract.names import tenant_role
from engram_contract.policy import Policy
from engram_contract.redisurl import RedisLogin
from engram_contract.spec import ClusterSpec, TenantSpec
from engram_operator.clients import cache, postgres, tenancy
from engram_operator.clients.connection import Admin
from engram_operator.clients.kube import OWNED, SECRETS, Kube
from engram_operator.clients.postgres import ShardIdentity
from engram_operator.clients.sealing import seal_of
from engram_operator.errors import CacheRefused, CacheUnreachable, LostLease, OperatorError
from engram_operator.leadership import Leadership
from engram_operator.manifests.tenant import build_tenant_secret, read_tenant_secret
from engram_operator.plan.drift import stamped
from engram_operator.plan.maps import tenant_database
from engram_operator.plan.migrations import MigrationConflict
from engram_operator.plan.observed import Observed
from engram_operator.plan.steps import (
    Apply,
    CarryLoan,
    KeepCacheUser,
    LendBack,
    MendLogin,
    PrepareTenant,
    PublishMap,
    SetQuota,
    Step,
    SweepTenant,
    Wait,
)
from engram_operator.plan.tenant import Files, TenantObserved, TenantPlan
from engram_operator.reconcile.execute import FIELD_MANAGER
from engram_operator.reconcile.hands import credentials_of, login
from engram_operator.reconcile.writing import left_s

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Subject:
    """A tenant with its cluster, both parsed, what was seen of its shards, and what its sidecars are to know."""

    tenant: TenantSpec
    cluster: ClusterSpec
    seen: Observed
    policy: Policy
    cache: RedisLogin | None = None  # as whom its Redis is told of users, if there is one
    cache_fault: str = ""  # why it is not told

    @property
    def role(self) -> str:
        """The tenant's login."""
        return tenant_role(self.tenant.namespace, self.tenant.name)

    @property
    def database(self) -> str:
        """Where its memories lie on each shard."""
        return tenant_database(self.role, self.tenant.isolation)


def without_cache(error: CacheRefused) -> str:
    """What the tenant's condition says."""
    return f"without the second cache level: {error}"


class TenantSteps:
    """Does steps while we lead."""

    def __init__(self, kube: Kube, leadership: Leadership) -> None:
        self._kube = kube
        self._leadership = leadership

    async def act(
        self, subject: Subject, seen: TenantObserved, files: Files, plan: TenantPlan
    ) -> tuple[tuple[Step, ...], tuple[Wait, ...], str]:
        """What was done, what the first failure or Wait asks for, and what the cache refused. Raises LostLease."""
        done: list[Step] = []
        refused = ""
        if plan.shard_map is not None and plan.keeps_login:
            # The password first: a role whose password nobody wrote down would be made anew at each try.
            await self._keep_password(subject, seen, files)
        for step in plan.steps:
            if isinstance(step, Wait):
                return tuple(done), (step,), refused
            try:
                await self._do(subject, files, step)
            except LostLease:
                raise
            except (CacheUnreachable, CacheRefused) as error:
                log.info("cache not told", extra={"reason": str(error)})
                refused = without_cache(error) if isinstance(error, CacheRefused) else ""
                continue
            except OperatorError as error:
                return tuple(done), (Wait(type(error).__name__, f"{step}: {error}", 2.0, is_fault=True),), refused
            if not isinstance(step, SweepTenant):  # somebody may hold what has expired: no reason to look again at once
                done.append(step)
        return tuple(done), (), refused

    async def _keep_password(self, subject: Subject, seen: TenantObserved, files: Files) -> None:
        """The Secret holds the password, before any role has it."""
        stored = read_tenant_secret(seen.secret)
        wanted = files.login.stored.credentials
        known = stored.credentials.passwords if stored is not None and stored.credentials.role == wanted.role else ()
        if files.login.password in known:
            return
        uid = seen.resource["metadata"]["uid"]
        manifest = build_tenant_secret(subject.tenant, uid, files.login.stored, files.keyring)
        timeout_s = left_s(self._leadership.held())
        if seen.secret is None:
            await self._kube.create(SECRETS, subject.tenant.namespace, manifest, timeout_s=timeout_s)
        else:
            await self._kube.apply(SECRETS, stamped(manifest), FIELD_MANAGER, timeout_s=timeout_s)

    async def _do(self, subject: Subject, files: Files, step: Step) -> None:
        timeout_s = left_s(self._leadership.held())
        match step:
            case Apply(manifest):
                await self._kube.apply(OWNED[manifest["kind"]], manifest, FIELD_MANAGER, timeout_s=timeout_s)
            case KeepCacheUser(role):
                user = files.login.stored.credentials.cache
                if user is not None and subject.cache is not None:
                    await cache.keep_user(subject.cache, role, user.passwords)
            case PrepareTenant() | MendLogin() | PublishMap() | SetQuota() | CarryLoan() | LendBack() | SweepTenant():
                admin = await login(self._kube, subject.cluster, subject.seen, step.shard)
                await self._do_on_shard(subject, files, step, admin)
            case _:
                raise AssertionError(f"nobody does {type(step).__name__} for a tenant")

    async def _do_on_shard(self, subject: Subject, files: Files, step: Step, admin: Admin) -> None:
        place = (admin, subject.database, subject.role)
        match step:
            case PrepareTenant():
                await self._prepare(subject, files, step, admin)
            case MendLogin():
                await postgres.apply_tenant(admin, step.database, step.role, files.login.password)
            case PublishMap():
                await postgres.publish_map(admin, step.shard, step.shard_map)
            case SetQuota() | CarryLoan() | LendBack():
                await tenancy.level_quota(*place, step, seal_of(credentials_of(subject.seen).key))
            case SweepTenant():
                await tenancy.sweep(*place, subject.policy.audit_retention_s)

    async def _prepare(self, subject: Subject, files: Files, step: PrepareTenant, admin: Admin) -> None:
        identity = ShardIdentity(credentials_of(subject.seen).cluster_id, step.shard)
        try:
            await postgres.migrate(admin, step.database, identity)
        except MigrationConflict as error:
            raise OperatorError(str(error)) from error
        await postgres.apply_tenant(admin, step.database, step.role, files.login.password)
