"""A MemoryCluster and all that belongs to it, read whole and once, into one frozen `Observed`.

Promises
1. Reads only. What belongs to the cluster is found by its label, so a Service that somebody deleted is seen as missing.
2. A database that does not answer is a Silence with the reason, and takes nobody else's answer away.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final, TypeVar

from engram_contract.names import CLUSTER_LABEL, POSTGRES_PORT, REDIS_PORT
from engram_contract.redisurl import RedisLogin, RedisPlace
from engram_contract.spec import BadSpec, CacheProvider, ClusterSpec, Provider, SecretKeyRef, TenantSpec
from engram_operator.clients import x509
from engram_operator.clients.connection import Admin
from engram_operator.clients.dsn import admin_of
from engram_operator.clients.facts import fetch_facts, fetch_loaded
from engram_operator.clients.kube import (
    MEMORY_CLUSTERS,
    MEMORY_TENANTS,
    NAMESPACES,
    OWNED,
    SECRETS,
    STORAGE_CLASSES,
    Kube,
    Manifest,
)
from engram_operator.errors import ApiNotFound, BadCertificate, BadDsn, CacheRefused, LoginRefused, OperatorError
from engram_operator.manifests.credentials import SUPERUSER, Credentials
from engram_operator.manifests.names import ClusterNames
from engram_operator.manifests.redis import OPERATOR_USER
from engram_operator.plan.certificates import Stored
from engram_operator.plan.members import Member, primary_of
from engram_operator.plan.observed import SILENT, Database, Loaded, Observed, Silence, TenantSeen

Key = tuple[str, str]
T = TypeVar("T")
CODES: Final[Mapping[type[OperatorError], str]] = {BadDsn: "BadDsn", LoginRefused: "LoginRefused"}


async def observe_cluster(kube: Kube, resource: Manifest, spec: ClusterSpec, clock: Callable[[], float]) -> Observed:
    """All that there is of a cluster. `clock` gives Unix seconds. Raises ApiError."""
    objects, namespace, siblings, classes, tenants = await asyncio.gather(
        _fetch_objects(kube, spec, tuple(OWNED)),
        kube.fetch(NAMESPACES, None, spec.namespace),
        kube.fetch_all(MEMORY_CLUSTERS, spec.namespace),
        kube.fetch_all(STORAGE_CLASSES, None),
        fetch_tenants(kube, spec),
    )
    names = ClusterNames(spec.name, spec.namespace)
    credentials, fault = read_credentials(objects.get(("Secret", names.credentials)))
    certificates = _read_certificates(objects.get(("Secret", names.ca)))
    seen = Observed(
        resource=resource,
        objects=objects,
        databases={},
        namespace=namespace,
        has_protected_sibling=any(_is_protected(each) for each in siblings if each["metadata"]["name"] != spec.name),
        expandable={each["metadata"]["name"]: bool(each.get("allowVolumeExpansion")) for each in classes},
        credentials=credentials,
        certificates=certificates,
        tenants=tenants,
        now_s=clock(),
        credentials_fault=fault,
    )
    databases, loaded = await asyncio.gather(_ask_databases(kube, spec, seen), _ask_members(spec, seen))
    return seen.with_answers(databases, loaded)


async def observe_shards(kube: Kube, resource: Manifest, spec: ClusterSpec, clock: Callable[[], float]) -> Observed:
    """Of a cluster only what it takes to reach its databases. Raises ApiError."""
    objects = await _fetch_objects(kube, spec, ("ConfigMap", "Pod", "Secret"))
    names = ClusterNames(spec.name, spec.namespace)
    return Observed(
        resource=resource,
        objects=objects,
        databases={},
        namespace={},
        has_protected_sibling=False,
        expandable={},
        credentials=read_credentials(objects.get(("Secret", names.credentials)))[0],
        certificates=None,
        tenants=(),
        now_s=clock(),
    )


async def fetch_tenants(kube: Kube, spec: ClusterSpec) -> tuple[TenantSeen, ...]:
    """The tenants that name this cluster, in every namespace."""
    found = []
    for body in await kube.fetch_all(MEMORY_TENANTS, None):
        try:
            tenant = TenantSpec.from_resource(body)
        except BadSpec:
            continue  # its own reconcile says so
        if (tenant.cluster_ref.namespace, tenant.cluster_ref.name) == (spec.namespace, spec.name):
            status = body.get("status") or {}
            slots = {each["id"]: int(each.get("slots") or 0) for each in status.get("shards") or ()}
            found.append(TenantSeen(tenant.namespace, tenant.name, int(status.get("mapEpoch") or 0), slots))
    return tuple(found)


def read_credentials(secret: Manifest | None) -> tuple[Credentials | None, str]:
    """The passwords of a Secret, None if there is none; and why they cannot be read, if so."""
    try:
        return None if secret is None else Credentials.from_data(secret.get("data") or {}), ""
    except ValueError as error:
        return None, str(error)


def ca_of(seen: Observed, spec: ClusterSpec) -> str:
    """The CAs by which the servers of a Managed cluster are judged, PEM; empty without TLS."""
    if not spec.postgres.tls.enabled:
        return ""
    return _bundle(seen, spec)


def _bundle(seen: Observed, spec: ClusterSpec) -> str:
    secret = seen.live("Secret", ClusterNames(spec.name, spec.namespace).ca) or {}
    return x509.decoded(secret.get("data")).get(x509.BUNDLE_KEY, b"").decode()


async def admins_of(kube: Kube, spec: ClusterSpec, seen: Observed, shard_id: str) -> tuple[Admin, ...]:
    """How the primary of a shard is asked: the present login, and the one before it while passwords change.

    Raises OperatorError if there is nobody to ask; the message says why.
    """
    if spec.provider is Provider.EXTERNAL:
        return (await _external_admin(kube, spec, shard_id),)
    names = ClusterNames(spec.name, spec.namespace).shard(shard_id)
    primary = primary_of(seen.members(shard_id), seen.leader(names.scope))
    if primary is None:
        raise OperatorError("it has no primary")
    return logins_of(spec, seen, shard_id, primary)


def logins_of(spec: ClusterSpec, seen: Observed, shard_id: str, member: Member) -> tuple[Admin, ...]:
    """How a member is asked: as it was made, not as the spec would have it by now. Raises OperatorError."""
    if seen.credentials is None:
        raise OperatorError("the cluster has no credentials")
    passwords = (seen.credentials.superuser, seen.credentials.superuser_previous)
    host = ClusterNames(spec.name, spec.namespace).shard(shard_id).host(member.ordinal)
    ca = _bundle(seen, spec) if member.has_tls else ""
    return tuple(Admin(host, POSTGRES_PORT, SUPERUSER, each, ca=ca, sslmode="disable") for each in passwords if each)


async def cache_of(kube: Kube, spec: ClusterSpec, seen: Observed) -> RedisLogin | None:
    """As whom the cluster's Redis is told of users; None if there is none, or nobody gave us a login.

    Raises CacheRefused for a Secret that is of no use, OperatorError.
    """
    if spec.cache.provider is CacheProvider.MANAGED:
        if seen.credentials is None:
            raise OperatorError("the cluster has no credentials yet")
        url = f"redis://{ClusterNames(spec.name, spec.namespace).redis_host}:{REDIS_PORT}"
        return RedisLogin(RedisPlace.from_url(url), url, OPERATOR_USER, seen.credentials.redis)
    if spec.cache.secret_ref is None:
        return None
    reference = spec.cache.secret_ref
    url = await _secret_text(kube, spec, reference, CacheRefused)
    try:
        return RedisLogin.from_url(url.strip())
    except ValueError as error:
        raise CacheRefused(f"key {reference.key} of Secret {reference.name} {error}") from None


async def _external_admin(kube: Kube, spec: ClusterSpec, shard_id: str) -> Admin:
    reference = next(each.secret_ref for each in spec.external if each.id == shard_id)
    return admin_of(await _secret_text(kube, spec, reference, BadDsn))


async def _secret_text(kube: Kube, spec: ClusterSpec, reference: SecretKeyRef, bad: type[OperatorError]) -> str:
    """What a user put there for us; `bad` says what is missing."""
    try:
        secret = await kube.fetch(SECRETS, spec.namespace, reference.name)
    except ApiNotFound as error:
        raise bad(f"Secret {reference.name} is not there") from error
    data = x509.decoded(secret.get("data"))
    if reference.key not in data:
        raise bad(f"Secret {reference.name} has no key {reference.key}")
    return data[reference.key].decode(errors="replace")


async def _ask_databases(kube: Kube, spec: ClusterSpec, seen: Observed) -> Mapping[str, Database | Silence]:
    wanted = {shard.id for shard in spec.shards}
    asked = sorted(wanted | {*seen.shards_present()})
    answers = await asyncio.gather(*(_ask(kube, spec, seen, each, is_wanted=each in wanted) for each in asked))
    return dict(zip(asked, answers, strict=True))


async def _ask(kube: Kube, spec: ClusterSpec, seen: Observed, shard_id: str, *, is_wanted: bool) -> Database | Silence:
    try:
        logins = await admins_of(kube, spec, seen, shard_id)
        told = await first_answer(logins, partial(fetch_facts, with_owned=not is_wanted))
    except OperatorError as error:
        return _silence_of(error, spec)
    # Of a Managed shard a fault is of the moment: a primary that has just become a standby.
    return Silence("; ".join(told.faults)) if told.faults and not spec.external else told


async def first_answer(logins: Iterable[Admin], ask: Callable[[Admin], Awaitable[T]]) -> T:
    """What the first login is told that is not refused. Raises OperatorError."""
    refused: OperatorError = OperatorError("nobody to ask")
    for admin in logins:
        try:
            return await ask(admin)
        except LoginRefused as error:
            refused = error
    raise refused


def _silence_of(error: OperatorError, spec: ClusterSpec) -> Silence:
    """What an External server's owner has to mend is a fault at once; in a Managed cluster it may be of the moment."""
    code = next((code for kind, code in CODES.items() if isinstance(error, kind)), SILENT)
    return Silence(str(error), code, lasts=spec.provider is Provider.EXTERNAL and code != SILENT)


