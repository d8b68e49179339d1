"""The express way of a read by id that is known by its bytes and not kept here: loaded with others, without a task.

    shortcut.py --> begin --> recall.py: what is kept for this session, or a load --> the answer as bytes

It is the long way (api.py) of such a request without what cannot concern it: nothing is parsed, there is no body, no
condition, no span. What comes out is the same, refusals too.

Promises
1. What it takes on it answers, once, in time and whatever happens; the rest it leaves to the long way, before the
request is counted anywhere.
2. Each request is counted and audited as on the long way; of one whose caller left only the audit tells.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache, partial
from http import HTTPStatus
from typing import Final

from engram_contract.names import CONFIG_HEADER
from engram_contract.slots import MemoryId
from engram_sidecar import wire
from engram_sidecar.audit import Subject, Trail
from engram_sidecar.clock import monotonic_s
from engram_sidecar.config import InForce
from engram_sidecar.consistency import Floors, Level, Session
from engram_sidecar.errors import DeadlineExceeded, NotFound, ShardUnavailable, SidecarError
from engram_sidecar.gate import GRACE_S
from engram_sidecar.kept import Recalled
from engram_sidecar.limiting import Limiter
from engram_sidecar.listening import Later, Reply
from engram_sidecar.metrics import Metrics
from engram_sidecar.problems import to_problem
from engram_sidecar.recall import Recall

log = logging.getLogger(__name__)

READ: Final = "retrieve"  # as metrics and the audit name it
_OK: Final = 200
_SERVER_ERROR: Final = 500
GONE: Final = 499  # the caller left before the answer, as others note it too


@dataclass(frozen=True, slots=True)
class Target:
    """What a request reads: the key of what is kept, the memory, and the route as metrics name it.

    `named`: user, namespace and key, if the request names the memory by them.
    """

    key: bytes
    memory: MemoryId
    route: tuple[str, str]
    named: tuple[str | None, tuple[str, ...], str | None] | None = None


@dataclass(frozen=True, slots=True)
class Said:
    """What a request says of its session: the token, "" for none, and the asked consistency."""

    token: str
    level: Level


@dataclass(frozen=True, slots=True)
class Rooms:
    """What the short ways of a read go through: what is kept, who is admitted, and who counts and notes requests."""

    recall: Recall
    floors: Floors
    limiter: Limiter
    in_force: InForce
    metrics: Metrics
    trail: Trail


@dataclass(slots=True, eq=False)
class _Call:
    """A request that is under way. `reply`: None once it has its answer; `timer`: when it has to have one, at `by_s`.

    `load`: what it waits for; `is_own`: which it began itself.
    """

    target: Target
    session: Session
    began_s: float
    reply: Reply | None
    by_s: float = 0.0
    load: "asyncio.Future[Recalled] | None" = None
    is_own: bool = True
    timer: asyncio.TimerHandle | None = None


class Express:
    """Answers reads by id of sessions that were never elsewhere."""

    def __init__(self, rooms: Rooms) -> None:
        self._recall = rooms.recall
        self._floors = rooms.floors
        self._limiter = rooms.limiter
        self._in_force = rooms.in_force
        self._metrics = rooms.metrics
        self._trail = rooms.trail

    def begin(self, target: Target, said: Said, began_s: float, reply: Reply) -> bytes | Later | None:
        """The whole response, or LATER if `reply` is given it; None if the request goes the long way."""
        session = Session(self._floors, said.level)
        if said.token:
            session.read_headers((), (said.token,), monotonic_s())
        if not session.is_of_here or self._in_force.refusal is not None:
            return None
        if not self._limiter.admits_now():
            return None
        call = _Call(target, session, began_s, reply)
        try:
            recalled: Recalled | BaseException | None = self._recall.find(target.memory, session)
            if recalled is None:
                self._load(call)
                return Later.LATER
        except Exception as error:  # noqa: BLE001  it is the answer
            recalled = error
        call.reply = None
        if call.timer is not None:
            call.timer.cancel()
        status, subject, answer = self._made(call, recalled)
        self._note(call, status, subject)
        return answer

    def _load(self, call: _Call) -> None:
        """Its answer comes later."""
        loop = asyncio.get_running_loop()
        call.by_s = monotonic_s() + self._in_force.config.policy.resilience.deadline_seconds
        call.timer = loop.call_at(call.by_s + GRACE_S, self._late, call)
        joined = self._recall.to_join(call.target.memory, call.session)
        if joined is None:
            self._load_alone(call)
        else:
            self._wait_for(call, joined, is_own=False)

    def _load_alone(self, call: _Call) -> None:
        self._wait_for(call, self._recall.load(call.target.memory, call.session, call.by_s), is_own=True)

    def _wait_for(self, call: _Call, load: "asyncio.Future[Recalled]", *, is_own: bool) -> None:
        call.load, call.is_own = load, is_own
        load.add_done_callback(partial(self._came, call))

    def _came(self, call: _Call, load: "asyncio.Future[Recalled]") -> None:
        """The load has ended."""
        failure = ShardUnavailable(self._shard(call), "ended") if load.cancelled() else load.exception()
        if isinstance(failure, DeadlineExceeded) and not call.is_own and call.reply is not None:
            self._load_alone(call)  # who began it had less time left
            return
        if call.timer is not None:
            call.timer.cancel()
        self._answer(call, load.result() if failure is None else failure)

    def _late(self, call: _Call) -> None:
        """Its time is over."""
        self._answer(call, DeadlineExceeded(self._shard(call), "no answer in time"))
        if call.load is not None and not call.session.is_plain:
            call.load.cancel()  # nobody else waits for it

    def _answer(self, call: _Call, ended: Recalled | BaseException) -> None:
        """Sends what the load came to, or what is shown in its stead, if nothing was sent."""
        if (reply := call.reply) is None:
            return
        call.reply = None
        try:
            outcome = self._shown(call, ended)
            status, subject, answer = self._made(call, outcome)
        except Exception as error:  # noqa: BLE001  it is the answer
            status, subject, answer = self._made(call, error)
        if reply(answer):
            self._note(call, status, subject)
        else:
            self._trail.record(READ, GONE, subject)

    def _shown(self, call: _Call, ended: Recalled | BaseException) -> Recalled:
        """What is shown. Raises the failure if it is nothing."""
        if isinstance(ended, Recalled):
            return self._recall.came(ended, call.session, is_own=call.is_own)
        if isinstance(ended, ShardUnavailable):
            return self._recall.instead(call.target.memory, call.session, ended)
        raise ended

    def _made(self, call: _Call, outcome: Recalled | BaseException) -> tuple[int, Subject, bytes]:
        """The answer as it is sent, its status, and what it is about."""
        subject = Subject(memory=call.target.memory)
        if call.target.named is not None:
            subject.is_named(*call.target.named)
        if isinstance(outcome, Recalled) and outcome.tag:
            if self._in_force.config.policy.audit:
                subject.is_named(*wire.named_in(outcome.body))
            status, body = _OK, outcome.body
            own = {"Content-Type": "application/json", "ETag": outcome.tag}
        else:
            error = NotFound(str(call.target.memory)) if isinstance(outcome, Recalled) else outcome
            if not isinstance(error, SidecarError):
                log.error("request failed", extra={"operation": READ}, exc_info=error)
            found = to_problem(error)
            status, body = found.status, wire.encode(found.document)
            own = {**found.headers, "Content-Type": "application/problem+json"}
        headers = {**own, CONFIG_HEADER: self._in_force.config.header, **call.session.headers()}
        return status, subject, written(status, headers, body)

    def _note(self, call: _Call, status: int, subject: Subject) -> None:
        """Counts it, and has it in the audit."""
        is_success = status < _SERVER_ERROR
        self._metrics.observe(READ, call.target.route, status, call.began_s, time.monotonic(), is_success=is_success)
        self._trail.record(READ, status, subject)

    def _shard(self, call: _Call) -> str:
        return self._in_force.config.shard_map.shard_of(call.target.memory.slot).id


def written(status: int, headers: Mapping[str, str], body: bytes) -> bytes:
    """A response as it is sent (RFC 9112)."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    date = _date(int(time.time()))
    return f"HTTP/1.1 {_line(status)}\r\n{lines}Content-Length: {len(body)}\r\nDate: {date}\r\n\r\n".encode() + body


@lru_cache(64)
def _line(status: int) -> str:
    return f"{status} {HTTPStatus(status).phrase}"


@lru_cache(4)
def _date(unix_s: int) -> str:
    return formatdate(unix_s, usegmt=True)
