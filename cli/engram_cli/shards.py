"""The local shards of one data directory: started side by side, migrated, watched and stopped.

Promises
1. A start goes on from whatever an earlier one left: no data, data without a server, a running server.
2. What was begun in a thread is waited for before anything is stopped: no server starts behind our back.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar

from engram_cli import ports, server
from engram_cli.account import check_passage
from engram_cli.datadir import DataDir, make_directory
from engram_cli.embedded import Programs
from engram_cli.errors import Failure
from engram_cli.localplan import ShardSeen, Start, plan_shard
from engram_cli.server import Running, Server
from engram_cli.state import LocalState, ShardRecord

Result = TypeVar("Result")
Phase = Callable[[str, str], None]  # what is where: ("s0", "starting")

PORT_ATTEMPTS: Final = 3  # another program may take the port between our look and Postgres' own
WATCH_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Shards:
    """The shards of a data directory, and all that is needed to run them."""

    data: DataDir
    programs: Programs
    password: str
    parameters: Mapping[str, str]
    pool: ThreadPoolExecutor

    def place(self, shard_id: str) -> Server:
        """Where the shard's Postgres lives."""
        return Server(self.data.shard(shard_id))

    async def start_all(self, state: LocalState, phase: Phase) -> LocalState:
        """Every shard answers; the state with the ports that they have. Raises Failure of the first that does not."""
        chosen = self._choose_ports(state)
        starts = [self._in_thread(partial(self._start_one, chosen, phase, record)) for record in state.shards]
        results = await asyncio.gather(*starts, return_exceptions=True)
        for each in results:
            if isinstance(each, BaseException):
                raise each
            state = state.with_shard(each)
        return state

    async def stop_all(self, shard_ids: Iterable[str], mode: str, phase: Phase) -> None:
        """No shard runs. Raises Failure of the first that does not end, after all were asked to."""

        def stop(shard_id: str) -> None:
            if server.stop(self.programs, self.place(shard_id), mode):
                phase(shard_id, "stopped")

        stops = [self._in_thread(partial(stop, each)) for each in shard_ids]
        results = await asyncio.gather(*stops, return_exceptions=True)
        for each in results:
            if isinstance(each, BaseException):
                raise each

    async def watch(self, shard_ids: Iterable[str], say: Callable[[str], None]) -> None:
        """Says when a shard goes and when it is back. Runs until cancelled."""
        seen = {each: await self.find(each) for each in shard_ids}
        while True:
            await asyncio.sleep(WATCH_S)
            for shard_id, before in seen.items():
                now = await self.find(shard_id)
                seen[shard_id] = now
                if before is not None and now is None:
                    line = await self._in_thread(partial(server.last_log_line, self.place(shard_id)))
                    say(f"shard {shard_id} is down (it was pid {before.pid}); the rest serves on. Its log ends: {line}")
                elif now is not None and before != now:
                    say(f"shard {shard_id} is up again (pid {now.pid})")

    async def find(self, shard_id: str) -> Running | None:
        """The shard's running postmaster, or None."""
        return await self._in_thread(partial(server.find_running, self.place(shard_id)))

    def _choose_ports(self, state: LocalState) -> dict[str, int]:
        """A port for each shard: that of the running server, else the kept one, else a free one. Nobody's twice."""
        chosen: dict[str, int] = {}
        for record in state.shards:
            running = server.find_running(self.place(record.id))
            if running is not None:
                chosen[record.id] = running.port
        for record in state.shards:
            if record.id not in chosen:
                candidates = ports.ports_from(int(state.uid[:8], 16))
                others = {each.port for each in state.shards if each is not record and each.port is not None}
                taken = others | {*chosen.values()}
                chosen[record.id] = ports.choose_port(record.port, candidates, taken, ports.is_free)
        return chosen

    def _start_one(self, chosen: Mapping[str, int], phase: Phase, record: ShardRecord) -> ShardRecord:
        place = self.place(record.id)
        self._prepare_directory(place)
        port = chosen[record.id]
        for attempt in range(PORT_ATTEMPTS):
            try:
                running = self._bring_up(place, port, phase)
            except Failure as failure:
                if ports.is_free(port) or attempt == PORT_ATTEMPTS - 1:
                    raise
                others = {*chosen.values()}
                port = ports.choose_port(None, ports.ports_from(port + 1), others, ports.is_free)
                phase(record.id, f"the port was taken ({failure}); trying {port}")
            else:
                return replace(record, port=running.port)
        raise AssertionError  # the last attempt returned or raised

    def _bring_up(self, place: Server, port: int, phase: Phase) -> Running:
        shard_id, account = place.directory.name, self.programs.account
        version = server.major_version(place)
        if version not in (None, self.programs.version):
            raise Failure(f"{place.pgdata} is data of Postgres {version}, not {self.programs.version}")
        if version is None:
            phase(shard_id, Start.INITIALIZE)
            server.initialize(self.programs, place, self.password)
        running = server.find_running(place)
        changed = server.write_settings(place, account, port, self.parameters)
        step = plan_shard(ShardSeen(version is not None, running is not None, changed))
        if step is Start.ADOPT and running is not None:
            phase(shard_id, f"{step} (pid {running.pid})")
            return running
        phase(shard_id, Start.START if step is Start.INITIALIZE else step)
        if step is Start.RESTART:
            server.stop(self.programs, place)
        return server.start(self.programs, place)

    def _prepare_directory(self, place: Server) -> None:
        make_directory(place.directory, 0o700)
        self.programs.account.own(place.directory)
        check_passage(self.programs.account, place.directory)

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        """The result of blocking work. Cancelled, it waits for the end of the work first (promise 2)."""
        future = asyncio.get_running_loop().run_in_executor(self.pool, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise
