"""One reconcile of a MemoryTenant: its role, database, quota and map on every shard, then what its pods mount.

fetch --> gone? going? --> finalizer --> parse --> its cluster: there, admits it, not paused? --> observe --> plan
    --> act --> status, and again in a minute: usage is measured, what has expired swept, a lost user of Redis made anew
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final

from engram_contract.credentials import CacheLogin
from engram_contract.names import (
    API_VERSION,
    ROTATE_ANNOTATION,
    ROTATE_KEY_ANNOTATION,
    TENANT_KIND,
    tenant_objects,
)
from engram_contract.spec import BadSpec, ClusterSpec, TenantSpec
from engram_operator.clients import cache, tenancy
from engram_operator.clients.dsn import node_of
from engram_operator.clients.kube import MEMORY_CLUSTERS, MEMORY_TENANTS, OWNED, Kube, Manifest
from engram_operator.controller import Outcome, Result
from engram_operator.errors import (
    ApiNotFound,
    BadDsn,
    CacheRefused,
    CacheUnreachable,
    KeyUnreadable,
    LostLease,
    OperatorError,
)
from engram_operator.events import About, Recorder
from engram_operator.leadership import Leadership
from engram_operator.manifests.meta import Owner
from engram_operator.manifests.tenant import read_tenant_keys, read_tenant_secret
from engram_operator.manifests.terms import USUAL, Terms
from engram_operator.plan.login import Asked, cache_passwords, placed, plan_login
from engram_operator.plan.login import left_s as rotation_left_s
from engram_operator.plan.members import seconds_of
from engram_operator.plan.observed import Observed, Silence
from engram_operator.plan.places import members_of, places_of
from engram_operator.plan.steps import MendLogin, Step, Wait
from engram_operator.plan.tenant import (
    Files,
    OnShard,
    TenantObserved,
    TenantRound,
    build_tenant_status,
    plan_tenant,
    refused_tenant_status,
    round_of,
)
from engram_operator.reconcile import erasure
from engram_operator.reconcile.access import Access
from engram_operator.reconcile.hands import complete_credentials, credentials_of
from engram_operator.reconcile.keys import KeyPlace, keep_keyring
from engram_operator.reconcile.observe import admins_of, ca_of, cache_of, first_answer, observe_shards
from engram_operator.reconcile.tenant_steps import Subject, TenantSteps, without_cache
from engram_operator.reconcile.watchdog import Watchdog
from engram_operator.reconcile.writing import write_status
from engram_operator.workqueue import Key

NOWHERE_S: Final = 10.0
SOON_S: Final = 0.5
MEASURE_S: Final = 60.0
PASSWORD_BYTES: Final = 32

log = logging.getLogger(__name__)


class TenantReconciler:
    """Reconciles MemoryTenants while we lead. `wall_clock` gives Unix seconds."""

    def __init__(
        self,
        kube: Kube,
        leadership: Leadership,
        recorder: Recorder,
        watchdog: Watchdog,
        terms: Terms = USUAL,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._kube = kube
        self._leadership = leadership
        self._recorder = recorder
        self._watchdog = watchdog
        self._steps = TenantSteps(kube, leadership)
        self._access = Access(kube, leadership, wall_clock)
        self._terms = terms
        self._wall_clock = wall_clock

    async def reconcile(self, key: Key) -> Outcome:
        """What one run came to. Raises OperatorError."""
        try:
            resource = await self._kube.fetch(MEMORY_TENANTS, key.namespace, key.name)
        except ApiNotFound:
            self._watchdog.forget(key)
            self._access.forget(key)
            return Outcome("gone")
        if "deletionTimestamp" in resource["metadata"]:
            self._watchdog.forget(key)
            self._access.forget(key)
            return await self._let_go(resource)
        if erasure.has_finalizer(resource) is not erasure.wants_finalizer(resource):
            # Before there is anything to erase. What the object is then, the next round looks at.
            is_wanted = erasure.wants_finalizer(resource)
            await erasure.mark(self._kube, self._leadership.held(), resource, is_wanted=is_wanted)
            return Outcome("acted", SOON_S, (f"finalizer {'set' if is_wanted else 'taken away'}",))
        return await self._reconcile_living(resource)

    async def _reconcile_living(self, resource: Manifest) -> Outcome:
        try:
            tenant = TenantSpec.from_resource(resource)
        except BadSpec as error:
            await self._report(resource, refused_tenant_status(resource, str(error), self._wall_clock()))
            return Outcome("refused", waits=(str(error),))
        found = await self._access.find(tenant)
        if isinstance(found, Wait):
            return await self._end(tenant, resource, (), TenantRound((found,)))
        key = Key(TENANT_KIND, tenant.namespace, tenant.name)
        if not found.is_admitted:
            shut, wait = await self._access.shut_out(key, found)
            if shut:
                await self._recorder.record(_about(resource), "Warning", "AccessEnded", wait.message)
            return await self._end(tenant, resource, shut, TenantRound((wait,)))
        self._access.forget(key)
        spec, body = found.spec, found.body
        if spec.paused:
            return Outcome("waiting", waits=("its cluster is paused",))
        metadata = resource["metadata"]
        created_s = int(seconds_of(metadata["creationTimestamp"])) if "creationTimestamp" in metadata else 0
        policy = tenant.policy(self._terms.plans, metadata["generation"], created_s, spec.cache.caching)
        return await self._carry_out(Subject(tenant, spec, await self._see(body, spec), policy), resource)

    async def _see(self, body: Manifest, spec: ClusterSpec) -> Observed:
        return await observe_shards(self._kube, body, spec, self._wall_clock)

    async def _carry_out(self, subject: Subject, resource: Manifest) -> Outcome:
        tenant, spec = subject.tenant, subject.cluster
        if subject.seen.credentials is None:
            wait = Wait("ClusterNotReady", f"MemoryCluster {spec.name} has no credentials yet", SOON_S * 4)
            return await self._end(tenant, resource, (), TenantRound((wait,)))
        subject = await self._with_cache(subject)
        if not credentials_of(subject.seen).key:
            await complete_credentials(self._kube, self._leadership.held(), spec, subject.seen)
            return Outcome("acted", SOON_S, ("make the key that wraps the keys of the cluster's tenants",))
        try:
            seen = await self._observe(subject, resource)
            files = await self._files(subject, resource, seen)
        except BadDsn as error:
            wait = Wait("BadDsn", f"a shard of MemoryCluster {spec.name}: {error}", NOWHERE_S, is_fault=True)
            return await self._end(tenant, resource, (), TenantRound((wait,)))
        except KeyUnreadable as error:
            wait = Wait("KeyUnreadable", f"the keys of the tenant's data: {error}", NOWHERE_S, is_fault=True)
            return await self._end(tenant, resource, (), TenantRound((wait,)))
        plan = plan_tenant(tenant, spec, seen, files)
        done, waits, refused = await self._steps.act(subject, seen, files, plan)
        files = replace(files, refusal="; ".join(filter(None, (files.refusal, subject.cache_fault, refused))))
        for step in (each for each in done if isinstance(each, MendLogin)):
            said = (
                f"{step.shard}: somebody who was logged in as {step.role} changed {', '.join(step.altered)}; set right"
            )
            await self._recorder.record(_about(resource), "Warning", "LoginMended", said)
        changed_s = self._wall_clock() if done else None
        ended = round_of(plan, waits, seen, files, changed_s, self._terms.file_grace_s)
        return await self._end(tenant, resource, done, ended)

    async def _with_cache(self, subject: Subject) -> Subject:
        try:
            return replace(subject, cache=await cache_of(self._kube, subject.cluster, subject.seen))
        except CacheRefused as error:
            return replace(subject, cache_fault=without_cache(error))

    async def _let_go(self, resource: Manifest) -> Outcome:
        """What is asked for when the object is deleted; nothing if somebody else's finalizer is what it waits for."""
        if not erasure.has_finalizer(resource):
            return Outcome("gone")
        metadata = resource["metadata"]
        said, reason = f"reclaimPolicy is Retain: the memories of {metadata['name']} stay", "Retained"
        if erasure.wants_finalizer(resource):
            outcome = await self._erase(resource)
            if isinstance(outcome, Wait):
                await self._recorder.record(_about(resource), "Warning", outcome.reason, outcome.message)
                return Outcome("waiting", outcome.seconds, (), (outcome.message,))
            said, reason = outcome, "Erased"
        await self._recorder.record(_about(resource), "Normal", reason, said)
        await erasure.mark(self._kube, self._leadership.held(), resource, is_wanted=False)
        return Outcome("acted", None, (said,))

    async def _erase(self, resource: Manifest) -> str | Wait:
        """What became of the memories, or what is in the way."""
        metadata, reference = resource["metadata"], resource["spec"]["clusterRef"]
        namespace = reference.get("namespace") or metadata["namespace"]
        place = f"MemoryCluster {namespace}/{reference['name']}"
        try:
            body = await self._kube.fetch(MEMORY_CLUSTERS, namespace, reference["name"])
            tenant, spec = TenantSpec.from_resource(resource), ClusterSpec.from_resource(body)
        except ApiNotFound:
            return f"nothing was erased: there is no {place}"
        except BadSpec as error:
            return Wait("BadSpec", f"not erased: {error}", NOWHERE_S, is_fault=True)
        if "deletionTimestamp" in body["metadata"]:
            return f"nothing was erased: {place} is going, and its volumes with it or not, as its reclaimPolicy says"
        if spec.paused:
            return Wait("Paused", f"not erased: {place} is paused", NOWHERE_S)
        subject = Subject(tenant, spec, await self._see(body, spec), tenant.policy())
        try:
            erased = await erasure.erase(
                self._kube, self._leadership.held(), spec, subject.seen, subject.role, subject.database
            )
        except LostLease:
            raise
        except OperatorError as error:
            way = 'to let it go unerased: kubectl patch mt --type merge -p \'{"spec":{"reclaimPolicy":"Retain"}}\''
            return Wait(type(error).__name__, f"not erased yet: {error} ({way})", NOWHERE_S, is_fault=True)
        memories = "what was left of the memories" if erased is None else f"{erased} memories"
        return f"{memories} of {metadata['name']} erased from {len(spec.shards)} shards, with keys and role"

    async def _observe(self, subject: Subject, resource: Manifest) -> TenantObserved:
        name, namespace = tenant_objects(subject.tenant.name), subject.tenant.namespace
        secret, config = await asyncio.gather(
            self._kube.find(OWNED["Secret"], namespace, name), self._kube.find(OWNED["ConfigMap"], namespace, name)
        )
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
            members=members_of(subject.cluster),
            has_cache_user=await self._has_cache_user(subject, secret),
        )

    async def _ask(self, subject: Subject, shard_id: str) -> OnShard | Silence:
        try:
            logins = await admins_of(self._kube, subject.cluster, subject.seen, shard_id)
            ask = partial(
                tenancy.fetch_tenant,
                database=subject.database,
                role=subject.role,
                audit_retention_s=subject.policy.audit_retention_s,
            )
            return await first_answer(logins, ask)
        except OperatorError as error:
            return Silence(str(error))

    async def _has_cache_user(self, subject: Subject, secret: Manifest | None) -> bool:
        stored = read_tenant_secret(secret)
        if subject.cache is None:
            return True
        if stored is None or stored.credentials.cache is None:
            return False
        try:
            return await cache.has_user(subject.cache, subject.role, stored.credentials.cache.passwords)
        except CacheRefused:
            return False  # whoever makes the user is told why it cannot
        except CacheUnreachable as error:
            log.info("cache not asked", extra={"reason": str(error)})
            return True

    async def _files(self, subject: Subject, resource: Manifest, seen: TenantObserved) -> Files:
        """What the tenant's Secret and ConfigMap are to say. Raises OperatorError."""
        term, spec = self._leadership.held(), subject.cluster
        wrapping_key = credentials_of(subject.seen).key
        owner = Owner(spec.namespace, spec.name, subject.seen.metadata["uid"])
        request = (resource["metadata"].get("annotations") or {}).get(ROTATE_KEY_ANNOTATION, "")
        place = KeyPlace(spec, owner, subject.role, wrapping_key)
        published = int(((resource.get("status") or {}).get("published") or {}).get("keys") or 0)
        kept = await keep_keyring(self._kube, term, place, request, read_tenant_keys(seen.own_secret), published)
        stored = read_tenant_secret(seen.own_secret)
        marks = [told.mark for told in seen.told if told.is_current]
        asked = self._asked(resource, secrets.token_hex(PASSWORD_BYTES))
        planned = plan_login(subject.role, stored, asked, marks)
        user = None
        if subject.cache is not None:
            words = cache_passwords(planned.stored.credentials.passwords)
            user = CacheLogin(subject.cache.url, subject.role, words)
        login = placed(planned, stored, ca_of(subject.seen, spec), user)
        return Files(login, kept.ring, subject.policy, kept.refusal)

    def _asked(self, resource: Manifest, fresh: str) -> Asked:
        request = (resource["metadata"].get("annotations") or {}).get(ROTATE_ANNOTATION, "")
        return Asked(request, fresh, self._wall_clock(), self._terms.file_grace_s)

    async def _end(self, tenant: TenantSpec, resource: Manifest, done: tuple[Step, ...], ended: TenantRound) -> Outcome:
        now_s = self._wall_clock()
        reports = {each.pod: each for each in ended.reports}
        watched = await self._watchdog.look(
            tenant, resource, ended.published, reports, is_served=ended.files is not None
        )
        status = build_tenant_status(tenant, resource, ended, now_s)
        await self._report(resource, watched.added_to(status, resource, now_s))
        waits, lines = (*ended.waits, *watched.waits), (*map(str, done), *watched.done)
        # Who changes its own login again and again is set right once a minute.
        is_acting = any(not isinstance(step, MendLogin) for step in done)
        pauses = [wait.seconds for wait in waits] or [SOON_S if is_acting else MEASURE_S]
        if ended.files is not None:
            pauses.append(rotation_left_s(ended.files.login, self._asked(resource, "")) or MEASURE_S)
        if watched.again_s is not None:
            pauses.append(watched.again_s)
        result: Result = "acted" if lines else "waiting" if waits else "settled"
        return Outcome(result, min(pauses), lines, tuple(wait.message for wait in waits))

    async def _report(self, resource: Manifest, status: dict[str, Any]) -> None:
        await write_status(self._kube, self._leadership.held(), (MEMORY_TENANTS, TENANT_KIND), resource, status)


def _about(resource: Manifest) -> About:
    return About.of({"apiVersion": API_VERSION, "kind": TENANT_KIND} | resource)
