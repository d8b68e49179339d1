"""L2 over a real Redis: one sidecar finds what another put there, nothing older than a write, nothing in the clear."""

import asyncio
import os
import random
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from engram_contract.names import cache_part
from engram_contract.session import Position
from engram_contract.slots import MemoryId
from engram_sidecar.bulletin import Bulletin
from engram_sidecar.records import Draft, Memory
from engram_sidecar.redisdoor import Door
from engram_sidecar.remote import FILL_S, MAX_VALUE_BYTES, Remote, Ticket
from engram_sidecar.sealing import Sealer
from engram_sidecar.tally import GENERATION, generation_of
from tests.harness import KEYRING
from tests.redis_server import RedisServer, eventually, running

pytestmark = pytest.mark.usefixtures("patient_calls")
ROLE = "t_remote"
PART = cache_part(ROLE)
POSITION = Position(1, 77)
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
PHRASE = "the heron stands by the mill pond"
WORDS = PHRASE.encode()


async def fill(remote: Remote, memories: Sequence[Memory], ticket: Ticket) -> None:
    for each in memories:
        await remote.fill(each, POSITION, ticket)


async def get(remote: Remote, ids: Sequence[MemoryId], ticket: Ticket) -> dict[MemoryId, Memory]:
    found = dict(zip(ids, await remote.get([(each, ticket) for each in ids]), strict=True))
    assert {shown for _, shown in filter(None, found.values())} <= {POSITION}
    return {each: memory for each, (memory, _) in ((each, pair) for each, pair in found.items() if pair is not None)}


@dataclass
class Caching:
    """A sidecar's part of the caches, with a clock of the test's own."""

    encrypts: bool = False
    now: datetime = NOW
    door: Door = field(default_factory=Door)
    bulletin: Bulletin = field(init=False)
    remote: Remote = field(init=False)

    def __post_init__(self) -> None:
        self.bulletin = Bulletin(self.door, lambda *_: None, lambda: None)
        self.remote = Remote(self.door, self.bulletin, lambda: 60.0, lambda: self.encrypts, self._clock)

    def _clock(self) -> float:
        return self.now.timestamp()

    async def ticket(self) -> Ticket:
        """One that is good; on a busy machine a notice may be late for a moment."""
        await eventually(lambda: self.remote.ticket() is not None)
        ticket = self.remote.ticket()
        assert ticket is not None
        return ticket

    async def found(self, memory: Memory) -> Memory | None:
        return (await get(self.remote, [memory.id], await self.ticket())).get(memory.id)


@asynccontextmanager
async def caching(redis: RedisServer, *, encrypts: bool = False) -> AsyncIterator[tuple[Caching, Caching]]:
    """Two sidecars of one tenant, both sound."""
    await redis.admit(ROLE)
    both = Caching(encrypts), Caching(encrypts)
    for each in both:
        each.bulletin.adopt(redis.login(ROLE))
    async with running(*both):
        await eventually(lambda: both[0].bulletin.writes == both[1].bulletin.writes is not None)
        yield both


def memory(number: int, content: str = PHRASE, expires: datetime | None = None) -> Memory:
    return Memory(
        MemoryId(number, UUID(int=number)), ("a", "b"), None, "episodic", "u1", None, None, content, '{"n": 1}', 0.5,
        NOW, NOW, expires, 1,
    )  # fmt: skip


async def everything(redis: RedisServer) -> dict[bytes, bytes]:
    """All that is kept there."""
    keys: list[bytes] = await redis.run("KEYS", "*")
    return {key: await redis.run("GET", key) for key in keys}


async def test_what_one_put_there_the_other_finds(redis: RedisServer) -> None:
    async with caching(redis) as (one, other):
        stored = [memory(1), memory(2, "long " * 2_000), replace(memory(3), importance=None, key="k")]
        await fill(one.remote, stored, await one.ticket())
        found = await get(other.remote, [*(each.id for each in stored), memory(4).id], await other.ticket())
        assert found == {each.id: each for each in stored}
        assert (other.remote.failures, other.remote.undecodable) == (0, 0)
        lengths = sorted(len(value) for value in (await everything(redis)).values())
        assert lengths[-1] < 1_000  # what is long is packed
        assert await get(other.remote, [], await other.ticket()) == {}


async def test_a_write_takes_it_away_and_keeps_older_reads_out(redis: RedisServer) -> None:
    async with caching(redis) as (one, other):
        old = memory(1)
        before = await other.ticket()
        await fill(one.remote, [old], await one.ticket())
        await one.bulletin.tell("s0", [old.id], None)
        assert await other.found(old) is None
        await fill(other.remote, [old], before)  # read before the write, put there behind it
        assert await other.found(old) is None
        assert await one.found(old) is None


