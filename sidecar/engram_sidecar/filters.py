"""Typed filters: a JSON object of conditions to one jsonpath predicate; its operands are variables, never its text.

A filter is `{field: condition}`, all of which must hold. Fields are importance, created, updated, expires, type,
user, agent, session, key, and value, which takes `{name: condition}` for members of the memory's JSON value; a name
that begins with `/` is a JSON pointer (RFC 6901) into it, digits in it an array index. A condition is a scalar
(equal) or an object of operators. Types never mix: 9 is neither "9" nor true, `ne` holds where the member is missing
or of another type, the others do not. jsonpath in strict mode gives exactly that: a mismatch is `unknown`. Pure.
"""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from engram_sidecar.errors import Flaw, Unprocessable, pointer

_SIGNS: Final = {"eq": "==", "gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
COMPARISONS: Final = (*_SIGNS, "ne")
FIELD_KINDS: Final = {
    "importance": "number",
    **dict.fromkeys(("created", "updated", "expires"), "time"),
    **dict.fromkeys(("type", "user", "agent", "session", "key"), "text"),
}
_OPERATORS: Final = (*COMPARISONS, "in")
_FIELDS: Final = (*FIELD_KINDS, "value")
MAX_CONDITIONS: Final = 64  # a predicate is evaluated on every candidate
MAX_ALTERNATIVES: Final = 256
MAX_STEPS: Final = 64  # as deep as a value may be
MAX_NAME_BYTES: Final = 4_096
_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,8}")
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
# RFC 3339: a date-time always names its offset.
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,6})?([Zz]|[+-]\d\d:\d\d)")


class _Builder:
    """Gathers predicates and their variables."""

    def __init__(self) -> None:
        self.predicates: list[str] = []
        self.variables: dict[str, object] = {}

    def variable(self, value: object) -> str:
        name = f"v{len(self.variables)}"
        self.variables[name] = value
        return f"${name}"

    def add(self, target: str, operator: str, operand: object) -> None:
        if operator == "ne":
            equal = f"{target} == {self.variable(operand)}"
            self.predicates.append(f"(!({equal}) || ({equal}) is unknown)")
        elif operator == "in":
            assert isinstance(operand, list)  # noqa: S101  checked by _operands
            choices = " || ".join(f"{target} == {self.variable(item)}" for item in operand)
            self.predicates.append(f"({choices or '1 == 2'})")
        else:
            self.predicates.append(f"({target} {_SIGNS[operator]} {self.variable(operand)})")


def parse_filter(document: object, place: str = "/filter") -> tuple[str | None, str]:
    """The jsonpath predicate (None for an empty filter) and its variables as JSON text. Raises Unprocessable."""
    if not isinstance(document, dict):
        raise Unprocessable(Flaw(place, "must be an object of conditions"))
    builder = _Builder()
    for target, kind, condition, where in _conditions(document, place):
        for operator, operand in _operands(condition, kind, where):
            builder.add(target, operator, operand)
            if len(builder.predicates) > MAX_CONDITIONS:
                raise Unprocessable(Flaw(place, f"at most {MAX_CONDITIONS} conditions"))
    if not builder.predicates:
        return None, "{}"
    return "strict " + " && ".join(builder.predicates), json.dumps(builder.variables, ensure_ascii=False)


def _conditions(document: dict[str, object], place: str) -> Iterator[tuple[str, str, object, str]]:
    """(jsonpath of the member, its kind, condition, pointer) for each member that is asked about."""
    for field, condition in document.items():
        where = pointer(place, field)
        if field not in _FIELDS:
            raise Unprocessable(Flaw(where, f"is not a field of a filter; there are {', '.join(_FIELDS)}"))
        if field == "value":
            if not isinstance(condition, dict):
                raise Unprocessable(Flaw(where, "must be an object: member of the value -> condition"))
            for name, inner in condition.items():
                inside = pointer(where, name)
                yield "$.value" + _steps(name, inside), "any", inner, inside
        else:
            yield f"$.{field}", FIELD_KINDS[field], condition, where


def _steps(name: str, where: str) -> str:
    if len(name.encode()) > MAX_NAME_BYTES:
        raise Unprocessable(Flaw(where[:100], f"is a name of more than {MAX_NAME_BYTES} bytes"))
    if not name.startswith("/"):
        return "." + json.dumps(name, ensure_ascii=False)
    steps: list[str] = []
    tokens = name[1:].split("/")
    if len(tokens) > MAX_STEPS:
        raise Unprocessable(Flaw(where, f"is a JSON pointer of more than {MAX_STEPS} steps"))
    for token in tokens:
        if re.search(r"~(?![01])", token):
            raise Unprocessable(Flaw(where, "is not a JSON pointer: ~ stands only in ~0 and ~1"))
        plain = token.replace("~1", "/").replace("~0", "~")
        steps.append(f"[{plain}]" if _INDEX.fullmatch(plain) else "." + json.dumps(plain, ensure_ascii=False))
    return "".join(steps)


def _operands(condition: object, kind: str, where: str) -> Iterator[tuple[str, object]]:
    """(operator, checked operand) of one condition."""
    if not isinstance(condition, dict):
        yield "eq", _operand(condition, kind, where)
        return
    if not condition:
        raise Unprocessable(Flaw(where, f"needs an operator: {', '.join(_OPERATORS)}"))
    for operator, operand in condition.items():
        place = pointer(where, operator)
        if operator not in _OPERATORS:
            raise Unprocessable(Flaw(place, f"is not an operator; there are {', '.join(_OPERATORS)}"))
        if operator == "in":
            if not isinstance(operand, list) or len(operand) > MAX_ALTERNATIVES:
                raise Unprocessable(Flaw(place, f"must be an array of at most {MAX_ALTERNATIVES} scalars"))
            yield "in", [_operand(item, kind, f"{place}/{number}") for number, item in enumerate(operand)]
        else:
            yield operator, _operand(operand, kind, place)


def _operand(operand: object, kind: str, where: str) -> object:
    if isinstance(operand, dict | list):
        raise Unprocessable(Flaw(where, "must be a scalar: arrays and objects are not compared"))
    if operand is None or kind == "any":
        return operand
    if kind == "time":
        return _time_text(operand, where)
    if kind == "number" and (isinstance(operand, bool) or not isinstance(operand, int | float)):
        raise Unprocessable(Flaw(where, "must be a number"))
    if kind == "text" and not isinstance(operand, str):
        raise Unprocessable(Flaw(where, "must be a string"))
    return operand


def _time_text(operand: object, where: str) -> str:
    """The time as the store prints it: UTC, microseconds, `Z`, so that texts compare like times."""
    try:
        if not isinstance(operand, str) or _TIME.fullmatch(operand) is None:
            raise ValueError  # noqa: TRY301  one reason for every wrong form
        moment = datetime.fromisoformat(operand.upper())
    except ValueError as error:
        raise Unprocessable(Flaw(where, "must be a date and time of RFC 3339 with its offset")) from error
    try:
        moment = moment.astimezone(UTC)
    except OverflowError:  # in UTC it is of the year 0 or 10000, which no memory is of: the nearest time compares alike
        moment = _FIRST if moment.year == 1 else _LAST
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ").rjust(27, "0")
