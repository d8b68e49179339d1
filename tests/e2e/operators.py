"""Operators as processes of a test: started, killed, stopped and looked at; real ones, but for what launcher.py says.

Promises: every process ends with the block of `operating`, whatever happens, also if the test itself is killed. All of
a block share one Lease; `free` gives it up in the name of a process that is dead, so that the next need not wait.
"""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.e2e.cluster import POLL_S, Cluster
from tests.e2e.releases import image
from tests.e2e.stage import DEADLINE_S, ROOT, environment

LEASE: Final = "engram-operator"
LABELS: Final = "app.kubernetes.io/name=engram,app.kubernetes.io/component=operator"
STARTED: Final = "operator started"
RECONCILED: Final = re.compile(r'_reconcile_seconds_count\{kind="MemoryCluster"[^}]*\} [1-9]')
LEADING: Final = '"leading"'
Json = dict[str, Any]


def tell(text: str) -> None:
    """A figure, for whoever runs the tests with -s; pytest shows it beside a failure."""
    sys.stdout.write(f"{text}\n")


@dataclass
class Operator:
    """One process. `name` is its pod's, as it says; `status` is None while it runs."""

    pid: int
    name: str
    log: Path
    _status: Callable[[], int | None]

    @property
    def status(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._status()

    @property
    def lines(self) -> list[str]:
        """What it has written so far."""
        return self.log.read_text(errors="replace").splitlines() if self.log.exists() else []

    @property
    def writes(self) -> list[str]:
        """Its writes to the API server but for Leases and Events, each as method and path."""
        return [line.split(" ", 2)[2] for line in self.lines if line.startswith("write ")]

    def wait_line(self, part: str, deadline_s: float = DEADLINE_S) -> str:
        """The first line with `part`; fails if it ends without it."""
        end_s = time.monotonic() + deadline_s
        while True:
            has_ended = self.status is not None
            found = next((line for line in self.lines if part in line), None)
            if found is not None:
                return found
            assert not has_ended, f"{self.name} ended with {self.status}:\n" + "\n".join(self.lines)
            assert time.monotonic() < end_s, f"waited {deadline_s} s for {part!r}:\n" + "\n".join(self.lines)
            time.sleep(POLL_S / 4)

    def wait_end(self, deadline_s: float = DEADLINE_S) -> int:
        """The exit status once it has ended by itself or by a signal."""
        end_s = time.monotonic() + deadline_s
        while (status := self.status) is None:
            assert time.monotonic() < end_s, f"{self.name} runs after {deadline_s} s:\n" + "\n".join(self.lines[-20:])
            time.sleep(POLL_S / 10)
        return status

    def signal(self, number: int) -> None:
        """Sends it a signal, if it runs."""
        if self.status is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it as a power cut would."""
        self.signal(signal.SIGKILL)
        self.wait_end()

    def wait_reconciled(self, deadline_s: float = 60.0) -> None:
        """Returns when it has ended a reconcile of a MemoryCluster, which a quiet one leaves no line of."""
        port = json.loads(self.wait_line(STARTED))["admin_port"]
        end_s = time.monotonic() + deadline_s
        while RECONCILED.search(self._metrics(port)) is None:
            assert time.monotonic() < end_s, "\n".join(self.lines)
            time.sleep(POLL_S)

    def _metrics(self, port: int) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
        try:
            connection.request("GET", "/metrics")
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def rss_bytes(self) -> int:
        """Its memory now."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        line = next(each for each in status.splitlines() if each.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024


@dataclass
class Operators:
    """The processes of one block, which share a namespace and a Lease."""

    cluster: Cluster
    namespace: str
    folder: Path
    kubeconfig: Path
    started: list[Operator] = field(default_factory=list)
    _statuses: dict[int, int] = field(default_factory=dict)
    _pids: list[int] = field(default_factory=list)
    _news: threading.Condition = field(default_factory=threading.Condition)
    _launcher: "subprocess.Popen[str] | None" = None

    def start(self, kubeconfig: Path | None = None, die: str = "") -> Operator:
        """One more process. `die` is `answered:N` or `torn:N`: with its n-th write."""
        number = len(self.started)
        name = f"operator-{number}"
        log = self.folder / f"{name}.log"
        env = environment() | {
            "KUBECONFIG": str(kubeconfig or self.kubeconfig),
            "ENGRAM_NAMESPACE": self.namespace,
            "ENGRAM_POD_NAME": f"{self.namespace}-{number}",
            "ENGRAM_LEASE": LEASE,
            "ENGRAM_ADMIN_PORT": "0",
            "ENGRAM_POSTGRES_IMAGE": image("postgres"),
            "ENGRAM_REDIS_IMAGE": image("redis"),
            "ENGRAM_OPERATOR_LABELS": LABELS,
            "LAUNCHER_API": str(self.cluster.folder / "api"),
            "LAUNCHER_DIE": die,
        }
        launcher = self._launcher
        assert launcher is not None
        assert launcher.stdin is not None
        launcher.stdin.write(json.dumps({"log": str(log), "env": env}) + "\n")
        launcher.stdin.flush()
        with self._news:
            assert self._news.wait_for(lambda: len(self._pids) > number, DEADLINE_S), "the launcher is silent"
            pid = self._pids[number]
        operator = Operator(pid, env["ENGRAM_POD_NAME"], log, lambda: self._statuses.get(pid))
        self.started.append(operator)
        return operator

    def lead(self, kubeconfig: Path | None = None, die: str = "") -> Operator:
        """One more process, which leads at once: whoever led before is dead."""
        self.free()
        operator = self.start(kubeconfig, die)
        if not die:
            operator.wait_line(LEADING)
        return operator

    def holder(self) -> str:
        """Who has the Lease: a pod's name and what is random."""
        _, lease = self.cluster.request("GET", self._lease_path)
        return str(lease.get("spec", {}).get("holderIdentity") or "")

    def free(self) -> None:
        """Nobody holds the Lease. Only for when nobody runs who does."""
        status, _ = self.cluster.request("PATCH", self._lease_path, {"spec": {"holderIdentity": ""}})
        if status == 404:
            body = {"metadata": {"name": LEASE}, "spec": {"leaseDurationSeconds": 15}}
            folder = self._lease_path.rpartition("/")[0]
            status, answer = self.cluster.request("POST", folder, body)
            assert status == 201, answer

    def kill_all(self) -> None:
        """None of the processes is left."""
        for operator in self.started:
            operator.kill()

    @property
    def _lease_path(self) -> str:
        return f"/apis/coordination.k8s.io/v1/namespaces/{self.namespace}/leases/{LEASE}"

    @contextmanager
    def launching(self) -> Iterator[None]:
        """While this block lasts processes can be started; after it none runs."""
        command = [sys.executable, str(ROOT / "tests" / "e2e" / "launcher.py")]
        with subprocess.Popen(
            command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as launcher:
            self._launcher = launcher
            reader = threading.Thread(target=self._read, args=(launcher,))
            reader.start()
            try:
                yield
            finally:
                launcher.kill()  # and its children with it
                reader.join()

    def _read(self, launcher: "subprocess.Popen[str]") -> None:
        assert launcher.stdout is not None
        for line in launcher.stdout:
            told = json.loads(line)
            with self._news:
                if "status" in told:
                    self._statuses[told["pid"]] = told["status"]
                else:
                    self._pids.append(told["pid"])
                self._news.notify_all()


@contextmanager
def operating(cluster: Cluster, folder: Path) -> Iterator[Operators]:
    """A namespace for operators and their Lease; none of them is left at the end."""
    text = cluster.kubectl("config", "view", "--minify", "--flatten", "--raw")
    kubeconfig = folder / "kubeconfig"
    kubeconfig.touch(mode=0o600)
    kubeconfig.write_text(text)
    with cluster.namespace("operators") as namespace:
        operators = Operators(cluster, namespace, folder, kubeconfig)
        with operators.launching():
            yield operators
