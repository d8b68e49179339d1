"""One cluster's life on this machine: up, down, and what runs inside.

Promises
1. `down` leaves no process, mount, namespace, rule, control group or file of the cluster, whatever state it was in.
2. `up` of a ready cluster changes nothing; of anything else it starts from nothing. A failed `up` says why.
3. A cluster that is tied to its caller ends with it, also by kill -9: the kernel passes the death on.
"""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from tests.cluster import recipe
from tests.cluster.components import build_files
from tests.cluster.images import load
from tests.cluster.install import install, pause_source
from tests.cluster.layout import NODE, ROOT, Layout
from tests.cluster.pki import create_pki

PR_SET_PDEATHSIG: Final = 1
READY_WITHIN_S: Final = 120.0
GONE_WITHIN_S: Final = 30.0
POLL_S: Final = 0.1
CGROUPS: Final = Path("/sys/fs/cgroup")
SYSCTLS: Final = tuple(
    Path("/proc/sys") / name for name in ("vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops")
)
LOG_LINES: Final = 8


class ClusterFailed(Exception):
    """The cluster did not get ready; the message ends with what its components last said."""


def up(at: Layout, *, tied: bool = False) -> None:
    """The cluster is ready. Raises ClusterFailed, CannotRun, CalledProcessError."""
    install(at)
    if is_ready(at):
        return
    down(at)
    _prepare(at)
    try:
        _start(at, tied=tied)
        _wait(at, "an API server", lambda: _kubectl(at, "get", "--raw", "/readyz"))
        for image in (recipe.pause_tag(pause_source()), recipe.base_tag()):
            load(at, image, image)
        _wait(at, "a default storage class", lambda: _kubectl(at, "apply", "-f", f"{at.state}/storage.json"))
        _wait(at, "a ready node", lambda: _kubectl(at, "wait", "--for=condition=Ready", f"node/{NODE}", "--timeout=1s"))
        _wait(at, "a service account", lambda: _kubectl(at, "get", "serviceaccount", "default"))
    except BaseException:
        down(at)
        raise


def down(at: Layout) -> None:
    """Nothing of the cluster is left. Raises ClusterFailed if something cannot be removed."""
    for pid in _ours(at):
        os.kill(pid, signal.SIGKILL)  # the first process of its namespace takes all others with it
    _until(GONE_WITHIN_S, "the cluster's processes are still there", lambda: not list(_ours(at)))
    _until(GONE_WITHIN_S, "its control groups are still in use", lambda: all(map(_remove_cgroups, _cgroups(at))))
    if at.state.exists():
        _restore_sysctls(at)
        shutil.rmtree(at.state)


def inside(at: Layout, command: Sequence[str]) -> list[str]:
    """The command as it runs in the cluster's network. Raises ClusterFailed if there is no cluster."""
    first = _first_process(at)
    if first is None:
        raise ClusterFailed("there is no test cluster: start one with `python -m tests.cluster up`")
    # Only the network: another mount of /sys would hide the control groups.
    return ["nsenter", "--target", str(first), "--net", "--", *command]


def is_ready(at: Layout) -> bool:
    """True if there is a cluster whose node takes pods."""
    return at.kubeconfig.exists() and _kubectl(at, "wait", "--for=condition=Ready", f"node/{NODE}", "--timeout=1s")


def _prepare(at: Layout) -> None:
    for folder in (at.state, at.logs, at.state / "volumes", at.state / "cni"):
        folder.mkdir(mode=0o700, parents=True)
    at.state.chmod(0o711)  # a pod's user passes through it to its volume
    (at.state / "volumes").chmod(0o711)
    create_pki(at)
    for name, text in build_files(at, recipe.base_tag(), recipe.pause_tag(pause_source())):
        (at.state / name).write_text(text)
    (at.state / "sysctls.json").write_text(json.dumps({str(path): path.read_text() for path in SYSCTLS}))
    for cgroup in _cgroups(at):
        cgroup.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):  # empty in a new group of cgroup v1, and then of no use
            if (cgroup / name).exists() and (cgroup.parent / "cpuset.cpu_exclusive").exists():
                (cgroup / name).write_text((cgroup.parent / name).read_text())


