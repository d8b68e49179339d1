"""What a tenant may tune about calls that fail: breakers, deadline, retries, the wait for a new primary, the queue.

Every bound is finite, so no policy makes a request endless. Pure; standard library only. Source of the defaults:
requirements 1.5; of the ratio of retries: Google SRE book, chapter 21 ("Handling Overload").
"""

from dataclasses import dataclass
from typing import Annotated, Final

from engram_contract.kinds import Whole

_FAILURES: Final = Whole(1, 100)


@dataclass(frozen=True, slots=True)
class Resilience:
    """How a sidecar meets nodes that fail or are slow.

    `*_failures`: so many failures in a row of one kind of operation at one node open its breaker.
    `staleness_seconds`: a replica that is further behind, or may be, answers no read.
    """

    store_failures: Annotated[int, _FAILURES] = 3
    retrieve_failures: Annotated[int, _FAILURES] = 5
    search_failures: Annotated[int, _FAILURES] = 5
    recovery_seconds: Annotated[int, Whole(1, 600)] = 60
    deadline_seconds: Annotated[int, Whole(1, 60)] = 5
    retry_percent: Annotated[int, Whole(0, 50)] = 10
    failover_seconds: Annotated[int, Whole(0, 60)] = 10
    waiting_writes: Annotated[int, Whole(1, 10_000)] = 2_000
    waiting_requests: Annotated[int, Whole(1, 10_000)] = 256
    staleness_seconds: Annotated[int, Whole(1, 600)] = 10
