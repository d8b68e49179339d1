"""Local mode as a user runs it: real processes, started and looked at from outside.

Nothing sleeps for luck: whoever waits, waits for a line, a file or the end of a process, with a deadline.
"""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from engram import AsyncEngram, Engram, EngramError, Memory

ROOT: Final = Path(__file__).resolve().parents[2]
QUICKSTART: Final = ROOT / "examples" / "quickstart.yaml"
TWO_TENANTS: Final = ROOT / "examples" / "two-tenants.yaml"
READY: Final = "Press Ctrl-C to stop."
DEADLINE_S: Final = 120.0  # far beyond what anything here takes: a hang is a failure, a slow machine is not
POLL_S: Final = 0.01
PORTS: Final = range(30_000, 32_700)  # above the shards', below those of outgoing connections


def wait_until(what: str, is_so: Callable[[], bool], deadline_s: float = DEADLINE_S) -> None:
    """Returns when it is so; fails, saying what was waited for, after the deadline."""
    end_s = time.monotonic() + deadline_s
    while not is_so():
        assert time.monotonic() < end_s, f"waited {deadline_s} s for {what}"
        time.sleep(POLL_S)


def environment() -> dict[str, str]:
    """The environment of a user's shell with this checkout importable, whether or not it is installed."""
    rooms = [str(ROOT / room) for room in ("contract", "operator", "sidecar", "client", "cli")]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ENGRAM_")}
    path = os.pathsep.join([*rooms, *filter(None, [os.environ.get("PYTHONPATH")])])
    return kept | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}


def free_port(count: int = 2) -> int:
    """A port from which on ports are free in steps of ten, each with its follower, for so many tenants."""
    bases = list(PORTS[::50])
    first = os.getpid() % len(bases)  # two runs at once rarely meet
    for base in bases[first:] + bases[:first]:
        if all(_is_free(base + 10 * step + more) for step in range(count) for more in (0, 1)):
            return base
    raise AssertionError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class Program:
    """A running program whose lines are read as they come."""

    def __init__(self, arguments: Sequence[str], env: dict[str, str]) -> None:
        self.lines: list[str] = []
        self._news = threading.Condition()
        self.process = subprocess.Popen(
            arguments,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._readers = threading.Thread(target=self._read)
        self._readers.start()

    @property
    def output(self) -> str:
        """All that it has written so far."""
        return "\n".join(self.lines)

    def wait_line(self, part: str, deadline_s: float = DEADLINE_S) -> str:
        """The first line that holds `part`; fails if the program ends without it."""
        with self._news:
            found = self._news.wait_for(lambda: self._find(part) is not None or self._has_ended(), deadline_s)
        line = self._find(part)
        assert found, f"waited {deadline_s} s for {part!r}:\n{self.output}"
        assert line is not None, f"it ended without {part!r}:\n{self.output}"
        return line

    def end(self, number: int = signal.SIGTERM) -> int:
        """The exit status after this signal."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """The exit status, once it has ended."""
        status = self.process.wait(DEADLINE_S)
        self._readers.join(DEADLINE_S)
        return status

    def kill(self) -> None:
        """Ends it as a power cut would."""
        if self.process.poll() is None:
            self.process.kill()
        self.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stdout:
            for line in stdout:
                with self._news:
                    self.lines.append(line.rstrip("\n"))
                    self._news.notify_all()
        self.process.wait(DEADLINE_S)  # so that whoever is woken now sees that it has ended
        with self._news:
            self.lines.append("")
            self._news.notify_all()

    def _has_ended(self) -> bool:
        return bool(self.lines) and self.lines[-1] == "" and self.process.poll() is not None

    def _find(self, part: str) -> str | None:
        return next((line for line in self.lines if part in line), None)


@dataclass
class Stage:
    """One data directory and the programs that were started on it."""

    data_dir: Path
    port: int
    programs: list[Program] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The first tenant's sidecar."""
        return f"http://127.0.0.1:{self.port}"

    def start(self, *manifests: Path | str, options: Iterable[str] = ()) -> Program:
        """`engram up`, without waiting."""
        files = [part for file in manifests or (QUICKSTART,) for part in ("-f", str(file))]
        arguments = ["up", *files, "--data-dir", str(self.data_dir), "--port", str(self.port), *options]
        program = Program([sys.executable, "-m", "engram_cli", *arguments], environment())
        self.programs.append(program)
        return program

    def up(self, *manifests: Path | str, options: Iterable[str] = ()) -> Program:
        """`engram up` that serves."""
        program = self.start(*manifests, options=options)
        program.wait_line(READY)
        return program

    def sidecar(self, tenant: str, port: int) -> Program:
        """`python -m engram_sidecar` for a tenant of this data directory, serving."""
        folder = self.data_dir / "tenants" / tenant
        more = {
            "ENGRAM_CONFIG_DIR": str(folder),
            "ENGRAM_HTTP_PORT": str(port),
            "ENGRAM_ADMIN_PORT": str(port + 1),
        }
        program = Program([sys.executable, "-m", "engram_sidecar"], environment() | more)
        self.programs.append(program)
        with Engram(f"http://127.0.0.1:{port}") as memories:
            memories.wait_ready(DEADLINE_S)
        return program

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command on this data directory that ends by itself."""
        return engram(*arguments, "--data-dir", str(self.data_dir))

    def status(self) -> dict[str, Any]:
        """`engram status --json`."""
        done = self.run("status", "--json")
        assert done.returncode == 0, done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    def postmaster(self, shard: str) -> int:
        """The pid in the shard's postmaster.pid."""
        return int((self.data_dir / "shards" / shard / "pgdata" / "postmaster.pid").read_text().splitlines()[0])

    def processes(self) -> list[int]:
        """Every process that works in this data directory or was started for it, but for the test itself."""
        return sorted(pid for pid in _all_pids() if pid != os.getpid() and self._is_ours(pid))

    def clean_up(self) -> None:
        """Nothing runs and nothing is left, whatever a test left behind."""
        for program in self.programs:
            program.kill()
        self.run("down")
        left = self.processes()
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.data_dir.parent, ignore_errors=True)
        assert left == []

    def _is_ours(self, pid: int) -> bool:
        here = str(self.data_dir)
        try:
            at_home = os.readlink(f"/proc/{pid}/cwd").startswith(here)  # noqa: PTH115  only a text
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        except OSError:
            return False
        return at_home or here in command


