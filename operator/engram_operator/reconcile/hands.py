"""The steps that make secrets or go to a database: what `execute` hands on.

Promise: each may be repeated. Passwords are made once, in a create that a second operator loses; everything after reads
them from there.
"""

import secrets
import time
from functools import partial
from typing import Final

from engram_contract.names import SHARED_DATABASE
from engram_contract.spec import ClusterSpec, Provider
from engram_operator.certificates import changed_certificates
from engram_operator.clients import postgres, x509
from engram_operator.clients.connection import Admin
from engram_operator.clients.kube import SECRETS, Kube
from engram_operator.clients.postgres import ShardIdentity
from engram_operator.errors import LoginRefused, OperatorError
from engram_operator.leadership import Term
from engram_operator.manifests.credentials import RESTAPI_USER, Credentials, build_credentials_secret, build_keys_secret
from engram_operator.manifests.meta import Owner
from engram_operator.manifests.names import ClusterNames
from engram_operator.plan.certificates import Step
from engram_operator.plan.drift import stamped
from engram_operator.plan.migrations import MigrationConflict
from engram_operator.plan.observed import Observed
from engram_operator.reconcile.execute import FIELD_MANAGER, Hands
from engram_operator.reconcile.observe import admins_of

PASSWORD_BYTES: Final = 32


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
    )


async def make_credentials(kube: Kube, term: Term, spec: ClusterSpec, seen: Observed) -> None:
    """The Secret is there. Raises ApiConflict if another operator was faster, ApiError."""
    manifest = build_credentials_secret(spec, Owner(spec.namespace, spec.name, seen.metadata["uid"]), new_credentials())
    await kube.create(SECRETS, spec.namespace, stamped(manifest), timeout_s=term.check())


async def turn_certificates(kube: Kube, term: Term, spec: ClusterSpec, seen: Observed, step: str) -> None:
    """The Secret of the CA after this step. Raises ApiError."""
    names = ClusterNames(spec.name, spec.namespace)
    secret = seen.live("Secret", names.ca)
    data = x509.decoded((secret or {}).get("data"))
    bundle = data.get(x509.BUNDLE_KEY, b"")
    data = changed_certificates(Step(step), data, bundle, names.dns_names, time.time())
    manifest = build_keys_secret(spec, Owner(spec.namespace, spec.name, seen.metadata["uid"]), data)
    if secret is not None:
        manifest["metadata"]["resourceVersion"] = secret["metadata"]["resourceVersion"]
    await kube.apply(SECRETS, manifest, f"{FIELD_MANAGER}-certificates", timeout_s=term.check())


async def prepare_shard(kube: Kube, spec: ClusterSpec, seen: Observed, shard_id: str) -> None:
    """The shard's shared database has this version's schema. Raises OperatorError."""
    admin = await login(kube, spec, seen, shard_id)
    if seen.credentials is None:
        raise OperatorError("the cluster has no credentials yet")
    identity = ShardIdentity(seen.credentials.cluster_id, shard_id)
    try:
        if spec.provider is Provider.MANAGED:
            await postgres.close_databases(admin)
        await postgres.migrate(admin, SHARED_DATABASE, identity)
    except MigrationConflict as error:
        raise OperatorError(str(error)) from error


async def login(kube: Kube, spec: ClusterSpec, seen: Observed, shard_id: str) -> Admin:
    """A login that the shard's primary takes now. Raises OperatorError."""
    refused: OperatorError = OperatorError("nobody to ask")
    for admin in await admins_of(kube, spec, seen, shard_id):
        try:
            await postgres.ping(admin)
        except LoginRefused as error:
            refused = error
            continue
        return admin
    raise refused


async def turn_roles(kube: Kube, spec: ClusterSpec, seen: Observed, shard_id: str) -> None:
    """The shard's roles for replication are those of the credentials. Raises OperatorError."""
    raise NotImplementedError


def _restapi(seen: Observed) -> tuple[str, str]:
    if seen.credentials is None:
        raise OperatorError("the cluster has no credentials yet")
    return RESTAPI_USER, seen.credentials.restapi
