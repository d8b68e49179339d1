"""Sessions over a model of a shard: in whatever order things happen, a session sees what it wrote, and what it saw.

The model has a log, a primary, two replicas that replay behind it, failovers, and two sidecars that look, restart and
answer callers with and without tokens. A replica may show the record that it is just replaying before it says so.
"""

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from engram_contract.session import UNKNOWN, Position, Token
from engram_contract.shardmap import Node, Shard, Strategy, first_map
from engram_sidecar.consistency import Floors, Session
from engram_sidecar.standing import Look, Standing, Wanted

NODES = ("n0", "n1", "n2")
MEMBERS = tuple(Node(name, "localhost", 1) for name in NODES)
MAP = first_map("t_a", Strategy.USER, [Shard("s0", "engram", MEMBERS[:1], members=MEMBERS)])
RECORD = 10  # bytes of the log for each write


@dataclass
class Sidecar:
    """What one sidecar knows."""

    floors: Floors = field(default_factory=Floors)
    standing: Standing = field(default_factory=Standing)
    wrote: int = 0  # the newest write that its callers without a token were told of, in this life or one before
    seen: int = 0  # and what they were shown, in this life


@dataclass
class Caller:
    """A session that carries its token: what it wrote or saw last."""

    token: Token = field(default_factory=Token)
    owes: int = 0


class Shards(RuleBasedStateMachine):
    """The log holds writes 1, 2, ...; a node at n shows all up to the n-th."""

    @initialize()
    def begin(self) -> None:
        self.now_s = 0.0
        self.timeline, self.primary, self.written = 1, "n0", 0
        self.replayed = dict.fromkeys(NODES, 0)
        self.sidecars = [self.started(0), self.started(0)]
        self.callers = [Caller(), Caller()]

    def started(self, wrote: int) -> Sidecar:
        found = Sidecar(wrote=wrote)
        found.floors.follow(MAP)
        return found

    def position(self, node: str) -> Position:
        return Position(self.timeline, self.replayed[node] * RECORD)

    @rule(at=st.integers(0, 1), who=st.integers(-1, 1), is_lost=st.booleans())
    def write(self, at: int, who: int, is_lost: bool) -> None:
        sidecar = self.sidecars[at]
        session = self.session(sidecar, who)
        self.written += 1
        self.replayed[self.primary] = self.written
        ticket = session.ticket()
        session.reached("s0", UNKNOWN if is_lost else self.position(self.primary), ticket)
        self.told(sidecar, session, who, self.written)
        sidecar.wrote = self.written

    @rule(at=st.integers(0, 1), who=st.integers(-1, 1), pick=st.integers(0, 5), is_ahead=st.booleans())
    def read(self, at: int, who: int, pick: int, is_ahead: bool) -> None:
        sidecar = self.sidecars[at]
        session = self.session(sidecar, who)
        owed = max(sidecar.wrote, sidecar.seen) if who < 0 else self.callers[who].owes
        names = sidecar.standing.eligible(Wanted(session.epoch, session.floor("s0"), 10.0), self.now_s)
        node = names[pick % len(names)] if names else self.primary
        if names:
            is_replaying = node != self.primary and self.replayed[node] < self.written
            shown = self.replayed[node] + (is_ahead and is_replaying)
            told = self.position(node)
            session.reached("s0", Position(told.timeline, told.lsn + is_replaying))
        else:
            shown, ticket = self.replayed[self.primary], session.ticket()
            session.reached("s0", self.position(self.primary), ticket)
        assert shown >= owed, f"{node} showed {shown}, the session has met {owed}"
        self.told(sidecar, session, who, shown)
        sidecar.seen = max(sidecar.seen, shown)

    def session(self, sidecar: Sidecar, who: int) -> Session:
        session = Session(sidecar.floors)
        session.read_headers([], [] if who < 0 else [str(self.callers[who].token)], 1.0)
        return session

    def told(self, sidecar: Sidecar, session: Session, who: int, version: int) -> None:
        if who >= 0:
            caller = self.callers[who]
            caller.token = Token.parse(session.headers()["Engram-Session"])
            caller.owes = max(caller.owes, version)

    @rule(at=st.integers(0, 1), node=st.sampled_from(NODES), is_receiving=st.booleans())
    def look(self, at: int, node: str, is_receiving: bool) -> None:
        is_replica = node != self.primary
        timeline = None if is_replica and not is_receiving else self.timeline
        look = Look(is_replica, timeline, self.replayed[node] * RECORD, 1, self.now_s)
        self.sidecars[at].standing.take(node, look)

    @rule(node=st.sampled_from(NODES), records=st.integers(1, 3))
    def replay(self, node: str, records: int) -> None:
        self.replayed[node] = min(self.replayed[node] + records, self.written)

    @rule(node=st.sampled_from(NODES))
    def fail_over(self, node: str) -> None:
        """Commits wait for a replica, so who takes over has all of them."""
        if node != self.primary:
            self.replayed[node] = self.written
            self.timeline, self.primary = self.timeline + 1, node

    @rule(at=st.integers(0, 1))
    def restart(self, at: int) -> None:
        self.sidecars[at] = self.started(self.sidecars[at].wrote)

    @rule(seconds=st.floats(0.1, 4.0))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(of=st.integers(0, 1))
    def hand_over(self, of: int) -> None:
        """One caller gives its token to the other, who has one already."""
        giver, taker = self.callers[of], self.callers[1 - of]
        taker.token, taker.owes = taker.token.merged(giver.token), max(taker.owes, giver.owes)


def test_no_session_reads_less_than_it_wrote_and_saw() -> None:
    run_state_machine_as_test(Shards, settings=settings(max_examples=150, stateful_step_count=40))


def test_the_model_sees_a_session_that_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: a sidecar that takes any replica as good enough."""
    monkeypatch.setattr(Session, "floor", lambda *_: Position(1, 0))
    model = Shards()
    model.begin()
    model.look(0, "n0", True)  # noqa: FBT003  as rules are called
    model.look(0, "n1", True)  # noqa: FBT003
    model.write(0, 0, False)  # noqa: FBT003
    with pytest.raises(AssertionError, match="showed 0"):
        model.read(0, 0, 0, False)  # noqa: FBT003
