"""The integration tier's stage: two servers of Postgres 18, a tenant over both, a sidecar. Started once per run."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from engram_contract.names import MAP_FILE
from engram_contract.shardmap import ShardMap
from engram_operator.clients.x509 import make_ca, make_serving
from engram_sidecar.settings import Settings
from tests.harness import Http, RealServer, SidecarThread, Tenant, create_tenant, server_folder
from tests.pooler import NoPooler, Pooler, admit_pooler, pooler_before, prepare_pooler
from tests.redis_server import NoRedis, Program, RedisServer, prepare_redis, redis_server


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


@pytest.fixture(scope="session")
def pooler_command() -> Iterator[tuple[str, ...]]:
    """What runs PgBouncer; without it the tests that need it are skipped, with the reason."""
    with server_folder() as folder:
        try:
            yield prepare_pooler(folder)
        except NoPooler as reason:
            pytest.skip(str(reason))


@pytest.fixture(scope="session")
def redis_program() -> Iterator[Program]:
    """What runs Redis; without it the tests that need it are skipped, with the reason."""
    with server_folder() as folder:
        try:
            yield prepare_redis(folder)
        except NoRedis as reason:
            pytest.skip(str(reason))


@pytest.fixture
def redis(redis_program: Program, tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own."""
    with redis_server(redis_program, tmp_path / "redis") as server:
        yield server


@pytest.fixture
def patient_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call to Redis takes what it takes: a machine that stands still for a moment is none of the test's business."""
    monkeypatch.setattr("engram_sidecar.redisdoor.CALL_S", 10.0)
    monkeypatch.setattr("engram_sidecar.redisdoor.CONNECT_S", 10.0)
    monkeypatch.setattr("engram_sidecar.redisdial.CONNECT_S", 10.0)
    monkeypatch.setattr("engram_sidecar.bulletin.TELL_S", 10.0)


@pytest.fixture(scope="session")
def authorities() -> tuple[str, bytes, bytes]:
    """A CA, and a certificate with its key for `localhost`."""
    ca = make_ca(time.time())
    serving = make_serving(ca, ["localhost"], time.time())
    return ca.certificate.decode(), serving.certificate, serving.key


@pytest.fixture(scope="session")
def poolers(
    servers: tuple[RealServer, RealServer], tenant: Tenant, pooler_command: tuple[str, ...]
) -> Iterator[tuple[Pooler, Pooler]]:
    """A PgBouncer before each server, with fewer connections than sidecars may open."""
    assert tenant.servers == servers  # whose database the poolers' role is made in
    with server_folder() as folder, ExitStack() as stack:
        for server in servers:
            asyncio.run(admit_pooler(server))
        first, second = (
            stack.enter_context(pooler_before(server, pooler_command, folder / f"s{number}", connections=2))
            for number, server in enumerate(servers)
        )
        yield first, second


@pytest.fixture(scope="session")
def pooled_tenant(
    servers: tuple[RealServer, RealServer],
    poolers: tuple[Pooler, Pooler],
    tmp_path_factory: pytest.TempPathFactory,
) -> Tenant:
    """A tenant over both servers, whose sidecar reaches them through the poolers."""
    tenant = asyncio.run(create_tenant("pooled", servers, tmp_path_factory.mktemp("pooled")))
    (tenant.config_dir / MAP_FILE).write_text(through(poolers, tenant.shard_map).to_json())
    return tenant


def through(poolers: tuple[Pooler, Pooler], shard_map: ShardMap) -> ShardMap:
    """The map with the poolers in the place of their servers."""
    shards = tuple(
        replace(shard, nodes=(replace(shard.nodes[0], port=pooler.port),))
        for shard, pooler in zip(shard_map.shards, poolers, strict=True)
    )
    return replace(shard_map, shards=shards)


@pytest.fixture(scope="session")
def pooled_sidecar(pooled_tenant: Tenant) -> Iterator[SidecarThread]:
    """That tenant's sidecar."""
    with SidecarThread(Settings(pooled_tenant.config_dir, http_port=0, admin_port=0)).running() as thread:
        yield thread


@pytest.fixture
def http(sidecar: SidecarThread) -> Iterator[Http]:
    """Requests to the tenant's sidecar."""
    client = Http(sidecar.ports.http_port)
    yield client
    client.close()