def _all_pids() -> Iterator[int]:
    return (int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit())


def engram(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """A command that ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "engram_cli", *arguments],
        env=environment(),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def the_error(done: subprocess.CompletedProcess[str], status: int) -> str:
    """The one line of an error, after a look that it is one line, on standard error, with this exit status."""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
    assert (done.returncode, done.stdout, len(lines)) == (status, "", 1), done.stderr
    assert lines[0].startswith("engram: error: ")
    return lines[0].removeprefix("engram: error: ")


@dataclass
class Load:
    """Writers that store as fast as they can, and a log of what was sent and what was acknowledged."""

    url: str
    user: str
    sent: set[str] = field(default_factory=set)
    acknowledged: dict[str, str] = field(default_factory=dict)  # content -> id
    errors: list[EngramError] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _news: threading.Condition = field(default_factory=threading.Condition)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Stores from many users within this block, going on after errors."""
        thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(DEADLINE_S)
            assert not thread.is_alive()

    def wait_acknowledged(self, more: int) -> None:
        """Returns when so many more were acknowledged than now."""
        wanted = len(self.acknowledged) + more
        with self._news:
            enough = self._news.wait_for(lambda: len(self.acknowledged) >= wanted, DEADLINE_S)
        assert enough, f"{len(self.acknowledged)} of {wanted} acknowledged; last error: {self.errors[-1:]}"

    def wait_error(self) -> EngramError:
        """The next error that a writer gets."""
        before = len(self.errors)
        with self._news:
            assert self._news.wait_for(lambda: len(self.errors) > before, DEADLINE_S), "no error came"
        return self.errors[before]

    async def _run(self) -> None:
        async with AsyncEngram(self.url, timeout_s=30) as memories:
            await asyncio.gather(*(self._write(memories, number) for number in range(8)))

    async def _write(self, memories: AsyncEngram, writer: int) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            content = f"{self.user} {writer} {number}"
            self.sent.add(content)
            try:
                stored = await memories.create(content=content, user=f"{self.user}-{writer}-{number % 16}")
            except EngramError as error:
                self._note(partial(self.errors.append, error))
                await asyncio.sleep(POLL_S)  # nobody is there for a moment: do not spin
            else:
                self._note(partial(self.acknowledged.update, {content: stored.id}))

    def _note(self, write: Callable[[], object]) -> None:
        with self._news:
            write()
            self._news.notify_all()


def found_of(url: str, load: Load) -> dict[str, Memory]:
    """Every memory of a load that is there now, by content; each acknowledged one also by its id."""
    with Engram(url, timeout_s=60) as memories:
        memories.wait_ready(DEADLINE_S)
        prefix = f"{load.user} "
        found = {each.content: each for each in memories.list(limit=1000) if each.content.startswith(prefix)}
        for content, memory_id in load.acknowledged.items():
            assert memories.get(memory_id).content == content
    return found


def check_nothing_lost(url: str, load: Load) -> None:
    """What was acknowledged is there, and nothing is there that was never sent."""
    found = found_of(url, load)
    lost = load.acknowledged.keys() - found.keys()
    invented = found.keys() - load.sent
    assert (len(lost), len(invented)) == (0, 0)
    assert {found[content].id for content in load.acknowledged} == {*load.acknowledged.values()}


def new_stage() -> Stage:
    """A stage whose data directory is not there yet; whoever makes it cleans it up."""
    # Not pytest's own directory: only its owner may pass that, and Postgres may run as another user.
    folder = Path(tempfile.mkdtemp(prefix="engram-e2e-"))
    folder.chmod(0o755)
    return Stage(folder / "data", free_port())
