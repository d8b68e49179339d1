"""How long a sidecar takes to get ready, beyond what Python itself takes to start.

In turns: an interpreter that does nothing, and a sidecar of local mode until its /readyz says yes, which it does when
every shard has answered. The difference is what the sidecar adds to a pod's start.
"""

import http.client
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from engram import Engram
from engram_contract.names import ENV_ADMIN_PORT, ENV_CONFIG_DIR, ENV_HTTP_PORT
from examples.demo.local import local_mode
from rows import Row

ROUNDS = 15
POLL_S = 0.002
READY_TIMEOUT_S = 180.0
BAR_S = 1.0  # of the issue: ready in less than a second once the interpreter runs


def measure() -> Iterator[Row]:
    """The rows of this benchmark."""
    with local_mode() as local, Engram(local.url) as memories:
        memories.wait_ready(READY_TIMEOUT_S)
        [config_dir] = (local.data_dir / "tenants").iterdir()
        bare_s, ready_s = zip(*((bare(), ready(config_dir)) for _ in range(ROUNDS)), strict=True)
    interpreter_s = statistics.median(bare_s)
    added_s = statistics.median(ready_s) - interpreter_s
    yield Row.at_most("start_ready", added_s, "s", BAR_S, f"beyond a bare interpreter: {interpreter_s:.3g} s")
    yield Row.shown("start_ready_slowest", max(ready_s) - interpreter_s, "s", f"of {ROUNDS}")


def bare() -> float:
    """Seconds of an interpreter that does nothing."""
    begun_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return time.perf_counter() - begun_s


def ready(config_dir: Path) -> float:
    """Seconds from a sidecar's start until it is ready."""
    http_port, admin_port = free_ports()
    ports = {ENV_HTTP_PORT: str(http_port), ENV_ADMIN_PORT: str(admin_port), ENV_CONFIG_DIR: str(config_dir)}
    begun_s = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "engram_sidecar"], env=os.environ | ports, stderr=subprocess.DEVNULL
    )
    try:
        while not is_ready(admin_port):
            if process.poll() is not None or time.perf_counter() - begun_s > READY_TIMEOUT_S:
                message = f"the sidecar did not get ready, status {process.poll()}"
                raise RuntimeError(message)
            time.sleep(POLL_S)
        return time.perf_counter() - begun_s
    finally:
        process.terminate()
        process.wait()


def is_ready(port: int) -> bool:
    """What /readyz says; no, if nobody listens yet."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=READY_TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.client.OK
    except OSError:
        return False
    finally:
        connection.close()


def free_ports() -> tuple[int, int]:
    """Two ports that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        return one.getsockname()[1], two.getsockname()[1]
