"""JSON documents of the interface to records, and records to documents. Pure: no HTTP, no clock.

Every wrong member of a memory is named at once, by its JSON pointer; of a search, the first kind of flaw.
"""

import base64
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Final
from uuid import UUID

import msgspec

from engram_contract.policy import Limits
from engram_contract.shardmap import ShardMap
from engram_contract.slots import BadMemoryId, MemoryId
from engram_sidecar import jsontext, records
from engram_sidecar.errors import BadRequest, Flaw, Unprocessable, pointer
from engram_sidecar.filters import parse_filter
from engram_sidecar.records import Cursor, Draft, Found, Hit, Memory, Replay, Selection, ShardReport

MAX_TTL_S: Final = 3_155_760_000.0  # 100 years: beyond it the date of expiry would leave every client's calendar
MAX_FLAWS: Final = 20  # enough to mend a body; a hostile one has a hundred thousand
_TYPE: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_EXPONENT: Final = re.compile(rb"e(?<=[0-9]e)[-+]?[0-9]{2}")  # begins with the letter: a class of them is slow to find
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"')
_ENCODE: Final = msgspec.json.Encoder().encode


class _Wrong(ValueError):
    """One member is wrong; the message says how."""


def encode(document: object) -> bytes:
    """The document as JSON in UTF-8."""
    return _ENCODE(document)


