"""A figure with its bar, and the file that keeps the last one of each.

A lone time says more about the machine than about the code, so a row names its peer: what was measured in the same run.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

DIGITS = 4  # significant; the rest is noise


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `bar` says in words what it must keep ("at most 3"), or is empty; `holds` whether it did."""

    name: str
    value: float
    unit: str
    bar: str
    holds: bool
    peer: str

    @classmethod
    def at_most(cls, name: str, value: float, unit: str, limit: float, peer: str) -> "Row":
        """A figure that must not pass `limit`."""
        return cls(name, rounded(value), unit, f"at most {limit:g}", value <= limit, peer)

    @classmethod
    def at_least(cls, name: str, value: float, unit: str, limit: float, peer: str) -> "Row":
        """A figure that must reach `limit`."""
        return cls(name, rounded(value), unit, f"at least {limit:g}", value >= limit, peer)

    @classmethod
    def shown(cls, name: str, value: float, unit: str, peer: str) -> "Row":
        """A figure without a bar of its own: what the ratios beside it are made of."""
        return cls(name, rounded(value), unit, "", True, peer)  # noqa: FBT003  it holds


def rounded(value: float) -> float:
    """The value to four significant digits."""
    return float(f"{value:.{DIGITS}g}")


def merged(kept: list[dict[str, Any]], new: list[Row]) -> list[dict[str, Any]]:
    """The rows kept so far, each replaced by the new one of its name; sorted by name."""
    by_name = {row["name"]: row for row in kept} | {row.name: asdict(row) for row in new}
    return [by_name[name] for name in sorted(by_name)]


def keep(path: Path, new: list[Row]) -> None:
    """Merges the rows into the file; it is replaced whole, so a run that is killed leaves the old one."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    text = json.dumps(merged(kept, new), indent=1, ensure_ascii=False) + "\n"
    draft = path.with_suffix(".draft")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
