"""The map in force: never an older one, never another tenant's, a replaced file is taken and a broken one is not."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engram_contract.shardmap import Node, Shard, ShardMap, Strategy, first_map
from engram_sidecar.topology import Topology

PATIENCE_S = 20  # a hang fails; nothing waits for it
OLD = replace(
    first_map("t_a", Strategy.USER, [Shard("s0", "engram", (Node("a", "localhost", 5432),))]),
    epoch=5,
)
NEW = replace(OLD, epoch=6)


class Changes(list[ShardMap]):
    """The maps that came into force, and a way to wait until there are so many."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = asyncio.Event()

    def __call__(self, shard_map: ShardMap) -> None:
        self.append(shard_map)
        self._changed.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while len(self) < count:
                self._changed.clear()
                await self._changed.wait()


class Warned(logging.Handler):
    """Keeps the records and says when one came."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []
        self.came = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self.came.set()


@contextlib.contextmanager
def warnings_heard() -> Iterator[Warned]:
    """The warnings of the topology while inside."""
    heard, logger = Warned(), logging.getLogger("engram_sidecar.topology")
    logger.addHandler(heard)
    try:
        yield heard
    finally:
        logger.removeHandler(heard)


@contextlib.asynccontextmanager
async def watching(topology: Topology, path: Path) -> AsyncIterator[asyncio.Task[None]]:
    """A watch on the file while inside."""
    task = asyncio.create_task(topology.watch(path))
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.mark.parametrize(
    ("candidate", "taken"),
    [
        (OLD, False),
        (replace(OLD, epoch=4), False),
        (replace(OLD, epoch=1), False),
        (replace(OLD, strategy=Strategy.TIME), False),
        (NEW, True),
        (replace(OLD, epoch=2**63 - 1), True),
        (replace(NEW, strategy=Strategy.TIME), True),
        (replace(NEW, tenant="t_b"), False),
    ],
)
def test_only_a_newer_map_of_the_tenant_is_taken(candidate: ShardMap, taken: bool) -> None:
    told: list[ShardMap] = []
    topology = Topology(OLD, told.append)
    assert topology.offer(candidate) is taken
    assert topology.current is (candidate if taken else OLD)
    assert told == ([candidate] if taken else [])


def test_the_epoch_never_goes_back() -> None:
    topology = Topology(OLD)
    taken = [topology.offer(replace(OLD, epoch=epoch)) for epoch in (7, 6, 7, 9, 8)]
    assert taken == [True, False, False, True, False]
    assert topology.current.epoch == 9


async def test_a_newer_file_is_taken_when_the_watch_begins(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text(NEW.to_json(), "utf-8")
    changes = Changes()
    topology = Topology(OLD, changes)
    async with watching(topology, path):
        await changes.until(1)
    assert topology.current == NEW


# What puts a file of the kind at a path; the last one puts nothing there.
BROKEN: dict[str, Callable[[Path], object]] = {
    "no JSON": lambda path: path.write_text('{"epoch": 6', "utf-8"),
    "no map": lambda path: path.write_text('{"format": 1}', "utf-8"),
    "no text": lambda path: path.write_bytes(b"\xff\xfe"),
    "a folder": Path.mkdir,
    "nothing": Path.exists,
}


@pytest.mark.parametrize("kind", BROKEN)
async def test_a_file_that_cannot_be_read_is_logged_and_the_map_stays(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "map.json"
    BROKEN[kind](path)
    changes = Changes()
    topology = Topology(OLD, changes)
    with warnings_heard() as heard:
        async with watching(topology, path) as task, asyncio.timeout(PATIENCE_S):
            await heard.came.wait()
            assert not task.done()
    assert topology.current is OLD
    assert changes == []
    [record] = heard.records
    assert (record.getMessage(), record.__dict__["file"]) == ("shard map not read", "map.json")
    assert record.__dict__["reason"]


# The one test here that waits for a turn of the watch: up to a second.
async def test_a_file_that_is_replaced_is_taken_also_after_a_broken_one(tmp_path: Path) -> None:
    path, link, later = tmp_path / "real.json", tmp_path / "map.json", tmp_path / "later.json"
    path.write_text("{", "utf-8")
    link.symlink_to(path)
    changes = Changes()
    topology = Topology(OLD, changes)
    with warnings_heard() as heard:
        async with watching(topology, link):
            async with asyncio.timeout(PATIENCE_S):
                await heard.came.wait()
            later.write_text(NEW.to_json(), "utf-8")
            swap = tmp_path / "swap"
            swap.symlink_to(later)
            swap.replace(link)  # as the kubelet does
            await changes.until(1)
    assert topology.current == NEW
