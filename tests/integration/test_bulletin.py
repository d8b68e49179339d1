"""The bulletin over a real Redis: what is told is heard, and whatever goes wrong ends in doubt and heals."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest

from engram_contract.credentials import CacheLogin
from engram_contract.names import cache_part
from engram_contract.session import Position
from engram_contract.slots import MemoryId
from engram_operator.clients.x509 import make_ca
from engram_sidecar.bulletin import Bulletin
from engram_sidecar.errors import CacheUnavailable
from engram_sidecar.notice import Notice, write_notice
from engram_sidecar.outbox import MAX_IDS
from engram_sidecar.redisdoor import LIMITS, Door
from engram_sidecar.tally import FIRST_COUNT, GENERATION, generation_of
from tests.redis_server import Program, RedisServer, eventually, redis_server, running

ROLE = "t_bulletin"
PART = cache_part(ROLE)
TOLD = 2_000


@dataclass
class Listener:
    """A sidecar's bulletin, and what it was told."""

    door: Door = field(default_factory=Door)
    heard: list[tuple[str, tuple[MemoryId, ...] | None, Position | None]] = field(default_factory=list)
    heard_s: list[float] = field(default_factory=list)
    doubts: int = 0
    bulletin: Bulletin = field(init=False)

    def __post_init__(self) -> None:
        self.bulletin = Bulletin(self.door, self._hear, self._doubt)

    def _hear(self, shard: str, ids: object, position: Position | None) -> None:
        self.heard.append((shard, ids, position))  # type: ignore[arg-type]
        self.heard_s.append(time.perf_counter())

    def _doubt(self) -> None:
        self.doubts += 1

    @property
    def ids(self) -> set[MemoryId]:
        """All that it was told of."""
        return {each for _, ids, _ in self.heard for each in ids or ()}

    @property
    def is_sound(self) -> bool:
        return self.bulletin.sound_s is not None

    async def settle(self) -> None:
        """It is sound, and a beat came back since."""
        await eventually(lambda: self.is_sound)
        sound_s = self.bulletin.sound_s
        await eventually(lambda: self.bulletin.sound_s not in {None, sound_s})


@asynccontextmanager
async def listening(*logins: CacheLogin | None) -> AsyncIterator[tuple[Listener, ...]]:
    """A sidecar for each login."""
    listeners = tuple(Listener() for _ in logins)
    for each, login in zip(listeners, logins, strict=True):
        each.bulletin.adopt(login)
    async with running(*listeners):
        yield listeners


@asynccontextmanager
async def pair(redis: RedisServer) -> AsyncIterator[tuple[Listener, Listener]]:
    """Two sidecars of one tenant, both sound."""
    await redis.admit(ROLE)
    async with listening(redis.login(ROLE), redis.login(ROLE)) as (teller, other):
        # Both set the counter of a new Redis, and then agree on it.
        await eventually(lambda: teller.is_sound and teller.bulletin.writes == other.bulletin.writes)
        yield teller, other


def memory_id(number: int) -> MemoryId:
    return MemoryId(number % 16_384, UUID(int=number))


@pytest.mark.usefixtures("patient_calls")
async def test_what_is_told_is_heard_by_the_others_in_order(redis: RedisServer) -> None:
    async with pair(redis) as (teller, other):
        doubts, told_s = other.doubts, []
        for number in range(TOLD):
            told_s.append(time.perf_counter())
            await teller.bulletin.tell("s0", [memory_id(number)], Position(1, number))
        await eventually(lambda: len(other.heard) == TOLD)
        took_s = sorted(heard - told for heard, told in zip(other.heard_s, told_s, strict=True))
        print(f"told to heard: p50 {took_s[TOLD // 2] * 1e3:.2f} ms, p99 {took_s[TOLD * 99 // 100] * 1e3:.2f} ms")  # noqa: T201
        assert other.heard == [("s0", (memory_id(n),), Position(1, n)) for n in range(TOLD)]
        assert teller.heard == other.heard
        await other.settle()
        assert other.doubts == doubts
        assert teller.bulletin.writes == other.bulletin.writes


