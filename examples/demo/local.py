"""Local mode as a user runs it: `engram up` in a process of its own, `engram stop` and `engram start` for one shard.

Promises: whatever was started here is stopped when the context is left, also by SIGTERM, and its data is removed.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

MANIFEST = Path(__file__).parent.parent / "quickstart.yaml"
STOP_TIMEOUT_S = 60.0  # Postgres writes a checkpoint before it goes
FIRST_PORT, LAST_PORT = 17_711, 18_711  # beside 7711, so that the demo runs while `engram up` does
ENGRAM = (sys.executable, "-m", "engram_cli")


class LocalModeFailed(Exception):
    """A command of local mode did not do what it should; the message is for a person."""


@dataclass(frozen=True, slots=True)
class LocalMode:
    """A running `engram up`: `url` is its sidecar's address."""

    url: str
    data_dir: Path
    process: subprocess.Popen[bytes]

    def check_running(self) -> None:
        """Raises LocalModeFailed if `engram up` has ended by itself."""
        if (status := self.process.poll()) is not None:
            reason = f"`engram up` ended by itself with status {status}"
            raise LocalModeFailed(reason)

    def order(self, verb: str, shard: str) -> None:
        """`engram stop SHARD` or `engram start SHARD`, done when it returns."""
        command = [*ENGRAM, verb, shard, "--data-dir", str(self.data_dir)]
        done = subprocess.run(command, check=False, timeout=STOP_TIMEOUT_S)  # noqa: S603  our own command
        if done.returncode != 0:
            reason = f"`engram {verb} {shard}` ended with status {done.returncode}"
            raise LocalModeFailed(reason)


@contextmanager
def local_mode() -> Iterator[LocalMode]:
    """`engram up` with a fresh data directory and free ports; stopped and removed at the end."""
    data_dir = Path(tempfile.mkdtemp(prefix="engram-demo-"))
    data_dir.chmod(0o755)  # root starts Postgres as another user, who must be able to walk in
    port = free_port()
    command = [*ENGRAM, "up", "-f", str(MANIFEST), "--data-dir", str(data_dir), "--port", str(port)]
    # A session of its own: Ctrl-C reaches the demo alone, which then stops what it started.
    process = subprocess.Popen(command, start_new_session=True)  # noqa: S603  our own command
    before = signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        yield LocalMode(f"http://127.0.0.1:{port}", data_dir, process)
    finally:
        signal.signal(signal.SIGTERM, before)
        stop(process)
        shutil.rmtree(data_dir, ignore_errors=True)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Asks the process to end, and ends its whole session if it does not."""
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens now, nor on the next one, where the sidecar has its probes."""
    for port in range(FIRST_PORT, LAST_PORT, 10):
        with (
            suppress(OSError),
            socket.create_server(("127.0.0.1", port)),
            socket.create_server(("127.0.0.1", port + 1)),
        ):
            return port
    reason = f"no two free ports from {FIRST_PORT} to {LAST_PORT}"
    raise LocalModeFailed(reason)
