"""What the guard lets through to a node, what it repeats, and when it answers in the node's stead."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from uuid import UUID

import pytest

from engram_contract.resilience import Resilience
from engram_contract.shardmap import Node
from engram_contract.slots import MemoryId
from engram_sidecar import gathering
from engram_sidecar.breaker import State
from engram_sidecar.errors import (
    BreakerOpen,
    Collision,
    DeadlineExceeded,
    IdempotencyKeyInUse,
    NodeRefused,
    OutcomeUnknown,
    QuotaExceeded,
    ShardUnavailable,
    Shed,
    SlotMoved,
)
from engram_sidecar.gate import Gate, Kind
from engram_sidecar.guard import Guard
from engram_sidecar.indexing import Indexed
from engram_sidecar.patience import begin_request
from engram_sidecar.records import Conditions, Draft, ETag, Put
from engram_sidecar.store import CONNECTIONS_PER_NODE, Place
from engram_sidecar.writes import is_repeatable, put_arguments

pytestmark = pytest.mark.virtual_time
PLACE = Place("s0", Node("s0-0", "localhost", 1), "engram")
OTHER = Place("s1", Node("s1-0", "localhost", 2), "engram")
ID = MemoryId(7, UUID("017f22e2-79b0-7cc3-98c4-dc0c0c07398f"))
TAG = ETag(3, 1_000)
GONE = ShardUnavailable("s0", "connection refused")
LOST = OutcomeUnknown("s0", "the connection was lost during the write")
LATE = DeadlineExceeded("s0", "no answer in time")
# One attempt of a write at once, and no retries, so that each call is one question.
PLAIN = Resilience(failover_seconds=0, retry_percent=0)


class Node0:
    """A node that does what the script says, and counts what reaches it."""

    def __init__(self, *script: Any) -> None:  # noqa: ANN401
        self.script = list(script)
        self.asked = 0

    async def _next(self) -> Any:  # noqa: ANN401
        await asyncio.sleep(0)
        self.asked += 1
        outcome = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(outcome, BaseException):
            if isinstance(outcome, ShardUnavailable):
                outcome.again_s = None  # it is another failure
            raise outcome
        return await outcome() if callable(outcome) else outcome

    async def read(self, place: Place, query: str, *args: object, timeout_s: float) -> list[Any]:
        rows: list[Any] = await self._next()
        return rows

    async def write(self, place: Place, query: str, *args: object, timeout_s: float) -> list[Any]:
        rows: list[Any] = await self._next()
        return rows

    @asynccontextmanager
    async def transaction(self, place: Place, timeout_s: float) -> AsyncIterator[Any]:
        yield await self._next()


class Stage:
    """A guard before such a node; every call is a request of its own."""

    def __init__(self, node: Node0, tuned: Resilience = PLAIN) -> None:
        self.node = node
        self.retries: list[Kind] = []
        self.sheds: list[Kind] = []
        self.gate = Gate(node, lambda: tuned)
        self.guard = Guard(self.gate, lambda: tuned, self.retries.append, self.sheds.append)

    async def read(self, query: str = "get_map", *args: object, place: Place = PLACE) -> list[Any]:
        begin_request()
        return await self.guard.read(place, query, *args, timeout_s=5.0)

    async def write(self, query: str = "borrow_quota", *args: object) -> list[Any]:
        begin_request()
        return await self.guard.write(PLACE, query, *args, timeout_s=5.0)

    async def transact(self) -> None:
        begin_request()
        async with self.guard.transaction(PLACE, 5.0):
            pass

    async def transact_once(self) -> object:
        async with self.guard.transaction(PLACE, 5.0) as done:
            return done

    def state(self, kind: Kind, place: Place = PLACE) -> State:
        shown = {(each.node, each.kind): each.view.state for each in self.gate.breakers()}
        return shown[place.node.name, kind]


async def settled() -> None:
    """All that can go on without the node has."""
    for _ in range(50):
        await asyncio.sleep(0)


async def failure_of(call: Awaitable[object]) -> Exception:
    with pytest.raises(Exception) as raised:  # noqa: PT011  which one is what the tests look at
        await call
    assert isinstance(raised.value, Exception)
    return raised.value


def put_of(conditions: Conditions) -> tuple[object, ...]:
    return put_arguments(Put(ID, Draft("tea", "1"), conditions), Indexed("", 0), None)


# Breakers


@pytest.mark.parametrize(("kind", "failures"), [(Kind.STORE, 3), (Kind.RETRIEVE, 5), (Kind.SEARCH, 5)], ids=str)
@pytest.mark.parametrize("failure", [GONE, LOST], ids=lambda failure: type(failure).__name__)
async def test_an_open_breaker_answers_without_asking(kind: Kind, failures: int, failure: Exception) -> None:
    stage = Stage(Node0(failure))
    searching = partial(stage.read, "search_memories")
    calls: dict[Kind, Callable[[], Awaitable[object]]] = {Kind.STORE: stage.write, Kind.RETRIEVE: stage.read}
    call = calls.get(kind, searching)
    for _ in range(failures):
        assert await failure_of(call()) is failure
    refusal = await failure_of(call())
    assert isinstance(refusal, BreakerOpen)
    assert 1 <= refusal.retry_after_s <= 60
    assert stage.node.asked == failures
    assert stage.state(kind) is State.OPEN
    assert {other for other in Kind if stage.state(other) is not State.CLOSED} == {kind}


REFUSALS = [
    SlotMoved("s0"),
    QuotaExceeded("s0", "memories", 1),
    NodeRefused("s0", "no session"),
    Collision(),
    ValueError("ours"),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: type(refusal).__name__)
async def test_what_the_node_refuses_is_no_failure_of_it(refusal: Exception) -> None:
    stage = Stage(Node0(refusal))
    for call in (stage.read, stage.write, stage.transact):
        for _ in range(20):
            assert await failure_of(call()) is refusal
    assert {shown.view.state for shown in stage.gate.breakers()} == {State.CLOSED}


async def test_a_breaker_is_of_one_node() -> None:
    stage = Stage(Node0(*[GONE] * 5, ["row"]))
    for _ in range(5):
        await failure_of(stage.read())
    assert await stage.read(place=OTHER) == ["row"]
    stage.gate.forget({OTHER})
    assert {shown.shard for shown in stage.gate.breakers()} == {"s1"}


async def test_failed_transactions_open_the_breaker_of_writes() -> None:
    stage = Stage(Node0(GONE))
    for _ in range(3):
        await failure_of(stage.transact())
    assert isinstance(await failure_of(stage.write()), BreakerOpen)
    assert stage.node.asked == 3


async def test_who_had_no_time_to_wait_says_nothing_of_the_node() -> None:
    stage = Stage(Node0(LATE))
    for _ in range(20):
        assert await failure_of(stage.read()) is LATE
    assert stage.state(Kind.RETRIEVE) is State.CLOSED


# Deadlines


async def test_a_request_has_one_deadline_for_all_its_questions() -> None:
    left: list[float] = []

    class Timed(Node0):
        async def read(self, place: Place, query: str, *args: object, timeout_s: float) -> list[Any]:
            left.append(timeout_s)
            await asyncio.sleep(0.01)
            return []

    stage = Stage(Timed([]), Resilience(deadline_seconds=1))
    begin_request()
    await asyncio.gather(*(stage.guard.read(PLACE, "get_map", timeout_s=5.0) for _ in range(2)))
    await stage.guard.read(PLACE, "search_memories", timeout_s=5.0)
    assert left[0] <= 1.0
    assert left == sorted(left, reverse=True)
    assert left[-1] < left[0]


async def test_a_request_whose_time_is_over_asks_nobody() -> None:
    stage = Stage(Node0(["row"]))
    begin_request().begin(asyncio.get_running_loop().time() - 10, 5.0, 0.0)
    assert isinstance(await failure_of(stage.guard.read(PLACE, "get_map", timeout_s=5.0)), DeadlineExceeded)
    assert stage.node.asked == 0


@pytest.mark.parametrize(("verb", "failure"), [("read", DeadlineExceeded), ("write", OutcomeUnknown)])
async def test_a_driver_that_does_not_come_back_is_left(verb: str, failure: type[Exception]) -> None:
    async def silent() -> None:
        await asyncio.Event().wait()

    stage = Stage(Node0(silent))
    begin_request()
    ask = getattr(stage.guard, verb)
    assert type(await failure_of(ask(PLACE, "get_map", timeout_s=0.05))) is failure


# Bulkheads


@pytest.mark.parametrize("verb", ["read", "write", "transact"])
async def test_who_finds_the_queue_full_is_told_at_once_and_other_nodes_are_not_concerned(verb: str) -> None:
    released = asyncio.Event()

    async def held() -> list[Any]:
        await released.wait()
        return ["row"]

    stage = Stage(Node0(held), Resilience(waiting_requests=3, failover_seconds=0))
    calls = [asyncio.ensure_future(getattr(stage, verb)()) for _ in range(CONNECTIONS_PER_NODE + 3)]
    await asyncio.sleep(0.01)
    assert stage.node.asked == CONNECTIONS_PER_NODE
    assert stage.gate.waiting_requests() == {("s0", "s0-0"): 3}
    assert isinstance(await failure_of(getattr(stage, verb)()), Shed)
    assert len(stage.sheds) == 1
    other = asyncio.ensure_future(stage.read(place=OTHER))
    await asyncio.sleep(0.01)
    assert stage.node.asked == CONNECTIONS_PER_NODE + 1
    released.set()
    await asyncio.gather(*calls, other)
    assert set(stage.gate.waiting_requests().values()) == {0}


async def test_who_waits_for_a_node_waits_no_longer_than_its_deadline() -> None:
    async def held() -> list[Any]:
        await asyncio.sleep(1.5)
        return ["row"]

    stage = Stage(Node0(held), Resilience(deadline_seconds=1, retry_percent=0))
    answers = await asyncio.gather(*(stage.read() for _ in range(CONNECTIONS_PER_NODE + 2)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [DeadlineExceeded] * 4
    assert stage.node.asked == CONNECTIONS_PER_NODE


# Retries


async def test_a_read_is_repeated_and_answers() -> None:
    stage = Stage(Node0(GONE, ["row"]), Resilience())
    assert await stage.read() == ["row"]
    assert stage.retries == [Kind.RETRIEVE]


async def test_a_node_that_fails_every_time_gets_few_more_questions_than_there_were_requests() -> None:
    """Attempts / requests <= 1.2, with breakers that do not open before."""
    requests = 400
    stage = Stage(Node0(GONE), Resilience(retrieve_failures=100))

    async def one() -> None:
        await failure_of(stage.read())
        stage.gate.forget(())  # each meets a closed breaker

    for _ in range(requests // 20):
        await asyncio.gather(*(one() for _ in range(20)))
    assert 1.0 < stage.node.asked / requests <= 1.2


@pytest.mark.parametrize("failure", [LOST, NodeRefused("s0", "no session"), QuotaExceeded("s0", "memories", 1)])
async def test_a_write_that_may_do_harm_twice_is_attempted_once(failure: Exception) -> None:
    stage = Stage(Node0(failure), Resilience(store_failures=100))
    create = put_of(Conditions(must_be_absent=True))
    for number in range(50):
        call = stage.write("put_memory", *create) if number % 2 else stage.transact()
        assert await failure_of(call) is failure
    assert stage.node.asked == 50
    assert stage.retries == []


async def test_a_put_whose_outcome_is_unknown_is_repeated() -> None:
    stage = Stage(Node0(LOST, ["row"]), Resilience())
    assert await stage.write("put_memory", *put_of(Conditions())) == ["row"]
    assert stage.retries == [Kind.STORE]


async def test_puts_that_failed_together_are_repeated_together_as_one() -> None:
    ids = [MemoryId(7, UUID(int=number)) for number in range(64)]
    puts = [put_arguments(Put(each, Draft("tea", "1"), Conditions()), Indexed("", 0), None) for each in ids]
    stage = Stage(Node0(OutcomeUnknown("s0", "one"), OutcomeUnknown("s0", "two"), GONE), Resilience(failover_seconds=0))
    found = await asyncio.gather(*(stage.write("put_memory", *put) for put in puts), return_exceptions=True)
    assert {type(each) for each in found} == {OutcomeUnknown}
    assert stage.node.asked <= 8
    assert len(stage.retries) >= 64


@pytest.mark.parametrize("second", [[], SlotMoved("s0"), GONE, QuotaExceeded("s0", "bytes", 1)], ids=str)
async def test_what_the_repetition_cannot_do_leaves_the_outcome_unknown(second: object) -> None:
    """No row the second time: the tag is another one, because the first attempt was done, or somebody else's was."""
    stage = Stage(Node0(LOST, second), Resilience(failover_seconds=0))
    assert await failure_of(stage.write("put_memory", *put_of(Conditions(if_match=(TAG,))))) is LOST


