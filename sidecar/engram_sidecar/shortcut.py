"""The short way of a read by id whose answer is kept here: from the request to the response without a stop.

Promises
1. It answers only what the long way (api.py) would answer so, after that has answered the same target; whatever it does
not know at a glance (another header, a session that was elsewhere, an entry that is to be read again) it leaves to it.
2. Such a request is counted and audited as any other.
"""

import time
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import Final

from aiohttp import web

from engram_contract.names import CONFIG_HEADER, CONSISTENCY_HEADER, SESSION_HEADER
from engram_contract.session import BadToken, Position, Token, mark_of
from engram_contract.slots import MemoryId
from engram_sidecar import wire
from engram_sidecar.audit import Subject, Trail
from engram_sidecar.config import InForce
from engram_sidecar.consistency import Floors
from engram_sidecar.kept import Kept, key_of, ttl
from engram_sidecar.limiting import Limiter
from engram_sidecar.metrics import Metrics
from engram_sidecar.recall import Recall
from engram_sidecar.tracing import TIMING_HEADER

MAX_TARGETS: Final = 10_000
MAX_TARGET_CHARS: Final = 512
MAX_HOSTS: Final = 16
MAX_TOKEN_CHARS: Final = 512  # of some 18 shards; a longer one goes the long way
_READ: Final = "retrieve"
# With one of these a request may want something else than the document.
_LONG_WAY: Final = frozenset(
    name.lower()
    for name in (
        "If-Match", "If-None-Match", "Expect", "traceparent", "Transfer-Encoding", CONSISTENCY_HEADER, TIMING_HEADER
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Seen:
    """Who counts and notes requests."""

    metrics: Metrics
    trail: Trail


class Shortcut:
    """Answers what is kept. `learn` is told of what the long way answered."""

    def __init__(self, recall: Recall, floors: Floors, limiter: Limiter, in_force: InForce, seen: Seen) -> None:
        self._recall = recall
        self._floors = floors
        self._in_force = in_force
        self._limiter = limiter
        self._metrics = seen.metrics
        self._trail = seen.trail
        self._targets: dict[str, tuple[bytes, MemoryId, tuple[str, str]]] = {}
        self._hosts: set[str] = set()
        in_force.subscribe(lambda _: self._targets.clear())

    def learn(self, request: web.BaseRequest, memory_id: MemoryId, route: tuple[str, str]) -> None:
        """The long way showed this memory to this request."""
        if request.method != "GET" or len(request.raw_path) > MAX_TARGET_CHARS:
            return
        if len(self._targets) >= MAX_TARGETS:
            self._targets.clear()
        if len(self._hosts) >= MAX_HOSTS:
            self._hosts.clear()
        self._targets[request.raw_path] = (key_of(memory_id), memory_id, route)
        self._hosts.add(request.headers["Host"])

    def answer(self, request: web.BaseRequest) -> web.Response | None:
        """The response, None if this request goes the long way."""
        if request.method != "GET" or (target := self._targets.get(request.raw_path)) is None:
            return None
        key, memory_id, route = target
        began_s, headers = time.monotonic(), request.headers
        if headers.get("Host") not in self._hosts or not _LONG_WAY.isdisjoint(map(str.lower, headers)):
            return None
        found = self._recall.fresh(key)
        if found is None:
            return None
        kept, age_s, left_s = found
        tokens = headers.getall(SESSION_HEADER, ())
        said = "" if not tokens else tokens[0] if len(tokens) == 1 and 0 < len(tokens[0]) <= MAX_TOKEN_CHARS else None
        token = self._token(said, kept)
        if token is None or not self._limiter.admits_now():
            return None
        config = self._in_force.config
        body = self._recall.hit(key, kept)
        response = web.Response(
            body=body,
            headers={
                "Content-Type": "application/json",
                "ETag": kept.tag,
                CONFIG_HEADER: config.header,
                "Age": str(ceil(age_s)),
                "Cache-Status": f"engram; hit{ttl(left_s)}",
                SESSION_HEADER: token,
            },
        )
        if config.policy.audit:
            subject = Subject(memory=memory_id)
            subject.is_named(*wire.named_in(body))
            self._trail.record(_READ, 200, subject)
        self._metrics.observe(_READ, route, 200, began_s, time.monotonic(), is_success=True)
        return response

    def _token(self, text: str | None, kept: Kept) -> str | None:
        """What the answer says of the session, if that was never elsewhere; None if it is for the long way."""
        if text is None or self._in_force.refusal is not None:
            return None
        shown, floors = kept.source.shown, self._floors
        if not text:
            return _first_token(floors.epoch, floors.mark, kept.shard, shown)
        token = _parsed(text)
        if token is None or token.home != floors.mark or token.since_ms or token.epoch != floors.epoch:
            return None
        has_met = shown is None or ((met := token.of(kept.shard)) is not None and met >= shown)
        return text if has_met else None


@lru_cache(1_024)
def _first_token(epoch: int, mark: bytes, shard: str, shown: Position | None) -> str:
    return str(Token(epoch, {} if shown is None else {mark_of(shard): shown}, mark))


@lru_cache(1_024)
def _parsed(text: str) -> Token | None:
    try:
        return Token.parse(text)
    except BadToken:
        return None
