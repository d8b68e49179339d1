"""The judge of what an operator did: the API server's audit log, from a mark on; and every state that a cluster had.

Only where ENGRAM_E2E_AUDIT_LOG names the log, as on our own test cluster; elsewhere whoever asks is skipped.
"""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pytest

from engram_contract.names import API_VERSION, CLUSTERS
from tests.e2e import memory
from tests.e2e.cluster import Cluster, _UnixConnection
from tests.e2e.evidence import AUDIT_VARIABLE, READING_VERBS

AGENT: Final = "engram-operator"  # how the operator's User-Agent begins
FLUSH_S: Final = 0.5  # the log is written before the answer is sent, all but the moment that the stage takes
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Write:
    """One request that may have changed something, as the API server saw it."""

    at_s: float
    agent: str
    verb: str
    resource: str
    namespace: str
    name: str
    code: int
    body: Json = field(repr=False)

    @property
    def is_of_lease(self) -> bool:
        """Whether it is the election's."""
        return self.resource == "leases"


class Audit:
    """What operators wrote since the last mark."""

    def __init__(self) -> None:
        name = os.environ.get(AUDIT_VARIABLE)
        if not name:
            pytest.skip(f"{AUDIT_VARIABLE} names no audit log")
        self._path = Path(name)
        self._from = 0
        self.mark()

    def mark(self) -> None:
        """What was before does not count any more."""
        time.sleep(FLUSH_S)
        self._from = self._path.stat().st_size

    def all_writes(self, agent: str = AGENT) -> list[Write]:
        """Every write of an operator, Leases and Events too."""
        time.sleep(FLUSH_S)
        return [each for each in self._read() if each.agent.startswith(agent)]

    def writes(self, agent: str = AGENT) -> list[Write]:
        """Every write of an operator but for its Lease."""
        return [each for each in self.all_writes(agent) if not each.is_of_lease]

    def _read(self) -> Iterator[Write]:
        with self._path.open("rb") as log:
            log.seek(self._from)
            for line in log.read().splitlines():
                event = json.loads(line)
                if event["verb"] not in READING_VERBS:
                    yield _write(event)


def _write(event: Json) -> Write:
    about = event.get("objectRef") or {}
    resource = "/".join(filter(None, (about.get("resource"), about.get("subresource"))))
    body = event.get("requestObject")
    return Write(
        at_s=datetime.fromisoformat(event["requestReceivedTimestamp"]).timestamp(),
        agent=event.get("userAgent", ""),
        verb=event["verb"],
        resource=resource,
        namespace=about.get("namespace", ""),
        name=about.get("name", ""),
        code=event.get("responseStatus", {}).get("code", 0),
        body=body if isinstance(body, dict) else {},
    )


# ------------------------------------------------------------------------------------------- every state of a cluster


@dataclass(frozen=True, slots=True)
class Moment:
    """One version of a MemoryCluster."""

    generation: int
    ready: str
    observed: int  # the generation that its Ready speaks of
    conditions: str


@dataclass
class History:
    """Every version that a MemoryCluster had, in order."""

    moments: list[Moment] = field(default_factory=list)

    def stale_writes(self) -> list[tuple[Moment, Moment]]:
        """Changes of the status that said Ready=True of a generation that was not the object's any more."""
        return [
            (before, after)
            for before, after in zip(self.moments, self.moments[1:], strict=False)
            if after.generation == before.generation
            and after.conditions != before.conditions
            and after.ready == "True"
            and after.observed < after.generation
        ]


@contextmanager
def history(cluster: Cluster, namespace: str, name: str = "memory") -> Iterator[History]:
    """What a MemoryCluster goes through while this block lasts."""
    found = History()
    connection = _UnixConnection(cluster.folder / "api", 600.0)
    query = f"watch=true&fieldSelector=metadata.name%3D{name}&timeoutSeconds=3600"
    connection.request("GET", f"/apis/{API_VERSION}/namespaces/{namespace}/{CLUSTERS}?{query}")
    answer = connection.getresponse()
    sock = connection.sock

    def read() -> None:
        while line := answer.readline():
            thing = json.loads(line)["object"]
            ready = memory.condition(thing, "Ready")
            conditions = json.dumps(thing.get("status", {}).get("conditions"))
            seen = int(ready.get("observedGeneration", 0))
            found.moments.append(Moment(thing["metadata"]["generation"], ready.get("status", ""), seen, conditions))

    def read_to_the_end() -> None:
        try:
            read()
        except (OSError, ValueError, AttributeError):
            return  # the block ended

    reader = threading.Thread(target=read_to_the_end, daemon=True)
    reader.start()
    try:
        yield found
    finally:
        time.sleep(FLUSH_S)
        sock.shutdown(2)
        reader.join(10)
        connection.close()
