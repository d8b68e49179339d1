"""A memory as bytes for the shared cache: the row as its shard stores it, so what is sealed stays sealed.

    form (1 byte: 0 plain, 1 zstd) | MessagePack: the row's columns in order, times in Unix microseconds, position

Promise: whatever bytes come in, `parse_row` gives a memory or BadRow, and never unpacks more than MAX_BYTES.
Pure.
"""

from typing import Annotated, Final
from uuid import UUID

import msgspec
import zstandard

from engram_contract.session import Position
from engram_contract.slots import MemoryId
from engram_sidecar.records import Memory, from_unix_us, unix_us

PLAIN: Final = b"\x00"
ZSTD: Final = b"\x01"
VERSION: Final = 1
PACKED_BYTES: Final = 1_024  # a shorter row takes one packet either way
MAX_BYTES: Final = 8 << 20  # more than any memory has
LEVEL: Final = 1  # 1 KiB of text takes some 10 us; a higher one gains a tenth and takes the loop three times as long


class BadRow(ValueError):
    """These bytes are no memory that is known here."""


class _Row(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    version_of_form: int
    slot: int
    uuid: bytes
    namespace: tuple[str, ...]
    key: str | None
    type: str
    user: str | None
    agent: str | None
    session: str | None
    content: str
    value: str
    importance: float | None
    created_us: Annotated[int, msgspec.Meta(ge=0)]
    updated_us: int
    expires_us: int | None
    version: Annotated[int, msgspec.Meta(ge=1)]
    sealed: bytes | None
    shown: tuple[Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)], Annotated[int, msgspec.Meta(ge=0)]] | None


_ENCODE: Final = msgspec.msgpack.Encoder().encode
_DECODE: Final = msgspec.msgpack.Decoder(_Row).decode


def write_row(memory: Memory, shown: Position | None = None) -> bytes:
    """The memory as bytes. Of one that is sealed only the envelope goes along, not what stands beside it.

    `shown`: nothing in it is later; None where its shard has no positions.
    """
    plain = _ENCODE(
        _Row(
            VERSION, memory.id.slot, memory.id.uuid.bytes, memory.namespace, memory.key, memory.type, memory.user,
            memory.agent, memory.session,
            memory.content if memory.sealed is None else "",
            memory.value if memory.sealed is None else "null",
            memory.importance, unix_us(memory.created), unix_us(memory.updated),
            None if memory.expires is None else unix_us(memory.expires),
            memory.version, memory.sealed,
            None if shown is None else (shown.timeline, shown.lsn),
        )
    )  # fmt: skip
    if len(plain) > PACKED_BYTES:
        packed = zstandard.ZstdCompressor(level=LEVEL).compress(plain)
        if len(packed) < len(plain):
            return ZSTD + packed
    return PLAIN + plain


def parse_row(data: bytes) -> tuple[Memory, Position | None]:
    """The memory that `write_row` wrote, and its position. Raises BadRow."""
    try:
        row = _DECODE(_unpacked(data))
        if row.version_of_form != VERSION:
            raise BadRow("of another version")
        memory = Memory(
            MemoryId(row.slot, UUID(bytes=row.uuid)), row.namespace, row.key, row.type, row.user, row.agent,
            row.session, row.content, row.value, row.importance,
            from_unix_us(row.created_us), from_unix_us(row.updated_us),
            None if row.expires_us is None else from_unix_us(row.expires_us), row.version, row.sealed,
        )  # fmt: skip
        return memory, None if row.shown is None else Position(*row.shown)
    except (msgspec.DecodeError, zstandard.ZstdError, ValueError, OverflowError) as error:
        raise BadRow(type(error).__name__) from None


def _unpacked(data: bytes) -> bytes:
    if data[:1] == PLAIN:
        return data[1:]
    if data[:1] != ZSTD or not 0 < zstandard.frame_content_size(data[1:]) <= MAX_BYTES:
        raise BadRow("of no form")
    return zstandard.ZstdDecompressor().decompress(data[1:])
