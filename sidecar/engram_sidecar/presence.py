"""The sidecar's report of itself: which configuration it has in force, in a row of its tenant's home shard.

The operator reads there whether a change has reached every pod. A report that fails harms nothing: it is counted, and
sent again.
"""

import asyncio
import logging
from typing import Final

from engram_sidecar import routing
from engram_sidecar.chance import jittered
from engram_sidecar.config import Config, InForce
from engram_sidecar.errors import ShardUnavailable
from engram_sidecar.metrics import Metrics
from engram_sidecar.settings import Settings
from engram_sidecar.store import Store

log = logging.getLogger(__name__)

REPORT_S: Final = 60.0
RETRY_S: Final = 10.0
JITTER_RATIO: Final = 0.2  # a thousand pods of one rollout would report in the same second


class Presence:
    """Reports at the start, after each change of the configuration, and every REPORT_S seconds."""

    def __init__(self, in_force: InForce, store: Store, settings: Settings, metrics: Metrics) -> None:
        self._in_force = in_force
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._changed = asyncio.Event()
        in_force.subscribe(self._note)

    def _note(self, _config: Config) -> None:
        self._changed.set()

    async def run(self) -> None:
        """Reports until cancelled; a sidecar without a pod has nothing to report."""
        while self._settings.pod is not None:
            self._changed.clear()
            wait_s = REPORT_S if await self._report() else RETRY_S
            try:
                async with asyncio.timeout(jittered(wait_s, JITTER_RATIO)):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _report(self) -> bool:
        """True if the home shard took it."""
        pod, identity, config = self._settings.pod, self._settings.identity, self._in_force.config
        if pod is None:
            return True
        numbers = config.generations
        try:
            await self._store.write(
                routing.home(config.shard_map), "report_sidecar", pod.name, pod.uid,
                "" if identity is None else identity.agent,
                *(numbers.get(name, 0) for name in ("map", "policy", "credentials", "keys")),
                timeout_s=self._settings.request_timeout_s,
            )  # fmt: skip
        except ShardUnavailable as failure:
            self._metrics.count_unreported()
            log.info("the sidecar's report was not taken", extra={"reason": str(failure)})
            return False
        return True
