"""One reconcile of a MemoryTenant: its role, database and map on every shard, then what its pods mount.

fetch --> gone? --> parse --> its cluster: there, admits it, not paused? --> observe --> plan --> act --> status
"""

import asyncio
import base64
import binascii
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from engram_contract.names import CREDENTIALS_FILE, MAP_FILE, TENANT_KIND, tenant_objects, tenant_role
from engram_contract.shardmap import BadMap, ShardMap
from engram_contract.spec import BadSpec, ClusterSpec, TenantSpec
from engram_operator.clients import facts, postgres
from engram_operator.clients.dsn import node_of
from engram_operator.clients.kube import MEMORY_CLUSTERS, MEMORY_TENANTS, NAMESPACES, OWNED, SECRETS, Kube, Manifest
from engram_operator.clients.postgres import ShardIdentity
from engram_operator.controller import Outcome
from engram_operator.errors import ApiNotFound, BadDsn, LostLease, OperatorError
from engram_operator.leadership import Leadership
from engram_operator.plan.maps import tenant_database
from engram_operator.plan.migrations import MigrationConflict
from engram_operator.plan.observed import Observed, Silence
from engram_operator.plan.roles import mark_of
from engram_operator.plan.steps import Apply, PrepareTenant, PublishMap, Step, Wait
from engram_operator.plan.tenant import (
    OnShard,
    TenantObserved,
    TenantPlan,
    build_tenant_status,
    places_of,
    plan_tenant,
    refused_tenant_status,
)
from engram_operator.reconcile.execute import FIELD_MANAGER
from engram_operator.reconcile.hands import login
from engram_operator.reconcile.observe import admins_of, ca_of, observe_shards
from engram_operator.reconcile.writing import left_s, write_status
from engram_operator.workqueue import Key

NOWHERE_S: Final = 10.0
PASSWORD_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Subject:
    """A tenant with its cluster, both parsed, and what was seen of the cluster's shards."""

    tenant: TenantSpec
    cluster: ClusterSpec
    seen: Observed

    @property
    def role(self) -> str:
        """The tenant's login."""
        return tenant_role(self.tenant.namespace, self.tenant.name)

    @property
    def database(self) -> str:
        """Where its memories lie on each shard."""
        return tenant_database(self.role, self.tenant.isolation)


