"""What a person sees: progress while it starts, tables, lines. The only file that knows rich.

Results go to standard output, what happens on the way and errors to standard error, so that `engram status --json | jq`
works.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Final, TextIO

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from engram_cli.report import Report, Serving, ShardReport, TenantReport

PLAIN_COLUMNS: Final = 200
MIB: Final = 1024 * 1024
DONE: Final = frozenset({"ready", "stopped"})
STYLES: Final[Mapping[str, str]] = {"running": "green", "ready": "green", "serving": "green", "stopped": "yellow"}


class Screen:
    """Standard output and error. Without a terminal: plain lines, no colours, no cursor movements."""

    def __init__(self) -> None:
        self._out = _console(sys.stdout)
        self._err = _console(sys.stderr)
        self._phases: dict[str, str] = {}
        self._live: Live | None = None

    def say(self, line: str) -> None:
        """One line of what happens."""
        self._err.print(escape(line))

    def note(self, line: str) -> None:
        """One line that the user should read: something is not as the manifest says."""
        self._err.print(f"[yellow]note:[/] {escape(line)}")

    def fail(self, line: str) -> None:
        """The line that ends the command."""
        self._err.print(f"[bold red]engram: error:[/] {escape(line)}")

    def print(self, line: str) -> None:
        """One line of the result."""
        self._out.print(escape(line))

    @contextmanager
    def progress(self) -> Iterator[None]:
        """Within this block phases are shown as they change: in place on a terminal, as lines elsewhere."""
        self._phases = {}
        if not self._err.is_terminal:
            yield
            return
        with Live(console=self._err, refresh_per_second=12, transient=True, get_renderable=self._phase_table) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    def phase(self, what: str, phase: str) -> None:
        """`what` (a shard, a tenant) is now in this phase. May be called from any thread."""
        self._phases[what] = phase
        if self._live is None:
            self.say(f"{what}: {phase}")

    def serving(self, serving: Serving) -> None:
        """Where everything is, once it serves."""
        tenants = _table("tenant", "url", "probes", "isolation")
        for each in serving.tenants:
            tenants.add_row(each.tenant, each.url, f"http://localhost:{each.admin_port}", each.isolation)
        self._out.print(tenants)
        shards = _table("shard", "state", "weight", "slots", "port", "pid")
        for one in serving.shards:
            slots = ", ".join(str(number) for number in sorted({*one.slots.values()}, reverse=True))
            shards.add_row(one.shard, one.state, str(one.weight), slots, str(one.port), str(one.pid))
        self._out.print(shards)
        self.print(f"data directory: {serving.data_dir}")
        self.print("Press Ctrl-C to stop.")

    def status(self, report: Report, *, as_json: bool) -> None:
        """The state of a data directory, as tables or as JSON."""
        if as_json:
            self._out.print(json.dumps(asdict(report), indent=2), markup=False)
            return
        by = f" by pid {report.pid}" if report.pid is not None else ""
        self.print(f"cluster {report.cluster}, Postgres {report.postgres_version}, {report.state}{by}")
        self._out.print(_shards(report.shards))
        self._out.print(_tenants(report.tenants))
        self.print(f"data directory: {report.data_dir}")

    def _phase_table(self) -> Table:
        grid = Table.grid(padding=(0, 1))
        for what, phase in sorted(self._phases.items()):
            mark = Text("✓", "green") if phase in DONE else Spinner("dots")
            grid.add_row(mark, Text(what, "bold"), Text(phase))
        return grid


class _Console(Console):
    """A console that falls silent when its reader goes: databases must not be left behind for want of a listener."""

    def on_broken_pipe(self) -> None:
        """Nobody reads any more."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())

    def _write_buffer(self) -> None:
        try:
            super()._write_buffer()
        except OSError:  # a terminal that was closed under `nohup` answers with an input/output error
            self.on_broken_pipe()


def _console(file: TextIO) -> Console:
    """A console that never cuts a line; a file or a pipe takes any width."""
    width = None if file.isatty() else PLAIN_COLUMNS
    return _Console(file=file, highlight=False, soft_wrap=width is not None, width=width)


def _shards(shards: Sequence[ShardReport]) -> Table:
    table = _table("shard", "state", "port", "pid", "size", "schema", "pgvector", "memories")
    for each in shards:
        table.add_row(
            each.shard,
            Text(each.state, STYLES.get(each.state, "")),
            _number(each.port),
            _number(each.pid),
            f"{each.size_bytes / MIB:.1f} MiB",
            _number(each.schema_version),
            {True: "yes", False: "no", None: "-"}[each.has_vector],
            _number(sum(each.memories.values()) if each.memories else None),
        )
    return table


def _tenants(tenants: Sequence[TenantReport]) -> Table:
    table = _table("tenant", "state", "url", "isolation", "memories")
    for each in tenants:
        state = Text(each.state, STYLES.get(each.state, ""))
        table.add_row(each.tenant, state, each.url or "-", each.isolation, _number(each.memories))
    return table


def _table(*columns: str) -> Table:
    """A table without lines. What does not fit goes on in the next line: half an address is of no use."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _number(number: int | None) -> str:
    return "-" if number is None else str(number)
