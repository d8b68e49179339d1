"""The short way of a read by id: from the request to the response without a stop where it is kept here.

    bytes --the target and all behind it are known--> at_once --kept here--> bytes
                                                         '--not kept--> express.py --> bytes, later
    request --the same target was answered--> answer --kept here--> response        else the long way (api.py)

Promises
1. It answers only what the long way would answer so; whatever it does not know at a glance (another header, a session
that was elsewhere, an entry that is to be read again) it leaves to it.
2. Such a request is counted and audited as any other. Where each request is a span nothing is learned, so none is one.
3. It parses nothing: what stands behind a target is known by its bytes, so what it means was found by aiohttp's parser;
a target is known so too, or is a memory's id in the one form in which ids are written.
"""

import time
from collections.abc import Mapping
from functools import lru_cache
from math import ceil
from typing import Final, TypeVar

from aiohttp import HttpVersion11, web

from engram_contract.names import CONFIG_HEADER, CONSISTENCY_HEADER, SESSION_HEADER
from engram_contract.session import BadToken, Position, Token, mark_of
from engram_sidecar import wire
from engram_sidecar.audit import Subject
from engram_sidecar.consistency import Level
from engram_sidecar.express import READ, Express, Rooms, Said, Target, written
from engram_sidecar.kept import Kept, key_of, ttl
from engram_sidecar.listening import Later, Reply, head_of
from engram_sidecar.tracing import TIMING_HEADER

MAX_TARGETS: Final = 10_000
MAX_TARGET_CHARS: Final = 512
MAX_TAILS: Final = 1_000  # a caller has one, and another one when what it says of its session has changed
MAX_TAIL_BYTES: Final = 1_024
MAX_HOSTS: Final = 16
MAX_TOKEN_CHARS: Final = 512  # of some 18 shards; a longer one goes the long way
# With one of these a request may want something else than the document.
_LONG_WAY: Final = frozenset(
    name.lower()
    for name in (
        "If-Match", "If-None-Match", "Expect", "traceparent", "Transfer-Encoding", "Upgrade", TIMING_HEADER,
    )
)  # fmt: skip
_BY_ID: Final = b"/v1/memories/"
_ROUTE: Final = ("GET", "/v1/memories/{id}")
_GET: Final = b"GET "
_VERSION: Final = b" HTTP/1.1\r\n"

Key = TypeVar("Key")
Value = TypeVar("Value")


class Shortcut:
    """Answers what is kept. `learn` is told of what the long way answered."""

    def __init__(self, rooms: Rooms, express: Express, *, is_traced: bool) -> None:
        self._recall = rooms.recall
        self._express = express
        self._floors = rooms.floors
        self._in_force = rooms.in_force
        self._limiter = rooms.limiter
        self._metrics = rooms.metrics
        self._trail = rooms.trail
        self._is_traced = is_traced  # each request is a span
        self._targets: dict[str, Target] = {}
        self._tails: dict[bytes, Said] = {}
        self._hosts: set[str] = set()
        rooms.in_force.subscribe(lambda _: self._forget())

    def learn(self, request: web.BaseRequest, target: Target) -> None:
        """The long way showed this memory to this request."""
        if self._is_traced or request.method != "GET" or not _is_short(request.raw_path):
            return
        _keep(self._targets, request.raw_path, target, MAX_TARGETS)
        if len(self._hosts) >= MAX_HOSTS:
            self._hosts.clear()
        self._hosts.add(request.headers["Host"])
        if (said := _said(request)) is not None:
            self._learn_tail(request, said)

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
        self._learn_tail(request, said)
        body, headers = shown
        return web.Response(body=body, headers=headers)

    def at_once(self, head: bytes, reply: Reply) -> bytes | Later | None:
        """The whole response to a request of these bytes, now or later; None if it goes another way."""
        end = head.find(_VERSION)
        if end < 0 or (said := self._tails.get(head[end:])) is None or not head.startswith(_GET):
            return None
        began_s = time.monotonic()
        target = self._target(head[len(_GET) : end])
        if target is None:
            return None
        shown = self._shown(target, said, began_s)
        return self._express.begin(target, said, began_s, reply) if shown is None else written(200, shown[1], shown[0])

    def _target(self, path: bytes) -> Target | None:
        """What is read at this path, if that is known."""
        text = path.decode("latin-1")
        target = self._targets.get(text)
        if target is None and path.startswith(_BY_ID):
            memory_id = wire.parse_id(text[len(_BY_ID) :])
            return None if memory_id is None else Target(key_of(memory_id), memory_id, _ROUTE)
        return target

    def _learn_tail(self, request: web.BaseRequest, said: Said) -> None:
        head = head_of(request)
        is_plain = request.version == HttpVersion11 and request.keep_alive
        if is_plain and head is not None and 0 <= (end := head.find(_VERSION)) >= len(head) - MAX_TAIL_BYTES:
            _keep(self._tails, head[end:], said, MAX_TAILS)

    def _forget(self) -> None:
        self._targets.clear()
        self._tails.clear()

    def _shown(self, target: Target, said: Said, began_s: float) -> tuple[bytes, Mapping[str, str]] | None:
        """The body and the headers, if what is kept is for this session; then the request is counted."""
        found = self._recall.fresh(target.key) if said.level is Level.SESSION else None
        if found is None:
            return None
        kept, age_s, left_s = found
        token = self._token(said.token, kept)
        if token is None or not self._limiter.admits_now():
            return None
        config, body = self._in_force.config, self._recall.hit(target.key, kept)
        if config.policy.audit:
            subject = Subject(memory=target.memory)
            subject.is_named(*wire.named_in(body))
            self._trail.record(READ, 200, subject)
        self._metrics.observe(READ, target.route, 200, began_s, time.monotonic(), is_success=True)
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


def _said(request: web.BaseRequest) -> Said | None:
    """What the request says of its session; None if it says what is for the long way."""
    headers = request.headers
    if not _LONG_WAY.isdisjoint(map(str.lower, headers)):
        return None
    tokens, levels = headers.getall(SESSION_HEADER, ()), headers.getall(CONSISTENCY_HEADER, ())
    if len(tokens) > 1 or len(levels) > 1 or (tokens and not 0 < len(tokens[0]) <= MAX_TOKEN_CHARS):
        return None
    try:
        return Said(tokens[0] if tokens else "", Level(levels[0].strip().lower()) if levels else Level.SESSION)
    except ValueError:
        return None


def _is_short(path: str) -> bool:
    """Whether it is kept; not one with a scheme and a host, of which nobody would look at the host."""
    return path.startswith("/") and len(path) <= MAX_TARGET_CHARS


def _keep(known: dict[Key, Value], key: Key, value: Value, most: int) -> None:
    """The entry is known now, instead of the oldest one if there are too many."""
    if len(known) >= most and key not in known:
        del known[next(iter(known))]
    known[key] = value


@lru_cache(1_024)
def _first_token(epoch: int, mark: bytes, shard: str, shown: Position | None) -> str:
    return str(Token(epoch, {} if shown is None else {mark_of(shard): shown}, mark))


@lru_cache(1_024)
def _parsed(text: str) -> Token | None:
    try:
        return Token.parse(text)
    except BadToken:
        return None
