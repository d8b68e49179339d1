"""The envelope of encrypted data: bytes that one tenant's key opens, and only at the place they were made for.

    scheme (1 byte, 1) | key version (8, big-endian) | nonce (12) | AES-256-GCM ciphertext and tag (16)

The tag also covers (NIST SP 800-38D calls it additional authenticated data) scheme, tenant, kind, id and key version,
each with its length before it. So what was made for another tenant, kind or memory, or was changed in any bit, is
refused (SealBroken), whoever put it there. An older envelope of the *same* memory is not:
docs/decisions/0010 says why.

Nonces are random and given by the caller. After 2^32 envelopes of one key the chance that two share a nonce reaches
2^-32 (SP 800-38D section 8.3): a tenant that writes 1,000 memories a second rotates its key every seven weeks.

Pure: no clock, no randomness.
"""

import base64
import struct
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from engram_contract.credentials import Keyring
from engram_sidecar.errors import KeyMissing, SealBroken

SCHEME: Final = 1
NONCE_BYTES: Final = 12
_HEAD: Final = struct.Struct(">BQ")
_TAG_BYTES: Final = 16
_LENGTH: Final = struct.Struct(">I")
# What an envelope adds to the text in it: the migration counts usage without it, and names the same number.
OVERHEAD_BYTES: Final = _HEAD.size + NONCE_BYTES + _TAG_BYTES + _LENGTH.size


@dataclass(frozen=True, slots=True)
class Bound:
    """What data belongs to: it opens nowhere else."""

    tenant: str
    kind: str
    id: str


class Keys:
    """A keyring ready for use: the cipher of each key is made once. Without a keyring it opens nothing, seals nothing.

    `current` is the version of the key that seals; 0 for none.
    """

    def __init__(self, keyring: Keyring | None) -> None:
        self.current = 0 if keyring is None else keyring.current
        keys = () if keyring is None else keyring.keys
        self._ciphers = {each.version: AESGCM(base64.b64decode(each.key)) for each in keys}

    def __contains__(self, version: int) -> bool:
        """Whether there is this key."""
        return version in self._ciphers

    def seal(self, bound: Bound, texts: tuple[str, str], nonce: bytes) -> bytes:
        """The envelope of two texts, under the current key. A nonce must never come twice. Raises KeyMissing."""
        if not self.current:
            raise KeyMissing(None)
        first, second = (text.encode() for text in texts)
        plain = _LENGTH.pack(len(first)) + first + second
        sealed = self._ciphers[self.current].encrypt(nonce, plain, _covered(bound, self.current))
        return _HEAD.pack(SCHEME, self.current) + nonce + sealed

    def open(self, bound: Bound, envelope: bytes) -> tuple[str, str]:
        """The texts. Raises KeyMissing, or SealBroken for what was not sealed so, for this."""
        version = key_version(envelope)
        if version not in self._ciphers:
            raise KeyMissing(version)
        nonce, sealed = envelope[_HEAD.size : _HEAD.size + NONCE_BYTES], envelope[_HEAD.size + NONCE_BYTES :]
        try:
            plain = self._ciphers[version].decrypt(nonce, sealed, _covered(bound, version))
        except InvalidTag:
            # Without a cause: a traceback shall not show what was tried.
            raise SealBroken("authentication") from None
        [length] = _LENGTH.unpack_from(plain)
        text = plain[_LENGTH.size :]
        return text[:length].decode(), text[length:].decode()


class Drawer:
    """Seals what this process keeps for itself, under a key that ends with it. Its nonces count: none comes twice."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)
        self._sealed = 0

    def seal(self, place: bytes, plain: bytes) -> bytes:
        """What `open` opens at the same place."""
        self._sealed += 1
        nonce = self._sealed.to_bytes(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, plain, place)

    def open(self, place: bytes, sealed: bytes) -> bytes:
        """What was sealed for the place. Raises InvalidTag, which is a fault of ours: nobody else writes here."""
        return self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], place)


def key_version(envelope: bytes) -> int:
    """Under which key it was sealed. Raises SealBroken for what is no envelope."""
    if len(envelope) < OVERHEAD_BYTES:
        raise SealBroken("truncated")
    scheme, version = _HEAD.unpack_from(envelope)
    if scheme != SCHEME:
        raise SealBroken("scheme")
    return int(version)


def _covered(bound: Bound, version: int) -> bytes:
    tenant, kind, name = bound.tenant.encode(), bound.kind.encode(), bound.id.encode()
    lengths = _LENGTH.pack(len(tenant)), _LENGTH.pack(len(kind)), _LENGTH.pack(len(name))
    return b"".join((_HEAD.pack(SCHEME, version), lengths[0], tenant, lengths[1], kind, lengths[2], name))
