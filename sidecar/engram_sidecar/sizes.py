"""What the tenant stores, as a metric: the shards are asked every few minutes.

Every sidecar of the tenant tells the same number, so a dashboard takes the highest and never the sum.
"""

import asyncio
import logging
from collections import Counter
from typing import Final

from engram_sidecar.chance import jittered
from engram_sidecar.errors import ShardUnavailable
from engram_sidecar.ledger import Ledger
from engram_sidecar.metrics import Metrics

log = logging.getLogger(__name__)

LOOK_S: Final = 300.0  # seldom, so that a sidecar at rest closes its connections
SETTLE_S: Final = 3.0  # after a start, at most
JITTER_RATIO: Final = 0.2


class Sizes:
    """Shows what the tenant stores; while a shard does not tell, what was known stays."""

    def __init__(self, ledger: Ledger, metrics: Metrics) -> None:
        self._ledger = ledger
        self._metrics = metrics

    async def run(self) -> None:
        """Looks until cancelled."""
        wait_s = SETTLE_S / 2
        while True:
            await asyncio.sleep(jittered(wait_s, JITTER_RATIO))
            await self._look()
            wait_s = LOOK_S

    async def _look(self) -> None:
        try:
            found, _, failures = await self._ledger.usage()
        except ShardUnavailable as failure:
            log.info("what is stored is not known", extra={"reason": str(failure)})
            return
        if failures:
            return
        memories = Counter[str]()
        for usage in found:
            memories[usage.type] += usage.memories
        self._metrics.show_stored(memories, sum(usage.size_bytes for usage in found))