async def _ask_members(spec: ClusterSpec, seen: Observed) -> Mapping[str, Loaded | Silence]:
    """With what each healthy member of a shard that is wanted runs."""
    if spec.provider is Provider.EXTERNAL or seen.credentials is None:
        return {}
    asked = {
        member.name: logins_of(spec, seen, shard.id, member)
        for shard in spec.shards
        for member in seen.members(shard.id)
        if member.is_healthy
    }
    settings = dict(spec.postgres.parameters)
    answers = await asyncio.gather(*(_ask_member(logins, settings) for logins in asked.values()))
    return dict(zip(asked, answers, strict=True))


async def _ask_member(logins: tuple[Admin, ...], settings: Mapping[str, str]) -> Loaded | Silence:
    try:
        return await first_answer(logins, partial(fetch_loaded, asked=settings))
    except OperatorError as error:
        return Silence(str(error))


async def _fetch_objects(kube: Kube, spec: ClusterSpec, kinds: tuple[str, ...]) -> Mapping[Key, Manifest]:
    selector = f"{CLUSTER_LABEL}={spec.name}"
    lists = await asyncio.gather(
        *(kube.fetch_labelled(resource, spec.namespace, selector) for resource in (OWNED[kind] for kind in kinds))
    )
    found: dict[Key, Manifest] = {}
    for kind, items in zip(kinds, lists, strict=True):
        for item in items:
            found[kind, item["metadata"]["name"]] = {**item, "apiVersion": OWNED[kind].api_version, "kind": kind}
    return found


def _read_certificates(secret: Manifest | None) -> Stored | None:
    try:
        return None if secret is None else x509.read_stored(x509.decoded(secret.get("data")))
    except BadCertificate:
        return None  # garbage is replaced, as if there were none


def _is_protected(resource: Mapping[str, Any]) -> bool:
    return resource["spec"].get("deletionProtection", True) and "deletionTimestamp" not in resource["metadata"]
