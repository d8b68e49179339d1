"""Reads that are known by their bytes and not kept: loaded with others, and answered as the long way answers."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from engram_contract.shardmap import Node
from engram_sidecar.app import serving
from engram_sidecar.settings import Settings
from tests.faults import Fault, FaultProxy, fault_proxy
from tests.harness import NO_CACHE, NUMBERS, RealServer, Tenant, create_tenant

COUNT = 40
TIMEOUT_S = 60
ABSENT = "0001-017f22e2-79b0-7cc3-98c4-dc0c0c07398f"
TUNED = {"deadlineSeconds": 1, "failoverSeconds": 0, "stalenessSeconds": 30, "retrieveFailures": 100}
SPEC = {"plan": "Enterprise", "resilience": TUNED}


@dataclass
class Line:
    """A connection of a caller, which asks for one thing after the other."""

    port: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    @classmethod
    async def open(cls, port: int) -> "Line":
        return cls(port, *await asyncio.open_connection("127.0.0.1", port))

    def send(self, memory: str, extra: str = "") -> None:
        """Asks for a memory. Whatever is known of other requests is known of this one, but for what is extra."""
        self.writer.write(f"GET /v1/memories/{memory} HTTP/1.1\r\nHost: localhost\r\n{extra}\r\n".encode())

    async def answer(self) -> tuple[int, dict[str, str], Any]:
        """Status, headers and document of the next answer."""
        status, *fields = (await self.reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        headers = {name.lower(): value for name, value in (each.split(": ", 1) for each in fields)}
        body = await self.reader.readexactly(int(headers["content-length"]))
        return int(status.split()[1]), headers, json.loads(body)

    async def get(self, memory: str, extra: str = "") -> tuple[int, dict[str, str], Any]:
        self.send(memory, extra)
        return await self.answer()

    async def long(self, memory: str, extra: str = "") -> tuple[int, dict[str, str], Any]:
        """The same by the long way: with a header of which nothing is known."""
        return await self.get(memory, f"{extra}X-Number: {next(self.numbers)}\r\n")

    async def ask(self, method: str, path: str, document: object = None) -> tuple[int, dict[str, str], Any]:
        body = json.dumps(document)
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        self.writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        return await self.answer()


@dataclass
class Stage:
    """A sidecar before a shard that may be hindered, and what is stored there."""

    port: int
    admin_port: int
    proxy: FaultProxy
    tenant: Tenant
    ids: list[str]
    opened: list[Line]

    async def lines(self, count: int, extra: str = "") -> list[Line]:
        """Connections whose next request is known, if it says so much of itself."""
        lines = [await Line.open(self.port) for _ in range(count)]
        self.opened += lines
        for line in lines:
            await line.get(self.ids[0], extra)
        return lines

    async def counted(self, operation: str, outcome: str) -> float:
        """How many requests Prometheus is told of."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.admin_port)
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        lines = (await reader.read()).decode().splitlines()
        writer.close()
        name = f'memory_operations_total{{operation="{operation}",status="{outcome}"}}'
        return next((float(line.split()[-1]) for line in lines if line.startswith(name)), 0.0)


@asynccontextmanager
async def staged(server: RealServer, folder: Path, **how: Any) -> AsyncIterator[Stage]:  # noqa: ANN401  as create_tenant takes it
    tenant = await create_tenant(f"x{next(NUMBERS)}", (server,), folder, spec=SPEC, **how)
    async with fault_proxy(server.admin.port) as proxy:
        [shard] = tenant.shard_map.shards
        node = Node(shard.nodes[0].name, "127.0.0.1", proxy.port)
        (folder / "map.json").write_text(replace(tenant.shard_map, shards=(replace(shard, nodes=(node,)),)).to_json())
        settings = Settings(folder, http_port=0, admin_port=0, drain_timeout_s=10.0)
        opened: list[Line] = []
        async with serving(settings) as ports, asyncio.timeout(TIMEOUT_S):
            opened.append(line := await Line.open(ports.http_port))
            made = [await line.ask("POST", "/v1/memories", {"content": f"heron {n}"}) for n in range(COUNT)]
            ids = [document["id"] for _, _, document in made]
            yield Stage(ports.http_port, ports.admin_port, proxy, tenant, ids, opened)
            proxy.turn(Fault.NONE)
        for each in opened:
            each.writer.close()


@pytest.fixture
async def stage(servers: tuple[RealServer, RealServer], tmp_path: Path) -> AsyncIterator[Stage]:
    """Nothing is kept in it: each read is a load."""
    async with staged(servers[0], tmp_path, caching=NO_CACHE) as found:
        yield found


async def noted(line: Line, status: int) -> list[dict[str, Any]]:
    """The audit's entries of this status, as soon as there are some."""
    while True:
        _, _, audit = await line.ask("GET", "/v1/audit?limit=1000")
        if found := [each for each in audit["entries"] if each["status"] == status]:
            return found
        await asyncio.sleep(0.1)


