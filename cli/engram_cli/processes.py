"""Processes known by more than their number: a number alone may belong to another program after a restart.

Where there is no /proc (macOS) the number has to do. Source: proc_pid_stat(5), field 22.
"""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Process:
    """A process: its number and its start in clock ticks since boot, None where the system does not tell."""

    pid: int
    started: int | None


def started_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None if there is no such process or no /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])  # the name before it may hold spaces and brackets


def is_alive(process: Process) -> bool:
    """True if this very process lives. One that has ended but was not yet waited for counts as ended."""
    if not exists(process.pid):
        return False
    if not Path("/proc/self").exists():
        return True
    return started_ticks(process.pid) == process.started and not is_zombie(process.pid)


def exists(pid: int) -> bool:
    """True if some process, or what is left of one, has this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def is_zombie(pid: int) -> bool:
    """True if the process has ended and nobody has asked how."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == "Z"


def has_argument(pid: int, argument: str) -> bool | None:
    """True if the process was started with this argument; None where the system does not tell. Everybody may ask."""
    if not Path("/proc/self").exists():
        return None
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return os.fsencode(argument) in arguments
