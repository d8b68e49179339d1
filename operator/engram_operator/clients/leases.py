"""One Lease of coordination.k8s.io behind the words of `plan/lease.py`.

Promise: a write lands only on the version it was planned over (`resourceVersion`), and keeps what others wrote beside
the Lease's own fields.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from engram_operator.clients.kube import LEASES, Kube, Manifest
from engram_operator.plan.lease import LEASE_S, Lease

TRANSITIONS_END: Final = 2**31  # the field is an int32; one more would be refused for ever
_TIME: Final = "%Y-%m-%dT%H:%M:%S.%fZ"


class Leases:
    """The Lease `name`. `wall_clock` gives Unix seconds; only people read what it says."""

    def __init__(self, kube: Kube, namespace: str, name: str, wall_clock: Callable[[], float]) -> None:
        self._kube = kube
        self._namespace = namespace
        self._name = name
        self._wall_clock = wall_clock
        self._manifest: Manifest = {}

    async def fetch(self, timeout_s: float) -> Lease | None:
        """The Lease as it is, or None if there is none. Raises ApiError."""
        manifest = await self._kube.find(LEASES, self._namespace, self._name, timeout_s=timeout_s)
        return None if manifest is None else self._kept(manifest)

    async def write(self, over: Lease | None, holder: str, timeout_s: float) -> Lease:
        """The Lease with this holder, written over the version `over`. Raises ApiConflict if that is history."""
        if over is None:
            metadata = {"name": self._name, "namespace": self._namespace}
            manifest: Manifest = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata}
            manifest["spec"] = self._spec({}, None, holder)
            return self._kept(await self._kube.create(LEASES, self._namespace, manifest, timeout_s=timeout_s))
        metadata = {**self._manifest["metadata"], "resourceVersion": over.resource_version}
        metadata.pop("managedFields", None)
        spec = self._spec(self._manifest.get("spec") or {}, over, holder)
        manifest = {**self._manifest, "metadata": metadata, "spec": spec}
        return self._kept(await self._kube.replace(LEASES, self._namespace, manifest, timeout_s=timeout_s))

    def _kept(self, manifest: Manifest) -> Lease:
        self._manifest = manifest
        spec = manifest.get("spec") or {}
        return Lease(
            resource_version=str(manifest["metadata"]["resourceVersion"]),
            holder=str(spec.get("holderIdentity") or ""),
            lease_s=float(spec.get("leaseDurationSeconds") or LEASE_S),
            transitions=int(spec.get("leaseTransitions") or 0),
        )

    def _spec(self, before: dict[str, Any], over: Lease | None, holder: str) -> dict[str, Any]:
        now = datetime.fromtimestamp(self._wall_clock(), UTC).strftime(_TIME)
        spec = {**before, "holderIdentity": holder, "leaseDurationSeconds": int(LEASE_S), "renewTime": now}
        if holder and (over is None or over.holder != holder):
            spec |= {
                "acquireTime": now,
                "leaseTransitions": 0 if over is None else (over.transitions + 1) % TRANSITIONS_END,
            }
        return spec
