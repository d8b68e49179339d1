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
        self.asked = Counter[str]()
        self.looked = Counter[str]()
        self.renewed = 0

    async def read(self, place: Place, query: str, *args: object, timeout_s: float) -> list[Any]:
        name = place.node.name
        (self.looked if query == "look_node" else self.asked)[name] += 1
        if query != "look_node":
            await asyncio.sleep(self.delays_s.get(name, 0))
        found = self.nodes[name]
        if isinstance(found, Exception):
            raise found
        return [found]

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

    def __init__(self) -> None:
        self.servers = Servers()
        self.floors = Floors()
        self.reads = Counter[tuple[bool, Level]]()
        self.gate = Gate(self.servers, lambda: Resilience(retry_percent=0))
        self.guard = Guard(self.gate, lambda: Resilience(retry_percent=0), lambda _: None, lambda _: None)
        self.lookout = Lookout(self.servers, lambda: 10.0)
        self.replicas = Replicas(self.guard, self.lookout, self.servers.renew, self._count)
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
