"""The sections of a MemoryCluster: storage, Postgres, pooler, cache, backups, sweeps, access.

Each keeps its own rules when it is made, with paths from its own side. Names are the CRD's in snake_case; amounts carry
our unit, so the field `size_bytes` is the member `size`. Pure; standard library only.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Final

from engram_contract.caching import (
    DEFAULT_CACHING,
    MAX_LOCAL_BYTES,
    MAX_LOCAL_ENTRIES,
    MIN_LOCAL_BYTES,
    Caching,
)
from engram_contract.kinds import Bytes, Cpu, Duration, Items, OneOf, Pairs, Schedule, Text, Whole
from engram_contract.parse import Section
from engram_contract.policy import DAY_S, HTTP_URL, SUBDOMAIN
from engram_contract.quantities import blocks_bytes_of
from engram_contract.redisurl import FORMS, PATTERN
from engram_contract.resource import BadSpec
from engram_contract.selector import LABEL_KEY, LABEL_VALUE, MAX_LABELS, LabelSelector

MIB: Final = 1 << 20
GIB: Final = 1 << 30
TIB: Final = 1 << 40

VOLUME: Final = Bytes(256 * MIB, 64 * TIB)  # below, Postgres' own WAL fills the volume
MEMORY: Final = Bytes(16 * MIB, 16 * TIB)
IMAGE: Final = Text(512, r"^[a-z0-9][-._:/@A-Za-z0-9]*$", "the reference of an image")
SECRET_KEY: Final = Text(253, r"^[-._a-zA-Z0-9]+$", "the key of a Secret")

# Each would change where Postgres listens or keeps its data, what Patroni and replication rest on, what a commit
# promises, or whether the fence and row-level security hold.
OWNED_PARAMETERS: Final = (
    "allow_system_table_mods",
    "cluster_name",
    "config_file",
    "data_directory",
    "default_transaction_isolation",
    "external_pid_file",
    "fsync",
    "full_page_writes",
    "hba_file",
    "hot_standby",
    "ident_file",
    "listen_addresses",
    "max_slot_wal_keep_size",
    "port",
    "primary_conninfo",
    "primary_slot_name",
    "restore_command",
    "row_security",
    "session_replication_role",
    "synchronous_commit",
    "synchronous_standby_names",
    "unix_socket_directories",
    "wal_level",
    "wal_log_hints",
    "zero_damaged_pages",
)
OWNED_PREFIXES: Final = ("archive_", "recovery_", "ssl")


@dataclass(frozen=True, slots=True)
class SecretKeyRef:
    """One key of a Secret in the resource's namespace."""

    name: Annotated[str, SUBDOMAIN]
    key: Annotated[str, SECRET_KEY]


@dataclass(frozen=True, slots=True)
class SecretRef:
    """A whole Secret in the resource's namespace; the field that holds it says which keys it needs."""

    name: Annotated[str, SUBDOMAIN]


class VolumeReclaim(StrEnum):
    """What becomes of the volumes when their cluster is deleted."""

    RETAIN = "Retain"
    DELETE = "Delete"


@dataclass(frozen=True, slots=True)
class Storage:
    """The volume of each Postgres server of a Managed cluster."""

    size_bytes: Annotated[int, VOLUME] = 10 * GIB
    storage_class_name: Annotated[str | None, SUBDOMAIN] = None
    reclaim_policy: VolumeReclaim = VolumeReclaim.RETAIN


