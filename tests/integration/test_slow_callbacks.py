"""Nothing holds the loop: the CPU time of each callback, under the largest requests that the interface takes.

CPU time of the loop's thread and not wall time, so that a busy machine changes nothing.
"""

import asyncio
import contextlib
import gc
import time
from asyncio.events import Handle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engram_contract.policy import Limits
from engram_sidecar.settings import Settings
from tests.harness import Answer, Http, RealServer, SidecarThread, create_tenant

SLOW_S = 0.02
RUNS = 5  # of all, one after the other: what holds the loop does so each time, a slow second of the machine does not
LIMITS = Limits()
WORDS = "the grey heron stands in the shallows and waits for whatever the river brings "


class Slow:
    """The callbacks that took longer than SLOW_S, each with what it ran."""

    def __init__(self) -> None:
        self.found: list[tuple[float, str]] = []


@contextlib.contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    """Measures every callback of every loop of Python's own while the block lasts.

    The collector of garbage is not to look at the thousands of objects of the test run, which no sidecar has.
    """
    slow, run = Slow(), Handle._run
    gc.freeze()

    def timed(handle: Handle) -> None:
        began_s = time.thread_time()
        run(handle)
        took_s = time.thread_time() - began_s
        if took_s > SLOW_S:
            slow.found.append((took_s, repr(handle)))

    with monkeypatch.context() as patch:
        patch.setattr(Handle, "_run", timed)
        yield slow
    gc.unfreeze()


def text(size: int) -> str:
    """So many characters of words."""
    return (WORDS * (size // len(WORDS) + 1))[:size]


def batch(content: str) -> dict[str, Any]:
    """As many operations as a batch may have."""
    made = [{"op": "create", "memory": {"content": f"{content} {n}"}} for n in range(LIMITS.batch_operations)]
    return {"operations": made}


FILTER = {"value": {"/a/0": {"gt": 3}}}
WORKLOADS: dict[str, Callable[[Http], Answer]] = {
    "long content": lambda http: http("POST", "/v1/memories", {"content": text(LIMITS.content_bytes)}),
    "large value": lambda http: http("POST", "/v1/memories", {"value": {"a": [text(100)] * 9_000}}),
    "numbers": lambda http: http("POST", "/v1/memories", {"value": list(range(LIMITS.value_bytes // 10))}),
    "batch of short memories": lambda http: http("POST", "/v1/batch", batch("heron")),
    "batch of a whole body": lambda http: http("POST", "/v1/batch", batch(text(7_000))),
    "list": lambda http: http("GET", "/v1/memories", limit=LIMITS.list_memories),
    "search": lambda http: http("POST", "/v1/search", {"query": WORDS, "limit": LIMITS.search_results}),
    "filter": lambda http: http("POST", "/v1/search", {"query": "", "filter": FILTER, "limit": 100}),
    "deep body": lambda http: http("POST", "/v1/memories", raw=b"[" * 8_000_000),
    "health": lambda http: http("GET", "/v1/health"),
}


@pytest.mark.parametrize("encryption", [False, True])
def test_no_callback_takes_the_loop_for_long(
    servers: tuple[RealServer, RealServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, encryption: bool
) -> None:
    spec = {"encryption": {"enabled": encryption}}
    tenant = asyncio.run(create_tenant(f"slow-{encryption}".lower(), servers, tmp_path, spec=spec))
    told: dict[str, list[tuple[float, str]]] = {}
    with SidecarThread(Settings(tenant.config_dir, http_port=0, admin_port=0)).running() as thread:
        http = Http(thread.ports.http_port)
        assert http("GET", "/v1/shards").status == 200
        for _ in range(RUNS):
            for name, work in WORKLOADS.items():
                with watched(monkeypatch) as slow:
                    answer = work(http)
                assert answer.status in {200, 201, 400, 503}, (name, answer.body[:200])
                told[name] = slow.found if told.get(name, True) else []
            if not any(told.values()):
                break
        http.close()
    assert {name: found for name, found in told.items() if found} == {}
