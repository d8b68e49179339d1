"""The named queries of `queries.sql`, read once."""

import re
from importlib import resources
from typing import Final

_HEADER: Final = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def parse_queries(text: str) -> dict[str, str]:
    """Name -> SQL without its closing semicolon; raises ValueError for a name that stands twice."""
    parts = _HEADER.split(text)[1:]
    names, bodies = parts[::2], parts[1::2]
    if len(set(names)) != len(names):
        reason = f"a query's name stands twice in {sorted(names)}"
        raise ValueError(reason)
    return {name: body.strip().rstrip(";") for name, body in zip(names, bodies, strict=True)}


QUERIES: Final = parse_queries((resources.files("engram_sidecar") / "queries.sql").read_text("utf-8"))
