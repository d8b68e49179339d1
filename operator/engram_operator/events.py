"""Kubernetes Events: what happened to an object, for `kubectl describe`. Few, and never at the cost of the work.

Promises
1. The same about the same object is written once in REPEAT_S; of one object fewer than 20 Events in any hour.
2. An Event that cannot be written, or that is one too many, stops nothing: it is logged, or counted.
3. What is remembered for this is bounded; what falls out may be told once more.

Must never: carry a memory's content or a Secret's. Every write asks the term first: LostLease passes.
"""

import logging
import uuid
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Generic, Literal, TypeVar

from engram_operator.clients.kube import EVENTS, Kube, Manifest
from engram_operator.errors import ApiError

REPEAT_S: Final = 600.0  # kubectl shows an hour of Events: six of one kind are enough to see that it goes on
BURST: Final = 10  # at once: more than one run of a reconciler ever tells
REFILL_S: Final = 400.0  # for each further one; with BURST at most 19 in an hour
REMEMBERED: Final = 4096  # objects, and things said: about 1 MiB in all
NOTE_CHARS: Final = 1024  # the API server takes no more
NAME_CHARS: Final = 200  # of the object's, in the Event's own name
REPORTER: Final = "engram-operator"
_TIME: Final = "%Y-%m-%dT%H:%M:%S.%fZ"

EventType = Literal["Normal", "Warning"]
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class About:
    """The object that an Event is about."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str

    @classmethod
    def of(cls, manifest: Manifest) -> "About":
        """The object of this manifest, which must come from the API server."""
        metadata = manifest["metadata"]
        names = metadata.get("namespace", ""), metadata["name"], metadata["uid"]
        return cls(manifest["apiVersion"], manifest["kind"], *names)


@dataclass(frozen=True, slots=True)
class Bucket:
    """How many Events an object may have, as of a moment (seconds)."""

    tokens: float
    at_s: float

    def at(self, now_s: float) -> "Bucket":
        """The same later: filled up by one for every REFILL_S. A clock that goes back fills nothing."""
        return Bucket(min(BURST, self.tokens + max(0.0, now_s - self.at_s) / REFILL_S), now_s)


class _Latest(Generic[K, V]):
    """A map that forgets what was not set for the longest time."""

    def __init__(self) -> None:
        self._values: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        return self._values.get(key)

    def set(self, key: K, value: V) -> None:
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > REMEMBERED:
            self._values.popitem(last=False)


class Recorder:
    """Writes Events under the name of one process. `wall_clock` gives Unix seconds."""

    def __init__(
        self,
        kube: Kube,
        wall_clock: Callable[[], float],
        identity: str,
        term_check: Callable[[], object],
        count_dropped: Callable[[], None],
    ) -> None:
        self._kube = kube
        self._clock = wall_clock
        self._identity = identity
        self._term_check = term_check
        self._count_dropped = count_dropped
        self._said: _Latest[tuple[str, str, str], float] = _Latest()
        self._buckets: _Latest[str, Bucket] = _Latest()

    async def record(self, about: About, event_type: EventType, reason: str, message: str) -> None:
        """Writes one Event, unless it was said lately or there are too many of its object. Raises LostLease."""
        if not self._is_due(about, reason, message):
            return
        self._term_check()
        event = _build_event(about, event_type, reason, message)
        event |= {"reportingInstance": self._identity, "eventTime": _moment(self._clock())}
        try:
            await self._kube.create(EVENTS, event["metadata"]["namespace"], event)
        except ApiError as error:
            log.debug("event not written", extra={"reason": str(error), "event": reason})

    def _is_due(self, about: About, reason: str, message: str) -> bool:
        now_s = self._clock()
        said_s = self._said.get((about.uid, reason, message))
        if said_s is not None and abs(now_s - said_s) < REPEAT_S:
            return False
        bucket = (self._buckets.get(about.uid) or Bucket(BURST, now_s)).at(now_s)
        if bucket.tokens < 1:
            self._count_dropped()
            return False
        self._buckets.set(about.uid, Bucket(bucket.tokens - 1, now_s))
        self._said.set((about.uid, reason, message), now_s)
        return True


def _build_event(about: About, event_type: EventType, reason: str, message: str) -> dict[str, Any]:
    """The Event, all but who says it and when. One about an object without a namespace lies in `default`."""
    regarding = {"apiVersion": about.api_version, "kind": about.kind, "name": about.name, "uid": about.uid}
    name = f"{about.name[:NAME_CHARS].rstrip('.-')}.{uuid.uuid4().hex[:16]}"
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": about.namespace or "default"},
        "type": event_type,
        "reason": reason,
        "action": "Reconcile",
        "note": message if len(message) <= NOTE_CHARS else message[: NOTE_CHARS - 3] + "...",
        "regarding": regarding | ({"namespace": about.namespace} if about.namespace else {}),
        "reportingController": REPORTER,
    }


def _moment(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime(_TIME)
