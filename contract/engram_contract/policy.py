"""What a sidecar must know of its tenant: isolation, quota, retention, duties; and the limits of a request.

Promises
1. A Policy is complete: every default is resolved, so no reader needs the tenant's manifest beside it.
2. Where several compliance frameworks apply, the strictest rule wins: the longest retention, all duties together.
3. A retention of 0 s means kept until deleted; it is the longest of all.

Pure; standard library only. Source of the numbers: requirements 2.4, 2.5 and 4.3.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Annotated, Final

from engram_contract.caching import Caching
from engram_contract.kinds import LABEL_PATTERN, MAX_INT64, SUBDOMAIN_PATTERN, Items, Text, Whole
from engram_contract.parse import Choice, Refused, Section, read_document, write_document
from engram_contract.resilience import Resilience

DAY_S: Final = 86_400
FOREVER_S: Final = 0
MAX_AGENTS: Final = 256
MAX_DIMENSIONS: Final = 16_000  # of pgvector's type `vector`
MAX_CHARS: Final = 1 << 20  # what a ConfigMap holds; the largest valid policy has a tenth

LABEL: Final = Text(63, LABEL_PATTERN, "lower-case letters, digits and dashes")
SUBDOMAIN: Final = Text(253, SUBDOMAIN_PATTERN, "lower-case letters, digits, dashes and dots")
AGENT_PATTERN: Final = Text(
    63, r"^[a-z0-9*]([-a-z0-9*]*[a-z0-9*])?$", "lower-case letters, digits, dashes and * for any of these"
)
ACCOUNT_PATTERN: Final = Text(
    253, r"^[a-z0-9*]([-.a-z0-9*]*[a-z0-9*])?$", "lower-case letters, digits, dashes, dots and * for any of these"
)
HTTP_URL: Final = Text(
    2048,
    r"^https?://[-._:\[\]A-Za-z0-9]+(/[-._~!$&()*+,;=:@%/A-Za-z0-9]*)?$",
    "an http(s) URL without user, query and fragment",
)
_COUNT: Final = Whole(0, MAX_INT64)


class BadPolicy(Refused):
    """This is no valid policy: `path` names the member, `reason` says what is wrong with it."""


class Isolation(StrEnum):
    """How far a tenant's data lies apart from others', and its users' and agents' from each other."""

    STRICT = "Strict"
    MODERATE = "Moderate"
    MINIMAL = "Minimal"

    @property
    def separates_users(self) -> bool:
        """True if a user sees only that user's memories."""
        return self is not Isolation.MINIMAL

    @property
    def separates_agents(self) -> bool:
        """True if an agent sees only that agent's memories."""
        return self is Isolation.STRICT


class Plan(StrEnum):
    """What a tenant has booked: the source of the quotas that it does not set itself."""

    FREE = "Free"
    PRO = "Pro"
    ENTERPRISE = "Enterprise"


class Framework(StrEnum):
    """A body of rules that a tenant's data is under."""

    GDPR = "GDPR"
    HIPAA = "HIPAA"
    SOX = "SOX"
    PCI_DSS = "PCI-DSS"


class Duty(StrEnum):
    """Something that a framework demands."""

    ERASURE = "Erasure"
    PORTABILITY = "Portability"
    CONSENT = "Consent"
    ENCRYPTION = "Encryption"
    ACCESS_LOGGING = "AccessLogging"
    DATA_INTEGRITY = "DataIntegrity"
    IMMUTABLE_AUDIT = "ImmutableAudit"
    ACCESS_CONTROL = "AccessControl"
    CHANGE_TRACKING = "ChangeTracking"
    ACCESS_MONITORING = "AccessMonitoring"
    MASKING = "Masking"


@dataclass(frozen=True, slots=True)
class Obligation:
    """How long data is kept at least, in seconds (0: until deleted), and what is owed to it."""

    retention_s: int
    duties: frozenset[Duty]


OBLIGATIONS: Final[Mapping[Framework, Obligation]] = MappingProxyType(
    {
        Framework.GDPR: Obligation(365 * DAY_S, frozenset({Duty.ERASURE, Duty.PORTABILITY, Duty.CONSENT})),
        Framework.HIPAA: Obligation(
            2555 * DAY_S, frozenset({Duty.ENCRYPTION, Duty.ACCESS_LOGGING, Duty.DATA_INTEGRITY})
        ),
        Framework.SOX: Obligation(
            2555 * DAY_S, frozenset({Duty.IMMUTABLE_AUDIT, Duty.ACCESS_CONTROL, Duty.CHANGE_TRACKING})
        ),
        Framework.PCI_DSS: Obligation(365 * DAY_S, frozenset({Duty.ENCRYPTION, Duty.ACCESS_MONITORING, Duty.MASKING})),
    }
)
# Duties that the audit log fulfils: a tenant that owes one of them cannot turn the log off.
AUDITED_DUTIES: Final = frozenset(
    {Duty.ACCESS_LOGGING, Duty.IMMUTABLE_AUDIT, Duty.CHANGE_TRACKING, Duty.ACCESS_MONITORING}
)


