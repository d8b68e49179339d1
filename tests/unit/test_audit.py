"""The audit: what an entry holds, what waits when the shard is away, and what is lost when too much does."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from engram_contract.credentials import Credentials
from engram_contract.shardmap import Node, Shard, Strategy, first_map
from engram_contract.slots import MemoryId
from engram_sidecar.audit import AT_ONCE, Buffer, Entry, Subject, Trail, batch_parts
from engram_sidecar.config import Config, InForce
from engram_sidecar.errors import NotFound, OutcomeUnknown, ShardUnavailable
from engram_sidecar.identity import Identity, Pod
from engram_sidecar.metrics import Metrics
from engram_sidecar.records import Delete, Draft, Get, Operation, Patch, Put
from engram_sidecar.settings import Settings
from engram_sidecar.store import Place, Row, Store
from tests.harness import tenant_spec

ID = MemoryId(7, UUID("017f22e2-79b0-7cc3-98c4-dc0c0c07398f"))
SHARD = Shard("s0", "engram", (Node("a", "localhost", 5432),))
CONFIG = Config(first_map("t_a", Strategy.USER, [SHARD]), tenant_spec("a").policy(), Credentials("t_a", ("p",)))
SETTINGS = Settings(Path("/nowhere"))


class FakeStore(Store):
    """Keeps what is written, or fails as it is told."""

    def __init__(self) -> None:
        super().__init__(Credentials("t_a", ("p",)))
        self.written: list[dict[str, Any]] = []
        self.statements = 0
        self.failure: Exception | None = None

    async def write(self, place: Place, query: str, *args: object, timeout_s: float) -> list[Row]:
        """As the store."""
        self.statements += 1
        if self.failure is not None:
            raise self.failure
        assert (place.shard, query) == ("s0", "record_audit")
        self.written += json.loads(str(args[0]))
        return []


class Stage:
    """A trail over a store that can fail."""

    def __init__(self, config: Config = CONFIG, settings: Settings = SETTINGS) -> None:
        self.store, self.metrics = FakeStore(), Metrics(lambda: 0, lambda: 0)
        self.in_force = InForce(config)
        self.trail = Trail(self.in_force, self.store, settings, self.metrics, lambda: 1_700_000_000.25)

    def metric(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(name)


def entry(number: int) -> Entry:
    return Entry(float(number), "store", 201, Subject())


def test_the_oldest_make_room_and_are_counted() -> None:
    lost: list[int] = []
    buffer = Buffer(lambda: lost.append(1), capacity=3)
    for number in range(5):
        buffer.add(entry(number))
    assert (len(buffer), len(lost)) == (3, 2)
    assert [each.at_s for each in buffer.take(2)] == [2.0, 3.0]
    assert len(buffer) == 1


def test_what_is_given_back_comes_first_again_and_goes_first_when_there_is_no_room() -> None:
    lost: list[int] = []
    buffer = Buffer(lambda: lost.append(1), capacity=3)
    for number in range(3):
        buffer.add(entry(number))
    taken = buffer.take(10)
    buffer.add(entry(3))
    buffer.give_back(taken)
    assert len(lost) == 1
    assert [each.at_s for each in buffer.take(10)] == [1.0, 2.0, 3.0]


async def test_an_entry_says_who_did_what_to_what_and_no_content() -> None:
    settings = replace(SETTINGS, identity=Identity("bot", "default"), pod=Pod("web-0", "u"))
    stage, subject = Stage(settings=settings), Subject(details={"batch": 2})
    subject.is_put(Put(ID, Draft("secret words", '{"secret": 1}', user="ada", namespace=("a", "b"), key="k")))
    stage.trail.record("store", 201, subject)
    stage.trail.record("retrieve", 404, Subject(memory=ID))
    await stage.trail.flush()
    assert stage.store.written == [
        {
            "at": "2023-11-14T22:13:20.250000Z", "operation": "store", "outcome": "success", "status": 201,
            "agent": "bot", "pod": "web-0", "user": "ada", "memory": str(ID), "namespace": ["a", "b"], "key": "k",
            "details": {"batch": 2},
        },
        {
            "at": "2023-11-14T22:13:20.250000Z", "operation": "retrieve", "outcome": "error", "status": 404,
            "agent": "bot", "pod": "web-0", "user": None, "memory": str(ID), "namespace": None, "key": None,
            "details": {},
        },
    ]  # fmt: skip


@pytest.mark.parametrize("operation", ["none", "openapi", "shards", "usage"])
def test_what_touches_no_memory_is_not_recorded(operation: str) -> None:
    stage = Stage()
    stage.trail.record(operation, 200, Subject())
    assert len(stage.trail.buffer) == 0


def test_the_policy_says_whether_anything_is_recorded() -> None:
    stage = Stage(replace(CONFIG, policy=replace(CONFIG.policy, audit=False)))
    stage.trail.record("store", 201, Subject())
    assert len(stage.trail.buffer) == 0
    stage.in_force.offer(replace(CONFIG.policy, generation=1))
    stage.trail.record("store", 201, Subject())
    assert len(stage.trail.buffer) == 1


@pytest.mark.parametrize("failure", [ShardUnavailable("s0", "gone"), OutcomeUnknown("s0", "lost")])
async def test_what_cannot_be_written_is_kept_in_order(failure: ShardUnavailable) -> None:
    stage = Stage()
    stage.store.failure = failure
    for status in (201, 202):
        stage.trail.record("store", status, Subject())
    await stage.trail.flush()
    await stage.trail.flush()
    stage.trail.record("store", 203, Subject())
    assert stage.metric("engram_audit_waiting") == 3
    stage.store.failure = None
    await stage.trail.flush()
    assert [each["status"] for each in stage.store.written] == [201, 202, 203]
    assert (stage.metric("engram_audit_waiting"), stage.metric("engram_audit_lost_total")) == (0, 0)


async def test_many_go_in_few_statements_and_too_many_are_lost_and_counted() -> None:
    stage = Stage()
    for number in range(10_003):
        stage.trail.record("store", number, Subject())
    assert stage.metric("engram_audit_lost_total") == 3
    await stage.trail.close()
    assert stage.store.statements == -(-10_000 // AT_ONCE)
    assert [each["status"] for each in stage.store.written] == list(range(3, 10_003))


def test_each_operation_of_a_batch_is_a_part_with_its_own_status() -> None:
    operations: list[Operation] = [Get(ID), Put(ID, Draft(user="ada", key="k")), Patch(ID, {}), Delete(ID)]
    outcomes: list[Any] = [(NotFound(str(ID)), "s0"), (NotFound(""), "s0"), (NotFound(""), "s0"), (None, "s0")]
    parts = batch_parts(operations, outcomes, [{"status": status} for status in (404, 507, 424, 204)])
    assert [(kind, status) for kind, status, _ in parts] == [
        ("retrieve", 404),
        ("store", 507),
        ("update", 424),
        ("delete", 204),
    ]
    assert all(subject.memory == ID and subject.details == {"batch": 4} for _, _, subject in parts)
    assert (parts[1][2].user, parts[1][2].key) == ("ada", "k")
