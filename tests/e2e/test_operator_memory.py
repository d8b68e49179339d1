"""What an operator of twenty clusters takes of a node's memory."""

from typing import Final

import pytest

from tests.e2e import memory
from tests.e2e.judges import differences
from tests.e2e.operators import Operators, tell

CLUSTERS: Final = 20
MIB: Final = 1 << 20
MOST_BYTES: Final = 120 * MIB


@pytest.mark.soak
def test_twenty_clusters_fit_into_little_memory(operators: Operators) -> None:
    """Twenty without pods, and one that serves."""
    cluster = operators.cluster
    with cluster.namespace("many") as namespace:
        operator = operators.lead()
        empty = operator.rss_bytes()
        names = [f"memory-{number}" for number in range(CLUSTERS)]
        memory.apply(cluster, *(memory.build_memory(namespace, name, **memory.NOWHERE) for name in names))
        memory.apply(cluster, memory.build_memory(namespace, **memory.ALONE))
        memory.wait_ready(cluster, namespace)
        for name in names:
            cluster.wait_until(name, lambda name=name: not differences(operators, namespace, name))  # type: ignore[misc]
        full = operator.rss_bytes()
        operator.kill()
        tell(f"RSS {empty / MIB:.1f} MiB when it leads, {full / MIB:.1f} MiB with {CLUSTERS + 1} clusters")
        assert full < MOST_BYTES
