"""Real parts that several tiers build their stages from: a Postgres from the wheel, a tenant on it, a sidecar in front.

Everything listens on loopback, on ports that the system chooses, in a directory of the test run.
"""

import asyncio
import base64
import contextlib
import http.client
import itertools
import json
import os
import select
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import asyncpg

from engram_cli.account import find_account
from engram_cli.datadir import make_directory
from engram_cli.embedded import Programs, prepare_programs, run
from engram_cli.server import Server, initialize, start, stop, write_settings
from engram_contract.caching import DEFAULT_CACHING, Caching
from engram_contract.credentials import Credentials, DataKey, Keyring
from engram_contract.names import (
    API_VERSION,
    CREDENTIALS_FILE,
    KEYS_FILE,
    MAP_FILE,
    POLICY_FILE,
    SHARED_DATABASE,
    TENANT_KIND,
    tenant_role,
)
from engram_contract.policy import LOCAL_QUOTAS, Limits, Policy
from engram_contract.shardmap import Node, Shard, ShardMap, Strategy, first_map
from engram_contract.slots import MemoryId
from engram_contract.spec import TenantSpec
from engram_operator.clients import postgres
from engram_operator.clients.connection import Admin
from engram_operator.clients.postgres import ShardIdentity
from engram_sidecar.app import Sidecar, serving
from engram_sidecar.caches import Caches
from engram_sidecar.config import Config, InForce
from engram_sidecar.consistency import Floors
from engram_sidecar.errors import SidecarError
from engram_sidecar.fetching import Fetched, Fetcher
from engram_sidecar.recall import Recall
from engram_sidecar.sealing import Sealer, Vault
from engram_sidecar.settings import Settings
from engram_sidecar.store import Asks
from engram_sidecar.writes import Rules
from tests.ports import free_port

PASSWORD: Final = "of-one-test-run"  # noqa: S105  servers that live for one run on loopback
KEYRING: Final = Keyring(
    1,
    (DataKey(1, base64.b64encode(bytes(range(32))).decode()),),
    base64.b64encode(bytes(range(32, 64))).decode(),
)
INDEX_KEY: Final = base64.b64decode(KEYRING.index)
CLUSTER: Final = "11111111-2222-4333-8444-555555555555"
REQUEST_TIMEOUT_S: Final = 60  # a hang is a failure, with the traceback of what hung
# Well below the sidecar's 75 s: through a port-forward its end of an idle connection is heard of up to a second late.
REUSED_S: Final = 30.0


NO_CACHE: Final = Caching(local_entries=0)  # for those who look at what reaches the nodes


async def no_shard(_ids: Sequence[MemoryId]) -> list[Fetched | SidecarError]:
    """For caches of which nothing is read."""
    raise AssertionError


def no_recall(config: Config, store: Asks) -> Recall:
    """A first cache level that keeps nothing: for those who count what reaches the shard."""
    vault, in_force = Vault(lambda: config, os.urandom, lambda *_: None), InForce(config)
    fetcher = Fetcher(store, in_force, REQUEST_TIMEOUT_S)
    return Caches.create(in_force, vault, Floors(), fetcher.fetch, lambda: None).recall


@contextlib.contextmanager
def server_folder() -> Iterator[Path]:
    """A folder that the servers' account can pass through, unlike pytest's own; gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="engram-test-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        yield folder


@dataclass(frozen=True)
class RealServer:
    """A running Postgres with its superuser."""

    programs: Programs
    server: Server
    admin: Admin

    @classmethod
    def create(cls, directory: Path, version: int, programs: Programs | None = None) -> "RealServer":
        """A new server in this directory, started."""
        account, _ = find_account()
        programs = programs or prepare_programs(version, account, directory.parent / "programs")
        make_directory(directory, account.directory_mode)
        account.own(directory)
        server = Server(directory)
        initialize(programs, server, PASSWORD)
        port = free_port()
        # Statistics soon after a load, as a test does not wait a minute for them.
        write_settings(server, account, port, {"autovacuum_naptime": "1s", "max_connections": "60"})
        start(programs, server)
        return cls(programs, server, Admin("127.0.0.1", port, "postgres", PASSWORD))

    def make_standby(self, directory: Path) -> "RealServer":
        """A server that follows this one, started: a replica that can be promoted."""
        account = self.programs.account
        make_directory(directory, account.directory_mode)
        account.own(directory)
        server, port = Server(directory), free_port()
        primary = f"host=127.0.0.1 port={self.admin.port} user=postgres password={PASSWORD}"
        copied = run(
            self.programs, "pg_basebackup", "--pgdata", str(server.pgdata), "--dbname", primary,
            "--write-recovery-conf", "--checkpoint", "fast", "--wal-method", "stream", "--no-sync",
            timeout_s=REQUEST_TIMEOUT_S,
        )  # fmt: skip
        assert copied.returncode == 0, copied.stdout
        write_settings(server, account, port, {"max_connections": "60", "wal_retrieve_retry_interval": "500ms"})
        start(self.programs, server)
        return RealServer(self.programs, server, Admin("127.0.0.1", port, "postgres", PASSWORD))

    async def connect(self, database: str, user: str = "postgres", password: str = PASSWORD) -> Any:  # noqa: ANN401
        """A connection that the caller closes."""
        return await asyncpg.connect(
            host=self.admin.host, port=self.admin.port, user=user, password=password, database=database
        )

    @contextlib.asynccontextmanager
    async def session(self, database: str, user: str = "postgres") -> AsyncIterator[Any]:
        """A connection for a block."""
        connection = await self.connect(database, user)
        try:
            yield connection
        finally:
            await connection.close()

    def stop(self, mode: str = "fast") -> None:
        """The server ends: in order, or as if the power went (`immediate`)."""
        stop(self.programs, self.server, mode)

    def start(self) -> None:
        """The server answers again, on the same port."""
        start(self.programs, self.server)


async def wait_ended(server: RealServer, pid: int) -> None:
    """Returns when the session is gone; a server ends it a moment after it was told to."""
    is_there = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)"
    async with server.session("postgres") as connection, asyncio.timeout(REQUEST_TIMEOUT_S):
        while await connection.fetchval(is_there, pid):  # noqa: ASYNC110  it is another process that ends
            await asyncio.sleep(0.01)


@dataclass(frozen=True)
class Tenant:
    """A tenant on some servers: its role, map and configuration folder."""

    role: str
    shard_map: ShardMap
    config_dir: Path
    servers: tuple[RealServer, ...]
    database: str


def plain_rules(tenant: str) -> Rules:
    """What a tenant's policy says about writes that encrypts nothing and has no retention."""
    sealer = Sealer(tenant, None, bytes, lambda *_: None, encrypts=False)
    return Rules(sealer, Limits(), None, lambda *_: None)


def tenant_spec(name: str, **spec: object) -> TenantSpec:
    """A tenant as its manifest says."""
    return TenantSpec.from_resource(
        {
            "apiVersion": API_VERSION,
            "kind": TENANT_KIND,
            "metadata": {"name": name, "namespace": "agents"},
            "spec": {"clusterRef": {"name": "local"}, **spec},
        }
    )


async def create_tenant(  # noqa: PLR0913  each says one thing of the stage
    name: str,
    servers: Sequence[RealServer],
    folder: Path,
    *,
    database: str = SHARED_DATABASE,
    strategy: Strategy = Strategy.USER,
    spec: Mapping[str, Any] | None = None,
    caching: Caching = DEFAULT_CACHING,
) -> Tenant:
    """The tenant exists on every server, each a shard, and its sidecar's configuration is in `folder`."""
    role = tenant_role("agents", name)
    shards = tuple(
        Shard(f"s{number}", database, (Node(f"s{number}-0", server.admin.host, server.admin.port),))
        for number, server in enumerate(servers)
    )
    shard_map = first_map(role, strategy, shards, "default")
    for number, server in enumerate(servers):
        await postgres.migrate(server.admin, database, ShardIdentity(CLUSTER, f"s{number}"))
        await postgres.apply_tenant(server.admin, database, role, PASSWORD)
        await postgres.publish_map(server.admin, f"s{number}", shard_map)
    policy = tenant_spec(name, **dict(spec or {})).policy(LOCAL_QUOTAS, cache=caching)
    write_config(folder, shard_map, policy)
    return Tenant(role, shard_map, folder, tuple(servers), database)


def write_config(folder: Path, shard_map: ShardMap, policy: Policy) -> None:
    """The folder is what a sidecar of the map's tenant is given."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MAP_FILE).write_text(shard_map.to_json())
    (folder / POLICY_FILE).write_text(policy.to_json())
    (folder / CREDENTIALS_FILE).write_text(Credentials(shard_map.tenant, (PASSWORD,)).to_json())
    (folder / KEYS_FILE).write_text(KEYRING.to_json())


@dataclass
class SidecarThread:
    """A sidecar in a loop of its own, so that tests may be plain functions."""

    settings: Settings
    ports: Sidecar = field(init=False)

    @contextlib.contextmanager
    def running(self) -> Iterator["SidecarThread"]:
        """Serves for a block, then drains."""
        loop = asyncio.new_event_loop()
        started = threading.Event()
        stopped = asyncio.Event()
        failure: list[BaseException] = []

        async def serve() -> None:
            try:
                async with serving(self.settings) as self.ports:
                    started.set()
                    await stopped.wait()
            except BaseException as error:
                failure.append(error)
                raise
            finally:
                started.set()

        thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
        thread.start()
        started.wait()
        if failure:
            raise failure[0]
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(stopped.set)
            thread.join(timeout=REQUEST_TIMEOUT_S)
            loop.close()


@dataclass(frozen=True)
class Answer:
    """An HTTP answer. `json` is None without a body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401
        """The body's value."""
        return json.loads(self.body) if self.body else None


class Http:
    """Plain requests to one base address, and nothing clever: what is sent is what the test says."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.port = port
        self._connection = http.client.HTTPConnection(host, port, timeout=REQUEST_TIMEOUT_S)
        self._used_s = time.monotonic()

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()

    def __call__(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        raw: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        **query: object,
    ) -> Answer:
        """The answer to a request; `body` is sent as JSON, `raw` as it is, both as application/json if nothing else."""
        sent = raw if raw is not None else None if body is None else json.dumps(body).encode()
        said = {} if sent is None else {"Content-Type": "application/json"}
        if query:
            path += "?" + urlencode(query, doseq=True)
        if self._is_dropped() or time.monotonic() - self._used_s > REUSED_S:
            self._connection.close()
        self._used_s = time.monotonic()
        try:
            self._connection.request(method, path, sent, {**said, **(headers or {})})
            response = self._connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        except (http.client.HTTPException, OSError):
            self._connection.close()
            raise

    def _is_dropped(self) -> bool:
        """Whether the server ended the connection while it was idle, as any may (RFC 9112, 9.5)."""
        socket = self._connection.sock
        return socket is not None and bool(select.select([socket], [], [], 0)[0])


NUMBERS: Final = itertools.count(1)
