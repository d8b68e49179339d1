"""kill -9 with every write: the next process goes on, and what comes out is what one process would have made."""

import json
import time
from collections.abc import Callable

import pytest

from engram_contract.names import CLUSTER_LABEL
from engram_operator.clients.kube import OWNED
from tests.e2e import memory
from tests.e2e.audits import Audit
from tests.e2e.cluster import POLL_S, Cluster
from tests.e2e.judges import differences, snapshot
from tests.e2e.operators import Operators, tell

CHAIN_S = 300.0
GONE_S = 120.0
STAYS_S = 3.0  # a run that began before the delete may yet make an object, whose owner is gone: it goes too
Json = dict[str, object]


def die_until(operators: Operators, how: str, is_done: Callable[[], object]) -> list[str]:
    """One process after the other, each dead with its first write, until it is done; the writes, in order."""
    end_s = time.monotonic() + CHAIN_S
    writes: list[str] = []
    while True:
        operator = operators.lead(die=f"{how}:1")
        while operator.status is None and not is_done():
            assert time.monotonic() < end_s, f"after {len(writes)} deaths:\n" + "\n".join(operator.lines[-20:])
            time.sleep(POLL_S)
        is_over = operator.status is None
        operator.kill()
        writes += operator.writes
        if is_over:
            return writes


def is_settled(operators: Operators, namespace: str) -> bool:
    """Whether the cluster is Ready with the objects of its spec."""
    body = memory.fetch(operators.cluster, namespace)
    return memory.is_ready(body) and differences(operators, namespace) == []


def what_is_left(cluster: Cluster, namespace: str) -> list[tuple[str, str]]:
    """Every object that bears the label of the cluster `memory`, whoever made it."""
    return [
        (kind, each["metadata"]["name"])
        for kind, resource in OWNED.items()
        for each in cluster.request("GET", resource.path(namespace), labelSelector=f"{CLUSTER_LABEL}=memory")[1][
            "items"
        ]
    ]


def change(operators: Operators, namespace: str, how: str, **spec: object) -> list[str]:
    """The writes of the operators that died until a change was carried out."""
    memory.patch(operators.cluster, namespace, spec)
    writes = die_until(operators, how, lambda: is_settled(operators, namespace))
    tell(f"{how} {json.dumps(spec)}: {len(writes)} writes")
    return writes


def delete(operators: Operators, namespace: str) -> None:
    """The cluster goes with all that it has, and stays gone, under an operator that runs."""
    cluster, audit = operators.cluster, Audit()
    operator = operators.lead()
    cluster.kubectl("delete", "memorycluster", "memory", "-n", namespace)
    cluster.wait_until("all of it to go", lambda: not what_is_left(cluster, namespace), GONE_S)
    time.sleep(STAYS_S)
    operator.kill()
    tell(f"at the end {[(each.verb, each.resource, each.name, each.code) for each in audit.writes()]}")
    assert what_is_left(cluster, namespace) == []


def test_a_cluster_is_made_changed_and_deleted_by_operators_that_die_with_every_write(operators: Operators) -> None:
    cluster = operators.cluster
    with cluster.namespace("crashes") as namespace:
        memory.apply(cluster, memory.build_memory(namespace, **memory.ALONE))
        made = die_until(operators, "answered", lambda: is_settled(operators, namespace))
        before = snapshot(cluster, namespace)
        tell(f"{len(before)} objects by {len(made)} writes, the last of its process each")
        change(operators, namespace, "answered", postgres={"parameters": {"work_mem": "5MB"}})
        after = snapshot(cluster, namespace)
        assert after.keys() == before.keys()
        assert {place for place in before if before[place] != after[place]} == {("ConfigMap", "memory-s0-config")}
        delete(operators, namespace)


@pytest.mark.soak
@pytest.mark.parametrize("how", ["torn", "answered"])
def test_every_change_of_a_cluster_is_survived_with_real_shards(operators: Operators, how: str) -> None:
    cluster = operators.cluster
    with cluster.namespace("crashes") as namespace:
        memory.apply(cluster, memory.build_memory(namespace, **memory.ALONE))
        die_until(operators, how, lambda: is_settled(operators, namespace))
        before = snapshot(cluster, namespace)
        change(operators, namespace, how, replicas=1)
        change(operators, namespace, how, postgres={"parameters": {"max_connections": "110"}})
        change(operators, namespace, how, postgres={"parameters": None})
        change(operators, namespace, how, postgres={"resources": {"requests": {"cpu": "60m"}}})
        change(operators, namespace, how, postgres={"resources": {"requests": {"cpu": "50m"}}})
        change(operators, namespace, how, replicas=0)
        assert snapshot(cluster, namespace).keys() == before.keys()
        cluster.kubectl("delete", "memorycluster", "memory", "-n", namespace, "--wait=false")
        writes = die_until(operators, how, lambda: not what_is_left(cluster, namespace))
        tell(f"{how} delete: {len(writes)} writes")


@pytest.mark.parametrize("how", ["torn", pytest.param("answered", marks=pytest.mark.soak)])
def test_every_write_of_a_create_may_be_the_last(operators: Operators, how: str) -> None:
    """Without pods: each write of the objects, in the middle of which or after which the process is gone."""
    cluster = operators.cluster
    with cluster.namespace("crashes") as namespace:
        memory.apply(cluster, memory.build_memory(namespace, **memory.NOWHERE))
        writes = die_until(operators, how, lambda: not differences(operators, namespace))
        before = snapshot(cluster, namespace)
        operator = operators.lead()
        operator.wait_reconciled()
        operator.kill()
        tell(f"{len(before)} objects by {len(writes)} operators, {how}")
        assert differences(operators, namespace) == []
        assert snapshot(cluster, namespace) == before
