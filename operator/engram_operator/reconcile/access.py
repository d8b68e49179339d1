"""Whether a tenant's cluster admits it, and what is done where it does not, or not any more.

    not admitted --read again--> still not --> each shard: no login, no session; cache: no user. What is stored stays
    admitted again --> the tenant's plan finds that nobody may log in as it, and prepares its login

Promises
1. Only two looks at the API server that both say no shut a tenant out. What cannot be read shuts out nobody.
2. A shard that is silent is asked again at the next look, all that are shut every LOOK_S: one may be opened by hand.
3. A tenant that never had keys in the cluster costs its shards nothing: anybody may make a MemoryTenant.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from engram_contract.names import tenant_role
from engram_contract.spec import BadSpec, CacheProvider, ClusterSpec, TenantSpec
from engram_operator.clients import cache, logins
from engram_operator.clients.kube import MEMORY_CLUSTERS, NAMESPACES, SECRETS, Kube, Manifest
from engram_operator.errors import ApiNotFound, OperatorError
from engram_operator.leadership import Leadership
from engram_operator.manifests.tenant import key_secret
from engram_operator.plan.observed import Observed
from engram_operator.plan.steps import ShutOut, Wait
from engram_operator.reconcile.observe import admins_of, cache_of, first_answer, observe_shards
from engram_operator.reconcile.writing import left_s
from engram_operator.workqueue import Key

AGAIN_S: Final = 10.0
LOOK_S: Final = 60.0
CACHE: Final = "the cache"


@dataclass(frozen=True, slots=True)
class Found:
    """A tenant's cluster, parsed and as it was read."""

    spec: ClusterSpec
    body: Manifest
    is_admitted: bool

    @property
    def place(self) -> str:
        """The cluster as people name it."""
        return f"MemoryCluster {self.spec.namespace}/{self.spec.name}"


class Access:
    """Finds the clusters of tenants, and shuts out those that are not admitted, while we lead.

    `wall_clock` gives Unix seconds.
    """

    def __init__(self, kube: Kube, leadership: Leadership, wall_clock: Callable[[], float]) -> None:
        self._kube = kube
        self._leadership = leadership
        self._wall_clock = wall_clock
        self._shut_s: dict[Key, float] = {}  # when every shard was last seen to be shut

    def forget(self, key: Key) -> None:
        """The tenant is gone, or admitted."""
        self._shut_s.pop(key, None)

    async def find(self, tenant: TenantSpec) -> Found | Wait:
        """The tenant's cluster, or why there is none to go on with. Raises ApiError."""
        found = await self._look(tenant)
        if isinstance(found, Found) and not found.is_admitted:
            # Who changes both the selector and a namespace's labels is between the two for a moment.
            found = await self._look(tenant)
        return found

    async def _look(self, tenant: TenantSpec) -> Found | Wait:
        reference = tenant.cluster_ref
        place = f"MemoryCluster {reference.namespace}/{reference.name}"
        try:
            body = await self._kube.fetch(MEMORY_CLUSTERS, reference.namespace, reference.name)
            spec = ClusterSpec.from_resource(body)
        except ApiNotFound:
            return Wait("ClusterNotFound", f"spec.clusterRef: there is no {place}", AGAIN_S, is_fault=True)
        except BadSpec as error:
            return Wait("ClusterRefused", f"{place}: {error}", AGAIN_S, is_fault=True)
        labels: dict[str, str] = {}
        if tenant.namespace != spec.namespace:
            namespace = await self._kube.fetch(NAMESPACES, None, tenant.namespace)
            labels = namespace["metadata"].get("labels") or {}
        return Found(spec, body, spec.admits(tenant.namespace, labels))

    async def shut_out(self, key: Key, found: Found) -> tuple[tuple[ShutOut, ...], Wait]:
        """What was done so that nobody logs in as the tenant, and what its condition is to say.

        Raises ApiError, LostLease.
        """
        role = tenant_role(key.namespace, key.name)
        done: tuple[ShutOut, ...] = ()
        if found.spec.paused:
            said = "; its access does not end while the cluster is paused"
        elif not await self._had_access(found.spec, role):
            said = ""
        else:
            done, open_ = await self._shut(key, found, role)
            said = "; nobody can log in as the tenant any more, and its memories stay"
            if open_:
                said = f"; its access ends, and its memories stay; not yet on {'; '.join(open_)}"
        reason = f"{found.place} does not admit namespace {key.namespace} (its spec.access.namespaceSelector)"
        return done, Wait("NotAdmitted", f"spec.clusterRef: {reason}{said}", AGAIN_S, is_fault=True)

    async def _had_access(self, spec: ClusterSpec, role: str) -> bool:
        """Keys are made before a login is, and a tenant has no right to them."""
        return await self._kube.find(SECRETS, spec.namespace, key_secret(spec.name, role)) is not None

    async def _shut(self, key: Key, found: Found, role: str) -> tuple[tuple[ShutOut, ...], tuple[str, ...]]:
        """What was shut now, and where it could not be, with the reason."""
        now_s = self._wall_clock()
        if key in self._shut_s and abs(now_s - self._shut_s[key]) < LOOK_S:
            return (), ()
        seen = await observe_shards(self._kube, found.body, found.spec, self._wall_clock)
        left_s(self._leadership.held())
        names = [shard.id for shard in found.spec.shards]
        tasks = [self._shut_shard(found.spec, seen, each, role) for each in names]
        if found.spec.cache.provider is not CacheProvider.NONE:
            names.append(CACHE)
            tasks.append(self._shut_cache(found.spec, seen, role))
        answers = dict(zip(names, await asyncio.gather(*tasks), strict=True))
        open_ = tuple(f"{name}: {answer}" for name, answer in answers.items() if isinstance(answer, str))
        if not open_:
            self._shut_s[key] = now_s
        return tuple(ShutOut(role, name) for name, answer in answers.items() if answer is True), open_

    async def _shut_shard(self, spec: ClusterSpec, seen: Observed, shard_id: str, role: str) -> bool | str:
        """Whether there was something to shut; or why it could not be."""
        try:
            admins = await admins_of(self._kube, spec, seen, shard_id)
            return await first_answer(admins, partial(logins.shut_out, role=role))
        except OperatorError as error:
            return str(error)

    async def _shut_cache(self, spec: ClusterSpec, seen: Observed, role: str) -> bool | str:
        try:
            admin = await cache_of(self._kube, spec, seen)
            return admin is not None and await cache.remove_user(admin, role)
        except OperatorError as error:
            return str(error)
