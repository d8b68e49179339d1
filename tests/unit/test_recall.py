"""What a read by id is answered with: what is kept where that is exact enough, else one load for all who ask."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from engram_contract.session import Position, Token
from engram_contract.shardmap import Node, Shard, Strategy, first_map
from engram_contract.slots import MemoryId
from engram_sidecar import gathering
from engram_sidecar import recall as room
from engram_sidecar.bulletin import Bulletin
from engram_sidecar.consistency import Floors, Session, Source, begin_session, session_of_request
from engram_sidecar.envelope import Drawer
from engram_sidecar.errors import (
    IdempotencyKeyInUse,
    OutcomeUnknown,
    PreconditionFailed,
    ShardUnavailable,
    Shed,
    SidecarError,
)
from engram_sidecar.fetching import Fetched
from engram_sidecar.kept import Count, Recalled, key_of
from engram_sidecar.patience import begin_request
from engram_sidecar.recall import DOUBT_S, LONE_S, Recall, Rules
from engram_sidecar.records import Memory
from engram_sidecar.redisdoor import Door
from engram_sidecar.remote import Remote
from tests.unit.test_config import POLICY

ID = MemoryId(7, UUID("017f22e2-79b0-7cc3-98c4-dc0c0c07398f"))
KEY = key_of(ID)
NODES = (Node("n0", "localhost", 1), Node("n1", "localhost", 2))
MAP = first_map("t_a", Strategy.USER, [Shard("s0", "engram", NODES[:1], members=NODES)])
NOW = datetime(2026, 11, 22, tzinfo=UTC)
STALE_S = POLICY.resilience.staleness_seconds


class Shelf:
    """A recall before a shard that holds one memory, with a clock of its own."""

    def __init__(self, *, encrypts: bool = True) -> None:
        self.now_s = 1_000.0
        self.floors = Floors(b"this one")
        self.floors.follow(MAP)
        policy = replace(POLICY, encryption=encrypts)
        door = Door()  # without a login: nobody tells, and nothing is shared
        bulletin = Bulletin(door, lambda *_: None, lambda: None)
        remote = Remote(door, bulletin, lambda: 60.0, lambda: encrypts, self.unix_s)
        self.sheds = 0
        rules = Rules(lambda: policy, lambda _: "s0", self.opened, self.opened, self.unix_s, self.shed)
        self.recall = Recall(self.floors, rules, Drawer(bytes(32)), bulletin, remote, self.fetch)
        self.recall.adopt()
        self.version = 1
        self.created = NOW - timedelta(days=1)
        self.source: Source | None = None  # a primary's, now
        self.expires: datetime | None = None
        self.failure: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.loads = 0

    async def opened(self, memory: Memory) -> Memory:
        return memory

    def unix_s(self) -> float:
        return NOW.timestamp() + self.now_s - 1_000

    def shed(self) -> None:
        self.sheds += 1

    async def fetch(self, ids: Sequence[MemoryId]) -> list[Fetched | SidecarError]:
        self.loads += 1
        version, began_s = self.version, self.now_s
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        session, source = session_of_request(), self.source or Source(began_s)
        session.met(source)
        if not version:
            return [Fetched(None, "s0", source)] * len(ids)
        created = self.created
        memory = Memory(ID, (), "k", "fact", "ada", None, None, f"secret {version}", "1", None, created, created,
                        self.expires, version)  # fmt: skip
        return [Fetched(memory, "s0", source)] * len(ids)

    def session(self, token: Token | None = None, level: str = "session") -> Session:
        begin_request()
        session = begin_session(self.floors)
        session.read_headers([level], [] if token is None else [str(token)], self.now_s)
        return session

    async def get(self, token: Token | None = None, level: str = "session") -> Recalled:
        self.session(token, level)
        return await self.recall.get(ID)

    async def shown(self, token: Token | None = None, level: str = "session") -> tuple[int, int, str]:
        """The version, the age in seconds, and what was said of the cache, without its time to live."""
        session = self.session(token, level)
        recalled = await self.recall.get(ID)
        said = session.headers()
        version = json.loads(recalled.body)["version"] if recalled.tag else 0
        return version, int(said.get("Age", 0)), said["Cache-Status"].removeprefix("engram; ").partition("; ttl")[0]

    async def write(self, outcome: BaseException | None = None) -> None:
        async with self.recall.writing([ID]):
            if outcome is not None:
                raise outcome
            self.version += 1


async def settled() -> None:
    """All that can go on without the shard has."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Shelf:
    found = Shelf()
    monkeypatch.setattr(room, "monotonic_s", lambda: found.now_s)
    monkeypatch.setattr(room, "jittered", lambda seconds, _ratio: seconds)
    return found


