"""A MemoryCluster is deleted: what is to stay stays and serves again, what is to go goes, and nothing hangs."""

import time
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from engram_contract.names import CLUSTER_LABEL, PROTECTED_LABEL
from engram_operator.clients.kube import OWNED
from tests.e2e import load, memory
from tests.e2e.cluster import E2E_LABEL, Cluster
from tests.e2e.operators import Operator, Operators

GONE_S: Final = 90.0  # a member's grace is 30 s
NAMESPACE_S: Final = 60.0
RETAINED: Final = {
    ("PersistentVolumeClaim", "data-memory-s0-0"),
    ("Secret", "memory-credentials"),
    ("Secret", "memory-ca"),
    ("ConfigMap", "memory-s0-config"),
    ("ConfigMap", "memory-s0-leader"),
}
Place = tuple[str, str]


@pytest.fixture(scope="module")
def operator(operators: Operators) -> Iterator[Operator]:
    """One operator for all that need one."""
    running = operators.lead()
    yield running
    running.kill()


def left(cluster: Cluster, namespace: str) -> set[Place]:
    """Every object that bears the label of the cluster, whoever made it."""
    selector = f"{CLUSTER_LABEL}=memory"
    return {
        (kind, each["metadata"]["name"])
        for kind, resource in OWNED.items()
        for each in cluster.request("GET", resource.path(namespace), labelSelector=selector)[1]["items"]
    }


def finalizers(cluster: Cluster, namespace: str) -> set[str]:
    """All of them, on whatever bears the cluster's label, and on the cluster."""
    selector = f"{CLUSTER_LABEL}=memory"
    lists = [
        cluster.request("GET", each.path(namespace), labelSelector=selector)[1]["items"] for each in OWNED.values()
    ]
    whole = [memory.fetch(cluster, namespace), *(each for items in lists for each in items)]
    return {name for each in whole for name in each["metadata"].get("finalizers") or ()}


def delete(cluster: Cluster, namespace: str) -> None:
    cluster.kubectl("delete", "memorycluster", "memory", "-n", namespace)


def test_a_retained_cluster_comes_back_with_its_data(operators: Operators, operator: Operator) -> None:
    cluster = operators.cluster
    body: memory.Json = {"replicas": 0, "storage": {"reclaimPolicy": "Retain"}}
    with cluster.namespace("retained") as namespace:
        memory.restrict(cluster, namespace)
        memory.apply(cluster, memory.build_memory(namespace, **memory.ALONE))  # to go with it, as was thought at first
        memory.wait_ready(cluster, namespace)
        memory.patch(cluster, namespace, body)
        memory.wait_ready(cluster, namespace)
        assert {each for each in finalizers(cluster, namespace) if "engram" in each} == set()
        made = "CREATE TABLE kept AS SELECT 42 AS n"
        memory.sql(cluster, namespace, "memory-s0-0", made)
        before = cluster_id(cluster, namespace)
        delete(cluster, namespace)
        began_s = time.monotonic()
        cluster.wait_until(
            "the rest to go",
            lambda: (
                {each for each in left(cluster, namespace) if each[0] in {"Pod", "Service", "StatefulSet"}} == set()
            ),
            GONE_S,
        )
        load.report(f"retained: gone after {time.monotonic() - began_s:.1f} s, left {sorted(left(cluster, namespace))}")
        assert left(cluster, namespace) >= RETAINED
        memory.apply(cluster, memory.build_memory(namespace, **body))
        began_s = time.monotonic()
        memory.wait_ready(cluster, namespace)
        load.report(f"retained: back after {time.monotonic() - began_s:.1f} s")
        assert memory.sql(cluster, namespace, "memory-s0-0", "SELECT n FROM kept") == "42"
        assert cluster_id(cluster, namespace) == before
        goes_whole(cluster, namespace)


def test_what_is_opened_is_open_everywhere(operators: Operators, operator: Operator) -> None:
    """One object that stays protected would hold up the end of its namespace for ever."""
    cluster = operators.cluster
    with cluster.namespace("opened") as namespace:
        memory.apply(cluster, memory.build_memory(namespace, **memory.ALONE, deletionProtection=True))
        memory.wait_ready(cluster, namespace)
        assert {kind for kind, _ in protected(cluster, namespace)} == {"PersistentVolumeClaim", "Secret", "StatefulSet"}
        memory.patch(cluster, namespace, {"deletionProtection": False})
        cluster.wait_until("nothing to be protected", lambda: not protected(cluster, namespace), 30)
        home = cluster.request("GET", f"/api/v1/namespaces/{namespace}")[1]
        assert home["metadata"]["labels"][PROTECTED_LABEL] == "false"


