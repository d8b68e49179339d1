"""The DSN of an External shard as a login. Pure.

What is taken: `postgresql://user:password@host:port/?sslmode=require`. The path is not used: Engram makes its own
databases. Source: PostgreSQL manual, 32.1.1 (connection URIs).
"""

from typing import Final, Literal, cast
from urllib.parse import parse_qs, unquote, urlsplit

from engram_contract.names import POSTGRES_PORT
from engram_contract.shardmap import Node
from engram_operator.clients.connection import Admin
from engram_operator.errors import BadDsn

SCHEMES: Final = ("postgresql", "postgres")
MODES: Final = ("disable", "allow", "prefer", "require")


def admin_of(dsn: str) -> Admin:
    """The login. Raises BadDsn, whose message never repeats the DSN: it holds a password."""
    try:
        parts = urlsplit(dsn.strip())
        port = parts.port or POSTGRES_PORT
        query = parse_qs(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise BadDsn("the DSN is no URL") from None
    if parts.scheme not in SCHEMES:
        raise BadDsn("the DSN must begin with postgresql://")
    if not (parts.hostname and parts.username and parts.password):
        raise BadDsn("the DSN must name user, password and host")
    strange = sorted(query.keys() - {"sslmode"})
    if strange:
        raise BadDsn(f"the DSN has {', '.join(strange)}; only sslmode is understood")
    mode = query.get("sslmode", ["prefer"])[0]
    if mode not in MODES:
        raise BadDsn(f"the DSN's sslmode must be one of {', '.join(MODES)}")
    known = cast("Literal['disable', 'allow', 'prefer', 'require']", mode)
    return Admin(parts.hostname, port, unquote(parts.username), unquote(parts.password), sslmode=known)


def node_of(admin: Admin) -> Node:
    """The place of the server, for a shard map."""
    return Node("primary", admin.host, admin.port)