@pytest.mark.usefixtures("patient_calls")
async def test_many_at_once_share_their_round_trips(redis: RedisServer) -> None:
    async with pair(redis) as (teller, other):
        await redis.run("CONFIG", "RESETSTAT")
        await asyncio.gather(*(teller.bulletin.tell("s0", [memory_id(n)], None) for n in range(500)))
        await eventually(lambda: len(other.heard) == 500)
        calls = (await redis.run("INFO", "commandstats"))["cmdstat_exec"]["calls"]
        assert calls < 100
        assert other.ids == {memory_id(n) for n in range(500)}


@pytest.mark.usefixtures("patient_calls")
async def test_a_large_write_is_told_whole(redis: RedisServer) -> None:
    async with pair(redis) as (teller, other):
        ids = [memory_id(n) for n in range(1_000)]
        await teller.bulletin.tell("s1", ids, None)
        await eventually(lambda: other.ids == set(ids))
        async with redis.client(ROLE) as client:
            generation = generation_of(int(await client.get(f"{PART}writes") or 0))
            keys = [f"{PART}m:{generation:x}:{each}" for each in ids]
            assert await client.mget(keys) == [b""] * len(ids)
            assert 0 < await client.ttl(keys[0]) <= 15


@pytest.mark.usefixtures("patient_calls")
async def test_who_says_that_nothing_counts_is_heard_and_what_is_in_redis_is_out_of_reach(redis: RedisServer) -> None:
    async with pair(redis) as (teller, other):
        doubts, before = other.doubts, generation_of(teller.bulletin.writes or 0)
        told = await asyncio.gather(
            teller.bulletin.tell("s0", [memory_id(1)], None),
            teller.bulletin.forget(),
            teller.bulletin.forget(),
            teller.bulletin.tell("s0", [memory_id(2)], None),
        )
        assert all(told)
        await eventually(lambda: other.doubts > doubts and other.ids == {memory_id(1), memory_id(2)})
        await other.settle()
        after = generation_of(other.bulletin.writes or 0)
        assert after > before
        async with redis.client(ROLE) as client:
            keys = [f"{cache_part(ROLE)}m:{after:x}:{memory_id(number)}" for number in (1, 2)]
            assert await client.mget(keys) == [b"", b""], "the tombstones hold in the new generation"


async def test_without_a_login_or_an_answer_nothing_is_said_to_be_told(redis: RedisServer) -> None:
    async with listening(None) as (alone,):
        assert not await alone.bulletin.forget()
        assert not await alone.bulletin.tell("s0", [memory_id(1)], None)
    async with pair(redis) as (teller, other):
        doubts, before = other.doubts, generation_of(teller.bulletin.writes or 0)
        redis.pause()
        assert await asyncio.gather(*(teller.bulletin.forget() for _ in range(3))) == [False] * 3
        assert teller.bulletin.is_owing
        assert not await teller.bulletin.forget()
        redis.resume()
        await eventually(lambda: other.doubts > doubts and not teller.bulletin.is_owing)
        await other.settle()
        assert generation_of(other.bulletin.writes or 0) > before


@pytest.mark.usefixtures("patient_calls")
async def test_the_counter_is_what_every_sidecar_counts(redis: RedisServer) -> None:
    async with pair(redis) as (teller, other):
        before = teller.bulletin.writes
        assert before is not None
        assert before >= FIRST_COUNT
        await asyncio.gather(*(each.bulletin.tell("s0", [memory_id(1)], None) for each in (teller, other) * 10))
        await eventually(lambda: len(teller.heard) == len(other.heard) == 20)
        assert teller.bulletin.writes == other.bulletin.writes == before + 20


def is_ahead(listener: Listener, before: int) -> bool:
    """Whether what was kept while the counter was `before` is out of reach."""
    return generation_of(listener.bulletin.writes or 0) > generation_of(before)


Fault = Callable[[RedisServer], Awaitable[object]]


async def cut_listeners(redis: RedisServer) -> None:
    await redis.run("CLIENT", "KILL", "TYPE", "pubsub")


async def lose_all(redis: RedisServer) -> None:
    await redis.run("FLUSHALL")


async def lose_counter(redis: RedisServer) -> None:
    await redis.run("DEL", f"{PART}writes")


async def lose_a_notice(redis: RedisServer) -> None:
    async with redis.client(ROLE) as client:
        await client.incr(f"{PART}writes")


async def tell_without_counting(redis: RedisServer) -> None:
    async with redis.client(ROLE) as client:
        await client.publish(f"{PART}writes", write_notice(Notice(b"somebody", 1, "s0", (memory_id(9),), None)))


