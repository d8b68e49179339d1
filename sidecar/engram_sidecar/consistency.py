"""What a request may read: the level that it asks for, the token of its session, and what goes back with the answer.

A session reads what it wrote and never less than what it saw. What it wrote and saw travels in its token; for callers
that carry none the sidecar remembers, for each shard, the latest position that it wrote at or handed out: the floor.
It travels in the context of the task, as the request's patience does.

Promises
1. A shard without replicas has no positions: its reads and writes ask for none, and no token names it.
2. The floor of a shard is UNKNOWN until its primary has told a position, and from when a write's position could not be
learned until the primary is asked again. UNKNOWN is a position that no replica has reached.
3. What a token says moves no floor: a made-up one concerns its own session alone.
4. With a new map everything is UNKNOWN again: its shards may be others under the same names.
5. Of what is kept here a session takes what was read after it came from another sidecar, or is known to have reached
what it met there. What it wrote here is not kept (recall.py), so a session that was never elsewhere takes all.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from math import ceil
from typing import Final

from engram_contract.names import CONSISTENCY_HEADER, SESSION_HEADER
from engram_contract.session import NO_HOME, UNKNOWN, BadToken, Position, Token, mark_of
from engram_contract.shardmap import ShardMap
from engram_sidecar.errors import BadRequest


class Level(StrEnum):
    """How much of what is stored a read has to see."""

    SESSION = "session"
    STRONG = "strong"
    EVENTUAL = "eventual"


@dataclass(frozen=True, slots=True)
class Source:
    """Where an answer came from: asked for at `began_s`, on the loop's clock, and in which state of its shard.

    `look`: what the replica that answered had reached before, None if the primary answered. `shown`: nothing in the
    answer is later, None where there are no positions. `behind_s`: it may lack what others wrote in the last so many
    seconds. `is_shared`: another sidecar asked, and put it where all find it (L2).
    """

    began_s: float
    look: Position | None = None
    shown: Position | None = None
    behind_s: float = 0.0
    is_shared: bool = False


class Floors:
    """The floor of each shard that has replicas. `mark`: what tokens call this sidecar."""

    def __init__(self, mark: bytes = NO_HOME) -> None:
        self.mark = mark
        self.epoch = 0
        self._floors: dict[str, Position] = {}
        self._losses = 0  # how often a floor became UNKNOWN

    def follow(self, shard_map: ShardMap) -> None:
        """These are the shards now; nothing is known of them."""
        self.epoch = shard_map.epoch
        self._floors = {shard.id: UNKNOWN for shard in shard_map.shards if shard.members}
        self._losses += 1

    def __contains__(self, shard: str) -> bool:
        return shard in self._floors

    def shards(self) -> Iterable[str]:
        """Those that have replicas."""
        return self._floors.keys()

    def of(self, shard: str) -> Position:
        """What a session without a token of this shard has to see."""
        return self._floors.get(shard, UNKNOWN)

    def ticket(self) -> int:
        """To be taken before a primary is asked for its position: `settle` needs it."""
        return self._losses

    def settle(self, shard: str, position: Position, ticket: int | None = None) -> None:
        """The position was written at or handed out. Of a primary, with the ticket of before it was asked."""
        before = self._floors.get(shard)
        if before is None:
            return
        if position == UNKNOWN:
            self._losses += 1
        elif before == UNKNOWN and ticket != self._losses:
            return  # what was lost after the primary was asked may lie behind this position
        self._floors[shard] = position if before == UNKNOWN else max(before, position)


class Session:
    """The session of one request."""

    def __init__(self, floors: Floors, level: Level = Level.SESSION) -> None:
        self.level = level
        self._floors = floors
        self._token = Token()
        self._answered: dict[str, Position] = {}
        self._age_s: float | None = None
        self._since_ms = 0
        self._has_met = False
        self._cached = ""
        self.sources: list[tuple[str, Source]] = []  # (shard, source) of each answer to a read, in order

    def read_headers(self, levels: Sequence[str], tokens: Sequence[str], now_s: float) -> None:
        """Takes what the request says of itself, on the loop's clock. Raises BadRequest that names the header."""
        if levels:
            try:
                [self.level] = [Level(each.strip().lower()) for each in levels]
            except ValueError:
                raise BadRequest(f"{CONSISTENCY_HEADER}: must be one of {', '.join(Level)}") from None
        for text in ",".join(tokens).split(",") if tokens else ():
            try:
                self._token = self._token.merged(Token.parse(text.strip()))
            except BadToken as bad:
                raise BadRequest(f"{SESSION_HEADER}: {bad}") from None
        if self._token != Token():
            is_ours = self._token.home == self._floors.mark
            self._since_ms = self._token.since_ms if is_ours else ceil(now_s * 1000)

    @property
    def is_of_here(self) -> bool:
        """True if the session was never elsewhere: it needs to see no more than any other one of its level here."""
        return not self._since_ms and self.epoch == self._floors.epoch

    @property
    def is_plain(self) -> bool:
        """True if the session was never elsewhere and asks for no other level: it sees what everybody here does."""
        return self.level is Level.SESSION and self.is_of_here

    def may_take(self, shard: str, source: Source) -> bool:
        """True if what was read so shows all that this session has to see, but for what was written here since."""
        if self.level is Level.STRONG or self.epoch > self._floors.epoch:
            return False
        if self.level is Level.EVENTUAL or not self._since_ms:
            return True
        if source.is_shared:  # what its session wrote elsewhere may be on its way there
            return False
        if source.look is None:
            return source.began_s * 1000 > self._since_ms
        return source.look.covers(self.floor(shard))

    def position(self, shard: str) -> Position | None:
        """How far this request came in the shard; None where that is not known, or there are no positions."""
        position = self._answered.get(shard)
        return None if position == UNKNOWN else position

    def met(self, source: Source | None = None, shard: str = "") -> None:
        """The request wrote to a shard, or saw what came from this source."""
        self._has_met = True
        if source is not None:
            self.sources.append((shard, source))

    @property
    def epoch(self) -> int:
        """The highest epoch of a map that this session met: who knows only older ones may not own what it wrote to."""
        return max(self._token.epoch, self._floors.epoch)

    def has_replicas(self, shard: str) -> bool:
        """True if positions of this shard matter."""
        return shard in self._floors

    def floor(self, shard: str) -> Position:
        """The position that a node of the shard must have reached before it is asked for this session."""
        told = self._token.of(shard)
        floor = self._floors.of(shard) if told is None else told
        return max(floor, self._answered.get(shard, floor))

    def ticket(self) -> int:
        """To be taken before a primary is asked: `reached` needs it."""
        return self._floors.ticket()

    def reached(self, shard: str, position: Position, ticket: int | None = None, *, is_last_word: bool = False) -> None:
        """Nothing that this request wrote to or saw of the shard is later. `ticket`: of before its primary said so.

        Only a primary that was asked since the request came has the last word: a later position of the token is gone.
        """
        told = self._token.of(shard) if ticket is None and not is_last_word else None
        self._answered[shard] = max(position, self._answered.get(shard, position), told or position)
        self._floors.settle(shard, position, ticket)

    def is_as_old_as(self, age_s: float) -> None:
        """Something that the request saw may lack what was written in the last `age_s` seconds by others."""
        self._age_s = max(age_s, self._age_s or 0.0)

    def answered_by(self, unnamed: Source) -> Source:
        """Where the last answer came from; `unnamed` if nobody said."""
        return self.sources[-1][1] if self.sources else unnamed

    def cached(self, what: str) -> None:
        """What came of looking at what is kept here (RFC 9211, without the name of the cache)."""
        self._cached = what

    def headers(self) -> Mapping[str, str]:
        """What the answer says: the session's token, and of what was read how old it may be, in seconds, and whence.

        What is known of a shard now takes the place of what the token said, and is no less (`reached`).
        """
        age = {} if self._age_s is None else {"Age": str(ceil(self._age_s))}
        if self._cached:
            age["Cache-Status"] = f"engram; {self._cached}"
        if not self._has_met and not self._answered and self._token == Token():
            return age
        marks = {mark_of(shard) for shard in self._floors.shards()}
        positions = {mark: each for mark, each in self._token.positions.items() if mark in marks}
        positions |= {mark_of(shard): each for shard, each in self._answered.items()}
        return age | {SESSION_HEADER: _text_of(self.epoch, (*positions.items(),), self._floors.mark, self._since_ms)}


