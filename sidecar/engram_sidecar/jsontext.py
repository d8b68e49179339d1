"""Strict JSON (RFC 8259) from outside: every text that Postgres or another reader would take differently is refused.

Refused, each with a reason: not UTF-8, NaN and Infinity, numbers beyond a double or integers beyond 64 bits,
duplicate names, U+0000 and lone surrogates (Postgres stores neither), nesting deeper than the limit. What passes
comes back from `jsonb` as an equal value, by `parse_stored`. Pure.
"""

import json
import json.scanner
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final, NoReturn

INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1
_LONGEST_INT64: Final = len(str(INT64_MIN))
_ALIKE: Final = bytes.maketrans(b"012345678E", b"999999999e")  # then a long number is a plain text, found at once
_LONG: Final = b"9" * len(str(INT64_MAX))
_BEYOND_DOUBLE: Final = b"9" * 309
_EXPONENT: Final = b"9e"
UNINTERRUPTED_BYTES: Final = 500_000  # some 8 ms


class BadJson(ValueError):
    """The text is not JSON that can be stored."""


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        double = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        reason = f"the name {double[:100]!r} stands twice in one object"
        raise BadJson(reason)
    return members


def _constant(text: str) -> NoReturn:
    reason = f"{text} is not JSON"
    raise BadJson(reason)


_HOOKS: Final[dict[str, Any]] = {"object_pairs_hook": _unique, "parse_constant": _constant}


def _digits(text: str) -> str:
    """The number's text. Python's digits are those of all scripts, and so are its scanner's; JSON's are ten."""
    if not text.isascii():
        reason = f"the number {text[:40]} has digits that are not of JSON"
        raise BadJson(reason)
    return text


def _finite(text: str) -> float:
    number = float(_digits(text))
    if not math.isfinite(number):
        reason = f"the number {text[:40]} is beyond a double"
        raise BadJson(reason)
    return number


def _int64(text: str) -> int:
    if len(text) > _LONGEST_INT64 or not INT64_MIN <= int(_digits(text)) <= INT64_MAX:
        reason = f"the integer {text[:40]} is beyond 64 bits"
        raise BadJson(reason)
    return int(text)


def has_long_number(raw: bytes) -> bool:
    """True if a number of the text may be beyond 64 bits. A string of digits may look like one."""
    return _LONG in raw.translate(_ALIKE)


def _decoder(raw: bytes) -> json.JSONDecoder:
    """For this text. Python's own numbers take a quarter of the time, and are right for all but long ones."""
    if len(raw) > UNINTERRUPTED_BYTES:
        decoder = json.JSONDecoder(**_HOOKS, parse_int=_int64, parse_float=_finite)
        decoder.scan_once = json.scanner.py_make_scanner(decoder)  # type: ignore[attr-defined]
        return decoder
    alike = raw.translate(_ALIKE)
    parse_int = _int64 if _LONG in alike else None
    parse_float = _finite if _EXPONENT in alike or _BEYOND_DOUBLE in alike else None
    return json.JSONDecoder(**_HOOKS, parse_int=parse_int, parse_float=parse_float)


def parse(raw: bytes, *, max_depth: int) -> object:
    """The value of a JSON text in UTF-8. Raises BadJson.

    No other thread runs while C goes over a text; where it is so long that a loop would notice, Python goes from value
    to value, which takes several times as long.
    """
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 at byte {error.start}"
        raise BadJson(reason) from error
    if text.startswith("\ufeff"):
        reason = "a byte order mark is not JSON"
        raise BadJson(reason)
    try:
        value = _decoder(raw).decode(text)
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise BadJson(reason) from error
    except RecursionError as error:
        reason = f"nested deeper than {max_depth} levels"
        raise BadJson(reason) from error
    # Both walks are needed only where the text gives cause for them.
    if text.count("[") + text.count("{") > max_depth and _depth(value) > max_depth:
        reason = f"nested deeper than {max_depth} levels"
        raise BadJson(reason)
    if "\\u" in text and not all(map(is_storable, strings(value))):
        reason = "a string holds U+0000 or a lone surrogate"
        raise BadJson(reason)
    return value


def parse_stored(text: str) -> object:
    """The value of JSON text from the store. `jsonb` prints the double 1e22 as digits: a double again here."""
    return json.loads(text, parse_int=_stored_number)


def _stored_number(digits: str) -> int | float:
    number = int(digits) if len(digits) <= _LONGEST_INT64 else INT64_MAX + 1
    return number if INT64_MIN <= number <= INT64_MAX else float(digits)


def _depth(value: object) -> int:
    depth = 0
    level = [value] if isinstance(value, dict | list) else []
    while level:
        depth += 1
        level = [
            child
            for container in level
            for child in (container.values() if isinstance(container, dict) else container)
            if isinstance(child, dict | list)
        ]
    return depth


def strings(value: object) -> Iterator[str]:
    """Every string in a JSON value, names of members included, in no stated order."""
    stack = [value]
    while stack:
        top = stack.pop()
        if isinstance(top, str):
            yield top
        elif isinstance(top, dict):
            yield from top
            stack.extend(top.values())
        elif isinstance(top, list):
            stack.extend(top)


def is_storable(text: str) -> bool:
    """True if Postgres can hold the text: no U+0000, no lone surrogate."""
    if "\x00" in text:
        return False
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