async def test_what_was_read_is_shown_again_with_its_age_until_it_is_too_old(shelf: Shelf) -> None:
    assert await shelf.shown() == (1, 0, "fwd=uri-miss")
    shelf.version = 2  # by somebody else
    shelf.now_s += 1.5
    assert await shelf.shown() == (1, 2, "hit")
    shelf.now_s += LONE_S - 1.4
    assert await shelf.shown() == (2, 0, "fwd=stale")
    assert shelf.loads == 2


async def test_that_there_is_no_such_memory_is_kept_too(shelf: Shelf) -> None:
    shelf.version = 0
    assert [await shelf.shown(), await shelf.shown()] == [(0, 0, "fwd=uri-miss"), (0, 0, "hit")]
    await shelf.write()
    assert await shelf.shown() == (1, 0, "fwd=uri-miss")


async def test_a_write_here_is_read_at_once(shelf: Shelf) -> None:
    for version in range(1, 6):
        assert await shelf.shown() == (version, 0, "fwd=uri-miss")
        assert (await shelf.shown())[2] == "hit"
        await shelf.write()


async def test_a_write_that_was_refused_leaves_nothing_but_a_miss(shelf: Shelf) -> None:
    await shelf.get()
    shelf.version = 2  # by somebody else, which is why this one's condition fails
    with pytest.raises(PreconditionFailed):
        await shelf.write(PreconditionFailed())
    assert await shelf.shown() == (2, 0, "fwd=uri-miss")
    assert (await shelf.shown())[2] == "hit"


@pytest.mark.parametrize("outcome", [OutcomeUnknown("s0", "lost"), asyncio.CancelledError(), ValueError()], ids=repr)
async def test_after_a_write_of_unknown_outcome_nothing_is_kept_until_it_has_ended(
    shelf: Shelf, outcome: BaseException
) -> None:
    with pytest.raises(type(outcome)):
        await shelf.write(outcome)
    assert [(await shelf.shown())[2] for _ in range(3)] == ["fwd=uri-miss"] * 3
    shelf.now_s += DOUBT_S + 1
    assert [(await shelf.shown())[2] for _ in range(2)] == ["fwd=uri-miss", "hit"]


async def test_what_was_read_before_a_write_ended_is_not_kept(shelf: Shelf) -> None:
    shelf.gate = asyncio.Event()
    early = asyncio.create_task(shelf.get())
    await settled()
    assert shelf.loads == 1
    await shelf.write()
    late = asyncio.create_task(shelf.get())
    await settled()
    shelf.gate.set()
    assert [json.loads(each.body)["version"] for each in await asyncio.gather(early, late)] == [1, 2]
    assert (await shelf.shown())[0] == 2


async def test_a_strong_read_asks_the_shard(shelf: Shelf) -> None:
    await shelf.get()
    shelf.version = 2
    assert (await shelf.shown(level="strong"))[:2] == (2, 0)
    assert await shelf.shown() == (2, 0, "hit"), "what a strong read found is newer than what was kept"


async def test_a_session_from_elsewhere_takes_only_what_was_read_since(shelf: Shelf) -> None:
    await shelf.get()
    shelf.version = 2  # at the other sidecar, by this session
    shelf.now_s += 0.5
    session = shelf.session(Token(1, {}, b"the next"))
    shelf.now_s += 0.001
    assert json.loads((await shelf.recall.get(ID)).body)["version"] == 2
    token = Token.parse(session.headers()["Engram-Session"])
    assert token.home == b"this one"
    shelf.now_s += 0.5
    assert await shelf.shown(token) == (2, 1, "hit")
    shelf.now_s += 0.1
    assert (await shelf.shown(Token(1, {}, b"the next")))[2] == "fwd=request", "it may have written since"


async def test_a_session_that_was_never_elsewhere_takes_what_is_kept(shelf: Shelf) -> None:
    session = shelf.session()
    await shelf.recall.get(ID)
    token = Token.parse(session.headers()["Engram-Session"])
    assert (token.home, token.since_ms) == (b"this one", 0)
    assert (await shelf.shown(token))[2] == "hit"