class _Joined(Session):
    """The sessions of requests of one sidecar that write together: what a shard tells of the write is told to each."""

    def __init__(self, sessions: Sequence[Session]) -> None:
        super().__init__(Floors())
        self._sessions = [each for each in sessions if each is not _NOBODY] or [_NOBODY]

    def has_replicas(self, shard: str) -> bool:
        """As of each session alone."""
        return self._sessions[0].has_replicas(shard)

    def ticket(self) -> int:
        """As of each session alone: their floors are the same."""
        return self._sessions[0].ticket()

    def reached(self, shard: str, position: Position, ticket: int | None = None, *, is_last_word: bool = False) -> None:
        """As of each session alone."""
        for session in self._sessions:
            session.reached(shard, position, ticket, is_last_word=is_last_word)


@lru_cache(1_024)
def _text_of(epoch: int, positions: tuple[tuple[bytes, Position], ...], home: bytes, since_ms: int) -> str:
    return str(Token(epoch, dict(positions), home, since_ms))


_NOBODY: Final = Session(Floors())
_CURRENT: ContextVar[Session] = ContextVar("session", default=_NOBODY)


def begin_session(floors: Floors) -> Session:
    """The session of the request that this task answers from now on."""
    session = Session(floors)
    _CURRENT.set(session)
    return session


def take_up(session: Session) -> None:
    """What this task does from now on is of this session."""
    _CURRENT.set(session)


def join_sessions(sessions: Sequence[Session]) -> None:
    """What this task writes from now on is of these requests."""
    _CURRENT.set(_Joined(sessions))


def session_of_request() -> Session:
    """The session of the request that is being answered; of the sidecar's own work, one that knows no replicas."""
    return _CURRENT.get()
