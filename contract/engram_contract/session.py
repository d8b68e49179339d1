"""A session's token: how far a shard must have come before it shows its caller all that it wrote and saw.

    token  =  version, epoch, home, since, then of each shard: mark of its id, timeline, LSN        as base64url

`home` is the sidecar that gave it. What that one keeps is new enough for the session if it was read after `since`, the
moment on its own clock when the session came from elsewhere; elsewhere only what is read after the token came.

It is opaque to whoever carries it, and not trusted by who reads it: a made-up one costs its own caller freshness or
time, and nobody else anything.

Promises
1. A token holds at most MAX_SHARDS shards, so its text is at most MAX_CHARS long.
2. Whatever text comes in, `parse` gives a token or BadToken.
3. `merged` knows the later position of each shard: what either session has seen, the merged one has.

Pure; standard library only. LSN and timeline: PostgreSQL manual, sections 28.6 and 25.3.5.
"""

import base64
import binascii
import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Final

from engram_contract.kinds import MAX_INT64
from engram_contract.shardmap import MAX_SHARDS

_VERSION: Final = 1
_HEAD: Final = struct.Struct(">BQ8sQ")
HOME_BYTES: Final = 8
NO_HOME: Final = bytes(HOME_BYTES)
_MARK_BYTES: Final = 8  # 128 ids share one with a chance of 1 in 10^15; then both wait for the later position
_ENTRY: Final = struct.Struct(f">{_MARK_BYTES}sIQ")
MAX_CHARS: Final = -(-(_HEAD.size + MAX_SHARDS * _ENTRY.size) * 4 // 3)
# The text of a token: head, three shards in 80 characters, and the rest. An epoch has 63 bits.
TOKEN_PATTERN: Final = r"^A[Q-X][-\w]{32}([-\w]{80}){0,42}([-\w]{26}|[-\w]{53})?$".replace(r"\w", "_A-Za-z0-9")


class BadToken(ValueError):
    """The text is no token of a session; the message says why."""


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in a shard's log of changes. A timeline begins with each new primary; a later one orders behind all."""

    timeline: int
    lsn: int

    def covers(self, other: "Position") -> bool:
        """True if who is here has all that was there: a later timeline may have left some of an earlier one behind."""
        return self.timeline == other.timeline and self.lsn >= other.lsn


# Later than every other one: no replica has come so far, and only the primary tells where that is.
UNKNOWN: Final = Position((1 << 32) - 1, (1 << 64) - 1)


@cache
def mark_of(shard_id: str) -> bytes:
    """What a token calls a shard: ids are up to 32 characters, and a token travels with every request."""
    return hashlib.blake2b(shard_id.encode(), digest_size=_MARK_BYTES).digest()


@dataclass(frozen=True, slots=True)
class Token:
    """Mark of a shard -> the position it must have reached, and the highest epoch of a map that the session met.

    `home`: the mark of the sidecar that gave it; `since_ms`: on its clock, 0 for a session that began there.
    """

    epoch: int = 0
    positions: Mapping[bytes, Position] = field(default_factory=dict)
    home: bytes = NO_HOME
    since_ms: int = 0

    @classmethod
    def parse(cls, text: str) -> "Token":
        """The token that `__str__` wrote. Raises BadToken."""
        if len(text) > MAX_CHARS:
            raise BadToken(f"has {len(text)} characters, more than {MAX_CHARS}")
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except (ValueError, binascii.Error):
            raise BadToken("is not the text of a token that a sidecar gave") from None
        if len(raw) < _HEAD.size or raw[0] != _VERSION or (len(raw) - _HEAD.size) % _ENTRY.size:
            raise BadToken("is not a token of a version that is known here")
        _, epoch, home, since_ms = _HEAD.unpack_from(raw)
        if epoch > MAX_INT64:
            raise BadToken(f"names an epoch beyond {MAX_INT64}")
        positions: dict[bytes, Position] = {}
        for mark, timeline, lsn in _ENTRY.iter_unpack(raw[_HEAD.size :]):
            position = Position(timeline, lsn)
            positions[mark] = max(position, positions.get(mark, position))
        return cls(epoch, positions, home, since_ms)

    def __str__(self) -> str:
        """The token as text; equal tokens give equal texts."""
        entries = (_ENTRY.pack(mark, each.timeline, each.lsn) for mark, each in sorted(self.positions.items()))
        raw = _HEAD.pack(_VERSION, self.epoch, self.home, self.since_ms) + b"".join(entries)
        return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

    def of(self, shard_id: str) -> Position | None:
        """The shard's position, None if the session met no such shard."""
        return self.positions.get(mark_of(shard_id))

    def merged(self, other: "Token") -> "Token":
        """The later position of each shard. Beyond MAX_SHARDS the other one's shards count: ours are of an old map.

        Of two homes it has none: what either keeps may lack what the other one's session met.
        """
        later = {**other.positions}
        for mark, position in self.positions.items():
            if mark in later:
                later[mark] = max(position, later[mark])
            elif len(later) < MAX_SHARDS:
                later[mark] = position
        homes = {each.home for each in (self, other) if each != Token()}
        home = homes.pop() if len(homes) == 1 else NO_HOME
        return Token(max(self.epoch, other.epoch), later, home, max(self.since_ms, other.since_ms))
