"""Databases of somebody else's, by a DSN in a Secret; and the number of shards before there is any tenant."""

import base64
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import pytest

from engram_contract.names import SHARED_DATABASE
from tests.e2e import load, memory
from tests.e2e.agents import TENANT, fetch_map, wait_tenant
from tests.e2e.cluster import Cluster
from tests.e2e.operators import Operators

Json = dict[str, Any]
OUTER: Final = "outer"
DSN: Final = "postgres-dsn"


@pytest.fixture(scope="module")
def inner(operators: Operators) -> Iterator[str]:
    """The namespace of a Managed cluster, paused, whose Postgres plays somebody else's, without our databases."""
    cluster, operator = operators.cluster, operators.lead()
    with cluster.namespace("external") as namespace:
        memory.apply(cluster, memory.build_memory(namespace, **memory.ALONE))
        memory.wait_ready(cluster, namespace)
        vary_shards(cluster, namespace)
        memory.patch(cluster, namespace, {"paused": True})
        cluster.wait_until("Paused", lambda: memory.fetch(cluster, namespace)["status"]["phase"] == "Paused")
        memory.sql(cluster, namespace, "memory-s0-0", f"DROP DATABASE {SHARED_DATABASE} WITH (FORCE)")
        for role in ("stranger", "weak"):
            memory.sql(cluster, namespace, "memory-s0-0", f"CREATE ROLE {role} LOGIN PASSWORD '{role}'")
        memory.sql(cluster, namespace, "memory-s0-0", "GRANT CONNECT ON DATABASE postgres TO weak")
        yield namespace
    operator.kill()


def vary_shards(cluster: Cluster, namespace: str) -> None:
    """Without tenants a shard comes and goes as the spec says, with its volume."""
    for count in (2, 1):
        began_s = time.monotonic()
        memory.patch(cluster, namespace, {"shards": count})
        body = memory.wait_ready(cluster, namespace)
        assert [each["id"] for each in body["status"]["shards"]] == ["s0", "s1"][:count]
        assert body["status"]["ready"] == f"{count}/{count}"
        load.report(f"{count} shards, no tenant: {time.monotonic() - began_s:.0f} s")

    def pods() -> set[str]:
        listed = cluster.request("GET", f"/api/v1/namespaces/{namespace}/pods")[1]["items"]
        return {each["metadata"]["name"] for each in listed}

    cluster.wait_until("its pod to be gone", lambda: pods() == {"memory-s0-0"})


def dsn(namespace: str, user: str, word: str, query: str = "?sslmode=require") -> str:
    return f"postgresql://{user}:{word}@memory-s0-rw.{namespace}.svc:5432/{query}"


def put_secret(cluster: Cluster, namespace: str, text: str) -> None:
    data = {"dsn": base64.b64encode(text.encode()).decode()}
    metadata = {"name": DSN, "namespace": namespace}
    memory.apply(cluster, {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data})


def trouble(cluster: Cluster, namespace: str, part: str) -> str:
    """What Ready says while it is not True, if this is a part of it."""
    found = memory.condition(memory.fetch(cluster, namespace, OUTER), "Ready")
    text = f"{found.get('reason')}: {found.get('message')}"
    return text if found.get("status") == "False" and part.lower() in text.lower() else ""


def test_a_database_of_somebody_elses_serves_once_its_dsn_is_right(operators: Operators, inner: str) -> None:
    cluster = operators.cluster
    word = load.password(cluster, inner)
    reference = {"id": "s0", "secretRef": {"name": DSN, "key": "dsn"}}
    spec = {"provider": "External", "external": [reference], "shards": 1}
    memory.apply(cluster, memory.build_memory(inner, OUTER, **spec))
    cases = [
        (None, f"Secret {DSN} is not there"),
        ("mysql://x:y@z/", "must begin with postgresql://"),
        (dsn(inner, "postgres", "wrong"), "password"),
        (dsn(inner, "stranger", "stranger"), "permission denied"),
        (dsn(inner, "weak", "weak"), "create roles"),
        (dsn(inner, "postgres", word, "?sslmode=disable"), "no encryption"),
    ]
    for text, said in cases:
        if text is not None:
            put_secret(cluster, inner, text)
        began_s = time.monotonic()
        what = f"a condition that says {said!r}"
        told = cluster.wait_until(what, partial(trouble, cluster, inner, said), 90)
        load.report(f"after {time.monotonic() - began_s:.0f} s: {told}")
        assert word not in told
    put_secret(cluster, inner, dsn(inner, "postgres", word))
    memory.wait_ready(cluster, inner, OUTER)
    memory.apply(cluster, memory.build_tenant(inner, TENANT, OUTER))
    wait_tenant(cluster, inner)
    (shard,) = fetch_map(cluster, inner)["shards"]
    assert (shard["nodes"][0]["host"], shard["nodes"][0]["port"]) == (f"memory-s0-rw.{inner}.svc", 5432)
    assert cluster.kubectl("get", "statefulset", "-n", inner, "-o", "name") == "statefulset.apps/memory-s0\n"
