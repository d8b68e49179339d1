"""Composition root of the data plane: configuration to a serving sidecar, and its orderly end.

Start: read the folder, build store, pipeline and interface, watch the folder, listen. End (drain): not ready any
more, no new connection, running requests finish within `drain_timeout_s`, the audit is written, pools close. Nothing
here is global: several sidecars may run in one process.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from aiohttp import web

from engram_contract.policy import Limits
from engram_contract.session import HOME_BYTES
from engram_contract.slots import MemoryId
from engram_sidecar import metrics as metrics_room
from engram_sidecar.api import Api, Doors, Watch
from engram_sidecar.audit import Subject, Trail
from engram_sidecar.caches import Caches
from engram_sidecar.checkup import Checkup, Parts
from engram_sidecar.clearing import Clearing
from engram_sidecar.config import FILES, Config, InForce, read_config, watch
from engram_sidecar.consistency import Floors
from engram_sidecar.errors import SealBroken
from engram_sidecar.express import Express, Rooms
from engram_sidecar.fetching import Fetcher
from engram_sidecar.gate import Gate, Kind
from engram_sidecar.guard import Guard
from engram_sidecar.intake import Intake
from engram_sidecar.lag import watch_lag
from engram_sidecar.ledger import Ledger
from engram_sidecar.limiting import Limiter
from engram_sidecar.listening import Handlers, Port, listen
from engram_sidecar.lookout import Lookout
from engram_sidecar.overview import Desks, Overview
from engram_sidecar.pipeline import Pipeline, World
from engram_sidecar.presence import Presence
from engram_sidecar.problems import to_problem
from engram_sidecar.replicas import Replicas
from engram_sidecar.resealing import Resealer
from engram_sidecar.resources import Meter
from engram_sidecar.responses import health_response
from engram_sidecar.routing import members, primary
from engram_sidecar.sealing import Refusal, Vault
from engram_sidecar.settings import Settings
from engram_sidecar.shortcut import Shortcut
from engram_sidecar.sizes import Sizes
from engram_sidecar.snapshot import Snapshots
from engram_sidecar.store import Store
from engram_sidecar.tracing import Tracer

log = logging.getLogger(__name__)
RESTART_S: Final = 5.0
MAX_CONNECTIONS: Final = 2_560  # of the interface: all the writes that may wait for a primary (2,000), and others
MAX_PROBES: Final = 64  # of the port for probes and metrics, which the pod's network reaches


@dataclass(frozen=True, slots=True)
class Sidecar:
    """A serving sidecar: the ports it listens on."""

    http_port: int
    admin_port: int


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Sidecar]:
    """A sidecar that serves until the block is left, and then drains. Raises BadConfig, PortTaken."""
    config = read_config(settings.config_dir)
    store = Store(config.credentials)
    in_force = InForce(config, settings.identity, lambda: store.is_locked_out)
    metrics = metrics_room.Metrics(store.connection_count, lambda: in_force.config.shard_map.epoch)
    limits, world = Limits(), World(time.time, time.monotonic, os.urandom, settings.request_timeout_s)
    gate = Gate(store, lambda: in_force.config.policy.resilience)
    guard = Guard(gate, lambda: in_force.config.policy.resilience, metrics.count_retry, metrics.count_shed)
    floors = Floors(os.urandom(HOME_BYTES))
    lookout = Lookout(store, lambda: in_force.config.policy.resilience.staleness_seconds)
    _watch(metrics, store, gate, guard, lookout)
    _follow(in_force, store, gate, metrics)
    _follow_map(in_force, floors, lookout)
    trail = Trail(in_force, store, settings, metrics, time.time)
    vault = Vault(lambda: in_force.config, os.urandom, partial(_note_refusal, metrics, trail))
    replicas = Replicas(guard, lookout, store.renew, metrics.count_read, metrics.count_hedge)
    caches = _caches(in_force, vault, floors, Fetcher(replicas, in_force, settings.request_timeout_s), metrics)
    pipeline = Pipeline(replicas, in_force, vault, caches.recall, limits, world)
    ledger = Ledger(guard, in_force, vault, settings.request_timeout_s)
    intake = Intake(limits, settings.body_timeout_s, time.monotonic, floors)
    parts = Parts(gate.breakers, metrics.recent, Meter(time.process_time, time.monotonic).read, caches.state)
    checkup, limiter = Checkup(store, in_force, vault, parts, world), _limiter(in_force, caches, metrics)
    rooms = Rooms(caches.recall, floors, limiter, in_force, metrics, trail)
    shortcut = Shortcut(rooms, Express(rooms), is_traced=settings.tracing is not None)
    sizes, clearing = Sizes(ledger, metrics, world.now_s, world.monotonic_s), Clearing(caches, in_force, time.time)
    desks = Desks(ledger, checkup, clearing, Snapshots(metrics, sizes, clearing, parts, world))
    tracer, admin = Tracer(settings.tracing, settings.pod), Admin(metrics, in_force, checkup)
    doors, watches = Doors(shortcut, caches.searches, limiter), Watch(metrics, trail, tracer)
    api = Api(pipeline, intake, doors, in_force, watches, Overview(intake, in_force, desks))
    runners: list[web.ServerRunner] = []
    loops = (
        partial(watch, settings.config_dir, in_force),
        Presence(in_force, store, settings, metrics).run,
        trail.run,
        Resealer(guard, in_force, vault, metrics, settings.request_timeout_s).run,
        sizes.run,
        lookout.run,
        caches.bulletin.run,
        partial(watch_lag, metrics.observe_lag),
    )
    tasks = [asyncio.create_task(_kept_running(loop)) for loop in loops]
    try:
        port = Port(settings.host, settings.http_port, MAX_CONNECTIONS, settings.drain_timeout_s)
        http_port = await listen(runners, Handlers(api.handle, shortcut.at_once), port, metrics.count_refused)
        probes = Port(settings.admin_host, settings.admin_port, MAX_PROBES, 1.0)
        admin_port = await listen(runners, Handlers(admin.handle), probes, metrics.count_refused)
        admin.is_ready = True
        yield Sidecar(http_port, admin_port)
    finally:
        admin.is_ready = False
        for runner in runners:
            await runner.cleanup()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await asyncio.gather(caches.close(), checkup.close(), limiter.close())
        await trail.close()
        await gate.close()
        await store.close()
        await tracer.close()


def _caches(in_force: InForce, vault: Vault, floors: Floors, fetcher: Fetcher, metrics: metrics_room.Metrics) -> Caches:
    """Both cache levels, seen by the metrics. What was read under another map, policy or keyring is not kept."""
    caches = Caches.create(in_force, vault, floors, fetcher.fetch, partial(metrics.count_shed, Kind.RETRIEVE))
    in_force.subscribe(caches.adopt)
    caches.adopt(in_force.config)
    metrics.watch_caches(caches.state)
    metrics.watch_loads(caches.recall.waiting)
    return caches


def _limiter(in_force: InForce, caches: Caches, metrics: metrics_room.Metrics) -> Limiter:
    """Who refuses requests beyond the tenant's rate; seen by the metrics."""
    limiter = Limiter(in_force, caches.door, time.time, metrics.count_rate_limited)
    metrics.watch_rate(lambda: limiter.is_alone)
    return limiter


