"""What a sidecar bears: ten thousand idle connections, a body of 1 GB, batches of 100,000 keys, heads that never end.

The sidecar is a process of its own beside local mode. While each of them goes on, /healthz is asked all the time; its
times stand beside those of the same minute without an attack. Memory is the process's highest (VmHWM).
"""

import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Self

from bench_start import free_ports, is_ready

from engram import Engram
from engram_contract.names import ENV_ADMIN_PORT, ENV_CONFIG_DIR, ENV_HTTP_PORT
from examples.demo.local import local_mode
from rows import Row

CONNECTIONS: Final = 10_000
KEYS: Final = 100_000
BODY_BYTES: Final = 1 << 30
WATCH_S: Final = 5.0
HEALTH_S: Final = 0.1  # bars of the issue
LAG_S: Final = 0.02
GROWN_MIB: Final = 128.0  # 2,560 connections of 6 to 16 KiB, two bodies of 8 MiB and what is parsed of them


class Health:
    """Asks /healthz until it is told to stop, and keeps the times."""

    def __init__(self, port: int) -> None:
        self.times_s: list[float] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._ask, args=(port,))

    def _ask(self, port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        while not self._is_over.wait(0.005):
            begun_s = time.perf_counter()
            connection.request("GET", "/healthz")
            connection.getresponse().read()
            self.times_s.append(time.perf_counter() - begun_s)
        connection.close()

    def __enter__(self) -> Self:
        """Begins."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends."""
        self._is_over.set()
        self._thread.join()

    def p99_s(self) -> float:
        """Of the times so far."""
        return sorted(self.times_s)[int(len(self.times_s) * 0.99)]


def idle(port: int) -> None:
    """Connections that say nothing, or not enough."""
    with contextlib.ExitStack() as stack:
        for number in range(CONNECTIONS):
            one = stack.enter_context(socket.socket())
            one.settimeout(5)
            one.connect(("127.0.0.1", port))
            if number % 2:
                with contextlib.suppress(OSError):  # refused and closed by now
                    one.sendall(b"GET /v1/shards HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        time.sleep(WATCH_S)


def large_body(port: int) -> None:
    """A body of a gigabyte, by its length and in chunks."""
    begin = b"POST /v1/memories HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    block = b" " * 65_536
    for head, chunk in (
        (f"Content-Length: {BODY_BYTES}", block),
        ("Transfer-Encoding: chunked", f"{len(block):x}\r\n".encode() + block + b"\r\n"),
    ):
        with socket.socket() as one, contextlib.suppress(OSError):  # answered and closed by now
            one.connect(("127.0.0.1", port))
            one.sendall(begin + head.encode() + b"\r\n\r\n")
            for _ in range(BODY_BYTES // len(block)):
                one.sendall(chunk)


def long_batches(port: int) -> None:
    """Batches of so many keys."""
    body = json.dumps({"operations": [{"op": "get", "id": f"{number:036x}"} for number in range(KEYS)]}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    until_s = time.monotonic() + WATCH_S
    while time.monotonic() < until_s:
        connection.request("POST", "/v1/batch", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status not in {413, 422}:
            message = f"the batch was answered {answer.status}"
            raise RuntimeError(message)
        answer.read()
    connection.close()


ATTACKS: Final[dict[str, Callable[[int], None]]] = {
    "rest": lambda _: time.sleep(WATCH_S),
    "idle": idle,
    "body": large_body,
    "batch": long_batches,
}


def measure() -> Iterator[Row]:
    """Times of /healthz and the loop's lag under each attack, and the memory that it took."""
    with local_mode() as local, Engram(local.url) as memories:
        memories.wait_ready(180.0)
        [config_dir] = (local.data_dir / "tenants").iterdir()
        with sidecar(config_dir) as (process, http_port, admin_port):
            before_mib = memory_mib(process.pid, "VmRSS")
            for name, attack in ATTACKS.items():
                lags = lag_counts(admin_port)
                with Health(admin_port) as health:
                    attack(http_port)
                share = late_share(lags, lag_counts(admin_port))
                peer = f"of {len(health.times_s)} answers"
                yield Row.at_most(f"protection {name} healthz p99", health.p99_s(), "s", HEALTH_S, peer)
                yield Row.at_most(f"protection {name} late looks", share, "ratio", 0.01, f"later than {LAG_S:g} s")
            grown_mib = memory_mib(process.pid, "VmHWM") - before_mib
            yield Row.at_most("protection memory grown", grown_mib, "MiB", GROWN_MIB, f"{before_mib:.0f} MiB before")


def lag_counts(port: int) -> tuple[float, float]:
    """How many looks at the loop there were, and how many came in time."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    found = dict(re.findall(r'engram_loop_lag_seconds_bucket\{le="([^"]+)"\} (\S+)', text))
    return float(found["+Inf"]), float(found[str(LAG_S)])


def late_share(before: tuple[float, float], after: tuple[float, float]) -> float:
    """Of the looks between the two, the share that came late."""
    looks = max(after[0] - before[0], 1.0)
    return 1.0 - (after[1] - before[1]) / looks


def memory_mib(pid: int, name: str) -> float:
    """A figure of a process's memory."""
    [line] = [each for each in Path(f"/proc/{pid}/status").read_text().splitlines() if each.startswith(name)]
    return int(line.split()[1]) / 1024


@contextlib.contextmanager
def sidecar(config_dir: Path) -> Iterator[tuple["subprocess.Popen[bytes]", int, int]]:
    """A sidecar process that is ready, with its ports."""
    http_port, admin_port = free_ports()
    ports = {ENV_HTTP_PORT: str(http_port), ENV_ADMIN_PORT: str(admin_port), ENV_CONFIG_DIR: str(config_dir)}
    process = subprocess.Popen(
        [sys.executable, "-m", "engram_sidecar"], env=os.environ | ports, stderr=subprocess.DEVNULL
    )
    try:
        while not is_ready(admin_port):
            time.sleep(0.05)
        yield process, http_port, admin_port
    finally:
        process.terminate()
        process.wait()
