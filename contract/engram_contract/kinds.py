"""The kinds of members in resources and documents: what they take, in which bounds, and in which unit they end.

Each is a frozen value, so a test can read its bounds and hold a CRD against them. Pure; standard library only.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from engram_contract.parse import Border, Kind, Refused, joined, shown
from engram_contract.quantities import (
    BYTES_PATTERN,
    CPU_PATTERN,
    CRON_PATTERN,
    DURATION_PATTERN,
    bytes_of,
    millicores_of,
    schedule_of,
    seconds_of,
)

T = TypeVar("T")

MAX_INT64: Final = 2**63 - 1
MAX_AMOUNT_CHARS: Final = 100  # the longest schedule that still reads as one; amounts and durations are far below
LABEL_PATTERN: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"  # RFC 1123 label, as Kubernetes writes it
SUBDOMAIN_PATTERN: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"


@dataclass(frozen=True, slots=True)
class Text:
    """Text of `min_chars` to `max_chars` characters that matches the pattern, which `form` says in words."""

    max_chars: int
    pattern: str = ""
    form: str = ""
    min_chars: int = 1
    suffix: str = ""

    def read(self, value: object, border: Border) -> str:  # noqa: ARG002  the signature of every kind
        """The text itself."""
        if not isinstance(value, str):
            raise Refused("", f"{shown(value)} is no text; quote it")
        if not self.min_chars <= len(value) <= self.max_chars:
            raise Refused("", f"has {len(value)} characters, not {self.min_chars} to {self.max_chars}")
        if self.pattern and re.fullmatch(self.pattern, value) is None:
            raise Refused("", f"{shown(value)} is not {self.form}")
        return value


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number within bounds, both included; the unit stands in the field's name."""

    low: int
    high: int
    suffix: str = ""

    def read(self, value: object, border: Border) -> int:  # noqa: ARG002  the signature of every kind
        """The number itself."""
        if isinstance(value, bool) or not isinstance(value, int):
            raise Refused("", f"{shown(value)} is no whole number")
        if not self.low <= value <= self.high:
            raise Refused("", f"{shown(value)} is not within {self.low} to {self.high}")
        return value


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of a few whole numbers."""

    numbers: tuple[int, ...]
    suffix: str = ""

    def read(self, value: object, border: Border) -> int:  # noqa: ARG002  the signature of every kind
        """The number itself."""
        if isinstance(value, bool) or not isinstance(value, int) or value not in self.numbers:
            raise Refused("", f"{shown(value)} is none of {', '.join(map(str, self.numbers))}")
        return value


@dataclass(frozen=True, slots=True)
class Bytes:
    """An amount of bytes such as `10Gi`, within bounds in bytes."""

    low: int
    high: int
    suffix: str = "_bytes"
    pattern: str = BYTES_PATTERN

    def read(self, value: object, border: Border) -> int:  # noqa: ARG002  the signature of every kind
        """The bytes."""
        amount = _amount(value, bytes_of, per_unit=1)
        if not self.low <= amount <= self.high:
            raise Refused("", f"{shown(value)} is not within {self.low} to {self.high} bytes")
        return amount


@dataclass(frozen=True, slots=True)
class Cpu:
    """An amount of CPU such as `500m`, at least a thousandth and at most 1,000 cores."""

    suffix: str = "_millis"
    pattern: str = CPU_PATTERN

    def read(self, value: object, border: Border) -> int:  # noqa: ARG002  the signature of every kind
        """The thousandths of a core."""
        amount = _amount(value, millicores_of, per_unit=1000)
        if not 1 <= amount <= 1_000_000:  # noqa: PLR2004  1,000 cores: the docstring names both
            raise Refused("", f"{shown(value)} is not within 1m to 1000 cores")
        return amount


@dataclass(frozen=True, slots=True)
class Duration:
    """A span of time such as `30d` or `1d12h`."""

    suffix: str = "_s"
    pattern: str = DURATION_PATTERN

    def read(self, value: object, border: Border) -> int:  # noqa: ARG002  the signature of every kind
        """The seconds."""
        if not isinstance(value, str):
            raise Refused("", f"{shown(value)} is no duration: write text such as 30d or 0s")
        return _translated(seconds_of, value)


@dataclass(frozen=True, slots=True)
class Schedule:
    """A cron schedule in UTC."""

    suffix: str = ""
    pattern: str = CRON_PATTERN

    def read(self, value: object, border: Border) -> str:  # noqa: ARG002  the signature of every kind
        """The schedule as it was written."""
        if not isinstance(value, str):
            raise Refused("", f"{shown(value)} is no schedule: write text such as '0 2 * * *'")
        return _translated(schedule_of, value)


@dataclass(frozen=True, slots=True)
class Items:
    """A list of at most `max_items`; no two share the field `key`, or are equal if it is empty."""

    item: Kind
    max_items: int
    key: str | None = None
    suffix: str = ""

    def read(self, value: object, border: Border) -> tuple[object, ...]:
        """The items, in their order."""
        if not isinstance(value, list | tuple):
            raise Refused("", f"{shown(value)} is no list")
        if len(value) > self.max_items:
            raise Refused("", f"has {len(value)} items, more than {self.max_items}")
        items = tuple(self._read_one(index, given, border) for index, given in enumerate(value))
        if self.key is not None:
            self._refuse_twins(items)
        return items

    def _read_one(self, index: int, given: object, border: Border) -> object:
        try:
            return self.item.read(given, border)
        except Refused as refused:
            raise refused.under(f"[{index}]") from None

    def _refuse_twins(self, items: tuple[object, ...]) -> None:
        seen = set()
        for index, item in enumerate(items):
            identity = getattr(item, self.key) if self.key else item
            if identity in seen:
                raise Refused(joined(f"[{index}]", self.key or ""), f"{shown(identity)} stands twice")
            seen.add(identity)


@dataclass(frozen=True, slots=True)
class Pairs:
    """A mapping of names to texts, at most `max_items`; whole numbers, if taken, become their text."""

    name: Text
    text: Text
    max_items: int
    takes_numbers: bool = False
    suffix: str = ""

    def read(self, value: object, border: Border) -> tuple[tuple[str, str], ...]:
        """The pairs, sorted by name."""
        if not isinstance(value, Mapping):
            raise Refused("", f"{shown(value)} is no mapping")
        if len(value) > self.max_items:
            raise Refused("", f"has {len(value)} members, more than {self.max_items}")
        pairs = []
        for name, given in value.items():
            key = self.name.read(name, border)
            if given is None and border.null_is_absent:
                continue
            try:
                pairs.append((key, self.text.read(self._as_text(given), border)))
            except Refused as refused:
                raise refused.under(key) from None
        return tuple(sorted(pairs))

    def _as_text(self, given: object) -> object:
        is_number = isinstance(given, int) and not isinstance(given, bool) and abs(given) <= MAX_INT64
        return str(given) if self.takes_numbers and is_number else given


def _amount(value: object, read: Callable[[str], int], per_unit: int) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value * per_unit
    if not isinstance(value, str):
        raise Refused("", f"{shown(value)} is no amount: write text such as '500m', '0.5' or '10Gi'")
    return _translated(read, value)


def _translated(read: Callable[[str], T], value: str) -> T:
    if len(value) > MAX_AMOUNT_CHARS:
        raise Refused("", f"has {len(value)} characters, more than {MAX_AMOUNT_CHARS}")
    try:
        return read(value)
    except ValueError as error:
        raise Refused("", str(error)) from None
