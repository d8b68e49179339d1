"""Runs a command and ends every process that it leaves behind: `leave_nothing.py COMMAND...`; exits with its status.

Whatever loses its parent below here becomes our child (a subreaper, prctl(2)), so daemons with a session of their own
are found too. They are asked first, and killed if they do not go.
"""

import ctypes
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
PATIENCE_S = 15.0  # a Postgres without clients needs a second or two


def descendants() -> dict[int, str]:
    """Every process below this one: its number and its name."""
    parents, names = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # gone while we looked
            head, _, tail = stat.read_text().rpartition(")")
            pid = int(stat.parent.name)
            parents[pid], names[pid] = int(tail.split()[1]), head.partition("(")[2]
    below = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return {pid: names[pid] for pid in below - {os.getpid()}}


def end_all() -> None:
    """Returns when no process is left below this one."""
    deadline_s, wanted = time.monotonic() + PATIENCE_S, signal.SIGTERM
    told: set[int] = set()
    while left := descendants():
        if time.monotonic() > deadline_s and wanted is signal.SIGTERM:
            wanted, told = signal.SIGKILL, set()
        for pid in left.keys() - told:
            with suppress(ProcessLookupError):
                os.kill(pid, wanted)
        told |= left.keys()
        reap()
        time.sleep(0.05)


def reap() -> None:
    """Takes leave of children that have ended, adopted ones too: they are nothing that was left running."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def run(command: list[str]) -> int:
    """The status of the command, negative for the signal that ended it; reaps what is adopted meanwhile."""
    child = os.posix_spawnp(
        command[0],
        command,
        os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
        # Whoever starts us in the background may ignore these for us; the tests send them and want them heard.
        setsigdef=[signal.SIGINT, signal.SIGHUP],
    )
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            return os.waitstatus_to_exitcode(status)


def main(command: list[str]) -> int:
    """The status of the command, 128 and more if a signal ended it or us."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        status = run(command)
        reap()
        if left := descendants():
            print(f"still running after the tests, now ended: {', '.join(sorted(left.values()))}", file=sys.stderr)
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    finally:
        end_all()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
