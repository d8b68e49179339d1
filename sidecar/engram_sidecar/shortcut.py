"""The short way of a read by id whose answer is kept here: from the request to the response without a stop.

    bytes --the same bytes were a request that the long way answered--> at_once --> bytes
    request --the same target was answered--> answer --> response                       else the long way (api.py)

Promises
1. It answers only what the long way would answer so, after that has answered the same target; whatever it does not know
at a glance (another header, a session that was elsewhere, an entry that is to be read again) it leaves to it.
2. Such a request is counted and audited as any other. Where each request is a span nothing is learned, so none is one.
3. It parses nothing: a head is known by its bytes, so what they mean was found by aiohttp's parser.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from math import ceil
from typing import Final, TypeVar

from aiohttp import HttpVersion11, web

from engram_contract.names import CONFIG_HEADER, CONSISTENCY_HEADER, SESSION_HEADER
from engram_contract.session import BadToken, Position, Token, mark_of
from engram_contract.slots import MemoryId
from engram_sidecar import wire
from engram_sidecar.audit import Subject, Trail
from engram_sidecar.config import InForce
from engram_sidecar.consistency import Floors
from engram_sidecar.kept import Kept, key_of, ttl
from engram_sidecar.limiting import Limiter
from engram_sidecar.listening import head_of
from engram_sidecar.metrics import Metrics
from engram_sidecar.recall import Recall
from engram_sidecar.tracing import TIMING_HEADER

MAX_TARGETS: Final = 10_000
MAX_TARGET_CHARS: Final = 512
MAX_HEADS: Final = 10_000
MAX_HEAD_BYTES: Final = 1_024
MAX_HOSTS: Final = 16
MAX_TOKEN_CHARS: Final = 512  # of some 18 shards; a longer one goes the long way
_READ: Final = "retrieve"
# With one of these a request may want something else than the document.
_LONG_WAY: Final = frozenset(
    name.lower()
    for name in (
        "If-Match", "If-None-Match", "Expect", "traceparent", "Transfer-Encoding", "Upgrade", CONSISTENCY_HEADER,
        TIMING_HEADER,
    )
)  # fmt: skip

Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Target:
    """What a request reads: the key of what is kept, the memory, and the route as metrics name it."""

    key: bytes
    memory: MemoryId
    route: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Seen:
    """Who counts and notes requests."""

    metrics: Metrics
    trail: Trail
    is_traced: bool  # each request is a span


class Shortcut:
    """Answers what is kept. `learn` is told of what the long way answered."""

    def __init__(self, recall: Recall, floors: Floors, limiter: Limiter, in_force: InForce, seen: Seen) -> None:
        self._recall = recall
        self._floors = floors
        self._in_force = in_force
        self._limiter = limiter
        self._metrics = seen.metrics
        self._trail = seen.trail
        self._is_traced = seen.is_traced
        self._targets: dict[str, Target] = {}
        self._heads: dict[bytes, tuple[Target, str]] = {}  # with what it says of its session
        self._hosts: set[str] = set()
        in_force.subscribe(lambda _: self._forget())

    def learn(self, request: web.BaseRequest, memory_id: MemoryId, route: tuple[str, str]) -> None:
        """The long way showed this memory to this request."""
        if self._is_traced or request.method != "GET" or len(request.raw_path) > MAX_TARGET_CHARS:
            return
        target = Target(key_of(memory_id), memory_id, route)
        _keep(self._targets, request.raw_path, target, MAX_TARGETS)
        if len(self._hosts) >= MAX_HOSTS:
            self._hosts.clear()
        self._hosts.add(request.headers["Host"])
        if (said := _said(request)) is not None:
            self._learn_head(request, target, said)

    def answer(self, request: web.BaseRequest) -> web.Response | None:
        """The response, None if this request goes the long way."""
        if request.method != "GET" or (target := self._targets.get(request.raw_path)) is None:
            return None
        began_s = time.monotonic()
        if request.headers.get("Host") not in self._hosts or (said := _said(request)) is None:
            return None
        shown = self._shown(target, said, began_s)
        if shown is None:
            return None
        self._learn_head(request, target, said)
        body, headers = shown
        return web.Response(body=body, headers=headers)

    def at_once(self, head: bytes) -> bytes | None:
        """The whole response to a request of these bytes, None if it goes another way."""
        if (found := self._heads.get(head)) is None:
            return None
        target, said = found
        shown = self._shown(target, said, time.monotonic())
        if shown is None:
            return None
        body, headers = shown
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        date = _date(int(time.time()))
        return f"HTTP/1.1 200 OK\r\n{lines}Content-Length: {len(body)}\r\nDate: {date}\r\n\r\n".encode() + body

    def _learn_head(self, request: web.BaseRequest, target: Target, said: str) -> None:
        head = head_of(request)
        is_plain = request.version == HttpVersion11 and request.keep_alive
        if is_plain and head is not None and len(head) <= MAX_HEAD_BYTES:
            _keep(self._heads, head, (target, said), MAX_HEADS)

    def _forget(self) -> None:
        self._targets.clear()
        self._heads.clear()

    def _shown(self, target: Target, said: str, began_s: float) -> tuple[bytes, Mapping[str, str]] | None:
        """The body and the headers, if what is kept is for this session; then the request is counted."""
        found = self._recall.fresh(target.key)
        if found is None:
            return None
        kept, age_s, left_s = found
        token = self._token(said, kept)
        if token is None or not self._limiter.admits_now():
            return None
        config, body = self._in_force.config, self._recall.hit(target.key, kept)
        if config.policy.audit:
            subject = Subject(memory=target.memory)
            subject.is_named(*wire.named_in(body))
            self._trail.record(_READ, 200, subject)
        self._metrics.observe(_READ, target.route, 200, began_s, time.monotonic(), is_success=True)
        return body, {
            "Content-Type": "application/json",
            "ETag": kept.tag,
            CONFIG_HEADER: config.header,
            "Age": str(ceil(age_s)),
            "Cache-Status": f"engram; hit{ttl(left_s)}",
            SESSION_HEADER: token,
        }

    def _token(self, text: str, kept: Kept) -> str | None:
        """What the answer says of the session, if that was never elsewhere; None if it is for the long way."""
        if self._in_force.refusal is not None:
            return None
        shown, floors = kept.source.shown, self._floors
        if not text:
            return _first_token(floors.epoch, floors.mark, kept.shard, shown)
        token = _parsed(text)
        if token is None or token.home != floors.mark or token.since_ms or token.epoch != floors.epoch:
            return None
        has_met = shown is None or ((met := token.of(kept.shard)) is not None and met >= shown)
        return text if has_met else None


def _said(request: web.BaseRequest) -> str | None:
    """What the request says of its session, "" for nothing; None if it says what is for the long way."""
    if not _LONG_WAY.isdisjoint(map(str.lower, request.headers)):
        return None
    tokens = request.headers.getall(SESSION_HEADER, ())
    if not tokens:
        return ""
    return tokens[0] if len(tokens) == 1 and 0 < len(tokens[0]) <= MAX_TOKEN_CHARS else None


def _keep(known: dict[Key, Value], key: Key, value: Value, most: int) -> None:
    """The entry is known now, instead of the oldest one if there are too many."""
    if len(known) >= most and key not in known:
        del known[next(iter(known))]
    known[key] = value


@lru_cache(4)
def _date(unix_s: int) -> str:
    return formatdate(unix_s, usegmt=True)


@lru_cache(1_024)
def _first_token(epoch: int, mark: bytes, shard: str, shown: Position | None) -> str:
    return str(Token(epoch, {} if shown is None else {mark_of(shard): shown}, mark))


@lru_cache(1_024)
def _parsed(text: str) -> Token | None:
    try:
        return Token.parse(text)
    except BadToken:
        return None
