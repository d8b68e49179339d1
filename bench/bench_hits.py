"""A read by id that the sidecar's first cache level answers, beside a bare server that answers with the same body.

Each server has one core and the load the other, in turns; the median of ROUNDS counts. One memory of about 1 KB is read
by CALLERS callers, so that every read but one in two seconds is a hit. The tenant has no audit. Then the curve of rate
against time, open loop.
"""

import asyncio
import json
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from bench_peers import LOAD_CORE, READY_TIMEOUT_S, SERVER_CORE, Value, fill, on_core, request, run, sidecar

from engram_contract.names import POLICY_FILE
from engram_contract.policy import Policy
from examples.demo.local import LocalMode, free_port, local_mode
from rows import Row

HERE = Path(__file__).resolve().parent
CALLERS = 16
ROUNDS = 5
TURN_S = 3.0
BAR = 0.75
BAR_P99_MS = 2.0
PARTS = (0.25, 0.5, 0.7, 0.85)  # of the rate under a closed load


def measure() -> Iterator[Row]:
    """The rows of this benchmark."""
    with local_mode() as local:
        [memory] = asyncio.run(fill(local.url, [Value("ada", 1, "x" * 700)]))
        with TemporaryDirectory() as folder, sidecar(local, without_audit(local, Path(folder) / "config")) as port:
            address = f"http://localhost:{port}/v1/memories/{memory}"
            with urllib.request.urlopen(address, timeout=READY_TIMEOUT_S) as answer:
                size = len(answer.read())
            asked = json.dumps([request("GET", f"/v1/memories/{memory}")])
            with bare(size) as bare_port:
                ours, theirs = [], []
                for _ in range(ROUNDS):
                    ours.append(loaded(port, asked))
                    theirs.append(loaded(bare_port, asked))
                rate, bare_rate = middle(ours, "rate"), middle(theirs, "rate")
                peer = f"a bare aiohttp server: {bare_rate:,.0f} a second"
                yield Row.at_least("hits_ratio", rate / bare_rate, "times", BAR, peer)
                yield Row.shown("hits_rate", rate, "a second", peer)
                for part in PARTS:
                    yield from open_rows(f"{part:.0%}", loaded(port, asked, rate * part), rate * part)
                yield from open_rows("1000", loaded(port, asked, 1000.0), 1000.0)
                for name, at in (("1000", 1000.0), ("half_of_ours", rate / 2)):
                    beside = loaded(bare_port, asked, at)
                    peer = f"{at:,.0f} a second; p50 {beside['p50_ms']:.2f} ms"
                    yield Row.shown(f"hits_bare_p99_at_{name}", beside["p99_ms"], "ms", peer)


def without_audit(local: LocalMode, folder: Path) -> Path:
    """The configuration of the local tenant, whose policy asks for no audit: that writes to the shard for each read."""
    [config_dir] = (local.data_dir / "tenants").iterdir()
    shutil.copytree(config_dir, folder)
    policy = Policy.from_json((folder / POLICY_FILE).read_text(encoding="utf-8"))
    (folder / POLICY_FILE).write_text(replace(policy, audit=False).to_json(), encoding="utf-8")
    return folder


def open_rows(name: str, seen: dict[str, float], rate: float) -> Iterator[Row]:
    """What requests took that came at their times."""
    peer = f"open loop, {rate:,.0f} a second; p50 {seen['p50_ms']:.2f} ms"
    label = f"hits_p99_at_{name.removesuffix('%')}"
    if name == "70%":
        yield Row.at_most(label, seen["p99_ms"], "ms", BAR_P99_MS, peer)
    else:
        yield Row.shown(label, seen["p99_ms"], "ms", peer)


def middle(turns: list[dict[str, float]], name: str) -> float:
    """The median of the turns."""
    return statistics.median(each[name] for each in turns)


def loaded(port: int, asked: str, rate: float = 0.0) -> dict[str, float]:
    """What the load saw in one turn."""
    load = [sys.executable, str(HERE / "load.py"), "127.0.0.1", str(port), str(TURN_S), str(CALLERS), str(rate)]
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