@pytest.mark.parametrize("fault", ["CLIENT KILL TYPE pubsub", "FLUSHALL", f"DEL {PART}writes"])
async def test_what_was_read_before_a_doubt_is_not_put_there(redis: RedisServer, fault: str) -> None:
    async with caching(redis) as (one, _):
        before, doubts = await one.ticket(), one.bulletin.doubts
        await redis.run(*fault.split())
        await eventually(lambda: one.bulletin.doubts > doubts and one.bulletin.writes is not None)
        await fill(one.remote, [memory(1)], before)
        assert await one.found(memory(1)) is None
        assert await get(one.remote, [memory(1).id], before) == {}


async def test_what_took_too_long_to_read_is_not_put_there(redis: RedisServer) -> None:
    async with caching(redis) as (one, _):
        ticket = await one.ticket()
        await fill(one.remote, [memory(1)], replace(ticket, taken_s=ticket.taken_s - FILL_S))
        assert await one.found(memory(1)) is None


async def test_who_owes_a_notice_trusts_nothing_and_puts_nothing_there(redis: RedisServer) -> None:
    async with caching(redis) as (one, other):
        before = await one.ticket()
        await redis.run("ACL", "SETUSER", ROLE, "-publish")
        await one.bulletin.tell("s0", [memory(9).id], None)
        assert one.bulletin.is_owing
        assert one.remote.ticket() is None
        await fill(one.remote, [memory(1)], before)
        await redis.admit(ROLE)
        await eventually(lambda: one.remote.ticket() is not None and other.remote.ticket() is not None)
        assert await other.found(memory(1)) is None


async def test_it_is_gone_when_it_expires(redis: RedisServer) -> None:
    async with caching(redis) as (one, other):
        short, long = memory(1, expires=NOW + timedelta(seconds=30)), memory(2, expires=NOW + timedelta(days=1))
        await fill(one.remote, [short, long, memory(3, expires=NOW)], await one.ticket())
        keys = [key for key in await everything(redis) if b":m:" in key]
        ttls = sorted([await redis.run("PTTL", key) for key in keys])
        assert len(ttls) == 2
        assert 0 < ttls[0] <= 30_000 < ttls[1] <= 60_000
        other.now = NOW + timedelta(seconds=31)
        assert await other.found(short) is None
        assert await other.found(long) == long


async def test_what_cannot_be_read_is_a_miss_and_counted(redis: RedisServer) -> None:
    async with caching(redis) as (one, _):
        stored = memory(1)
        await fill(one.remote, [stored], await one.ticket())
        [key] = [key for key in await everything(redis) if b":m:" in key]
        await redis.run("SET", key, b"\x01garbage")
        assert await one.found(stored) is None
        await fill(one.remote, [memory(2)], await one.ticket())
        await redis.run("COPY", key.replace(str(stored.id).encode(), str(memory(2).id).encode()), key, "REPLACE")
        assert await one.found(stored) is None  # another memory's row
        await redis.run("DEL", key)
        await redis.run("LPUSH", key, "no text")
        assert await one.found(stored) is None
        assert (one.remote.undecodable, one.remote.failures) == (2, 0)


async def test_a_redis_that_is_gone_is_a_miss(redis: RedisServer) -> None:
    async with caching(redis) as (one, _):
        ticket = await one.ticket()
        redis.kill()
        for _ in range(20):
            assert await get(one.remote, [memory(1).id], ticket) == {}
            await fill(one.remote, [memory(1)], ticket)
            assert await one.remote.get_search("digest", ticket) is None
        await eventually(lambda: one.remote.ticket() is None)


async def test_results_of_a_search_end_with_the_next_write(redis: RedisServer) -> None:
    async with caching(redis) as (one, other):
        before = await one.ticket()
        await one.remote.fill_search("digest", b"results", 60.0, before)
        assert await other.remote.get_search("digest", await other.ticket()) == b"results"
        assert await other.remote.get_search("another", await other.ticket()) is None
        await one.bulletin.tell("s0", [memory(1).id], None)
        assert await one.remote.get_search("digest", await one.ticket()) is None
        await eventually(lambda: other.bulletin.writes == one.bulletin.writes)
        assert await other.remote.get_search("digest", await other.ticket()) is None
        await one.remote.fill_search("digest", b"x" * (MAX_VALUE_BYTES + 1), 60.0, await one.ticket())
        assert await one.remote.get_search("digest", await one.ticket()) is None


