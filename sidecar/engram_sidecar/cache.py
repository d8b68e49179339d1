"""The first cache level: what this sidecar has read lately, bounded by bytes and by entries, evicted by SIEVE. Pure.

Promises, in whatever order the calls come:

1. A value comes back only if nothing was said against its key (`drop`, `begin`, `end`, `flush`) since its ticket was
   taken, and never at or after its time.
2. While a write of a key is under way, or held because nobody knows whether it happened, no fill of the key stands; nor
   does one whose ticket is from that time.
3. What is counted keeps both bounds after each call, and is the sum over the entries.
4. Apart from the entries the memory is constant: what a fill must know is kept for STRIPES parts of all keys, in three
   arrays. A ticket is a number, so one that never comes back costs nothing. Two keys of one stripe only refuse fills of
   each other, which is a miss later; a chance of one in STRIPES.

SIEVE: new entries join at one end of a queue, and a hit sets a bit and moves nothing. To make room a hand walks from
the oldest to the newest and round again: it clears the bits that it meets and takes the first entry without one.

Source: Zhang et al., "SIEVE is Simpler than LRU", NSDI 2024; why this one: docs/decisions/0016-the-first-cache-level.md
"""

import math
from array import array
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, Generic, NewType, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
Ticket = NewType("Ticket", int)

STRIPES: Final = 8_192  # 192 KiB in all; a power of two
# What an entry takes beside its value, on CPython 3.11: itself 88, its time 24, its size 28, a place in the dict 27 to
# 54, and a MemoryId as its key 184. tests/unit/test_cache.py measures it.
ENTRY_BYTES: Final = 365
LARGEST_PART: Final = 8  # a value above an eighth of the room would push out too many others


class _Entry(Generic[Key, Value]):
    """A member of the queue, which is a ring: the sentinel stands between the newest and the oldest."""

    __slots__ = ("is_visited", "key", "newer", "older", "size_bytes", "until_s", "value")

    key: Key
    value: Value
    size_bytes: int
    until_s: float
    is_visited: bool
    newer: "_Entry[Key, Value]"
    older: "_Entry[Key, Value]"


@dataclass(frozen=True, slots=True)
class CacheView:
    """What the cache holds and may hold, and what it has pushed out so far: for room, and because the time was up."""

    entries: int
    size_bytes: int
    max_entries: int
    capacity_bytes: int
    evicted_for_room: int
    evicted_by_time: int


