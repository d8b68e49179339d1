"""Rows that are written to a shard while something is done to it, and the verdict: none that was acknowledged is lost.

The writer (writer.py) runs in a pod beside the shard and speaks to every member, or to the -rw Service. What it says is
held against the table of the primary afterwards. Times are Unix seconds of one machine.
"""

import base64
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from engram_contract.names import INJECTED_LABEL
from tests.e2e import memory, shards
from tests.e2e.cluster import Cluster, CommandFailed, holds
from tests.e2e.releases import image

Json = dict[str, Any]
WRITER: Final = Path(__file__).with_name("writer.py")
PYTHON: Final = "/opt/patroni/bin/python"
LONGEST_S: Final = 7200
KILL: Final = "import os, signal; os.kill(int(open('/data/postgres/postmaster.pid').readline()), signal.SIGKILL)"
FOLLOWERS: Final = (
    "SELECT count(*), count(*) FILTER (WHERE sync_state = 'sync') FROM pg_stat_replication WHERE state = 'streaming'"
)
STOP: Final = "import os, signal; os.kill(1, signal.SIGTERM)"


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """One row that the writer was told is safe. `place` is its host's in the writer's list."""

    number: int
    at_s: float
    place: int


@dataclass(frozen=True, slots=True)
class Written:
    """What a writer was told, in the order of time."""

    rows: tuple[Acknowledged, ...]
    refused: tuple[str, ...]

    def gap_s(self, from_s: float, to_s: float) -> float:
        """The longest time without an acknowledged row between these two moments."""
        inside = [from_s, *(each.at_s for each in self.rows if from_s < each.at_s < to_s), to_s]
        return max(after - before for before, after in pairwise(inside))

    def terms(self) -> list[int]:
        """Which hosts acknowledged, one after the other, in the order in which they were asked.

        A frozen primary that thaws reads what its standby had confirmed, and so tells of a row that is on both.
        """
        found: list[int] = []
        for each in sorted(self.rows, key=lambda row: row.number):
            if not found or found[-1] != each.place:
                found.append(each.place)
        return found


@dataclass(frozen=True, slots=True)
class Load:
    """A writer at work on one shard of a MemoryCluster."""

    cluster: Cluster
    namespace: str
    pod: str
    shard: str = "s0"

    def written(self) -> Written:
        """What it was told, once it was stopped."""
        command = ("exec", "-n", self.namespace, self.pod, "--", PYTHON, "-c", STOP)
        self.cluster.kubectl(*command)
        phase = "--for=jsonpath={.status.phase}=Succeeded"
        self.cluster.kubectl("wait", "-n", self.namespace, f"pod/{self.pod}", phase, "--timeout=90s")
        *lines, last = self.said().strip().splitlines()
        rows = sorted((_read(line) for line in lines if line[0].isdigit()), key=lambda each: each.at_s)
        assert json.loads(last)["acknowledged"] == len(rows)
        return Written(tuple(rows), tuple(line for line in lines if not line[0].isdigit()))

    def said(self) -> str:
        """Its whole log so far; nothing before it starts."""
        status, text = self.cluster.fetch("GET", f"/api/v1/namespaces/{self.namespace}/pods/{self.pod}/log")
        return text if status == 200 else ""

    def lost(self, written: Written) -> list[int]:
        """The acknowledged numbers that the primary has not."""
        primary = memory.primary_of(memory.wait_ready(self.cluster, self.namespace), self.shard)
        rows = memory.sql(self.cluster, self.namespace, primary, "SELECT string_agg(n::text, ' ') FROM t")
        return sorted({each.number for each in written.rows} - {int(row) for row in rows.split()})


def _read(line: str) -> Acknowledged:
    number, at_s, place = line.split()
    return Acknowledged(int(number), float(at_s), int(place))


@contextmanager
def writing(cluster: Cluster, namespace: str, members: int = 0, name: str = "memory") -> Iterator[Load]:
    """A writer at work on s0: on its -rw Service, or on so many members by their names. Its table begins empty."""
    primary = memory.primary_of(memory.fetch(cluster, namespace, name))
    memory.sql(cluster, namespace, primary, "DROP TABLE IF EXISTS t")
    hosts = [f"{name}-s0-{number}.{name}-pods.{namespace}.svc" for number in range(members)]
    load = Load(cluster, namespace, "writer")
    memory.apply(
        cluster,
        build_writer(
            namespace, load.pod, hosts or [f"{name}-s0-rw.{namespace}.svc"], password(cluster, namespace, name)
        ),
    )
    try:
        cluster.wait_until("the first row", lambda: any(line[:1].isdigit() for line in load.said().splitlines()))
        yield load
    finally:
        cluster.kubectl("delete", "pod", "-n", namespace, load.pod, "--grace-period=0", "--force", "--ignore-not-found")


