"""The first cache level: a table of its promises, and a state machine against a naive model of what may come back."""

import gc
import inspect
import sys
import tracemalloc
import weakref
from collections.abc import Callable
from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from engram_contract.slots import MemoryId, uuid7
from engram_sidecar.cache import ENTRY_BYTES, LARGEST_PART, STRIPES, Cache, Ticket

ROOMY_BYTES = 1 << 30
MANY = 1_000_000
LATE_S = 1e9


def roomy(max_entries: int = MANY) -> Cache[int, str]:
    return Cache(ROOMY_BYTES, max_entries)


def filled(cache: Cache[int, str], *keys: int, until_s: float = LATE_S, size_bytes: int = 1) -> bool:
    """Fills each key with its own text, as one who read it just now. True if each stands."""
    stand = [cache.fill(key, str(key), size_bytes, until_s, cache.ticket(key), 0.0) for key in keys]
    return all(stand)


def kept(cache: Cache[int, str], *keys: int) -> list[int]:
    """Which of the keys have an entry. It counts as a hit."""
    return [key for key in keys if cache.get(key, 0.0) is not None]


def test_what_was_filled_comes_back_until_its_time_and_then_makes_room() -> None:
    cache = roomy()
    assert cache.get(1, 0.0) is None
    assert filled(cache, 1, until_s=10.0)
    assert cache.get(1, 9.9) == "1"
    assert cache.get(1, 10.0) is None
    assert (cache.view.entries, cache.view.size_bytes, cache.view.evicted_by_time) == (0, 0, 1)


def test_a_later_fill_replaces_the_value() -> None:
    cache = roomy()
    early, late = cache.ticket(1), cache.ticket(1)
    assert cache.fill(1, "a", 100, LATE_S, early, 0.0)
    assert cache.fill(1, "b", 10, LATE_S, late, 0.0)
    assert (cache.get(1, 0.0), cache.view.size_bytes) == ("b", 10 + ENTRY_BYTES)


def test_the_oldest_that_nobody_asked_for_goes_first_and_what_was_got_stays() -> None:
    cache = roomy(3)
    filled(cache, 1, 2, 3)
    cache.get(1, 0.0)
    filled(cache, 4)
    assert (kept(cache, 1, 2, 3, 4), cache.view.evicted_for_room) == ([1, 3, 4], 1)


def test_a_fill_makes_as_much_room_as_it_needs() -> None:
    cache: Cache[int, str] = Cache(10 * (ENTRY_BYTES + 100), MANY)
    filled(cache, *range(10), size_bytes=100)
    assert cache.view.entries == 10
    filled(cache, 10, size_bytes=101)
    assert (kept(cache, *range(11)), cache.view.evicted_for_room) == (list(range(2, 11)), 2)


def test_a_hit_spares_once_and_the_hand_goes_on_where_it_was() -> None:
    cache = roomy(4)
    filled(cache, 1, 2, 3, 4)
    kept(cache, 1, 3)
    filled(cache, 5)  # the hand clears 1, takes 2 and stands at 3
    filled(cache, 6)  # it clears 3, takes 4 and stands at 5
    filled(cache, 7)  # it takes 5, which nobody asked for, though 1 and 3 are older
    assert kept(cache, 1, 2, 3, 4, 5, 6, 7) == [1, 3, 6, 7]


def test_when_all_were_got_the_hand_goes_round_once_and_takes_the_oldest() -> None:
    cache = roomy(3)
    filled(cache, 1, 2, 3)
    kept(cache, 1, 2, 3)
    filled(cache, 4)
    assert kept(cache, 1, 2, 3, 4) == [2, 3, 4]


def test_what_is_past_its_time_goes_before_its_turn_is_over_although_it_was_got() -> None:
    cache = roomy(2)
    filled(cache, 1, until_s=5.0)
    filled(cache, 2)
    kept(cache, 1)
    assert cache.fill(3, "3", 1, LATE_S, cache.ticket(3), 6.0)
    assert (kept(cache, 2, 3), cache.view.evicted_by_time, cache.view.evicted_for_room) == ([2, 3], 1, 0)


