"""If-Match and If-None-Match: header text to conditions (RFC 9110 sections 8.8.3 and 13.1). Pure.

Comparison is strong, so a weak tag (`W/"..."`) never matches; it is taken in If-None-Match of a read, as the RFC says.
Empty elements of a list are passed over (section 5.6.1.2), a list of nothing else is refused.
"""

import re
from collections.abc import Sequence
from typing import Final

from engram_sidecar.errors import BadRequest
from engram_sidecar.records import Conditions, ETag

_TAG: Final = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')
_ELEMENT: Final = rf"[ \t]*(?:{_TAG.pattern}[ \t]*)?"
_LIST: Final = re.compile(f"{_ELEMENT}(?:,{_ELEMENT})*")
# As ETag writes them: a tag of other characters is another tag, also if it means the same numbers.
_OURS: Final = re.compile(r"([1-9a-f][0-9a-f]{0,14})-(0|[1-9a-f][0-9a-f]{0,12})")
# Stands for a well-formed tag that no memory has: it compares unequal to all.
_NOBODYS: Final = ETag(0, 0)


def parse_tags(header: str, field: str, *, weak: bool = False) -> tuple[ETag, ...] | None:
    """The tags of a header's value, None for `*`. Raises BadRequest for anything else.

    With `weak`, a weak tag counts as its strong twin.
    """
    if header.strip(" \t") == "*":
        return None
    found = _TAG.findall(header) if _LIST.fullmatch(header) else []
    if not found:
        reason = f'{field} takes "*" or entity tags in double quotes, separated by commas'
        raise BadRequest(reason)
    return tuple(_to_etag(text) if weak or not mark else _NOBODYS for mark, text in found)


def _to_etag(text: str) -> ETag:
    ours = _OURS.fullmatch(text)
    return ETag(int(ours[1], 16), int(ours[2], 16)) if ours else _NOBODYS


def write_conditions(if_match: Sequence[str], if_none_match: Sequence[str]) -> Conditions:
    """The conditions of a write from the values of its two headers (none, or several that belong together)."""
    must_exist = must_be_absent = False
    matching: tuple[ETag, ...] | None = None
    excluded: tuple[ETag, ...] = ()
    if if_match:
        matching = parse_tags(",".join(if_match), "If-Match")
        must_exist = True
    if if_none_match:
        tags = parse_tags(",".join(if_none_match), "If-None-Match")
        must_be_absent = tags is None
        excluded = tags or ()
    return Conditions(must_exist, must_be_absent, matching, excluded)
