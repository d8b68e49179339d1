"""Untrusted mappings become frozen dataclasses here, once, driven by the dataclasses' own annotations.

A field's type tells how its member is read: `bool`, a StrEnum and a dataclass speak for themselves, the rest says it
with a kind in `Annotated[...]` (kinds.py). A field without a default is required; `X | None` may be left out.

Promises
1. Whatever comes in, a parse ends in a value whose every field has its type and bounds, or in `Refused` with the path.
2. A default stands in one place, the dataclass; a name too: `size_bytes` is the member `size`, written with its unit.
3. `members_of` is the very table that the parser uses, so a test can hold a CRD against it.

Pure; standard library only.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import StrEnum
from functools import cache
from types import NoneType
from typing import Annotated, Any, Final, NoReturn, Protocol, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")

FORMAT: Final = 1  # of documents; raised when the meaning of a member changes, while new members may come without
_SHOWN_CHARS: Final = 60  # of a wrong value in a message: enough to find it, too little to fill a log


class Refused(ValueError):
    """A value is not what its field takes: `path` names the field, `reason` says why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}" if path else reason)
        self.path = path
        self.reason = reason

    def under(self, parent: str) -> "Refused":
        """The same refusal, seen from the parent's side."""
        return Refused(joined(parent, self.path), self.reason)


@dataclass(frozen=True, slots=True)
class Border:
    """How strict a door is. People write resources; the other plane, perhaps a newer one, writes documents."""

    camel_case: bool
    ignores_unknown: bool
    null_is_absent: bool  # the API server drops a null before it sets defaults


RESOURCE: Final = Border(camel_case=True, ignores_unknown=False, null_is_absent=True)
DOCUMENT: Final = Border(camel_case=False, ignores_unknown=True, null_is_absent=False)


class Kind(Protocol):
    """How one member is read."""

    @property
    def suffix(self) -> str:
        """The unit that the field's name has and a resource's member has not, such as `_s`; empty if none."""

    def read(self, value: object, border: Border) -> object:
        """The value in our units; raises Refused."""


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false."""

    suffix: str = ""

    def read(self, value: object, border: Border) -> bool:  # noqa: ARG002  the signature of every kind
        """The flag itself."""
        if not isinstance(value, bool):
            raise Refused("", f"{shown(value)} is neither true nor false")
        return value


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the words of an enumeration."""

    enum: type[StrEnum]
    suffix: str = ""

    def read(self, value: object, border: Border) -> StrEnum:  # noqa: ARG002  the signature of every kind
        """The member of the enumeration with this word."""
        words = [word.value for word in self.enum]
        if not isinstance(value, str) or value not in words:
            raise Refused("", f"{shown(value)} is none of {', '.join(words)}{near_miss(value, words)}")
        return self.enum(value)


@dataclass(frozen=True, slots=True)
class Section:
    """A mapping that becomes a dataclass."""

    cls: type
    suffix: str = ""

    def read(self, value: object, border: Border) -> object:
        """The dataclass of this mapping."""
        return parse(self.cls, value, border)


@dataclass(frozen=True, slots=True)
class Member:
    """One field of a dataclass as the border sees it. `default` is MISSING if the member is required."""

    field: str
    kind: Kind
    is_optional: bool
    default: Any

    def name(self, border: Border) -> str:
        """The member's name: camelCase without the unit in a resource, the field's own in a document."""
        if not border.camel_case:
            return self.field
        first, *rest = self.field.removesuffix(self.kind.suffix).split("_")
        return first + "".join(word.capitalize() for word in rest)


def parse(cls: type[T], value: object, border: Border, **given_fields: object) -> T:
    """The dataclass written in this mapping; raises Refused with the path of the first member that is wrong.

    Fields given by keyword come from elsewhere: the mapping has no member for them.
    """
    if not isinstance(value, Mapping):
        raise Refused("", f"{shown(value)} is no mapping")
    known = members_of(cls)  # type: ignore[arg-type]  # a class is hashable; mypy doubts it for type[T]
    members = {member.name(border): member for member in known if member.field not in given_fields}
    if not border.ignores_unknown:
        refuse_unknown(value, members)
    arguments = dict(given_fields)
    for name, member in members.items():
        given = value.get(name)
        if given is None and (name not in value or border.null_is_absent or member.is_optional):
            if member.default is MISSING:
                raise Refused(name, "is required")
            continue
        try:
            arguments[member.field] = member.kind.read(given, border)
        except Refused as refused:
            raise refused.under(name) from None
    return cls(**arguments)