@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [
        (LOST, "done", "done"),
        (LOST, GONE, LOST),  # nobody was asked: what the first attempt came to is as unknown as before
        (LOST, NodeRefused("s0", "no session"), LOST),
        (LOST, (refused := QuotaExceeded("s0", "bytes", 1)), refused),  # the key's turn was had: the first was not done
        (LOST, (busy := IdempotencyKeyInUse()), busy),
        (GONE, "done", GONE),
    ],
    ids=str,
)
async def test_a_write_that_happens_once_is_repeated_where_its_outcome_is_unknown(
    first: Any,  # noqa: ANN401
    second: Any,  # noqa: ANN401
    outcome: object,
) -> None:
    stage = Stage(Node0(first, second), Resilience(failover_seconds=0))
    begin_request()
    call = stage.guard.repeat(PLACE, stage.transact_once)
    assert (await call if outcome == "done" else await failure_of(call)) is outcome
    assert stage.retries == ([Kind.STORE] if first is LOST else [])


async def test_writes_that_happen_once_are_repeated_within_the_budget() -> None:
    stage, requests = Stage(Node0(LOST), Resilience(store_failures=100)), 200
    for _ in range(requests):
        begin_request()
        assert await failure_of(stage.guard.repeat(PLACE, stage.transact_once)) is LOST
        stage.gate.forget(())
    assert requests < stage.node.asked <= 1.3 * requests
    off = Stage(Node0(LOST), PLAIN)
    assert await failure_of(off.guard.repeat(PLACE, off.transact_once)) is LOST
    assert off.node.asked == 1