async def test_a_session_that_met_a_newer_map_asks_the_shard(shelf: Shelf) -> None:
    await shelf.get()
    assert (await shelf.shown(Token(MAP.epoch + 1, {}, b"this one")))[2] == "fwd=request"


def by_replica(shelf: Shelf, lsn: int) -> Source:
    return Source(shelf.now_s, Position(1, lsn), Position(1, lsn + 5), behind_s=0.4)


async def test_what_a_replica_said_that_lacks_what_was_written_here_is_not_kept(shelf: Shelf) -> None:
    shelf.floors.settle("s0", Position(1, 100), shelf.floors.ticket())
    shelf.source = by_replica(shelf, 99)
    assert [(await shelf.shown())[2] for _ in range(2)] == ["fwd=uri-miss"] * 2
    shelf.source = by_replica(shelf, 104)
    assert (await shelf.shown())[2] == "fwd=uri-miss"
    shelf.now_s += 1
    assert await shelf.shown() == (1, 2, "hit"), "as old as the replica was, and as long as it is kept"


async def test_who_is_shown_what_a_replica_said_has_met_what_it_may_have_seen(shelf: Shelf) -> None:
    shelf.floors.settle("s0", Position(1, 100), shelf.floors.ticket())
    shelf.source = by_replica(shelf, 104)
    await shelf.get()
    session = shelf.session()
    await shelf.recall.get(ID)
    assert Token.parse(session.headers()["Engram-Session"]).of("s0") == Position(1, 109)


async def test_a_shard_that_is_away_is_stood_in_for_up_to_the_bound(shelf: Shelf) -> None:
    await shelf.get()
    shelf.failure = ShardUnavailable("s0", "connection refused")
    shelf.now_s += LONE_S + 1
    session = shelf.session()
    assert json.loads((await shelf.recall.get(ID)).body)["version"] == 1
    assert session.headers()["Cache-Status"] == "engram; hit; ttl=-1; detail=stale"
    assert session.headers()["Age"] == "4"
    with pytest.raises(ShardUnavailable):
        await shelf.get(level="strong")
    shelf.now_s += STALE_S
    with pytest.raises(ShardUnavailable):
        await shelf.get()
    assert shelf.recall.count.stale == 1


async def test_what_expires_is_shown_no_longer_than_that(shelf: Shelf) -> None:
    shelf.expires = NOW + timedelta(seconds=1)
    await shelf.get()
    shelf.now_s += 0.9
    assert (await shelf.shown())[2] == "hit"
    shelf.now_s += 0.2
    shelf.failure = ShardUnavailable("s0", "away")
    with pytest.raises(ShardUnavailable):
        await shelf.get()


async def test_an_entry_near_its_end_is_read_again_beside_the_request(shelf: Shelf) -> None:
    await shelf.get()
    shelf.version = 2
    shelf.now_s += LONE_S - 0.5
    assert await shelf.shown() == (1, 3, "hit")
    await settled()
    assert await shelf.shown() == (2, 0, "hit")
    assert shelf.loads == 2
    await shelf.recall.close()


async def test_five_hundred_who_ask_at_once_ask_the_shard_once(shelf: Shelf) -> None:
    shelf.gate = asyncio.Event()
    tasks = [asyncio.create_task(shelf.get()) for _ in range(500)]
    await settled()
    tasks[0].cancel()  # the first of them, for whom it was asked
    await settled()
    shelf.gate.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert all(isinstance(each, Recalled) for each in found[1:])
    assert shelf.loads == 1


async def test_a_failure_is_everybodys_who_waited_and_nobodys_after(shelf: Shelf) -> None:
    shelf.gate, shelf.failure = asyncio.Event(), ShardUnavailable("s0", "away")
    tasks = [asyncio.create_task(shelf.get()) for _ in range(5)]
    await settled()
    shelf.gate.set()
    assert {type(each) for each in await asyncio.gather(*tasks, return_exceptions=True)} == {ShardUnavailable}
    shelf.failure = None
    assert (await shelf.shown())[0] == 1
    assert shelf.loads == 2


@pytest.mark.parametrize("encrypts", [True, False])
async def test_what_is_kept_of_a_tenant_that_encrypts_is_ciphertext(
    monkeypatch: pytest.MonkeyPatch, encrypts: bool
) -> None:
    shelf = Shelf(encrypts=encrypts)
    monkeypatch.setattr(room, "monotonic_s", lambda: shelf.now_s)
    await shelf.get()
    found = shelf.recall.fresh(KEY)
    assert found is not None
    assert (b"secret" in found[0].body) is not encrypts
    assert b"secret" in shelf.recall.hit(KEY, found[0])