def strictest(own_s: int, frameworks: Iterable[Framework]) -> Obligation:
    """The rule for one class of data: its own retention in seconds and every framework that it is under."""
    rules = [OBLIGATIONS[framework] for framework in frameworks]
    longest_s = max([own_s, *(rule.retention_s for rule in rules)])
    duties: frozenset[Duty] = frozenset().union(*(rule.duties for rule in rules))
    return Obligation(FOREVER_S if own_s == FOREVER_S else longest_s, duties)


@dataclass(frozen=True, slots=True)
class Quota:
    """What a tenant may store and ask. Over it a write is refused; an update of an existing key still goes.

    `requests_per_second` counts over all sidecars of the tenant; 0 is as many as come.
    """

    memories: Annotated[int, _COUNT]
    storage_bytes: Annotated[int, _COUNT]
    requests_per_second: Annotated[int, _COUNT]


PLAN_QUOTAS: Final[Mapping[Plan, Quota]] = MappingProxyType(
    {
        Plan.FREE: Quota(memories=100, storage_bytes=1_000_000_000, requests_per_second=10),
        Plan.PRO: Quota(memories=1_000, storage_bytes=1_000_000_000, requests_per_second=100),
        Plan.ENTERPRISE: Quota(memories=10_000, storage_bytes=1_000_000_000, requests_per_second=1_000),
    }
)

# Local mode serves its own user: only a rate that a manifest asks for itself is kept.
LOCAL_QUOTAS: Final[Mapping[Plan, Quota]] = MappingProxyType(
    {plan: replace(quota, requests_per_second=0) for plan, quota in PLAN_QUOTAS.items()}
)


@dataclass(frozen=True, slots=True)
class Agent:
    """Agents, and the ServiceAccounts whose pods may be them; the account of the agent's own name if none is given."""

    name: Annotated[str, AGENT_PATTERN]
    service_account: Annotated[str | None, ACCOUNT_PATTERN] = None

    def admits(self, agent: str, service_account: str) -> bool:
        """True if a pod of this ServiceAccount may be this agent."""
        account = agent if self.service_account is None else self.service_account
        return fnmatchcase(agent, self.name) and fnmatchcase(service_account, account)


ALLOWED_AGENTS: Final = Items(Section(Agent), MAX_AGENTS, key="name")


def is_admitted(allowed_agents: tuple[Agent, ...], agent: str, service_account: str) -> bool:
    """True if a pod of this ServiceAccount may be this agent. Without a list, an agent is its ServiceAccount."""
    if not allowed_agents:
        return agent == service_account
    return any(allowed.admits(agent, service_account) for allowed in allowed_agents)


@dataclass(frozen=True, slots=True)
class Embedder:
    """The model that turns text into vectors, behind an OpenAI-compatible URL. Its key is among the credentials."""

    url: Annotated[str, HTTP_URL]
    model: Annotated[str, Text(256)]
    dimensions: Annotated[int, Whole(1, MAX_DIMENSIONS)]


@dataclass(frozen=True, slots=True)
class Policy:
    """All that a sidecar must know of its tenant, resolved."""

    namespace: Annotated[str, LABEL]
    name: Annotated[str, LABEL]
    isolation: Isolation
    plan: Plan
    quota: Quota
    retention_s: Annotated[int, _COUNT]
    audit_retention_s: Annotated[int, _COUNT]
    encryption: bool
    audit: bool
    compliance: Annotated[tuple[Framework, ...], Items(Choice(Framework), len(Framework), key="")]
    allowed_agents: Annotated[tuple[Agent, ...], ALLOWED_AGENTS]
    residency: Annotated[str, LABEL]
    embedder: Embedder | None = None
    generation: Annotated[int, _COUNT] = 0  # of the MemoryTenant that it was made from
    created_s: Annotated[int, _COUNT] = 0  # when that was made, Unix seconds: one of the same name counts from 1 anew
    resilience: Resilience = field(default_factory=Resilience)
    cache: Caching = field(default_factory=Caching)

    @property
    def age(self) -> tuple[int, int]:
        """Which of two policies of one tenant is the newer: the greater one."""
        return self.created_s, self.generation

    @property
    def duties(self) -> frozenset[Duty]:
        """What the tenant's frameworks demand."""
        return strictest(self.retention_s, self.compliance).duties

    def admits(self, agent: str, service_account: str) -> bool:
        """True if a pod of this ServiceAccount may be this agent."""
        return is_admitted(self.allowed_agents, agent, service_account)

    def to_json(self) -> str:
        """The policy as one line of JSON; equal policies give equal texts."""
        return write_document(self)

    @classmethod
    def from_json(cls, text: str) -> "Policy":
        """The policy that `to_json` wrote; members it does not know are passed over. Raises BadPolicy."""
        try:
            return read_document(cls, text, MAX_CHARS)
        except Refused as refused:
            raise BadPolicy(refused.path, refused.reason) from None


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may hold. Over a limit the answer is 413 or 422 and names the limit."""

    body_bytes: int = 8 << 20
    content_bytes: int = 1 << 20  # a tsvector ends at 1 MiB
    value_bytes: int = 1 << 20  # of the value's JSON text
    batch_operations: int = 1_000
    key_bytes: int = 1_024
    namespace_segments: int = 16
    namespace_segment_bytes: int = 256
    namespace_bytes: int = 1_024
    name_bytes: int = 256  # user, agent, session
    query_bytes: int = 4 << 10
    json_depth: int = 64
    list_memories: int = 1_000
    search_results: int = 100