async def tell_garbage(redis: RedisServer) -> None:
    async with redis.client(ROLE) as client:
        await client.publish(f"{PART}writes", b"\xffgarbage")


async def garble_counter(redis: RedisServer) -> None:
    async with redis.client(ROLE) as client:
        await client.set(f"{PART}writes", "garbage")


FAULTS = [cut_listeners, lose_all, lose_counter, lose_a_notice, tell_without_counting, tell_garbage, garble_counter]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_a_fault_ends_in_doubt_within_one_beat_and_heals(redis: RedisServer, fault: Fault) -> None:
    async with pair(redis) as (teller, other):
        doubts = other.doubts
        await fault(redis)
        fault_s = asyncio.get_running_loop().time()
        sound: list[float] = []  # when beats were sent that came back before the doubt

        def is_in_doubt() -> bool:
            sound.append(other.bulletin.sound_s or 0.0)
            return other.doubts > doubts

        await eventually(is_in_doubt)
        assert max(sound[:-1], default=0.0) <= fault_s
        await eventually(lambda: teller.is_sound and teller.bulletin.writes == other.bulletin.writes)
        settled = other.doubts
        await teller.bulletin.tell("s0", [memory_id(1)], None)
        await eventually(lambda: memory_id(1) in other.ids)
        await other.settle()
        assert other.doubts == settled


@pytest.mark.parametrize("fault", [lose_all, lose_counter, garble_counter], ids=lambda fault: fault.__name__)
async def test_a_lost_counter_never_comes_back_to_where_it_was(redis: RedisServer, fault: Fault) -> None:
    async with pair(redis) as (teller, other):
        for _ in range(3):
            before = teller.bulletin.writes or 0
            await fault(redis)
            await teller.bulletin.tell("s0", [memory_id(1)], None)
            await eventually(partial(is_ahead, teller, before))
            await eventually(partial(is_ahead, other, before))


async def test_a_server_that_takes_no_writes_is_not_sound_and_heals(redis: RedisServer) -> None:
    """A replica hands on what is published, but nobody can tell it what was written."""
    async with pair(redis) as (teller, other):
        doubts = other.doubts
        await redis.run("CONFIG", "SET", "min-replicas-to-write", 1)
        await eventually(lambda: not other.is_sound)
        await teller.bulletin.tell("s0", [memory_id(1)], None)
        assert teller.bulletin.is_owing
        await redis.run("CONFIG", "SET", "min-replicas-to-write", 0)
        await eventually(lambda: other.is_sound and not teller.bulletin.is_owing)
        assert memory_id(1) in other.ids or other.doubts > doubts, "whoever was not listening keeps nothing of before"


async def test_a_server_that_lost_its_last_seconds_is_told_from_the_one_before(redis: RedisServer) -> None:
    """What a failover to a replica that lags looks like: the counter stands where it stood before."""
    async with pair(redis) as (teller, other):
        async with redis.client(ROLE) as client:
            past = int(await client.get(f"{PART}writes") or 0)
            for number in range(5):
                await teller.bulletin.tell("s0", [memory_id(number)], None)
            await client.set(f"{PART}writes", past)
        await eventually(lambda: (other.bulletin.writes or 0) >= past + GENERATION)
        await teller.settle()
        assert teller.bulletin.writes == other.bulletin.writes


async def test_what_is_written_while_redis_is_gone_is_told_when_it_is_back(redis: RedisServer) -> None:
    async with pair(redis) as (teller, other):
        doubts = other.doubts
        redis.kill()
        await eventually(lambda: other.doubts > doubts and not other.is_sound)
        for number in range(20):
            await teller.bulletin.tell("s0", [memory_id(number)], None)
        assert teller.bulletin.is_owing
        assert other.ids == set()
        redis.start()
        await redis.admit(ROLE)
        # The other may subscribe after it was told: it is in doubt until then, so it misses nothing that it needs.
        await other.settle()
        await eventually(lambda: not teller.bulletin.is_owing)
        await teller.settle()
        await teller.bulletin.tell("s0", [memory_id(99)], None)
        await eventually(lambda: memory_id(99) in other.ids)
        async with redis.client(ROLE) as client:
            generation = teller.bulletin._tally.generation
            keys = [f"{PART}m:{each:x}:{memory_id(number)}" for each in (0, generation) for number in range(20)]
            assert (await client.mget(keys)).count(b"") >= 20


