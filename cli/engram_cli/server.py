"""One local Postgres: made, started, found again, stopped. It runs as a daemon and outlives who started it.

Promises
1. Half a data directory never counts: it is made beside its place and renamed when it is whole and on the disk.
2. Whoever comes next finds a running server by its postmaster.pid, and by nothing else.
3. A server that was killed comes back: what is left of it is waited for, and a number that by now belongs to another
   program is seen through.

Sources: PostgreSQL manual, "initdb", "pg_ctl", and section 66.1 (postmaster.pid).
"""

import os
import secrets
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engram_cli import processes
from engram_cli.account import Account
from engram_cli.datadir import fsync_directory, remove_tree, write_atomic
from engram_cli.embedded import Programs, run
from engram_cli.errors import Failure
from engram_cli.pgsettings import build_settings

SUPERUSER: Final = "postgres"
INITDB_TIMEOUT_S: Final = 300  # writes 40 MB and waits for the disk; a second here, a minute on a slow disk
START_TIMEOUT_S: Final = 300  # recovery after a crash replays up to `max_wal_size`
STOP_TIMEOUT_S: Final = 60  # a fast stop ends sessions and writes one checkpoint
ORPHANS_TIMEOUT_S: Final = 30  # backends of a killed postmaster leave as soon as they look for it
POLL_S: Final = 0.2
LOG_MAX_BYTES: Final = 10 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Server:
    """The place of one Postgres."""

    directory: Path

    @property
    def pgdata(self) -> Path:
        """Postgres' own data directory."""
        return self.directory / "pgdata"

    @property
    def log(self) -> Path:
        """The server's log file."""
        return self.directory / "log"

    @property
    def settings(self) -> Path:
        """Our settings, which postgresql.conf includes."""
        return self.pgdata / "engram.conf"


@dataclass(frozen=True, slots=True)
class Running:
    """A living postmaster."""

    pid: int
    port: int


