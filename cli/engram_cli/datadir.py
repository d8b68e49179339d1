"""The data directory: its layout, its files written whole or not at all, and the lock of the one who runs it.

    DATA/engram.json                      the marker and memory of the directory (state.py)
    DATA/lock                             held by `engram up` while it runs; its first line is who
    DATA/secrets/postgres                 the password of the shards' superuser
    DATA/shards/s0/{pgdata,log,pgdata.*}  one Postgres; `pgdata.*` is one that an interrupted start left behind
    DATA/tenants/<namespace>.<name>/      the configuration directory of a sidecar
    DATA/postgres/<version>/              a copy of the Postgres programs, only where their own place cannot be reached

Promises
1. A file is replaced by rename after fsync: a crash leaves the old text or the new one.
2. A directory that is not empty and has no marker is never touched.
3. The lock goes with its process, however that ends.
"""

import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engram_cli.errors import Failure, Misuse
from engram_cli.processes import Process, is_alive, started_ticks
from engram_cli.state import BadState, LocalState

PRIVATE_MODE: Final = 0o600
PRIVATE_DIRECTORY_MODE: Final = 0o700
LOCK_PATIENCE_S: Final = 0.5  # `engram status` holds the lock for some microseconds to see whether it is held
# pg_ctl hands paths to a shell between double quotes.
UNSAFE: Final = frozenset('"$`\\\n')


@dataclass(frozen=True, slots=True)
class DataDir:
    """The places within one data directory."""

    path: Path

    @property
    def marker(self) -> Path:
        """The file that makes a directory ours."""
        return self.path / "engram.json"

    @property
    def lock_file(self) -> Path:
        """The file that `engram up` holds."""
        return self.path / "lock"

    @property
    def password_file(self) -> Path:
        """The superuser's password."""
        return self.path / "secrets" / "postgres"

    def shard(self, shard_id: str) -> Path:
        """The directory of one shard."""
        return self.path / "shards" / shard_id

    def tenant(self, namespace: str, name: str) -> Path:
        """The configuration directory of a tenant's sidecar. A namespace holds no dot, so no two tenants share one."""
        return self.path / "tenants" / f"{namespace}.{name}"

    def read_state(self) -> LocalState | None:
        """What the directory remembers, None if it is not there or empty; raises Misuse if it is not ours."""
        try:
            return LocalState.from_json(self.marker.read_text("utf-8"))
        except BadState as error:
            raise Misuse(f"{self.marker} {error}") from error
        except (FileNotFoundError, NotADirectoryError):
            self._refuse_a_strangers_directory()
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise Failure(f"cannot read {self.marker}: {reason_of(error)}") from error

    def write_state(self, state: LocalState) -> None:
        """The directory remembers `state`."""
        write_atomic(self.marker, state.to_json())

    def create(self, mode: int) -> None:
        """The directory itself is there, with nothing in it yet."""
        make_directory(self.path, mode, parents=True)

    def create_parts(self, mode: int) -> None:
        """The parts of the directory are there. The marker comes before them, so they are never a stranger's."""
        make_directory(self.path / "secrets", PRIVATE_DIRECTORY_MODE)
        make_directory(self.path / "tenants", PRIVATE_DIRECTORY_MODE)
        make_directory(self.path / "shards", mode)

    def read_or_make_password(self) -> str:
        """The superuser's password: 256 random bits, made once. Raises Failure if shards exist without it."""
        try:
            return self.password_file.read_text("ascii").strip()
        except FileNotFoundError:
            if any((self.path / "shards").glob("*/pgdata")):
                raise Failure(f"{self.password_file} is missing: the shards cannot be opened without it") from None
        except OSError as error:
            raise Failure(f"cannot read {self.password_file}: {reason_of(error)}") from error
        password = secrets.token_hex(32)
        write_atomic(self.password_file, password + "\n")
        return password

    def _refuse_a_strangers_directory(self) -> None:
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise Misuse(f"{self.path} is not a directory")
        try:
            # A first run that was killed before its marker stood leaves at most the lock and a part of the marker.
            names = sorted(each.name for each in self.path.iterdir())
        except OSError as error:
            raise Failure(f"cannot read {self.path}: {reason_of(error)}") from error
        if strangers := [name for name in names if name != "lock" and not name.startswith(".engram.json.")]:
            raise Misuse(
                f"{self.path} is not empty and not a data directory of engram (it holds {strangers[0]!r}): "
                "nothing in it was touched; choose another --data-dir"
            )


def open_path(path: Path) -> DataDir:
    """The data directory at `path`, made absolute; raises Misuse for a path that Postgres' tools cannot take."""
    absolute = path.expanduser().resolve()  # links followed: a directory has one name, by which its servers are known
    if unsafe := UNSAFE & set(str(absolute)):
        raise Misuse(f"the path of the data directory holds {min(unsafe)!r}, which Postgres' own tools cannot take")
    return DataDir(absolute)


def make_directory(path: Path, mode: int, *, parents: bool = False) -> None:
    """The directory is there, with this mode whatever the umask, if it was not there before; raises Failure."""
    try:
        if not path.is_dir():
            path.mkdir(parents=parents)
            path.chmod(mode)
    except OSError as error:
        raise Failure(f"cannot make the directory {path}: {reason_of(error)}") from error


def write_atomic(path: Path, text: str, mode: int = PRIVATE_MODE) -> None:
    """The file holds `text`, also after a power cut; raises Failure."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123  a descriptor has no Path
            os.fchmod(descriptor, mode)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        partial.replace(path)
        fsync_directory(path.parent)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise Failure(f"cannot write {path}: {reason_of(error)}") from error


def fsync_directory(path: Path) -> None:
    """The names in the directory are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_tree(path: Path) -> None:
    """The directory is gone, or as much of it as can be removed: what remains is tried again by the next run."""
    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def locked(data: DataDir) -> Iterator[None]:
    """Holds the directory for this process; raises Failure, with the holder's pid, if another one has it."""
    try:
        descriptor = os.open(data.lock_file, os.O_RDWR | os.O_CREAT, PRIVATE_MODE)
    except OSError as error:
        raise Failure(f"cannot open {data.lock_file}: {reason_of(error)}") from error
    try:
        if not _flock(descriptor):
            owner = holder(data)
            who = f"`engram up` (pid {owner.pid})" if owner else "another engram"
            stop = f"stop it with: engram down --data-dir {data.path}"
            raise Failure(f"the data directory {data.path} is in use by {who}; {stop}")
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps({"pid": os.getpid(), "started": started_ticks(os.getpid())}).encode())
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _flock(descriptor: int) -> bool:
    deadline_s = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                return False
            time.sleep(LOCK_PATIENCE_S / 10)
        else:
            return True


def is_locked(data: DataDir) -> bool:
    """True while some process holds the directory."""
    try:
        descriptor = os.open(data.lock_file, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def holder(data: DataDir) -> Process | None:
    """The living process that wrote itself into the lock, or None: then it has just begun or just ended."""
    try:
        written = json.loads(data.lock_file.read_text("ascii"))
        process = Process(int(written["pid"]), written["started"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return process if is_alive(process) else None


def reason_of(error: Exception) -> str:
    """The reason of an error in a few words, without the path that the message names anyway."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
