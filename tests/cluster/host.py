"""What a cluster changes on the machine outside its namespaces, and how that is undone.

Processes, control groups, and the few settings that a kubelet makes for a whole machine.

Must never: trust what lies in a folder for more than a number to write back into one of the settings named here, or
end a process that does not say by its command line or environment that it belongs to this very state folder.
"""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.cluster.install import CGROUPS
from tests.cluster.layout import INSIDE_VARIABLE, Layout

SUPERVISOR: Final = "tests.cluster.supervisor"
# What a kubelet sets for the whole machine.
SYSCTLS: Final = tuple(
    Path("/proc/sys") / name
    for name in (
        "vm/overcommit_memory",
        "vm/panic_on_oom",
        "kernel/panic",
        "kernel/panic_on_oops",
        "kernel/keys/root_maxkeys",
        "kernel/keys/root_maxbytes",
    )
)
CONTROLLERS: Final = ("cpu", "cpuset", "hugetlb", "io", "memory", "pids")


def find_processes(at: Layout) -> Iterator[int]:
    """The processes that hold the cluster, its first one and the `unshare` above it, and those that `run` started."""
    inside = f"{INSIDE_VARIABLE}={at.state}".encode()
    above = _ancestors()
    for pid, words in _command_lines():
        is_holder = words[-3:] == ["-m", SUPERVISOR, str(at.state)]
        if pid not in above and (is_holder or inside in _read(Path(f"/proc/{pid}/environ")).split(b"\0")):
            yield pid


def find_first_process(at: Layout) -> int | None:
    """The first process of the cluster's namespaces, or None if there is no cluster."""
    for pid, words in _command_lines():
        if words[-3:] == ["-m", SUPERVISOR, str(at.state)]:
            status = _read(Path(f"/proc/{pid}/status")).decode()
            numbers = next((line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")), [])
            if len(numbers) > 1 and numbers[-1] == "1":
                return pid
    return None


def running_programs(parent: int) -> set[str]:
    """The names of a process's children, as the kernel cuts them: to fifteen characters."""
    names = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        head, _, tail = _read(stat).decode(errors="replace").rpartition(")")
        if tail and int(tail.split()[1]) == parent:
            names.add(head.partition("(")[2])
    return names


def _other_states(at: Layout) -> list[Path]:
    """The state folders of other clusters that run on this machine."""
    found = {Path(words[-1]) for _, words in _command_lines() if words[-3:-1] == ["-m", SUPERVISOR]}
    return sorted(found - {at.state})


def _command_lines() -> Iterator[tuple[int, list[str]]]:
    """Every process of root: its number and its words."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone while we looked
            if process.stat().st_uid == 0:
                words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
                yield int(process.name), words[:-1]


def _ancestors() -> set[int]:
    """This process and all above it."""
    found, pid = set[int](), os.getpid()
    while pid:
        found.add(pid)
        pid = int(_read(Path(f"/proc/{pid}/stat")).decode().rpartition(")")[2].split()[1])
    return found


def _read(path: Path) -> bytes:
    """What a file of /proc says; nothing if its process is gone."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def create_cgroups(at: Layout) -> None:
    """The group below which the pods' groups will lie, in each hierarchy, fit to hold them."""
    for group in _cgroups(at):
        _delegate(group.parent)
        group.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):  # empty in a new group of cgroup v1, and then of no use
            if (group / name).exists() and (group.parent / "cpuset.cpu_exclusive").exists():
                (group / name).write_text((group.parent / name).read_text())


def _delegate(parent: Path) -> None:
    """On cgroup v2 a group has the controllers that the one above hands down; they stay handed down, unused."""
    control = parent / "cgroup.subtree_control"
    if control.exists() and (parent / "cgroup.controllers").exists():
        there, given = ((parent / "cgroup.controllers").read_text().split(), control.read_text().split())
        for name in sorted(set(CONTROLLERS) & set(there) - set(given)):
            control.write_text(f"+{name}")


def remove_cgroups(at: Layout) -> bool:
    """True if they are gone; False while a process of theirs is not quite gone."""
    try:
        for group in _cgroups(at):
            for folder, _, _ in os.walk(group, topdown=False):
                Path(folder).rmdir()
    except OSError:
        return False
    return True


def _cgroups(at: Layout) -> list[Path]:
    """Our group in each hierarchy of cgroup v1 (and the unified one beside them), or the one of v2."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS / at.cgroup]
    return [hierarchy / at.cgroup for hierarchy in sorted(CGROUPS.iterdir()) if (hierarchy / "cgroup.procs").exists()]


def save_sysctls(at: Layout) -> None:
    """What the machine had before any cluster. Where one runs already, it knows."""
    for other in _other_states(at):
        with suppress(OSError):
            (at.state / "sysctls.json").write_text((other / "sysctls.json").read_text())
            return
    values = {str(path): int(path.read_text()) for path in SYSCTLS if path.exists()}
    (at.state / "sysctls.json").write_text(json.dumps(values))


def restore_sysctls(at: Layout) -> None:
    """The machine has what it had, if no other cluster runs: then the last one to go restores it."""
    try:
        values = json.loads((at.state / "sysctls.json").read_text())
    except (OSError, ValueError):  # killed before they were saved whole: nothing was started by then
        return
    for path in () if _other_states(at) else SYSCTLS:
        value = values.get(str(path))
        if isinstance(value, int) and path.exists() and int(path.read_text()) != value:
            path.write_text(str(value))