async def test_what_was_read_before_a_write_never_stands_behind_it(redis: RedisServer) -> None:
    """Two sidecars write 150 rows and read 200 at random: what is found is what was told of last, or newer."""
    rows, chance = range(1, 201), random.Random(5)
    stored, told = dict.fromkeys(rows, 1), dict.fromkeys(rows, 1)
    found_any = 0

    async def write(at: Caching, numbers: range) -> None:
        for number in chance.sample(numbers, len(numbers)):
            stored[number] += 1
            await asyncio.sleep(chance.uniform(0, 0.002))  # a commit whose answer is under way
            await at.bulletin.tell("s0", [memory(number).id], None)
            if not at.bulletin.is_owing:  # as on a very busy machine
                told[number] = stored[number]

    async def read(at: Caching) -> None:
        nonlocal found_any
        for _ in range(1_000):
            number = chance.choice(rows)
            ticket, floor = await at.ticket(), told[number]
            found = (await get(at.remote, [memory(number).id], ticket)).get(memory(number).id)
            if found is not None:
                assert found.version >= floor
                found_any += 1
                continue
            version = stored[number]
            await asyncio.sleep(chance.uniform(0, 0.002))  # as above
            await fill(at.remote, [replace(memory(number), version=version)], ticket)

    async with caching(redis) as (one, other):
        await fill(one.remote, [memory(number) for number in rows], await one.ticket())
        writers = write(one, rows[:150:2]), write(other, rows[1:150:2])  # the last fifty stay as they are
        await asyncio.gather(*writers, *(read(at) for at in (one, other) * 2))
        assert found_any > 100


def sealer() -> Sealer:
    return Sealer(ROLE, KEYRING, os.urandom, lambda *_: None, encrypts=True)


async def test_nothing_of_an_encrypted_tenant_is_in_the_clear(redis: RedisServer) -> None:
    async with caching(redis, encrypts=True) as (one, other):
        plain, keys = memory(1), sealer()
        envelope = await keys.seal(plain.id, Draft(content=plain.content, value=plain.value))
        stored = replace(plain, content="", value="null", sealed=envelope)
        await fill(one.remote, [stored, memory(2), replace(memory(3), sealed=envelope)], await one.ticket())
        found = await other.found(stored)
        assert found == stored
        assert await keys.open(found) == plain
        assert await other.found(memory(2)) is None  # it was never sealed
        assert all(WORDS not in value for value in (await everything(redis)).values())
        assert count_in_memory(redis, WORDS) == 0
        assert count_in_memory(redis, envelope or b"") > 0


async def test_the_look_into_redis_memory_sees_what_is_in_the_clear(redis: RedisServer) -> None:
    async with caching(redis) as (one, _):
        await fill(one.remote, [memory(1)], await one.ticket())
        assert count_in_memory(redis, WORDS) > 0


def count_in_memory(redis: RedisServer, wanted: bytes) -> int:
    """How often the process has these bytes in any memory that it may write to."""
    assert redis.process is not None
    found = 0
    maps = Path(f"/proc/{redis.process.pid}/maps").read_text()
    with Path(f"/proc/{redis.process.pid}/mem").open("rb", buffering=0) as process:
        for first, last in re.findall(r"^(\w+)-(\w+) rw", maps, re.MULTILINE):
            process.seek(int(first, 16))
            found += process.read(int(last, 16) - int(first, 16)).count(wanted)
    return found


async def test_another_generation_reaches_nothing_of_the_one_before(redis: RedisServer) -> None:
    async with caching(redis) as (one, other):
        await fill(one.remote, [memory(1)], await one.ticket())
        before = generation_of((await one.ticket()).writes)
        one.bulletin.adopt(None)
        one.bulletin.adopt(redis.login(ROLE))  # it may have written meanwhile what nobody was told of
        await eventually(lambda: generation_of(other.bulletin.writes or 0) > before)
        assert await other.found(memory(1)) is None


async def test_a_tombstone_stands_in_the_generation_that_holds(redis: RedisServer) -> None:
    """Somebody moved it, and the writer does not know yet: what others keep from now on is in the new one."""
    async with caching(redis) as (one, _):
        known = generation_of((await one.ticket()).writes)
        await redis.run("INCRBY", f"{PART}writes", GENERATION)
        await one.bulletin.tell("s0", [memory(1).id], None)
        tombstones = {key: value for key, value in (await everything(redis)).items() if b":m:" in key}
        places = {f"{PART}m:{each:x}:{memory(1).id}".encode() for each in (known, known + 1)}
        assert tombstones == dict.fromkeys(places, b"")