def is_express(headers: dict[str, str]) -> bool:
    """Aiohttp names itself, and had no part in these."""
    return "server" not in headers


def same(answer: tuple[int, dict[str, str], Any]) -> tuple[int, dict[str, str], Any]:
    """Of an answer what does not change from one to the next."""
    status, headers, body = answer
    return status, {name: value for name, value in headers.items() if name not in {"date", "server", "age"}}, body


@pytest.mark.parametrize("said", ["", "Engram-Consistency: strong\r\n", "Engram-Consistency: eventual\r\n"])
async def test_what_is_answered_so_is_what_the_long_way_says(stage: Stage, said: str) -> None:
    [line] = await stage.lines(1, said)
    _, headers, _ = await line.get(stage.ids[0], said)
    token = f"Engram-Session: {headers['engram-session']}\r\n"
    for extra in (said, said + token):
        await line.get(stage.ids[0], extra)  # the long way, which is learned from
        for memory in (*stage.ids[:3], ABSENT):
            short, long = await line.get(memory, extra), await line.long(memory, extra)
            assert is_express(short[1])
            assert not is_express(long[1])
            assert same(short) == same(long)
            assert short[0] == (404 if memory == ABSENT else 200)


@pytest.mark.parametrize(
    "target",
    [
        f"/v1/memories/{ABSENT.upper()}",
        f"/v1/memories/{ABSENT}/",
        f"/v1/memories/{ABSENT}?x=1",
        "/v1/memories/%30001-017f22e2-79b0-7cc3-98c4-dc0c0c07398f",
        "/v1/items?user=ada&key=none",
        "/v1/memories/",
        "http://evil/v1/memories/" + ABSENT,
        "/V1/memories/" + ABSENT,
    ],
)
async def test_any_other_target_goes_the_long_way(stage: Stage, target: str) -> None:
    [line] = await stage.lines(1)
    line.writer.write(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    status, headers, _ = await line.answer()
    assert status in {400, 404, 422}
    assert not is_express(headers)


async def test_each_of_many_gets_its_own_answer(stage: Stage) -> None:
    lines = await stage.lines(50)
    counted = await stage.counted("retrieve", "success")

    async def run(line: Line, first: int) -> None:
        for number in range(first, first + COUNT):
            status, headers, body = await line.get(stage.ids[number % COUNT])
            assert (status, body["content"]) == (200, f"heron {number % COUNT}")
            assert is_express(headers)

    await asyncio.gather(*(run(line, number) for number, line in enumerate(lines)))
    assert await stage.counted("retrieve", "success") == counted + len(lines) * COUNT


async def test_who_joins_a_load_waits_as_long_as_its_own_time_allows(stage: Stage) -> None:
    first, second = await stage.lines(2)
    stage.proxy.turn(Fault.HELD)
    first.send(stage.ids[1])
    await asyncio.sleep(0.7)
    second.send(stage.ids[1])
    status, _, _ = await first.answer()
    assert status == 504
    stage.proxy.turn(Fault.NONE)
    status, headers, body = await second.answer()
    assert (status, is_express(headers), body["content"]) == (200, True, "heron 1")
    assert headers["cache-status"].startswith("engram; fwd=uri-miss")


async def test_one_that_cannot_be_opened_concerns_nobody_else(stage: Stage, servers: tuple[RealServer, ...]) -> None:
    lines = await stage.lines(COUNT)
    async with servers[0].session(stage.tenant.database) as admin:
        broken = stage.ids[7].split("-", 1)[1]
        await admin.execute(
            "UPDATE engram.memories SET sealed = set_byte(sealed, 30, 1 # get_byte(sealed, 30)) WHERE id = $1", broken
        )
    answers = await asyncio.gather(*(line.get(memory) for line, memory in zip(lines, stage.ids, strict=True)))
    assert [status for status, _, _ in answers] == [500 if number == 7 else 200 for number in range(COUNT)]
    assert answers[7][2]["type"].endswith("seal-broken")


@pytest.mark.parametrize("fault", [Fault.SILENT, Fault.RESET])
async def test_where_the_shard_does_not_answer_it_says_so_in_time_as_the_long_way_does(
    stage: Stage, fault: Fault
) -> None:
    lines = await stage.lines(4)
    stage.proxy.turn(fault)
    began_s = asyncio.get_running_loop().time()
    short = [line.get(memory) for line, memory in zip(lines[:2], stage.ids[:2], strict=True)]
    long = [line.long(memory) for line, memory in zip(lines[2:], stage.ids[2:4], strict=True)]
    answers = await asyncio.gather(*short, *long)
    assert asyncio.get_running_loop().time() - began_s < TIMEOUT_S / 4
    assert {status for status, _, _ in answers} <= {503, 504}
    assert [is_express(headers) for _, headers, _ in answers] == [True, True, False, False]
    assert len({body["type"] for _, _, body in answers}) == 1
    assert all(headers["content-type"] == "application/problem+json" for _, headers, _ in answers)
    assert len({headers["retry-after"] for _, headers, _ in answers}) == 1


async def test_what_is_kept_is_shown_in_its_stead(servers: tuple[RealServer, RealServer], tmp_path: Path) -> None:
    async with staged(servers[0], tmp_path) as stage:
        [line] = await stage.lines(1)
        assert (await line.get(stage.ids[3]))[0] == 200
        stage.proxy.turn(Fault.RESET)
        await asyncio.sleep(3.1)  # so long it is shown for as fresh
        status, headers, body = await line.get(stage.ids[3])
        assert (status, body["content"], is_express(headers)) == (200, "heron 3", True)
        assert headers["cache-status"].endswith("detail=stale")
        assert (await line.get(stage.ids[4]))[0] == 503


async def test_what_comes_while_an_answer_is_owed_waits_for_it(stage: Stage) -> None:
    [line] = await stage.lines(1)
    stage.proxy.turn(Fault.HELD)
    line.send(stage.ids[1])
    await asyncio.sleep(0.05)
    line.send(stage.ids[2])
    await asyncio.sleep(0.05)
    line.send(stage.ids[3], "X-Long: 1\r\n")
    line.send(stage.ids[4])
    await asyncio.sleep(0.05)
    stage.proxy.turn(Fault.NONE)
    assert [(await line.answer())[2]["content"] for _ in range(4)] == [f"heron {number}" for number in range(1, 5)]
    assert (await line.get(stage.ids[5]))[2]["content"] == "heron 5"


async def test_who_leaves_before_the_answer_is_noted_and_disturbs_nobody(stage: Stage) -> None:
    leaving, staying = await stage.lines(2)
    stage.proxy.turn(Fault.HELD)
    leaving.send(stage.ids[1])
    staying.send(stage.ids[2])
    await asyncio.sleep(0.05)
    leaving.writer.transport.abort()
    await asyncio.sleep(0.05)
    stage.proxy.turn(Fault.NONE)
    assert (await staying.answer())[2]["content"] == "heron 2"
    left = await noted(staying, 499)
    assert [each["memory"] for each in left] == [stage.ids[1]]


async def test_an_answer_that_is_owed_at_the_drain_is_given(
    servers: tuple[RealServer, RealServer], tmp_path: Path
) -> None:
    async with staged(servers[0], tmp_path, caching=NO_CACHE) as stage:
        [line] = await stage.lines(1)
        stage.proxy.turn(Fault.HELD)
        line.send(stage.ids[1])
        await asyncio.sleep(0.05)
        asyncio.get_running_loop().call_later(0.3, stage.proxy.turn, Fault.NONE)
        answered = asyncio.create_task(line.answer())
    assert (await answered)[2]["content"] == "heron 1"
    assert await line.reader.read() == b"", "and the connection has ended"
    line.writer.close()


async def test_a_fault_of_ours_is_an_answer_too(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    [line] = await stage.lines(1)

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("engram_sidecar.wire.named_in", broken)
    status, headers, body = await line.get(stage.ids[1])
    assert (status, body["type"].endswith("internal"), is_express(headers)) == (500, True, True)
    monkeypatch.undo()
    monkeypatch.setattr("engram_sidecar.loading.Loader.begin", broken)
    status, headers, _ = await line.get(stage.ids[2])
    assert (status, is_express(headers)) == (500, True)
    monkeypatch.undo()
    await asyncio.sleep(2 * TUNED["deadlineSeconds"])  # no second answer when its time is over
    assert (await line.get(stage.ids[1]))[2]["content"] == "heron 1"


async def test_a_read_that_was_answered_late_is_no_miss_and_one_by_name_is_noted_by_its_name(stage: Stage) -> None:
    line, other = await stage.lines(2)
    await line.ask("PUT", "/v1/items?user=ada&namespace=a&key=k", {"content": "heron"})
    item = b"GET /v1/items?user=ada&namespace=a&key=k HTTP/1.1\r\nHost: localhost\r\n\r\n"
    line.writer.write(item)
    assert (await line.answer())[0] == 200
    misses = (await other.ask("GET", "/v1/cache"))[2]["misses"]
    stage.proxy.turn(Fault.HELD)
    line.writer.write(item)
    status, headers, _ = await line.answer()
    assert (status, is_express(headers)) == (504, True)
    stage.proxy.turn(Fault.NONE)
    await asyncio.sleep(0.3)
    assert (await other.ask("GET", "/v1/cache"))[2]["misses"] == misses
    late = await noted(other, 504)
    assert [(each["user"], each["namespace"], each["key"]) for each in late] == [("ada", ["a"], "k")]
