"""What is told of a local Engram: values that the screen shows and `--json` prints. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ShardReport:
    """One shard as it was found. `memories` counts by tenant, as far as it could be asked."""

    shard: str
    state: str
    port: int | None
    pid: int | None
    size_bytes: int
    schema_version: int | None
    has_vector: bool | None
    memories: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class TenantReport:
    """One tenant. `memories` over all shards, None if they could not all be asked."""

    tenant: str
    isolation: str
    state: str
    url: str | None
    admin_port: int | None
    memories: int | None


@dataclass(frozen=True, slots=True)
class Report:
    """One data directory. `pid` is that of `engram up`, if it runs."""

    cluster: str
    postgres_version: int
    data_dir: str
    state: str
    pid: int | None
    shards: tuple[ShardReport, ...]
    tenants: tuple[TenantReport, ...]


@dataclass(frozen=True, slots=True)
class ServingShard:
    """One shard that serves. `slots` counts by tenant."""

    shard: str
    state: str
    weight: int
    port: int
    pid: int
    slots: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Serving:
    """What `engram up` serves."""

    data_dir: str
    tenants: tuple[TenantReport, ...]
    shards: tuple[ServingShard, ...]
