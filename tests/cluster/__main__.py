"""A real single-node Kubernetes on this machine, in namespaces of its own: `python -m tests.cluster COMMAND`.

  install            what a cluster needs: packages, programs built from Go modules, base images (cached; minutes once)
  up | down          a ready cluster | no trace of one
  status             what there is
  images [NAME...]   build this checkout's images (operator, sidecar, postgres) and load them into the node;
                     by name also postgres-wheel, redis and sidecar-next
  run CMD...         CMD in the cluster's network, with its kubectl, helm and KUBECONFIG
  session CMD...     up, images, run CMD, down. Where no cluster can run, CMD alone, told why (ENGRAM_E2E_SKIP);
                     where ENGRAM_E2E_CONTEXT names another cluster, CMD alone
  pair PYTEST...     a session of two clusters: each test file goes to the one that is free (pytest-xdist)

Needs root on Linux and Go; the rest is installed. Nothing in the cluster has a way out.
"""

import fcntl
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from tests.cluster.images import BY_NAME, PROJECT, build_and_load
from tests.cluster.install import CannotRun, check_machine, check_rights, finish, install
from tests.cluster.layout import CONTEXT, OUTSIDE_VARIABLE, Layout
from tests.cluster.node import ClusterFailed, down, inside, is_ready, up

USAGE = 2


@contextmanager
def alone(at: Layout) -> Iterator[None]:
    """For a block nobody else changes this cluster. The kernel gives the lock back when its holder dies."""
    at.cache.mkdir(parents=True, exist_ok=True)
    with (at.cache / f"lock-{at.cgroup}").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ClusterFailed("another command is at work on this cluster; wait for its end") from None
        yield


def run(at: Layout, command: Sequence[str]) -> int:
    """The status of a command in the cluster, 128 and more if a signal ended it."""
    outside = {OUTSIDE_VARIABLE: os.environ.get(OUTSIDE_VARIABLE) or f"/proc/{os.getpid()}/ns/net"}
    return _status(finish(inside(at, command), env=at.environment(os.environ) | outside).returncode)


def session(command: Sequence[str], *places: Layout) -> int:
    """The status of a command that has one or two clusters of its own, or those that were up."""
    if os.environ.get("ENGRAM_E2E_CONTEXT"):  # a cluster of the user's own
        return _status(finish(command).returncode)
    try:
        check_machine(places[0])
    except CannotRun as reason:
        return _status(finish(command, env={**os.environ, "ENGRAM_E2E_SKIP": str(reason)}).returncode)
    with ExitStack() as stack:
        for at in places:
            stack.enter_context(_ready(at))
        if len(places) == 1:
            return run(places[0], command)
        return _status(finish(command, env={**os.environ, "PYTEST_ADDOPTS": _workers(places)}).returncode)


@contextmanager
def _ready(at: Layout) -> Iterator[None]:
    """For a block there is a cluster with this checkout's images, and nobody else changes it."""
    with alone(at):
        was_ready = is_ready(at)
        try:
            if not was_ready:
                print("test cluster: starting", file=sys.stderr, flush=True)
                up(at, tied=True)
            print("test cluster: building images", file=sys.stderr, flush=True)
            build_and_load(at, PROJECT)
            yield
        finally:
            if not was_ready:
                down(at)


def _workers(places: Sequence[Layout]) -> str:
    """Options of pytest: a worker in the network of each cluster. They are the controller's, not the workers' own."""
    options = [os.environ.get("PYTEST_ADDOPTS", ""), "--dist loadfile"]
    for at in places:
        setting = ["env", "-u", "PYTEST_ADDOPTS", f"ENGRAM_CLUSTER_STATE={at.state}"]
        python = shlex.join([*setting, sys.executable, "-m", "tests.cluster", "run", sys.executable])
        options.append(f"--tx {shlex.quote(f'popen//python={python}')}")
    return " ".join(options)


def images(at: Layout, names: Sequence[str]) -> int:
    """The status, once the node has them. What `run` started builds in the machine's network, which has a way out."""
    if unknown := set(names) - {*PROJECT, *BY_NAME}:
        there_are = ", ".join((*PROJECT, *BY_NAME))
        print(f"unknown image {', '.join(sorted(unknown))}; there are {there_are}", file=sys.stderr)
        return USAGE
    if network := os.environ.pop(OUTSIDE_VARIABLE, None):
        again = [sys.executable, "-m", "tests.cluster", "images", *names]
        return _status(finish(["nsenter", f"--net={network}", "--", *again]).returncode)
    inside(at, ())
    for name, took_s in build_and_load(at, tuple(names) or PROJECT).items():
        print(f"{name}: {took_s:.0f} s")
    return 0


def _status(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode


def main(arguments: Sequence[str]) -> int:
    """The exit status."""
    at = Layout.from_env(os.environ)
    verb, *rest = arguments or ("help",)
    if verb in {"run", "status", "images", "install", "up", "down"}:
        check_rights()
    if verb in {"run", "session", "pair"} and rest:
        second = Layout(at.cache, at.state.with_name(f"{at.state.name}-2"))
        return run(at, rest) if verb == "run" else session(rest, *((at, second) if verb == "pair" else (at,)))
    if verb == "status" and not rest:
        print(f"{CONTEXT}: ready" if is_ready(at) else "no cluster")
    elif verb == "images":
        return images(at, rest)
    elif verb in {"install", "up", "down"} and not rest:
        with alone(at):
            {"install": install, "up": up, "down": down}[verb](at)
    else:
        print((__doc__ or "").strip(), file=sys.stderr)
        return USAGE
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        sys.exit(main(sys.argv[1:]))
    except (CannotRun, ClusterFailed, subprocess.CalledProcessError, OSError) as error:
        sys.exit(f"test cluster: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