@dataclass(frozen=True, slots=True)
class Requests:
    """What the scheduler sets aside for each Postgres server."""

    cpu_millis: Annotated[int, Cpu()] = 250
    memory_bytes: Annotated[int, MEMORY] = 512 * MIB


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What each Postgres server may take at most; None is no limit."""

    cpu_millis: Annotated[int | None, Cpu()] = None
    memory_bytes: Annotated[int | None, MEMORY] = None


@dataclass(frozen=True, slots=True)
class Resources:
    """CPU and memory of each Postgres server."""

    requests: Requests = field(default_factory=Requests)
    limits: Ceilings = field(default_factory=Ceilings)

    def __post_init__(self) -> None:
        if self.limits.cpu_millis is not None and self.limits.cpu_millis < self.requests.cpu_millis:
            raise BadSpec("requests.cpu", "is above limits.cpu")
        if self.limits.memory_bytes is not None and self.limits.memory_bytes < self.requests.memory_bytes:
            raise BadSpec("requests.memory", "is above limits.memory")


@dataclass(frozen=True, slots=True)
class Tls:
    """Encryption between Postgres and its clients, with certificates of the cluster's own CA."""

    enabled: bool = True


@dataclass(frozen=True, slots=True)
class Postgres:
    """The database engine of a Managed cluster. Without an image it is the operator's."""

    version: Annotated[int, OneOf((16, 18))] = 18
    image: Annotated[str | None, IMAGE] = None
    tls: Tls = field(default_factory=Tls)
    resources: Resources = field(default_factory=Resources)
    parameters: Annotated[
        tuple[tuple[str, str], ...],
        Pairs(
            Text(63, r"^[a-z][a-z0-9_]*(\.[a-z0-9_]+)?$", "the name of a setting in lower case"),
            Text(1024, r"^[^\x00-\x1f\x7f]*$", "text without control characters", min_chars=0),  # one line of a file
            max_items=64,
            takes_numbers=True,
        ),
    ] = ()

    def __post_init__(self) -> None:
        for name, _ in self.parameters:
            if name in OWNED_PARAMETERS or name.startswith(OWNED_PREFIXES):
                raise BadSpec(f"parameters.{name}", "is set by Engram itself")
        buffers_bytes = blocks_bytes_of(dict(self.parameters).get("shared_buffers", "")) or 0
        if buffers_bytes > self.resources.requests.memory_bytes:  # taken whole at the start, from whoever else is there
            raise BadSpec("parameters.shared_buffers", "is above resources.requests.memory")


@dataclass(frozen=True, slots=True)
class Pooler:
    """PgBouncer in front of each shard, in transaction mode, one pool per tenant."""

    enabled: bool = False
    max_connections: Annotated[int, Whole(1, 10_000)] = 60


class CacheProvider(StrEnum):
    """Who runs the Redis of the second cache level."""

    MANAGED = "Managed"
    EXTERNAL = "External"
    NONE = "None"


@dataclass(frozen=True, slots=True)
class LocalCache:
    """The first cache level, in each sidecar. Whichever of the two bounds is met first, counts."""

    entries: Annotated[int, Whole(0, MAX_LOCAL_ENTRIES)] = DEFAULT_CACHING.local_entries
    capacity_bytes: Annotated[int, Bytes(MIN_LOCAL_BYTES, MAX_LOCAL_BYTES)] = DEFAULT_CACHING.local_capacity_bytes
    ttl_s: Annotated[int, Duration()] = DEFAULT_CACHING.local_ttl_s


@dataclass(frozen=True, slots=True)
class Cache:
    """The two cache levels. Without Redis (None) the first works on with a shorter bound."""

    provider: CacheProvider = CacheProvider.MANAGED
    url: Annotated[
        str | None,
        Text(2048, PATTERN, f"{FORMS}, without user and password"),
    ] = None
    secret_ref: SecretKeyRef | None = None
    capacity_bytes: Annotated[int, Bytes(16 * MIB, TIB)] = 256 * MIB
    ttl_s: Annotated[int, Duration()] = DEFAULT_CACHING.shared_ttl_s
    local: LocalCache = field(default_factory=LocalCache)

    def __post_init__(self) -> None:
        given = (self.url is not None) + (self.secret_ref is not None)
        if given != (self.provider is CacheProvider.EXTERNAL):
            raise BadSpec("provider", "External needs exactly one of url and secretRef, the others take neither")

    @property
    def caching(self) -> Caching:
        """What the sidecars of the cluster's tenants are to know of it."""
        return Caching(self.local.entries, self.local.capacity_bytes, self.local.ttl_s, self.ttl_s)


