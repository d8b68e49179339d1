"""Indexing of many memories beside other work."""

import asyncio

from engram_sidecar.indexing import Indexer
from engram_sidecar.records import Draft


async def test_other_tasks_go_on_while_a_batch_is_indexed() -> None:
    steps: list[str] = []
    indexer = Indexer("t_a")

    async def index(name: str) -> None:
        await indexer.index_all([Draft(f"tea {number}") for number in range(20)])
        steps.append(name)

    async def other() -> None:
        for _ in range(10):
            await asyncio.sleep(0)
        steps.append("other")

    await asyncio.gather(index("first"), index("second"), other())
    assert steps == ["other", "first", "second"]


async def test_all_of_a_batch_are_indexed_in_their_order() -> None:
    indexer = Indexer("t_a")
    drafts = [Draft(), Draft("green tea"), Draft("tea"), Draft("x" * 10_000)]
    assert await indexer.index_all(drafts) == [await indexer.index(draft) for draft in drafts]
    assert await indexer.index_all([]) == []
