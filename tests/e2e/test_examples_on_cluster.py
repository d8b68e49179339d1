"""The examples for three sizes: each is accepted as it stands, and those that fit on a test's node become Ready."""

import json
from typing import Any, Final

import pytest
import yaml

from engram_contract.names import CLUSTER_KIND, SHARED_DATABASE, TENANT_KIND
from engram_contract.spec import ClusterSpec, TenantSpec
from tests.e2e import memory
from tests.e2e.agents import TENANT, fetch_map, wait_tenant
from tests.e2e.operators import Operators
from tests.e2e.releases import need_image
from tests.e2e.stage import ROOT

Json = dict[str, Any]
SIZES: Final = ("small", "middle", "large")
# All that is changed so that a test's node can bear them: what pods ask for, and that they may be deleted.
FITTING: Final[Json] = {
    "storage": {"size": "256Mi", "reclaimPolicy": "Delete"},
    "postgres": {"resources": {"requests": {"cpu": "50m", "memory": "128Mi"}}},
    "deletionProtection": False,
}


def example(size: str, namespace: str) -> dict[str, Json]:
    """The manifests of an example by kind, in this namespace."""
    found = list(yaml.safe_load_all((ROOT / "examples" / f"{size}.yaml").read_text()))
    for body in found:
        body["metadata"]["namespace"] = namespace
    return {body["kind"]: body for body in found}


@pytest.mark.parametrize("size", SIZES)
def test_an_example_is_accepted(operators: Operators, size: str) -> None:
    bodies = example(size, operators.namespace)
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(bodies.values())})
    said = operators.cluster.kubectl("apply", "--dry-run=server", "-f", "-", input=text)
    assert said.count("created (server dry run)") == 2
    cluster = ClusterSpec.from_resource(bodies[CLUSTER_KIND])
    tenant = TenantSpec.from_resource(bodies[TENANT_KIND])
    assert tenant.cluster_ref.name == cluster.name
    assert (cluster.shards_count, cluster.replicas) == {"small": (1, 0), "middle": (2, 1), "large": (8, 2)}[size]


@pytest.mark.parametrize("size", ["small", "middle"])
def test_an_example_becomes_ready(operators: Operators, size: str) -> None:
    cluster = operators.cluster
    if size == "middle":
        need_image("redis")
    operator = operators.lead()
    with cluster.namespace(f"example-{size}") as namespace:
        memory.restrict(cluster, namespace)
        bodies = example(size, namespace)
        bodies[CLUSTER_KIND]["spec"] = memory.merged(bodies[CLUSTER_KIND]["spec"], FITTING)
        memory.apply(cluster, *bodies.values())
        body = memory.wait_ready(cluster, namespace)
        wait_tenant(cluster, namespace)
        shards = ClusterSpec.from_resource(bodies[CLUSTER_KIND]).shards
        assert [each["id"] for each in fetch_map(cluster, namespace, TENANT)["shards"]] == [each.id for each in shards]
        for each in body["status"]["shards"]:
            assert each["vectors"] is True
            told = memory.sql(cluster, namespace, each["primary"], "SHOW server_version_num", SHARED_DATABASE)
            assert told.startswith("18")
        if size == "middle":
            cache = cluster.kubectl("get", "pod", "-n", namespace, "memory-redis-0", "-o", "jsonpath={.status.phase}")
            assert cache == "Running"
    operator.kill()
