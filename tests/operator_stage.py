"""What the operator's tests play on: a store of manifests with the door's interface, JSON patches, virtual time.

The store keeps what a real API server promises and the operator relies on: resource versions, conflicts, preconditions.
"""

import asyncio
import copy
import selectors
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from engram_operator.clients.kube import Kube, Manifest, Resource
from engram_operator.errors import ApiConflict, ApiError, ApiHeld, ApiNotFound, ApiRefused

T = TypeVar("T")


class Store(Kube):
    """An API server in memory. `fault` is raised by every call while it is set; `writes` are (verb, path)."""

    def __init__(self) -> None:
        self.objects: dict[str, Manifest] = {}
        self.writes: list[tuple[str, str]] = []
        self.timeouts: list[float] = []
        self.fault: ApiError | None = None
        self.held: set[str] = set()  # pods that a disruption budget keeps
        self.answered_s = 0.0
        self._version = 0

    def put(self, resource: Resource, manifest: Manifest) -> Manifest:
        """The object, as if somebody else had written it."""
        metadata = manifest["metadata"]
        self._version += 1
        known = self.objects.get(resource.path(metadata.get("namespace"), metadata["name"]))
        uid = known["metadata"]["uid"] if known else f"uid-{self._version}"
        stored = copy.deepcopy(manifest)
        stored["metadata"] |= {"resourceVersion": str(self._version), "uid": uid}
        self.objects[resource.path(metadata.get("namespace"), metadata["name"])] = stored
        return copy.deepcopy(stored)

    def get(self, resource: Resource, namespace: str | None, name: str) -> Manifest:
        """The object itself, to look at or to spoil."""
        return self.objects[resource.path(namespace, name)]

    async def fetch(self, resource: Resource, namespace: str | None, name: str, *, timeout_s: float = 10.0) -> Manifest:
        self._called(timeout_s)
        found = self.objects.get(resource.path(namespace, name))
        if found is None:
            raise ApiNotFound(f"get {name}: 404")
        return copy.deepcopy(found)

    async def fetch_some(
        self, resource: Resource, namespace: str | None, *, limit: int, timeout_s: float = 10.0
    ) -> list[Manifest]:
        self._called(timeout_s)
        start = resource.path(namespace) + "/" if namespace else resource.prefix
        end = f"/{resource.plural}/"
        found = [self.objects[path] for path in sorted(self.objects) if path.startswith(start) and end in path]
        return copy.deepcopy(found[:limit])

    async def fetch_metadata(
        self, resource: Resource, selector: str, *, namespace: str | None = None, timeout_s: float = 10.0
    ) -> AsyncIterator[Manifest]:
        for each in await self.fetch_labelled(resource, namespace, selector, timeout_s=timeout_s):
            yield each["metadata"]

    async def fetch_labelled(
        self, resource: Resource, namespace: str | None, selector: str, *, timeout_s: float = 10.0
    ) -> list[Manifest]:
        label, _, value = selector.partition("=")
        found = await self.fetch_some(resource, namespace, limit=1_000, timeout_s=timeout_s)
        return [each for each in found if not selector or each["metadata"].get("labels", {}).get(label) == value]

    async def apply_status(
        self, resource: Resource, manifest: Manifest, field_manager: str, *, timeout_s: float = 10.0
    ) -> Manifest:
        metadata = manifest["metadata"]
        path = self._write("patch", resource, metadata["namespace"], f"{metadata['name']}", timeout_s)
        self.writes[-1] = ("patch", f"{path}/status")
        if path not in self.objects:
            raise ApiNotFound(f"{path}: 404")
        return self.put(resource, self.objects[path] | {"status": manifest["status"]})

    async def create(
        self, resource: Resource, namespace: str | None, manifest: Manifest, *, timeout_s: float = 10.0
    ) -> Manifest:
        path = self._write("create", resource, namespace, manifest["metadata"]["name"], timeout_s)
        if path in self.objects:
            raise ApiConflict(f"create {path}: 409")
        return self.put(resource, manifest)

    async def replace(
        self, resource: Resource, namespace: str | None, manifest: Manifest, *, timeout_s: float = 10.0
    ) -> Manifest:
        path = self._write("update", resource, namespace, manifest["metadata"]["name"], timeout_s)
        self._expect_version(path, manifest)
        return self.put(resource, manifest)

    async def apply(
        self, resource: Resource, manifest: Manifest, field_manager: str, *, timeout_s: float = 10.0
    ) -> Manifest:
        metadata = manifest["metadata"]
        path = self._write("patch", resource, metadata.get("namespace"), metadata["name"], timeout_s)
        if "resourceVersion" in metadata:
            self._expect_version(path, manifest)
        return self.put(resource, merged(self.objects.get(path, {}), manifest))

    async def patch(
        self,
        resource: Resource,
        name: str,
        operations: Sequence[Mapping[str, Any]],
        field_manager: str,
        *,
        namespace: str | None = None,
        timeout_s: float = 10.0,
    ) -> Manifest:
        path = self._write("patch", resource, namespace, name, timeout_s)
        try:
            after = patched(self.objects[path], operations)
        except AssertionError as error:
            raise ApiRefused(f"patch {path}: 422") from error
        self._expect_version(path, after)
        return self.put(resource, after)

    async def evict(self, resource: Resource, namespace: str, name: str, uid: str, *, timeout_s: float = 10.0) -> None:
        path = self._write("evict", resource, namespace, name, timeout_s)
        if name in self.held:
            raise ApiHeld(f"evict {path}: 429")
        if self.objects[path]["metadata"]["uid"] != uid:
            raise ApiConflict(f"evict {path}: 409")
        self.objects[path]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"

    async def delete(
        self, resource: Resource, namespace: str | None, name: str, uid: str, *, timeout_s: float = 10.0
    ) -> None:
        path = self._write("delete", resource, namespace, name, timeout_s)
        if self.objects[path]["metadata"]["uid"] != uid:
            raise ApiConflict(f"delete {path}: 409")
        del self.objects[path]

    def _called(self, timeout_s: float) -> None:
        self.timeouts.append(timeout_s)
        if self.fault is not None:
            raise self.fault

    def _write(self, verb: str, resource: Resource, namespace: str | None, name: str, timeout_s: float) -> str:
        self._called(timeout_s)
        path = resource.path(namespace, name)
        self.writes.append((verb, path))
        return path

    def _expect_version(self, path: str, manifest: Manifest) -> None:
        if path not in self.objects:
            raise ApiNotFound(f"{path}: 404")
        if self.objects[path]["metadata"]["resourceVersion"] != manifest["metadata"]["resourceVersion"]:
            raise ApiConflict(f"{path}: 409")


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Maps are merged, everything else is replaced."""
    result = dict(copy.deepcopy(base))
    for key, value in over.items():
        is_map = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if is_map else copy.deepcopy(value)
    return result


def patched(document: Any, operations: Iterable[Mapping[str, Any]]) -> Any:  # noqa: ANN401  JSON has no narrower type
    """The document after add, remove, replace and test of RFC 6902; an AssertionError if a place is not there."""
    document = copy.deepcopy(document)
    for operation in operations:
        *way, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
        parent = document
        for part in way:
            key = int(part) if isinstance(parent, list) else part
            assert key in parent if isinstance(parent, dict) else key < len(parent), operation
            parent = parent[key]
        assert isinstance(parent, (dict, list)), operation
        _operate(parent, last, copy.deepcopy(dict(operation)))
    return document


def _operate(parent: dict[str, Any] | list[Any], last: str, operation: dict[str, Any]) -> None:
    if isinstance(parent, list):
        index = len(parent) if last == "-" else int(last)
        assert index <= len(parent), operation
        if operation["op"] == "add":
            parent.insert(index, operation["value"])
            return
        assert index < len(parent), operation
        assert operation["op"] != "test" or parent[index] == operation["value"], operation
        if operation["op"] == "remove":
            parent.pop(index)
        else:
            parent[index] = operation["value"]
        return
    assert operation["op"] == "add" or last in parent, operation
    assert operation["op"] != "test" or parent[last] == operation["value"], operation
    parent[last] = operation["value"]


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose time goes on by `turn_s` a turn, and at once to the next timer when nothing else is left to do."""

    def __init__(self, turn_s: float = 0.0) -> None:
        self._now_s, self._turn_s = 0.0, turn_s
        super().__init__(selectors.SelectSelector())

    def time(self) -> float:
        return self._now_s

    def _run_once(self) -> None:
        self._now_s += self._turn_s
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            timers = [timer.when() for timer in self._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
            self._now_s = max([self._now_s, *sorted(timers)[:1]])
        super()._run_once()  # type: ignore[misc]


def run_virtually(work: Awaitable[T]) -> T:
    """The result of the coroutine, without waiting for any of its timers."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(asyncio.ensure_future(work, loop=loop))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
