"""What came of a request to the HTTP response that says so."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from aiohttp import web

from engram_contract.names import REPLAYED_HEADER
from engram_sidecar import wire
from engram_sidecar.health import Status
from engram_sidecar.idempotency import CREATED, Write, status_of
from engram_sidecar.records import Found, Hit, Replay
from engram_sidecar.timing import part

REPLAYED: Final = {REPLAYED_HEADER: "true"}
MANY: Final = 100  # items, 3 ms; a thread costs .1 ms

Done = TypeVar("Done")


def health_response(status: Status, document: dict[str, object]) -> web.Response:
    """The report as a response: 503 for unhealthy, for those who look at the status alone."""
    return json_response(document, 503 if status is Status.UNHEALTHY else 200, {"Cache-Control": "no-store"})


def json_response(document: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """The document as a response."""
    with part("encode"):
        body = wire.encode(document)
    return encoded_response(body, status, headers)


def encoded_response(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A document that is encoded already, as a response."""
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")


def stored_response(write: Write, hit: Hit) -> web.Response:
    """The memory that a write stored, with its address if it is new."""
    status = status_of(write, hit.memory)
    return memory_response(hit, status, {"Location": f"/v1/memories/{hit.memory.id}"} if status == CREATED else {})


def replay_response(replay: Replay, shard: str) -> web.Response:
    """The outcome of a write that was done before, under the same key."""
    headers = dict(REPLAYED)
    if replay.etag is None:
        return web.Response(status=replay.status, headers=headers)
    headers["ETag"] = str(replay.etag)
    if replay.status == CREATED:
        headers["Location"] = f"/v1/memories/{replay.id}"
    return json_response(wire.replay_document(replay, shard), replay.status, headers)


def memory_response(hit: Hit, status: int, headers: Mapping[str, str] | None = None) -> web.Response:
    """The memory with its entity tag."""
    tags = {"ETag": str(hit.memory.etag), **(headers or {})}
    return json_response(wire.memory_document(hit.memory, hit.shard), status, tags)


@dataclass(frozen=True, slots=True)
class Results:
    """The document of a list or a search as JSON, how many memories are in it, and whether a shard is missing."""

    body: bytes
    count: int
    is_incomplete: bool = False


async def results_of(found: Found, build: Callable[[Found], dict[str, object]]) -> Results:
    """What was found, as `build` shows it."""
    with part("encode"):
        body = await beside_loop(len(found.hits), lambda: wire.encode(build(found)))
    return Results(body, len(found.hits), bool(found.failures))


async def beside_loop(items: int, work: Callable[[], Done]) -> Done:
    """What the work gives. With many items it runs in a thread: a thousand take the loop for 30 ms."""
    return work() if items < MANY else await asyncio.to_thread(work)
