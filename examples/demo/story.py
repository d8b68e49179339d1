"""The demo's steps against a running sidecar: store, read back, search, lose a shard, get it back.

Promises: every step compares what came back with the text that was stored, and raises Mismatch at the first difference.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from engram import AsyncEngram, EngramError, Memory, NotReachable, Operation, Unavailable
from examples.demo.corpus import Speech
from examples.demo.figures import Figures
from examples.demo.local import LocalMode

Thing = TypeVar("Thing")

BATCH = 500  # operations; half of what a sidecar takes at once
IN_FLIGHT = 16  # requests at a time, about what one busy agent pod has
START_TIMEOUT_S = 180.0  # the first start makes two databases
LOST = "s1"

# What is looked for, in which play it was said and by whom, and words that only the right answer has.
FAMOUS = (
    ("the slings and arrows of outrageous fortune", "hamlet", "HAMLET", "To be, or not to be"),
    ("the quality of mercy", "the-merchant-of-venice", "PORTIA", "The quality of mercy is not strain'd"),
    ("tomorrow and tomorrow creeps in this petty pace", "macbeth", "MACBETH", "Creeps in this petty pace"),
    ("the infant mewling and puking", "as-you-like-it", "JAQUES", "All the world's a stage"),
    ("wherefore art thou Romeo", "romeo-and-juliet", "JULIET", "wherefore art thou Romeo"),
    (
        "grim visaged war has smoothed his wrinkled front",
        "richard-iii",
        "GLOUCESTER",
        "Now is the winter of our discontent",
    ),
    ("brave new world", "the-tempest", "MIRANDA", "O brave new world"),
)


class Mismatch(Exception):
    """What came back is not what was stored; the message says where."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A speech and the memory that it became."""

    speech: Speech
    memory: Memory


async def each(things: Iterable[Thing], act: Callable[[Thing], Awaitable[None]]) -> None:
    """`act` on every thing, IN_FLIGHT at a time; the first error ends all."""
    waiting = iter(things)

    async def work() -> None:
        for thing in waiting:
            await act(thing)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(work())
    except* (EngramError, Mismatch) as errors:
        raise errors.exceptions[0] from None


def batches(things: Sequence[Thing]) -> Iterable[Sequence[Thing]]:
    """The things in order, BATCH at a time."""
    return (things[first : first + BATCH] for first in range(0, len(things), BATCH))


def expect(holds: bool, what: str) -> None:  # noqa: FBT001  a condition is the point
    """Raises Mismatch unless it holds."""
    if not holds:
        raise Mismatch(what)


async def wait_up(client: AsyncEngram, local: LocalMode, figures: Figures) -> None:
    """Waits until the sidecar serves; raises LocalModeFailed if `engram up` gives up first."""
    with figures.step("engram up: shards, schema, sidecar", "shards", 2) as tally:
        deadline_s = asyncio.get_running_loop().time() + START_TIMEOUT_S
        while True:
            local.check_running()
            try:
                tally.add(len((await client.wait_ready(1.0)).shards))
            except (NotReachable, Unavailable):
                expect(asyncio.get_running_loop().time() < deadline_s, "the sidecar did not become ready")
            else:
                return


async def store(client: AsyncEngram, speeches: Sequence[Speech], figures: Figures) -> list[Stored]:
    """Every speech as a memory, in batches."""
    stored: list[Stored] = []

    with figures.step("store, in batches", "memories", len(speeches)) as tally:

        async def send(batch: Sequence[Speech]) -> None:
            result = await client.batch(Operation.create(**speech.fields) for speech in batch)
            expect(len(result) == len(batch), "a batch came back with another length")
            for speech, outcome in zip(batch, result, strict=True):
                if outcome.error is not None or outcome.memory is None:
                    raise outcome.error or Mismatch(f"a create answered {outcome.status} without a memory")
                compare(speech, outcome.memory)
                stored.append(Stored(speech, outcome.memory))
            tally.add(len(batch))

        await each(batches(speeches), send)
    expect(len({each.memory.id for each in stored}) == len(speeches), "two memories have one id")
    return sorted(stored, key=lambda one: (one.speech.play, one.speech.number))  # batches end in any order


def compare(speech: Speech, memory: Memory) -> None:
    """Raises Mismatch if the memory is not the speech, member by member."""
    for name, wanted in speech.fields.items():
        found: Any = getattr(memory, name)
        found = list(found) if name == "namespace" else found
        expect(found == wanted, f"{memory.id} {name}: stored {wanted!r}, found {found!r}")


