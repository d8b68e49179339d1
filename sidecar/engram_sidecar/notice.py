"""What sidecars of a tenant tell each other on the bulletin: which memories of a shard were written.

    version (1 byte, 1) | MessagePack: who tells, its how-manyeth, shard, ids of 18 bytes each or nil, timeline, LSN

Promise: whatever bytes come in, `parse_notice` gives a notice or BadNotice.
Pure.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final
from uuid import UUID

import msgspec

from engram_contract.session import Position
from engram_contract.slots import SLOTS, MemoryId

VERSION: Final = b"\x01"
MAX_IDS: Final = 256  # 4.5 KiB; of more it is told that all of the shard may be others
_ID: Final = struct.Struct(">H16s")


class BadNotice(ValueError):
    """These bytes are no notice that is known here."""


@dataclass(frozen=True, slots=True)
class Notice:
    """Memories of a shard were written, `ids` None for any of them; `position` is behind the write, if it is known.

    `teller` and `number` tell one notice from another. Without a shard it says that nothing that is cached counts.
    """

    teller: bytes
    number: int
    shard: str
    ids: tuple[MemoryId, ...] | None
    position: Position | None


class _Wire(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    teller: Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]
    number: Annotated[int, msgspec.Meta(ge=0)]
    shard: Annotated[str, msgspec.Meta(max_length=63)]
    ids: Annotated[bytes, msgspec.Meta(max_length=MAX_IDS * _ID.size)] | None
    timeline: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)] | None
    lsn: Annotated[int, msgspec.Meta(ge=0)] | None  # the form has no number of more than 64 bits


_ENCODE: Final = msgspec.msgpack.Encoder().encode
_DECODE: Final = msgspec.msgpack.Decoder(_Wire).decode


def write_notice(notice: Notice) -> bytes:
    """The notice as bytes; more than MAX_IDS ids are all of the shard."""
    ids = None if notice.ids is None or len(notice.ids) > MAX_IDS else _pack(notice.ids)
    timeline, lsn = (None, None) if notice.position is None else (notice.position.timeline, notice.position.lsn)
    return VERSION + _ENCODE(_Wire(notice.teller, notice.number, notice.shard, ids, timeline, lsn))


def parse_notice(payload: bytes) -> Notice:
    """The notice that `write_notice` wrote. Raises BadNotice."""
    if payload[:1] != VERSION:
        raise BadNotice("of another version")
    try:
        wire = _DECODE(payload[1:])
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadNotice("not of this form") from None
    if (wire.timeline is None) is not (wire.lsn is None):
        raise BadNotice("half a position")
    position = None if wire.timeline is None or wire.lsn is None else Position(wire.timeline, wire.lsn)
    ids = None if wire.ids is None else _unpack(wire.ids)
    return Notice(wire.teller, wire.number, wire.shard, ids, position)


def _pack(ids: Sequence[MemoryId]) -> bytes:
    return b"".join(_ID.pack(each.slot, each.uuid.bytes) for each in ids)


def _unpack(packed: bytes) -> tuple[MemoryId, ...]:
    if len(packed) % _ID.size:
        raise BadNotice("half an id")
    ids = tuple(MemoryId(slot, UUID(bytes=uuid)) for slot, uuid in _ID.iter_unpack(packed))
    if any(each.slot >= SLOTS for each in ids):
        raise BadNotice("no slot")
    return ids
