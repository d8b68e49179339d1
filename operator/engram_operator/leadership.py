"""Leader election: the rules of `plan/lease.py`, acted out against a Lease.

Promises
1. `Term.check()` passes in at most one process at a time; every writer calls it before every write.
2. A hung call ends at the deadline; then `run` raises LostLease, and the process is to end with a failure.
3. After an orderly stop the Lease is given up, so that another replica leads within two seconds.

Must never: lead again after a loss. What the old term began may be half done in memory; a new process begins clean.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

from engram_operator.errors import ApiError, LostLease
from engram_operator.plan.lease import (
    LOOK_S,
    NOBODY,
    RENEW_S,
    RETRY_S,
    TERM_S,
    Establish,
    Lease,
    Lost,
    Observation,
    Wait,
    plan_candidate,
    plan_leader,
    stands_s,
)

CALL_TIMEOUT_S: Final = 3.0  # two tries fit into what RENEW_S leaves of TERM_S
GIVE_UP_TIMEOUT_S: Final = 2.0

log = logging.getLogger(__name__)


class LeaseAccess(Protocol):
    """What an election needs of a Lease. Both raise ApiError and keep to their timeout."""

    async def fetch(self, timeout_s: float) -> Lease | None:
        """The Lease as it is, or None."""

    async def write(self, over: Lease | None, holder: str, timeout_s: float) -> Lease:
        """The Lease with this holder, if it was still at `over`."""


class Term:
    """The right to write, until a deadline that each renewal moves."""

    def __init__(self, clock: Callable[[], float], until_s: float) -> None:
        self._clock = clock
        self.until_s = until_s

    def check(self) -> float:
        """How many seconds of the right are left, to be handed down as a timeout. Raises LostLease if none."""
        left_s = self.until_s - self._clock()
        if left_s <= 0:
            raise LostLease("the term is over")
        return left_s

    def end(self) -> None:
        """From now on `check` raises."""
        self.until_s = float("-inf")


class Leadership:
    """One candidate. `clock` must go on while the machine sleeps; `identity` belongs to this process alone.

    `term` is there from when we lead, which `led` tells; `ticked_s` is when the loop last ran.
    """

    def __init__(self, leases: LeaseAccess, identity: str, clock: Callable[[], float]) -> None:
        self._leases = leases
        self._identity = identity
        self._clock = clock
        self._seen: Observation | None = None
        self._followed = ""
        self.term: Term | None = None
        self.led = asyncio.Event()
        self.ticked_s = clock()

    def held(self) -> Term:
        """The term, which may be over. Raises LostLease if there never was one."""
        if self.term is None:
            raise LostLease("this process does not lead")
        return self.term

    def is_leader(self) -> bool:
        """Whether a write would be allowed now."""
        return self.term is not None and self.term.until_s > self._clock()

    async def run(self) -> None:
        """Elects for ever. Raises LostLease when a term is over."""
        while True:
            pause_s = await self._tick()
            self.ticked_s = self._clock()
            await asyncio.sleep(pause_s)

    async def release(self) -> None:
        """Ends the term and gives the Lease up, if that can be done quickly. Call it when nothing writes any more."""
        if self.term is None:
            return
        self.term.end()
        with suppress(ApiError, TimeoutError):
            async with asyncio.timeout(GIVE_UP_TIMEOUT_S):
                lease = await self._leases.fetch(GIVE_UP_TIMEOUT_S)
                if lease is not None and lease.holder == self._identity:
                    await self._leases.write(lease, "", GIVE_UP_TIMEOUT_S)
                    log.info("lease given up", extra={"identity": self._identity})

    async def _tick(self) -> float:
        """One look and, if it is our turn, one write; the seconds until the next."""
        try:
            return await (self._follow() if self.term is None else self._lead(self.term))
        except ApiError as error:
            log.warning("lease not reached", extra={"reason": str(error), "is_leader": self.is_leader()})
            return LOOK_S if self.term is None else RETRY_S

    async def _follow(self) -> float:
        lease = await self._leases.fetch(CALL_TIMEOUT_S)
        now_s = self._clock()  # after the answer: what it says was true before
        self._seen = Observation(lease, now_s) if self._seen is None else self._seen.followed_by(lease, now_s)
        decision = plan_candidate(self._seen, self._identity, now_s)
        if isinstance(decision, Wait):
            self._tell_holder(lease)
            return decision.seconds
        if isinstance(decision, Establish):
            await self._leases.write(None, NOBODY, CALL_TIMEOUT_S)
            log.info("lease made; it can be taken when it has stood for a while", extra={"identity": self._identity})
            return LOOK_S
        sent_s = self._clock()  # before the write: it is no older than this
        await self._leases.write(decision.over, self._identity, CALL_TIMEOUT_S)
        self.term = Term(self._clock, sent_s + TERM_S)
        self.led.set()
        log.info("leading", extra={"identity": self._identity})
        return RENEW_S

    def _tell_holder(self, lease: Lease | None) -> None:
        """Logs whom we wait for, once for each holder."""
        if lease is not None and lease.holder != self._followed:
            self._followed = lease.holder
            extra = {"identity": self._identity, "holder": lease.holder[:200], "silent_for_s": stands_s(lease)}
            log.info("following; a holder that is silent for so long is replaced", extra=extra)

    async def _lead(self, term: Term) -> float:
        try:
            async with asyncio.timeout(term.check()):
                lease = await self._leases.fetch(CALL_TIMEOUT_S)
                decision = plan_leader(lease, self._identity, term.until_s, self._clock())
                if isinstance(decision, Lost):
                    raise self._lost(term, decision.reason)
                sent_s = self._clock()
                await self._leases.write(decision.over, self._identity, CALL_TIMEOUT_S)
        except TimeoutError as error:
            raise self._lost(term, "the deadline passed during a call") from error
        term.check()
        term.until_s = sent_s + TERM_S
        return RENEW_S

    def _lost(self, term: Term, reason: str) -> LostLease:
        term.end()
        return LostLease(reason)
