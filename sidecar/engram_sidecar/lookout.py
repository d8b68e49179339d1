"""Looks at the nodes of shards that have replicas, while the tenant reads, so that a read need not.

Twice a second each node is asked how far it is; standing.py makes of it who may answer. Where nobody has read for
ACTIVE_S nobody is asked, and the first read after that goes to the primary.

Promises
1. A node that does not answer a look in time is not read from until it answers one.
2. A look is asked for beside requests: no breaker hears of it, and no request waits for it but one whose session is
ahead of every replica: for FRESH_LOOKS looks of FRESH_S at most.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from engram_contract.shardmap import ShardMap
from engram_sidecar import routing
from engram_sidecar.chance import drawn, jittered
from engram_sidecar.clock import monotonic_s
from engram_sidecar.consistency import Level, Session
from engram_sidecar.errors import NodeRefused, ShardUnavailable
from engram_sidecar.gate import GRACE_S
from engram_sidecar.standing import Look, Standing, Wanted
from engram_sidecar.store import Asks, Place

LOOK_S: Final = 0.5
JITTER_RATIO: Final = 0.2
LOOK_TIMEOUT_S: Final = 1.0
FRESH_S: Final = 0.05  # the primary answers in less than what a longer wait for a replica would cost
FRESH_LOOKS: Final = 3  # a look takes about as long as a write takes to be replayed
ACTIVE_S: Final = 5.0
REFUSED_S: Final = 30.0  # a node of another schema does not mend itself within a second
LATENCY_RATIO: Final = 0.2  # of a new measure in the moving one


@dataclass(frozen=True, slots=True)
class Chosen:
    """A replica that may answer: what was known of it before, and how much of the newest it may lack at most."""

    place: Place
    look: Look
    behind_s: float


class _Watched:
    """One shard under watch."""

    def __init__(self, places: dict[str, Place]) -> None:
        self.places = places
        self.standing = Standing()
        self.read_s = -ACTIVE_S  # when it was read last; never
        self.held_until_s = dict.fromkeys(places, 0.0)
        self.latency_s = dict.fromkeys(places, 0.0)


class Lookout:
    """The nodes of all shards that have replicas. `bound_s`: what a read may lack at most."""

    def __init__(self, store: Asks, bound_s: Callable[[], float]) -> None:
        self._store = store
        self._bound_s = bound_s
        self._shards: dict[str, _Watched] = {}
        self._woken = asyncio.Event()

    def follow(self, shard_map: ShardMap) -> None:
        """These are the shards now; nothing is known of them."""
        self._shards = {shard.id: _Watched(routing.members(shard)) for shard in shard_map.shards if shard.members}

    def timeline(self, shard: str) -> int:
        """The newest one that a node of the shard told; 0 if none did."""
        watched = self._shards.get(shard)
        return 0 if watched is None else watched.standing.timeline

    def lags(self) -> Iterator[tuple[str, str, float]]:
        """(shard, node, seconds): at most how far behind each replica is, of those that are looked at."""
        now_s = monotonic_s()
        for shard, watched in self._shards.items():
            if now_s - watched.read_s <= ACTIVE_S:
                yield from ((shard, node, behind_s) for node, behind_s in watched.standing.replicas(now_s))

    async def choose(self, shard: str, session: Session) -> Chosen | None:
        """The replica to ask for this session; None if the primary has to be."""
        watched = self._shards.get(shard)
        if watched is None:
            return None
        watched.read_s = now_s = monotonic_s()
        self._woken.set()
        wanted, standing = self._wanted(shard, session), watched.standing
        names = standing.eligible(wanted, now_s)
        for _ in range(FRESH_LOOKS):
            if names or (near := standing.nearest(wanted, now_s)) is None:
                break
            await self._look(watched, near, FRESH_S)
            now_s = monotonic_s()
            names = standing.eligible(wanted, now_s)
        return _chosen(watched, names, now_s)

    def choose_other(self, shard: str, session: Session, asked: Chosen) -> Chosen | None:
        """Another replica to ask for the same as `asked`, of those of which it is known now that they may answer."""
        watched = self._shards.get(shard)
        if watched is None:
            return None
        names = watched.standing.eligible(self._wanted(shard, session), monotonic_s())
        return _chosen(watched, [name for name in names if name != asked.place.node.name], monotonic_s())

    def _wanted(self, shard: str, session: Session) -> Wanted:
        floor = None if session.level is Level.EVENTUAL else session.floor(shard)
        return Wanted(session.epoch, floor, self._bound_s())

    def observe(self, place: Place, seconds: float) -> None:
        """A replica answered a read in this time, or was not waited for any longer: of two the faster one is asked."""
        watched = self._shards.get(place.shard)
        if watched is not None and place.node.name in watched.latency_s:
            moving_s = watched.latency_s[place.node.name] or seconds
            watched.latency_s[place.node.name] = moving_s + LATENCY_RATIO * (seconds - moving_s)

    async def run(self) -> None:
        """Looks, until cancelled."""
        while True:
            await self._woken.wait()
            active_s = monotonic_s() - ACTIVE_S
            read = [watched for watched in self._shards.values() if watched.read_s >= active_s]
            if not read:
                self._woken.clear()
                continue
            nodes = ((watched, name) for watched in read for name in watched.places)
            await asyncio.gather(*(self._look(watched, name, LOOK_TIMEOUT_S) for watched, name in nodes))
            await asyncio.sleep(jittered(LOOK_S, JITTER_RATIO))

    async def _look(self, watched: _Watched, name: str, timeout_s: float) -> None:
        asked_s = monotonic_s()
        if asked_s < watched.held_until_s[name]:
            return
        try:
            async with asyncio.timeout(timeout_s + GRACE_S):
                [row] = await self._store.read(watched.places[name], "look_node", timeout_s=timeout_s)
        except (ShardUnavailable, TimeoutError) as failure:
            watched.standing.lose(name)
            if isinstance(failure, NodeRefused):
                watched.held_until_s[name] = asked_s + REFUSED_S
        else:
            look = Look(row["is_replica"], row["timeline"], row["lsn"], row["epoch"] or 0, asked_s)
            watched.standing.take(name, look)


def _chosen(watched: _Watched, names: list[str], now_s: float) -> Chosen | None:
    """The faster one of two of these; None of none."""
    if not names:
        return None
    name = min(drawn(names, 2), key=watched.latency_s.__getitem__)
    return Chosen(watched.places[name], watched.standing.look_at(name), watched.standing.behind_s(name, now_s) or 0.0)
