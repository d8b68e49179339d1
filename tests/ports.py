"""Ports for servers of tests. Each worker has a part of its own, and hands a port out again only after all others.

A port is free until its server listens, which may take seconds: who only looks may be given what another one was.
"""

import os
import random
from itertools import count, islice
from typing import Final

from engram_cli.ports import PORTS, is_free

WORKERS: Final = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
WORKER: Final = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS  # one more after a crash
MINE: Final = PORTS[len(PORTS) * WORKER // WORKERS : len(PORTS) * (WORKER + 1) // WORKERS]

_turns = count(random.randrange(len(MINE)))


def free_port() -> int:
    """A port on which nothing listens, and that nobody else in this run is given for a while."""
    turns = (MINE[turn % len(MINE)] for turn in islice(_turns, len(MINE)))
    return next(port for port in turns if is_free(port))


def free_pair() -> int:
    """The first of two such ports that stand side by side."""
    port = free_port()
    while (following := free_port()) != port + 1:
        port = following
    return port
