"""Volumes grow where their class lets them, whatever state the pods are in; where it does not, that is said."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.e2e import load, memory
from tests.e2e.cluster import Cluster, CommandFailed, holds
from tests.e2e.machine import disk_of
from tests.e2e.operators import Operators

Json = dict[str, Any]
CLASSES: Final = "/apis/storage.k8s.io/v1/storageclasses"
VOLUMES: Final = "/api/v1/persistentvolumes"
DEFAULT: Final = "storageclass.kubernetes.io/is-default-class"
CLAIM: Final = "data-memory-s0-0"
LOCAL: Final = "engram-e2e-local"  # a class whose volumes the test makes, and lets grow
ROWS: Final = 100
TEXT: Final = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 3000) i)"  # 96 kB
# No more than twice the small disk: it must never be the machine's own that is filled.
BALLAST: Final = "f = open('/data/ballast', 'wb', 0)\nfor _ in range(8192): f.write(bytes(65536))"


@contextmanager
def storage_class(cluster: Cluster, name: str) -> Iterator[str]:
    """A class as the default one, but that it does not allow volumes to grow."""
    found = cluster.request("GET", CLASSES)[1]["items"]
    model = next(each for each in found if (each["metadata"].get("annotations") or {}).get(DEFAULT) == "true")
    kept = {
        key: model[key] for key in ("provisioner", "reclaimPolicy", "volumeBindingMode", "parameters") if key in model
    }
    cluster.request("DELETE", f"{CLASSES}/{name}")
    status, answer = cluster.request(
        "POST", CLASSES, {"metadata": {"name": name}, "allowVolumeExpansion": False, **kept}
    )
    assert status == 201, answer
    try:
        yield name
    finally:
        cluster.request("DELETE", f"{CLASSES}/{name}")


@contextmanager
def local_volume(cluster: Cluster, path: Path, size: str) -> Iterator[str]:
    """The one volume of a class whose volumes may grow, but nobody makes them do it."""
    node = cluster.request("GET", "/api/v1/nodes")[1]["items"][0]["metadata"]["name"]
    here = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
    spec = {
        "storageClassName": LOCAL,
        "capacity": {"storage": size},
        "accessModes": ["ReadWriteOnce"],
        "persistentVolumeReclaimPolicy": "Retain",
        "local": {"path": str(path)},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [here]}},
    }
    kind: Json = {"provisioner": "kubernetes.io/no-provisioner", "allowVolumeExpansion": True}
    made: dict[str, Json] = {CLASSES: kind | {"volumeBindingMode": "WaitForFirstConsumer"}, VOLUMES: {"spec": spec}}
    try:
        for place, body in made.items():
            status, answer = cluster.request("POST", place, {"metadata": {"name": LOCAL}, **body})
            assert status == 201, answer
        yield LOCAL
    finally:
        for place in made:
            cluster.request("DELETE", f"{place}/{LOCAL}")


def size_of(cluster: Cluster, namespace: str) -> str:
    """What the claim asks for. That a volume follows is its provisioner's business, which ours is not."""
    path = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{CLAIM}"
    asked: str = cluster.request("GET", path)[1]["spec"]["resources"]["requests"]["storage"]
    return asked


def serves(cluster: Cluster, namespace: str) -> bool:
    """Whether the status says that the shard does."""
    return holds(memory.fetch(cluster, namespace), "ShardsReady")


def degraded(cluster: Cluster, namespace: str, reason: str) -> Json:
    """The condition, if it has this reason for the present spec."""
    body = memory.fetch(cluster, namespace)
    found = memory.condition(body, "Degraded")
    is_new = found.get("observedGeneration") == body["metadata"]["generation"]
    return found if is_new and (found["status"], found["reason"]) == ("True", reason) else {}


