"""What the sidecar costs: get, put and search through HTTP, against the same statements sent straight with asyncpg.

One at a time, over 31,354 memories of a real text, in turns: some hundred requests of the one, the same of the other.
The HTTP side is a bare socket that keeps its connection, so the figure is the sidecar's and not a client library's.
"""

import asyncio
import json
import socket
import statistics
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any, Self
from urllib.parse import urlsplit

from engram import AsyncEngram, Memory, Operation
from engram_contract.policy import Limits
from engram_contract.slots import MemoryId
from engram_sidecar.config import Config, read_config
from engram_sidecar.pipeline import Pipeline
from engram_sidecar.records import Put
from engram_sidecar.wire import parse_draft, parse_search
from examples.demo.corpus import Speech, read_corpus
from examples.demo.local import local_mode
from rows import Row
from statements import Direct, RecordingStore, Statement, recording

ROUNDS = 4  # turns of each side; more than one, so that a slow second of the machine meets both
PER_ROUND = 250
WARM_UP = 50
BATCH = 500
READY_TIMEOUT_S = 180.0

# Of requirements 4.5, in ms: GET, PUT, SEARCH. The ratios leave room for about twice what was measured on two cores.
BARS_MS = {"get": 2.0, "put": 50.0, "search": 100.0}
BARS_RATIO = {"get": 4.0, "put": 4.0, "search": 2.0}


class Wire:
    """One HTTP/1.1 connection to the sidecar; sends and reads bytes, understands only Content-Length."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host = f"{parts.hostname}:{parts.port}"
        self._socket = socket.create_connection((parts.hostname or "", parts.port or 0))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        """This connection."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Closes it."""
        self._socket.close()

    def build(self, method: str, target: str, body: object = None) -> bytes:
        """The bytes of a request."""
        payload = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {target} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload

    def send(self, request: bytes) -> bytes:
        """The body of the answer; raises RuntimeError for any other status than 200 and 201."""
        self._socket.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._socket.recv(65_536)
        head, _, body = answer.partition(b"\r\n\r\n")
        if head.split(b" ", 2)[1] not in {b"200", b"201"}:
            raise RuntimeError(answer.decode(errors="replace"))
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        while len(body) < length:
            body += self._socket.recv(65_536)
        return body


@dataclass(frozen=True, slots=True)
class Case:
    """One operation as the sidecar is asked it, and as the statements that it becomes."""

    request: bytes
    statements: list[Statement]


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of each request of both sides."""

    http: list[float] = field(default_factory=list)
    direct: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """How many times the median of the direct way the median of HTTP is."""
        return statistics.median(self.http) / statistics.median(self.direct)


def measure() -> Iterator[Row]:
    """The rows of this benchmark."""
    with local_mode() as local, asyncio.Runner() as runner:
        stored = runner.run(store_corpus(local.url))
        [config_dir] = (local.data_dir / "tenants").iterdir()
        config = read_config(config_dir)
        with Wire(local.url) as wire:
            cases = runner.run(build_cases(wire, config, stored))
            direct = Direct(config.credentials)
            for name, of_kind in cases.items():
                yield from to_rows(name, take_turns(runner, wire, direct, of_kind))
            runner.run(direct.close())


async def store_corpus(url: str) -> list[tuple[Speech, Memory]]:
    """The corpus in the sidecar's shards: each speech with its memory."""
    speeches = read_corpus()
    stored: list[tuple[Speech, Memory]] = []
    async with AsyncEngram(url) as client:
        await client.wait_ready(READY_TIMEOUT_S)
        for first in range(0, len(speeches), BATCH):
            batch = speeches[first : first + BATCH]
            result = await client.batch(Operation.create(**speech.fields) for speech in batch)
            if not result.ok:
                raise RuntimeError(next(outcome for outcome in result if not outcome.ok))
            stored.extend((s, o.memory) for s, o in zip(batch, result, strict=True) if o.memory is not None)
    return stored


