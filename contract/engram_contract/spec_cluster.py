"""MemoryCluster: what a user asks of the shards, parsed once. The CRD says the same to the API server.

Promises: a ClusterSpec keeps every rule that the CRD keeps without looking at the old object, however it was made;
`check_change` keeps those that look at it. Pure; standard library only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Final

from engram_contract.kinds import Items, Text, Whole
from engram_contract.names import CLUSTER_KIND
from engram_contract.parse import Section
from engram_contract.policy import LABEL
from engram_contract.resource import BadSpec, read_resource
from engram_contract.shardmap import (
    DEFAULT_RESIDENCY,
    MAX_NODES,
    MAX_SHARDS,
    MAX_WEIGHT,
    RESIDENCY,
    ShardState,
    Strategy,
)
from engram_contract.spec_parts import (
    Access,
    Backup,
    Cache,
    Pooler,
    Postgres,
    Scheduling,
    SecretKeyRef,
    Storage,
    Sweeps,
    UpdatePolicy,
)

# Pods and Services are called <cluster>-<shard>-<what>, and the longest of these must stay a label: 63 characters.
MAX_CLUSTER_NAME_CHARS: Final = 40
SPEC_SHARD_ID: Final = Text(4, r"^s(0|[1-9][0-9]{0,2})$", "the id of a shard, s0 to s127")


class Provider(StrEnum):
    """Who runs the databases: Engram, or someone else whose addresses are given."""

    MANAGED = "Managed"
    EXTERNAL = "External"


@dataclass(frozen=True, slots=True)
class ShardOverride:
    """What differs for one shard from the usual."""

    id: Annotated[str, SPEC_SHARD_ID]
    weight: Annotated[int, Whole(0, MAX_WEIGHT)] = 1
    state: ShardState = ShardState.ACTIVE
    residency: Annotated[str, RESIDENCY] = DEFAULT_RESIDENCY


@dataclass(frozen=True, slots=True)
class ExternalShard:
    """Where the address of one shard of an External cluster stands."""

    id: Annotated[str, SPEC_SHARD_ID]
    secret_ref: SecretKeyRef


@dataclass(frozen=True, slots=True)
class ShardSpec:
    """One shard as it is asked for, with nothing left to look up."""

    id: str
    weight: int = 1
    state: ShardState = ShardState.ACTIVE
    residency: str = DEFAULT_RESIDENCY


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """A whole MemoryCluster."""

    namespace: Annotated[str, LABEL]
    name: Annotated[str, LABEL]
    shards_count: Annotated[int, Whole(1, MAX_SHARDS, suffix="_count")] = 1
    replicas: Annotated[int, Whole(0, MAX_NODES - 1)] = 1
    sharding_strategy: Strategy = Strategy.USER
    shard_overrides: Annotated[tuple[ShardOverride, ...], Items(Section(ShardOverride), MAX_SHARDS, key="id")] = ()
    provider: Provider = Provider.MANAGED
    external: Annotated[tuple[ExternalShard, ...], Items(Section(ExternalShard), MAX_SHARDS, key="id")] = ()
    storage: Storage = field(default_factory=Storage)
    postgres: Postgres = field(default_factory=Postgres)
    scheduling: Scheduling = field(default_factory=Scheduling)
    update_policy: UpdatePolicy = UpdatePolicy.ON_CHANGE
    pooler: Pooler = field(default_factory=Pooler)
    cache: Cache = field(default_factory=Cache)
    backup: Backup = field(default_factory=Backup)
    retention: Sweeps = field(default_factory=Sweeps)
    access: Access = field(default_factory=Access)
    deletion_protection: bool = True
    paused: bool = False
    plan_only: bool = False

    @classmethod
    def from_resource(cls, body: object) -> "ClusterSpec":
        """The cluster of a whole resource; raises BadSpec with the path of the first member that is wrong."""
        return read_resource(cls, body, CLUSTER_KIND, MAX_CLUSTER_NAME_CHARS)

    def __post_init__(self) -> None:
        self._refuse_strangers("shardOverrides", [override.id for override in self.shard_overrides])
        self._refuse_strangers("external", [shard.id for shard in self.external])
        needed = self.shards_count if self.provider is Provider.EXTERNAL else 0
        if len(self.external) != needed:
            raise BadSpec("external", f"provider {self.provider} needs {needed} entries, one for each shard it names")
        if not any(shard.state is ShardState.ACTIVE and shard.weight > 0 for shard in self.shards):
            raise BadSpec("shardOverrides", "at least one shard must be Active with a weight above 0")

    @property
    def shards(self) -> tuple[ShardSpec, ...]:
        """Every shard, s0 first, with its override applied."""
        overrides = {override.id: override for override in self.shard_overrides}
        return tuple(_shard(f"s{index}", overrides) for index in range(self.shards_count))

    @property
    def strategy(self) -> Strategy:
        """What a memory's slot is made of."""
        return self.sharding_strategy

    def admits(self, namespace: str, labels: Mapping[str, str]) -> bool:
        """True if tenants of this namespace, which has these labels, may use the cluster."""
        selector = self.access.namespace_selector
        return namespace == self.namespace or (selector is not None and selector.matches(labels))

    def check_change(self, old: "ClusterSpec") -> None:
        """Nothing; raises BadSpec if this cannot follow on `old`: it would lose data or the way to it."""
        storage, before = self.storage, old.storage
        refusals = (
            (
                "spec.shardingStrategy",
                self.sharding_strategy is not old.sharding_strategy,
                "cannot change: stored memories keep the slots it gave them",
            ),
            ("spec.provider", self.provider is not old.provider, "cannot change: restore a backup into a new cluster"),
            ("spec.storage.size", storage.size_bytes < before.size_bytes, "a volume cannot shrink"),
            (
                "spec.storage.storageClassName",
                storage.storage_class_name != before.storage_class_name,
                "cannot change: a volume keeps its class",
            ),
            (
                "spec.postgres.version",
                self.postgres.version < old.postgres.version,
                "cannot go back: an older Postgres does not open the data of a newer one",
            ),
        )
        for path, is_refused, reason in refusals:
            if is_refused:
                raise BadSpec(path, reason)

    def _refuse_strangers(self, path: str, ids: list[str]) -> None:
        for index, shard_id in enumerate(ids):
            if int(shard_id[1:]) >= self.shards_count:
                raise BadSpec(f"{path}[{index}].id", f"{shard_id} is none of the {self.shards_count} shards")


def _shard(shard_id: str, overrides: Mapping[str, ShardOverride]) -> ShardSpec:
    override = overrides.get(shard_id)
    if override is None:
        return ShardSpec(shard_id)
    return ShardSpec(shard_id, override.weight, override.state, override.residency)
