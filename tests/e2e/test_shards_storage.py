"""Volumes grow where their class lets them, whatever state the pods are in; where it does not, that is said."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from tests.e2e import load, memory
from tests.e2e.cluster import Cluster
from tests.e2e.operators import Operators

Json = dict[str, Any]
CLASSES: Final = "/apis/storage.k8s.io/v1/storageclasses"
DEFAULT: Final = "storageclass.kubernetes.io/is-default-class"
CLAIM: Final = "data-memory-s0-0"


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


def size_of(cluster: Cluster, namespace: str) -> str:
    """What the claim asks for. That a volume follows is its provisioner's business, which ours is not."""
    path = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{CLAIM}"
    asked: str = cluster.request("GET", path)[1]["spec"]["resources"]["requests"]["storage"]
    return asked


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
