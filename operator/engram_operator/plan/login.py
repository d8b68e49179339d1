"""The rotation of a tenant's password, without a moment in which one that is in use is refused. Pure.

    a new request --> Secret: the old password and a new one; sidecars try both
        `grace_s` later, when the kubelets have brought it --> the role has the new one, shard by shard
            every shard has it --> Secret: the new one alone

Where a crash leaves it is written in two places that are read again: the Secret (which passwords, since when) and each
shard's role (by which password it was made).
"""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from engram_contract.credentials import CacheLogin, Credentials
from engram_contract.kinds import MAX_INT64
from engram_operator.manifests.tenant import Stored
from engram_operator.manifests.terms import FILE_GRACE_S
from engram_operator.plan.roles import mark_of


@dataclass(frozen=True, slots=True)
class Login:
    """What the Secret is to hold, and the password that the role is to have now."""

    stored: Stored
    password: str

    @property
    def mark(self) -> str:
        """What the role says when it has this password."""
        return mark_of(self.stored.credentials.role, self.password)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a rotation takes: the request (empty: none), a password that nobody had before, the time, the grace."""

    request: str
    fresh: str
    now_s: float
    grace_s: float = FILE_GRACE_S


def plan_login(role: str, stored: Stored | None, asked: Asked, marks: Iterable[str]) -> Login:
    """The next state of a tenant's login. `marks` are what the role says on each shard that keeps the tenant."""
    if stored is None or stored.credentials.role != role:
        first = Credentials(role, (asked.fresh,), generation=1)
        return Login(Stored(first, asked.request), asked.fresh)
    present = stored.credentials
    if len(present.passwords) == 1:
        if asked.request in ("", stored.request):
            return Login(replace(stored, staged_s=None), present.passwords[0])
        both = _next(present, (present.passwords[0], asked.fresh))
        return Login(Stored(both, asked.request, math.floor(asked.now_s)), present.passwords[0])
    old, new = present.passwords
    told = set(marks)
    since_s = _staged_s(stored, asked)
    stored = replace(stored, staged_s=since_s)
    if mark_of(role, new) not in told and asked.now_s - since_s < asked.grace_s:
        return Login(stored, old)
    if told == {mark_of(role, new)}:
        return Login(Stored(_next(present, (new,)), stored.request), new)
    return Login(stored, new)


def placed(login: Login, before: Stored | None, ca: str, cache: CacheLogin | None) -> Login:
    """The same login for servers of this CA, and with this cache; a generation more if that alone is new."""
    wanted = replace(login.stored.credentials, ca=ca, cache=cache)
    is_counted = before is None or before.credentials.generation != wanted.generation
    if not is_counted and before is not None and before.credentials != wanted:
        wanted = replace(wanted, generation=_following(wanted.generation))
    return replace(login, stored=replace(login.stored, credentials=wanted))


def cache_passwords(passwords: Iterable[str]) -> tuple[str, ...]:
    """The cache's passwords, one for each of the database's, which it does not tell."""
    return tuple(hashlib.sha256(f"cache\0{each}".encode()).hexdigest() for each in passwords)


def left_s(login: Login, asked: Asked) -> float | None:
    """The seconds until the role's turn; None if none is waited for."""
    since_s = login.stored.staged_s
    return None if since_s is None else max(1.0, since_s + asked.grace_s - asked.now_s)


def _staged_s(stored: Stored, asked: Asked) -> float:
    """Since when both passwords are there: now, where the Secret says nothing, or a time that is still to come."""
    if stored.staged_s is None or stored.staged_s > asked.now_s:
        return math.floor(asked.now_s)
    return stored.staged_s


def _next(present: Credentials, passwords: tuple[str, ...]) -> Credentials:
    return replace(present, passwords=passwords, generation=_following(present.generation))


def _following(generation: int) -> int:
    """The next generation. After the last that a file can hold, which only a forger writes, comes the first.

    Sidecars that took the last take the first when their password is refused.
    """
    return generation + 1 if generation < MAX_INT64 else 1
