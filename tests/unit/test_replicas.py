"""Who is asked for a read: a replica that is known to suffice, the faster of two, else the primary, if it is one."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from engram_contract.resilience import Resilience
from engram_contract.session import Position, Token, mark_of
from engram_contract.shardmap import Node, Shard, ShardMap, Strategy, first_map
from engram_sidecar import routing
from engram_sidecar.breaker import State
from engram_sidecar.consistency import Floors, Level, Session, begin_session
from engram_sidecar.errors import NodeRefused, ShardUnavailable, SlotMoved
from engram_sidecar.gate import Gate, Kind
from engram_sidecar.guard import Guard
from engram_sidecar.lookout import LOOK_S, Lookout
from engram_sidecar.patience import begin_request
from engram_sidecar.replicas import Replicas
from engram_sidecar.store import Place

pytestmark = pytest.mark.virtual_time
NAMES = ("p", "r0", "r1")
MEMBERS = tuple(Node(name, "localhost", port) for port, name in enumerate(NAMES, 1))
SHARD = Shard("s0", "engram", (Node("rw", "localhost", 9),), members=MEMBERS)
MAP = first_map("t_a", Strategy.USER, [SHARD])
RW = routing.primary(SHARD)
GONE = ShardUnavailable("s0", "connection refused")


def node(lsn: int = 100, timeline: int | None = 1, *, is_replica: bool = True, epoch: int | None = 1) -> dict[str, Any]:
    return {"is_replica": is_replica, "timeline": timeline, "lsn": lsn, "seen_lsn": lsn, "epoch": epoch, "id": 1}


class Servers:
    """Nodes that answer a look and a read with what they are, or fail; `rw` leads to the primary."""

    def __init__(self) -> None:
        primary = node(is_replica=False)
        self.nodes: dict[str, Any] = {"p": primary, "rw": primary, "r0": node(), "r1": node()}
        self.delays_s: dict[str, float] = {}
        self.held: dict[str, asyncio.Event] = {}
        self.asked = Counter[str]()
        self.looked = Counter[str]()
        self.renewed = 0

    async def read(self, place: Place, query: str, *args: object, timeout_s: float) -> list[Any]:
        name = place.node.name
        (self.looked if query == "look_node" else self.asked)[name] += 1
        if query != "look_node":
            await asyncio.sleep(self.delays_s.get(name, 0))
            if name in self.held:
                await self.held[name].wait()
        found = self.nodes[name]
        if isinstance(found, Exception):
            raise found
        return [found] * (len(args[0]) if query == "get_memories" and isinstance(args[0], list) else 1)

    async def write(self, place: Place, query: str, *args: object, timeout_s: float) -> list[Any]:
        raise NotImplementedError

    @asynccontextmanager
    async def transaction(self, place: Place, timeout_s: float) -> AsyncIterator[Any]:
        raise NotImplementedError
        yield

    async def renew(self, place: Place) -> None:
        self.renewed += 1


class Stage:
    """A sidecar's way to such nodes, of which all were looked at."""

    def __init__(self, tuned: Resilience = Resilience(retry_percent=0)) -> None:  # noqa: B008  a frozen value
        self.servers = Servers()
        self.floors = Floors()
        self.reads = Counter[tuple[bool, Level]]()
        self.hedges: list[bool] = []
        self.tuned = tuned
        self.gate = Gate(self.servers, lambda: self.tuned)
        self.guard = Guard(self.gate, lambda: self.tuned, lambda _: None, lambda _: None)
        self.lookout = Lookout(self.servers, lambda: 10.0)
        self.replicas = Replicas(self.guard, self.lookout, self.servers.renew, self._count, on_hedge=self.hedges.append)
        self.follow(MAP)

    def _count(self, is_by_replica: bool, level: Level) -> None:
        self.reads[is_by_replica, level] += 1

    def follow(self, shard_map: ShardMap) -> None:
        self.floors.follow(shard_map)
        self.lookout.follow(shard_map)

    async def looked(self) -> None:
        """All nodes are looked at once, because somebody read."""
        await self.read()
        task = asyncio.create_task(self.lookout.run())
        await asyncio.sleep(LOOK_S / 10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self.servers.asked.clear()
        self.servers.looked.clear()
        self.reads.clear()
        self.hedges.clear()

    async def asked(self, name: str) -> None:
        """The node was asked for a read."""
        async with asyncio.timeout(5):
            while not self.servers.asked[name]:  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    async def read(self, query: str = "get_memories", *tokens: Token, level: str = "session") -> Session:
        begin_request()
        session = begin_session(self.floors)
        session.read_headers([level], [str(each) for each in tokens], asyncio.get_running_loop().time())
        asked = ([7], ["an id"]) if query == "get_memories" else ()
        self.rows = await self.replicas.read(RW, query, *asked, timeout_s=5.0)
        return session


@pytest.fixture
async def stage() -> Stage:
    found = Stage()
    await found.looked()
    return found


def told(lsn: int, timeline: int = 1, epoch: int = 1) -> Token:
    return Token(epoch, {mark_of("s0"): Position(timeline, lsn)})


def token_of(session: Session) -> Position | None:
    return Token.parse(session.headers()["Engram-Session"]).of("s0")


async def test_before_anybody_has_looked_the_primary_answers() -> None:
    found = Stage()
    await found.read()
    assert found.servers.asked == {"rw": 1}


@pytest.mark.parametrize(
    ("level", "asked"), [("session", {"r0", "r1"}), ("eventual", {"r0", "r1"}), ("strong", {"rw"})]
)
async def test_who_answers_depends_on_what_is_asked_for(stage: Stage, level: str, asked: set[str]) -> None:
    for _ in range(40):
        await stage.read(level=level)
    assert set(stage.servers.asked) == asked
    assert stage.reads == {(asked != {"rw"}, Level(level)): 40}
    assert not stage.servers.looked


async def test_a_session_ahead_of_what_is_known_looks_again_and_then_asks_the_primary(stage: Stage) -> None:
    stage.servers.nodes["r0"] = stage.servers.nodes["r1"] = node(150)
    await stage.read("get_memories", told(150))
    assert sum(stage.servers.looked.values()) == 1
    assert "rw" not in stage.servers.asked
    answered = await stage.read("get_memories", told(151))
    assert stage.servers.asked["rw"] == 1
    assert token_of(answered) == Position(1, 100), "the primary has the last word"


async def test_of_two_replicas_the_faster_one_is_asked(stage: Stage) -> None:
    stage.servers.delays_s = {"r0": 0.02}
    for _ in range(30):
        await stage.read()
    assert stage.servers.asked["r1"] >= 25


@pytest.mark.parametrize("failure", [GONE, NodeRefused("s0", "no session"), SlotMoved("s0")])
async def test_what_a_replica_does_not_answer_the_primary_does(stage: Stage, failure: Exception) -> None:
    stage.servers.nodes["r0"] = stage.servers.nodes["r1"] = failure
    for _ in range(10):
        await stage.read()
    assert stage.servers.asked["rw"] == 10
    assert stage.rows == [stage.servers.nodes["rw"]]


async def test_a_replica_that_fails_again_and_again_is_left_alone(stage: Stage) -> None:
    stage.servers.nodes["r0"] = stage.servers.nodes["r1"] = GONE
    for _ in range(30):
        await stage.read()
    states = {each.node: each.view.state for each in stage.gate.breakers() if each.kind is Kind.RETRIEVE}
    assert states == {"r0": State.OPEN, "r1": State.OPEN, "rw": State.CLOSED}
    assert stage.servers.asked["r0"] + stage.servers.asked["r1"] == 10
    await stage.gate.close()


async def test_a_service_that_leads_to_a_replica_is_no_primary(stage: Stage) -> None:
    stage.servers.nodes["rw"] = node()
    with pytest.raises(ShardUnavailable, match="not the primary"):
        await stage.read(level="strong")
    assert (stage.servers.asked["rw"], stage.servers.renewed) == (2, 2)


async def test_a_primary_that_was_left_behind_answers_no_session(stage: Stage) -> None:
    stage.servers.nodes["p"] = node(120, timeline=2, is_replica=False)
    await stage.looked()
    with pytest.raises(ShardUnavailable, match="not the primary"):
        await stage.read("get_memories", told(10, timeline=2))


async def test_an_answer_tells_its_session_what_it_showed(stage: Stage) -> None:
    stage.servers.nodes["r0"] = stage.servers.nodes["r1"] = node(130) | {"seen_lsn": 131}
    answered = await stage.read("get_memories", told(90))
    assert token_of(answered) == Position(1, 131)
    eventual = await stage.read("get_memories", told(90), level="eventual")
    assert token_of(eventual) == Position(1, 90)


async def test_a_replica_that_was_promoted_meanwhile_answers_as_a_primary_does(stage: Stage) -> None:
    stage.servers.nodes["r0"] = stage.servers.nodes["r1"] = node(130, timeline=2, is_replica=False)
    assert token_of(await stage.read("get_memories", told(90))) == Position(2, 130)


async def test_a_replica_on_no_known_timeline_sends_its_session_to_the_primary(stage: Stage) -> None:
    stage.servers.nodes["r0"] = stage.servers.nodes["r1"] = node(130, timeline=None)
    answered = await stage.read("get_memories", told(90))
    assert token_of(answered) == Position(1, 130), "on the one of before"


async def test_a_row_of_nulls_is_no_memory(stage: Stage) -> None:
    for name in NAMES:
        stage.servers.nodes[name] |= {"id": None}
    await stage.read("list_memories")
    assert stage.rows == []
    await stage.read("get_memories")
    assert len(stage.rows) == 1, "there it is the answer that there is no memory"


async def test_with_a_new_map_a_replica_is_not_asked_before_it_has_it_too(stage: Stage) -> None:
    stage.follow(ShardMap(MAP.tenant, 2, MAP.strategy, MAP.shards, MAP.ranges))
    await stage.looked()
    await stage.read()
    assert stage.servers.asked == {"rw": 1}
    for name in NAMES:
        stage.servers.nodes[name] |= {"epoch": 2}
    await stage.looked()
    await stage.read()
    assert stage.servers.asked.keys() <= {"r0", "r1"}


async def test_queries_about_the_whole_tenant_go_to_the_primary(stage: Stage) -> None:
    await stage.read("tenant_usage")
    assert stage.servers.asked == {"rw": 1}
    assert not stage.reads


async def test_nobody_is_looked_at_while_nobody_reads() -> None:
    found = Stage()
    task = asyncio.create_task(found.lookout.run())
    await asyncio.sleep(LOOK_S / 10)
    assert not found.servers.looked
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_node_that_refuses_looks_is_left_alone_for_a_while(stage: Stage) -> None:
    stage.servers.nodes["r0"] = NodeRefused("s0", "another schema")
    await stage.looked()
    await stage.looked()
    assert not stage.servers.looked["r0"]
    assert {name for _, name, _ in stage.lookout.lags()} == {"r1"}


# Reads that are late


HELD = ("r0", "r1")


@pytest.fixture
async def alone(hedging: Stage) -> Stage:
    """Such a stage where no other replica is far enough for what is asked."""
    hedging.servers.held, held = {}, hedging.servers.held
    hedging.servers.nodes["r1"] = node(50)
    await hedging.looked()
    hedging.servers.held = held
    return hedging


@pytest.fixture
async def hedging() -> AsyncIterator[Stage]:
    """A stage with retries, whose replicas answer nothing until they are let."""
    found = Stage(Resilience())
    await found.looked()
    for _ in range(100):  # retries are earned, and times measured
        await found.read()
    found.servers.asked.clear()
    found.reads.clear()
    found.hedges.clear()
    found.servers.held = {name: asyncio.Event() for name in HELD}
    yield found
    for event in found.servers.held.values():
        event.set()
    await found.gate.close()


def states_of(stage: Stage) -> set[tuple[State, int]]:
    return {(each.view.state, each.view.failures) for each in stage.gate.breakers()}


@pytest.mark.parametrize("query", ["get_memories", "list_memories"])
async def test_a_late_replica_is_not_waited_for_where_another_one_answers(hedging: Stage, query: str) -> None:
    del hedging.servers.held["r1"]
    reads = 40
    for _ in range(reads):
        await hedging.read(query)
    assert hedging.servers.asked["r0"] <= reads / 4, "it is known to be the slower one, and is else asked for a half"
    assert hedging.servers.asked["r1"] == reads
    assert not hedging.servers.asked["rw"]
    assert hedging.hedges == [True] * hedging.servers.asked["r0"]
    assert hedging.reads == {(True, Level.SESSION): reads}
    assert states_of(hedging) == {(State.CLOSED, 0)}


async def test_without_another_replica_the_primary_answers_and_tells_the_session(alone: Stage) -> None:
    alone.servers.nodes["rw"] |= {"lsn": 140, "seen_lsn": 141}
    answered = await alone.read("get_memories", told(90))
    assert alone.servers.asked == {"r0": 1, "rw": 1}
    assert token_of(answered) == Position(1, 141)
    assert answered.headers()["Age"] == "0"
    assert alone.hedges == [True]
    assert alone.reads == {(False, Level.SESSION): 1}


async def test_only_the_answer_that_is_given_moves_the_session(alone: Stage) -> None:
    """The first one comes while the second one is waited for: that one's position is nobody's."""
    alone.servers.nodes["rw"] |= {"lsn": 900, "seen_lsn": 900}
    alone.servers.held["rw"] = asyncio.Event()
    reading = asyncio.create_task(alone.read("get_memories", told(90)))
    await alone.asked("rw")
    alone.servers.held["r0"].set()
    assert token_of(await reading) == Position(1, 100)
    alone.servers.held["rw"].set()
    await asyncio.sleep(0.01)
    assert alone.floors.of("s0") == Position(1, 100)
    assert alone.hedges == [False]
    assert alone.reads == {(True, Level.SESSION): 1}


@pytest.mark.parametrize("wrong", [node(), node(120, timeline=0, is_replica=False), GONE, SlotMoved("s0")], ids=repr)
async def test_a_second_answer_that_is_not_right_does_not_count(alone: Stage, wrong: object) -> None:
    alone.servers.nodes["rw"] = wrong
    reading = asyncio.create_task(alone.read("get_memories", told(90)))
    await alone.asked("rw")
    await asyncio.sleep(0.01)
    assert not reading.done()
    alone.servers.held["r0"].set()
    assert token_of(await reading) == Position(1, 100)
    assert alone.hedges == [False]


async def test_where_neither_answers_the_primary_is_asked_as_ever(alone: Stage) -> None:
    primary, alone.servers.nodes["rw"] = alone.servers.nodes["rw"], GONE
    reading = asyncio.create_task(alone.read("get_memories", told(90)))
    await alone.asked("rw")
    await asyncio.sleep(0.01)
    alone.servers.nodes |= {"r0": GONE, "rw": primary}
    alone.servers.held["r0"].set()
    await reading
    assert alone.servers.asked == {"r0": 1, "rw": 2}
    assert alone.reads == {(False, Level.SESSION): 1}


def repeats_left(stage: Stage) -> int:
    """How many reads may be asked again now; none after that."""
    left = 0
    while stage.guard.may_hedge("s0"):
        left += 1
    return left


async def test_a_read_earns_its_part_of_a_retry_once_however_many_nodes_it_is_asked_of(alone: Stage) -> None:
    alone.tuned, alone.servers.held = Resilience(retry_percent=50), {}
    alone.servers.nodes["r0"] = GONE
    assert repeats_left(alone) > 0
    for _ in range(5):
        await alone.read("get_memories", told(90))
    assert alone.servers.asked == {"r0": 5, "rw": 5}
    assert 2 <= repeats_left(alone) <= 3  # and not five; one may be what time earned


async def test_a_get_that_is_withdrawn_leaves_those_that_were_asked_with_it_alone(alone: Stage) -> None:
    """Three gets go to the node in one statement; one of them is not late yet, and is answered by it."""

    async def ask_beside() -> list[Any]:
        begin_request()
        place = routing.members(SHARD)["r0"]
        return await alone.guard.read_once(place, "get_memories", [7], ["an id"], timeout_s=8.0)

    beside = asyncio.create_task(ask_beside())
    await asyncio.gather(*(alone.read("get_memories", told(90)) for _ in range(2)))
    assert not beside.done()
    alone.servers.held["r0"].set()
    assert await beside == [alone.servers.nodes["r0"]]
    assert states_of(alone) == {(State.CLOSED, 0)}


async def test_without_retries_nothing_is_asked_twice(stage: Stage) -> None:
    stage.servers.held = {name: asyncio.Event() for name in HELD}
    reading = asyncio.create_task(stage.read())
    await asyncio.sleep(0.3)
    assert sum(stage.servers.asked.values()) == 1
    for event in stage.servers.held.values():
        event.set()
    await reading
    assert stage.hedges == []


async def test_a_caller_that_leaves_withdraws_both_questions(hedging: Stage) -> None:
    reading = asyncio.create_task(hedging.read("list_memories"))
    await hedging.asked("r0")
    await hedging.asked("r1")
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await asyncio.sleep(0.01)
    assert not hedging.replicas._withdrawn
    assert states_of(hedging) == {(State.CLOSED, 0)}
    assert hedging.hedges == []


async def test_questions_to_a_shard_that_becomes_ever_slower_stay_within_the_budget() -> None:
    """Each read is late by the measure of before; the second questions are what the budget allows, and no more."""
    stage = Stage(Resilience())
    await stage.looked()
    for _ in range(100):
        await stage.read("list_memories")
    stage.servers.asked.clear()
    stage.hedges.clear()
    rounds, at_once = 20, 10
    for number in range(rounds):
        stage.servers.delays_s = dict.fromkeys(HELD, 0.006 * 1.15**number)
        await asyncio.gather(*(stage.read("list_memories") for _ in range(at_once)))
    questions = sum(stage.servers.asked.values())
    assert len(stage.hedges) >= questions - rounds * at_once > 10
    assert questions / (rounds * at_once) <= 1.2
