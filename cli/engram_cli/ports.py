"""Which port a shard listens on: the one it had, else the first free one from a place of its own."""

import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from engram_cli.errors import Failure
from engram_cli.pgsettings import HOST

PORTS: Final = range(20_000, 30_000)  # below the range that Linux takes for outgoing connections (32768 on)


def is_free(port: int) -> bool:
    """True if nothing listens on this port of the loopback address."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Postgres: a port in TIME_WAIT is free
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def ports_from(seed: int) -> Iterator[int]:
    """Every port that a shard may have, from a place that the seed tells, so that two data directories rarely meet."""
    span = len(PORTS)
    return (PORTS[(seed + step) % span] for step in range(span))


def choose_port(kept: int | None, candidates: Iterable[int], taken: set[int], free: Callable[[int], bool]) -> int:
    """The port kept from before if it is free, else the first free candidate; raises Failure if there is none."""
    if kept is not None and kept not in taken and free(kept):
        return kept
    for port in candidates:
        if port not in taken and free(port):
            return port
    raise Failure(f"no port from {PORTS.start} to {PORTS.stop - 1} is free for Postgres")
