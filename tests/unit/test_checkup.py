"""The checkup against shards that answer, fail or hang, without any: who shares a try, and how long it may take."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from engram_sidecar import checkup as room
from engram_sidecar.cachestate import CacheState
from engram_sidecar.checkup import Checkup, Parts
from engram_sidecar.config import InForce
from engram_sidecar.errors import NodeRefused, QuotaExceeded, ShardUnavailable, SlotMoved
from engram_sidecar.health import Status, Used
from engram_sidecar.pipeline import World
from engram_sidecar.recent import Recent
from engram_sidecar.sealing import Vault
from tests.unit.configs import a_config


class FakeStore:
    """Fails as it is told; `hangs` waits until then."""

    def __init__(self, failure: Exception | None = None, hangs: asyncio.Event | None = None) -> None:
        self.failure, self.hangs = failure, hangs
        self.tries = 0

    @asynccontextmanager
    async def transaction(self, place: object, timeout_s: float) -> AsyncIterator[Any]:
        self.tries += 1
        if self.hangs is not None:
            while not self.hangs.is_set():
                try:
                    await self.hangs.wait()
                except asyncio.CancelledError:
                    continue  # as a driver that waits for a silent node does
        if self.failure is not None:
            raise self.failure
        yield None

    async def read(self, *_: object, **__: object) -> list[Any]:
        return []


READS = [("local", "hit"), ("local", "stale"), ("local", "collapsed"), ("local", "miss"), ("shared", "hit")]
NO_CACHES = CacheState(
    dict.fromkeys(READS, 0), {}, 0, 0, 0, 0, {}, {}, is_shared=False, is_reached=True, is_sound=False
)


def a_checkup(store: FakeStore, now: list[float]) -> Checkup:
    in_force = InForce(a_config())
    vault = Vault(lambda: in_force.config, bytes, lambda *_: None)
    parts = Parts(tuple, Recent(), lambda: Used(None, None), lambda: NO_CACHES)
    return Checkup(store, in_force, vault, parts, World(time.time, lambda: now[0], bytes))  # type: ignore[arg-type]


def database(report: Any) -> tuple[Status, list[str]]:  # noqa: ANN401
    check = report.checks["database"]
    return check.status, [each["reason"] for each in check.details["shards"]]


@pytest.mark.parametrize(
    ("failure", "status", "reason"),
    [
        (ShardUnavailable("s0", "connection refused"), Status.UNHEALTHY, "connection refused"),
        (NodeRefused("s0", "the tenant's password was refused"), Status.UNHEALTHY, "the tenant's password was refused"),
        (SlotMoved("s0"), Status.DEGRADED, "the shard knows a newer map"),
        (QuotaExceeded("s0", "bytes", 7), Status.HEALTHY, "the tenant's quota of 7 bytes is used up"),
        (RuntimeError("secret"), Status.UNHEALTHY, "see the sidecar's log"),
    ],
)
async def test_what_a_shard_says_becomes_its_status(failure: Exception, status: Status, reason: str) -> None:
    report = await a_checkup(FakeStore(failure), [0.0]).report()
    assert database(report) == (status, [reason])


async def test_everybody_who_asks_meanwhile_and_soon_after_gets_the_same_try() -> None:
    store, now = FakeStore(ShardUnavailable("s0", "gone")), [0.0]
    checkup = a_checkup(store, now)
    reports = await asyncio.gather(*(checkup.report() for _ in range(100)))
    now[0] = room.FRESH_S - 0.01
    assert {id(each) for each in (*reports, await checkup.report())} == {id(reports[0])}
    assert store.tries == 1
    now[0] = room.FRESH_S
    await checkup.report()
    assert store.tries == 2


async def test_whoever_leaves_does_not_end_the_try_for_the_others() -> None:
    checkup = a_checkup(FakeStore(ShardUnavailable("s0", "gone")), [0.0])
    leaving, staying = asyncio.create_task(checkup.report()), asyncio.create_task(checkup.report())
    await asyncio.sleep(0)
    leaving.cancel()
    assert database(await staying)[0] is Status.UNHEALTHY


async def test_a_try_that_hangs_is_answered_in_time_and_not_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "TRIAL_S", 0.02)
    hangs, now = asyncio.Event(), [0.0]
    store = FakeStore(hangs=hangs, failure=ShardUnavailable("s0", "gone"))
    checkup = a_checkup(store, now)
    for at_s in (0.0, 100.0):
        now[0] = at_s
        assert database(await checkup.report()) == (Status.UNHEALTHY, ["no answer in time"])
        assert store.tries == 1
    hangs.set()
    await checkup.close()
    now[0] = 200.0
    assert database(await checkup.report()) == (Status.UNHEALTHY, ["gone"])
    assert store.tries == 2
