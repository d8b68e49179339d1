"""Who leads: decided from a Lease as it was read, how long it stood unchanged before our eyes, and our own deadline.

    Following --acquire (ours to take)--> Leading --renew, each within the deadline--> Leading
                                          Leading --deadline over, or the Lease is not ours--> Lost: the process ends

Invariants
1. A leader's deadline is TERM_S after it *sent* the last write that succeeded.
2. A candidate takes a Lease only after it saw one version of it for at least LEASE_S, counted from when it *had* the
   answer, or if the holder gave it up. It writes over that very version, so a renewal in between wins.
   A holder that promised more is given that, up to MAX_LEASE_S: no version of us may have a longer term.
3. TERM_S < LEASE_S and clocks that count equally fast: when 2 allows a take-over, the deadline of 1 is over. Nobody's
   wall clock is read; `renewTime` is for people.
4. A Lease that is gone says nothing about its holder, and that it is gone has no version to write over. So it is first
   made in the name of nobody, and then taken like that of any silent holder.

Must never: renew after the deadline, or take a Lease twice in one process. Source: client-go's leaderelection, which
counts 1 from the answer, and 2 from the holder's clock in old versions.
"""

from dataclasses import dataclass
from typing import Final

LEASE_S: Final = (
    15.0  # how long the others wait for a silent leader: the usual value, and 4 s more than a long GC or disk
)
TERM_S: Final = 10.0  # when a silent leader gives up: 5 s before the others may begin, enough for a write in flight
MAX_LEASE_S: Final = 60.0  # of what a holder may promise: a Lease garbled by hand must not stop us for years
RENEW_S: Final = 5.0  # so one lost renewal is no lost term
RETRY_S: Final = 1.0  # between tries of a leader whose renewal failed
NOBODY: Final = "nobody-yet"  # holds a new Lease until the term of whoever held a deleted one is surely over
LOOK_S: Final = 2.0  # how often a candidate looks: a Lease that was given up is taken within this


@dataclass(frozen=True, slots=True)
class Lease:
    """A Lease as the API server has it. `holder` is empty if it was given up; `lease_s` is what the holder promised."""

    resource_version: str
    holder: str = ""
    lease_s: float = LEASE_S
    transitions: int = 0


@dataclass(frozen=True, slots=True)
class Observation:
    """A Lease, and since when (monotonic seconds, ours) it is as it is."""

    lease: Lease | None
    since_s: float

    def followed_by(self, lease: Lease | None, now_s: float) -> "Observation":
        """What is known after another look: only a new version starts the wait anew."""
        return Observation(lease, self.since_s if lease == self.lease else now_s)


@dataclass(frozen=True, slots=True)
class Establish:
    """Create the Lease, held by NOBODY."""


@dataclass(frozen=True, slots=True)
class Acquire:
    """Write ourselves as the holder over this version."""

    over: Lease


@dataclass(frozen=True, slots=True)
class Renew:
    """Write ourselves as the holder again, over this version."""

    over: Lease


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to write before this many seconds are over."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Lost:
    """We led and must not go on."""

    reason: str


def stands_s(lease: Lease) -> float:
    """How long this Lease is its holder's without a renewal: an older or newer version of us may promise more."""
    return min(max(LEASE_S, lease.lease_s), MAX_LEASE_S)


def plan_candidate(seen: Observation, identity: str, now_s: float) -> Establish | Acquire | Wait:
    """What a process does that does not lead."""
    lease = seen.lease
    if lease is None:
        return Establish()
    if lease.holder in {"", identity}:
        return Acquire(lease)  # given up; or our own write, of which we lost the answer
    left_s = seen.since_s + stands_s(lease) - now_s
    return Acquire(lease) if left_s <= 0 else Wait(min(left_s, LOOK_S))


def plan_leader(lease: Lease | None, identity: str, until_s: float, now_s: float) -> Renew | Lost:
    """What the leader does whose deadline is `until_s`."""
    if now_s >= until_s:
        return Lost("the deadline passed without a renewal")
    if lease is None:
        return Lost("the Lease was deleted")
    if lease.holder != identity:
        return Lost(f"the Lease is held by {lease.holder or 'nobody'}")
    return Renew(lease)
