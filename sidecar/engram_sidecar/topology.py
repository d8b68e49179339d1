"""The shard map in force: read from the mounted file, replaced by a newer one from the file or from a shard.

Promises
1. A reader gets a whole map and keeps it for its request.
2. The epoch never goes back.
3. A file that cannot be read leaves the map in force and is logged; the fence keeps old maps harmless.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from engram_contract.shardmap import BadMap, ShardMap

log = logging.getLogger(__name__)

POLL_S: Final = 1.0  # the kubelet swaps the mounted link; a stat costs microseconds


class Topology:
    """Holds the map. `on_change` is called with each newer one."""

    def __init__(self, shard_map: ShardMap, on_change: Callable[[ShardMap], None] = lambda _: None) -> None:
        self._map = shard_map
        self._on_change = on_change

    @property
    def current(self) -> ShardMap:
        """The newest map seen."""
        return self._map

    def offer(self, candidate: ShardMap) -> bool:
        """True if the candidate is of this tenant and newer, and is now in force."""
        if candidate.tenant != self._map.tenant or candidate.epoch <= self._map.epoch:
            return False
        self._map = candidate
        log.info("shard map replaced", extra={"epoch": candidate.epoch})
        self._on_change(candidate)
        return True

    async def watch(self, path: Path) -> None:
        """Offers the file's map whenever the file changes. Runs until cancelled."""
        seen = None
        while True:
            try:
                stamp = await asyncio.to_thread(_stamp, path)
                if stamp != seen:
                    self.offer(ShardMap.from_json(await asyncio.to_thread(path.read_text, "utf-8")))
                    seen = stamp
            except (OSError, ValueError, BadMap) as error:
                log.warning("shard map not read", extra={"file": path.name, "reason": str(error)})
            await asyncio.sleep(POLL_S)


def _stamp(path: Path) -> tuple[int, int, int]:
    """What changes whenever the file is replaced or written."""
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_ino, stat.st_size