async def read_back(client: AsyncEngram, stored: Sequence[Stored], figures: Figures) -> None:
    """Every memory by its id, one request each, compared with the text and with what the write answered."""
    with figures.step("read each back by its id", "memories", len(stored)) as tally:

        async def read(one: Stored) -> None:
            memory = await client.get(one.memory.id)
            compare(one.speech, memory)
            expect(memory == one.memory, f"{memory.id} is not what the write answered")
            tally.add()

        await each(stored, read)


async def read_back_in_batches(client: AsyncEngram, stored: Sequence[Stored], figures: Figures) -> None:
    """Every memory again, many at a time: what a restart must not have changed."""
    with figures.step(f"after the start of {LOST}: read all again", "memories", len(stored)) as tally:

        async def read(batch: Sequence[Stored]) -> None:
            result = await client.batch(Operation.get(one.memory.id) for one in batch)
            for one, outcome in zip(batch, result, strict=True):
                expect(outcome.memory == one.memory, f"{one.memory.id} is not as before: {outcome.error}")
            tally.add(len(batch))

        await each(batches(stored), read)


async def list_users(client: AsyncEngram, stored: Sequence[Stored], figures: Figures) -> None:
    """The memories of each of the busiest users, whole and in order, and nobody else's."""
    spoken: dict[str, list[Stored]] = {}
    for one in stored:
        spoken.setdefault(one.speech.speaker, []).append(one)
    busiest = sorted(spoken, key=lambda user: -len(spoken[user]))[:50]
    with figures.step("list all of 50 users", "memories", sum(len(spoken[user]) for user in busiest)) as tally:
        for user in busiest:
            listed = [memory async for memory in client.list(user=user, limit=1000)]
            expect({m.id for m in listed} == {one.memory.id for one in spoken[user]}, f"the list of {user} differs")
            expect(
                listed == sorted(listed, key=lambda m: m.created, reverse=True), f"the list of {user} is not by time"
            )
            tally.add(len(listed))


async def search(client: AsyncEngram, stored: Sequence[Stored], figures: Figures) -> None:
    """Famous lines by user and without one, typed filters, one namespace, and the longest line of many speeches."""
    rows = []
    plays = {one.speech.play for one in stored}
    famous = [(query, user, words) for query, play, user, words in FAMOUS if play in plays]
    with figures.step("search famous lines", "searches", 2 * len(famous)) as tally:
        for query, user, words in famous:
            own = await client.search(query, user=user, limit=5)
            everywhere = await client.search(query, limit=5)
            for where, result in ((f"of {user}", own), ("of all", everywhere)):
                expect(result.complete, f"the search {where} for {query!r} was not complete")
                found = [n for n, hit in enumerate(result, 1) if words in hit.memory.content]
                expect(bool(found), f"the search {where} for {query!r} did not find {words!r} among the first 5")
                tally.add()
            best = everywhere.hits[0]
            rows.append((query, best.memory.user, str(best.memory.agent), f"{best.score:.2f}", best.memory.shard))
    figures.table(f"Best of all {len(plays)} plays", ("query", "user", "play", "score", "shard"), rows)
    await narrow(client, stored)
    await search_sample(client, stored, figures)


def spoken_of(word: str, stored: Sequence[Stored], lines: int = 1) -> bool:
    """Whether a speech of so many lines has this word."""
    long = (one.speech.content.lower() for one in stored if one.memory.value["lines"] >= lines)
    return any(word in content.split() for content in long)


async def narrow(client: AsyncEngram, stored: Sequence[Stored]) -> None:
    """Filters and namespaces let through what they say and nothing else."""
    play = stored[0].speech.play
    long = await client.search("love", filter={"value": {"lines": {"gte": 30}}}, limit=20)
    expect(bool(long.hits) or not spoken_of("love", stored, lines=30), "no speech of 30 lines speaks of love")
    expect(all(hit.memory.value["lines"] >= 30 for hit in long), "a filter let a short speech through")  # noqa: PLR2004
    one_play = await client.search("night", namespace=["plays", play], limit=20)
    own = [one for one in stored if one.speech.play == play]
    expect(bool(one_play.hits) or not spoken_of("night", own), f"no night in {play}")
    expect(all(hit.memory.agent == play for hit in one_play), "a namespace let another play through")


async def search_sample(client: AsyncEngram, stored: Sequence[Stored], figures: Figures) -> None:
    """The longest line of every hundredth speech of some length finds that speech among the first ten of all plays."""
    telling = [one for one in stored if one.speech.content.count("\n") >= 3][::100]  # noqa: PLR2004  four lines
    missed = []
    with figures.step("search a line, all users", "searches", len(telling)) as tally:

        async def ask(one: Stored) -> None:
            result = await client.search(max(one.speech.content.splitlines(), key=len), limit=10)
            if one.memory.id not in {hit.memory.id for hit in result}:
                missed.append(one)
            tally.add()

        await each(telling, ask)
    figures.say(
        f"  {len(telling) - len(missed)} of {len(telling)} speeches were among the first ten for one of their lines."
    )
    expect(len(missed) * 20 <= len(telling), f"{len(missed)} of {len(telling)} searches missed; one in twenty may")


