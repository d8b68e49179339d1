"""Tests marked `virtual_time` wait for no timer: their loop jumps to the next, and the sidecar's clock is the loop's.

So they take no time for what they wait, and how fast the machine is makes no difference to them.
"""

import asyncio
import sys
from collections.abc import Callable, Mapping

import pytest

from engram_sidecar import clock
from tests.operator_stage import VirtualLoop

MARK = "virtual_time"
TURN_S = 2e-5  # what a turn of a loop takes at least in which something is done; without it, `sleep(0)` would take none


def in_virtual_time() -> asyncio.AbstractEventLoop:
    return VirtualLoop(TURN_S)


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {MARK: in_virtual_time} if item.get_closest_marker(MARK) else {"real_time": asyncio.new_event_loop}


@pytest.fixture(autouse=True)
def sidecars_clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker(MARK):
        for module in tuple(sys.modules.values()):
            if getattr(module, "monotonic_s", None) is clock.monotonic_s and module is not clock:
                monkeypatch.setattr(module, "monotonic_s", lambda: asyncio.get_running_loop().time())