async def test_another_configuration_keeps_nothing(shelf: Shelf) -> None:
    await shelf.get()
    shelf.recall.adopt()
    assert (await shelf.shown())[2] == "fwd=uri-miss"


async def crossed(shelf: Shelf, early: int, late: int) -> list[int]:
    """Two loads, of which the first ends last: what each showed, and who is asked after them."""
    shelf.version = early
    shelf.gate = first = asyncio.Event()
    strong = asyncio.create_task(shelf.shown(level="strong"))
    await settled()
    shelf.version, shelf.gate = late, None
    plain = await shelf.shown()
    first.set()
    return [(await strong)[0], plain[0], (await shelf.shown())[0]]


@pytest.mark.parametrize(("early", "late"), [(1, 2), (0, 1), (1, 0)])
async def test_an_answer_that_comes_late_does_not_take_the_place_of_a_later_one(
    shelf: Shelf, early: int, late: int
) -> None:
    assert await crossed(shelf, early, late) == [early, late, late]


async def test_nobody_joins_a_load_that_is_older_than_what_was_shown(shelf: Shelf) -> None:
    shelf.gate = first = asyncio.Event()
    slow = asyncio.create_task(shelf.shown())
    await settled()
    shelf.version, shelf.gate = 2, None
    assert (await shelf.shown(level="strong"))[0] == 2
    shelf.recall.flush()
    assert (await shelf.shown())[0] == 2
    first.set()
    assert (await slow)[0] == 1
    assert (await shelf.shown())[0] == 2


async def test_what_was_shown_and_could_not_be_kept_leaves_nothing_older(shelf: Shelf) -> None:
    await shelf.get()
    shelf.version, shelf.source = 2, by_replica(shelf, 99)  # of which is not known that it has what was written here
    assert (await shelf.shown(level="strong"))[0] == 2
    shelf.source = None
    assert (await shelf.shown())[0] == 2


async def test_what_a_list_showed_is_not_followed_by_an_older_state(shelf: Shelf) -> None:
    await shelf.get()
    shelf.version = 2
    [fetched] = await shelf.fetch([ID])
    assert isinstance(fetched, Fetched)
    memory = fetched.memory
    assert memory is not None
    shelf.recall.saw([memory])
    assert await shelf.shown() == (2, 0, "fwd=uri-miss")
    shelf.recall.saw([memory])
    assert await shelf.shown() == (2, 0, "hit"), "the same state is kept"


async def test_after_a_doubt_a_replica_that_may_lack_what_was_not_heard_is_not_kept(shelf: Shelf) -> None:
    shelf.floors.settle("s0", Position(1, 100), shelf.floors.ticket())
    shelf.recall.doubt()
    shelf.now_s += 0.3
    shelf.source = by_replica(shelf, 104)  # as it was .4 s ago: before the doubt
    assert [(await shelf.shown())[2] for _ in range(2)] == ["fwd=uri-miss"] * 2
    shelf.now_s += 0.2
    shelf.source = by_replica(shelf, 120)
    assert [(await shelf.shown())[2] for _ in range(2)] == ["fwd=uri-miss", "hit"]


async def test_what_others_wrote_is_dropped_and_bounds_what_replicas_may_add(shelf: Shelf) -> None:
    shelf.floors.settle("s0", Position(1, 100), shelf.floors.ticket())
    await shelf.get()
    shelf.recall.heard("s0", [ID], Position(1, 200))
    shelf.source = by_replica(shelf, 150)
    assert [(await shelf.shown())[2] for _ in range(2)] == ["fwd=uri-miss"] * 2
    shelf.floors.settle("s0", Position(2, 10))
    shelf.source = Source(shelf.now_s, Position(2, 20), Position(2, 20))
    assert [(await shelf.shown())[2] for _ in range(2)] == ["fwd=uri-miss", "hit"], "a new primary's history"


async def test_one_who_joined_is_told_how_old_the_answer_is(shelf: Shelf) -> None:
    shelf.floors.settle("s0", Position(1, 100), shelf.floors.ticket())
    shelf.gate, shelf.source = asyncio.Event(), Source(shelf.now_s, Position(1, 104), Position(1, 104), behind_s=8.0)
    tasks = [asyncio.create_task(shelf.shown()) for _ in range(2)]
    await settled()
    shelf.gate.set()
    assert [each[1] for each in await asyncio.gather(*tasks)] == [8, 8]


