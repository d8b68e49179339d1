"""One release of the chart for the package, and one shard of three members that its tests roll, lose and look at."""

from collections.abc import Iterator

import pytest

from tests.e2e import memory
from tests.e2e.cluster import Cluster
from tests.e2e.released import MEMBERS
from tests.e2e.releases import released


@pytest.fixture(scope="package")
def release(cluster: Cluster) -> Iterator[str]:
    """What Helm says of the release."""
    with released(cluster) as said:
        yield said


@pytest.fixture(scope="package")
def home(cluster: Cluster, release: str) -> Iterator[str]:
    """The namespace of the MemoryCluster `memory`: one shard, a primary and two replicas, `restricted` pods only."""
    with cluster.namespace("home") as namespace:
        memory.restrict(cluster, namespace)
        memory.apply(cluster, memory.build_memory(namespace, replicas=MEMBERS - 1))
        memory.wait_ready(cluster, namespace)
        yield namespace
