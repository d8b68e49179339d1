"""Hash slots and memory identifiers: where a memory lives can be read from its id.

The slot is CRC16/XMODEM of the routing key modulo 16,384, as in the Redis Cluster specification ("Keys distribution
model").
An id is `<4 hex digits of slot>-<uuid>`; it is fixed at creation, so a later change of the memory moves nothing.

Promises
1. Equal routing keys give equal slots on every machine and in every version.
2. A keyed memory's id follows from its name (user, namespace, key) alone: finding it needs no lookup.
3. `MemoryId.parse` accepts exactly what `str(MemoryId)` writes.

Pure: the clock and the randomness of an id are arguments.
"""

import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from engram_contract.names import length_prefixed

SLOTS: Final = 16_384

# 8-4-4-4-12 in lower case, version 7 (made by the clock) or 8 (made from a name), RFC 9562 variant.
_ID: Final = re.compile(r"([0-3][0-9a-f]{3})-([0-9a-f]{8}-[0-9a-f]{4}-[78][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12})")


class BadMemoryId(ValueError):
    """The text is not the id of a memory, so no memory has it."""


def crc16(data: bytes) -> int:
    """CRC16/XMODEM (polynomial 0x1021, initial value 0): `123456789` gives 0x31C3."""
    return binascii.crc_hqx(data, 0)


def slot_of(routing_key: bytes) -> int:
    """The slot of a routing key, 0 to 16,383."""
    return crc16(routing_key) % SLOTS


@dataclass(frozen=True, slots=True)
class MemoryId:
    """The name of one memory within a tenant."""

    slot: int
    uuid: UUID

    def __str__(self) -> str:
        """Four hex digits of the slot, a dash and the UUID: 41 characters."""
        return f"{self.slot:04x}-{self.uuid}"

    @classmethod
    def parse(cls, text: str) -> "MemoryId":
        """The id written as `text`; raises BadMemoryId if nothing could be stored under it."""
        match = _ID.fullmatch(text)
        if match is None:
            reason = "an id is 4 hex digits up to 3fff, a dash and a version 7 or 8 UUID in lower case"
            raise BadMemoryId(reason)
        return cls(int(match[1], 16), UUID(match[2]))

    @property
    def is_named(self) -> bool:
        """True if the id was derived from a name (user, namespace, key)."""
        return self.uuid.version == 8  # noqa: PLR2004  UUID version 8 is RFC 9562 section 5.8


def uuid7(unix_ms: int, randomness: bytes) -> UUID:
    """A version 7 UUID (RFC 9562 section 5.7) of a Unix time in milliseconds and ten random bytes."""
    tail = bytearray(randomness[:10])
    tail[0] = 0x70 | (tail[0] & 0x0F)
    tail[2] = 0x80 | (tail[2] & 0x3F)
    return UUID(bytes=unix_ms.to_bytes(6, "big") + bytes(tail))


def named_uuid(tenant: str, name: bytes) -> UUID:
    """A version 8 UUID (RFC 9562 section 5.8) of a name within a tenant: the first bits of its SHA-256."""
    digest = bytearray(hashlib.sha256(length_prefixed(tenant) + name).digest()[:16])
    digest[6] = 0x80 | (digest[6] & 0x0F)
    digest[8] = 0x80 | (digest[8] & 0x3F)
    return UUID(bytes=bytes(digest))
