"""What a data directory remembers between two runs: whose it is, its shards and its tenants. Pure.

Promises: `from_json(to_json())` is the same state; a text that is no state of this format is a BadState.
"""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

FORMAT: Final = 1  # raised when an older `engram` could not read the directory


class BadState(ValueError):
    """The text is no state that this version reads."""


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """One shard. The port is kept so that maps stay; schema and pgvector are as the last migration saw them."""

    id: str
    port: int | None = None
    schema_version: int | None = None
    has_vector: bool | None = None


@dataclass(frozen=True, slots=True)
class TenantRecord:
    """One tenant that has a place in the shards. Its ports are those of the last run that served it, else None."""

    namespace: str
    name: str
    isolation: str
    http_port: int | None = None
    admin_port: int | None = None

    @property
    def label(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class LocalState:
    """The marker file. `uid` is what every shard database says it belongs to."""

    cluster: str
    uid: str
    postgres_version: int
    strategy: str
    shards: tuple[ShardRecord, ...]
    tenants: tuple[TenantRecord, ...] = ()
    format: int = FORMAT

    def to_json(self) -> str:
        """The state as a JSON text that a person can read."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "LocalState":
        """The state written as `text`; raises BadState."""
        try:
            body = json.loads(text)
            written = body["format"]
            if written == FORMAT:
                return _state(body)
        except (ValueError, LookupError, TypeError) as error:
            raise BadState(f"is damaged: {type(error).__name__}: {error}") from error
        raise BadState(f"has format {written!r}; this version of engram reads format {FORMAT}")

    def with_shard(self, record: ShardRecord) -> "LocalState":
        """The state in which this shard's record is replaced."""
        return replace(self, shards=tuple(record if each.id == record.id else each for each in self.shards))

    def shard(self, shard_id: str) -> ShardRecord | None:
        """The record of a shard, or None if there is no such shard."""
        return next((each for each in self.shards if each.id == shard_id), None)

    def tenant(self, label: str) -> TenantRecord | None:
        """The record of the tenant `namespace/name`, or None."""
        return next((each for each in self.tenants if each.label == label), None)


def _state(body: dict[str, Any]) -> LocalState:
    shards = tuple(ShardRecord(**each) for each in body.pop("shards"))
    tenants = tuple(TenantRecord(**each) for each in body.pop("tenants"))
    return LocalState(shards=shards, tenants=tenants, **body)