def test_the_entry_under_the_hand_may_be_dropped() -> None:
    cache = roomy(3)
    filled(cache, 1, 2, 3)
    kept(cache, 1)
    filled(cache, 4)  # the hand stands at 3
    assert cache.drop(3)
    filled(cache, 5, 6)
    assert kept(cache, 1, 4, 5, 6) == [1, 5, 6]


def wrote(cache: Cache[int, str]) -> None:
    cache.begin(1)
    cache.end(1, None)


@pytest.mark.parametrize("said", [lambda cache: cache.drop(1), wrote, Cache.flush, lambda cache: cache.begin(1)])
def test_what_is_said_against_a_key_takes_its_entry_and_refuses_the_fills_under_way(
    said: Callable[[Cache[int, str]], object],
) -> None:
    cache = roomy()
    filled(cache, 1)
    ticket = cache.ticket(1)
    said(cache)
    assert cache.get(1, 0.0) is None
    assert not cache.fill(1, "old", 1, LATE_S, ticket, 0.0)
    assert cache.get(1, 0.0) is None


def test_a_drop_says_whether_there_was_an_entry_and_leaves_other_keys_alone() -> None:
    cache = roomy()
    filled(cache, 2)
    ticket = cache.ticket(3)
    assert [cache.drop(2), cache.drop(2)] == [True, False]
    assert cache.fill(3, "3", 1, LATE_S, ticket, 0.0)


def test_no_fill_stands_until_all_writes_of_the_key_have_ended() -> None:
    cache = roomy()
    cache.begin(1)
    cache.begin(1)
    cache.end(1, None)
    assert not filled(cache, 1)
    under_way = cache.ticket(1)
    cache.end(1, None)
    assert not cache.fill(1, "may be of before", 1, LATE_S, under_way, 0.0)
    assert filled(cache, 1)


def test_after_an_unknown_outcome_no_fill_stands_that_was_asked_before_the_hold_has_passed() -> None:
    cache = roomy()
    cache.begin(1)
    cache.end(1, 30.0)
    ticket = cache.ticket(1)
    assert not cache.fill(1, "at once", 1, LATE_S, ticket, 29.0)
    assert not cache.fill(1, "asked within the hold", 1, LATE_S, ticket, 31.0)
    assert cache.get(1, 31.0) is None
    assert cache.fill(1, "asked after it", 1, LATE_S, cache.ticket(1), 31.0)


def test_a_miss_after_the_hold_ends_it_so_that_its_own_fill_stands() -> None:
    cache = roomy()
    cache.begin(1)
    cache.end(1, 30.0)
    cache.begin(1)
    cache.end(1, 20.0)  # does not shorten it
    cache.begin(1)
    cache.end(1, None)  # nor does a write that went well
    assert cache.get(1, 25.0) is None
    assert not cache.fill(1, "within", 1, LATE_S, cache.ticket(1), 25.0)
    assert cache.get(1, 30.0) is None
    assert cache.fill(1, "after", 1, LATE_S, cache.ticket(1), 30.0)


def test_a_flush_forgets_neither_holds_nor_writes_under_way() -> None:
    cache = roomy()
    cache.begin(1)
    cache.begin(2)
    cache.end(2, 30.0)
    cache.flush()
    assert [filled(cache, 1), filled(cache, 2), filled(cache, 3)] == [False, False, True]


CAPACITY_BYTES = 80_000


