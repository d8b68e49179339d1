"""The loops beside the requests end when they are told to, whatever else happens at that moment."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from engram_sidecar.presence import Presence
from engram_sidecar.resealing import Resealer
from tests.operator_stage import run_virtually

Part = Resealer | Presence


@dataclass
class Folder:
    """A configuration in force that changes when it is told to."""

    config: Any = None
    notes: list[Callable[[Any], None]] = field(default_factory=list)

    def subscribe(self, note: Callable[[Any], None]) -> None:
        self.notes.append(note)

    def change(self) -> None:
        for note in self.notes:
            note(self.config)


def resealer(folder: Folder) -> Part:
    nothing_to_sweep = SimpleNamespace(shard_map=SimpleNamespace(shards=()))
    folder.config = nothing_to_sweep
    return Resealer(Any, folder, Any, SimpleNamespace(show_stale=lambda _left: None), 1.0)  # type: ignore[arg-type]


class Reporter(Presence):
    """Its reports are taken at once."""

    async def _report(self) -> bool:
        return True


def presence(folder: Folder) -> Part:
    return Reporter(folder, Any, SimpleNamespace(pod="a pod"), Any)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", range(6))
@pytest.mark.parametrize("make", [resealer, presence])
def test_a_change_at_the_moment_of_the_end_keeps_it_not_going(make: Callable[[Folder], Part], steps: int) -> None:
    async def stop() -> None:
        folder = Folder()
        running = asyncio.create_task(make(folder).run())
        await asyncio.sleep(10.0)  # it waits for a change
        folder.change()
        for _ in range(steps):
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait([running], timeout=3600.0)
        assert running.cancelled()

    run_virtually(stop())
