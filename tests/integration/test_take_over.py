"""A load of writes over an outage of their primary: none fails, none is lost, and what piled up is no second outage."""

import asyncio
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from engram_contract.resilience import Resilience
from engram_sidecar.app import serving
from engram_sidecar.failover import AT_ONCE, DRAIN_RATIO, RATE_S
from tests.faults import Fault, fault_proxy
from tests.harness import RealServer, server_folder
from tests.integration.test_failover import Caller, behind, tenant_of

RATE_PER_S: Final = 200.0  # or two fifths of what the machine does now, if that is less
OUTAGE_S: Final = 2.0
AFTER_S: Final = 4.0  # so long the load goes on; who waits then is answered too, however slow the machine has become
AWAY_S: Final = 0.01  # each answer of a primary in another zone is so late


@dataclass(frozen=True)
class Primary:
    """It is reached at its port, goes, and there is one again."""

    server: RealServer
    port: int
    go: Callable[[], Awaitable[None]]
    come: Callable[[], Awaitable[RealServer]]


@asynccontextmanager
async def that_starts_again(mode: str) -> AsyncIterator[Primary]:
    with server_folder() as folder:
        server = RealServer.create(folder / "s0", 18)

        async def come() -> RealServer:
            await asyncio.to_thread(server.start)
            return server

        try:
            yield Primary(server, server.admin.port, lambda: asyncio.to_thread(server.stop, mode), come)
        finally:
            server.stop("immediate")


@asynccontextmanager
async def that_is_followed() -> AsyncIterator[Primary]:
    """Once it is gone its synchronous standby is promoted, and found where it was. Both are in another zone."""
    with server_folder() as folder:
        primary = RealServer.create(folder / "s0", 18)
        standby = primary.make_standby(folder / "s0-1")
        try:
            async with primary.session("postgres") as admin:
                await admin.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
                await admin.execute("SELECT pg_reload_conf()")
            async with fault_proxy(primary.admin.port) as proxy:
                proxy.turn(Fault.NONE, AWAY_S)

                async def come() -> RealServer:
                    async with standby.session("postgres") as admin:
                        await admin.execute("SELECT pg_promote()")
                    proxy.upstream_port = standby.admin.port
                    return standby

                yield Primary(primary, proxy.port, lambda: asyncio.to_thread(primary.stop, "immediate"), come)
        finally:
            for each in (primary, standby):
                each.stop("immediate")


@dataclass
class Load:
    """Writes at a rate, whatever becomes of those before: a new memory each."""

    caller: Caller
    rate_per_s: float
    began_at_s: list[float] = field(default_factory=list)
    begun_at_end: list[int] = field(default_factory=list)  # for each that ended meanwhile, how many had begun by then
    is_over: bool = False

    async def run(self) -> list[tuple[int, Any]]:
        """How all were answered, once the load is over."""
        tasks: list[asyncio.Task[tuple[int, Any]]] = []
        began_s = time.monotonic()
        while not self.is_over:
            while len(tasks) < (time.monotonic() - began_s) * self.rate_per_s:
                tasks.append(asyncio.create_task(self._write(len(tasks))))
            await asyncio.sleep(0.005)
        return await asyncio.gather(*tasks)

    async def _write(self, number: int) -> tuple[int, Any]:
        self.began_at_s.append(time.monotonic())
        answer = await self.caller.put(number)
        if not self.is_over:
            self.begun_at_end.append(len(self.began_at_s))
        return answer

    def steady_per_s(self) -> float:
        """As the sidecar sees it."""
        return sum(at_s > time.monotonic() - RATE_S for at_s in self.began_at_s) / RATE_S

    def most_at_once(self, first: int) -> int:
        """Of those that ended after the first ones: how many at most, while a second's worth of others began.

        Measured so and not by the clock, as a machine that stands still holds up both.
        """
        ends = self.begun_at_end[first:]
        return max((bisect_left(ends, begun + self.rate_per_s) - at for at, begun in enumerate(ends)), default=0)


async def bearable_rate(caller: Caller) -> float:
    """Writes a second that leave room to catch up: an overloaded server fails without being stopped."""
    until_s = time.monotonic() + 1.5

    async def write(key: int) -> None:
        while time.monotonic() < until_s:
            await caller.put(key)

    await asyncio.gather(*map(write, range(8)))
    return min(RATE_PER_S, len(caller.ended) / 1.5 * 0.4)


async def _line_past(caller: Caller, waiting: float) -> float:
    """How long the line was at most, once the outage has lasted and more than so many wait."""
    longest, until_s = 0.0, time.monotonic() + OUTAGE_S
    while time.monotonic() < until_s or longest <= waiting:
        longest = max(longest, await caller.metric("engram_waiting_writes"))
        await asyncio.sleep(0.1)
    return longest


OUTAGES: Final[dict[str, Callable[[], AbstractAsyncContextManager[Primary]]]] = {
    "stopped": lambda: that_starts_again("fast"),
    "killed": lambda: that_starts_again("immediate"),
    "followed": that_is_followed,
}


@pytest.mark.parametrize("outage", OUTAGES)
async def test_writes_outlast_their_primary_within_the_wait(tmp_path: Path, outage: str) -> None:
    """200 a second: no error, none lost, the line within its bound, no spike over twice the rate while it drains."""
    callers = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    async with OUTAGES[outage]() as primary, callers as session:
        tenant = await tenant_of(primary.server, tmp_path, failoverSeconds=30)  # a start takes ten on a busy machine
        async with serving(behind(primary.port, tenant)) as ports:
            caller = Caller(session, ports)
            load = Load(caller, await bearable_rate(caller))
            answering = asyncio.create_task(load.run())
            await asyncio.sleep(RATE_S + 1.0)  # the rate of before the outage is that of its last seconds
            steady_per_s = load.steady_per_s()
            await primary.go()
            longest = await _line_past(caller, load.rate_per_s / 4)
            ended = len(load.begun_at_end)
            present = await primary.come()
            await asyncio.sleep(AFTER_S)
            load.is_over = True
            answers = await answering
        most = load.most_at_once(ended)
        print(f"{len(answers)} writes, {load.rate_per_s:.0f} a second; {longest:.0f} waited, then {most} at once")  # noqa: T201
        assert Counter((status, body["detail"]) for status, body in answers if status not in {200, 201}) == {}
        assert longest <= Resilience().waiting_writes
        assert most <= DRAIN_RATIO * steady_per_s + AT_ONCE  # who was sent before and ends now
        async with present.session(tenant.database) as connection:
            stored = "SELECT count(*) FROM engram.memories WHERE tenant = $1"
            assert await connection.fetchval(stored, tenant.role) == len(answers)
