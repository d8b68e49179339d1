"""Composition root of the data plane: configuration to a serving sidecar, and its orderly end.

Start: read the folder, build store, map, pipeline and interface, listen. End (drain): not ready any more, no new
connection, running requests finish within `drain_timeout_s`, pools close. Nothing here is global: several sidecars
may run in one process.
"""

import asyncio
import errno
import json
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from engram_contract.names import CREDENTIALS_FILE, MAP_FILE, POLICY_FILE
from engram_contract.policy import BadPolicy, Limits, Policy
from engram_contract.shardmap import BadMap, ShardMap
from engram_sidecar import metrics as metrics_room
from engram_sidecar.api import Api
from engram_sidecar.errors import BadConfig, PortTaken
from engram_sidecar.pipeline import Pipeline, World
from engram_sidecar.routing import primary
from engram_sidecar.settings import Settings
from engram_sidecar.store import Credentials, Store, is_bundle
from engram_sidecar.topology import Topology

log = logging.getLogger(__name__)
# The server would log each malformed request with its address, keys and all; handlers log their own failures.
protocol_log = logging.getLogger("engram_sidecar.protocol")
protocol_log.setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class Sidecar:
    """A serving sidecar: the ports it listens on."""

    http_port: int
    admin_port: int


@dataclass(frozen=True, slots=True)
class Config:
    """What the configuration folder holds."""

    shard_map: ShardMap
    policy: Policy
    credentials: Credentials


def read_config(folder: Path) -> Config:
    """The files of a configuration folder. Raises BadConfig that names the file and the reason."""
    try:
        shard_map = ShardMap.from_json(_read(folder / MAP_FILE))
        policy = Policy.from_json(_read(folder / POLICY_FILE))
        credentials = _parse_credentials(_read(folder / CREDENTIALS_FILE))
    except BadMap as error:
        reason = f"{folder / MAP_FILE}: {error}"
        raise BadConfig(reason) from error
    except BadPolicy as error:
        reason = f"{folder / POLICY_FILE}: {error}"
        raise BadConfig(reason) from error
    if credentials.role != shard_map.tenant:
        reason = f"{folder / CREDENTIALS_FILE}: the role {credentials.role} is not the map's tenant {shard_map.tenant}"
        raise BadConfig(reason)
    return Config(shard_map, policy, credentials)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = f"{path}: {error.strerror if isinstance(error, OSError) else 'not UTF-8'}"
        raise BadConfig(reason) from error


def _parse_credentials(text: str) -> Credentials:
    try:
        document = json.loads(text)
        role, passwords, trusted = document["role"], document["passwords"], document.get("ca", "")
        is_good = isinstance(role, str) and passwords and all(isinstance(text, str) for text in (*passwords, trusted))
    except (ValueError, TypeError, KeyError) as error:
        reason = f'{CREDENTIALS_FILE}: must be {{"role": ..., "passwords": [...]}}'
        raise BadConfig(reason) from error
    if not is_good:
        reason = f"{CREDENTIALS_FILE}: needs a role and at least one password, all strings"
        raise BadConfig(reason)
    if trusted and not is_bundle(trusted):
        raise BadConfig(f"{CREDENTIALS_FILE}: ca holds no certificates in PEM")
    return Credentials(role, tuple(passwords), trusted)


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Sidecar]:
    """A sidecar that serves until the block is left, and then drains. Raises BadConfig, PortTaken."""
    config = read_config(settings.config_dir)
    store = Store(config.credentials)
    topology = Topology(config.shard_map, lambda new: store.forget(primary(shard) for shard in new.shards))
    limits = Limits()
    world = World(time.time, time.monotonic, os.urandom)
    pipeline = Pipeline(store, topology, config.policy, limits, world, settings.request_timeout_s)
    metrics = metrics_room.Metrics(store.connection_count, lambda: topology.current.epoch)
    api = Api(pipeline, limits, metrics, time.monotonic, settings.body_timeout_s)
    admin = Admin(metrics)
    runners: list[web.ServerRunner] = []
    watcher = asyncio.create_task(topology.watch(settings.config_dir / MAP_FILE))
    try:
        http_port = await _listen(runners, api.handle, settings.host, settings.http_port, settings.drain_timeout_s)
        admin_port = await _listen(runners, admin.handle, settings.admin_host, settings.admin_port, 1.0)
        admin.is_ready = True
        yield Sidecar(http_port, admin_port)
    finally:
        admin.is_ready = False
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher
        for runner in runners:
            await runner.cleanup()
        await store.close()


async def _listen(
    runners: list[web.ServerRunner],
    handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
    host: str,
    port: int,
    drain_timeout_s: float,
) -> int:
    """The port that is listened on, after adding the runner to `runners`. Raises PortTaken."""
    runner = web.ServerRunner(
        web.Server(handle, access_log=None, logger=protocol_log), shutdown_timeout=drain_timeout_s
    )
    await runner.setup()
    runners.append(runner)
    try:
        await web.TCPSite(runner, host, port).start()
        chosen: int = runner.addresses[0][1]
        if host == "127.0.0.1" and _has_ipv6_loopback():
            await web.TCPSite(runner, "::1", chosen).start()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(host, port) from error
        raise
    return chosen


def _has_ipv6_loopback() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


class Admin:
    """Probes and metrics, apart from the interface: a kubelet and a scraper reach them, an agent need not."""

    def __init__(self, metrics: metrics_room.Metrics) -> None:
        self._metrics = metrics
        self.is_ready = False

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """`/healthz`: the loop runs. `/readyz`: requests are answered.

        Neither asks a shard: a dead shard is no reason to restart.
        """
        match request.rel_url.raw_path:
            case "/healthz":
                return web.json_response({"status": "healthy"})
            case "/readyz":
                status = "ready" if self.is_ready else "draining"
                return web.json_response({"status": status}, status=200 if self.is_ready else 503)
            case "/metrics":
                return web.Response(body=self._metrics.render(), headers={"Content-Type": metrics_room.CONTENT_TYPE})
            case _:
                return web.json_response({"status": "no such route"}, status=404)
