"""The real kopf behind its door, against an API server on loopback that lists, watches and misbehaves."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from engram_contract.names import CLUSTERS, GROUP, VERSION
from engram_operator.clients.kube import METADATA_TYPE, Kube, Resource, connected, fetch_access
from engram_operator.errors import ApiRefused, BadSettings, DeafWatch
from engram_operator.hearing import WatchProof
from engram_operator.plan.hearing import LOOK_S, Place, Watched
from engram_operator.watching import Timing, run_watches

WATCHED = Watched(GROUP, VERSION, CLUSTERS, "team in (a,b)")
COLLECTION = f"/apis/{GROUP}/{VERSION}/{CLUSTERS}"
FAST = Timing(inactivity_s=1.0, relogin_s=0.1)
PATIENCE_S = 10.0

DISCOVERY: dict[str, dict[str, Any]] = {
    "/api": {"versions": ["v1"]},
    "/api/v1": {"resources": [{"name": "namespaces", "kind": "Namespace"}]},
    "/apis": {
        "groups": [
            {"name": GROUP, "versions": [{"version": VERSION}], "preferredVersion": {"version": VERSION}},
            {
                "name": "apiextensions.k8s.io",
                "versions": [{"version": "v1"}],
                "preferredVersion": {"version": "v1"},
            },
        ]
    },
    f"/apis/{GROUP}/{VERSION}": {"resources": [{"name": CLUSTERS, "kind": "MemoryCluster"}]},
    "/apis/apiextensions.k8s.io/v1": {"resources": [{"name": "customresourcedefinitions", "kind": "CRD"}]},
}


async def until(is_so: Callable[[], bool]) -> None:
    """Waits for it, with patience."""
    for _ in range(int(PATIENCE_S / 0.005)):
        if is_so():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("not within the time")


def discovered(path: str) -> dict[str, Any]:
    answer = json.loads(json.dumps(DISCOVERY[path]))
    for each in answer.get("resources", ()):
        each |= {"singularName": "", "namespaced": True, "verbs": ["list", "watch", "get", "patch"]}
    return dict(answer)


class Stream:
    """One open watch."""

    def __init__(self, response: web.StreamResponse, request: web.BaseRequest) -> None:
        self._response = response
        self._request = request
        self.is_dead = False
        self.ended = asyncio.Event()

    async def send(self, event: Mapping[str, Any]) -> None:
        if not self.is_dead:
            await self._response.write(json.dumps(event).encode() + b"\n")

    def reset(self) -> None:
        self.is_dead = True
        if self._request.transport is not None:
            self._request.transport.abort()
        self.ended.set()


@dataclass
class Api:
    """An API server with one collection. What `hides_events` is put, is listed and never sent on a stream."""

    folder: Path
    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)
    asked: list[tuple[str, str, dict[str, str], str]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=lambda: {"t1"})
    refuse: int | None = None
    hides_events: bool = False
    oldest: int = 0
    version: int = 100
    port: int = 0

    @property
    def kubeconfig(self) -> str:
        return str(self.folder / "kubeconfig")

    def log_in(self, token: str) -> None:
        """Writes the kubeconfig with this token."""
        document = {
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        Path(self.kubeconfig).write_text(json.dumps(document))

    def log_out(self) -> None:
        """Takes the kubeconfig away."""
        Path(self.kubeconfig).unlink()

    async def put(self, name: str, event: str = "MODIFIED") -> str:
        """Changes an object, and tells the streams; the version that it has now."""
        self.version += 1
        metadata: dict[str, Any] = {
            "namespace": "default",
            "name": name,
            "uid": f"uid-{name}",
            "resourceVersion": str(self.version),
        }
        metadata |= {"finalizers": ["kopf.zalando.org/KopfFinalizerMarker"]}
        manifest = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "MemoryCluster", "metadata": metadata}
        self.objects[name] = manifest
        if event == "DELETED":
            del self.objects[name]
        if not self.hides_events:
            self.history.append({"type": event, "object": manifest})
            await self.tell(self.history[-1])
        return str(self.version)

    async def tell(self, event: Mapping[str, Any]) -> None:
        for stream in self.streams:
            await stream.send(event)

    async def until_watched(self, count: int = 1) -> None:
        await until(lambda: len(self.streams) >= count)

    def lists(self) -> int:
        return sum(1 for _, path, query, _ in self.asked if path == COLLECTION and "watch" not in query)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        query = dict(request.query)
        authorization = request.headers.get("Authorization", "")
        self.asked.append((request.method, request.path, query, authorization))
        if authorization.removeprefix("Bearer ") not in self.tokens:
            return web.json_response({"kind": "Status", "code": 401}, status=401)
        if request.path in DISCOVERY:
            return web.json_response(discovered(request.path))
        if self.refuse is not None:
            return web.json_response({"kind": "Status", "code": self.refuse}, status=self.refuse)
        if "watch" in query:
            return await self._watch(request, int(query["resourceVersion"]))
        body = {"metadata": {"resourceVersion": str(self.version)}, "items": list(self.objects.values())}
        return web.json_response(body)

    async def _watch(self, request: web.BaseRequest, since: int) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        stream = Stream(response, request)
        if since < self.oldest:
            await stream.send({"type": "ERROR", "object": {"kind": "Status", "code": 410}})
            return response
        for event in self.history:
            if int(event["object"]["metadata"]["resourceVersion"]) > since:
                await stream.send(event)
        self.streams.append(stream)
        await stream.ended.wait()
        return response


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    server = Api(tmp_path)
    runner = web.ServerRunner(web.Server(server.handle), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.port = runner.addresses[0][1]
    server.log_in("t1")
    yield server
    for stream in server.streams:
        stream.reset()
    await runner.cleanup()


Heard = tuple[str | None, str, str]


class Watching:
    """A running `run_watches`, and what it was told."""

    def __init__(self) -> None:
        self.heard: list[Heard] = []
        self.times_s: list[float] = []
        self.also: Callable[[str | None, Mapping[str, Any]], None] = lambda *_: None
        self.task: asyncio.Task[None]

    def on_event(self, watched: Watched, event: str | None, manifest: Mapping[str, Any]) -> None:
        assert watched == WATCHED
        self.heard.append((event, manifest["metadata"]["name"], manifest["metadata"]["resourceVersion"]))
        self.times_s.append(time.monotonic())
        self.also(event, manifest)

    async def until(self, heard: Heard) -> float:
        """When (monotonic seconds) this was heard."""
        await until(lambda: heard in self.heard or self.task.done())
        return self.times_s[self.heard.index(heard)]

    async def until_deaf(self) -> str:
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(DeafWatch) as caught:
                await self.task
        return str(caught.value)


@asynccontextmanager
async def watching(api: Api, timing: Timing = FAST) -> AsyncIterator[Watching]:
    """Watches, until the block ends."""
    running = Watching()
    access = partial(fetch_access, api.kubeconfig)
    running.task = asyncio.create_task(run_watches([WATCHED], access, running.on_event, timing))
    try:
        yield running
    finally:
        running.task.cancel()
        await asyncio.gather(running.task, return_exceptions=True)


async def test_what_is_there_and_what_changes_is_delivered_at_once_and_nothing_is_ever_written(api: Api) -> None:
    first = await api.put("a", "ADDED")
    async with watching(api) as running:
        await running.until((None, "a", first))
        await api.until_watched()
        began_s = time.monotonic()
        second = await api.put("a")
        assert await running.until(("MODIFIED", "a", second)) - began_s < 1.0
        third = await api.put("b", "ADDED")
        await running.until(("ADDED", "b", third))
        gone = await api.put("a", "DELETED")
        await running.until(("DELETED", "a", gone))
    assert {method for method, *_ in api.asked} == {"GET"}  # although kopf's own finalizer is on the object


async def test_the_server_is_asked_for_the_labels_in_chunks_and_for_a_stream_with_an_end(api: Api) -> None:
    async with watching(api):
        await api.until_watched()
    queries = [query for _, path, query, _ in api.asked if path == COLLECTION]
    assert queries[0] == {"limit": "500", "labelSelector": "team in (a,b)"}
    assert queries[1] == {
        "watch": "true",
        "allowWatchBookmarks": "true",
        "labelSelector": "team in (a,b)",
        "resourceVersion": "100",
        "timeoutSeconds": "290",
    }


async def test_a_reset_stream_goes_on_from_its_last_version(api: Api) -> None:
    async with watching(api) as running:
        await api.until_watched()
        first = await api.put("a", "ADDED")
        await running.until(("ADDED", "a", first))
        (stream,) = api.streams
        stream.is_dead = True
        second = await api.put("a")
        stream.reset()
        await running.until(("MODIFIED", "a", second))
        assert api.lists() == 1
    assert [event for event, *_ in running.heard] == ["ADDED", "MODIFIED"]


async def test_an_error_410_is_followed_by_a_new_list(api: Api) -> None:
    async with watching(api) as running:
        await api.until_watched()
        api.hides_events = True
        first = await api.put("a", "ADDED")
        api.hides_events = False
        api.oldest = api.version
        (stream,) = api.streams
        stream.reset()
        await running.until((None, "a", first))
        await api.until_watched(2)
        second = await api.put("a")
        await running.until(("MODIFIED", "a", second))
    assert api.lists() == 2


async def test_an_error_500_in_a_stream_ends_the_watches(api: Api) -> None:
    async with watching(api) as running:
        await api.until_watched()
        await api.tell({"type": "ERROR", "object": {"kind": "Status", "code": 500, "message": "etcd"}})
        assert "WatchingError" in await running.until_deaf()


@pytest.mark.parametrize("status", [403, 429, 500, 503])
async def test_a_refusal_that_passes_is_waited_for(api: Api, status: int) -> None:
    api.refuse = status
    first = await api.put("a", "ADDED")
    async with watching(api) as running:
        await asyncio.sleep(0.5)
        api.refuse = None
        await running.until((None, "a", first))


async def test_a_resource_that_is_no_longer_served_ends_the_watches(api: Api) -> None:
    async with watching(api) as running:
        await api.until_watched()
        api.refuse = 404
        api.streams[0].reset()
        assert "APINotFoundError" in await running.until_deaf()


async def test_a_stream_that_falls_silent_is_cut_after_the_inactivity_and_taken_up_again(api: Api) -> None:
    async with watching(api) as running:
        await api.until_watched()
        (stream,) = api.streams
        stream.is_dead = True
        began_s = time.monotonic()
        first = await api.put("a", "ADDED")
        heard_s = await running.until(("ADDED", "a", first))
        assert 0.5 < heard_s - began_s < 3.0  # FAST.inactivity_s, which is counted from before


async def test_a_stream_that_brings_bookmarks_and_loses_events_is_found_by_the_hearing_alone(api: Api) -> None:
    now_s = 0.0
    enqueued: list[Place] = []
    async with connected(api.kubeconfig, lambda *_: None, lambda: 0.0) as kube, watching(api) as running:
        proof = WatchProof(WATCHED, lambda _, place: enqueued.append(place), lambda: now_s)
        running.also = proof.hear
        first = await api.put("a", "ADDED")
        await api.until_watched()
        await running.until(("ADDED", "a", first) if ("ADDED", "a", first) in running.heard else (None, "a", first))
        assert await proof.look(kube) is None
        api.hides_events = True
        await api.put("a")
        faults = []
        for _ in range(3):
            bookmark = {"metadata": {"resourceVersion": str(api.version)}}
            for _ in range(6):  # longer than the inactivity that kopf bears, so only they keep the stream open
                await api.tell({"type": "BOOKMARK", "object": bookmark})
                await asyncio.sleep(0.2)
            faults.append(await proof.look(kube))
            now_s += LOOK_S
        assert faults == [
            None,
            None,
            f"the watch of {CLUSTERS}.{GROUP} has not delivered default/a for 40 s (1 unheard)",
        ]
        assert enqueued == [("default", "a")] * 3
        assert not running.task.done()
        assert len(api.streams) == 1


async def test_after_a_401_the_new_token_is_read(api: Api) -> None:
    async with watching(api) as running:
        await api.until_watched()
        api.tokens = {"t2"}
        api.log_in("t2")
        api.streams[0].reset()
        first = await api.put("a", "ADDED")
        await running.until(("ADDED", "a", first))
    assert api.asked[-1][3] == "Bearer t2"


async def test_a_token_that_is_refused_for_a_moment_is_tried_again(api: Api) -> None:
    async with watching(api) as running:
        await api.until_watched()
        api.tokens = set()
        api.streams[0].reset()
        first = await api.put("a", "ADDED")
        await asyncio.sleep(0.5)
        assert not running.task.done()
        api.tokens = {"t1"}
        await running.until(("ADDED", "a", first))
    assert 3 <= sum(1 for *_, path, _, _ in api.asked if path == COLLECTION) < 20


async def test_credentials_that_are_not_there_yet_are_waited_for(api: Api) -> None:
    api.log_out()
    with pytest.raises(BadSettings):
        await fetch_access(api.kubeconfig)
    async with watching(api):
        await asyncio.sleep(0.3)
        api.log_in("t1")
        await api.until_watched()


async def test_the_process_keeps_its_signal_handlers(api: Api) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    try:
        async with watching(api) as running:
            await api.until_watched()
            os.kill(os.getpid(), signal.SIGTERM)
            async with asyncio.timeout(PATIENCE_S):
                await stop.wait()
            first = await api.put("a", "ADDED")
            await running.until(("ADDED", "a", first))
    finally:
        assert loop.remove_signal_handler(signal.SIGTERM)
    assert not loop.remove_signal_handler(signal.SIGINT)


async def test_at_the_end_of_the_watches_only_their_own_tasks_end(api: Api) -> None:
    before = asyncio.all_tasks()
    async with watching(api):
        await api.until_watched()
        younger = asyncio.create_task(asyncio.sleep(PATIENCE_S))
        began_s = time.monotonic()
    assert time.monotonic() - began_s < 3.0
    assert not younger.done()
    younger.cancel()
    for stream in api.streams:
        stream.reset()
    await asyncio.sleep(0.1)
    assert [task for task in asyncio.all_tasks() - before - {younger} if "kopf" in repr(task)] == []


async def test_a_fault_of_ours_in_an_event_is_not_swallowed(api: Api) -> None:
    def fail(event: str | None, manifest: Mapping[str, Any]) -> None:
        raise KeyError("ours")

    async with watching(api) as running:
        running.also = fail
        await api.until_watched()
        await api.put("a", "ADDED")
        with pytest.raises(KeyError, match="ours"):
            async with asyncio.timeout(PATIENCE_S):
                await running.task


async def test_one_resource_with_two_selectors_is_refused() -> None:
    twice = [WATCHED, Watched(GROUP, VERSION, CLUSTERS, "team=c")]
    with pytest.raises(ValueError, match="twice"):
        await run_watches(twice, partial(fetch_access, "/nowhere"), lambda *_: None)


async def test_metadata_is_listed_in_chunks_without_the_objects(tmp_path: Path) -> None:
    asked: list[tuple[dict[str, str], str]] = []

    async def handle(request: web.BaseRequest) -> web.Response:
        asked.append((dict(request.query), request.headers["Accept"]))
        last = "continue" in request.query
        items = [{"metadata": {"name": "b" if last else "a", "uid": "u", "resourceVersion": "1"}}]
        return web.json_response({"metadata": {"continue": "" if last else "token&1"}, "items": items})

    async with server_of(handle, tmp_path) as kube:
        pods = Resource("/api/v1", "pods")
        found = [metadata["name"] async for metadata in kube.fetch_metadata(pods, "a in (b,c),!d")]
    assert found == ["a", "b"]
    first = {"limit": "500", "labelSelector": "a in (b,c),!d"}
    assert asked == [(first, METADATA_TYPE), (first | {"continue": "token&1"}, METADATA_TYPE)]


async def test_a_list_that_took_too_long_is_refused_on_its_way(tmp_path: Path) -> None:
    async def handle(request: web.BaseRequest) -> web.Response:
        if "continue" in request.query:
            return web.json_response({"kind": "Status", "message": "too old"}, status=410)
        return web.json_response({"metadata": {"continue": "x"}, "items": []})

    async with server_of(handle, tmp_path) as kube:
        with pytest.raises(ApiRefused, match="too old"):
            [each async for each in kube.fetch_metadata(Resource("/api/v1", "pods"), "")]


@asynccontextmanager
async def server_of(handle: Callable[[web.BaseRequest], Any], folder: Path) -> AsyncIterator[Kube]:
    """The door to an API server that answers with `handle`."""
    runner = web.ServerRunner(web.Server(handle), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    api = Api(folder, port=runner.addresses[0][1])
    api.log_in("t")
    async with connected(api.kubeconfig, lambda *_: None, lambda: 0.0) as kube:
        yield kube
    await runner.cleanup()
