"""What one reconcile of a MemoryCluster saw, whole and once: the ground on which the plan stands. Pure.

A thing that could not be asked is a `Silence` with the reason; it is never taken for a thing that is not there.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from engram_contract.names import MANAGED_BY, MANAGED_BY_LABEL, SHARD_LABEL
from engram_operator.manifests.credentials import Credentials
from engram_operator.manifests.names import DATA_VOLUME, ClusterNames
from engram_operator.plan.certificates import Stored
from engram_operator.plan.members import Leader, Member, read_leader, read_member, seconds_of
from engram_operator.plan.steps import Manifest

SILENT: Final = "DatabaseSilent"


@dataclass(frozen=True, slots=True)
class Silence:
    """No answer, and why. `code` is the reason of a condition; what `lasts` only somebody can mend."""

    reason: str
    code: str = SILENT
    lasts: bool = False


@dataclass(frozen=True, slots=True)
class Database:
    """What the Postgres of a shard's primary tells. `owned_slots` is over all of its databases."""

    server_version: str
    schema_version: str
    is_current: bool
    has_vector: bool
    size_bytes: int
    owned_slots: int
    marks: Mapping[str, str | None] = field(default_factory=dict)  # of our own roles that may log in
    senders: tuple[str, ...] = ()  # as whom replicas read the log
    has_pooler: bool = False  # whether PgBouncer can ask for its clients' verifiers
    faults: tuple[str, ...] = ()  # of an External one: what it lacks


@dataclass(frozen=True, slots=True)
class Loaded:
    """With which shared configuration the Postgres of a member runs, and whether some of it takes effect at a start.

    `refused` are the settings that the spec asks for and the server runs without.
    """

    settings: str
    needs_restart: bool
    refused: tuple[str, ...] = ()
    verifies: bool = True  # a replica: whether its primary has to prove itself


@dataclass(frozen=True, slots=True)
class TenantSeen:
    """A tenant of the cluster, as its status tells: slots by shard, for every shard that its map names."""

    namespace: str
    name: str
    epoch: int = 0
    slots: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Observed:
    """A MemoryCluster and all that belongs to it. `objects` by kind and name; `expandable` by StorageClass."""

    resource: Manifest
    objects: Mapping[tuple[str, str], Manifest]
    databases: Mapping[str, Database | Silence]
    namespace: Manifest
    has_protected_sibling: bool
    expandable: Mapping[str, bool]
    credentials: Credentials | None
    certificates: Stored | None
    tenants: tuple[TenantSeen, ...]
    now_s: float
    credentials_fault: str = ""  # why the Secret that is there cannot be read; never with what stands in it
    loaded: Mapping[str, Loaded | Silence] = field(default_factory=dict)  # by member, of those that are healthy

    def with_answers(
        self, databases: Mapping[str, Database | Silence], loaded: Mapping[str, Loaded | Silence]
    ) -> "Observed":
        """The same with what the shards' primaries and the members told."""
        return replace(self, databases=databases, loaded=loaded)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The MemoryCluster's."""
        metadata: Mapping[str, Any] = self.resource["metadata"]
        return metadata

    @property
    def annotations(self) -> Mapping[str, str]:
        """The MemoryCluster's."""
        return self.metadata.get("annotations") or {}

    @property
    def status(self) -> Mapping[str, Any]:
        """The MemoryCluster's, as it was written last."""
        return self.resource.get("status") or {}

    def down_for_s(self) -> float:
        """For how long not all shards serve, as the status tells; 0 while they do, or before they ever did."""
        return self._false_for_s("ShardsReady")

    def unready_for_s(self) -> float:
        """For how long something has been left to do, as the status tells; 0 if nothing is."""
        return self._false_for_s("Ready")

    def _false_for_s(self, condition: str) -> float:
        conditions = self.status.get("conditions") or ()
        wanted = (condition, "False")
        since = [each["lastTransitionTime"] for each in conditions if (each["type"], each["status"]) == wanted]
        return max(0.0, self.now_s - seconds_of(since[0])) if since else 0.0

    def live(self, kind: str, name: str) -> Manifest | None:
        """The object, or None."""
        return self.objects.get((kind, name))

    def of_kind(self, kind: str) -> Iterator[Manifest]:
        """All objects of a kind that bear the cluster's label, in order of their names."""
        return (each for key, each in sorted(self.objects.items()) if key[0] == kind)

    def is_ours(self, manifest: Manifest) -> bool:
        """Whether the operator made it. Patroni's ConfigMaps bear the cluster's label too."""
        return (manifest["metadata"].get("labels") or {}).get(MANAGED_BY_LABEL) == MANAGED_BY

    def members(self, shard_id: str) -> tuple[Member, ...]:
        """The pods of a shard."""
        return tuple(map(read_member, self._numbered("Pod", shard_id, "")))

    def claims(self, shard_id: str) -> tuple[Manifest, ...]:
        """The volume claims of a shard."""
        return tuple(self._numbered("PersistentVolumeClaim", shard_id, f"{DATA_VOLUME}-"))

    def _numbered(self, kind: str, shard_id: str, before: str) -> Iterator[Manifest]:
        """What a StatefulSet makes by number. Whatever else bears the labels is somebody else's."""
        scope = ClusterNames(self.metadata["name"], self.metadata["namespace"]).shard(shard_id).scope
        name = re.compile(f"{before}{re.escape(scope)}-[0-9]+")
        for each in self.of_kind(kind):
            if _shard_of(each) == shard_id and name.fullmatch(each["metadata"]["name"]):
                yield each

    def leader(self, scope: str) -> Leader:
        """What Patroni's ConfigMaps tell."""
        return read_leader({name: each for (kind, name), each in self.objects.items() if kind == "ConfigMap"}, scope)

    def shards_present(self) -> tuple[str, ...]:
        """The ids of shards that have a StatefulSet."""
        found = {_shard_of(each) for each in self.of_kind("StatefulSet")} - {""}
        return tuple(sorted(found, key=lambda each: (len(each), each)))


def _shard_of(manifest: Manifest) -> str:
    return str((manifest["metadata"].get("labels") or {}).get(SHARD_LABEL, ""))
