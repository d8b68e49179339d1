"""The rotation of a cluster's own passwords, without a moment in which one that is in use is refused. Pure.

    a new request --> Secret: the other letter, new passwords, the superuser's old one kept
        every shard has the new roles and the superuser's new password --> Patroni's file names the new roles
        every replica reads the log as the new role --> the old roles can log in no more
        every shard is there --> Secret: the old superuser password goes, and the request is carried out

Two sets of roles, a and b, take turns, so members of a shard may read their files at different times.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from engram_operator.manifests.credentials import REPLICATORS, REWINDERS, SUPERUSER, Credentials
from engram_operator.plan.members import Member
from engram_operator.plan.observed import Database, Silence
from engram_operator.plan.steps import ReloadFiles, RetireRoles, Step, TurnRoles, Wait

OWN_ROLES: Final = (SUPERUSER, *REPLICATORS.values(), *REWINDERS.values())
KUBELET_S: Final = 10.0  # between looks whether the kubelet has brought the file; it takes up to two minutes


def mark_of(role: str, password: str) -> str:
    """What a role says of its password without telling it: sixteen hex digits."""
    return hashlib.sha256(f"{role}\0{password}".encode()).hexdigest()[:16]


def passwords_of(credentials: Credentials) -> dict[str, str]:
    """The roles in use with their passwords, the superuser last."""
    letter = credentials.letter
    return {
        REPLICATORS[letter]: credentials.replication,
        REWINDERS[letter]: credentials.rewind,
        SUPERUSER: credentials.superuser,
    }


def marks_of(credentials: Credentials) -> dict[str, str]:
    """What these roles say when they are as they should be."""
    return {role: mark_of(role, password) for role, password in passwords_of(credentials).items()}


def old_roles(credentials: Credentials) -> tuple[str, ...]:
    """The roles of the other letter."""
    other = "b" if credentials.letter == "a" else "a"
    return REPLICATORS[other], REWINDERS[other]


def has_roles(told: Database, credentials: Credentials) -> bool:
    """Whether a shard's roles are those of the credentials."""
    return all(told.marks.get(role) == mark for role, mark in marks_of(credentials).items())


def all_have_roles(
    databases: Mapping[str, Database | Silence], shards: Iterable[str], credentials: Credentials
) -> bool:
    """Whether every one of these shards has said so."""
    found = [databases.get(shard) for shard in shards]
    return all(isinstance(told, Database) and has_roles(told, credentials) for told in found)


def plan_roles(
    shard: str, told: Database, credentials: Credentials, members: Iterable[Member], *, is_file_new: bool
) -> Iterator[Step]:
    """What a shard's roles need now. `is_file_new`: Patroni's Secret names the roles of these credentials."""
    if not has_roles(told, credentials):
        yield TurnRoles(shard, "roles and passwords are not those of the Secret")
        return
    old = tuple(role for role in old_roles(credentials) if role in told.marks)
    if not is_file_new or not old:
        return
    if any(sender in old for sender in told.senders):
        yield ReloadFiles(shard, tuple(each.ip for each in members if each.is_healthy))
        yield Wait("Rotating", f"{shard}: replicas are to read the log as {REPLICATORS[credentials.letter]}", KUBELET_S)
        return
    yield RetireRoles(shard, old)


def is_rotation_due(credentials: Credentials, asked: str) -> bool:
    """Whether somebody asks for new passwords and none of an earlier request is left to do."""
    return bool(asked) and asked != credentials.rotation and not credentials.superuser_previous


def is_rotation_over(
    databases: Mapping[str, Database | Silence], shards: Iterable[str], credentials: Credentials
) -> bool:
    """Whether the superuser's old password has no use any more: every shard has the new roles and not the old ones."""
    names = tuple(shards)
    gone = all(
        isinstance(told, Database) and not any(role in told.marks for role in old_roles(credentials))
        for told in (databases.get(shard) for shard in names)
    )
    return bool(credentials.superuser_previous) and gone and all_have_roles(databases, names, credentials)
