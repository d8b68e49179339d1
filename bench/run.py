"""Runs the benchmarks: `python bench/run.py [--only NAME]`. Each `bench_NAME.py` beside this file has `measure()`.

`measure()` yields rows (`rows.Row`). They are printed, and merged into results.json as soon as a benchmark is done.
Exits 1 if a row misses its bar, 2 for a name that is none.
"""

import argparse
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

from rows import Row, keep

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.json"
# A program finds what lies beside it; benchmarks also take the demo's text and its way to start local mode.
sys.path.insert(1, str(HERE.parent))


def names() -> list[str]:
    """The benchmarks that there are."""
    return sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


def measure(name: str) -> Iterator[Row]:
    """The rows of one benchmark."""
    yield from importlib.import_module(f"bench_{name}").measure()


def show(row: Row) -> None:
    """One line."""
    verdict = "" if not row.bar else ("holds" if row.holds else "MISSED")
    print(f"{row.name:<36} {row.value:>12,.6g} {row.unit:<10} {row.bar:<14} {verdict:<7} {row.peer}", flush=True)


def main(arguments: list[str]) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(
        prog="bench/run.py", description="Ratios against what is measured in the same run."
    )
    parser.add_argument("--only", metavar="NAME", help=f"one of: {', '.join(names())}")
    only = parser.parse_args(arguments).only
    if only is not None and only not in names():
        print(f"no benchmark is named {only!r}; there are: {', '.join(names())}", file=sys.stderr)
        return 2
    missed = 0
    for name in [only] if only else names():
        rows = []
        for row in measure(name):
            show(row)
            rows.append(row)
        keep(RESULTS, rows)
        missed += sum(not row.holds for row in rows)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