def build_writer(namespace: str, name: str, hosts: Sequence[str], word: str) -> Json:
    """The writer's pod. It bears the label by which the shards' NetworkPolicy lets sidecars in."""
    container = {
        "name": "writer",
        "image": image("postgres"),  # has a driver of Postgres
        "imagePullPolicy": "IfNotPresent",
        "command": [PYTHON, "-c", WRITER.read_text(), ",".join(hosts), word, str(LONGEST_S)],
        "securityContext": shards.RESTRICTED,
    }
    spec = {"restartPolicy": "Never", "securityContext": shards.RESTRICTED_POD, "containers": [container]}
    metadata = {"name": name, "namespace": namespace, "labels": {INJECTED_LABEL: "true"}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def password(cluster: Cluster, namespace: str, name: str = "memory") -> str:
    """The superuser's, as the cluster's Secret has it now."""
    secret = cluster.request("GET", f"/api/v1/namespaces/{namespace}/secrets/{name}-credentials")[1]
    return base64.b64decode(secret["data"]["superuser"]).decode()


# ------------------------------------------------------------------------------------------------------- the members


def pods(cluster: Cluster, namespace: str, shard: str = "s0") -> dict[str, Json]:
    """The members of a shard by their names."""
    selector = f"engram.dev/scope=memory-{shard}"
    found = cluster.request("GET", f"/api/v1/namespaces/{namespace}/pods", labelSelector=selector)[1]["items"]
    return {each["metadata"]["name"]: each for each in found}


def python(cluster: Cluster, namespace: str, pod: str, program: str, *arguments: str) -> str:
    """What a program of Python prints that runs in the pod of a member."""
    command = ("exec", "-n", namespace, pod, "-c", "postgres", "--", PYTHON, "-c", program, *arguments)
    return cluster.kubectl(*command).strip()


def kill_postgres(cluster: Cluster, namespace: str, pod: str) -> None:
    """The postmaster in the pod ends at once, with everything that it was about to write."""
    python(cluster, namespace, pod, KILL)


def leader(cluster: Cluster, namespace: str, shard: str = "s0") -> str:
    """Who leads, as Patroni notes it."""
    return _noted(cluster, namespace, f"memory-{shard}-leader").get("leader", "")


def is_whole(cluster: Cluster, namespace: str, members: int, shard: str = "s0") -> bool:
    """Whether every member is ready and one can take over without a loss: a synchronous one that all agree on.

    Patroni notes it, but what it notes is of its last look, and after a crash nobody may follow the primary any more.
    """
    found = pods(cluster, namespace, shard).values()
    ready = [each for each in found if holds(each, "Ready") and "deletionTimestamp" not in each["metadata"]]
    sync = _noted(cluster, namespace, f"memory-{shard}-sync")
    is_led = bool(sync.get("sync_standby")) and sync.get("leader") == leader(cluster, namespace, shard)
    if len(ready) != members or not (is_led or members == 1):
        return False
    try:
        told = memory.sql(cluster, namespace, leader(cluster, namespace, shard), FOLLOWERS)
    except CommandFailed:  # it starts, or another one leads by now
        return False
    return told == f"{members - 1}|{min(1, members - 1)}"


def wait_whole(cluster: Cluster, namespace: str, members: int, deadline_s: float = memory.READY_S) -> None:
    """All members are there, and a synchronous one with them."""
    cluster.wait_until("a whole shard", lambda: is_whole(cluster, namespace, members), deadline_s)


def _noted(cluster: Cluster, namespace: str, name: str) -> dict[str, str]:
    body = cluster.request("GET", f"/api/v1/namespaces/{namespace}/configmaps/{name}")[1]
    found: dict[str, str] = body.get("metadata", {}).get("annotations") or {}
    return found


def restarts(cluster: Cluster, namespace: str) -> dict[str, tuple[str, int]]:
    """Each member's uid, and how often its containers were started anew."""
    return {
        name: (pod["metadata"]["uid"], sum(each["restartCount"] for each in pod["status"]["containerStatuses"]))
        for name, pod in pods(cluster, namespace).items()
    }


# -------------------------------------------------------------------------------------------------------- the figures


def report(line: str) -> None:
    """A figure for the proofs."""
    print(line)  # noqa: T201  that is what it is for


def figures(gaps_s: Sequence[float]) -> str:
    """Median, 99th percentile and the longest."""
    ordered = sorted(gaps_s)
    p50, p99 = (ordered[min(len(ordered) - 1, int(len(ordered) * share))] for share in (0.5, 0.99))
    longest = ", ".join(f"{gap:.2f}" for gap in ordered[-5:])
    return f"{len(ordered)} gaps: p50 {p50:.2f} s, p99 {p99:.2f} s, longest {longest} s"