def _note_refusal(metrics: metrics_room.Metrics, trail: Trail, memory_id: MemoryId, refusal: Refusal) -> None:
    """What is stored was not opened. That it is not what was sealed is a matter of security, so the audit has it."""
    reason = refusal.reason if isinstance(refusal, SealBroken) else "key"
    metrics.count_seal_refused(reason)
    log.error("an encrypted memory was not opened", extra={"memory": str(memory_id), "reason": str(refusal)})
    trail.record("unseal", to_problem(refusal).status, Subject(memory=memory_id, details={"reason": reason}))


async def _kept_running(loop: Callable[[], Awaitable[None]]) -> None:
    """Runs a loop until it ends or is cancelled; a fault of ours in it is logged, and it starts over."""
    while True:
        try:
            return await loop()
        except Exception:
            log.exception("a loop of the sidecar failed and starts over")
            await asyncio.sleep(RESTART_S)


def _watch(metrics: metrics_room.Metrics, store: Store, gate: Gate, guard: Guard, lookout: Lookout) -> None:
    """Metrics ask the rooms at every scrape."""
    metrics.watch_pools(store.pools)
    metrics.watch_nodes(gate.breakers, guard.waiting_writes, gate.waiting_requests)
    metrics.watch_replicas(lookout.lags)
    began_s = time.monotonic()
    metrics.watch_uptime(lambda: time.monotonic() - began_s)


def _follow(in_force: InForce, store: Store, gate: Gate, metrics: metrics_room.Metrics) -> None:
    """Store, gate and metrics go along with the configuration."""

    def take(config: Config) -> None:
        store.adopt(config.credentials)
        shards = config.shard_map.shards
        places = {primary(shard) for shard in shards}.union(*(members(shard).values() for shard in shards))
        store.forget(places)
        gate.forget(places)
        metrics.show_config(config.generations)

    in_force.subscribe(take)
    metrics.show_config(in_force.config.generations)
    for file in FILES:
        metrics.watch_faults(file.removesuffix(".json"), partial(in_force.faults.__contains__, file))


def _follow_map(in_force: InForce, floors: Floors, lookout: Lookout) -> None:
    """What is known of replicas goes along with the map, and ends with it."""

    def take(config: Config) -> None:
        if config.shard_map.epoch != floors.epoch:
            floors.follow(config.shard_map)
            lookout.follow(config.shard_map)

    in_force.subscribe(take)
    take(in_force.config)


class Admin:
    """Probes and metrics, apart from the interface: a kubelet and a scraper reach them, an agent need not."""

    def __init__(self, metrics: metrics_room.Metrics, in_force: InForce, checkup: Checkup) -> None:
        self._metrics = metrics
        self._in_force = in_force
        self._checkup = checkup
        self.is_ready = False

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """`/healthz`: the loop runs. `/readyz`: requests are answered, as the policy admits this pod.

        Neither asks a shard: a dead shard is no reason to restart. `/health` does, and is for people and monitors.
        """
        match request.rel_url.raw_path:
            case "/healthz":
                return web.json_response({"status": "healthy"})
            case "/readyz":
                return self._readiness()
            case "/health":
                return health_response(*await self._checkup.answer())
            case "/metrics":
                return web.Response(body=self._metrics.render(), headers={"Content-Type": metrics_room.CONTENT_TYPE})
            case _:
                return web.json_response({"status": "no such route"}, status=404)

    def _readiness(self) -> web.Response:
        refusal = self._in_force.refusal
        if not self.is_ready:
            return web.json_response({"status": "draining"}, status=503)
        if refusal is not None:
            return web.json_response({"status": "agent not allowed", "reason": str(refusal)}, status=503)
        return web.json_response({"status": "ready"})
