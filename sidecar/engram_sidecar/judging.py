"""Conditions on the value of an encrypted memory: judged here, as Postgres' jsonpath judges those of the others.

The store cannot look into what is encrypted. So the sidecar opens it and judges; and so that it need not open
everything, each scalar of the value stands among the memory's lexemes as a *token*, a keyed hash of where it stands
and what it is. Who knows no key cannot tell what a token is of, only that two memories share one.

Promises
1. `holds` says what the predicate of filters.py says of the same value (PostgreSQL 18, jsonpath in strict mode): there
`null` compares with everything, scalars of other types and whatever is no scalar compare `unknown`, strings compare by
code point, numbers as decimals, exactly.
2. Equal scalars at equal places give equal tokens: 1, 1.0 and 1e0 are one number, "1" and true are others.
3. A memory with more than MAX_TOKENS scalars has one token instead of theirs, and every pruning query accepts it. So
`pruning` never leaves out a memory for which `holds` is true.
No word of a text can be a token: a token begins with "=". Pure.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from types import MappingProxyType
from typing import Final

from engram_sidecar.filters import Condition, Steps

MAX_TOKENS: Final = 256  # scalars of one value; each token is an entry of the index, about 20 bytes
MAX_PRUNING: Final = 64  # tokens in a query: with more the index has more to do than it spares
_MANY: Final = b"many"
_MISSING: Final = object()
_DECODER: Final = json.JSONDecoder(parse_float=Decimal)
# Operator -> what it says of -1, 0 or 1: the first is less, equal or greater.
_SIGNS: Final[Mapping[str, Callable[[int], bool]]] = MappingProxyType(
    {
        "eq": lambda order: order == 0,
        "gt": lambda order: order > 0,
        "gte": lambda order: order >= 0,
        "lt": lambda order: order < 0,
        "lte": lambda order: order <= 0,
    }
)
_DIGEST_BYTES: Final = 9  # as 12 characters without padding


def parse_value(text: str) -> object:
    """The value of its JSON text; numbers are exact."""
    return _DECODER.decode(text)


def holds(conditions: Sequence[Condition], value: object) -> bool:
    """True if the value that parse_value gave meets all conditions."""
    return all(_meets(condition, _member(value, condition.steps)) for condition in conditions)


def _member(value: object, steps: Steps) -> object:
    for step in steps:
        if isinstance(step, int):
            if not isinstance(value, list) or step >= len(value):
                return _MISSING
            value = value[step]
        elif isinstance(value, dict) and step in value:
            value = value[step]
        else:
            return _MISSING
    return value


def _meets(condition: Condition, member: object) -> bool:
    if condition.operator == "in":
        assert isinstance(condition.operand, tuple)  # noqa: S101  checked by filters.py
        return any(_compare("eq", member, choice) for choice in condition.operand)
    if condition.operator == "ne":
        return not _compare("eq", member, condition.operand)
    return _compare(condition.operator, member, condition.operand)


def _compare(operator: str, member: object, operand: object) -> bool:
    """False also where jsonpath says `unknown`: `ne` is the one that tells them apart, and takes both alike."""
    left, right = _ordered(member), _ordered(operand)
    if left is None or right is None or left[0] != right[0]:
        return False
    match left[1], right[1]:
        case str(one), str(other):
            return _SIGNS[operator]((one > other) - (one < other))
        case Decimal() as first, Decimal() as second:
            return _SIGNS[operator]((first > second) - (first < second))
        case _:
            return False


def _ordered(scalar: object) -> "tuple[str, str | Decimal] | None":
    """(type, what orders the values of that type); None for what is no scalar."""
    match scalar:
        case None:
            return "null", ""
        case bool():
            return "boolean", str(int(scalar))
        case str():
            return "string", scalar
        case int() | Decimal():
            return "number", Decimal(scalar)
        case float():
            return "number", Decimal(repr(scalar))  # as the filter's variables are written
        case _:
            return None


class Tokens:
    """Makes the tokens of one tenant's values, with 32 bytes of key."""

    def __init__(self, key: bytes) -> None:
        # A copy of a state that took the key is half the price of a new one.
        self._keyed = hashlib.blake2b(digest_size=_DIGEST_BYTES, key=key)

    def of_value(self, text: str) -> list[str]:
        """Those of every scalar in the value's JSON text, or the one that stands for many."""
        found: dict[str, None] = {}
        for way, scalar in _scalars(parse_value(text)):
            found[self._token(way, scalar)] = None
            if len(found) > MAX_TOKENS:
                return [self._hashed(_MANY)]
        return list(found)

    def pruning(self, conditions: Sequence[Condition]) -> str | None:
        """A tsquery that every memory with tokens matches for which the conditions hold; None if there is none."""
        groups: list[str] = []
        room = MAX_PRUNING
        for condition in conditions:
            choices = condition.operand if condition.operator == "in" else (condition.operand,)
            assert isinstance(choices, tuple)  # noqa: S101  checked by filters.py
            if condition.operator not in {"eq", "in"} or len(choices) > room:
                continue
            room -= len(choices)
            way = b"".join(map(_step_bytes, condition.steps))
            tokens = [self._token(way, choice) for choice in choices]
            groups.append(" | ".join(f"'{token}'" for token in (*tokens, self._hashed(_MANY))))
        return " & ".join(f"({group})" for group in groups) or None

    def _token(self, way: bytes, scalar: object) -> str:
        return self._hashed(b"at%s.%s" % (way, _scalar_bytes(scalar)))

    def _hashed(self, what: bytes) -> str:
        state = self._keyed.copy()
        state.update(what)
        return "=" + base64.urlsafe_b64encode(state.digest()).decode()


def _scalars(value: object) -> Iterator[tuple[bytes, object]]:
    """Every scalar of a value with the way to it."""
    stack: list[tuple[bytes, object]] = [(b"", value)]
    while stack:
        way, top = stack.pop()
        if isinstance(top, dict):
            stack.extend((way + _step_bytes(name), each) for name, each in top.items())
        elif isinstance(top, list):
            stack.extend((way + _step_bytes(index), each) for index, each in enumerate(top))
        elif way:  # a filter names a member, never the whole value
            yield way, top


def _step_bytes(step: str | int) -> bytes:
    """One step, such that no two ways give the same bytes."""
    if isinstance(step, int):
        return f"[{step}]".encode()
    name = step.encode()
    return f"{len(name)}:".encode() + name


def _scalar_bytes(scalar: object) -> bytes:
    match scalar:
        case str():
            return b"s" + scalar.encode()
        case bool() | None:
            return b"c%r" % scalar
        case float():
            return b"n" + _shortest(Decimal(repr(scalar)))
        case int() | Decimal():
            return b"n" + _shortest(Decimal(scalar))
        case _:
            raise ValueError(type(scalar))


def _shortest(number: Decimal) -> bytes:
    """The one text of a number. `Decimal.normalize` would round to the context's precision."""
    sign, digits, exponent = number.as_tuple()
    text = "".join(map(str, digits)).lstrip("0")
    short = text.rstrip("0")
    if not short:
        return b"0"
    return f"{'-' if sign else ''}{short}e{int(exponent) + len(text) - len(short)}".encode()
