"""Where a Redis is, as its URL says it: one server, the primary that Sentinels name, or a Cluster.

    redis://host:port/database                 one server, or the Service or proxy before it
    redis+sentinel://host:port,host:port/name  whichever is the primary that these Sentinels know by this name
    redis+cluster://host:port,host:port        whichever node has the tenant's slot; these are asked first

With `rediss` in the place of `redis` every connection is encrypted, also those to Sentinels.

Promise: no part of a URL that is refused is told, as there may be a login in it.

Pure; standard library only.
"""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final
from urllib.parse import unquote

from engram_contract.names import REDIS_PORT

SENTINEL_PORT: Final = 26379
MAX_PORT: Final = 65_535
FORMS: Final = (
    "redis://host:port/database, redis+sentinel://host:port,host:port/name or redis+cluster://host:port,host:port, "
    "or one of these with rediss"
)
_HOST: Final = r"([-._A-Za-z0-9]+|\[[:.0-9A-Fa-f]+\])(:[0-9]{1,5})?"
_NAME: Final = r"[-._A-Za-z0-9]+"
PATTERN: Final = (
    rf"^(rediss?://{_HOST}(/[0-9]{{1,3}})?|rediss?\+sentinel://{_HOST}(,{_HOST})*/{_NAME}"
    rf"|rediss?\+cluster://{_HOST}(,{_HOST})*)$"
)
_PARTS: Final = re.compile(
    r"redis(?P<tls>s?)(\+(?P<kind>sentinel|cluster))?://((?P<login>[^/@]*)@)?(?P<hosts>[^/@?#]+)(/(?P<path>[^/?#]*))?"
)
_ONE_HOST: Final = re.compile(_HOST)

Address = tuple[str, int]


class Kind(StrEnum):
    """Whom the addresses are of."""

    SERVER = "server"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True)
class RedisPlace:
    """What a URL says beside a login. `name` is the primary's, for Sentinels."""

    kind: Kind
    addresses: tuple[Address, ...]
    is_encrypted: bool
    database: int = 0
    name: str = ""

    @classmethod
    def from_url(cls, url: str) -> "RedisPlace":
        """The place, without a login that may be in the URL too. ValueError says which forms there are."""
        parts = _PARTS.fullmatch(url)
        if parts is None:
            raise ValueError(f"is not {FORMS}")
        kind, path = Kind(parts["kind"] or Kind.SERVER), parts["path"] or ""
        port = SENTINEL_PORT if kind is Kind.SENTINEL else REDIS_PORT
        addresses = tuple(_address(each, port) for each in parts["hosts"].split(","))
        takes_path = {
            Kind.SERVER: len(addresses) == 1 and bool(re.fullmatch(r"([0-9]{1,3})?", path)),
            Kind.SENTINEL: bool(re.fullmatch(_NAME, path)),
            Kind.CLUSTER: not path,
        }
        if not takes_path[kind]:
            raise ValueError(f"is not {FORMS}")
        is_sentinel = kind is Kind.SENTINEL
        database = int(path) if path and not is_sentinel else 0
        return cls(kind, addresses, bool(parts["tls"]), database, path if is_sentinel else "")


@dataclass(frozen=True, slots=True)
class RedisLogin:
    """A place with whom to log in as there; `url` is without them."""

    place: RedisPlace
    url: str
    user: str
    password: str = field(repr=False)

    @classmethod
    def from_url(cls, url: str) -> "RedisLogin":
        """What a URL with user and password says, each percent-encoded. ValueError says what is missing."""
        place, parts = RedisPlace.from_url(url), _PARTS.fullmatch(url)
        login = (parts["login"] if parts else "") or ""
        user, _, password = login.partition(":")
        if not password:
            raise ValueError("has no user and password before the host")
        return cls(place, url.replace(f"{login}@", "", 1), unquote(user) or "default", unquote(password))


def _address(text: str, port: int) -> Address:
    parts = _ONE_HOST.fullmatch(text)
    given = parts and int((parts[2] or f":{port}")[1:])
    if parts is None or not given or given > MAX_PORT:
        raise ValueError(f"is not {FORMS}")
    return parts[1].strip("[]"), given
