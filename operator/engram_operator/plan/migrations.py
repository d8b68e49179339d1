"""Which migrations a database needs: what exists and what was applied, to what to apply, or a refusal.

A migration is `NNNN_pre_name.sql` (additive: safe under running sidecars of the version before) or `NNNN_post_name.sql`
(removal: only when no such sidecar is left). Each runs in one transaction together with its record, so a crash at
any point leaves it either applied and recorded or not at all. Pure.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

_NAME: Final = re.compile(r"([0-9]{4})_(pre|post)_([a-z0-9_]+)\.sql")


class MigrationConflict(ValueError):
    """The database was migrated by another version of Engram in a way that this version cannot go on from."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file. `checksum` is the SHA-256 of its text, in hex."""

    number: int
    name: str
    is_post: bool
    sql: str
    checksum: str

    @classmethod
    def from_file(cls, file_name: str, sql: str) -> "Migration":
        """The migration in a file of that name; raises ValueError for a name of another form."""
        match = _NAME.fullmatch(file_name)
        if match is None:
            reason = f"{file_name}: a migration is named NNNN_pre_name.sql or NNNN_post_name.sql"
            raise ValueError(reason)
        checksum = hashlib.sha256(sql.encode()).hexdigest()
        return cls(int(match[1]), file_name.removesuffix(".sql"), match[2] == "post", sql, checksum)


def in_order(files: Mapping[str, str]) -> tuple[Migration, ...]:
    """The migrations of a folder (file name -> text), numbered from 1 without a gap; raises ValueError otherwise."""
    migrations = sorted((Migration.from_file(name, sql) for name, sql in files.items()), key=lambda m: m.number)
    numbers = [m.number for m in migrations]
    if numbers != list(range(1, len(numbers) + 1)):
        reason = f"migrations are numbered from 1 without gaps or doubles, found {numbers}"
        raise ValueError(reason)
    return tuple(migrations)


def plan_migrations(
    available: Iterable[Migration], applied: Mapping[int, str], *, with_post: bool
) -> tuple[Migration, ...]:
    """What to apply now, in order. `applied` maps number -> checksum.

    Without `with_post` the plan ends before the first removal. Raises MigrationConflict if the database knows a
    migration that we do not, or knows one of ours with another text.
    """
    known = {m.number: m for m in available}
    for number, checksum in sorted(applied.items()):
        if number not in known:
            reason = f"the database has migration {number}, this version of Engram ends at {max(known, default=0)}"
            raise MigrationConflict(reason)
        if known[number].checksum != checksum:
            reason = f"migration {known[number].name} was applied with another text than this version has"
            raise MigrationConflict(reason)
    plan: list[Migration] = []
    for number in sorted(known.keys() - applied.keys()):
        if known[number].is_post and not with_post:
            break
        plan.append(known[number])
    return tuple(plan)
