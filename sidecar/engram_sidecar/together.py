"""Puts of several requests as one statement, and each one's answer out of it. Pure.

A put that cannot be with the others (its memory stands twice, the shard refused the whole for one of them) goes alone,
so that nobody's error is another one's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast
from uuid import UUID

from engram_sidecar.consistency import Session
from engram_sidecar.store import Row
from engram_sidecar.timing import Recorder
from engram_sidecar.writes import run_arguments

PUT: Final = "put_memory"
PUTS: Final = "put_memories"


@dataclass(slots=True)
class Asked:
    """One request's question: its arguments, until when it waits, on the loop's clock, and whose it is."""

    arguments: tuple[object, ...]
    by_s: float
    session: Session
    recorder: Recorder | None
    is_awaited: bool = False  # it waits for a primary
    is_out: bool = False  # a put that the node was sent


def puts_together(asked: Sequence[Asked]) -> tuple[list[Asked], list[Asked]]:
    """Those that can go in one put_memories, the first of each memory, and the others."""
    seen: set[UUID] = set()
    first: list[Asked] = []
    later: list[Asked] = []
    for each in asked:
        uuid = _uuid(each)
        (later if uuid in seen else first).append(each)
        seen.add(uuid)
    return first, later


def puts_arguments(asked: Sequence[Asked]) -> tuple[list[object], ...]:
    """The arguments of one put_memories for all of them."""
    return run_arguments([each.arguments for each in asked])


def puts_rows(asked: Sequence[Asked], rows: Sequence[Row]) -> list[list[Row]]:
    """What put_memory would have answered each: a row names its memory, and one whose condition failed has none."""
    by_id = {row["id"]: row for row in rows}
    return [[by_id[_uuid(each)]] if _uuid(each) in by_id else [] for each in asked]


def _uuid(asked: Asked) -> UUID:
    return cast("UUID", asked.arguments[1])
