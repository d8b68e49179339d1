"""The steps that make secrets or go to a database: what `execute` hands on.

Promise: each may be repeated. Passwords are made once, in a create that a second operator loses; everything after reads
them from there.
"""

import math
import secrets
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Final

from engram_contract.names import PROTECTED_LABEL, SHARED_DATABASE
from engram_contract.spec import ClusterSpec, Provider
from engram_operator.certificates import changed_certificates
from engram_operator.clients import postgres, roles, x509
from engram_operator.clients.connection import Admin
from engram_operator.clients.kube import SECRETS, Kube
from engram_operator.clients.postgres import ShardIdentity
from engram_operator.clients.sealing import new_key
from engram_operator.errors import OperatorError
from engram_operator.leadership import Term
from engram_operator.manifests.credentials import RESTAPI_USER, Credentials, build_credentials_secret, build_keys_secret
from engram_operator.manifests.meta import Owner
from engram_operator.manifests.names import ClusterNames
from engram_operator.plan.certificates import Step
from engram_operator.plan.drift import stamped
from engram_operator.plan.migrations import MigrationConflict
from engram_operator.plan.observed import Observed
from engram_operator.plan.roles import marks_of, passwords_of
from engram_operator.reconcile.execute import FIELD_MANAGER, Hands
from engram_operator.reconcile.observe import admins_of, first_answer, logins_of

PASSWORD_BYTES: Final = 32
YOUNG_S: Final = 86_400.0  # a certificate that is older was read by every member long ago


def hands_for(kube: Kube, term: Term, spec: ClusterSpec, seen: Observed) -> Hands:
    """Everything that the plan of one round may ask for."""
    return Hands(
        kube=kube,
        term=term,
        namespace=spec.namespace,
        cluster=spec.name,
        restapi=partial(_restapi, seen),
        make_credentials=partial(make_credentials, kube, term, spec, seen),
        turn_certificates=partial(turn_certificates, kube, term, spec, seen),
        prepare_shard=partial(prepare_shard, kube, spec, seen),
        turn_roles=partial(turn_roles, kube, spec, seen),
        retire_roles=partial(retire_roles, kube, spec, seen),
        rotate_credentials=partial(rotate_credentials, kube, term, spec, seen),
    )


def new_credentials() -> Credentials:
    """Passwords that nobody had before."""
    word = partial(secrets.token_urlsafe, PASSWORD_BYTES)
    return Credentials(
        cluster_id=secrets.token_hex(16),
        superuser=word(),
        letter="a",
        replication=word(),
        rewind=word(),
        restapi=word(),
        pooler=word(),
        redis=word(),
        key=new_key(),
    )


async def make_credentials(kube: Kube, term: Term, spec: ClusterSpec, seen: Observed) -> None:
    """The Secret is there. Raises ApiConflict if another operator was faster, ApiError."""
    manifest = build_credentials_secret(spec, Owner(spec.namespace, spec.name, seen.metadata["uid"]), new_credentials())
    # What a create gives no later apply takes away again: owner and protection come with the first apply.
    manifest["metadata"].pop("ownerReferences", None)
    manifest["metadata"]["labels"].pop(PROTECTED_LABEL, None)
    await kube.create(SECRETS, spec.namespace, manifest, timeout_s=term.check())


async def turn_certificates(kube: Kube, term: Term, spec: ClusterSpec, seen: Observed, step: str) -> None:
    """The Secret of the CA after this step. Raises ApiError."""
    names = ClusterNames(spec.name, spec.namespace)
    secret = seen.live("Secret", names.ca)
    data = x509.decoded((secret or {}).get("data"))
    # Where the CA's Secret is lost, members still serve what they have: its CA stays trusted beside the new one.
    served = x509.decoded((seen.live("Secret", names.tls) or {}).get("data"))
    bundle = data.get(x509.BUNDLE_KEY) or served.get(x509.BUNDLE_KEY, b"")
    data = changed_certificates(Step(step), data, bundle, names.dns_names, time.time())
    manifest = build_keys_secret(spec, Owner(spec.namespace, spec.name, seen.metadata["uid"]), data)
    if secret is not None:
        manifest["metadata"]["resourceVersion"] = secret["metadata"]["resourceVersion"]
    await kube.apply(SECRETS, manifest, f"{FIELD_MANAGER}-certificates", timeout_s=term.check())


