"""The proof that no watch is deaf: what the watches delivered is compared with what the API server lists.

A watch can die in silence: a stream that is open and brings nothing, or brings bookmarks and loses events. A canary
object would prove one watch and need a right to write; these looks prove every object of every watch, and only read.

Promises
1. What a look finds unheard is reconciled at once, deaf or not.
2. A deaf watch ends the process: `run` raises DeafWatch, and `fault` says which it was.
3. Two short strings are kept per object, never a manifest.

The rules are in `plan/hearing.py`.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from engram_operator.clients.kube import Kube, Resource
from engram_operator.errors import ApiError, DeafWatch
from engram_operator.plan.hearing import LOOK_S, Place, Version, Watched, deaf_fault, plan_look

NAMED: Final = 3  # of the unheard objects, in a line of log

log = logging.getLogger(__name__)


def resource_of(watched: Watched) -> Resource:
    """The resource as the API's paths spell it."""
    return Resource(f"/apis/{watched.group}/{watched.version}" if watched.group else "/api/v1", watched.plural)


def _read(metadata: Mapping[str, Any]) -> tuple[Place, Version]:
    place = (metadata.get("namespace", ""), metadata["name"])
    return place, (metadata["uid"], metadata["resourceVersion"])


class WatchProof:
    """What one watch delivered, and what it did not. `enqueue` is told each unheard object at each look."""

    def __init__(self, watched: Watched, enqueue: Callable[[Watched, Place], None], clock: Callable[[], float]) -> None:
        self.watched = watched
        self._enqueue = enqueue
        self._clock = clock
        self._heard: dict[Place, Version] = {}
        self._delivered: set[Place] = set()  # since the current look began
        self._unheard: dict[Place, float] = {}
        self._alive_s = clock()

    def hear(self, event: str | None, manifest: Mapping[str, Any]) -> None:
        """Notes what the watch delivered; `event` is ADDED, MODIFIED, DELETED or, of its first list, None."""
        place, version = _read(manifest["metadata"])
        self._alive_s = self._clock()
        self._delivered.add(place)
        self._unheard.pop(place, None)
        if event == "DELETED":
            self._heard.pop(place, None)
        else:
            self._heard[place] = version

    def age_s(self) -> float:
        """Seconds since the watch last delivered, or a look found nothing unheard."""
        return self._clock() - self._alive_s

    async def look(self, kube: Kube) -> str | None:
        """Why the watch is deaf, or None. After an ApiError, which it raises, what was unheard counts anew."""
        asked_s = self._clock()
        self._delivered.clear()
        try:
            each = kube.fetch_metadata(resource_of(self.watched), self.watched.selector)
            listed = dict([_read(metadata) async for metadata in each])
        except ApiError:
            self._unheard.clear()
            raise
        self._unheard = plan_look(listed, self._heard, self._delivered, self._unheard, asked_s)
        if not self._unheard:
            self._alive_s = asked_s
            return None
        places = sorted(self._unheard)
        extra = {"resource": str(self.watched), "objects": len(places), "some": places[:NAMED]}
        log.warning("unheard by the watch; seen to all the same", extra=extra)
        for place in places:
            self._enqueue(self.watched, place)
        return deaf_fault(self.watched, self._unheard, asked_s)


class Hearing:
    """The proofs of all watches. `fault` is for the liveness probe."""

    def __init__(
        self,
        kube: Kube,
        watched: Sequence[Watched],
        enqueue: Callable[[Watched, Place], None],
        clock: Callable[[], float],
    ) -> None:
        self._kube = kube
        self.proofs = {each: WatchProof(each, enqueue, clock) for each in watched}
        self.fault: str | None = None

    def hear(self, watched: Watched, event: str | None, manifest: Mapping[str, Any]) -> None:
        """Notes what a watch delivered. To be called for every event, before anything is made of it."""
        self.proofs[watched].hear(event, manifest)

    async def run(self) -> None:
        """Looks every LOOK_S. Raises DeafWatch."""
        while True:
            await asyncio.sleep(LOOK_S)
            for proof in self.proofs.values():
                await self._look(proof)

    async def _look(self, proof: WatchProof) -> None:
        try:
            self.fault = await proof.look(self._kube)
        except ApiError as error:
            log.warning("watch not proved", extra={"resource": str(proof.watched), "reason": str(error)})
        if self.fault:
            raise DeafWatch(self.fault)
