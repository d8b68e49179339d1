"""The two cache levels and the bulletin, put together for one tenant's sidecar.

recall.py (L1: here) --miss--> remote.py (L2: the tenant's part of Redis) --miss--> the shard
^---drop, flush--- bulletin.py <---what other sidecars wrote--- Redis
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from engram_contract.credentials import KEY_BYTES
from engram_sidecar.breaker import State
from engram_sidecar.bulletin import Bulletin
from engram_sidecar.cachestate import CacheState
from engram_sidecar.config import Config, InForce
from engram_sidecar.consistency import Floors
from engram_sidecar.envelope import Drawer
from engram_sidecar.fetching import Fetch
from engram_sidecar.recall import Recall, Rules
from engram_sidecar.redisdoor import Door
from engram_sidecar.remote import Remote
from engram_sidecar.sealing import Vault
from engram_sidecar.searches import Searches


@dataclass(frozen=True, slots=True)
class Caches:
    """The rooms; they go along with the configuration."""

    door: Door
    bulletin: Bulletin
    remote: Remote
    recall: Recall
    searches: Searches

    @classmethod
    def create(
        cls, in_force: InForce, vault: Vault, floors: Floors, fetch: Fetch, on_shed: Callable[[], None]
    ) -> "Caches":
        """Those of the configuration in force, which they take from the first loop on. `fetch` asks the shards.

        `on_shed` is told of each read that found too many waiting.
        """
        door = Door()
        bulletin = Bulletin(
            door,
            lambda *told: recall.heard(*told),  # noqa: PLW0108  which is made below
            lambda: recall.doubt(),  # noqa: PLW0108  as above
        )
        remote = Remote(
            door,
            bulletin,
            lambda: in_force.config.policy.cache.shared_ttl_s,
            lambda: in_force.config.policy.encryption,
            time.time,
        )
        rules = Rules(
            lambda: in_force.config.policy,
            lambda memory_id: in_force.config.shard_map.shard_of(memory_id.slot).id,
            lambda memory: vault.sealer.open(memory),  # noqa: PLW0108  another one with each keyring
            lambda memory: vault.sealer.open_quietly(memory),  # noqa: PLW0108  as above
            time.time,
            on_shed,
        )
        recall = Recall(floors, rules, Drawer(os.urandom(KEY_BYTES)), bulletin, remote, fetch)
        return cls(door, bulletin, remote, recall, Searches(recall, bulletin, remote, vault, time.time))

    def adopt(self, config: Config) -> None:
        """Another map, policy, keyring or login."""
        self.bulletin.adopt(config.credentials.cache)
        self.recall.adopt()

    def state(self) -> CacheState:
        """How they do."""
        count, view, remote, bulletin = self.recall.count, self.recall.view, self.remote, self.bulletin
        return CacheState(
            {
                ("local", "hit"): count.hits,
                ("local", "stale"): count.stale,
                ("local", "collapsed"): count.collapsed,
                ("local", "miss"): count.shared + count.misses,
                ("shared", "hit"): count.shared,
                ("shared", "miss"): remote.misses,
                ("shared", "failed"): remote.failures,
                ("shared", "unreadable"): remote.undecodable,
            },
            {"local": count.stores, "shared": remote.stores},
            view.entries,
            view.size_bytes,
            view.max_entries,
            view.capacity_bytes,
            {"room": view.evicted_for_room, "time": view.evicted_by_time},
            {"notice": bulletin.notices, "doubt": bulletin.doubts, "late": bulletin.late},
            is_shared=bool(self.door.part),
            is_reached=self.door.view.state is not State.OPEN,
            is_sound=bulletin.sound_s is not None,
        )

    async def close(self) -> None:
        """Nothing is asked beside requests any more, and no connection to Redis stays."""
        await self.recall.close()
        await self.door.close()
