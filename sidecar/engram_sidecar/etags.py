"""If-Match and If-None-Match: header text to conditions (RFC 9110 sections 8.8.3 and 13.1). Pure.

Comparison is strong, so a weak tag (`W/"..."`) never matches; it is taken in If-None-Match of a read, as the RFC says.
"""

import re
from collections.abc import Sequence
from typing import Final

from engram_sidecar.errors import BadRequest
from engram_sidecar.records import Conditions, ETag

_TAG: Final = re.compile(r'\s*(W/)?"([\x21\x23-\x7e\x80-\xff]*)"\s*')
_OURS: Final = re.compile(r"([0-9a-f]{1,15})-([0-9a-f]{1,13})")
# Stands for a well-formed tag that no memory has: it compares unequal to all.
_NOBODYS: Final = ETag(0, 0)


def parse_tags(header: str, field: str, *, weak: bool = False) -> tuple[ETag, ...] | None:
    """The tags of a header's value, None for `*`. Raises BadRequest for anything else.

    With `weak`, a weak tag counts as its strong twin.
    """
    if header.strip() == "*":
        return None
    tags: list[ETag] = []
    position = 0
    while True:
        match = _TAG.match(header, position)
        if match is None:
            reason = f'{field} takes "*" or entity tags in double quotes, separated by commas'
            raise BadRequest(reason)
        ours = _OURS.fullmatch(match[2])
        is_comparable = ours is not None and (weak or match[1] is None)
        tags.append(ETag(int(ours[1], 16), int(ours[2], 16)) if ours and is_comparable else _NOBODYS)
        position = match.end()
        if position == len(header):
            return tuple(tags)
        if header[position] != ",":
            reason = f"{field}: entity tags are separated by commas"
            raise BadRequest(reason)
        position += 1


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
