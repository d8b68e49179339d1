"""The integration tier's stage: two servers of Postgres 18, a tenant over both, a sidecar. Started once per run."""

import asyncio
from collections.abc import Iterator

import pytest

from engram_sidecar.settings import Settings
from tests.harness import Http, RealServer, SidecarThread, Tenant, create_tenant, server_folder


@pytest.fixture(scope="session")
def servers() -> Iterator[tuple[RealServer, RealServer]]:
    """Two servers of Postgres 18."""
    with server_folder() as folder:
        pair = (RealServer.create(folder / "s0", 18), RealServer.create(folder / "s1", 18))
        yield pair
        for server in pair:
            server.stop("immediate")


@pytest.fixture(scope="session")
def server16() -> Iterator[RealServer]:
    """A server of Postgres 16, the oldest that Engram takes."""
    with server_folder() as folder:
        server = RealServer.create(folder / "old", 16)
        yield server
        server.stop("immediate")


@pytest.fixture(scope="session")
def tenant(servers: tuple[RealServer, RealServer], tmp_path_factory: pytest.TempPathFactory) -> Tenant:
    """A tenant over both servers."""
    folder = tmp_path_factory.mktemp("tenant")
    return asyncio.run(create_tenant("support", servers, folder))


@pytest.fixture(scope="session")
def sidecar(tenant: Tenant) -> Iterator[SidecarThread]:
    """The tenant's sidecar, on ports that the system chose."""
    with SidecarThread(Settings(tenant.config_dir, http_port=0, admin_port=0)).running() as thread:
        yield thread


@pytest.fixture
def http(sidecar: SidecarThread) -> Iterator[Http]:
    """Requests to the tenant's sidecar."""
    client = Http(sidecar.ports.http_port)
    yield client
    client.close()