def _start(at: Layout, *, tied: bool) -> None:
    command = ["unshare", "--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc"]
    environ = {**os.environ, "ENGRAM_CLUSTER_CACHE": str(at.cache), "ENGRAM_CLUSTER_STATE": str(at.state)}
    with (at.logs / "supervisor.log").open("ab") as log:
        subprocess.Popen(
            [*command, *_supervisor(at)],
            cwd=ROOT,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=die_with_parent if tied else None,  # noqa: PLW1509  one thread, and nothing but a system call
        )


def die_with_parent() -> None:
    """This process is killed when its parent ends (prctl(2)); for `preexec_fn`."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _supervisor(at: Layout) -> list[str]:
    return [sys.executable, "-m", "tests.cluster.supervisor", str(at.state)]


def _ours(at: Layout) -> Iterator[int]:
    """The processes that hold this cluster: its first one, and the `unshare` above it."""
    wanted = _supervisor(at)[1:]
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().decode(errors="replace").split("\0")[:-1]
        except OSError:  # gone while we looked
            continue
        if words[-len(wanted) :] == wanted:
            yield int(entry.parent.name)


def _first_process(at: Layout) -> int | None:
    for pid in _ours(at):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        numbers = next((line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")), [])
        if len(numbers) > 1 and numbers[-1] == "1":
            return pid
    return None


def _cgroups(at: Layout) -> list[Path]:
    """Our group in each hierarchy of cgroup v1 (and the unified one beside them), or the one of v2."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS / at.cgroup]
    return [hierarchy / at.cgroup for hierarchy in sorted(CGROUPS.iterdir()) if (hierarchy / "cgroup.procs").exists()]


def _remove_cgroups(group: Path) -> bool:
    """True if the group and all below it are gone."""
    if not group.exists():
        return True
    try:
        for folder, _, _ in os.walk(group, topdown=False):
            Path(folder).rmdir()
    except OSError:  # its last process is not gone yet
        return False
    return True


def _restore_sysctls(at: Layout) -> None:
    """The kubelet sets some for the whole machine."""
    saved = at.state / "sysctls.json"
    try:
        values = json.loads(saved.read_text())
    except (OSError, ValueError):  # killed before they were saved whole: nothing was started by then
        return
    for path, value in values.items():
        if Path(path).read_text() != value:
            Path(path).write_text(value)


def _kubectl(at: Layout, *arguments: str) -> bool:
    if _first_process(at) is None:
        return False
    command = ["kubectl", *arguments]
    done = subprocess.run(inside(at, command), env=at.environment(os.environ), capture_output=True, check=False)
    return done.returncode == 0


def _wait(at: Layout, what: str, is_so: Callable[[], bool]) -> None:
    _until(READY_WITHIN_S, f"there is no {what.split(' ', 1)[1]}", is_so, partial(_last_words, at))


def _until(deadline_s: float, complaint: str, is_so: Callable[[], bool], more: Callable[[], str] = str) -> None:
    end_s = time.monotonic() + deadline_s
    while not is_so():
        if time.monotonic() > end_s:
            message = f"after {deadline_s:.0f} s {complaint}{more()}"
            raise ClusterFailed(message)
        time.sleep(POLL_S)


def _last_words(at: Layout) -> str:
    """The last lines of every component's log."""
    logs = [path for path in sorted(at.logs.glob("*.log")) if path != at.audit_log]
    tails = ((path.stem, path.read_text(errors="replace").splitlines()[-LOG_LINES:]) for path in logs)
    return "".join(f"\n--- {name}\n" + "\n".join(line[:300] for line in lines) for name, lines in tails)
