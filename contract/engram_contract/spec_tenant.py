"""MemoryTenant: what a user asks for one tenant, parsed once. The CRD says the same to the API server.

Promises: a TenantSpec keeps every rule that the CRD keeps without looking at the old object, however it was made;
`check_change` keeps those that look at it. Pure; standard library only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Annotated, Final

from engram_contract.caching import DEFAULT_CACHING, Caching
from engram_contract.kinds import Bytes, Duration, Items, Text, Whole
from engram_contract.names import TENANT_KIND
from engram_contract.parse import Choice
from engram_contract.policy import (
    ALLOWED_AGENTS,
    AUDITED_DUTIES,
    DAY_S,
    HTTP_URL,
    LABEL,
    MAX_DIMENSIONS,
    PLAN_QUOTAS,
    Agent,
    Duty,
    Embedder,
    Framework,
    Isolation,
    Plan,
    Policy,
    Quota,
    strictest,
)
from engram_contract.resilience import Resilience
from engram_contract.resource import BadSpec, read_resource
from engram_contract.shardmap import DEFAULT_RESIDENCY, RESIDENCY
from engram_contract.spec_parts import TIB, SecretKeyRef

MAX_TENANT_NAME_CHARS: Final = 63
MEGABYTE: Final = 10**6


class ReclaimPolicy(StrEnum):
    """What becomes of the memories when the tenant is deleted."""

    RETAIN = "Retain"
    DELETE = "Delete"


@dataclass(frozen=True, slots=True)
class ClusterRef:
    """The cluster that keeps the tenant's memories; without a namespace, the tenant's own."""

    name: Annotated[str, LABEL]
    namespace: Annotated[str | None, LABEL] = None


@dataclass(frozen=True, slots=True)
class QuotaSpec:
    """What differs from the plan's quota; None is the plan's number."""

    memories: Annotated[int | None, Whole(1, 1_000_000_000)] = None
    storage_bytes: Annotated[int | None, Bytes(MEGABYTE, 64 * TIB)] = None
    requests_per_second: Annotated[int | None, Whole(1, 100_000)] = None


@dataclass(frozen=True, slots=True)
class Encryption:
    """Encryption of content and values at rest, with a key of the tenant's own."""

    enabled: bool = True


@dataclass(frozen=True, slots=True)
class Audit:
    """The log of every operation, without contents."""

    enabled: bool = True
    retention_s: Annotated[int, Duration()] = 365 * DAY_S


@dataclass(frozen=True, slots=True)
class Embedding:
    """The model that turns text into vectors, behind an OpenAI-compatible URL."""

    url: Annotated[str, HTTP_URL]
    model: Annotated[str, Text(256)]
    dimensions: Annotated[int, Whole(1, MAX_DIMENSIONS)]
    secret_ref: SecretKeyRef | None = None


@dataclass(frozen=True, slots=True)
class Watchdog:
    """What happens to pods of the tenant that have no sidecar and should, or one that serves by something old."""

    enabled: bool = True
    restart: bool = False

    def __post_init__(self) -> None:
        if self.restart and not self.enabled:
            raise BadSpec("restart", "needs enabled: who does not look cannot restart")


class SidecarUpgrade(StrEnum):
    """When a running pod gets a newer sidecar."""

    ON_RECREATE = "OnRecreate"
    IN_PLACE = "InPlace"


@dataclass(frozen=True, slots=True)
class SidecarSpec:
    """How the tenant's sidecars are kept."""

    upgrade: SidecarUpgrade = SidecarUpgrade.ON_RECREATE


@dataclass(frozen=True, slots=True)
class TenantSpec:
    """A whole MemoryTenant."""

    namespace: Annotated[str, LABEL]
    name: Annotated[str, LABEL]
    cluster_ref: ClusterRef
    isolation: Isolation = Isolation.STRICT
    plan: Plan = Plan.FREE
    quota: QuotaSpec = field(default_factory=QuotaSpec)
    retention_s: Annotated[int, Duration()] = 30 * DAY_S
    encryption: Encryption = field(default_factory=Encryption)
    audit: Audit = field(default_factory=Audit)
    compliance: Annotated[tuple[Framework, ...], Items(Choice(Framework), len(Framework), key="")] = ()
    allowed_agents: Annotated[tuple[Agent, ...], ALLOWED_AGENTS] = ()
    residency: Annotated[str, RESIDENCY] = DEFAULT_RESIDENCY
    embedding: Embedding | None = None
    reclaim_policy: ReclaimPolicy = ReclaimPolicy.RETAIN
    watchdog: Watchdog = field(default_factory=Watchdog)
    sidecar: SidecarSpec = field(default_factory=SidecarSpec)
    resilience: Resilience = field(default_factory=Resilience)

    @classmethod
    def from_resource(cls, body: object) -> "TenantSpec":
        """The tenant of a whole resource; raises BadSpec with the path of the first member that is wrong."""
        return read_resource(cls, body, TENANT_KIND, MAX_TENANT_NAME_CHARS)

    def __post_init__(self) -> None:
        duties = strictest(self.retention_s, self.compliance).duties
        if Duty.ENCRYPTION in duties and not self.encryption.enabled:
            raise BadSpec("encryption.enabled", "HIPAA and PCI-DSS demand encryption")
        if duties & AUDITED_DUTIES and not self.audit.enabled:
            raise BadSpec("audit.enabled", "HIPAA, SOX and PCI-DSS demand the audit log")
        if self.cluster_ref.namespace is None:
            object.__setattr__(self, "cluster_ref", replace(self.cluster_ref, namespace=self.namespace))

    def policy(
        self,
        plans: Mapping[Plan, Quota] = PLAN_QUOTAS,
        generation: int = 0,
        created_s: int = 0,
        cache: Caching = DEFAULT_CACHING,
    ) -> Policy:
        """What the tenant's sidecars must know, with every default resolved.

        `generation` and `created_s` (Unix seconds) are the resource's, `cache` is its cluster's.
        """
        planned = plans[self.plan]
        quota = Quota(
            memories=self.quota.memories or planned.memories,
            storage_bytes=self.quota.storage_bytes or planned.storage_bytes,
            requests_per_second=self.quota.requests_per_second or planned.requests_per_second,
        )
        model = self.embedding
        return Policy(
            namespace=self.namespace,
            name=self.name,
            isolation=self.isolation,
            plan=self.plan,
            quota=quota,
            retention_s=strictest(self.retention_s, self.compliance).retention_s,
            audit_retention_s=strictest(self.audit.retention_s, self.compliance).retention_s,
            encryption=self.encryption.enabled,
            audit=self.audit.enabled,
            compliance=self.compliance,
            allowed_agents=self.allowed_agents,
            residency=self.residency,
            embedder=Embedder(model.url, model.model, model.dimensions) if model else None,
            generation=generation,
            created_s=created_s,
            resilience=self.resilience,
            cache=cache,
        )

    def check_change(self, old: "TenantSpec") -> None:
        """Nothing; raises BadSpec if this cannot follow on `old`: its memories would be out of reach."""
        if self.cluster_ref != old.cluster_ref:
            raise BadSpec("spec.clusterRef", "cannot change: export the memories and import them into a new tenant")
        if self.isolation is not old.isolation:
            raise BadSpec("spec.isolation", "cannot change: it says which database the memories lie in")
        if self.embedding and old.embedding and _space(self.embedding) != _space(old.embedding):
            raise BadSpec("spec.embedding", "model and dimensions cannot change: stored vectors are of the old ones")


def _space(embedding: Embedding) -> tuple[str, int]:
    return embedding.model, embedding.dimensions
