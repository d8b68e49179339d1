"""The behaviour suite against a sidecar in a thread of the test run, with two real servers behind it.

Once straight to them and once through PgBouncer, with as many connections for all as one sidecar may open.
"""

from collections.abc import Iterator

import pytest

from tests.behaviour import *  # noqa: F403  the suite is one; what differs is the fixture `http`
from tests.harness import Http


@pytest.fixture(scope="module", params=["sidecar", "pooled_sidecar"])
def port(request: pytest.FixtureRequest) -> int:
    """Where a sidecar answers, which reaches its shards in one of both ways."""
    number: int = request.getfixturevalue(request.param).ports.http_port
    return number


@pytest.fixture
def http(port: int) -> Iterator[Http]:
    """Requests to that sidecar."""
    client = Http(port)
    yield client
    client.close()