class Cache(Generic[Key, Value]):
    """Values by key. Moments are monotonic seconds. With no room or no entries allowed it is off."""

    def __init__(self, capacity_bytes: int, max_entries: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._max_entries = max_entries
        self._entries: dict[Key, _Entry[Key, Value]] = {}
        self._size_bytes = 0
        self._evicted_for_room = self._evicted_by_time = 0
        self._ends: _Entry[Key, Value] = _Entry()
        self._hand = self._ends.newer = self._ends.older = self._ends
        # A ticket is the sum of the flushes and of what was said against the stripe: both only grow, so the sum stays
        # the same only as long as both do.
        self._flushes = 0
        self._said = array("Q", bytes(8 * STRIPES))
        self._writing = array("Q", bytes(8 * STRIPES))  # writes under way
        self._held_until_s = array("d", bytes(8 * STRIPES))  # 0: not held

    @property
    def view(self) -> CacheView:
        """The state, for metrics."""
        return CacheView(
            len(self._entries), self._size_bytes, self._max_entries, self._capacity_bytes, self._evicted_for_room,
            self._evicted_by_time,
        )  # fmt: skip

    def get(self, key: Key, now_s: float) -> Value | None:
        """The value, or None if there is none or its time is up. What was got, the hand spares once."""
        entry = self._entries.get(key)
        if entry is None:
            self._is_held(_stripe(key), now_s)  # a hold that has passed ends here, so that the fill of this miss stands
            return None
        if entry.until_s <= now_s:
            self._evict(entry, now_s)
            return None
        entry.is_visited = True
        return entry.value

    def ticket(self, key: Key) -> Ticket:
        """What a fill of the key needs; to be taken before the source is asked."""
        return Ticket(self._flushes + self._said[_stripe(key)])

    def fill(self, key: Key, value: Value, size_bytes: int, until_s: float, ticket: Ticket, now_s: float) -> bool:
        """Keeps the value until `until_s`, and says whether it did. `size_bytes` is the value's alone.

        Not kept: what something was said against since the ticket, what is written or held, and what is too large.
        """
        stripe = _stripe(key)
        counted_bytes = size_bytes + ENTRY_BYTES
        if self._is_held(stripe, now_s) or ticket != self._flushes + self._said[stripe] or until_s <= now_s:
            return False
        if self._max_entries < 1 or counted_bytes * LARGEST_PART > self._capacity_bytes:
            return False
        self._remove(key)
        self._make_room(self._capacity_bytes - counted_bytes, self._max_entries - 1, now_s)
        self._insert(key, value, counted_bytes, until_s)
        return True

    def drop(self, key: Key) -> bool:
        """The key was written, or may have been: its entry goes, if there was one, and no fill under way stands."""
        self._said[_stripe(key)] += 1
        return self._remove(key)

    def begin(self, key: Key) -> None:
        """A write of the key starts: its entry goes, and no fill stands until as many writes have ended as began."""
        self._writing[_stripe(key)] += 1
        self.drop(key)

    def end(self, key: Key, hold_until_s: float | None) -> None:
        """A write of the key is over. If nobody knows how it went, `hold_until_s` is when it can be no more."""
        stripe = _stripe(key)
        self._writing[stripe] -= 1
        if hold_until_s is not None:
            self._held_until_s[stripe] = max(self._held_until_s[stripe], hold_until_s)
        self.drop(key)

    def flush(self) -> None:
        """All entries go, and no fill under way stands. Writes under way and holds stay what they are."""
        self._flushes += 1
        for entry in self._entries.values():
            del entry.newer, entry.older  # a chain of them would wait for the garbage collector
        self._entries.clear()
        self._size_bytes = 0
        self._hand = self._ends.newer = self._ends.older = self._ends

    def resize(self, capacity_bytes: int, max_entries: int) -> None:
        """Other bounds; they hold at once."""
        self._capacity_bytes = capacity_bytes
        self._max_entries = max_entries
        self._make_room(capacity_bytes, max_entries, -math.inf)

    def _is_held(self, stripe: int, now_s: float) -> bool:
        """True while a write is under way or held. A hold that has passed ends, and so do the tickets from its time."""
        until_s = self._held_until_s[stripe]
        if until_s and until_s <= now_s:
            self._held_until_s[stripe] = 0
            self._said[stripe] += 1
            until_s = 0
        return bool(until_s or self._writing[stripe])

    def _make_room(self, left_bytes: int, left_entries: int, now_s: float) -> None:
        """Evicts until no more than that is left."""
        while self._entries and (self._size_bytes > left_bytes or len(self._entries) > left_entries):
            self._evict(self._next_victim(now_s), now_s)

    def _next_victim(self, now_s: float) -> _Entry[Key, Value]:
        """The first entry from the hand on that was not got since the hand's last visit, or whose time is up."""
        entry = self._hand
        while True:
            if entry is self._ends:
                entry = entry.newer  # the oldest
            if not entry.is_visited or entry.until_s <= now_s:
                self._hand = entry
                return entry
            entry.is_visited = False
            entry = entry.newer

    def _evict(self, entry: _Entry[Key, Value], now_s: float) -> None:
        if entry.until_s <= now_s:
            self._evicted_by_time += 1
        else:
            self._evicted_for_room += 1
        self._remove(entry.key)

    def _insert(self, key: Key, value: Value, size_bytes: int, until_s: float) -> None:
        entry: _Entry[Key, Value] = _Entry()
        entry.key, entry.value, entry.size_bytes, entry.until_s = key, value, size_bytes, until_s
        entry.is_visited = False
        entry.newer, entry.older = self._ends, self._ends.older
        entry.older.newer = entry.newer.older = entry
        self._entries[key] = entry
        self._size_bytes += size_bytes

    def _remove(self, key: Key) -> bool:
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        if entry is self._hand:
            self._hand = entry.newer
        entry.older.newer, entry.newer.older = entry.newer, entry.older
        self._size_bytes -= entry.size_bytes
        return True


def _stripe(key: Hashable) -> int:
    return hash(key) & (STRIPES - 1)
