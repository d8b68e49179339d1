"""Rows of one shard to hits: opened, and where the store could not judge the filter, judged here.

A sealed row is judged after it was opened, so of what a shard sends some rows are not what was asked for, and it is
asked again until there are enough. Of a tenant that encrypts every row is judged here: the store is not told the
conditions on the value.

Promises
1. Nothing is left out silently. Where the reading ends early, at MAX_ROWS rows, at MAX_BYTES of hits, or at half of the
request's time, the last row that was read stands among the hits, `is_cut`: the answer goes on behind it.
2. A row that cannot be opened is a hit that says why, where it would have stood.
3. Without conditions on the value a shard is asked once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final

from engram_sidecar import judging
from engram_sidecar.errors import KeyMissing, SealBroken
from engram_sidecar.records import Hit, Memory, Selection, to_memory
from engram_sidecar.sealing import Sealer
from engram_sidecar.store import Place, Row

MAX_ROWS: Final = 20_000  # of one shard for one request: about 10 us each to fetch, open and judge
MAX_BYTES: Final = 8 << 20
PAGE_ROWS: Final = 500
INLINE_VALUE_CHARS: Final = 65_536  # a longer value is parsed beside the loop, as in intake.py
GROWTH: Final = 8  # a search that must look further asks for so many times more, as it starts from the best again


class Reading:
    """The reading of one shard for one request, which began now and may take `timeout_s`."""

    def __init__(
        self,
        place: Place,
        sealer: Sealer,
        selection: Selection,
        monotonic_s: Callable[[], float],
        timeout_s: float,
        max_rows: int = MAX_ROWS,
    ) -> None:
        self._max_rows = max_rows
        self._shard = place.shard
        self._sealer = sealer
        self._conditions = selection.filter.conditions
        self._monotonic_s = monotonic_s
        self._until_s = monotonic_s() + timeout_s / 2

    async def pages(self, wanted: int, ask: Callable[[int, Hit | None], Awaitable[Sequence[Row]]]) -> list[Hit]:
        """The first `wanted` hits; `ask` gives so many rows, those behind a hit."""
        page = await self.hits(await ask(wanted, None))
        if not self._conditions:
            return page
        found, read, size = _met(page), len(page), wanted
        while len(found) < wanted and _goes_on(page, size):
            if read >= self._max_rows or sum(map(_size_bytes, found)) >= MAX_BYTES or self._is_late():
                return _broken_off(found, page[-1])
            size = max(wanted, PAGE_ROWS)
            page = await self.hits(await ask(size, page[-1]))
            found, read = found + _met(page), read + len(page)
        return found

    async def best(self, wanted: int, ask: Callable[[int], Awaitable[Sequence[Row]]]) -> list[Hit]:
        """The best `wanted` hits; `ask` gives so many rows, the best ones."""
        size = wanted
        rows = await self.hits(await ask(size))
        if not self._conditions:
            return rows
        while len(_met(rows)) < wanted and _goes_on(rows, size):
            if size >= self._max_rows or rows[-1].is_cut or self._is_late():
                return _broken_off(_met(rows), rows[-1])
            size = min(size * GROWTH, self._max_rows)
            rows = await self.hits(await ask(size))
        return _met(rows)

    async def hits(self, rows: Sequence[Row]) -> list[Hit]:
        """A hit for each row."""
        return [await self._hit(to_memory(row), row) for row in rows]

    async def _hit(self, memory: Memory, row: Row) -> Hit:
        score = None if row["score"] is None else min(max(row["score"], 0.0), 1.0)
        try:
            opened = await self._sealer.open(memory)
        except (KeyMissing, SealBroken) as refusal:
            return Hit(memory, self._shard, score, row["is_cut"], refusal=refusal)
        is_judged_here = self._sealer.encrypts or memory.sealed is not None
        is_passed_over = is_judged_here and not await self._is_met(opened)
        return Hit(opened, self._shard, score, row["is_cut"], is_passed_over)

    async def _is_met(self, memory: Memory) -> bool:
        if not self._conditions or len(memory.value) <= INLINE_VALUE_CHARS:
            return self._judge(memory.value)
        return await asyncio.to_thread(self._judge, memory.value)

    def _judge(self, value: str) -> bool:
        return not self._conditions or judging.holds(self._conditions, judging.parse_value(value))

    def _is_late(self) -> bool:
        return self._monotonic_s() >= self._until_s


def _met(hits: Sequence[Hit]) -> list[Hit]:
    """What was asked for. Where a page was cut says nothing, as the reading goes on or marks its own end."""
    return [replace(hit, is_cut=False) if hit.is_cut else hit for hit in hits if not hit.is_passed_over]


def _goes_on(page: Sequence[Hit], size: int) -> bool:
    """True if the shard may have more than this page, for which `size` rows were asked."""
    return bool(page) and (len(page) >= size or page[-1].is_cut)


def _broken_off(found: list[Hit], last: Hit) -> list[Hit]:
    """The hits of a reading that ended early, behind this row."""
    before = found if last.is_passed_over else found[:-1]
    return [*before, replace(last, is_cut=True)]


def _size_bytes(hit: Hit) -> int:
    return len(hit.memory.content) + len(hit.memory.value)