@cache
def members_of(cls: type) -> tuple[Member, ...]:
    """What a mapping may hold to become this dataclass, in the order of its fields."""
    if not is_dataclass(cls):
        raise TypeError(f"{cls.__name__} is no dataclass")
    hints = get_type_hints(cls, include_extras=True)
    return tuple(
        Member(field.name, *_kind_of(hints[field.name]), _default_of(field.default, field.default_factory))
        for field in fields(cls)
        if field.init
    )


def document_of(value: object) -> Any:  # noqa: ANN401  JSON has no narrower type
    """The JSON form of a dataclass whose fields keep their names; `parse(..., DOCUMENT)` reads it back."""
    if is_dataclass(value) and not isinstance(value, type):
        return {member.field: document_of(getattr(value, member.field)) for member in members_of(type(value))}
    if isinstance(value, tuple):
        return [document_of(item) for item in value]
    return value


def read_document(cls: type[T], text: str, max_chars: int) -> T:
    """The dataclass that `write_document` wrote; members it does not know are passed over. Raises Refused."""
    document = loads(text, max_chars)
    if not isinstance(document, Mapping):
        raise Refused("", f"the text holds {shown(document)}, not an object")
    written = document.get("format")
    if written != FORMAT or isinstance(written, bool):
        raise Refused("format", f"{shown(written)} is not {FORMAT}, the only one that is understood here")
    return parse(cls, document, DOCUMENT)


def write_document(value: object) -> str:
    """A dataclass as one line of JSON; equal values give equal texts."""
    return json.dumps({"format": FORMAT} | document_of(value), separators=(",", ":"))


def loads(text: str, max_chars: int) -> object:
    """The value of a JSON text (RFC 8259: no NaN, no name twice in an object); raises Refused."""
    if len(text) > max_chars:
        raise Refused("", f"the text has {len(text)} characters, more than {max_chars}")
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise Refused("", "the text is nested too deep") from None
    except Refused:
        raise
    except ValueError as error:
        raise Refused("", f"the text is no JSON: {error}") from None


def refuse_unknown(value: Mapping[Any, object], known: Iterable[str]) -> None:
    """Nothing; raises Refused if the mapping has a member whose name is not known."""
    names = list(known)
    for name in value:
        if not isinstance(name, str):
            raise Refused("", f"the name of a member must be text, not {shown(name)}")
        if name not in names:
            raise Refused(name, f"unknown field{near_miss(name, names)}")


def near_miss(word: object, known: Iterable[str]) -> str:
    """`; did you mean ...?` if a known word is near, else nothing."""
    if not isinstance(word, str):
        return ""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word[:_SHOWN_CHARS].lower(), by_lower, n=1)
    return f"; did you mean {by_lower[near[0]]}?" if near else ""


def joined(parent: str, child: str) -> str:
    """The path of a child, given as `name` or `[index]`, below its parent."""
    return f"{parent}{'.' if parent and child and not child.startswith('[') else ''}{child}"


def shown(value: object) -> str:
    """A short form of a wrong value for a message."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, int) and abs(value) > 1 << 63:
        return "a number beyond 64 bits"  # and perhaps beyond the digits that Python prints
    text = ascii(value[:_SHOWN_CHARS] if isinstance(value, str | bytes) else value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."


def _kind_of(hint: Any) -> tuple[Kind, bool]:  # noqa: ANN401  annotations have no common type
    kind = next((extra for extra in get_args(hint)[1:] if hasattr(extra, "read")), None)
    plain = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    choices = get_args(plain)
    is_optional = NoneType in choices and get_origin(plain) is not tuple
    if is_optional:
        plain = next(choice for choice in choices if choice is not NoneType)
    if kind is not None:
        return kind, is_optional
    if plain is bool:
        return Flag(), is_optional
    if isinstance(plain, type) and issubclass(plain, StrEnum):
        return Choice(plain), is_optional
    if is_dataclass(plain) and isinstance(plain, type):
        return Section(plain), is_optional
    raise TypeError(f"{hint} needs a kind")


def _default_of(default: object, factory: Any) -> object:  # noqa: ANN401  dataclasses type it so
    return factory() if factory is not MISSING else default


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Refused("", f"the member {shown(twice)} stands twice in one object")
    return members


def _no_constant(name: str) -> NoReturn:
    raise Refused("", f"{name} is no JSON number")