ABSENT, TAGGED, PRESENT, NEITHER = (
    Conditions(must_be_absent=True), Conditions(if_match=(TAG,)), Conditions(must_exist=True), Conditions(),
)  # fmt: skip


@pytest.mark.parametrize(
    ("query", "arguments", "may_repeat"),
    [
        ("put_memory", put_of(NEITHER), True),
        ("put_memory", put_of(TAGGED), True),
        ("put_memory", put_of(PRESENT), True),
        ("put_memory", put_of(ABSENT), False),
        ("delete_memory", (7, ID.uuid, ["3-1000"], []), True),
        ("delete_memory", (7, ID.uuid, None, []), False),
        ("put_memories", ([], [], []), False),
        ("lend_quota", ("s0", 1, 1), False),
        ("record_audit", ("[]",), False),
    ],
)
def test_which_writes_may_be_repeated(query: str, arguments: tuple[object, ...], may_repeat: bool) -> None:
    assert is_repeatable(query, arguments) is may_repeat


# Gets and puts of several requests


async def test_what_waits_to_be_asked_together_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "LATE_S", 0.0)
    stage = Stage(Node0(asyncio.Event().wait), Resilience(failover_seconds=0, retry_percent=0, waiting_requests=2))
    first = asyncio.create_task(stage.write("put_memory", 7, ID.uuid))
    await settled()
    second = asyncio.create_task(stage.write("put_memory", 7, ID.uuid))
    await asyncio.sleep(0.01)
    assert stage.node.asked == CONNECTIONS_PER_NODE
    waiting = [asyncio.create_task(stage.write("put_memory", 7, ID.uuid)) for _ in range(2)]
    await asyncio.sleep(0)
    assert isinstance(await failure_of(stage.write("put_memory", 7, ID.uuid)), Shed)
    assert stage.sheds == [Kind.STORE]
    for task in (first, second, *waiting):
        task.cancel()
    await asyncio.wait([first, second, *waiting])