async def show_places(client: AsyncEngram, stored: Sequence[Stored], figures: Figures, title: str) -> None:
    """Where slots and memories lie, counted by the shards and compared with what the writes answered."""
    places = await client.shards(count=True)
    wanted = Counter(one.memory.shard for one in stored)
    rows = [(s.shard, s.state, s.slots, len(s.ranges), s.memories or 0, s.error or "") for s in places]
    figures.table(f"{title} (epoch {places.epoch})", ("shard", "state", "slots", "ranges", "memories", "error"), rows)
    for shard in places:
        if shard.error is None:
            expect(
                shard.memories == wanted[shard.shard],
                f"{shard.shard} counts {shard.memories}, not {wanted[shard.shard]}",
            )


async def lose_a_shard(client: AsyncEngram, stored: Sequence[Stored], figures: Figures) -> None:
    """With one shard stopped: its memories fail and say so, all others are answered, and no search hides the hole."""
    sample = stored[:: max(1, len(stored) // 1000)]
    outcomes: Counter[tuple[str, str]] = Counter()
    with figures.step(f"{LOST} stopped: read a sample", "memories", len(sample)) as tally:

        async def read(one: Stored) -> None:
            try:
                # Strong: what the sidecar keeps would stand in for the shard for some seconds.
                memory = await client.get(one.memory.id, consistency="strong")
                expect(memory == one.memory, f"{memory.id} is not as before")
                outcome = "200, as stored"
            except Unavailable as error:
                outcome = f"{error.status}: {error.detail}"
            expect(outcome.startswith("503" if one.memory.shard == LOST else "200"), f"{one.memory.id}: {outcome}")
            outcomes[(one.memory.shard, outcome)] += 1
            tally.add()

        await each(sample, read)
    rows = [(shard, outcome, count) for (shard, outcome), count in sorted(outcomes.items())]
    await search_and_write(client, stored, rows)
    figures.table(f"With {LOST} stopped", ("shard", "answer", "requests"), rows)


async def search_and_write(client: AsyncEngram, stored: Sequence[Stored], rows: list[tuple[str, str, int]]) -> None:
    """Adds to `rows` how searches and writes are answered while a shard is away."""
    busiest = Counter((one.memory.shard, one.speech.speaker) for one in stored).most_common()
    homes = {shard: user for (shard, user), _ in reversed(busiest)}  # the last one to be set is the busiest
    everywhere = await client.search("love", limit=10)
    expect([f.shard for f in everywhere.failed_shards] == [LOST], f"a search of all did not name {LOST}")
    expect(not everywhere.complete and bool(everywhere.hits), "a search of all answered nothing")
    failed = everywhere.failed_shards[0]
    rows.append(("all", f"search: {len(everywhere.hits)} hits, incomplete; {failed.shard}: {failed.reason}", 1))
    for shard, user in sorted(homes.items()):
        try:
            found = await client.search("love", user=user)
            expect(found.complete == (shard != LOST), f"a search of {user} on {shard} says complete={found.complete}")
            rows.append((shard, f"search of {user}: complete={found.complete}, {len(found.hits)} hits", 1))
        except Unavailable as error:
            expect(shard == LOST, f"a search of {user} on {shard} failed: {error}")
            rows.append((shard, f"search of {user}: {error.status}: {error.detail}", 1))
        try:
            memory = await client.create(content="Written while a shard was away", user=user)
            expect(shard != LOST and await client.delete(memory.id), f"a write on {shard} was taken and is not there")
            rows.append((shard, f"write of {user}: 201", 1))
        except Unavailable as error:
            expect(shard == LOST, f"a write of {user} on {shard} failed: {error}")
            rows.append((shard, f"write of {user}: {error.status}: {error.detail}", 1))


async def wait_back(client: AsyncEngram, stored: Sequence[Stored], timeout_s: float = 60.0) -> None:
    """Waits until the lost shard answers again; raises Unavailable if it does not in time."""
    one = next(each.memory.id for each in stored if each.memory.shard == LOST)
    deadline_s = asyncio.get_running_loop().time() + timeout_s
    while True:
        try:
            await client.get(one, consistency="strong")
        except Unavailable:
            if asyncio.get_running_loop().time() > deadline_s:
                raise
            await asyncio.sleep(0.2)
        else:
            return