class TenantReconciler:
    """Reconciles MemoryTenants while we lead. `wall_clock` gives Unix seconds."""

    def __init__(self, kube: Kube, leadership: Leadership, wall_clock: Callable[[], float] = time.time) -> None:
        self._kube = kube
        self._leadership = leadership
        self._wall_clock = wall_clock

    async def reconcile(self, key: Key) -> Outcome:
        """What one run came to. Raises OperatorError."""
        try:
            resource = await self._kube.fetch(MEMORY_TENANTS, key.namespace, key.name)
        except ApiNotFound:
            return Outcome("gone")
        if "deletionTimestamp" in resource["metadata"]:
            return Outcome("gone")
        try:
            tenant = TenantSpec.from_resource(resource)
        except BadSpec as error:
            await self._report(resource, refused_tenant_status(resource, str(error), self._wall_clock()))
            return Outcome("refused", waits=(str(error),))
        cluster = await self._find_cluster(tenant)
        if isinstance(cluster, Wait):
            return await self._end(tenant, resource, TenantPlan((), None), (), (cluster,))
        spec, body = cluster
        if spec.paused:
            return Outcome("waiting", waits=("its cluster is paused",))
        return await self._carry_out(
            Subject(tenant, spec, await observe_shards(self._kube, body, spec, self._wall_clock)), resource
        )

    async def _carry_out(self, subject: Subject, resource: Manifest) -> Outcome:
        tenant, spec = subject.tenant, subject.cluster
        try:
            seen = await self._observe(subject, resource)
        except BadDsn as error:
            wait = Wait("BadDsn", f"a shard of MemoryCluster {spec.name}: {error}", NOWHERE_S, is_fault=True)
            return await self._end(tenant, resource, TenantPlan((), None), (), (wait,))
        plan = plan_tenant(tenant, spec, seen)
        done, waits = await self._act(subject, seen, plan)
        return await self._end(tenant, resource, plan, done, waits)

    async def _find_cluster(self, tenant: TenantSpec) -> tuple[ClusterSpec, Manifest] | Wait:
        reference = tenant.cluster_ref
        place = f"MemoryCluster {reference.namespace}/{reference.name}"
        try:
            body = await self._kube.fetch(MEMORY_CLUSTERS, reference.namespace, reference.name)
            spec = ClusterSpec.from_resource(body)
        except ApiNotFound:
            return Wait("ClusterNotFound", f"spec.clusterRef: there is no {place}", NOWHERE_S, is_fault=True)
        except BadSpec as error:
            return Wait("ClusterRefused", f"{place}: {error}", NOWHERE_S, is_fault=True)
        labels: dict[str, str] = {}
        if tenant.namespace != spec.namespace:
            namespace = await self._kube.fetch(NAMESPACES, None, tenant.namespace)
            labels = namespace["metadata"].get("labels") or {}
        if not spec.admits(tenant.namespace, labels):
            message = f"{place} does not admit namespace {tenant.namespace} (its spec.access.namespaceSelector)"
            return Wait("NotAdmitted", f"spec.clusterRef: {message}", NOWHERE_S, is_fault=True)
        return spec, body

    async def _observe(self, subject: Subject, resource: Manifest) -> TenantObserved:
        name, namespace = tenant_objects(subject.tenant.name), subject.tenant.namespace
        secret, config = await asyncio.gather(
            self._fetch(OWNED["Secret"], namespace, name), self._fetch(OWNED["ConfigMap"], namespace, name)
        )
        passwords = read_passwords(secret, subject.role) or (secrets.token_hex(PASSWORD_BYTES),)
        ids = [shard.id for shard in subject.cluster.shards]
        answers = await asyncio.gather(*(self._ask(subject, each) for each in ids))
        places = dict(places_of(subject.cluster))
        for each in subject.cluster.external:
            admin = (await admins_of(self._kube, subject.cluster, subject.seen, each.id))[0]
            places[each.id] = node_of(admin)
        return TenantObserved(
            resource=resource,
            shards=dict(zip(ids, answers, strict=True)),
            places=places,
            secret=secret,
            config=config,
            known=tuple(known_maps(config)),
            passwords=passwords,
            mark=mark_of(subject.role, passwords[0]),
            ca=ca_of(subject.seen, subject.cluster),
        )

    async def _ask(self, subject: Subject, shard_id: str) -> OnShard | Silence:
        try:
            admin = await login(self._kube, subject.cluster, subject.seen, shard_id)
            return await facts.fetch_tenant(admin, subject.database, subject.role)
        except OperatorError as error:
            return Silence(str(error))

    async def _fetch(self, resource: Any, namespace: str, name: str) -> Manifest | None:  # noqa: ANN401  a Resource
        try:
            return await self._kube.fetch(resource, namespace, name)
        except ApiNotFound:
            return None

    async def _act(
        self, subject: Subject, seen: TenantObserved, plan: TenantPlan
    ) -> tuple[tuple[Step, ...], tuple[Wait, ...]]:
        done: list[Step] = []
        if seen.secret is None and plan.shard_map is not None:
            # The password first: a role whose password nobody wrote down would be made anew at each try.
            await self._keep_passwords(subject, plan)
        for step in plan.steps:
            if isinstance(step, Wait):
                return tuple(done), (step,)
            try:
                await self._do(subject, seen, step)
            except LostLease:
                raise
            except OperatorError as error:
                return tuple(done), (Wait(type(error).__name__, f"{step}: {error}", 2.0, is_fault=True),)
            done.append(step)
        return tuple(done), ()

    async def _keep_passwords(self, subject: Subject, plan: TenantPlan) -> None:
        """The Secret with the password alone is there, before any role has it."""
        step = next(
            (each for each in plan.steps if isinstance(each, Apply) and each.manifest["kind"] == "Secret"), None
        )
        if step is not None:
            await self._kube.create(
                SECRETS, subject.tenant.namespace, step.manifest, timeout_s=left_s(self._leadership.held())
            )

    async def _do(self, subject: Subject, seen: TenantObserved, step: Step) -> None:
        timeout_s = left_s(self._leadership.held())
        if isinstance(step, Apply):
            manifest = step.manifest
            await self._kube.apply(OWNED[manifest["kind"]], manifest, FIELD_MANAGER, timeout_s=timeout_s)
        elif isinstance(step, PrepareTenant):
            await self._prepare(subject, seen, step)
        elif isinstance(step, PublishMap):
            admin = await login(self._kube, subject.cluster, subject.seen, step.shard)
            await postgres.publish_map(admin, step.shard, step.shard_map)

    async def _prepare(self, subject: Subject, seen: TenantObserved, step: PrepareTenant) -> None:
        credentials = subject.seen.credentials
        if credentials is None:
            raise OperatorError("the cluster has no credentials yet")
        admin = await login(self._kube, subject.cluster, subject.seen, step.shard)
        try:
            await postgres.migrate(admin, step.database, ShardIdentity(credentials.cluster_id, step.shard))
        except MigrationConflict as error:
            raise OperatorError(str(error)) from error
        await postgres.apply_tenant(admin, step.database, step.role, seen.passwords[0])
        await facts.mark_role(admin, step.role, seen.mark)

    async def _end(
        self,
        tenant: TenantSpec,
        resource: Manifest,
        plan: TenantPlan,
        done: tuple[Step, ...],
        waits: tuple[Wait, ...],
    ) -> Outcome:
        await self._report(resource, build_tenant_status(tenant, resource, plan, waits, self._wall_clock()))
        said = tuple(wait.message for wait in waits)
        again_s = min((wait.seconds for wait in waits), default=None)
        if done:
            return Outcome("acted", again_s, tuple(map(str, done)), said)
        return Outcome("waiting" if waits else "settled", again_s, (), said)

    async def _report(self, resource: Manifest, status: dict[str, Any]) -> None:
        await write_status(self._kube, self._leadership.held(), (MEMORY_TENANTS, TENANT_KIND), resource, status)


def read_passwords(secret: Manifest | None, role: str) -> tuple[str, ...]:
    """The passwords in a tenant's Secret, if they are this role's; none if it is damaged."""
    text = ((secret or {}).get("data") or {}).get(CREDENTIALS_FILE) or ""
    try:
        written = json.loads(base64.b64decode(text, validate=True))
        return tuple(map(str, written["passwords"])) if written["role"] == role else ()
    except (binascii.Error, ValueError, LookupError, TypeError):
        return ()


def known_maps(config: Manifest | None) -> tuple[ShardMap, ...]:
    """The map in a tenant's ConfigMap; none if it is damaged, for the shards know it too."""
    text = ((config or {}).get("data") or {}).get(MAP_FILE)
    try:
        return () if text is None else (ShardMap.from_json(text),)
    except BadMap:
        return ()
