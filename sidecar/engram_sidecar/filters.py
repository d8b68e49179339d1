"""Typed filters: a JSON object of conditions to one jsonpath predicate; its operands are variables, never its text.

A filter is `{field: condition}`, all of which must hold. Fields are importance, created, updated, expires, type,
user, agent, session, key, and value, which takes `{name: condition}` for members of the memory's JSON value; a name
that begins with `/` is a JSON pointer (RFC 6901) into it, digits in it an array index. A condition is a scalar
(equal) or an object of operators. Types never mix: 9 is neither "9" nor true, `ne` holds where the member is missing
or of another type, the others do not. jsonpath in strict mode gives exactly that: a mismatch is `unknown`.

The value of an encrypted memory is nothing to the store: there the predicate covers the other fields, and judging.py
judges the conditions on the value. Pure.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
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


# A member's name, or an array's index.
Steps = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition on the member of the value that the steps lead to; of `in` the operand is a tuple."""

    steps: Steps
    operator: str
    operand: object


@dataclass(frozen=True, slots=True)
class Filter:
    """A parsed filter: `path` covers all of it, `fields_path` what is not of the value, `conditions` what is.

    Paths are jsonpath predicates, None where there is nothing to judge; their variables are JSON text. Those of the
    fields hold no word of a condition on the value.
    """

    path: str | None = None
    fields_path: str | None = None
    variables: str = "{}"
    fields_variables: str = "{}"
    conditions: tuple[Condition, ...] = ()


NO_FILTER: Final = Filter()


class _Builder:
    """Gathers predicates and their variables."""

    def __init__(self) -> None:
        self.predicates: list[str] = []
        self.variables: dict[str, object] = {}
        self.conditions: list[Condition] = []
        self.of_fields: list[str] = []
        self.fields_variables: dict[str, object] = {}

    def variable(self, value: object) -> str:
        name = f"v{len(self.variables)}"
        self.variables[name] = value
        return f"${name}"

    def add(self, target: str, steps: Steps | None, operator: str, operand: object) -> None:
        begin = len(self.variables)
        self._add(target, operator, operand)
        if steps is None:
            self.of_fields.append(self.predicates[-1])
            self.fields_variables.update(list(self.variables.items())[begin:])
        else:
            self.conditions.append(Condition(steps, operator, tuple(operand) if isinstance(operand, list) else operand))

    def _add(self, target: str, operator: str, operand: object) -> None:
        if operator == "ne":
            equal = f"{target} == {self.variable(operand)}"
            self.predicates.append(f"(!({equal}) || ({equal}) is unknown)")
        elif operator == "in":
            assert isinstance(operand, list)  # noqa: S101  checked by _operands
            choices = " || ".join(f"{target} == {self.variable(item)}" for item in operand)
            self.predicates.append(f"({choices or '1 == 2'})")
        else:
            self.predicates.append(f"({target} {_SIGNS[operator]} {self.variable(operand)})")


def parse_filter(document: object, place: str = "/filter") -> Filter:
    """The filter of a document. Raises Unprocessable."""
    if not isinstance(document, dict):
        raise Unprocessable(Flaw(place, "must be an object of conditions"))
    builder = _Builder()
    for target, steps, condition, where in _conditions(document, place):
        kind = "any" if steps is not None else FIELD_KINDS[target.removeprefix("$.")]
        for operator, operand in _operands(condition, kind, where):
            builder.add(target, steps, operator, operand)
            if len(builder.predicates) > MAX_CONDITIONS:
                raise Unprocessable(Flaw(place, f"at most {MAX_CONDITIONS} conditions"))
    return Filter(
        _path(builder.predicates),
        _path(builder.of_fields),
        json.dumps(builder.variables, ensure_ascii=False),
        json.dumps(builder.fields_variables, ensure_ascii=False),
        tuple(builder.conditions),
    )


def _path(predicates: list[str]) -> str | None:
    return "strict " + " && ".join(predicates) if predicates else None


def _conditions(document: dict[str, object], place: str) -> Iterator[tuple[str, Steps | None, object, str]]:
    """(its jsonpath, its steps within the value, condition, pointer) of each member that is asked about."""
    for field, condition in document.items():
        where = pointer(place, field)
        if field not in _FIELDS:
            raise Unprocessable(Flaw(where, f"is not a field of a filter; there are {', '.join(_FIELDS)}"))
        if field == "value":
            if not isinstance(condition, dict):
                raise Unprocessable(Flaw(where, "must be an object: member of the value -> condition"))
            for name, inner in condition.items():
                inside = pointer(where, name)
                steps = _steps(name, inside)
                yield "$.value" + "".join(map(_step_path, steps)), steps, inner, inside
        else:
            yield f"$.{field}", None, condition, where


def _step_path(step: str | int) -> str:
    return f"[{step}]" if isinstance(step, int) else "." + json.dumps(step, ensure_ascii=False)


def _steps(name: str, where: str) -> Steps:
    if len(name.encode()) > MAX_NAME_BYTES:
        raise Unprocessable(Flaw(where[:100], f"is a name of more than {MAX_NAME_BYTES} bytes"))
    if not name.startswith("/"):
        return (name,)
    steps: list[str | int] = []
    tokens = name[1:].split("/")
    if len(tokens) > MAX_STEPS:
        raise Unprocessable(Flaw(where, f"is a JSON pointer of more than {MAX_STEPS} steps"))
    for token in tokens:
        if re.search(r"~(?![01])", token):
            raise Unprocessable(Flaw(where, "is not a JSON pointer: ~ stands only in ~0 and ~1"))
        plain = token.replace("~1", "/").replace("~0", "~")
        steps.append(int(plain) if _INDEX.fullmatch(plain) else plain)
    return tuple(steps)


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