@dataclass(frozen=True, slots=True)
class S3:
    """A bucket. The Secret has `accessKeyId` and `secretAccessKey`; without it the pod's identity counts."""

    bucket: Annotated[str, Text(63, r"^[a-z0-9][-.a-z0-9]*[a-z0-9]$", "the name of a bucket", min_chars=3)]
    prefix: Annotated[str, Text(512, r"^[-!_.()/A-Za-z0-9]*$", "a safe prefix of object keys", min_chars=0)] = (
        "memory-backups/"
    )
    endpoint: Annotated[str | None, HTTP_URL] = None
    region: Annotated[str | None, Text(64, r"^[-a-z0-9]+$", "the name of a region")] = None
    secret_ref: SecretRef | None = None


@dataclass(frozen=True, slots=True)
class BackupVolume:
    """A volume of its own for backups, one per cluster."""

    size_bytes: Annotated[int, VOLUME] = 10 * GIB
    storage_class_name: Annotated[str | None, SUBDOMAIN] = None


@dataclass(frozen=True, slots=True)
class Backup:
    """When backups are made, where they go and how long they stay (0 s: until deleted by hand)."""

    schedule: Annotated[str, Schedule()] = "0 2 * * *"
    restore_test_schedule: Annotated[str, Schedule()] = "0 5 * * 0"
    suspend: bool = False
    retention_s: Annotated[int, Duration()] = 30 * DAY_S
    s3: S3 | None = None
    local: BackupVolume | None = None


@dataclass(frozen=True, slots=True)
class Sweeps:
    """The daily jobs on old memories. 0 s turns one off; none deletes before the tenant's own retention has passed."""

    schedule: Annotated[str, Schedule()] = "0 3 * * *"
    archive_after_s: Annotated[int, Duration()] = 30 * DAY_S
    delete_after_s: Annotated[int, Duration()] = 90 * DAY_S
    low_access_after_s: Annotated[int, Duration()] = 7 * DAY_S


@dataclass(frozen=True, slots=True)
class Access:
    """Which namespaces beside the cluster's own may have tenants; None is no other."""

    namespace_selector: LabelSelector | None = None


class AntiAffinity(StrEnum):
    """Whether two members of a shard may run on one node."""

    PREFERRED = "Preferred"
    REQUIRED = "Required"


class TolerationOperator(StrEnum):
    """How a taint is compared with the toleration."""

    EQUAL = "Equal"
    EXISTS = "Exists"


class TaintEffect(StrEnum):
    """What a taint does to pods that do not tolerate it."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


@dataclass(frozen=True, slots=True)
class Toleration:
    """A taint that the pods bear. Without an effect it is every effect of the key."""

    key: Annotated[str, LABEL_KEY]
    operator: TolerationOperator = TolerationOperator.EQUAL
    value: Annotated[str | None, LABEL_VALUE] = None
    effect: TaintEffect | None = None

    def __post_init__(self) -> None:
        if self.operator is TolerationOperator.EXISTS and self.value is not None:
            raise BadSpec("value", "Exists takes no value")


@dataclass(frozen=True, slots=True)
class Scheduling:
    """On which nodes the pods of a Managed cluster run."""

    anti_affinity: AntiAffinity = AntiAffinity.PREFERRED
    node_selector: Annotated[tuple[tuple[str, str], ...], Pairs(LABEL_KEY, LABEL_VALUE, MAX_LABELS)] = ()
    tolerations: Annotated[tuple[Toleration, ...], Items(Section(Toleration), 32)] = ()


class UpdatePolicy(StrEnum):
    """When pods get what a newer operator would give them."""

    ON_CHANGE = "OnChange"
    AUTOMATIC = "Automatic"
