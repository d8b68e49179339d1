"""What a tenant's sidecars log in with, and the keys of its data: the files of the tenant's Secret.

Promise: no value of these files is ever in an error or a `repr`; a fault names the member alone.

Pure; standard library only.
"""

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Final, TypeVar

from engram_contract.kinds import MAX_INT64, Items, Text, Whole
from engram_contract.parse import Refused, Section, read_document, write_document

T = TypeVar("T")

MAX_CHARS: Final = 1 << 19  # a bundle of CAs is the largest part, a few KiB
MAX_PASSWORDS: Final = 2  # the present one and, during a rotation, the other
MAX_KEYS: Final = 64
KEY_BYTES: Final = 32  # AES-256
_SECRET: Final = Text(1024)
_PASSWORDS: Final = Items(_SECRET, MAX_PASSWORDS)
_PEM: Final = Text(MAX_CHARS, min_chars=0)


class BadCredentials(Refused):
    """This is no valid file of a tenant's Secret: `path` names the member; what stands there is not told."""


@dataclass(frozen=True, slots=True)
class CacheLogin:
    """The tenant's user of the cluster's Redis. With `ca`, PEM, the server must prove its name."""

    url: Annotated[str, Text(2048)]
    user: Annotated[str, Text(63)]
    passwords: Annotated[tuple[str, ...], _PASSWORDS] = field(repr=False)
    ca: Annotated[str, _PEM] = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Credentials:
    """The tenant's login. During a rotation both passwords are there and one of them is right.

    With `ca`, CAs as PEM, a server must prove its name; without, nothing is encrypted unless the server wants it.
    `generation` counts the rotations.
    """

    role: Annotated[str, Text(63)]
    passwords: Annotated[tuple[str, ...], _PASSWORDS] = field(repr=False)
    ca: Annotated[str, _PEM] = field(default="", repr=False)
    generation: Annotated[int, Whole(0, MAX_INT64)] = 0
    cache: CacheLogin | None = None

    def __post_init__(self) -> None:
        if not self.passwords:
            raise Refused("passwords", "needs at least one password")

    def to_json(self) -> str:
        """The credentials as one line of JSON; equal ones give equal texts."""
        return write_document(self)

    @classmethod
    def from_json(cls, text: str) -> "Credentials":
        """What `to_json` wrote; members it does not know are passed over. Raises BadCredentials."""
        return _silently(lambda: read_document(cls, text, MAX_CHARS))


@dataclass(frozen=True, slots=True)
class DataKey:
    """One version of the key of a tenant's data: 32 bytes in base64."""

    version: Annotated[int, Whole(1, MAX_INT64)]
    key: Annotated[str, _SECRET] = field(repr=False)

    def __post_init__(self) -> None:
        if len(_decoded(self.key)) != KEY_BYTES:
            raise Refused("key", f"has not {KEY_BYTES} bytes in base64")


@dataclass(frozen=True, slots=True)
class Keyring:
    """The keys of a tenant's data. New data is encrypted with `current`, older data names its own version.

    `index` is the key under which words are hashed for the search; it stays when the others rotate.
    """

    current: Annotated[int, Whole(1, MAX_INT64)]
    keys: Annotated[tuple[DataKey, ...], Items(Section(DataKey), MAX_KEYS, key="version")]
    index: Annotated[str, _SECRET] = field(repr=False)

    def __post_init__(self) -> None:
        if all(each.version != self.current for each in self.keys):
            raise Refused("current", "names none of the keys")
        if len(_decoded(self.index)) != KEY_BYTES:
            raise Refused("index", f"has not {KEY_BYTES} bytes in base64")

    def to_json(self) -> str:
        """The keyring as one line of JSON; equal ones give equal texts."""
        return write_document(self)

    @classmethod
    def from_json(cls, text: str) -> "Keyring":
        """What `to_json` wrote; members it does not know are passed over. Raises BadCredentials."""
        return _silently(lambda: read_document(cls, text, MAX_CHARS))


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _silently(read: Callable[[], T]) -> T:
    """What is read; a refusal without the value that was refused, and without its cause, which holds it too."""
    try:
        return read()
    except Refused as refused:
        path = refused.path
    raise BadCredentials(path, "is missing or wrong" if path else "is no document of this form")
