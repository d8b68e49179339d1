"""The door to encryption: the keys of tenants' data, wrapped by their cluster's key.

AES-256-GCM (NIST SP 800-38D) with a random nonce of 12 bytes before the ciphertext. What is wrapped is bound to its
place (tenant, purpose, version): a key that was moved to another place does not open there.

Must never: put a key into an error or a log.
"""

import base64
import binascii
import hashlib
import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from engram_contract.credentials import KEY_BYTES
from engram_contract.names import length_prefixed
from engram_operator.errors import KeyUnreadable

NONCE_BYTES: Final = 12


def new_key() -> str:
    """A key that nobody had before, in base64."""
    return base64.b64encode(os.urandom(KEY_BYTES)).decode()


def wrapped(wrapping_key: str, key: str, *place: str) -> str:
    """The key as only this wrapping key opens it, for this place; all in base64."""
    nonce = os.urandom(NONCE_BYTES)
    sealed = AESGCM(_decoded(wrapping_key)).encrypt(nonce, _decoded(key), length_prefixed(*place))
    return base64.b64encode(nonce + sealed).decode()


def unwrapped(wrapping_key: str, text: str, *place: str) -> str:
    """The key that was wrapped for this place. Raises KeyUnreadable."""
    try:
        sealed = _decoded(text)
        key = AESGCM(_decoded(wrapping_key)).decrypt(
            sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], length_prefixed(*place)
        )
    except (InvalidTag, ValueError) as error:
        raise KeyUnreadable(f"the key {'/'.join(place[1:])} does not open with the cluster's key") from error
    return base64.b64encode(key).decode()


def seal_of(wrapping_key: str) -> str:
    """By what the shards of a cluster know each other's words: derived, so that the key itself lies in no database."""
    return hashlib.sha256(b"engram quota seal\0" + wrapping_key.encode()).hexdigest()


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise KeyUnreadable("a key is no base64") from error
