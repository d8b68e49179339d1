"""How a process of the control plane lives: its clock, its listening socket, its loops until the end."""

import asyncio
import errno
import socket
import time
from collections.abc import Coroutine
from typing import Any

from engram_operator.errors import PortTaken


def boot_clock() -> float:
    """Seconds that never go back, and go on while the machine sleeps: a term must not survive a suspended node."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def listening(port: int) -> socket.socket:
    """A socket on every address of the pod, of both families where there are two. Raises PortTaken."""
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(port) from error
        raise


async def until_one_ends(loops: list[Coroutine[Any, Any, object]]) -> None:
    """Runs the loops until the first of them ends; a failure is raised. None of them runs any more afterwards."""
    tasks = [asyncio.create_task(loop) for loop in loops]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
