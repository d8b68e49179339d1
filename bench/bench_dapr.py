"""A read by id that the sidecar's first cache level answers, beside Dapr's state API over its in-memory store.

Dapr has no cache: what it reads here lies in its own memory, so no network is in either figure. The same 1 KB body, the
same load in turns, each server on one core; the median of ROUNDS counts. The sidecar encrypts, and keeps no audit.

DAPRD names the program; without it nothing is measured, and that is said. docs/performance.md says how to build it.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from bench_hits import loaded, without_audit
from bench_peers import READY_TIMEOUT_S, SERVER_CORE, Value, fill, on_core, request, sidecar

from examples.demo.local import free_port, local_mode
from rows import Row

ROUNDS = 5
RATE = 1_000.0
STORE = """
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: memory}
spec: {type: state.in-memory, version: v1}
"""


def measure() -> Iterator[Row]:
    """The rows of this benchmark; none without DAPRD."""
    program = os.environ.get("DAPRD")
    if program is None:
        print("dapr: not measured, as DAPRD names no daprd program", file=sys.stderr)
        return
    with local_mode() as local, TemporaryDirectory() as name:
        [memory] = asyncio.run(fill(local.url, [Value("ada", 1, "x" * 700)]))
        with sidecar(local, without_audit(local, Path(name) / "config")) as port:
            path = f"/v1/memories/{memory}"
            with urllib.request.urlopen(f"http://localhost:{port}{path}", timeout=READY_TIMEOUT_S) as answer:
                body = answer.read()
            with daprd(program, Path(name), body) as dapr_port:
                yield from rows(port, json.dumps([request("GET", path)]), dapr_port)


def rows(port: int, asked: str, dapr_port: int) -> Iterator[Row]:
    """Both in turns: closed, and open at RATE a second."""
    asked_of_dapr = json.dumps([request("GET", "/v1.0/state/memory/one")])
    for label, rate in (("closed", 0.0), ("at_1000", RATE)):
        ours, theirs = [], []
        for _ in range(ROUNDS):
            ours.append(loaded(port, asked, rate))
            theirs.append(loaded(dapr_port, asked_of_dapr, rate))
        middle = {
            (who, figure): statistics.median(each[figure] for each in turns)
            for who, turns in (("ours", ours), ("dapr", theirs))
            for figure in ("rate", "p50_ms", "p99_ms")
        }
        if not rate:
            peer = f"Dapr: {middle['dapr', 'rate']:,.0f} a second"
            yield Row.shown("dapr_hits_rate", middle["ours", "rate"], "a second", peer)
        for figure in ("p50_ms", "p99_ms"):
            ratio = middle["ours", figure] / middle["dapr", figure]
            peer = f"{middle['ours', figure]:.2f} ms, Dapr: {middle['dapr', figure]:.2f} ms"
            yield Row.at_most(f"dapr_{figure.removesuffix('_ms')}_{label}", ratio, "times", 1.0, peer)


@contextmanager
def daprd(program: str, folder: Path, body: bytes) -> Iterator[int]:
    """The port of a Dapr that has the body under a key, on the servers' core."""
    (folder / "components").mkdir()
    (folder / "components" / "memory.yaml").write_text(STORE, encoding="ascii")
    port, others = free_port(), [free_port() for _ in range(3)]
    flags = ["--app-id", "bench", "--resources-path", str(folder / "components"), "--log-level", "error"]
    ports = ["--dapr-http-port", str(port), "--dapr-grpc-port", str(others[0] + 1)]
    ports += ["--dapr-internal-grpc-port", str(others[1] + 2), "--metrics-port", str(others[2] + 3)]
    process = subprocess.Popen(  # noqa: S603  the operator of the benchmark names it
        on_core(SERVER_CORE, [program, *flags, *ports]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        state = json.dumps([{"key": "one", "value": json.loads(body)}]).encode()
        address = f"http://127.0.0.1:{port}/v1.0/state/memory"
        end_s = time.monotonic() + READY_TIMEOUT_S
        while True:
            try:
                asked = urllib.request.Request(address, state, {"Content-Type": "application/json"})
                with urllib.request.urlopen(asked, timeout=1):  # noqa: S310  ours
                    break
            except OSError:
                if time.monotonic() > end_s or process.poll() is not None:
                    raise
                time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()
