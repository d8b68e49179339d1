"""The trace that a request is part of, as its headers say. Pure.

Source: Trace Context, W3C Recommendation of 23 November 2021. What is malformed is ignored: the request then begins a
trace of its own, and its `tracestate` is not looked at.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

MAX_MEMBERS: Final = 32
MAX_STATE_CHARS: Final = 4_096  # 512 at least have to be passed on; nobody's headers are to fill the memory
_PARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_KEY: Final = r"[a-z0-9][-a-z0-9_*/]{0,240}@[a-z][-a-z0-9_*/]{0,13}|[a-z][-a-z0-9_*/]{0,255}"
_MEMBER: Final = re.compile(rf"({_KEY})=([ -+\--<>-~]{{0,255}}[!-+\--<>-~])")
_SAMPLED: Final = 1


@dataclass(frozen=True, slots=True)
class Trace:
    """The caller's span: ids in lower-case hex, whether it is sampled, and its vendors' state as one header."""

    trace_id: str
    span_id: str
    is_sampled: bool
    state: str = ""


def parse_trace(parents: Sequence[str], states: Sequence[str] = ()) -> Trace | None:
    """The trace of these headers; None if there is none, several, or one that is malformed."""
    match = _PARENT.fullmatch(parents[0].strip(" \t")) if len(parents) == 1 else None
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more is not None):
        return None
    if not trace_id.strip("0") or not span_id.strip("0"):
        return None
    return Trace(trace_id, span_id, bool(int(flags, 16) & _SAMPLED), _state(states))


def _state(states: Sequence[str]) -> str:
    """The state as it may be passed on; empty if a member of it is malformed."""
    text = ",".join(states)
    members = [member.strip(" \t") for member in text.split(",")]
    members = [member for member in members if member]
    keys = [match[1] for member in members if (match := _MEMBER.fullmatch(member))]
    if len(text) > MAX_STATE_CHARS or len(members) > MAX_MEMBERS or len(keys) < len(members):
        return ""
    return "" if len(set(keys)) < len(keys) else ",".join(members)
