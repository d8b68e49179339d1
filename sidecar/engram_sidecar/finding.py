"""How memories are found: every shard that may hold some is asked, and one answer is made of theirs.

A search goes twice over the shards: first for how often each lexeme stands there, so that the weights are those of
all shards together, then for the best memories by these weights. So scores compare, and the merge is exact. What is
common need not be counted each time (commons.py), and what is asked for alone not at all.

Promises
1. A shard that did not answer is named; if none did, that is an error and never an empty answer.
2. An old map is refused by the shard (SlotMoved): memories that moved to a shard it lacks are never silently missing.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from engram_contract.shardmap import Shard, ShardMap, ShardState
from engram_sidecar import ranking, routing
from engram_sidecar.commons import Commons
from engram_sidecar.errors import ShardUnavailable, SlotMoved
from engram_sidecar.filters import Filter
from engram_sidecar.reading import Reading
from engram_sidecar.records import Cursor, Found, Hit, Selection, ShardFailure
from engram_sidecar.sealing import Sealer, Vault
from engram_sidecar.store import Asks, Place, Row

SIZE_CACHE_S: Final = 30.0  # how many memories there are moves the order of hits little
ANSWER_BYTES: Final = 8 << 20  # of contents and values from one shard; the memory that fills it is the last
MIN_SHARD_LIMIT: Final = 5  # requirements 1.2: a shard is asked for at least so many
LEGS: Final = ("lexical",)

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Size:
    """How many memories a tenant has on a shard and how many terms they have on average, known until `until_s`."""

    until_s: float
    memories: int
    mean_terms: float


@dataclass(frozen=True, slots=True)
class Counted:
    """What one shard said of a query's lexemes; one alone counts as 1."""

    size: Size
    frequencies: dict[str, int]


class Finder:
    """Lists and searches the shards of a map. Keeps the sizes that it was told for a while."""

    def __init__(self, store: Asks, vault: Vault, monotonic_s: Callable[[], float], timeout_s: float) -> None:
        self._store = store
        self._vault = vault
        self._monotonic_s = monotonic_s
        self._timeout_s = timeout_s
        self._sizes: dict[str, Size] = {}
        self._commons = Commons()

    async def list_newest(self, selection: Selection, limit: int, after: Cursor | None, shard_map: ShardMap) -> Found:
        """The newest memories of a selection, below the cursor. Raises SlotMoved, ShardUnavailable."""
        bounds = (None, None) if after is None else (after.created, after.id)

        sealer, wanted = self._vault.sealer, max(limit + 1, MIN_SHARD_LIMIT)

        async def ask(place: Place) -> list[Hit]:
            async def page(rows: int, last: Hit | None) -> Sequence[Row]:
                begin = bounds if last is None else (last.memory.created, last.memory.id.uuid)
                return await self._store.read(
                    place, "list_memories", *_selected(selection, sealer), *begin, rows, ANSWER_BYTES, shard_map.epoch,
                    timeout_s=self._timeout_s,
                )  # fmt: skip

            return await Reading(place, sealer, selection, self._monotonic_s, self._timeout_s).pages(wanted, page)

        hits, failures = await scatter(routing.shards_to_search(shard_map, selection), ask)
        page = ranking.merge_newest(hits, limit)
        is_more = len(hits) > len(page) or any(hit.is_cut for hit in page)
        last = page[-1].memory if is_more else None
        return _found(page, failures, None if last is None else Cursor(last.created, str(last.id.uuid)))

    async def search(self, lexemes: Sequence[str], selection: Selection, limit: int, shard_map: ShardMap) -> Found:
        """The best memories of a selection for these lexemes. Raises SlotMoved, ShardUnavailable."""
        shards = routing.shards_to_search(shard_map, selection)
        counted, lost = await scatter(shards, lambda place: self._count(place, lexemes, shard_map.epoch))
        frequencies: Counter[str] = Counter(dict.fromkeys(lexemes, 0))
        for one in counted:
            frequencies.update(one.frequencies)
        memories = sum(one.size.memories for one in counted)
        mean_terms = sum(one.size.memories * one.size.mean_terms for one in counted) / max(memories, 1)
        ranked = ranking.rank(memories, frequencies)
        if not ranked.finders:
            return Found((), lost, legs=LEGS)

        sealer, wanted = self._vault.sealer, max(limit, MIN_SHARD_LIMIT)

        async def ask(place: Place) -> list[Hit]:
            async def best(rows: int) -> Sequence[Row]:
                return await self._store.read(
                    place,
                    "search_memories",
                    " | ".join(f"'{lexeme}'" for lexeme in ranked.finders),
                    [f"'{lexeme}'" for lexeme in ranked.weights],
                    list(ranked.weights.values()),
                    mean_terms,
                    ranking.MAX_CANDIDATES,
                    *_selected(selection, sealer),
                    rows,
                    ANSWER_BYTES,
                    shard_map.epoch,
                    timeout_s=self._timeout_s,
                )

            return await Reading(place, sealer, selection, self._monotonic_s, self._timeout_s).best(wanted, best)

        names = {failure.shard for failure in lost}
        hits, failures = await scatter([shard for shard in shards if shard.id not in names], ask)
        found = ranking.merge_best(hits, limit)
        is_truncated = any(hit.is_cut for hit in found) and sum(not hit.is_passed_over for hit in found) < limit
        return _found(found, (*lost, *failures), legs=LEGS, is_truncated=is_truncated)

    async def _count(self, place: Place, lexemes: Sequence[str], epoch: int) -> list[Counted]:
        size = self._sizes.get(place.shard)
        if size is None or size.until_s < self._monotonic_s():
            [row] = await self._store.read(place, "tenant_size", timeout_s=self._timeout_s)
            size = Size(self._monotonic_s() + SIZE_CACHE_S, row["memories"], row["mean_terms"])
            self._sizes[place.shard] = size
        if len(lexemes) == 1:  # it has all the weight, however common it is
            return [Counted(size, dict.fromkeys(lexemes, 1))]
        frequencies = self._commons.known(place.shard, lexemes, self._monotonic_s())
        if unknown := [each for each in lexemes if each not in frequencies]:
            rows = await self._store.read(
                place, "count_lexemes", unknown, ranking.FREQUENCY_CAP, epoch, timeout_s=self._timeout_s
            )
            counted = {row["lexeme"]: row["memories"] for row in rows}
            self._commons.tell(place.shard, counted, self._monotonic_s())
            frequencies |= counted
        return [Counted(size, frequencies)]


