"""A cluster whole, and one of its shards whole: every object, in the order in which they are applied.

Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from engram_contract.spec_cluster import ClusterSpec, Provider
from engram_contract.spec_parts import CacheProvider
from engram_operator.manifests.access import build_access
from engram_operator.manifests.credentials import (
    Credentials,
    KeyPair,
    build_credentials_secret,
    build_patroni_secret,
    build_tls_secret,
)
from engram_operator.manifests.meta import POSTGRES, Manifest, Owner, build_labels
from engram_operator.manifests.names import ClusterNames
from engram_operator.manifests.network import build_redis_policy, build_shards_policy
from engram_operator.manifests.patroni import build_config, build_files
from engram_operator.manifests.postgres import build_statefulset
from engram_operator.manifests.redis import build_redis, build_redis_secret, build_redis_service
from engram_operator.manifests.services import build_disruption_budget, build_headless, build_services
from engram_operator.manifests.site import Site


@dataclass(frozen=True, slots=True)
class Present:
    """What there is of a cluster that its objects depend on.

    `certificate` is None without TLS; `members` is how many each shard has. `is_mixed`: TLS is wanted and some member
    was made without, so that nobody may demand it of others yet.
    """

    certificate: KeyPair | None
    members: Mapping[str, int]
    is_mixed: bool = False


def build_cluster(
    spec: ClusterSpec, owner: Owner, site: Site, credentials: Credentials, present: Present
) -> tuple[Manifest, ...]:
    """What the shards share, and the cache. An External cluster has no shards of ours."""
    names = ClusterNames(spec.name, spec.namespace)
    shared: tuple[Manifest, ...] = ()
    if spec.provider is Provider.MANAGED:
        shared = (
            *(() if present.certificate is None else (build_tls_secret(names, owner, present.certificate),)),
            build_patroni_secret(names, owner, credentials, has_tls=spec.postgres.tls.enabled and not present.is_mixed),
            *build_access(names, owner, present.members),
            build_headless(spec, names, owner),
            build_shards_policy(spec, names, owner, site),
        )
    cache: tuple[Manifest, ...] = ()
    if spec.cache.provider is CacheProvider.MANAGED:
        cache = (
            build_redis_secret(names, owner, credentials),
            build_redis_service(names, owner),
            build_redis_policy(spec, names, owner, site),
            build_redis(spec, names, owner, site),
        )
    return (build_credentials_secret(spec, owner, credentials), *shared, *cache)


def build_shard(spec: ClusterSpec, shard_id: str, owner: Owner, site: Site) -> tuple[Manifest, ...]:
    """One shard of a Managed cluster; the StatefulSet is the last."""
    names = ClusterNames(spec.name, spec.namespace).shard(shard_id)
    labels = build_labels(spec.name, POSTGRES, shard_id)
    return (
        build_files(spec, names, labels, owner),
        build_config(spec, names, owner),
        *build_services(spec, names, labels, owner),
        build_disruption_budget(names, labels, owner),
        build_statefulset(spec, names, labels, owner, site),
    )
