"""What a person sees of a cluster: trees, tables, bars. The second file that knows rich: `screen.py` shows a machine.

Results go to standard output, all else to standard error. Without a terminal: whole lines, no colours, no movements.
With one, what does not fit goes on in the next line.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.prompt import Confirm
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from engram_cli.clusterlines import Line, Sign

PLAIN_COLUMNS: Final = 4096  # a pipe takes a line of any length
MARKS: Final = {
    Sign.GOOD: ("✓", "+", "green"),
    Sign.BAD: ("✗", "x", "bold red"),
    Sign.WARN: ("!", "!", "yellow"),
    Sign.BUSY: ("~", "~", "cyan"),
    Sign.UNKNOWN: ("?", "?", "magenta"),
    Sign.NONE: ("", "", ""),
}
Row = tuple[Sign, Sequence[str]]


class ClusterScreen:
    """Standard output and error of the plugin."""

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self._out = _console(out or sys.stdout)
        self._err = _console(err or sys.stderr)

    @property
    def is_terminal(self) -> bool:
        """Whether somebody looks at the results as they come."""
        return self._out.is_terminal

    def say(self, line: str) -> None:
        """One line beside the result."""
        self._err.print(escape(line))

    def note(self, line: str) -> None:
        """One line beside the result that the user should read."""
        self._err.print(f"[yellow]note:[/] {escape(line)}")

    def fail(self, line: str) -> None:
        """The line that ends the command."""
        self._err.print(f"[bold red]error:[/] {escape(line)}")

    def print(self, line: str) -> None:
        """One line of the result."""
        self._out.print(escape(line))

    def json(self, value: object, *, indent: int | None = 2) -> None:
        """The result as JSON."""
        self._out.print(json.dumps(value, indent=indent), markup=False, soft_wrap=True)

    def tree(self, line: Line) -> None:
        """One cluster."""
        self._out.print(self._tree(line))

    def tables(self, *tables: tuple[Sequence[str], Sequence[Row]]) -> None:
        """Tables of columns and rows; a row's sign stands before its first cell."""
        for number, (columns, rows) in enumerate(tables):
            if number:
                self.print("")
            self._out.print(self._table(columns, rows))

    @contextmanager
    def watching(self) -> Iterator[Callable[[Sequence[Line]], None]]:
        """Trees that replace each other on a terminal, and follow each other elsewhere."""
        if not self.is_terminal:
            yield lambda lines: self._out.print(self._trees(lines), Text())
            return
        with Live(console=self._out, auto_refresh=False, vertical_overflow="crop") as live:
            yield lambda lines: live.update(self._trees(lines), refresh=True)

    @contextmanager
    def spinning(self, what: str) -> Iterator[None]:
        """Within this block one sees that something is awaited."""
        if not self._err.is_terminal:
            self.say(f"{what} ...")
            yield
            return
        with self._err.status(escape(what)):
            yield

    @contextmanager
    def steps(self, total: int) -> Iterator[Callable[[int, str], None]]:
        """A bar of `total` steps; the function takes how many are done and what goes on now."""
        if not self._err.is_terminal:
            yield self._say_once()
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn())
        with Progress(*columns, console=self._err, transient=True) as bar:
            task = bar.add_task("", total=total)
            yield lambda done, what: bar.update(task, completed=done, description=escape(what))

    def confirms(self, question: str) -> bool:
        """Whether the user says yes."""
        return Confirm.ask(question, console=self._err, default=False)

    def _say_once(self) -> Callable[[int, str], None]:
        said: list[str] = []

        def show(_done: int, what: str) -> None:
            if what not in said:
                said.append(what)
                self.say(what)

        return show

    def _trees(self, lines: Sequence[Line]) -> RenderableType:
        return Group(*(self._tree(each) for each in lines)) if lines else Text("no MemoryCluster")

    def _tree(self, line: Line) -> Tree:
        tree = Tree(self._text(line), guide_style="dim")
        for each in line.below:
            self._grow(tree, each)
        return tree

    def _grow(self, tree: Tree, line: Line) -> None:
        branch = tree.add(self._text(line))
        for each in line.below:
            self._grow(branch, each)

    def _text(self, line: Line) -> Text:
        mark, style = self._mark(line.sign)
        head = Text(line.head, "bold")
        return Text.assemble((f"{mark} " if mark else "", style), head, "  " if line.rest else "", line.rest)

    def _table(self, columns: Sequence[str], rows: Sequence[Row]) -> Table:
        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("")
        for column in columns:
            table.add_column(column, overflow="fold")
        for sign, cells in rows:
            table.add_row(Text(*self._mark(sign)), *(Text(cell) for cell in cells))
        return table

    def _mark(self, sign: Sign) -> tuple[str, str]:
        mark, plain, style = MARKS[sign]
        return (mark if self._out.encoding.startswith("utf") else plain), style


def _console(file: TextIO) -> Console:
    width = None if file.isatty() else PLAIN_COLUMNS
    return Console(file=file, highlight=False, soft_wrap=width is not None, width=width)
