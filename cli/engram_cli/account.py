"""Who runs Postgres: oneself, or, started by root, a system user without rights, as Postgres refuses to run as root.

Promises: as root, the user `engram` exists afterwards or a Failure says what to do; nothing else is changed.
"""

import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from engram_cli.errors import Failure

USER: Final = "engram"
USERADD_TIMEOUT_S: Final = 30


@dataclass(frozen=True, slots=True)
class Account:
    """The user of the Postgres processes; None for both numbers means: as whoever runs this."""

    uid: int | None = None
    gid: int | None = None

    @property
    def switch(self) -> dict[str, Any]:
        """What `subprocess.run` needs to run a program as this user."""
        if self.uid is None:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    @property
    def directory_mode(self) -> int:
        """The mode of directories that this user must pass through: no more than that for others."""
        return 0o700 if self.uid is None else 0o711

    def own(self, path: Path) -> None:
        """The path belongs to this user."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)


@dataclass(frozen=True, slots=True)
class Directory:
    """What decides who may pass a directory."""

    path: str
    uid: int
    gid: int
    mode: int


def find_account() -> tuple[Account, str | None]:
    """The account for the Postgres processes, and a line to be said if a user had to be made for it."""
    if os.geteuid() != 0:
        return Account(), None
    try:
        return _account_of(USER), None
    except KeyError:
        _add_user()
    return _account_of(USER), f"made the system user {USER!r}, which runs Postgres: Postgres refuses to run as root"


def check_passage(account: Account, path: Path) -> None:
    """Nothing; raises Failure naming the first directory on the way to `path` that the account may not pass."""
    if account.uid is None:
        return
    ancestors = [*reversed(path.resolve().parents), path.resolve()]
    closed = first_closed((_directory(each) for each in ancestors if each.exists()), account)
    if closed is not None:
        raise Failure(
            f"Postgres runs as user {USER!r}, which cannot pass {closed}: "
            f"choose a --data-dir elsewhere (such as /var/lib/engram), or: chmod o+x {closed}"
        )


def first_closed(directories: Iterable[Directory], account: Account) -> str | None:
    """The first directory whose mode bits keep the account out, or None."""
    for each in directories:
        if each.uid == account.uid:
            needed = stat.S_IXUSR
        elif each.gid == account.gid:
            needed = stat.S_IXGRP
        else:
            needed = stat.S_IXOTH
        if not each.mode & needed:
            return each.path
    return None


def _directory(path: Path) -> Directory:
    found = path.stat()
    return Directory(str(path), found.st_uid, found.st_gid, found.st_mode)


def _account_of(user: str) -> Account:
    entry = pwd.getpwnam(user)
    if entry.pw_uid == 0:
        raise Failure(f"the user {user!r} is root, as whom Postgres refuses to run")
    return Account(entry.pw_uid, entry.pw_gid)


def _add_user() -> None:
    useradd = shutil.which("useradd") or shutil.which("useradd", path="/usr/sbin:/sbin")
    if useradd is None:
        raise Failure(
            f"Postgres refuses to run as root and there is no useradd to make the user {USER!r} with: "
            f"make that user yourself, or run engram as another user"
        )
    command = [useradd, "--system", "--no-create-home", "--home-dir", "/nonexistent", "--user-group", USER]
    done = subprocess.run(  # noqa: S603  a fixed command
        [*command[:-1], "--shell", "/usr/sbin/nologin", USER],
        capture_output=True,
        text=True,
        timeout=USERADD_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise Failure(f"cannot make the user {USER!r}, which is to run Postgres: {done.stderr.strip()}")
