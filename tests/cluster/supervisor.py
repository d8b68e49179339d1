"""The first process of the cluster's own namespaces: mounts, network, then one child for each component.

It runs as process 1 of a process namespace, with mounts and a network of its own. So whatever ends it (`down`, kill -9,
a crash) ends every process of the cluster, pods too, and the kernel takes their mounts, links and rules with it.

Promises
1. Outside the state folder no file of the machine is written: /run, /var/log and /var/lib are covered.
2. A component that ends is started again, as a node's service manager would; its log says so.
"""

import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Final
from urllib.error import URLError
from urllib.request import urlopen

from tests.cluster import recipe
from tests.cluster.components import API_PORT, Component, build_components
from tests.cluster.layout import NODE_IP, Layout

TICK_S: Final = 0.05
RESTART_DELAY_S: Final = 0.5
NETWORK: Final = (
    "ip link set lo up",
    "ip link add node0 type veth peer name node0p",  # not every kernel has dummy links
    "ip link set node0p up",
    f"ip addr add {NODE_IP}/24 dev node0",
    "ip link set node0 up",
    f"ip route add default dev node0 src {NODE_IP}",
)
SETTINGS: Final = {"net/ipv4/ip_forward": "1", "net/bridge/bridge-nf-call-iptables": "1"}  # of this namespace alone


def prepare_mounts(at: Layout) -> None:
    """What the programs write by habit lands in the state folder."""
    covered = at.state / "covered"
    for name in ("var-log", "var-lib", "var-lib-work"):
        (covered / name).mkdir(parents=True, exist_ok=True)
    layers = f"lowerdir=/var/lib,upperdir={covered}/var-lib,workdir={covered}/var-lib-work"
    _run("mount", "--make-rshared", "/")
    _run("mount", "-t", "tmpfs", "-o", "mode=0755", "engram-run", "/run")
    _run("mount", "--bind", f"{covered}/var-log", "/var/log")
    _run("mount", "-t", "overlay", "-o", layers, "engram-var-lib", "/var/lib")


def prepare_network() -> None:
    """Loopback and the node's address; no way out."""
    for command in NETWORK:
        _run(*command.split())
    for name, value in SETTINGS.items():
        path = Path("/proc/sys") / name
        if path.exists():
            path.write_text(value)


class Supervisor:
    """Keeps the components running."""

    def __init__(self, at: Layout, components: tuple[Component, ...]) -> None:
        self._at = at
        # The Popen is kept, or subprocess would reap the child behind our back and its end would go unseen.
        self._running: dict[int, tuple[Component, subprocess.Popen[bytes]]] = {}
        self._due: dict[Component, float] = dict.fromkeys((c for c in components if not c.needs_api), 0.0)
        self._waiting = [component for component in components if component.needs_api]
        self._trust = ssl.create_default_context(cafile=str(at.pki / "ca.crt"))
        self._trust.load_cert_chain(at.pki / "admin.crt", at.pki / "admin.key")

    def run(self) -> None:
        """Never returns: whoever wants the end kills this process."""
        while True:
            if self._waiting and self._api_answers():
                self._due |= dict.fromkeys(self._waiting, 0.0)
                self._waiting = []
            for component in [each for each, due_s in self._due.items() if due_s <= time.monotonic()]:
                del self._due[component]
                self._start(component)
            for pid, status in ended():
                if pid in self._running:
                    component, process = self._running.pop(pid)
                    process.returncode = status
                    self._again(component, f"ended with status {status}")
            time.sleep(TICK_S)

    def _start(self, component: Component) -> None:
        with (self._at.logs / f"{component.name}.log").open("ab") as log:
            try:
                process = subprocess.Popen(
                    component.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
            except OSError as error:  # a program was taken away: the cache may be made anew meanwhile
                self._again(component, f"did not start: {error}")
            else:
                self._running[process.pid] = component, process

    def _again(self, component: Component, why: str) -> None:
        with (self._at.logs / f"{component.name}.log").open("a") as log:
            log.write(f"--- supervisor: {component.name} {why}, starts again\n")
        self._due[component] = time.monotonic() + RESTART_DELAY_S

    def _api_answers(self) -> bool:
        try:
            with urlopen(f"https://{NODE_IP}:{API_PORT}/readyz", timeout=2, context=self._trust) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError, HTTPException):
            return False


def ended() -> Iterator[tuple[int, int]]:
    """Every child that has ended, adopted ones too: its number and its exit code."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, os.waitstatus_to_exitcode(status)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def main() -> None:
    """Prepares and supervises; what goes wrong before is on standard error, which is the supervisor's log."""
    if os.getpid() != 1:
        sys.exit("this is the first process of a test cluster: start one with `python -m tests.cluster up`")
    at = Layout.from_env(os.environ)
    prepare_mounts(at)
    prepare_network()
    os.environ["PATH"] = at.environment(os.environ)["PATH"]
    Supervisor(at, build_components(at, recipe.base_tag())).run()


if __name__ == "__main__":
    main()