async def build_cases(wire: Wire, config: Config, stored: Sequence[tuple[Speech, Memory]]) -> dict[str, list[Case]]:
    """For each kind of operation PER_ROUND cases over the whole corpus, with the statements recorded."""
    pipeline, noted = recording(config)
    sample = stored[:: len(stored) // PER_ROUND][:PER_ROUND]
    cases: dict[str, list[Case]] = {"get": [], "put": [], "search": []}
    for speech, memory in sample:
        cases["get"].append(await record_get(wire, pipeline, noted, memory))
        cases["put"].append(await record_put(wire, pipeline, noted, speech, memory))
        cases["search"].append(await record_search(wire, pipeline, noted, speech))
    await noted.close()
    return cases


async def record_get(wire: Wire, pipeline: Pipeline, noted: RecordingStore, memory: Memory) -> Case:
    """A read by id."""
    await pipeline.get(MemoryId.parse(memory.id))
    return Case(wire.build("GET", f"/v1/memories/{memory.id}"), noted.take())


async def record_put(wire: Wire, pipeline: Pipeline, noted: RecordingStore, speech: Speech, memory: Memory) -> Case:
    """The replacement of a memory that is there, indexed anew."""
    await pipeline.put(Put(MemoryId.parse(memory.id), parse_draft(speech.fields, Limits())))
    return Case(wire.build("PUT", f"/v1/memories/{memory.id}", speech.fields), noted.take())


async def record_search(wire: Wire, pipeline: Pipeline, noted: RecordingStore, speech: Speech) -> Case:
    """A search of one user's memories for a line of one of them."""
    body: dict[str, Any] = {"query": max(speech.content.splitlines(), key=len), "user": speech.speaker, "limit": 10}
    await pipeline.search(*parse_search(body, Limits()))
    return Case(wire.build("POST", "/v1/search", body), noted.take())


def take_turns(runner: asyncio.Runner, wire: Wire, direct: Direct, cases: Sequence[Case]) -> Times:
    """Both sides in turns over the same cases, after a warm-up of each."""

    def ask_sidecar(case: Case) -> None:
        wire.send(case.request)

    times = Times()
    for case in islice(cycle(cases), WARM_UP):
        ask_sidecar(case)
        runner.run(direct.send(case.statements))
    for _ in range(ROUNDS):
        times.http.extend(clock(ask_sidecar, cases))
        times.direct.extend(runner.run(clock_async(lambda case: direct.send(case.statements), cases)))
    return times


def clock(act: Callable[[Case], None], cases: Sequence[Case]) -> list[float]:
    """Seconds of each."""
    seconds = []
    for case in cases:
        begun_s = time.perf_counter()
        act(case)
        seconds.append(time.perf_counter() - begun_s)
    return seconds


async def clock_async(act: Callable[[Case], Coroutine[Any, Any, int]], cases: Sequence[Case]) -> list[float]:
    """Seconds of each, without the cost of entering the loop."""
    seconds = []
    for case in cases:
        begun_s = time.perf_counter()
        await act(case)
        seconds.append(time.perf_counter() - begun_s)
    return seconds


def to_rows(name: str, times: Times) -> Iterator[Row]:
    """The ratio, and the two percentiles that users ask for, each beside its peer."""
    direct_ms = 1000 * statistics.median(times.direct)
    peer = f"the same statements with asyncpg: {direct_ms:.3g} ms"
    yield Row.at_most(f"http_{name}_ratio", times.ratio, "times", BARS_RATIO[name], peer)
    yield Row.at_most(f"http_{name}_p50", 1000 * statistics.median(times.http), "ms", BARS_MS[name], peer)
    p99, direct_p99 = (1000 * statistics.quantiles(side, n=100)[98] for side in (times.http, times.direct))
    yield Row.shown(f"http_{name}_p99", p99, "ms", f"the same statements with asyncpg: {direct_p99:.3g} ms")