async def scatter(
    shards: Sequence[Shard], ask: Callable[[Place], Awaitable[list[Answer]]]
) -> tuple[list[Answer], tuple[ShardFailure, ...]]:
    """What the shards answered, and those that did not. Raises ShardUnavailable if none did, SlotMoved."""

    async def ask_one(shard: Shard) -> list[Answer] | ShardUnavailable | SlotMoved:
        if shard.state is ShardState.MAINTENANCE:
            return ShardUnavailable(shard.id, routing.MAINTENANCE, 30)
        try:
            return await ask(routing.primary(shard))
        except (ShardUnavailable, SlotMoved) as error:
            return error

    answers = await asyncio.gather(*(ask_one(shard) for shard in shards))
    found: list[Answer] = []
    failures: list[ShardUnavailable] = []
    for answer in answers:
        if isinstance(answer, SlotMoved):
            raise answer
        if isinstance(answer, ShardUnavailable):
            failures.append(answer)
        else:
            found.extend(answer)
    if failures and len(failures) == len(shards):
        raise failures[0]
    return found, tuple(ShardFailure(failure.shard, failure.reason) for failure in failures)


def _found(
    hits: Sequence[Hit],
    failures: tuple[ShardFailure, ...],
    after: Cursor | None = None,
    *,
    legs: tuple[str, ...] = (),
    is_truncated: bool = False,
) -> Found:
    """The answer of these hits; those that cannot be opened are named. Raises the refusal if none can."""
    refused = tuple(hit for hit in hits if hit.refusal is not None)
    shown = tuple(hit for hit in hits if hit.refusal is None and not hit.is_passed_over)
    if not shown and refused and refused[0].refusal is not None:
        raise refused[0].refusal
    return Found(shown, failures, after, legs, is_truncated, refused)


def _judged_there(asked: Filter, sealer: Sealer) -> tuple[str | None, str | None, str]:
    """What the store judges: of a tenant that encrypts nothing of the value, as its logs would have words of it."""
    if sealer.encrypts:
        return asked.fields_path, asked.fields_path, asked.fields_variables
    return asked.path, asked.fields_path, asked.variables


def _selected(selection: Selection, sealer: Sealer) -> tuple[object, ...]:
    """The arguments of a selection.

    The range of a namespace prefix ends before the successor of its last part: in the collation "C" nothing stands
    between a text and the same with U+0001 behind it.
    """
    namespace = list(selection.namespace) or None
    end = None if namespace is None else [*namespace[:-1], namespace[-1] + "\x01"]
    return (
        selection.user,
        selection.agent,
        selection.session,
        selection.type,
        namespace,
        end,
        *_judged_there(selection.filter, sealer),
        sealer.tokens.pruning(selection.filter.conditions),
    )
