"""What it costs to be able to say where the time goes: nobody asks, one asks, and all of it goes to a collector.

In turns on the same shards: a sidecar that is not asked, the same one asked for `Server-Timing`, and one that sends
each request as a trace to a collector on this machine. Unasked, the cost is that of the looks at a context variable,
which is taken alone and set against a whole request.
"""

import contextlib
import http.server
import os
import statistics
import subprocess
import sys
import threading
import time
import timeit
from collections.abc import Iterator
from pathlib import Path

from bench_http import Wire
from bench_start import free_ports, is_ready

from engram import Engram
from engram_contract.names import ENV_ADMIN_PORT, ENV_CONFIG_DIR, ENV_HTTP_PORT, ENV_OTLP_ENDPOINT
from engram_sidecar import timing
from examples.demo.local import local_mode
from rows import Row

ROUNDS = 20
PER_ROUND = 200
PARTS = 4  # of a read by id: queue, connect, db, encode
READY_TIMEOUT_S = 180.0
BAR_UNASKED_PERCENT = 1.0
BAR_ASKED = 1.25
BAR_TRACED = 2.0  # the exporter's thread, the collector and the caller share the cores


def measure() -> Iterator[Row]:
    """The rows of this benchmark."""
    with local_mode() as local, Engram(local.url) as memories, collector() as endpoint:
        memories.wait_ready(READY_TIMEOUT_S)
        made = memories.create(content="a grey heron stands in the shallows")
        [config_dir] = (local.data_dir / "tenants").iterdir()
        with sidecar(config_dir) as one, sidecar(config_dir, endpoint) as other:
            bare = one.build("GET", f"/v1/memories/{made.id}")
            asked = bare.replace(b"\r\n", b"\r\nEngram-Timing: on\r\n", 1)
            medians_s = take_turns({"unasked": (one, bare), "asked": (one, asked), "traced": (other, bare)})
    unasked_s = medians_s["unasked"]
    peer = f"a read by id that nobody asks about: {1000 * unasked_s:.3g} ms"
    yield Row.at_most("timing_unasked", 100 * PARTS * part_s() / unasked_s, "percent", BAR_UNASKED_PERCENT, peer)
    yield Row.at_most("timing_asked_ratio", medians_s["asked"] / unasked_s, "times", BAR_ASKED, peer)
    yield Row.at_most("timing_traced_ratio", medians_s["traced"] / unasked_s, "times", BAR_TRACED, peer)


def take_turns(ways: dict[str, tuple[Wire, bytes]]) -> dict[str, float]:
    """The median of each way, in seconds."""
    times_s: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(ROUNDS + 1):
        for name, (wire, request) in ways.items():
            for _ in range(PER_ROUND):
                began_s = time.perf_counter()
                wire.send(request)
                if number:  # the first round warms up
                    times_s[name].append(time.perf_counter() - began_s)
    return {name: statistics.median(found) for name, found in times_s.items()}


def part_s() -> float:
    """Seconds of one part that nobody asked for."""

    def once() -> None:
        with timing.part("db", "s0", "get_memories"):
            pass

    timing.begin(None)
    count = 100_000
    return min(timeit.repeat(once, number=count, repeat=5)) / count


@contextlib.contextmanager
def sidecar(config_dir: Path, endpoint: str = "") -> Iterator[Wire]:
    """A connection to a sidecar process, which sends traces if there is an endpoint."""
    http_port, admin_port = free_ports()
    environ = {ENV_HTTP_PORT: str(http_port), ENV_ADMIN_PORT: str(admin_port), ENV_CONFIG_DIR: str(config_dir)}
    process = subprocess.Popen(
        [sys.executable, "-m", "engram_sidecar"], env=os.environ | environ | {ENV_OTLP_ENDPOINT: endpoint}
    )
    try:
        until_s = time.monotonic() + READY_TIMEOUT_S
        while not is_ready(admin_port):
            if process.poll() is not None or time.monotonic() > until_s:
                message = f"the sidecar did not get ready, status {process.poll()}"
                raise RuntimeError(message)
            time.sleep(0.01)
        with Wire(f"http://127.0.0.1:{http_port}") as wire:
            yield wire
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def collector() -> Iterator[str]:
    """The address of a server that takes everything."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            """Takes a batch of spans."""
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()
