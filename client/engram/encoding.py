"""What is sent: a query string, a JSON body, conditional headers. Refuses before sending what JSON cannot say.

Promises: a body is UTF-8 without NaN, infinities or lone surrogates; numbers, texts and order arrive as given.
Pure. Sources: RFC 8259 (JSON), RFC 6901 (pointers), RFC 3986 (percent-encoding).
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote, urlencode

from engram.errors import Pointer, Refused
from engram_contract.names import IDEMPOTENCY_HEADER

Query = Iterable[tuple[str, str | int | None]]
Headers = tuple[tuple[str, str], ...]

MAX_KEY_CHARS: Final = 255
DEEPEST: Final = 64  # a sidecar takes no deeper JSON, so nothing below it needs a pointer

JSON_HEADERS: Final[Headers] = (("Content-Type", "application/json"),)
MERGE_PATCH_HEADERS: Final[Headers] = (("Content-Type", "application/merge-patch+json"),)  # RFC 7396 section 4


def encode_body(body: Mapping[str, Any]) -> bytes:
    """The body as JSON; raises Refused with pointers to what JSON has no form for."""
    try:
        return json.dumps(body, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    except (ValueError, TypeError, RecursionError) as error:  # UnicodeEncodeError is a ValueError
        raise Refused("not sent: the body is not JSON", pointers=tuple(_faults(body, "", 0))) from error


def encode_target(path: str, query: Query = ()) -> str:
    """Path and query, percent-encoded, without the members that are None; raises Refused for a lone surrogate."""
    present = [(name, str(value)) for name, value in query if value is not None]
    try:
        return f"{path}?{urlencode(present)}" if present else path
    except UnicodeEncodeError as error:
        raise Refused("not sent: a name in the request holds a lone surrogate, which UTF-8 cannot say") from error


def encode_memory_path(memory_id: str, below: str = "/v1/memories/") -> str:
    """The path of a memory, or of what is kept of it; dots are encoded too, so no id can walk up the path."""
    try:
        return below + quote(memory_id, safe="").replace(".", "%2E")
    except UnicodeEncodeError as error:
        raise Refused("not sent: the id holds a lone surrogate, which UTF-8 cannot say") from error


def encode_conditions(if_match: str | None, if_none_match: str | None) -> Headers:
    """The conditional headers that are set; raises Refused for an ETag that no header can carry."""
    conditions = (("If-Match", if_match), ("If-None-Match", if_none_match))
    present = tuple((name, value) for name, value in conditions if value is not None)
    for name, value in present:
        if not value.isascii() or not value.isprintable():
            raise Refused(f"not sent: {name} is not an ETag: {value!r}")
    return present


def encode_key(key: str) -> Headers:
    """The header of an idempotency key, as a string of RFC 9651; raises Refused for what no header can carry."""
    if not 1 <= len(key) <= MAX_KEY_CHARS or not key.isascii() or not key.isprintable():
        raise Refused(
            f"not sent: an idempotency key is 1 to {MAX_KEY_CHARS} printable characters of ASCII: {key[:60]!r}"
        )
    escaped = key.replace("\\", "\\\\").replace('"', '\\"')
    return ((IDEMPOTENCY_HEADER, f'"{escaped}"'),)


def _faults(value: object, pointer: str, depth: int) -> Iterator[Pointer]:
    """Each place that JSON cannot say, down to the depth that a sidecar takes."""
    if depth > DEEPEST:
        yield Pointer(pointer, "nested too deeply, or a value that holds itself")
    elif isinstance(value, str):
        if any("\ud800" <= each <= "\udfff" for each in value):
            yield Pointer(pointer, "a lone surrogate is not text")
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield Pointer(pointer, f"{value} is not JSON")
    elif isinstance(value, Mapping):
        yield from _member_faults(value, pointer, depth)
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from _faults(each, f"{pointer}/{index}", depth + 1)
    elif not isinstance(value, int | None):
        yield Pointer(pointer, f"{type(value).__name__} has no form in JSON")


def _member_faults(value: Mapping[Any, object], pointer: str, depth: int) -> Iterator[Pointer]:
    for name, each in value.items():
        place = f"{pointer}/{str(name).replace('~', '~0').replace('/', '~1')}"
        if isinstance(name, str):
            yield from _faults(name, place, depth + 1)
        yield from _faults(each, place, depth + 1)
