"""A read by id that the sidecar's first cache level answers, beside a bare server that answers with the same body.

Each server has one core and the load the other, in turns; the median of ROUNDS counts. One memory of about 1 KB is read
by CALLERS callers, so that every read but one in two seconds is a hit.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench_peers import LOAD_CORE, READY_TIMEOUT_S, SERVER_CORE, Value, fill, on_core, request, run, sidecar

from examples.demo.local import free_port, local_mode
from rows import Row

HERE = Path(__file__).resolve().parent
CALLERS = 16
ROUNDS = 5
TURN_S = 3.0
BAR = 0.75


def measure() -> Iterator[Row]:
    """The rows of this benchmark."""
    with local_mode() as local:
        [memory] = asyncio.run(fill(local.url, [Value("ada", 1, "x" * 700)]))
        with sidecar(local) as port:
            address = f"http://localhost:{port}/v1/memories/{memory}"
            with urllib.request.urlopen(address, timeout=READY_TIMEOUT_S) as answer:
                size = len(answer.read())
            asked = json.dumps([request("GET", f"/v1/memories/{memory}")])
            with bare(size) as bare_port:
                ours, theirs = [], []
                for _ in range(ROUNDS):
                    ours.append(loaded(port, asked))
                    theirs.append(loaded(bare_port, asked))
    rate = statistics.median(each["rate"] for each in ours)
    bare_rate = statistics.median(each["rate"] for each in theirs)
    peer = f"a bare aiohttp server: {bare_rate:,.0f} a second"
    yield Row.at_least("hits_ratio", rate / bare_rate, "times", BAR, peer)
    yield Row.shown("hits_rate", rate, "a second", peer)
    for name in ("p50_ms", "p99_ms"):
        peer_ms = statistics.median(each[name] for each in theirs)
        yield Row.shown(
            f"hits_{name.removesuffix('_ms')}",
            statistics.median(each[name] for each in ours),
            "ms",
            f"bare: {peer_ms:.2f} ms, {CALLERS} callers, one core",
        )


def loaded(port: int, asked: str) -> dict[str, float]:
    """What the load saw in one turn."""
    load = [sys.executable, str(HERE / "load.py"), "127.0.0.1", str(port), str(TURN_S), str(CALLERS)]
    found: dict[str, float] = json.loads(run(load, asked, LOAD_CORE))
    return found


@contextmanager
def bare(size: int) -> Iterator[int]:
    """The port of a bare server of a body of this size, on the servers' core."""
    port = free_port()
    command = on_core(SERVER_CORE, [sys.executable, str(HERE / "peer_aiohttp.py"), str(port), str(size)])
    process = subprocess.Popen(command)  # noqa: S603  our own
    try:
        end_s = time.monotonic() + READY_TIMEOUT_S
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1):
                    break
            except OSError:
                if time.monotonic() > end_s:
                    raise
                time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()