@pytest.mark.usefixtures("patient_calls")
async def test_an_outage_of_the_teller_alone_is_made_up_in_order(redis: RedisServer) -> None:
    async with pair(redis) as (teller, other):
        await redis.run("ACL", "SETUSER", ROLE, "-publish")
        for number in range(20):
            await teller.bulletin.tell("s0", [memory_id(number)], None)
        assert teller.bulletin.is_owing
        assert other.heard == []
        await redis.admit(ROLE)
        await eventually(lambda: not teller.bulletin.is_owing)
        await eventually(lambda: len(other.heard) == 20)
        assert [ids for _, ids, _ in other.heard] == [(memory_id(number),) for number in range(20)]


async def test_too_much_to_keep_makes_all_that_is_cached_unreachable(redis: RedisServer) -> None:
    async with pair(redis) as (teller, other):
        before, doubts = other.bulletin.writes or 0, other.doubts
        await redis.run("ACL", "SETUSER", ROLE, "-publish")
        await teller.bulletin.tell("s0", [memory_id(number) for number in range(MAX_IDS + 1)], Position(3, 4))
        await redis.admit(ROLE)
        await eventually(lambda: not teller.bulletin.is_owing)
        await eventually(lambda: other.doubts > doubts)
        await eventually(lambda: ("s0", None, Position(3, 4)) in other.heard)
        await other.settle()
        assert generation_of(other.bulletin.writes or 0) > generation_of(before)


async def test_a_paused_redis_is_noticed_and_holds_nobody_up(redis: RedisServer) -> None:
    async with pair(redis) as (teller, other):
        doubts = other.doubts
        redis.pause()
        for number in range(10):
            await teller.bulletin.tell("s0", [memory_id(number)], None)
        assert teller.bulletin.is_owing
        await eventually(lambda: other.doubts > doubts and not other.is_sound)
        redis.resume()
        await other.settle()
        await eventually(lambda: not teller.bulletin.is_owing)


@pytest.mark.usefixtures("patient_calls")
async def test_passwords_rotate_while_it_listens(redis: RedisServer) -> None:
    await redis.admit(ROLE, "old")
    async with listening(redis.login(ROLE, "wrong")) as (one,):
        with pytest.raises(CacheUnavailable, match="password was refused"):
            await one.door.mget([f"{PART}a"])
        one.bulletin.adopt(redis.login(ROLE, "new", "old"))
        await one.settle()
        doubts = one.doubts
        await redis.admit(ROLE, "new")
        one.bulletin.adopt(redis.login(ROLE, "new"))
        await one.settle()
        assert one.doubts == doubts  # open connections go on
        await redis.run("CLIENT", "KILL", "USER", ROLE)
        await one.settle()


async def test_a_login_may_come_later_and_go(redis: RedisServer) -> None:
    await redis.admit(ROLE)
    async with listening(None, redis.login(ROLE)) as (late, other):
        await other.settle()
        await late.bulletin.tell("s0", [memory_id(1)], None)
        assert not late.bulletin.is_owing
        late.bulletin.adopt(redis.login(ROLE))
        await late.settle()
        late.bulletin.adopt(None)
        await eventually(lambda: not late.is_sound)
        await late.bulletin.tell("s0", [memory_id(2)], None)
        doubts = other.doubts
        late.bulletin.adopt(redis.login(ROLE))  # what it wrote meanwhile it has told nobody
        await eventually(lambda: other.doubts > doubts)
        await late.settle()
        assert other.ids == set()


async def connections(redis: RedisServer) -> int:
    """How many there are, the one that asks among them."""
    clients: bytes = await redis.run("CLIENT", "LIST")
    return clients.count(b"\n")


async def test_without_a_login_nobody_is_connected(redis: RedisServer) -> None:
    await redis.admit(ROLE)
    async with listening(redis.login(ROLE)) as (one,):
        await one.settle()
        assert await connections(redis) == 3  # the operator's own, one that listens, one that asks
        one.bulletin.adopt(None)
        await one.door.close()
        assert await connections(redis) == 1