async def test_one_that_lives_shorter_than_the_policy_says_is_not_read_again_at_each_hit(shelf: Shelf) -> None:
    shelf.expires = NOW + timedelta(seconds=20)
    await shelf.get()
    for _ in range(5):
        assert (await shelf.shown())[2] == "hit"
    await settled()
    assert shelf.loads == 1


async def test_one_that_was_made_anew_by_a_clock_behind_takes_the_older_one_out(shelf: Shelf) -> None:
    await shelf.get()
    shelf.created -= timedelta(seconds=5)
    assert (await shelf.shown(level="strong"))[0] == 1
    assert (await shelf.shown())[2] == "fwd=uri-miss"


async def test_a_write_whose_own_first_attempt_holds_its_key_may_have_happened(shelf: Shelf) -> None:
    with pytest.raises(IdempotencyKeyInUse):
        await shelf.write(IdempotencyKeyInUse())
    assert [(await shelf.shown())[2] for _ in range(2)] == ["fwd=uri-miss"] * 2


async def test_nothing_is_kept_while_others_are_told(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = list[str]()

    async def told(_ids: object) -> None:
        shown.extend([(await shelf.shown())[2] for _ in range(2)])

    monkeypatch.setattr(shelf.recall, "_tell", told)
    await shelf.write()
    assert shown == ["fwd=uri-miss"] * 2


async def test_who_joined_a_load_that_failed_is_counted_neither_as_a_miss_nor_as_collapsed(shelf: Shelf) -> None:
    """The metrics follow these numbers, and a counter that falls would end every scrape."""
    shelf.gate, shelf.failure = asyncio.Event(), ShardUnavailable("s0", "away")
    tasks = [asyncio.create_task(shelf.get()) for _ in range(5)]
    await settled()
    shelf.gate.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert shelf.recall.count == Count()
    shelf.failure, shelf.gate = None, asyncio.Event()
    tasks = [asyncio.create_task(shelf.get()) for _ in range(5)]
    await settled()
    shelf.gate.set()
    await asyncio.gather(*tasks)
    await shelf.get()
    assert shelf.recall.count == Count(hits=1, misses=1, collapsed=4, stores=1)


async def test_reads_beyond_those_that_may_wait_for_a_shard_are_shed(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "LATE_S", 60.0)
    shelf.gate = asyncio.Event()
    waiting = POLICY.resilience.waiting_requests

    first = asyncio.create_task(shelf.get(level="strong"))
    await settled()  # it is out
    rest = [asyncio.create_task(shelf.get(level="strong")) for _ in range(waiting)]
    await settled()
    assert dict(shelf.recall.waiting()) == {"s0": waiting}
    with pytest.raises(Shed):
        await shelf.get(level="strong")
    assert shelf.sheds == 1
    shelf.gate.set()
    assert len(await asyncio.gather(first, *rest)) == waiting + 1


async def test_reads_of_one_need_are_one_question_and_a_session_from_elsewhere_asks_alone(shelf: Shelf) -> None:
    shelf.gate = asyncio.Event()
    out = [asyncio.create_task(shelf.get(level="strong"))]
    await settled()
    out += [asyncio.create_task(shelf.get(level="strong")) for _ in range(5)]
    await settled()
    assert shelf.loads == 1
    out += [asyncio.create_task(shelf.get(Token(1, {}, b"the next"))) for _ in range(2)]
    await settled()
    assert shelf.loads == 3
    shelf.gate.set()
    await asyncio.gather(*out)
    assert shelf.loads == 4


async def test_a_load_that_breaks_is_told_to_who_waits(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(room, "memory_document", broken)
    with pytest.raises(ZeroDivisionError):
        await shelf.get()


@pytest.mark.parametrize(("look", "is_raised"), [(None, True), (Position(1, 90), False)])
async def test_an_eventual_read_raises_its_session_unless_a_replica_answered(
    shelf: Shelf, look: Position | None, is_raised: bool
) -> None:
    shelf.floors.settle("s0", Position(1, 10), shelf.floors.ticket())
    shelf.source = Source(shelf.now_s, look, Position(1, 100))
    session = shelf.session(level="eventual")
    await shelf.recall.get(ID)
    assert (session.position("s0") == Position(1, 100)) is is_raised
    assert session.headers()["Age"] == "0"
