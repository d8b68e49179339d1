"""What the demo did, as a table with rates, and the progress that is shown while it does it."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table


@dataclass(slots=True)
class Tally:
    """How much of one step is done; `show` is told each time."""

    show: Callable[[int], object]
    done: int = 0

    def add(self, count: int = 1) -> None:
        """`count` more are done."""
        self.done += count
        self.show(self.done)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the final table. `seconds` is wall time."""

    step: str
    count: int
    unit: str
    seconds: float

    @property
    def rate(self) -> str:
        """How many in a second, for a person."""
        per_s = self.count / max(self.seconds, 1e-9)
        return f"{per_s:,.0f}" if per_s >= 10 else f"{per_s:.1f}"  # noqa: PLR2004  two digits are enough


@dataclass(frozen=True, slots=True)
class Figures:
    """The lines so far, and the console on which all is shown."""

    console: Console
    rows: list[Row] = field(default_factory=list)

    @contextmanager
    def step(self, name: str, unit: str, total: int) -> Iterator[Tally]:
        """Shows how far a step is, and keeps its figures when it is done."""
        begun_s = time.monotonic()
        bar = (TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*bar, console=self.console) as progress:
            task = progress.add_task(name, total=total)
            tally = Tally(lambda done: progress.update(task, completed=done))
            yield tally
        self.rows.append(Row(name, tally.done, unit, time.monotonic() - begun_s))

    def say(self, text: str) -> None:
        """One line of the story."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table; whatever is a number stands at the right."""
        table = Table(*columns, title=title, title_justify="left", title_style="bold")
        if rows:
            for column, value in zip(table.columns, rows[0], strict=True):
                column.justify = "right" if isinstance(value, int | float) else "left"
        for row in rows:
            table.add_row(*(f"{each:,}" if isinstance(each, int) else str(each) for each in row))
        self.console.print(table)

    def summary(self) -> None:
        """All steps with their rates."""
        rows = [(r.step, r.count, r.unit, f"{r.seconds:.2f}", r.rate) for r in self.rows]
        self.table("What was done", ("step", "count", "of", "seconds", "per second"), rows)