@pytest.mark.parametrize(
    ("capacity_bytes", "max_entries", "size_bytes", "until_s", "stands"),
    [
        (0, 10, 1, LATE_S, False),
        (CAPACITY_BYTES, 0, 1, LATE_S, False),
        (CAPACITY_BYTES, 1, CAPACITY_BYTES // LARGEST_PART - ENTRY_BYTES, LATE_S, True),
        (CAPACITY_BYTES, 1, CAPACITY_BYTES // LARGEST_PART - ENTRY_BYTES + 1, LATE_S, False),
        (CAPACITY_BYTES, 1, 1, 0.0, False),
    ],
)
def test_what_has_no_room_or_no_time_is_not_kept(
    capacity_bytes: int, max_entries: int, size_bytes: int, until_s: float, *, stands: bool
) -> None:
    cache: Cache[int, str] = Cache(capacity_bytes, max_entries)
    assert filled(cache, 1, until_s=until_s, size_bytes=size_bytes) is stands
    assert cache.view.entries == int(stands)


def test_other_bounds_hold_at_once_and_none_turns_it_off() -> None:
    cache = roomy()
    filled(cache, *range(100))
    cache.resize(ROOMY_BYTES, 50)
    assert cache.view.entries == 50
    cache.resize(20 * (ENTRY_BYTES + 1), 50)
    assert (cache.view.entries, cache.view.evicted_for_room) == (20, 80)
    cache.resize(0, 50)
    assert (cache.view.entries, cache.view.size_bytes, filled(cache, 1)) == (0, 0, False)


def fill_one(cache: Cache[MemoryId, bytes], number: int, size_bytes: int) -> None:
    key, value = MemoryId(300 + number, uuid7(1 << 40, number.to_bytes(10, "big"))), bytes(size_bytes)
    assert cache.fill(key, value, sys.getsizeof(value), number + 0.5, cache.ticket(key), 0.0)


@pytest.mark.parametrize("size_bytes", [100, 1_000])
def test_what_is_counted_is_within_a_tenth_of_what_is_taken(size_bytes: int) -> None:
    cache: Cache[MemoryId, bytes] = Cache(ROOMY_BYTES, MANY)
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(10_000):
            fill_one(cache, number, size_bytes)
        taken_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert cache.view.entries == 10_000
    assert cache.view.size_bytes == pytest.approx(taken_bytes, rel=0.1)


def test_drops_holds_and_tickets_that_never_come_back_take_no_memory() -> None:
    cache = roomy()
    tracemalloc.start()
    try:
        for key in range(10 * STRIPES):
            cache.ticket(key)
            cache.drop(key)
            cache.begin(key)
            cache.end(key, 1e6)
        # What the cache's own lines allocated: other threads allocate too.
        by_cache = tracemalloc.Filter(inclusive=True, filename_pattern=inspect.getfile(Cache))
        taken = tracemalloc.take_snapshot().filter_traces([by_cache])
    finally:
        tracemalloc.stop()
    assert sum(trace.size for trace in taken.traces) < STRIPES  # a bit of each would be ten times that


class Named:
    """A value whose end can be seen."""


@pytest.mark.parametrize("goes", [Cache.flush, lambda cache: [cache.drop(key) for key in range(5)]])
def test_what_goes_is_freed_at_once_and_not_by_the_garbage_collector(
    goes: Callable[[Cache[int, Named]], object],
) -> None:
    cache: Cache[int, Named] = Cache(ROOMY_BYTES, MANY)
    values = [Named() for _ in range(5)]
    seen = [weakref.ref(value) for value in values]
    for key in range(5):
        cache.fill(key, values[key], 1, LATE_S, cache.ticket(key), 0.0)
    values.clear()
    gc.disable()
    try:
        goes(cache)
        assert [each() for each in seen] == [None] * 5
    finally:
        gc.enable()


KEYS = st.integers(0, 15)
AFTER_S = st.sampled_from((1.0, 5.0, 30.0))
BIG_BYTES = 2_000


class Model(RuleBasedStateMachine):
    """The model keeps, for each key, the last fill that stood, what was said since when, and which tickets are out."""

    @initialize(capacity_bytes=st.sampled_from((0, 5_000, 9_000, 20_000)), max_entries=st.sampled_from((0, 1, 6, 16)))
    def start(self, capacity_bytes: int, max_entries: int) -> None:
        self.cache: Cache[int, int] = Cache(capacity_bytes, max_entries)
        self.bounds = (capacity_bytes, max_entries)
        self.now_s = 1.0
        self.steps = count(1)
        self.versions = count(1)
        self.stood: dict[int, tuple[int, int, float]] = {}  # key -> value, size, its time
        self.said = dict.fromkeys(range(16), 0)  # key -> the step when something was said against it
        self.writing = dict.fromkeys(range(16), 0)
        self.held_until_s = dict.fromkeys(range(16), 0.0)
        self.tickets: list[tuple[int, Ticket, int, float]] = []  # key, ticket, the step and the moment of it

    def against(self, key: int) -> None:
        self.said[key] = next(self.steps)
        self.stood.pop(key, None)

    @rule(key=KEYS)
    def ask(self, key: int) -> None:
        self.tickets.append((key, self.cache.ticket(key), next(self.steps), self.now_s))

    @precondition(lambda self: self.tickets)
    @rule(pick=st.integers(0, 100), size_bytes=st.sampled_from((0, 300, 600, BIG_BYTES)), lives_s=AFTER_S)
    def fill(self, pick: int, size_bytes: int, lives_s: float) -> None:
        key, ticket, step, taken_s = self.tickets.pop(pick % len(self.tickets))
        value, until_s = next(self.versions), self.now_s + lives_s
        stands = self.cache.fill(key, value, size_bytes, until_s, ticket, self.now_s)
        must_not = step < self.said[key] or self.writing[key] or taken_s < self.held_until_s[key]
        capacity_bytes, max_entries = self.bounds
        is_too_large = (size_bytes + ENTRY_BYTES) * LARGEST_PART > capacity_bytes or not max_entries
        assert not (stands and (must_not or is_too_large))
        assert stands or must_not or is_too_large or self.held_until_s[key]  # a hold may take one fill more with it
        if stands:
            self.stood[key] = (value, size_bytes, until_s)

    @rule(key=KEYS)
    def get(self, key: int) -> None:
        value = self.cache.get(key, self.now_s)
        known = self.stood.get(key)
        assert value is None or (known is not None and value == known[0] and self.now_s < known[2])

    @rule(key=KEYS)
    def drop(self, key: int) -> None:
        assert not self.cache.drop(key) or key in self.stood
        self.against(key)

    @rule(key=KEYS)
    def write(self, key: int) -> None:
        self.cache.begin(key)
        self.writing[key] += 1
        self.against(key)

    @precondition(lambda self: any(self.writing.values()))
    @rule(pick=st.integers(0, 15), hold_s=st.one_of(st.none(), AFTER_S))
    def write_ends(self, pick: int, hold_s: float | None) -> None:
        writing = [key for key, under_way in self.writing.items() if under_way]
        key = writing[pick % len(writing)]
        self.cache.end(key, None if hold_s is None else self.now_s + hold_s)
        self.writing[key] -= 1
        self.held_until_s[key] = max(self.held_until_s[key], 0.0 if hold_s is None else self.now_s + hold_s)
        self.against(key)

    @rule()
    def flush(self) -> None:
        self.cache.flush()
        for key in range(16):
            self.against(key)

    @rule(capacity_bytes=st.sampled_from((0, 5_000, 9_000, 20_000)), max_entries=st.sampled_from((0, 1, 6, 16)))
    def resize(self, capacity_bytes: int, max_entries: int) -> None:
        self.cache.resize(capacity_bytes, max_entries)
        self.bounds = (capacity_bytes, max_entries)

    @rule(after_s=AFTER_S)
    def time_passes(self, after_s: float) -> None:
        self.now_s += after_s

    @invariant()
    def both_bounds_hold_and_what_is_counted_is_the_sum(self) -> None:
        view = self.cache.view
        entries = self.cache._entries
        assert view.size_bytes == sum(self.stood[key][1] + ENTRY_BYTES for key in entries)
        assert view.entries == len(entries) <= self.bounds[1]
        assert view.size_bytes <= self.bounds[0]

    @invariant()
    def the_queue_holds_each_entry_once(self) -> None:
        keys, entry = [], self.cache._ends.newer
        while entry is not self.cache._ends:
            assert entry.newer.older is entry
            keys.append(entry.key)
            entry = entry.newer
        assert sorted(keys) == sorted(self.cache._entries)
        assert self.cache._hand in {self.cache._ends, *self.cache._entries.values()}


def test_in_whatever_order_the_calls_come_nothing_comes_back_that_may_be_stale() -> None:
    run_state_machine_as_test(Model, settings=settings(max_examples=200, stateful_step_count=50, deadline=None))
