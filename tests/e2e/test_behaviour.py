"""The behaviour suite, unchanged, against local mode and against an agent's pod with the sidecar that was injected."""

from collections.abc import Iterator

import pytest

from tests.behaviour import *  # noqa: F403  the suite is one; what differs is the fixture `http`
from tests.e2e.agents import AGENT, APP_PORT, agent_pod, forwarded
from tests.e2e.stage import new_stage
from tests.harness import Http


@pytest.fixture(scope="module")
def local_port() -> Iterator[int]:
    """Local mode with the quickstart's tenant."""
    stage = new_stage()
    stage.up()
    yield stage.port
    stage.clean_up()


@pytest.fixture(scope="module")
def pod_port(release: str, request: pytest.FixtureRequest) -> Iterator[int]:
    """The sidecar in an agent's pod, as the app beside it reaches it: on localhost."""
    cluster = request.getfixturevalue("cluster")
    with agent_pod(cluster) as namespace, forwarded(cluster, namespace, AGENT, APP_PORT) as port:
        yield port


@pytest.fixture(params=["local_port", "pod_port"])
def http(request: pytest.FixtureRequest) -> Iterator[Http]:
    """Requests to one of the two."""
    client = Http(request.getfixturevalue(request.param))
    yield client
    client.close()