async def prepare_shard(kube: Kube, spec: ClusterSpec, seen: Observed, shard_id: str) -> None:
    """The shard's shared database has this version's schema. Raises OperatorError."""
    admin = await login(kube, spec, seen, shard_id)
    identity = ShardIdentity(credentials_of(seen).cluster_id, shard_id)
    try:
        if spec.provider is Provider.MANAGED:
            await postgres.close_databases(admin)
        await postgres.migrate(admin, SHARED_DATABASE, identity)
        if spec.pooler.enabled and spec.provider is Provider.MANAGED:
            await roles.keep_pooler(admin)
    except MigrationConflict as error:
        raise OperatorError(str(error)) from error


async def login(kube: Kube, spec: ClusterSpec, seen: Observed, shard_id: str) -> Admin:
    """A login that the shard's primary takes now. Raises OperatorError."""

    async def taken(admin: Admin) -> Admin:
        await postgres.ping(admin)
        return admin

    return await first_answer(await admins_of(kube, spec, seen, shard_id), taken)


async def rotate_credentials(kube: Kube, term: Term, spec: ClusterSpec, seen: Observed, request: str) -> None:
    """The Secret holds new passwords beside the superuser's old one. Raises ApiConflict if somebody wrote it since."""
    old = credentials_of(seen)
    fresh = new_credentials()
    rotated = replace(
        old,
        letter="b" if old.letter == "a" else "a",
        superuser=fresh.superuser,
        superuser_previous=old.superuser,
        replication=fresh.replication,
        rewind=fresh.rewind,
        rotation=request,
    )
    await _change_credentials(kube, term, spec, seen, rotated)


async def complete_credentials(kube: Kube, term: Term, spec: ClusterSpec, seen: Observed) -> None:
    """A cluster from before there were keys of data has one to wrap them. Raises ApiConflict."""
    await _change_credentials(kube, term, spec, seen, replace(credentials_of(seen), key=new_key()))


async def _change_credentials(
    kube: Kube, term: Term, spec: ClusterSpec, seen: Observed, credentials: Credentials
) -> None:
    """The Secret holds these, over the version that was seen."""
    owner = Owner(spec.namespace, spec.name, seen.metadata["uid"])
    manifest = stamped(build_credentials_secret(spec, owner, credentials))
    live = seen.live("Secret", manifest["metadata"]["name"]) or {}
    manifest["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"]
    await kube.apply(SECRETS, manifest, FIELD_MANAGER, timeout_s=term.check())


async def turn_roles(kube: Kube, spec: ClusterSpec, seen: Observed, shard_id: str) -> None:
    """The shard's own roles are those of the credentials. Raises OperatorError."""
    credentials = credentials_of(seen)
    admin = await login(kube, spec, seen, shard_id)
    await roles.keep_roles(admin, passwords_of(credentials), marks_of(credentials))


async def retire_roles(kube: Kube, spec: ClusterSpec, seen: Observed, shard_id: str, names: tuple[str, ...]) -> None:
    """Nobody logs in as these any more. Raises OperatorError."""
    await roles.retire_roles(await login(kube, spec, seen, shard_id), names)


def serving_age_s(spec: ClusterSpec, seen: Observed) -> float:
    """The seconds since the certificate was made that members are to serve; endless where there is none."""
    served = seen.certificates.serving if seen.certificates else None
    return math.inf if served is None or not spec.postgres.tls.enabled else served.age_s(seen.now_s)


async def refresh_certificates(spec: ClusterSpec, seen: Observed) -> tuple[str, ...]:
    """The members that were told to read a newer certificate. While one is young all are asked: the kubelet is slow."""
    if serving_age_s(spec, seen) > YOUNG_S or seen.credentials is None:
        return ()
    told = []
    for shard_id in seen.shards_present():
        for member in seen.members(shard_id):
            if member.is_healthy and member.has_tls:
                present, *_ = logins_of(spec, seen, shard_id, member)
                with suppress(OperatorError):  # one that does not answer is asked again at the next round
                    told += [member.name] if await roles.reread_certificate(present) else []
    return tuple(told)


def credentials_of(seen: Observed) -> Credentials:
    """The cluster's passwords and keys. Raises OperatorError while there are none."""
    if seen.credentials is None:
        raise OperatorError("the cluster has no credentials yet")
    return seen.credentials


def _restapi(seen: Observed) -> tuple[str, str]:
    return RESTAPI_USER, credentials_of(seen).restapi