def _text(value: object, max_bytes: int, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        reason = "must be a string"
        raise _Wrong(reason)
    if not value and not may_be_empty:
        reason = "must not be empty"
        raise _Wrong(reason)
    if not jsontext.is_storable(value):
        reason = "must not hold U+0000 or a lone surrogate"
        raise _Wrong(reason)
    if len(value) * 4 > max_bytes and len(value.encode()) > max_bytes:
        reason = f"must be at most {max_bytes} bytes of UTF-8"
        raise _Wrong(reason)
    return value


def _optional_text(value: object, max_bytes: int) -> str | None:
    return None if value is None else _text(value, max_bytes)


def _required_text(value: object, max_bytes: int) -> str:
    if value is None:
        reason = "is required"
        raise _Wrong(reason)
    return _text(value, max_bytes)


def _type(value: object) -> str:
    if not isinstance(value, str) or _TYPE.fullmatch(value) is None:
        reason = "must be 1 to 63 of a-z, 0-9, _ and -, a letter first"
        raise _Wrong(reason)
    return value


def _namespace(value: object, limits: Limits) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        reason = "must be an array of strings"
        raise _Wrong(reason)
    if len(value) > limits.namespace_segments:
        reason = f"must have at most {limits.namespace_segments} parts"
        raise _Wrong(reason)
    parts = tuple(_text(part, limits.namespace_segment_bytes) for part in value)
    if sum(len(part.encode()) for part in parts) > limits.namespace_bytes:
        reason = f"must be at most {limits.namespace_bytes} bytes of UTF-8 in all"
        raise _Wrong(reason)
    return parts


def _number(value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        reason = "must be a number"
        raise _Wrong(reason)
    if not low <= value <= high:
        reason = f"must be from {low:g} to {high:g}"
        raise _Wrong(reason)
    return float(value)


def _ttl(value: object) -> float | None:
    if value is None:
        return None
    seconds = _number(value, 0, MAX_TTL_S)
    if seconds < 1e-6:  # noqa: PLR2004  a microsecond is what the store can tell apart
        reason = "must be greater than 0"
        raise _Wrong(reason)
    return seconds


def _value(value: object, limits: Limits) -> str:
    text = encode(value)
    # The store prints a double without its exponent, in up to 330 digits, and so it counts.
    exponents = len(_EXPONENT.findall(_STRING.sub(b"", text))) if _EXPONENT.search(text) else 0
    if len(text) + 330 * exponents > limits.value_bytes:
        reason = f"must be at most {limits.value_bytes} bytes of JSON"
        raise _Wrong(reason)
    return text.decode()


@cache
def _checks(limits: Limits) -> dict[str, Callable[[object], object]]:
    """Member -> what makes a checked value of it or raises _Wrong."""
    return {
        "content": lambda v: _text(v, limits.content_bytes, may_be_empty=True),
        "value": lambda v: _value(v, limits),
        "type": _type,
        "user": lambda v: _optional_text(v, limits.name_bytes),
        "agent": lambda v: _optional_text(v, limits.name_bytes),
        "session": lambda v: _optional_text(v, limits.name_bytes),
        "namespace": lambda v: _namespace(v, limits),
        "key": lambda v: _optional_text(v, limits.key_bytes),
        "importance": lambda v: None if v is None else _number(v, 0, 1),
        "ttl_s": _ttl,
    }


def _check_each(
    members: Iterable[tuple[str, object]],
    checks: Mapping[str, Callable[[object], object]],
    to_flaw: Callable[[str, str], Flaw],
) -> dict[str, object]:
    """The checked values of the members. Raises Unprocessable with every flaw, the first MAX_FLAWS of them."""
    checked: dict[str, object] = {}
    flaws: list[Flaw] = []
    for member, value in members:
        if len(flaws) == MAX_FLAWS:
            break
        if member not in checks:
            flaws.append(to_flaw(member, f"is not a member; there are {', '.join(checks)}"))
            continue
        try:
            checked[member] = checks[member](value)
        except _Wrong as wrong:
            flaws.append(to_flaw(member, str(wrong)))
    if flaws:
        raise Unprocessable(*flaws)
    return checked


def _in_body(place: str) -> Callable[[str, str], Flaw]:
    return lambda member, detail: Flaw(pointer(place, member), detail)


def _in_query(member: str, detail: str) -> Flaw:
    return Flaw(member, detail, is_parameter=True)


def parse_draft(document: object, limits: Limits, place: str = "", *, without: Sequence[str] = ()) -> Draft:
    """What a write body wants stored; `without` are members that the address already tells. Raises Unprocessable."""
    if not isinstance(document, dict):
        raise Unprocessable(Flaw(place, "must be an object"))
    checks = {member: check for member, check in _checks(limits).items() if member not in without}
    checked = _check_each(document.items(), checks, _in_body(place))
    return Draft(**checked)  # type: ignore[arg-type]  # each member went through its check


def draft_document(memory: Memory) -> dict[str, object]:
    """The write members of a stored memory, for a merge patch: all but the time to live, which a patch may set anew."""
    return {
        "content": memory.content,
        "value": jsontext.parse_stored(memory.value),
        "type": memory.type,
        "user": memory.user,
        "agent": memory.agent,
        "session": memory.session,
        "namespace": list(memory.namespace),
        "key": memory.key,
        "importance": memory.importance,
    }


def merge_patch(target: object, patch: object) -> object:
    """RFC 7396: the target with the patch applied; null removes a member."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def apply_patch(memory: Memory, patch: object, limits: Limits, place: str = "") -> Draft:
    """The memory's members with the patch applied, checked. A member that the patch removes gets its default."""
    if not isinstance(patch, dict):
        raise Unprocessable(Flaw(place, "must be an object: a JSON merge patch"))
    return parse_draft(merge_patch(draft_document(memory), patch), limits, place)


def parse_id(text: str) -> MemoryId | None:
    """The id, or None if no memory can have it."""
    try:
        return MemoryId.parse(text)
    except BadMemoryId:
        return None


def parse_selection(document: Mapping[str, object], limits: Limits, place: str, *, is_query: bool = False) -> Selection:
    """The members user, agent, session, type, namespace and filter of a list or a search. Raises Unprocessable."""
    asked = [
        (member, document[member])
        for member in ("user", "agent", "session", "type", "namespace")
        if member in document and (document[member] is not None or member == "namespace")
    ]
    found = _check_each(asked, _checks(limits), _in_query if is_query else _in_body(place))
    return Selection(**found, filter=parse_filter(document.get("filter", {}), f"{place}/filter"))  # type: ignore[arg-type]


def parse_search(document: object, limits: Limits) -> tuple[str, Selection, int]:
    """(query, selection, limit) of a search body. Raises Unprocessable."""
    members = ("query", "user", "agent", "session", "type", "namespace", "filter", "limit")
    if not isinstance(document, dict):
        raise Unprocessable(Flaw("", "must be an object"))
    unknown = [pointer("", member) for member in document if member not in members][:MAX_FLAWS]
    if unknown:
        raise Unprocessable(*(Flaw(place, f"is not a member; there are {', '.join(members)}") for place in unknown))
    try:
        query = _text(document.get("query", ""), limits.query_bytes, may_be_empty=True)
    except _Wrong as wrong:
        raise Unprocessable(Flaw("/query", str(wrong))) from wrong
    selection = parse_selection(document, limits, "")
    return query, selection, parse_limit(document.get("limit", 10), limits.search_results, "/limit")


def parse_name(user: str | None, namespace: Sequence[str], key: object, limits: Limits) -> Draft:
    """A draft that has only a name. Raises Unprocessable that names query parameters."""
    named = (("user", user), ("namespace", namespace), ("key", key))
    checks = {**_checks(limits), "key": lambda value: _required_text(value, limits.key_bytes)}
    return Draft(**_check_each(named, checks, _in_query))  # type: ignore[arg-type]  # as in parse_draft


def parse_limit(value: object, highest: int, place: str, *, is_parameter: bool = False) -> int:
    """A number of results, 1 to `highest`. Raises Unprocessable."""
    if is_parameter and isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:  # noqa: PLR2004
        value = int(value)
    if isinstance(value, float) and value.is_integer():  # 10.0 is the integer 10 to JSON Schema, as 10 is
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= highest:
        raise Unprocessable(Flaw(place, f"must be an integer from 1 to {highest}", is_parameter=is_parameter))
    return value


def timestamp(moment: datetime | None) -> str | None:
    """RFC 3339 in UTC with microseconds and `Z`, so that texts compare like times."""
    if moment is None:
        return None
    at = moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    return at.isoformat(timespec="microseconds")[:-6] + "Z"


def write_cursor(cursor: Cursor) -> str:
    """The cursor as opaque text."""
    return base64.urlsafe_b64encode(f"{records.unix_us(cursor.created)}.{cursor.id}".encode()).decode().rstrip("=")


def parse_cursor(text: str) -> Cursor:
    """The cursor that write_cursor wrote. Raises BadRequest."""
    try:
        micros, _, uuid = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True).decode().partition(".")
        return Cursor(records.from_unix_us(int(micros)), str(UUID(uuid)))
    except (ValueError, OverflowError) as error:
        reason = "cursor: take it from `next` of the page before, unchanged"
        raise BadRequest(reason) from error


def _as_sent(value: str) -> object:
    """The value's JSON text from the store, with long numbers in the short form that they were sent in.

    `jsonb` prints 1e22 as 23 digits and 5e-324 as 326, of which a caller could not send the first back.
    """
    raw = value.encode()
    return jsontext.parse_stored(value) if jsontext.has_long_number(raw) else msgspec.Raw(raw)


def memory_document(memory: Memory, shard: str) -> dict[str, object]:
    """The memory as the interface shows it. Raises ValueError for one that nobody opened: it is not empty."""
    if memory.sealed is not None:
        raise ValueError(memory.id)
    return {
        "id": str(memory.id),
        "shard": shard,
        "namespace": memory.namespace,
        "key": memory.key,
        "type": memory.type,
        "user": memory.user,
        "agent": memory.agent,
        "session": memory.session,
        "content": memory.content,
        "value": _as_sent(memory.value),
        "importance": memory.importance,
        "created": timestamp(memory.created),
        "updated": timestamp(memory.updated),
        "expires": timestamp(memory.expires),
        "version": memory.version,
        "etag": str(memory.etag),
    }


class _Named(msgspec.Struct):
    user: str | None
    namespace: tuple[str, ...]
    key: str | None


_DECODE_NAMED: Final = msgspec.json.Decoder(_Named).decode


def named_in(document: bytes) -> tuple[str | None, tuple[str, ...], str | None]:
    """User, namespace and key of a memory's document."""
    named = _DECODE_NAMED(document)
    return named.user, named.namespace, named.key


def replay_document(replay: Replay, shard: str) -> dict[str, object]:
    """What a write came to, told again: the memory as it was then, or which state of it that was if it is gone."""
    if replay.memory is not None:
        return memory_document(replay.memory, shard)
    version = None if replay.etag is None else replay.etag.version
    return {"id": str(replay.id), "shard": shard, "version": version, "etag": str(replay.etag)}


def _hit_document(hit: Hit) -> dict[str, object]:
    legs = {} if hit.score is None else {"lexical": hit.score}
    return {**memory_document(hit.memory, hit.shard), "score": hit.score, "legs": legs}


def page_document(found: Found) -> dict[str, object]:
    """The answer of a list."""
    return {
        "memories": [memory_document(hit.memory, hit.shard) for hit in found.hits],
        "next": None if found.next is None else write_cursor(found.next),
        **_completeness(found),
    }


def results_document(found: Found) -> dict[str, object]:
    """The answer of a search."""
    return {
        "results": [_hit_document(hit) for hit in found.hits],
        "legs": list(found.legs),
        "truncated": found.is_truncated,
        **_completeness(found),
    }


def _completeness(found: Found) -> dict[str, object]:
    return {
        "complete": not found.failures and not found.refused,
        "failed_shards": [{"shard": failure.shard, "reason": failure.reason} for failure in found.failures],
        "refused": [
            {"id": str(hit.memory.id), "shard": hit.shard, "reason": str(hit.refusal)} for hit in found.refused
        ],
    }


def shards_document(shard_map: ShardMap, reports: Sequence[ShardReport]) -> dict[str, object]:
    """The map, and what is known of its shards."""
    return {
        "epoch": shard_map.epoch,
        "strategy": shard_map.strategy.value,
        "scattered": shard_map.scattered,
        "shards": [
            {
                "shard": report.shard.id,
                "state": report.shard.state.value,
                "weight": report.shard.weight,
                "slots": shard_map.slots_of(report.shard.id),
                "ranges": [[r.first, r.last] for r in shard_map.ranges_of(report.shard.id)],
                "memories": report.memories,
                "error": report.error,
            }
            for report in reports
        ],
    }