@pytest.mark.usefixtures("patient_calls")
async def test_another_tenant_hears_nothing_and_tells_nothing(redis: RedisServer) -> None:
    await redis.admit("t_other")
    async with pair(redis) as _, redis.client("t_other") as stranger:
        with pytest.raises(Exception, match="permission"):
            await stranger.publish(f"{PART}writes", b"x")
        door = Door()
        door.adopt(redis.login("t_other"))
        with pytest.raises(CacheUnavailable, match="may not do this"):
            async with door.subscribed([f"{PART}writes"], 1.0):
                pass
        with pytest.raises(CacheUnavailable, match="may not do this"):
            await door.mget([f"{PART}writes"])
        await door.close()


@pytest.mark.usefixtures("patient_calls")
async def test_a_call_that_was_left_spoils_no_answer(redis: RedisServer) -> None:
    await redis.admit(ROLE)
    door = Door()
    door.adopt(redis.login(ROLE))
    for number in range(200):
        await door.run([("SET", f"{PART}{number}", number)])
    for round_ in range(50):
        left = [asyncio.ensure_future(door.mget([f"{PART}{number}"])) for number in range(4)]
        await asyncio.sleep(0 if round_ % 2 else 0.0002)
        for each in left[::2]:
            each.cancel()
        for number, each in enumerate(left):
            with suppress(asyncio.CancelledError):
                assert await each == [str(number).encode()]
        answers = await asyncio.gather(*(door.mget([f"{PART}{number}"]) for number in range(10)))
        assert answers == [[str(number).encode()] for number in range(10)]
    await door.close()


@pytest.mark.usefixtures("patient_calls")
async def test_the_breaker_leaves_a_broken_redis_alone_and_finds_it_again(redis: RedisServer) -> None:
    await redis.admit(ROLE)
    door = Door()
    door.adopt(redis.login(ROLE))
    assert await door.mget([f"{PART}a"]) == [None]
    redis.kill()
    said = []
    for _ in range(LIMITS.failures + 2):
        with pytest.raises(CacheUnavailable) as failed:
            await door.mget([f"{PART}a"])
        said.append(str(failed.value))
    assert set(said[: LIMITS.failures]) <= {"no connection", "no answer in time"}
    assert said[LIMITS.failures :] == ["it failed again and again and is left alone"] * 2
    redis.start()
    await redis.admit(ROLE)
    async with asyncio.timeout(30):
        while True:
            with suppress(CacheUnavailable):
                assert await door.mget([f"{PART}a"]) == [None]
                break
            await asyncio.sleep(0.05)
    await door.close()


@pytest.fixture
def tls_redis(redis_program: Program, tmp_path: Path, authorities: tuple[str, bytes, bytes]) -> Iterator[RedisServer]:
    _, certificate, key = authorities
    (tmp_path / "tls.crt").write_bytes(certificate)
    (tmp_path / "tls.key").write_bytes(key)
    files = {"tls-cert-file": str(tmp_path / "tls.crt"), "tls-key-file": str(tmp_path / "tls.key")}
    with redis_server(redis_program, tmp_path / "redis", {**files, "tls-auth-clients": "no"}) as server:
        yield server


@pytest.mark.usefixtures("patient_calls")
async def test_a_server_has_to_prove_its_name(tls_redis: RedisServer, authorities: tuple[str, bytes, bytes]) -> None:
    ca, _, _ = authorities
    await tls_redis.admit(ROLE)
    async with listening(tls_redis.login(ROLE, ca=ca, host="localhost")) as (one,):
        await one.settle()
    stranger = make_ca(time.time()).certificate.decode()
    refused = (
        tls_redis.login(ROLE, ca=ca),  # 127.0.0.1 is not in it
        tls_redis.login(ROLE, ca=stranger, host="localhost"),
        tls_redis.login(ROLE, host="localhost"),  # by the system's CAs
    )
    for login in refused:
        door = Door()
        door.adopt(login)
        with pytest.raises(CacheUnavailable, match="prove its name"):
            await door.mget([f"{PART}a"])
        await door.close()


async def test_with_a_ca_nothing_is_said_in_the_clear(
    redis: RedisServer, authorities: tuple[str, bytes, bytes]
) -> None:
    await redis.admit(ROLE)
    door = Door()
    door.adopt(redis.login(ROLE, ca=authorities[0]))
    with pytest.raises(CacheUnavailable):
        await door.mget([f"{PART}a"])
    await door.close()
