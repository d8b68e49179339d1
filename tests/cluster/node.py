"""One cluster's life on this machine: up, down, and what runs inside.

Promises
1. `down` leaves no process, mount, namespace, rule, control group or file of the cluster, whatever state it was in.
2. `up` of a ready cluster changes nothing; of anything else it starts from nothing. A failed `up` says why.
3. A cluster that is tied to its caller ends with it, also by kill -9: the kernel passes the death on.
"""

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from tests.cluster import host, recipe
from tests.cluster.components import build_components, build_files
from tests.cluster.images import load
from tests.cluster.install import NAMESPACES, cache_alone, die_with_parent, install, kube_sources, pause_source
from tests.cluster.layout import NODE, ROOT, Layout
from tests.cluster.pki import create_pki

READY_WITHIN_S: Final = 120.0
GONE_WITHIN_S: Final = 30.0
POLL_S: Final = 0.1
LOG_LINES: Final = 8
MARK: Final = "engram-test-cluster"  # the file in a state folder that says whose it is, and of which recipe
COMM_CHARS: Final = 15  # what the kernel keeps of a program's name


class ClusterFailed(Exception):
    """The cluster did not get ready; the message ends with what its components last said."""


def up(at: Layout, *, tied: bool = False) -> None:
    """The cluster is ready. Raises ClusterFailed, CannotRun, CalledProcessError."""
    _check_state(at)
    install(at)
    if is_ready(at):
        return
    down(at)
    try:
        _prepare(at)
        wait = partial(_wait, at, _start(at, tied=tied))
        wait("an API server", lambda: _kubectl(at, "get", "--raw", "/readyz"))
        with cache_alone(at):
            for image in (recipe.pause_tag(pause_source()), recipe.base_tag()):
                load(at, image, image)
        wait("a default storage class", lambda: _kubectl(at, "apply", "-f", f"{at.state}/storage.json"))
        wait("a service account", lambda: _kubectl(at, "get", "serviceaccount", "default"))
        wait("a ready node", lambda: is_ready(at))
    except BaseException:
        down(at)
        raise


def down(at: Layout) -> None:
    """Nothing of the cluster is left. Raises ClusterFailed if something cannot be removed, or is not ours to remove."""
    _check_state(at)
    for pid in host.find_processes(at):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # the first process of its namespace takes all others with it
    _until(GONE_WITHIN_S, "the cluster's processes are still there", lambda: not list(host.find_processes(at)))
    _until(GONE_WITHIN_S, "its control groups are still in use", lambda: host.remove_cgroups(at))
    if at.state.exists():
        host.restore_sysctls(at)
        shutil.rmtree(at.state)


def _check_state(at: Layout) -> None:
    """Nothing; raises ClusterFailed for a folder that is not a cluster's, which `up` and `down` would remove."""
    try:
        found = at.state.lstat()
        is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == 0 and not found.st_mode & 0o022
        is_ours = is_ours and ((at.state / MARK).is_file() or not any(at.state.iterdir()))
    except FileNotFoundError:
        return
    if not is_ours:
        message = f"{at.state} is no folder of a test cluster, and stays as it is; name another in ENGRAM_CLUSTER_STATE"
        raise ClusterFailed(message)


def inside(at: Layout, command: Sequence[str]) -> list[str]:
    """The command as it runs in the cluster's network. Raises ClusterFailed if there is no cluster."""
    first = host.find_first_process(at)
    if first is None:
        raise ClusterFailed("there is no test cluster: start one with `python -m tests.cluster up`")
    # Only the network: another mount of /sys would hide the control groups.
    return ["nsenter", "--target", str(first), "--net", "--", *command]


def is_ready(at: Layout) -> bool:
    """True if there is a cluster of this recipe, with every component running, whose node takes pods."""
    first = host.find_first_process(at)
    if first is None or not (at.state / MARK).exists() or (at.state / MARK).read_text() != _recipe():
        return False
    wanted = {each.name[:COMM_CHARS] for each in build_components(at, recipe.base_tag())}
    runs_all = wanted <= host.running_programs(first)
    return runs_all and _kubectl(at, "wait", "--for=condition=Ready", f"node/{NODE}", "--timeout=1s")


def _recipe() -> str:
    """What a cluster is made of, as a digest."""
    names = (build.filename for build in recipe.plan_builds(kube_sources()))
    return recipe.digest(*names, recipe.base_tag(), recipe.pause_tag(pause_source()))


def _prepare(at: Layout) -> None:
    at.state.mkdir(mode=0o711, parents=True, exist_ok=True)  # a pod's user passes through it to its volume
    (at.state / MARK).write_text(_recipe())
    for folder, mode in ((at.logs, 0o700), (at.state / "volumes", 0o711), (at.state / "cni", 0o700)):
        folder.mkdir(mode=mode)
    create_pki(at)
    for name, text in build_files(at, recipe.base_tag(), recipe.pause_tag(pause_source())):
        (at.state / name).write_text(text)
    host.save_sysctls(at)
    host.create_cgroups(at)


def _start(at: Layout, *, tied: bool) -> "subprocess.Popen[bytes]":
    environ = {**os.environ, "ENGRAM_CLUSTER_CACHE": str(at.cache), "ENGRAM_CLUSTER_STATE": str(at.state)}
    with (at.logs / "supervisor.log").open("ab") as log:
        return subprocess.Popen(
            [*NAMESPACES, sys.executable, "-m", host.SUPERVISOR, str(at.state)],
            cwd=ROOT,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=die_with_parent if tied else None,  # noqa: PLW1509  one thread, and nothing but a system call
        )


def _kubectl(at: Layout, *arguments: str) -> bool:
    if host.find_first_process(at) is None:
        return False
    command = ["kubectl", "--request-timeout=10s", *arguments]
    done = subprocess.run(inside(at, command), env=at.environment(os.environ), capture_output=True, check=False)
    return done.returncode == 0


def _wait(at: Layout, holder: "subprocess.Popen[bytes]", what: str, is_so: Callable[[], bool]) -> None:
    def has_come() -> bool:
        if holder.poll() is not None:
            message = f"the cluster's first process ended with status {holder.returncode}{_last_words(at)}"
            raise ClusterFailed(message)
        return is_so()

    _until(READY_WITHIN_S, f"there is no {what.split(' ', 1)[1]}", has_come, partial(_last_words, at))


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
