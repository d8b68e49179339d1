"""`engram up`: from manifests to serving sidecars, and the orderly way back.

    lock -> state -> shards start -> migrate -> maps -> sidecars -> (serving, shards watched) -> drain -> shards stop

A signal ends it at any of these; a second one hurries: nothing is drained and Postgres is stopped without a checkpoint,
which costs its next start a recovery and no memory.
"""

import asyncio
import signal
import uuid
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from engram_cli import localplan
from engram_cli.account import check_passage, find_account
from engram_cli.datadir import DataDir, locked, open_path
from engram_cli.embedded import prepare_programs
from engram_cli.errors import Failure
from engram_cli.journal import journal
from engram_cli.localplan import Endpoint
from engram_cli.manifests import Manifests, load_manifests
from engram_cli.ports import is_free
from engram_cli.report import Serving, ServingShard, TenantReport
from engram_cli.screen import Screen
from engram_cli.shards import Shards
from engram_cli.state import LocalState
from engram_cli.tenants import Tenants
from engram_cli.unhonoured import gaps_of
from engram_contract.shardmap import ShardMap
from engram_contract.spec import TenantSpec
from engram_sidecar.app import serving
from engram_sidecar.errors import BadConfig, PortTaken
from engram_sidecar.settings import Settings

MAX_THREADS: Final = 32  # a thread per shard that starts or stops; beyond this the disk is the limit


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What the command line asks for."""

    files: tuple[str, ...]
    data_dir: Path
    port: int
    tenants: tuple[str, ...] = ()
    postgres_version: int | None = None


def run_up(options: UpOptions, screen: Screen) -> None:
    """Runs until a signal; raises CliError if it cannot start. Nothing runs afterwards."""
    manifests = load_manifests(options.files)
    localplan.check_manifests(manifests.cluster, manifests.tenants)
    served = localplan.select_tenants(manifests.tenants, options.tenants)
    endpoints = localplan.plan_endpoints(served, options.port)
    data = open_path(options.data_dir)
    data.read_state()  # refuses a stranger's directory before anything is made in it
    account, made = find_account()
    if made is not None:
        screen.note(made)
    data.create(account.directory_mode)
    with locked(data):
        version = options.postgres_version or manifests.cluster.postgres.version
        state = localplan.plan_state(data.read_state(), manifests.cluster, manifests.tenants, version, uuid.uuid4().hex)
        _check_ports(endpoints)
        check_passage(account, data.path)
        data.write_state(state)
        data.create_parts(account.directory_mode)
        _say_gaps(manifests, state, screen)
        password = data.read_or_make_password()
        programs = prepare_programs(version, account, data.path / "postgres")
        with journal(data), ThreadPoolExecutor(MAX_THREADS, "engram-shard") as pool:
            shards = Shards(data, programs, password, dict(manifests.cluster.postgres.parameters), pool)
            run = _Up(data, manifests, served, endpoints, shards, screen)
            asyncio.run(run.until_stopped(state))


class _Up:
    """One run, on one event loop."""

    def __init__(
        self,
        data: DataDir,
        manifests: Manifests,
        served: tuple[TenantSpec, ...],
        endpoints: Mapping[str, Endpoint],
        shards: Shards,
        screen: Screen,
    ) -> None:
        self._data = data
        self._manifests = manifests
        self._served = served
        self._endpoints = endpoints
        self._shards = shards
        self._screen = screen
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()

    async def until_stopped(self, state: LocalState) -> None:
        """Starts, serves until a signal, stops; raises CliError if it cannot start."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup engram up` stays when its terminal goes
                loop.add_signal_handler(number, self._on_signal)
        shard_ids = [each.id for each in state.shards]
        sidecars = AsyncExitStack()
        try:
            await self._unless(self._stop, self._serve(state, sidecars))
        finally:
            self._screen.say("stopping")
            await self._unless(self._hurry, sidecars.aclose())
            mode = "immediate" if self._hurry.is_set() else "fast"
            await self._shards.stop_all(shard_ids, mode, self._screen.phase)

    async def _serve(self, state: LocalState, sidecars: AsyncExitStack) -> None:
        with self._screen.progress():
            state = await self._shards.start_all(state, self._screen.phase)
            self._data.write_state(state)
            tenants = Tenants(
                self._data, state, self._manifests.cluster, self._manifests.tenants, self._shards.password
            )
            state = await tenants.migrate(self._screen.phase)
            for each in state.shards:
                self._screen.phase(each.id, "map")
            maps = await replace(tenants, state=state).publish(self._screen.note)
            for each in state.shards:
                self._screen.phase(each.id, "ready")
            for spec in self._served:
                await self._serve_tenant(spec, sidecars)
            state = self._with_endpoints(state)
            self._data.write_state(state)
        self._screen.serving(await self._report(maps))
        await self._shards.watch([each.id for each in state.shards], self._screen.say)

    async def _serve_tenant(self, spec: TenantSpec, sidecars: AsyncExitStack) -> None:
        label = _label(spec)
        endpoint = self._endpoints[label]
        self._screen.phase(label, "sidecar")
        folder = self._data.tenant(spec.namespace, spec.name)
        settings = Settings(config_dir=folder, http_port=endpoint.http_port, admin_port=endpoint.admin_port)
        try:
            await sidecars.enter_async_context(serving(settings))
        except PortTaken as error:
            raise _port_taken(error.port) from error
        except BadConfig as error:
            raise Failure(str(error)) from error
        self._screen.phase(label, "ready")

    def _with_endpoints(self, state: LocalState) -> LocalState:
        records = []
        for each in state.tenants:
            endpoint = self._endpoints.get(each.label)
            http_port, admin_port = (endpoint.http_port, endpoint.admin_port) if endpoint else (None, None)
            records.append(replace(each, http_port=http_port, admin_port=admin_port))
        return replace(state, tenants=tuple(records))

    async def _report(self, maps: Mapping[str, ShardMap]) -> Serving:
        tenants = []
        for spec in self._served:
            endpoint = self._endpoints[_label(spec)]
            url = f"http://localhost:{endpoint.http_port}"
            tenants.append(TenantReport(_label(spec), spec.isolation, "serving", url, endpoint.admin_port, None))
        shards = []
        for each in self._manifests.cluster.shards:
            running = await self._shards.find(each.id)
            if running is not None:
                slots = {label: shard_map.slots_of(each.id) for label, shard_map in maps.items()}
                shards.append(ServingShard(each.id, each.state, each.weight, running.port, running.pid, slots))
        return Serving(str(self._data.path), tuple(tenants), tuple(shards))

    async def _unless(self, event: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
        """Does the work, or as much of it as is done when the event comes."""
        task, waiting = asyncio.create_task(work), asyncio.create_task(event.wait())
        await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        task.cancel()
        await asyncio.wait((task, waiting))
        if not task.cancelled():
            task.result()

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()


def _say_gaps(manifests: Manifests, state: LocalState, screen: Screen) -> None:
    for title in manifests.skipped:
        screen.note(f"{title}: local mode has no use for it")
    for line in gaps_of(manifests.cluster, manifests.tenants):
        screen.note(line)
    for label in localplan.left_out(state, manifests.tenants):
        screen.note(f"tenant {label} stands in no manifest: its memories are kept and not served")


def _check_ports(endpoints: Mapping[str, Endpoint]) -> None:
    """Nothing; raises Failure for a port that is taken: said before databases are started for nothing."""
    for endpoint in endpoints.values():
        for port in (endpoint.http_port, endpoint.admin_port):
            if not is_free(port):
                raise _port_taken(port)


def _port_taken(port: int) -> Failure:
    return Failure(f"port {port} is taken by another program: choose another one with --port")


def _label(spec: TenantSpec) -> str:
    return f"{spec.namespace}/{spec.name}"
