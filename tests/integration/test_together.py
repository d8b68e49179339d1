"""What is asked, and what many ask at once, goes in few statements; nobody gets another one's answer or error."""

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from engram_contract.policy import Limits
from engram_contract.resilience import Resilience
from engram_operator.clients import tenancy
from engram_operator.plan.steps import SetQuota
from engram_sidecar.config import InForce, read_config
from engram_sidecar.errors import NotFound, PreconditionFailed, QuotaExceeded
from engram_sidecar.gate import Gate
from engram_sidecar.guard import Guard
from engram_sidecar.patience import begin_request
from engram_sidecar.pipeline import Pipeline, World
from engram_sidecar.records import Conditions, Draft, ETag, Hit, Put, Selection
from engram_sidecar.sealing import Vault
from engram_sidecar.store import Place, Row, Store
from engram_sidecar.wire import encode, memory_document
from tests.harness import RealServer, Tenant, create_tenant, no_recall

NEW = Conditions(must_be_absent=True)
NEVER = Conditions(if_match=(ETag(99, 1),))


class CountingStore(Store):
    """Counts the statements of each name."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]  # as the store
        self.asked: Counter[str] = Counter()

    async def read(self, place: Place, query: str, *args: object, timeout_s: float) -> list[Row]:
        self.asked[query] += 1
        return await super().read(place, query, *args, timeout_s=timeout_s)

    async def write(self, place: Place, query: str, *args: object, timeout_s: float) -> list[Row]:
        self.asked[query] += 1
        return await super().write(place, query, *args, timeout_s=timeout_s)


@asynccontextmanager
async def pipeline_of(tenant: Tenant) -> AsyncIterator[tuple[Pipeline, CountingStore]]:
    config = read_config(tenant.config_dir)
    store = CountingStore(config.credentials)
    gate = Gate(store, Resilience)
    guard = Guard(gate, Resilience, lambda _: None, lambda _: None)
    vault = Vault(lambda: config, os.urandom, lambda *_: None)
    world = World(time.time, time.monotonic, os.urandom)
    try:
        yield Pipeline(guard, InForce(config), vault, no_recall(config, guard), Limits(), world), store
    finally:
        await gate.close()
        await store.close()


async def put(pipeline: Pipeline, draft: Draft, conditions: Conditions = NEW, of: Hit | None = None) -> Hit:
    """A request of its own that stores a memory: a new one, or `of` anew."""
    begin_request()
    memory_id = of.memory.id if of else (await pipeline.ids_for(None)).new_id(draft)
    return await pipeline.put(Put(memory_id, draft, conditions))


async def get(pipeline: Pipeline, hit: Hit) -> dict[str, Any]:
    begin_request()
    document: dict[str, Any] = json.loads((await pipeline.get(hit.memory.id)).body)
    return document


async def test_gets_go_together_and_each_has_its_own_answer(tenant: Tenant) -> None:
    async with pipeline_of(tenant) as (pipeline, store):
        stored = [await put(pipeline, Draft(f"text {n}", "null", user=f"u{n}")) for n in range(60)]
        gone = stored[::6]
        for hit in gone:
            begin_request()
            await pipeline.put(Put(hit.memory.id, Draft("", "null", user=hit.memory.user, ttl_s=0.001)))
        await asyncio.sleep(0.05)
        store.asked.clear()
        answers = await asyncio.gather(*(get(pipeline, hit) for hit in stored), return_exceptions=True)
        for number, (hit, answer) in enumerate(zip(stored, answers, strict=True)):
            if hit in gone:
                assert isinstance(answer, NotFound)
            else:
                assert isinstance(answer, dict)
                assert (answer["id"], answer["content"]) == (str(hit.memory.id), f"text {number}")
        assert store.asked["get_memories"] <= len(stored) / 5


async def test_puts_go_together_and_only_those_fail_whose_condition_does(tenant: Tenant) -> None:
    async with pipeline_of(tenant) as (pipeline, store):
        old = [await put(pipeline, Draft("old", "null", user=f"u{n}")) for n in range(30)]
        store.asked.clear()
        answers = await asyncio.gather(
            *(put(pipeline, Draft(f"new {n}", "null", user=f"v{n}")) for n in range(60)),
            *(put(pipeline, Draft("changed", "null", user=hit.memory.user), Conditions(), hit) for hit in old[:15]),
            *(put(pipeline, Draft("never", "null", user=hit.memory.user), NEVER, hit) for hit in old[15:]),
            return_exceptions=True,
        )
        written = [answer for answer in answers if isinstance(answer, Hit)]
        refused = [answer for answer in answers if isinstance(answer, PreconditionFailed)]
        assert (len(written), len(refused)) == (75, 15)
        assert store.asked["put_memories"] + store.asked["put_memory"] <= len(answers) / 5
        for number, hit in enumerate(written[:60]):
            assert (await get(pipeline, hit))["content"] == f"new {number}"
        assert [(await get(pipeline, hit))["content"] for hit in old] == ["changed"] * 15 + ["old"] * 15


async def test_puts_of_one_memory_happen_one_after_the_other(tenant: Tenant) -> None:
    async with pipeline_of(tenant) as (pipeline, _):
        hot = await put(pipeline, Draft("0", "null", user="hot"))
        answers = await asyncio.gather(
            *(put(pipeline, Draft(str(n), "null", user="hot"), Conditions(), hot) for n in range(1, 21))
        )
        assert sorted(answer.memory.version for answer in answers) == list(range(2, 22))
        last = max(answers, key=lambda answer: answer.memory.version)
        assert await get(pipeline, hot) == json.loads(encode(memory_document(last.memory, last.shard)))


async def test_one_that_finds_no_room_takes_nobodys_room_away(
    servers: tuple[RealServer, RealServer], tmp_path: Path
) -> None:
    tenant = await create_tenant("together", servers[:1], tmp_path)
    step = SetQuota("s0", 7, 10**9, 7, 10**9)
    await tenancy.level_quota(servers[0].admin, tenant.database, tenant.role, step, "of the shards alone")
    async with pipeline_of(tenant) as (pipeline, _):
        first = await put(pipeline, Draft("there", "null"))
        answers = await asyncio.gather(
            *(put(pipeline, Draft(f"new {n}", "null")) for n in range(20)),
            put(pipeline, Draft("changed", "null"), Conditions(), first),
            return_exceptions=True,
        )
        kinds = Counter(type(answer) for answer in answers[:-1])
        assert kinds == {Hit: 6, QuotaExceeded: 14}
        assert isinstance(answers[-1], Hit), "a change needs no room"


@pytest.mark.parametrize("count", [1, 3])
async def test_a_caller_that_leaves_takes_nobody_along(tenant: Tenant, count: int) -> None:
    async with pipeline_of(tenant) as (pipeline, _):
        tasks = [asyncio.create_task(put(pipeline, Draft(f"{n}", "null", user=f"w{n}"))) for n in range(40)]
        while not any(task.done() for task in tasks):
            for task in tasks[:: 40 // count]:
                task.cancel()
            await asyncio.sleep(0)
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(answer, Hit) for answer in answers) >= 40 - count - (40 % count)


async def test_how_common_a_word_is_is_asked_only_where_it_stands_beside_others(tenant: Tenant) -> None:
    async with pipeline_of(tenant) as (pipeline, store):
        stored = [await put(pipeline, Draft(text, "null", user="u1")) for text in ("war", "war and peace", "heron")]
        for query, found, counts in (("war", stored[:2], 0), ("war heron", [stored[2], *stored[:2]], 1)):
            begin_request()
            store.asked.clear()
            hits = (await pipeline.search(query, Selection(user="u1"), 10)).hits
            assert [hit.memory.id for hit in hits] == [hit.memory.id for hit in found]
            assert store.asked["count_lexemes"] == counts
            assert all(hit.score is not None and 0 < hit.score <= 1 for hit in hits)