def protected(cluster: Cluster, namespace: str) -> set[Place]:
    """Every object that the API server would refuse to delete."""
    selector = f"{PROTECTED_LABEL}=true"
    return {
        (kind, each["metadata"]["name"])
        for kind, resource in OWNED.items()
        if kind != "Pod"  # a pod bears the label of its template, and no policy speaks of pods
        for each in cluster.request("GET", resource.path(namespace), labelSelector=selector)[1]["items"]
    }


def goes_whole(cluster: Cluster, namespace: str) -> None:
    """With reclaim policy Delete nothing is left of the same cluster, which was to be retained before."""
    memory.patch(cluster, namespace, {"storage": {"reclaimPolicy": "Delete"}})
    memory.wait_ready(cluster, namespace)
    delete(cluster, namespace)
    began_s = time.monotonic()
    cluster.wait_until("all of it to go", lambda: not left(cluster, namespace), GONE_S)
    load.report(f"deleted: gone after {time.monotonic() - began_s:.1f} s")


def cluster_id(cluster: Cluster, namespace: str) -> str:
    path = f"/api/v1/namespaces/{namespace}/secrets/memory-credentials"
    found: str = cluster.request("GET", path)[1]["data"]["cluster-id"]
    return found


# ----------------------------------------------------------------------------------------------- with its namespace


def is_begun(cluster: Cluster, namespace: str) -> bool:
    return bool(load.pods(cluster, namespace))


def become_ready(cluster: Cluster, namespace: str) -> None:
    memory.wait_ready(cluster, namespace)


def be_created(cluster: Cluster, namespace: str) -> None:
    cluster.wait_until("the first pod", lambda: is_begun(cluster, namespace))


def roll(cluster: Cluster, namespace: str) -> None:
    memory.wait_ready(cluster, namespace)
    uid = load.pods(cluster, namespace)["memory-s0-0"]["metadata"]["uid"]
    memory.patch(cluster, namespace, {"postgres": {"resources": {"requests": {"cpu": "60m"}}}})

    def is_rolling() -> bool:
        pod = load.pods(cluster, namespace).get("memory-s0-0")
        return pod is None or pod["metadata"]["uid"] != uid or "deletionTimestamp" in pod["metadata"]

    cluster.wait_until("a restart", is_rolling)


STATES: Final = {"Ready": become_ready, "Creating": be_created, "rolling": roll}


@pytest.mark.parametrize("state", STATES)
def test_its_namespace_goes_in_every_state(operators: Operators, operator: Operator, state: str) -> None:
    end_namespace(operators, STATES[state], state)


def test_its_namespace_goes_while_no_operator_runs(operators: Operators, operator: Operator) -> None:
    stopped: list[Operator] = []

    def stop(cluster: Cluster, namespace: str) -> None:
        memory.wait_ready(cluster, namespace)
        stopped.append(operator)
        operator.kill()

    end_namespace(operators, stop, "operator gone first")


def end_namespace(operators: Operators, reach: Callable[[Cluster, str], None], name: str) -> None:
    """The namespace goes within a minute, with all that is in it."""
    cluster = operators.cluster
    namespace = f"ending-{name.lower().replace(' ', '-')}"
    cluster.request("POST", "/api/v1/namespaces", {"metadata": {"name": namespace, "labels": {E2E_LABEL: "true"}}})
    cluster.namespaces.add(namespace)
    try:
        memory.apply(cluster, memory.build_memory(namespace, replicas=0))
        reach(cluster, namespace)
        path = f"/api/v1/namespaces/{namespace}"
        began_s = time.monotonic()
        status, answer = cluster.request("DELETE", path)
        assert status == 200, answer
        cluster.wait_until("the end of the namespace", lambda: cluster.request("GET", path)[0] == 404, NAMESPACE_S)
        load.report(f"namespace deleted, {name}: {time.monotonic() - began_s:.1f} s")
    finally:
        cluster.namespaces.discard(namespace)
        cluster.delete_namespaces(namespace)
