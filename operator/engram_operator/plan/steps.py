"""What a plan is made of: one frozen value per change of the world, each a line for people. Pure.

A plan is computed anew from what is observed each time, so no step needs to know whether it was begun before.
"""

from dataclasses import dataclass
from typing import Any

from engram_contract.shardmap import ShardMap

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Apply:
    """The object is as the manifest says; `because` is what differs."""

    manifest: Manifest
    because: str

    def __str__(self) -> str:
        return f"apply {self.manifest['kind']} {self.manifest['metadata']['name']} ({self.because})"


@dataclass(frozen=True, slots=True)
class Remove:
    """The object, which was observed, goes."""

    manifest: Manifest
    because: str

    def __str__(self) -> str:
        return f"delete {self.manifest['kind']} {self.manifest['metadata']['name']} ({self.because})"


@dataclass(frozen=True, slots=True)
class MakeCredentials:
    """The cluster gets passwords and an id of its own."""

    def __str__(self) -> str:
        return "make the cluster's credentials"


@dataclass(frozen=True, slots=True)
class TurnCertificates:
    """The cluster's CA or certificate takes its next step."""

    step: str

    def __str__(self) -> str:
        return f"certificates: {self.step}"


@dataclass(frozen=True, slots=True)
class RestartPod:
    """The pod is deleted, and its StatefulSet makes it anew."""

    name: str
    uid: str
    because: str

    def __str__(self) -> str:
        return f"restart pod {self.name} ({self.because})"


@dataclass(frozen=True, slots=True)
class RestartPostgres:
    """Postgres in the pod starts anew, and the pod stays."""

    name: str
    ip: str
    role: str
    because: str

    def __str__(self) -> str:
        return f"restart Postgres in {self.name} ({self.because})"


@dataclass(frozen=True, slots=True)
class Switchover:
    """Patroni is asked to make another member the primary."""

    scope: str
    primary: str
    candidate: str
    because: str

    def __str__(self) -> str:
        return f"switch {self.scope} over from {self.primary} to {self.candidate} ({self.because})"


@dataclass(frozen=True, slots=True)
class PrepareShard:
    """The shard has its roles and the shared database with this version's schema."""

    shard: str
    because: str

    def __str__(self) -> str:
        return f"prepare the databases of {self.shard} ({self.because})"


@dataclass(frozen=True, slots=True)
class TurnRoles:
    """The shard's roles for replication take their next step of a rotation."""

    shard: str
    because: str

    def __str__(self) -> str:
        return f"roles of {self.shard}: {self.because}"


@dataclass(frozen=True, slots=True)
class RetireRoles:
    """Nobody logs in as the shard's old roles any more."""

    shard: str
    roles: tuple[str, ...]

    def __str__(self) -> str:
        return f"retire {', '.join(self.roles)} on {self.shard}"


@dataclass(frozen=True, slots=True)
class ReloadFiles:
    """The shard's members read their files anew."""

    shard: str
    ips: tuple[str, ...]

    def __str__(self) -> str:
        return f"have the {len(self.ips)} members of {self.shard} read their files"


@dataclass(frozen=True, slots=True)
class RotateCredentials:
    """New passwords beside those in use."""

    request: str

    def __str__(self) -> str:
        return f"rotate the cluster's credentials ({self.request})"


@dataclass(frozen=True, slots=True)
class PrepareTenant:
    """The tenant has its role and its database on the shard."""

    shard: str
    database: str
    role: str

    def __str__(self) -> str:
        return f"prepare role {self.role} and database {self.database} on {self.shard}"


@dataclass(frozen=True, slots=True)
class MendLogin:
    """The tenant's role is again as it was made, after somebody who was logged in as it changed this of it."""

    shard: str
    database: str
    role: str
    altered: tuple[str, ...]

    def __str__(self) -> str:
        return f"set role {self.role} right on {self.shard}, which had changed {', '.join(self.altered)}"


@dataclass(frozen=True, slots=True)
class ShutOut:
    """Nobody can log in as the tenant there; all that it stored stays."""

    role: str
    place: str

    def __str__(self) -> str:
        return f"end the access of {self.role} to {self.place}"


@dataclass(frozen=True, slots=True)
class PublishMap:
    """The shard knows the map and owns what it says."""

    shard: str
    shard_map: ShardMap

    def __str__(self) -> str:
        return f"publish epoch {self.shard_map.epoch} to {self.shard}"


@dataclass(frozen=True, slots=True)
class SetQuota:
    """The shard has this part of the tenant's quota as its base."""

    shard: str
    memories: int
    bytes: int
    total_memories: int
    total_bytes: int

    def __str__(self) -> str:
        return f"quota on {self.shard}: {self.memories} memories, {self.bytes} bytes"


@dataclass(frozen=True, slots=True)
class CarryLoan:
    """The shard has borrowed so much from the lender since ever."""

    shard: str
    lender: str
    memories: int
    bytes: int

    def __str__(self) -> str:
        return f"carry to {self.shard} what {self.lender} lent it: {self.memories} memories, {self.bytes} bytes in all"


@dataclass(frozen=True, slots=True)
class LendBack:
    """The shard lends what it does not use."""

    shard: str
    borrower: str
    memories: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.shard} lends {self.borrower} {self.memories} memories, {self.bytes} bytes of the quota"


@dataclass(frozen=True, slots=True)
class KeepCacheUser:
    """The tenant's user of the cluster's Redis is there, with its present passwords."""

    role: str

    def __str__(self) -> str:
        return f"make {self.role} a user of the cache"


@dataclass(frozen=True, slots=True)
class SweepTenant:
    """The shard frees the space of what has expired."""

    shard: str

    def __str__(self) -> str:
        return f"sweep what has expired on {self.shard}"


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing more can be done before something happens, or `seconds` have passed.

    `reason` is one CamelCase word; `is_fault` says that somebody should look.
    """

    reason: str
    message: str
    seconds: float
    is_fault: bool = False

    def __str__(self) -> str:
        return f"wait: {self.message}"


@dataclass(frozen=True, slots=True)
class Note:
    """Something that is asked for and cannot be done; the rest goes on."""

    reason: str
    message: str

    def __str__(self) -> str:
        return f"not done: {self.message}"


Step = (
    Apply
    | Remove
    | MakeCredentials
    | TurnCertificates
    | RestartPod
    | RestartPostgres
    | Switchover
    | PrepareShard
    | TurnRoles
    | RetireRoles
    | ReloadFiles
    | RotateCredentials
    | PrepareTenant
    | MendLogin
    | ShutOut
    | PublishMap
    | SetQuota
    | CarryLoan
    | LendBack
    | KeepCacheUser
    | SweepTenant
    | Wait
    | Note
)
