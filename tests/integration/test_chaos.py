"""Sidecars, Redis and the primary are killed at random under load, and connections are cut: what a history says of it.

Short: half a minute; long (soak): thirty minutes. Faults, a second or two apart: kill -9 of a sidecar, which is started
again; of Redis, which forgets all; a stop of the primary at once, as by a kill, and its start; a proxy between sidecars
and the primary that resets every connection, or takes everything and says nothing for a while.
"""

import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from engram_contract.names import ENV_ADMIN_PORT, ENV_CONFIG_DIR, ENV_HTTP_PORT
from tests.faults import Fault, FaultProxy, fault_proxy
from tests.harness import NUMBERS, RealServer, Tenant, create_tenant, server_folder
from tests.ports import free_pair
from tests.redis_server import RedisServer, share

SHORT_S = 20.0
LONG_S = 1800.0
SIDECARS = 3
KEYS = 8
READY_S = 60.0
SPEC = {"plan": "Enterprise", "audit": {"enabled": False}, "resilience": {"deadlineSeconds": 3, "failoverSeconds": 5}}


@dataclass
class Life:
    """A sidecar in a process of its own, which is killed and started again on the same port."""

    config_dir: Path
    port: int
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        ports = {ENV_HTTP_PORT: str(self.port), ENV_ADMIN_PORT: str(self.port + 1)}
        environ = os.environ | ports | {ENV_CONFIG_DIR: str(self.config_dir)}
        command = (sys.executable, "-m", "engram_sidecar")
        quiet = asyncio.subprocess.DEVNULL
        self.process = await asyncio.create_subprocess_exec(*command, env=environ, stdout=quiet, stderr=quiet)

    async def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()


@dataclass
class History:
    """What was acknowledged: of each memory the versions, which every write raises by one."""

    acknowledged: list[tuple[str, int]] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    reads: int = 0
    hits: int = 0
    failed: int = 0


@dataclass
class Caller:
    """A session that goes from sidecar to sidecar, and what it is owed. It starts over where it lost its answer."""

    http: aiohttp.ClientSession
    ports: list[int]
    history: History
    token: str = ""
    owed: Counter[str] = field(default_factory=Counter)

    async def run(self, until_s: float) -> None:
        while time.monotonic() < until_s:
            try:
                await self._step()
            except (aiohttp.ClientError, TimeoutError):  # the sidecar is gone: nothing was told
                self.history.failed += 1
                await asyncio.sleep(0.05)

    async def _step(self) -> None:
        key, is_write = f"k{random.randrange(KEYS)}", random.random() < 0.2
        url = f"http://127.0.0.1:{random.choice(self.ports)}/v1/items"
        headers = {"Engram-Session": self.token} if self.token else {}
        body = {"content": f"{time.time()}"} if is_write else None
        method = "PUT" if is_write else "GET"
        asked = {"key": key, "user": "ada"}
        async with self.http.request(method, url, params=asked, json=body, headers=headers) as answer:
            said = await answer.json(content_type=None)
            self.token = answer.headers.get("Engram-Session", self.token)
            if answer.status not in {200, 201, 404}:
                assert answer.status in {503, 504}, said
                self.history.failed += 1
                await asyncio.sleep(0.05)
                return
        version = said["version"] if answer.status != 404 else 0
        if is_write:
            self.history.acknowledged.append((key, version))
        else:
            self.history.reads += 1
            self.history.hits += "; hit" in answer.headers["Cache-Status"]
        if version < self.owed[key]:
            shown = {name: answer.headers.get(name, "") for name in ("Cache-Status", "Age", "Engram-Session")}
            self.history.stale.append(f"{method} {key}: version {version} after {self.owed[key]}: {shown}")
        self.owed[key] = max(self.owed[key], version)


