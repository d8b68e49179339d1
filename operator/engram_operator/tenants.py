"""The MemoryTenants as the injector knows them: from memory where that is proved to be right, else by one call.

    nothing proved --a look at the API server--> proved, save the namespaces of which something is unheard
    proved --the watch ends, or no look for PROOF_S--> nothing proved, and each review asks

Promises
1. What memory answers was right at a look at most PROOF_S ago, and usually LOOK_S: a watch that loses events costs
   seconds of old answers, never more.
2. What memory does not know is asked for: a tenant that was made a moment ago counts.
3. One call per review at most, for at most LOOKUP_TIMEOUT_S.

The watch is kopf's (watching.py), the proof that it hears is the operator's (hearing.py).
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from engram_contract.names import GROUP, TENANTS, VERSION
from engram_operator.admission import Candidate, is_label
from engram_operator.clients.kube import MEMORY_TENANTS, Kube
from engram_operator.errors import ApiError, DeafWatch
from engram_operator.hearing import WatchProof
from engram_operator.life import until_one_ends
from engram_operator.metrics import InjectorMetrics
from engram_operator.plan.hearing import Place, Watched
from engram_operator.watching import FetchAccess, run_watches

LOOKUP_TIMEOUT_S: Final = 2.0  # the webhook has 5 s; the rest is for handshake, queue and the way back
LOOK_S: Final = 10.0
RETRY_S: Final = 1.0  # while not all is proved
PROOF_S: Final = 3 * LOOK_S
WATCHED: Final = Watched(GROUP, VERSION, TENANTS)

log = logging.getLogger(__name__)


class Tenants:
    """`fault` says why memory was never proved yet; None for good once it was, because a call does as well.

    `clock` gives monotonic seconds.
    """

    def __init__(
        self, kube: Kube, fetch_access: FetchAccess, metrics: InjectorMetrics, clock: Callable[[], float]
    ) -> None:
        self._kube = kube
        self._fetch_access = fetch_access
        self._metrics = metrics
        self._clock = clock
        self.fault: str | None = "MemoryTenants were not listed yet"
        self._known: dict[str, dict[str, Candidate]] = {}
        self._proof = WatchProof(WATCHED, self._doubt, clock)
        self._unheard: set[str] = set()  # namespaces, by the look under way
        self._doubted: frozenset[str] = frozenset()  # namespaces, by the last look
        self._proved_s: float | None = None
        metrics.show_tenants_proved(self.is_proved)

    async def candidates(self, namespace: str, wanted: str) -> tuple[Candidate, ...]:
        """The tenant `wanted` if it exists; without a name the namespace's, two at most. Raises ApiError."""
        remembered = self._remembered(namespace, wanted)
        self._metrics.count_lookup("memory" if remembered else "api")
        return remembered or await self._asked(namespace, wanted)

    def is_proved(self) -> bool:
        """Whether memory is proved to be right, all of it."""
        return self._is_fresh() and not self._doubted

    async def run(self) -> None:
        """Watches and looks for ever; after a watch that ended, anew."""
        while True:
            try:
                await until_one_ends([run_watches((WATCHED,), self._fetch_access, self.hear), self._look_again()])
            except DeafWatch as error:
                log.warning("tenants not watched; each review asks", extra={"reason": str(error)})
            except Exception:  # memory only saves calls: without it reviews are answered as well
                log.exception("tenants not watched; each review asks")
            self._forget()
            await asyncio.sleep(RETRY_S)

    def hear(self, watched: Watched, event: str | None, manifest: Mapping[str, Any]) -> None:  # noqa: ARG002  one watch
        """Takes over what the watch delivered."""
        self._proof.hear(event, manifest)
        namespace, name = manifest["metadata"].get("namespace", ""), manifest["metadata"]["name"]
        tenants = self._known.setdefault(namespace, {})
        if event != "DELETED":
            tenants[name] = Candidate.from_resource(manifest)
            return
        tenants.pop(name, None)
        if not tenants:
            del self._known[namespace]

    async def look(self) -> None:
        """Proves what was heard by what there is. Raises DeafWatch."""
        self._unheard.clear()
        asked_s = self._clock()
        try:
            deafness = await self._proof.look(self._kube)
        except ApiError as error:
            if self.fault:
                self.fault = f"MemoryTenants cannot be listed: {error}"
            log.warning("tenants not looked at", extra={"reason": str(error)})
            return
        if deafness:
            raise DeafWatch(deafness)
        self._doubted, self._proved_s = frozenset(self._unheard), asked_s
        if not self._doubted:
            self.fault = None
        elif self.fault:
            self.fault = f"the watch of {WATCHED} has not delivered all of them yet"

    async def _look_again(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S if self.is_proved() else RETRY_S)
            await self.look()

    def _remembered(self, namespace: str, wanted: str) -> tuple[Candidate, ...]:
        """What memory can answer; empty if it must not, or does not know."""
        if not self._is_fresh() or namespace in self._doubted:
            return ()
        tenants = self._known.get(namespace, {})
        if wanted:
            return (tenants[wanted],) if wanted in tenants else ()
        return tuple(tenants.values())[:2]

    async def _asked(self, namespace: str, wanted: str) -> tuple[Candidate, ...]:
        if not wanted:
            found = await self._kube.fetch_some(MEMORY_TENANTS, namespace, limit=2, timeout_s=LOOKUP_TIMEOUT_S)
            return tuple(map(Candidate.from_resource, found))
        if not is_label(wanted):
            return ()
        tenant = await self._kube.find(MEMORY_TENANTS, namespace, wanted, timeout_s=LOOKUP_TIMEOUT_S)
        return () if tenant is None else (Candidate.from_resource(tenant),)

    def _is_fresh(self) -> bool:
        return self._proved_s is not None and self._clock() - self._proved_s <= PROOF_S

    def _forget(self) -> None:
        """A new watch begins with a list, and has to be proved anew."""
        self._known.clear()
        self._proof = WatchProof(WATCHED, self._doubt, self._clock)
        self._doubted, self._proved_s = frozenset(), None

    def _doubt(self, watched: Watched, place: Place) -> None:  # noqa: ARG002  one watch
        self._unheard.add(place[0])
