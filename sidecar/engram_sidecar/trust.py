"""Whom the sidecar believes to be its tenant's shards: the CA of the credentials."""

import ssl
from typing import Literal

from engram_contract.credentials import Credentials


def ssl_of(credentials: Credentials) -> ssl.SSLContext | Literal["prefer"]:
    """How connections are made: verified against the CA; without one encrypted where the server offers it."""
    return ssl.create_default_context(cadata=credentials.ca) if credentials.ca else "prefer"


def is_bundle(text: str) -> bool:
    """Whether the text holds certificates in PEM."""
    try:
        ssl.create_default_context(cadata=text)
    except (ssl.SSLError, ValueError):
        return False
    return True