@dataclass
class Stage:
    """Everything that may be killed."""

    server: RealServer
    redis: RedisServer
    role: str
    proxy: FaultProxy
    lives: list[Life]
    done: Counter[str] = field(default_factory=Counter)

    async def trouble(self, until_s: float) -> None:
        """One fault after the other, each mended before the next."""
        faults = (self._kill_sidecar, self._kill_redis, self._kill_primary, self._cut, self._silence)
        while time.monotonic() < until_s - 5.0:
            fault: Callable[[], Awaitable[None]] = random.choice(faults)
            self.done[fault.__name__.removeprefix("_")] += 1
            await fault()
            await asyncio.sleep(random.uniform(0.5, 2.0))

    async def _kill_sidecar(self) -> None:
        life = random.choice(self.lives)
        await life.kill()
        await life.start()

    async def _kill_redis(self) -> None:
        self.redis.kill()
        await asyncio.sleep(random.uniform(0.0, 1.0))
        await asyncio.to_thread(self.redis.start)
        await self.redis.admit(self.role)

    async def _kill_primary(self) -> None:
        await asyncio.to_thread(self.server.stop, "immediate")
        await asyncio.sleep(random.uniform(0.0, 1.0))
        await asyncio.to_thread(self.server.start)

    async def _cut(self) -> None:
        self.proxy.turn(Fault.RESET)
        await asyncio.sleep(random.uniform(0.0, 0.5))
        self.proxy.turn(Fault.NONE)

    async def _silence(self) -> None:
        self.proxy.turn(Fault.SILENT)
        await asyncio.sleep(random.uniform(0.0, 1.5))
        self.proxy.turn(Fault.RESET)  # what was swallowed never arrives
        self.proxy.turn(Fault.NONE)


@asynccontextmanager
async def staged(folder: Path, redis: RedisServer) -> AsyncIterator[tuple[Stage, Tenant]]:
    """A server, three sidecars that reach it through the proxy, and what is between them."""
    with server_folder() as data:
        server = RealServer.create(data / "s0", 18)
        async with fault_proxy(server.admin.port) as proxy:
            tenant = await create_tenant(f"c{next(NUMBERS)}", (server,), folder / "config", spec=SPEC)
            shard = tenant.shard_map.shards[0]
            node = replace(shard.nodes[0], port=proxy.port)
            behind = replace(tenant.shard_map, shards=(replace(shard, nodes=(node,)),))
            (tenant.config_dir / "map.json").write_text(behind.to_json())
            await share(redis, tenant)
            lives = [Life(tenant.config_dir, free_pair()) for _ in range(SIDECARS)]
            try:
                for life in lives:
                    await life.start()
                yield Stage(server, redis, tenant.role, proxy, lives), tenant
            finally:
                for life in lives:
                    await life.kill()
                server.stop("immediate")


async def wait_ready(http: aiohttp.ClientSession, ports: list[int]) -> None:
    """Each sidecar reads."""
    async with asyncio.timeout(READY_S):
        for port in ports:
            while True:
                try:
                    async with http.get(f"http://127.0.0.1:{port}/v1/memories") as answer:
                        if answer.status == 200 and (await answer.json())["complete"]:
                            break
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.1)


async def survive(folder: Path, redis: RedisServer, seconds: float) -> None:
    """No acknowledged write is lost or done twice, no session reads less than it wrote or saw, and all heals."""
    timeout = aiohttp.ClientTimeout(20)
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as http,
        staged(folder, redis) as (stage, tenant),
    ):
        ports = [life.port for life in stage.lives]
        await wait_ready(http, ports)
        history = History()
        hopping = [Caller(http, ports, history) for _ in range(4)]
        staying = [Caller(http, [port], history) for port in ports for _ in range(2)]
        until_s = time.monotonic() + seconds
        await asyncio.gather(stage.trouble(until_s), *(each.run(until_s) for each in [*hopping, *staying]))
        await wait_ready(http, ports)
        final = await stored(stage.server, tenant)
    told = f"{history.reads} reads ({history.hits} hits), {len(history.acknowledged)} writes, {history.failed} failed"
    print(f"{told}; faults: {dict(stage.done)}")  # noqa: T201
    assert history.stale == []
    assert [each for each, count in Counter(history.acknowledged).items() if count > 1] == [], "one write was lost"
    assert all(final.get(key, 0) >= version for key, version in history.acknowledged)
    assert history.hits > 0
    assert len(history.acknowledged) > seconds


async def stored(server: RealServer, tenant: Tenant) -> dict[str, int]:
    """Key -> the version that the shard has."""
    async with server.session(tenant.database) as admin:
        rows: list[Any] = await admin.fetch("SELECT key, version FROM engram.memories WHERE tenant = $1", tenant.role)
    return {row["key"]: row["version"] for row in rows}


async def test_what_was_acknowledged_outlives_kills_and_cuts(tmp_path: Path, redis: RedisServer) -> None:
    await survive(tmp_path, redis, SHORT_S)


@pytest.mark.soak
async def test_what_was_acknowledged_outlives_half_an_hour_of_kills_and_cuts(
    tmp_path: Path, redis: RedisServer
) -> None:
    await survive(tmp_path, redis, LONG_S)