def initialize(programs: Programs, server: Server, password: str) -> None:
    """An empty Postgres is in its place; raises Failure. Leftovers of interrupted attempts are removed."""
    for leftover in server.directory.glob("pgdata.*"):
        remove_tree(leftover)
    fresh = server.directory / f"pgdata.{secrets.token_hex(4)}"
    password_file = server.directory / f".{fresh.name}.password"
    try:
        write_atomic(password_file, password + "\n")
        programs.account.own(password_file)
        _initdb(programs, fresh, password_file)
        with (fresh / "postgresql.conf").open("a", encoding="ascii") as file:
            file.write("\ninclude_if_exists = 'engram.conf'\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(server.pgdata)
        fsync_directory(server.directory)
    except OSError as error:
        raise Failure(f"cannot make {server.pgdata}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            password_file.unlink()


def major_version(server: Server) -> int | None:
    """The major version of the data, or None if there is no data yet; raises Failure if there is something else."""
    try:
        return int((server.pgdata / "PG_VERSION").read_text("ascii"))
    except FileNotFoundError:
        if server.pgdata.exists():
            raise Failure(f"{server.pgdata} is not the data of a Postgres: it has no PG_VERSION") from None
        return None
    except (OSError, ValueError) as error:
        raise Failure(f"cannot read {server.pgdata / 'PG_VERSION'}: {error}") from error


def write_settings(server: Server, account: Account, port: int, parameters: Mapping[str, str]) -> bool:
    """The server's settings are these; True if they were others before, so that a running server must start anew."""
    text = build_settings(port, parameters)
    with suppress(OSError):
        if server.settings.read_text("utf-8") == text:
            return False
    write_atomic(server.settings, text)
    account.own(server.settings)
    return True


def start(programs: Programs, server: Server) -> Running:
    """The server answers; raises Failure with the reason from its log."""
    _forget_a_strangers_number(server)
    _rotate(server.log)
    deadline_s = time.monotonic() + ORPHANS_TIMEOUT_S
    while True:
        written_bytes = server.log.stat().st_size if server.log.exists() else 0
        done = _pg_ctl(programs, server, "start", "-l", str(server.log), timeout_s=START_TIMEOUT_S)
        running = find_running(server)
        if done.returncode == 0 and running is not None:
            return running
        reason = _reason(server.log, written_bytes) or done.stdout.strip().rpartition("\n")[2]
        if "pre-existing shared memory block" not in reason or time.monotonic() > deadline_s:
            raise Failure(f"Postgres of shard {server.directory.name} does not start: {reason} (log: {server.log})")
        time.sleep(POLL_S)


def stop(programs: Programs, server: Server, mode: str = "fast") -> bool:
    """No server runs there; True if one did. Raises Failure if it does not end in time."""
    if find_running(server) is None:
        return False
    done = _pg_ctl(programs, server, "stop", "-m", mode, timeout_s=STOP_TIMEOUT_S)
    if done.returncode != 0 and find_running(server) is not None:
        reason = done.stdout.strip().rpartition("\n")[2]
        raise Failure(f"Postgres of shard {server.directory.name} does not stop: {reason} (log: {server.log})")
    return True


def find_running(server: Server) -> Running | None:
    """The living postmaster of this data, or None."""
    try:
        lines = (server.pgdata / "postmaster.pid").read_text("utf-8").splitlines()
        pid, port = int(lines[0]), int(lines[3])
    except (OSError, ValueError, IndexError):
        return None
    if not processes.exists(pid) or processes.is_zombie(pid):
        return None
    return None if _is_another_program(pid, server) else Running(pid, port)


def last_log_line(server: Server) -> str:
    """The last line of the server's log, or a word that there is none."""
    with suppress(OSError):
        lines = server.log.read_text("utf-8", errors="replace").splitlines()
        if lines:
            return lines[-1]
    return "(its log is empty)"


def _initdb(programs: Programs, target: Path, password_file: Path) -> None:
    done = run(
        programs,
        "initdb",
        *("--pgdata", str(target)),
        *("--username", SUPERUSER),
        *("--pwfile", str(password_file)),
        *("--auth", "scram-sha-256"),
        *("--encoding", "UTF8"),
        *("--locale", "C"),
        "--data-checksums",
        timeout_s=INITDB_TIMEOUT_S,
    )
    if done.returncode != 0:
        remove_tree(target)
        errors = [line for line in done.stdout.splitlines() if "error:" in line] or done.stdout.splitlines()[-1:]
        raise Failure(f"initdb failed for {target.parent.name}: {errors[0] if errors else f'status {done.returncode}'}")


def _pg_ctl(
    programs: Programs, server: Server, action: str, *options: str, timeout_s: int
) -> subprocess.CompletedProcess[str]:
    return run(
        programs,
        "pg_ctl",
        action,
        *("--pgdata", str(server.pgdata)),
        "--wait",
        *("--timeout", str(timeout_s)),
        *options,
        timeout_s=timeout_s + 10,  # pg_ctl keeps the time itself
    )


def _forget_a_strangers_number(server: Server) -> None:
    """Removes a postmaster.pid whose number now is another program's, which Postgres could not know.

    Postgres asks only whether the number lives, and after a restart of a container the numbers begin anew. The rest of
    its own guard, the shared memory that belongs to the data directory, stays in force.
    """
    pid_file = server.pgdata / "postmaster.pid"
    try:
        pid = int(pid_file.read_text("utf-8").splitlines()[0])
    except (OSError, ValueError, IndexError):
        return
    if processes.exists(pid) and _is_another_program(pid, server):
        pid_file.unlink()


def _is_another_program(pid: int, server: Server) -> bool:
    """True if this process surely is no postmaster of this data: `start` gives every one the path as an argument."""
    return processes.has_argument(pid, str(server.pgdata)) is False


def _rotate(log: Path) -> None:
    with suppress(FileNotFoundError):
        if log.stat().st_size > LOG_MAX_BYTES:
            log.replace(log.with_name("log.1"))


def _reason(log: Path, from_byte: int) -> str:
    """What the server said went wrong since `from_byte`: its first error and where there is one, its hint."""
    with suppress(OSError), log.open("rb") as file:
        file.seek(from_byte)
        lines = file.read().decode("utf-8", errors="replace").splitlines()
        wrong = [line for line in lines if any(f" {word}:  " in line for word in ("FATAL", "PANIC", "ERROR"))]
        culprits = [line for line in lines if "configuration parameter" in line or "invalid value" in line]
        for line in culprits + wrong:
            return line.partition(":  ")[2] or line
    return ""
