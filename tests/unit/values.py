"""Values and filters that meet often, so that a property of both is not tried on misses alone."""

import json
import math

from hypothesis import strategies as st

NAMES = st.sampled_from(["a", "b", "", "0", "a/b", "~", 'q"', "\u00e9"])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(
        [0, 1, -1, 10, 1.0, -0.0, 0.1, 1.5, 1e22, 10**18, 2**53, 2**53 + 1, float(2**53), 1e-7, 5e-324, 1.7e308]
    ),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["", "a", "b", "1", "true", "\uffff", "\U00010000", "\u00e9", "Z", "ab"]),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=6
)


@st.composite
def filters_and_values(draw: st.DrawFn) -> tuple[dict[str, object], object]:
    """A filter on `value`, and a value of which it often asks for what is there."""
    value = draw(st.dictionaries(NAMES, VALUES, max_size=3) | st.lists(VALUES, max_size=3) | SCALARS)
    conditions: dict[str, object] = {}
    for _ in range(draw(st.integers(1, 2))):
        steps, there = _way(draw, value)
        operator = draw(st.sampled_from(["eq", "ne", "gt", "gte", "lt", "lte", "in"]))
        is_scalar = not isinstance(there, dict | list)
        operand = there if is_scalar and draw(st.booleans()) else draw(SCALARS)
        if isinstance(operand, int | float) and not isinstance(operand, bool) and draw(st.booleans()):
            operand = _alike(operand)
        choices = [operand, draw(SCALARS)] if draw(st.booleans()) else [draw(SCALARS)]
        conditions[_pointer(steps)] = {operator: choices if operator == "in" else operand}
    return {"value": conditions}, value


def _way(draw: st.DrawFn, value: object) -> tuple[list[str | int], object]:
    """Steps into the value, and what is there: mostly something."""
    steps: list[str | int] = []
    while isinstance(value, dict | list) and value and (not steps or draw(st.booleans())):
        if isinstance(value, dict):
            step: str | int = draw(st.sampled_from(sorted(value)))
        else:
            step = draw(st.integers(0, len(value) - 1))
        value = value[step]  # type: ignore[index]
        steps.append(step)
    if not steps or draw(st.integers(0, 9)) == 0:
        steps.append(draw(NAMES | st.integers(0, 2)))
        return steps, None
    return steps, value


def _alike(number: float) -> float:
    """The same number as another type, where there is one."""
    if isinstance(number, int):
        return float(number)
    whole = math.isfinite(number) and number == int(number) and abs(number) < 2**63
    return int(number) if whole else number


def _pointer(steps: list[str | int]) -> str:
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)


def as_json(value: object) -> str:
    """The value's text as a sidecar stores it."""
    return json.dumps(value, ensure_ascii=False)
