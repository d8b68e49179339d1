"""LangGraph's AsyncPostgresStore under a load: `python peer_langgraph.py DSN VERB SECONDS CALLERS < VALUES`.

Runs with the interpreter of bench_peers.py's environment, which has LangGraph and nothing of ours. `load` stores the
values, which come as a JSON list of (user, number, value); other verbs print how many calls a second were answered.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from langgraph.store.postgres.aio import AsyncPostgresStore

Stored = tuple[str, int, dict[str, Any]]  # user, number, value

BATCH = 500
LIMIT = 10
PAGES = 7  # as many as there are values of the filter


async def run(
    store: AsyncPostgresStore,
    verb: str,
    seconds: float,
    callers: int,
    values: Sequence[Stored],
) -> int:
    """How many calls were answered."""

    async def get(user: str, number: int, _: dict[str, Any]) -> None:
        if await store.aget(("memories", user), str(number)) is None:
            raise RuntimeError(number)

    async def put(user: str, number: int, value: dict[str, Any]) -> None:
        await store.aput(("memories", user), str(number), value)

    async def search(user: str, _number: int, value: dict[str, Any]) -> None:
        await store.asearch(("memories", user), filter={"page": value["page"]}, limit=LIMIT)

    call: Callable[..., Awaitable[None]] = {"get": get, "put": put, "search": search}[verb]
    end_s = time.perf_counter() + seconds

    async def work(number: int) -> int:
        chosen, count = random.Random(number), 0
        while time.perf_counter() < end_s:
            await call(*chosen.choice(values))
            count += 1
        return count

    return sum(await asyncio.gather(*(work(number) for number in range(callers))))


async def main(dsn: str, verb: str, seconds: float, callers: int) -> None:
    """Loads, or prints calls per second."""
    values = json.load(sys.stdin)
    async with AsyncPostgresStore.from_conn_string(dsn) as store:
        await store.setup()
        if verb == "load":
            for first in range(0, len(values), BATCH):
                part = values[first : first + BATCH]
                await asyncio.gather(*(store.aput(("memories", user), str(n), value) for user, n, value in part))
            return
        print(await run(store, verb, seconds, callers, values) / seconds)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])))
