"""How late the event loop is: what it was asked to do at a time, and when it came to it."""

import asyncio
from collections.abc import Callable
from typing import Final

LOOK_S: Final = 0.05  # twenty looks a second take no time, and a pause of 20 ms is seen by two in five


async def watch_lag(observe: Callable[[float], None]) -> None:
    """Tells, without end, by how many seconds the loop came late."""
    loop = asyncio.get_running_loop()
    while True:
        due_s = loop.time() + LOOK_S
        await asyncio.sleep(LOOK_S)
        observe(max(loop.time() - due_s, 0.0))
