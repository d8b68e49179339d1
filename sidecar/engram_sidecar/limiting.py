"""Refuses requests beyond the tenant's rate, before anything is asked for them.

    api --admit--> Limiter --take--> Lease (rates.py)
                      '--one at a time, ahead of need--> the count in Redis: {tenant's part}r:{second}

Promises
1. A request waits for Redis only if nothing is left of the lease, and for one answer as a rule.
2. Redis is asked some thirty times a second at most, once the sidecar knows what is asked of it, however much that is;
and once more in a second in which the rate is used up, to learn that.
3. Without Redis, or while it does not answer, this sidecar counts alone, and says so (`is_alone`).
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from engram_contract.names import cache_part
from engram_sidecar.config import InForce
from engram_sidecar.errors import CacheUnavailable, RateLimited
from engram_sidecar.rates import NO_RATE, UNCOUNTED, Lease

KEPT_S: Final = 10  # a count is of no use after its second; clocks differ by less


class Door(Protocol):
    """The way to the tenant's part of Redis."""

    async def run(self, commands: Sequence[Sequence[str | bytes | int]]) -> list[Any]:
        """The answers of commands that happen together. Raises CacheUnavailable."""
        ...


class Limiter:
    """Admits requests of one sidecar. `time_s` is Unix time, on which sidecars of a tenant have to agree."""

    def __init__(
        self, in_force: InForce, door: Door, time_s: Callable[[], float], on_refused: Callable[[], None]
    ) -> None:
        self._in_force = in_force
        self._door = door
        self._time_s = time_s
        self._on_refused = on_refused
        self._lease = Lease()
        self._asking: asyncio.Task[None] | None = None
        self._waiting = 0

    @property
    def is_alone(self) -> bool:
        """True if this sidecar counts its own requests only: there may be more in all than the rate."""
        return self._lease.is_alone

    async def admit(self, operation: str) -> None:
        """Raises RateLimited if the tenant's requests of this second are used up."""
        rate = self._in_force.config.policy.quota.requests_per_second
        if rate == NO_RATE or operation in UNCOUNTED:
            return
        while not self._lease.take(second := int(self._time_s())):
            if self._lease.is_spent(second):
                self._on_refused()
                raise RateLimited(rate)
            self._waiting += 1
            try:
                await asyncio.shield(self._ask(second, rate))
            finally:
                self._waiting -= 1
        if self._lease.is_low():
            _ = self._ask(second, rate)  # for those that come next

    def admits_now(self) -> bool:
        """Whether a request is admitted without asking anybody; it then counts."""
        rate = self._in_force.config.policy.quota.requests_per_second
        return rate == NO_RATE or (not self._lease.is_low() and self._lease.take(int(self._time_s())))

    async def close(self) -> None:
        """Nothing is asked any more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    def _ask(self, second: int, rate: int) -> "asyncio.Task[None]":
        """The question for the next lease, which is one for all that wait."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._lend(second, rate))
        return self._asking

    async def _lend(self, second: int, rate: int) -> None:
        asked = self._lease.asks(rate, self._waiting)
        key = f"{cache_part(self._in_force.config.credentials.role)}r:{second}"
        try:
            [counted, _] = await self._door.run((("INCRBY", key, asked), ("EXPIRE", key, KEPT_S)))
        except CacheUnavailable:
            counted = None
        if isinstance(counted, int):
            self._lease.grant(second, asked, counted, rate)
        else:
            self._lease.go_alone(second, rate)