async def test_of_a_put_that_was_not_sent_in_time_it_is_said_that_nothing_happened() -> None:
    stage = Stage(Node0(asyncio.Event().wait))
    arguments = put_of(Conditions(must_be_absent=True))
    calls = []
    for _ in range(CONNECTIONS_PER_NODE + 1):
        begin_request()
        calls.append(asyncio.create_task(stage.guard.write(PLACE, "put_memory", *arguments, timeout_s=0.1)))
        await settled()
    sent = [await failure_of(call) for call in calls[:CONNECTIONS_PER_NODE]]
    assert [type(failure) for failure in sent] == [OutcomeUnknown] * CONNECTIONS_PER_NODE
    assert type(await failure_of(calls[-1])) is DeadlineExceeded
    assert stage.node.asked == CONNECTIONS_PER_NODE


# Reads that another node can answer


async def test_a_read_that_another_node_can_answer_is_asked_once() -> None:
    stage = Stage(Node0(GONE), Resilience(retry_percent=50))
    begin_request()
    failure = await failure_of(stage.guard.read_once(PLACE, "get_memories", [7], [ID.uuid], timeout_s=5.0))
    assert (failure, stage.node.asked, stage.retries) == (GONE, 1, [])


async def test_it_leaves_half_of_the_requests_time() -> None:
    async def silence() -> None:
        await asyncio.sleep(60)

    stage = Stage(Node0(silence), Resilience(deadline_seconds=1))
    patience = begin_request()
    failure = await failure_of(stage.guard.read_once(PLACE, "get_memories", [7], [ID.uuid], timeout_s=5.0))
    assert isinstance(failure, DeadlineExceeded)
    assert (patience.by_s or 0.0) > asyncio.get_running_loop().time()


async def test_a_node_that_was_away_for_a_moment_is_tried_as_soon_as_it_answers() -> None:
    """It may be back before anybody looks at it for the first time."""
    stage = Stage(Node0(*[GONE] * 5, ["row"]), Resilience(retry_percent=0, recovery_seconds=600))
    for _ in range(5):
        assert await failure_of(stage.read()) is GONE
    assert stage.state(Kind.RETRIEVE) is State.OPEN
    async with asyncio.timeout(5.0):
        while stage.state(Kind.RETRIEVE) is State.OPEN:  # noqa: ASYNC110  the watch asks by itself
            await asyncio.sleep(0.01)
    assert await stage.read() == ["row"]
    await stage.gate.close()
