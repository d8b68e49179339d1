"""What the tenant stores, as a metric: the shards are asked every few minutes.

Every sidecar of the tenant tells the same number, so a dashboard takes the highest and never the sum.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from engram_sidecar.chance import jittered
from engram_sidecar.errors import ShardUnavailable
from engram_sidecar.growth import Growth, Rate
from engram_sidecar.ledger import Ledger
from engram_sidecar.metrics import Metrics, named_types

log = logging.getLogger(__name__)

LOOK_S: Final = 300.0  # seldom, so that a sidecar at rest closes its connections
SETTLE_S: Final = 3.0  # after a start, at most
JITTER_RATIO: Final = 0.2


@dataclass(frozen=True, slots=True)
class Stored:
    """What the tenant stored at this Unix time: type -> memories (`named_types`), and all bytes; how that has grown."""

    at_s: float
    memories: Mapping[str, int]
    size_bytes: int
    growth: Rate | None


class Sizes:
    """Shows what the tenant stores; while a shard does not tell, what was known stays. `last`: the last look."""

    def __init__(
        self, ledger: Ledger, metrics: Metrics, now_s: Callable[[], float], monotonic_s: Callable[[], float]
    ) -> None:
        self.last: Stored | None = None
        self._ledger = ledger
        self._metrics = metrics
        self._now_s = now_s
        self._monotonic_s = monotonic_s
        self._growth = Growth()

    async def run(self) -> None:
        """Looks until cancelled."""
        wait_s = SETTLE_S / 2
        while True:
            await asyncio.sleep(jittered(wait_s, JITTER_RATIO))
            await self.look()
            wait_s = LOOK_S

    async def look(self) -> None:
        """Asks the shards once."""
        try:
            found, _, failures = await self._ledger.usage()
        except ShardUnavailable as failure:
            log.info("what is stored is not known", extra={"reason": str(failure)})
            return
        if failures:
            return
        counted = Counter[str]()
        for usage in found:
            counted[usage.type] += usage.memories
        memories = named_types(counted)
        size_bytes = sum(usage.size_bytes for usage in found)
        self._growth.add(self._monotonic_s(), counted.total(), size_bytes)
        self.last = Stored(self._now_s(), memories, size_bytes, self._growth.rate())
        self._metrics.show_stored(memories, size_bytes)