def test_a_volume_grows_if_its_class_allows_it_also_under_a_pod_that_cannot_start(operators: Operators) -> None:
    cluster, operator = operators.cluster, operators.lead()
    with storage_class(cluster, "engram-e2e-grows") as grows, cluster.namespace("storage") as namespace:
        own: Json = {"storage": {"storageClassName": grows, "reclaimPolicy": "Delete", "size": "256Mi"}, "replicas": 0}
        memory.apply(cluster, memory.build_memory(namespace, **own))
        memory.wait_ready(cluster, namespace)
        change = {"storage": {"size": "512Mi"}, "postgres": {"parameters": {"work_mem": "5MB"}}}
        memory.patch(cluster, namespace, change)
        told = cluster.wait_until("what cannot be", lambda: degraded(cluster, namespace, "StorageNotExpandable"))
        assert CLAIM in told["message"]
        load.report(f"a class that cannot: {told['message']!r}")
        # Everything else goes on.
        ask = ("SHOW work_mem",)
        cluster.wait_until("the setting", lambda: memory.sql(cluster, namespace, "memory-s0-0", *ask) == "5MB")
        assert memory.condition(memory.fetch(cluster, namespace), "ShardsReady")["status"] == "True"
        assert size_of(cluster, namespace) == "256Mi"
        # Now it can, and at the same time the pod cannot start.
        memory.patch(cluster, namespace, {"postgres": {"image": "localhost/engram-postgres:is-nowhere"}})
        cluster.wait_until(
            "a pod that is stuck",
            lambda: "is-nowhere" in memory.condition(memory.fetch(cluster, namespace), "Degraded")["message"],
        )
        began_s = time.monotonic()
        assert cluster.request("PATCH", f"{CLASSES}/{grows}", {"allowVolumeExpansion": True})[0] == 200
        cluster.wait_until("the claim to grow", lambda: size_of(cluster, namespace) == "512Mi", 60)
        ready = [memory.condition(each, "Ready").get("status") for each in load.pods(cluster, namespace).values()]
        load.report(
            f"the claim grew {time.monotonic() - began_s:.1f} s after its class allowed it, its pod Ready: {ready}"
        )
        assert ready == ["False"]
        memory.patch(cluster, namespace, {"postgres": {"image": None}})
        memory.wait_ready(cluster, namespace)
    operator.kill()


def fill(cluster: Cluster, namespace: str, pod: str) -> int:
    """Rows, then until the disk takes nothing more, not even the log of changes; how many were acknowledged."""
    memory.sql(cluster, namespace, pod, "CREATE TABLE rows (n int PRIMARY KEY, text text)")
    memory.sql(cluster, namespace, pod, f"INSERT INTO rows SELECT n, {TEXT} FROM generate_series(1, {ROWS}) n")
    with pytest.raises(CommandFailed, match="No space left on device"):
        load.python(cluster, namespace, pod, BALLAST)
    number = ROWS
    while True:
        try:
            memory.sql(cluster, namespace, pod, f"INSERT INTO rows SELECT {number + 1}, {TEXT}")
        except CommandFailed as error:
            load.report(f"the disk is full after {number} rows: {' '.join(str(error).split())[-200:]}")
            return number
        number += 1


def test_a_full_disk_grows_with_the_spec_and_every_row_is_there(operators: Operators) -> None:
    cluster, operator = operators.cluster, operators.lead()
    with (
        disk_of(256) as disk,
        local_volume(cluster, disk.path, "256Mi") as local,
        cluster.namespace("full") as namespace,
    ):
        own: Json = {"storage": {"storageClassName": local, "reclaimPolicy": "Delete"}, "replicas": 0}
        memory.apply(
            cluster, memory.build_memory(namespace, **own), memory.build_memory(namespace, "other", **memory.ALONE)
        )
        memory.wait_ready(cluster, namespace)
        memory.wait_ready(cluster, namespace, "other")
        rows = fill(cluster, namespace, "memory-s0-0")
        load.kill_postgres(cluster, namespace, "memory-s0-0")  # it has to write before it can serve again
        cluster.wait_until("a shard that is down", lambda: not serves(cluster, namespace))
        memory.patch(cluster, namespace, {"storage": {"size": "512Mi"}})
        cluster.wait_until("the claim to grow", lambda: size_of(cluster, namespace) == "512Mi", 60)
        assert not serves(cluster, namespace)
        assert memory.is_ready(memory.fetch(cluster, namespace, "other"))
        disk.resize(512)
        memory.wait_ready(cluster, namespace)
        assert memory.sql(cluster, namespace, "memory-s0-0", "SELECT count(*) FROM rows") == str(rows)
    operator.kill()
