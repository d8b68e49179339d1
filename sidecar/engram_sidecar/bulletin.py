"""The bulletin: by it sidecars of one tenant tell each other what was written, over the tenant's Redis.

    tell -> outbox -> [tombstones, INCR counter, PUBLISH]   once a second [GET counter, SET, PUBLISH to us] -> tally
    subscription -> notices -> on_written, tally                                a gap, a lost connection -> on_doubt

Promises
1. A write is told after its commit and before its answer. That never fails the write and takes at most TELL_S of it:
   what could not be told waits in the outbox, and while it does this sidecar `is_owing` and trusts no L2.
2. A notice that was missed is noticed at the next beat that comes back, by default within a second, and a lost
   connection or a silent Redis within OVERDUE_S and one beat. Then `on_doubt` drops what is cached.
3. `sound_s`: everything that was told before that moment was heard. None while nothing can be said.
4. Without a login there is no connection and no task of its own does anything.

What is told is also put as a tombstone in the place of the memory's record (remote.py): whoever is about to fill with
an older one does not. A sidecar that dies between commit and telling has told nobody: others show the memory of before
for as long as they may keep it.
Why no scripts, and what it costs: docs/decisions/0017.
"""

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Final

from engram_contract.credentials import CacheLogin
from engram_contract.session import Position
from engram_contract.slots import MemoryId
from engram_sidecar.chance import jittered
from engram_sidecar.clock import monotonic_s
from engram_sidecar.errors import CacheUnavailable
from engram_sidecar.notice import MAX_IDS, BadNotice, Notice, parse_notice, write_notice
from engram_sidecar.outbox import Batch, Outbox, Told
from engram_sidecar.redisdial import Command
from engram_sidecar.redisdoor import Door
from engram_sidecar.tally import BEAT_S, GENERATION, OVERDUE_S, Tally, Verdict, generation_of, is_new

log = logging.getLogger(__name__)

TELL_S: Final = 0.05
TOMBSTONE_S: Final = 15  # three times what a read may take that fills
AGAIN_S: Final = 1.0  # until the next try to subscribe, or to empty the outbox
SOON_S: Final = 0.1  # until the beat that tells whether the counter was moved
JITTER_RATIO: Final = 0.2
ATTEMPTS: Final = 3  # a generation moves once in months
OnWritten = Callable[[str, Sequence[MemoryId] | None, Position | None], None]


class Bulletin:
    """One sidecar's part in it. `on_written(shard, ids or None for all, position)`: so it was told, also by ourselves.

    `on_doubt()`: nothing that was cached before counts.
    """

    def __init__(self, door: Door, on_written: OnWritten, on_doubt: Callable[[], None]) -> None:
        self._door = door
        self._on_written = on_written
        self._on_doubt = on_doubt
        self._name = os.urandom(8)  # which no other sidecar has
        self._tally = Tally()
        self._outbox = Outbox()
        self._telling: Batch | None = None
        self._owes = False
        self._rests = False
        self._has_kept_quiet = False  # something was written while there was no login
        self._has_mail = asyncio.Event()
        self._beats_soon = asyncio.Event()
        self._has_login = asyncio.Event()
        self._had: tuple[str, str] | None = None
        self._waiters: deque[tuple[int, asyncio.Future[bool]]] = deque()
        self._forgetters: list[asyncio.Future[bool]] = []
        self._number = 0
        self._listening: asyncio.Task[None] | None = None
        self.doubts = 0
        self.notices = 0
        self.late = 0  # writes whose answer did not wait until they were told

    @property
    def sound_s(self) -> float | None:
        """The moment on the loop's clock before which everything that was told was heard; None in doubt."""
        return self._tally.sound_s(monotonic_s())

    @property
    def writes(self) -> int | None:
        """The counter of the tenant's writes as known here; None while the bulletin is not sound."""
        return self._tally.writes(monotonic_s())

    @property
    def is_owing(self) -> bool:
        """Whether somebody was answered, or told elsewhere, before what was written here was told."""
        return self._owes and (bool(self._outbox) or self._telling is not None)

    def adopt(self, login: CacheLogin | None) -> None:
        """The login is this now; None ends every connection."""
        self._door.adopt(login)
        if login is None:
            self._has_login.clear()
            return
        is_another = self._had is not None and self._had != (login.url, login.user)
        if is_another or (not self._has_login.is_set() and (self._had is not None or self._has_kept_quiet)):
            self._outbox.forget()  # meanwhile we told nobody, or told it elsewhere
            self._owes = True
            self._has_mail.set()
        self._had = login.url, login.user
        self._has_login.set()

    def tell(self, shard: str, ids: Sequence[MemoryId], position: Position | None) -> Coroutine[Any, Any, bool]:
        """To be awaited: whether the others know that these memories were written; else it waits in the outbox.

        It is in the outbox when this returns, whatever becomes of who awaits. Never raises.
        """
        if not self._has_login.is_set() or not ids:
            self._has_kept_quiet = self._has_kept_quiet or bool(ids)
            return _nothing()
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        number = 0
        for first in range(0, len(ids), MAX_IDS):
            number = self._outbox.add(Told(shard, tuple(ids[first : first + MAX_IDS]), position))
        self._waiters.append((number, waiter))
        self._has_mail.set()
        return self._told(waiter)

    def forget(self) -> Coroutine[Any, Any, bool]:
        """As `tell`, that nothing which is cached counts: others drop it, and all that is in L2 is out of reach."""
        if not self._has_login.is_set():
            self._has_kept_quiet = True
            return _nothing()
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._outbox.forget()
        self._forgetters.append(waiter)
        self._has_mail.set()
        return self._told(waiter)

    async def _told(self, waiter: "asyncio.Future[bool]") -> bool:
        if not self._rests:
            await asyncio.wait((waiter,), timeout=TELL_S)
        is_told = waiter.done() and waiter.result()
        if not is_told:
            self.late += 1
            self._owes = True
        return is_told

    async def run(self) -> None:
        """Listens, beats and tells, until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for loop in (self._listen_on, self._beat_on, self._tell_on):
                    group.create_task(loop())
        finally:
            self._lose("the bulletin ends")
            while self._outbox and await self._tell_batch():
                pass

    async def _listen_on(self) -> None:
        while True:
            await self._has_login.wait()
            self._listening = asyncio.create_task(self._listen())
            try:
                await asyncio.wait((self._listening,))
            finally:
                self._listening.cancel()
                await asyncio.wait((self._listening,))
            if not self._listening.cancelled():
                self._listening.result()
            await asyncio.sleep(jittered(AGAIN_S, JITTER_RATIO))

    async def _listen(self) -> None:
        """Hears one subscription to its end."""
        part = self._door.part
        news, beats = f"{part}writes", f"{part}beat:{self._name.hex()}"
        try:
            async with self._door.subscribed((news, beats), OVERDUE_S) as subscription:
                self._tally.begin(monotonic_s())
                self._beats_soon.set()
                while True:
                    channel, content = await subscription.next()
                    if channel == news:
                        self._hear(content)
                    elif channel == beats and content.isdigit():
                        await self._judge(self._tally.note_beat(int(content)))
        except CacheUnavailable as failure:
            self._lose(str(failure))

    def _hear(self, content: bytes) -> None:
        try:
            notice = parse_notice(content)
        except BadNotice as fault:
            self._tally.doubt()
            self._flush(f"a notice is {fault}")
            return
        self.notices += 1
        self._tally.hear(notice.teller, notice.number)
        if notice.shard:
            self._on_written(notice.shard, notice.ids, notice.position)
        else:
            self._tally.doubt()
            self._flush("somebody told that nothing which is cached counts")

    async def _beat_on(self) -> None:
        while True:
            await self._has_login.wait()
            if self._tally.is_overdue(monotonic_s()) and self._listening is not None:
                self._listening.cancel()
                self._lose("no beat came back")
            if self._tally.is_listening:
                await self._door.look()
                await self._beat()
            with suppress(TimeoutError):
                async with asyncio.timeout(jittered(BEAT_S, JITTER_RATIO)):
                    await self._beats_soon.wait()
            self._beats_soon.clear()

    async def _beat(self) -> None:
        self._number += 1
        number, part = self._number, self._door.part
        self._tally.send(number, monotonic_s())
        beat: list[Command] = [
            ("GET", f"{part}writes"),
            ("SET", f"{part}beat", "", "EX", TOMBSTONE_S),  # who takes no writes takes no beats: nobody can tell it
            ("PUBLISH", f"{part}beat:{self._name.hex()}", number),
        ]
        with suppress(CacheUnavailable):  # the next one may come through; if none does, that is noticed
            [count, *_] = await self._door.run(beat)
            await self._judge(self._tally.note_count(number, _whole(count)))

    async def _judge(self, verdict: Verdict) -> None:
        if verdict is Verdict.GAP:
            self._flush("counting begins anew")
        if verdict is Verdict.BEHIND:
            self._flush("the counter went back")
            await self._move_ahead()

    async def _move_ahead(self) -> None:
        """The counter is where it never was, so nothing that was kept before is reached any more."""
        key = f"{self._door.part}writes"
        with suppress(CacheUnavailable):  # the next beat sees it again
            [count] = await self._door.run([("GET", key)])
            count = _whole(count)
            ahead = self._tally.ahead(count, int(time.time() * 1e6))
            # A new one is set, as everybody does at the same time; another one keeps what is counted meanwhile.
            move: Command = ("SET", key, ahead) if is_new(count) else ("INCRBY", key, ahead - count)
            await self._door.run([move])
            asyncio.get_running_loop().call_later(SOON_S, self._beats_soon.set)

    def _lose(self, reason: str) -> None:
        if self._tally.is_listening:
            self._tally.end()
            self._flush(reason)

    def _flush(self, reason: str) -> None:
        self.doubts += 1
        log.info("what is cached does not count any more", extra={"reason": reason})
        self._on_doubt()

    async def _tell_on(self) -> None:
        self._rests = False
        self._has_mail.set()  # what was left when the loop last ended
        while True:
            await self._has_mail.wait()
            self._has_mail.clear()
            while self._outbox and await self._tell_batch():
                pass
            self._release(None)
            self._owes = self._owes and bool(self._outbox)
            if self._outbox:
                self._rests = True  # nobody waits meanwhile: it would be for nothing
                await asyncio.sleep(jittered(AGAIN_S, JITTER_RATIO))
                self._rests = False
                self._has_mail.set()

    async def _tell_batch(self) -> bool:
        """Whether the first of what waits was told."""
        self._telling = batch = self._outbox.take()
        forgetters, self._forgetters = self._forgetters, []  # whose wish is in the batch: it is told first of all
        is_told = False
        try:
            await self._publish(batch)
            is_told = True
        except CacheUnavailable as failure:
            if not self._owes:
                log.warning("what is written waits to be told", extra={"reason": str(failure)})
        finally:
            self._telling = None
            if not is_told:
                self._outbox.put_back(batch)
                self._owes = True
            for waiter in forgetters:
                waiter.set_result(is_told)
        if is_told:
            self._release(batch.through)
        return is_told

    def _release(self, through: int | None) -> None:
        """Whoever waits for these to be told goes on; None: everybody does, as they are not told now."""
        while self._waiters and (through is None or self._waiters[0][0] <= through):
            _, waiter = self._waiters.popleft()
            waiter.set_result(through is not None)

    async def _publish(self, batch: Batch) -> None:
        """All of it is told, and its tombstones are in the generation that holds. Raises CacheUnavailable."""
        part, generation, forgets = self._door.part, self._tally.generation, batch.forgets
        for _ in range(ATTEMPTS):
            known = self._tally.known
            replies = await self._door.run(self._commands(part, generation, batch, forgets=forgets))
            count = int(replies[-2])
            await self._judge(self._tally.note_told(count, known))
            if generation_of(count) == generation or not batch.items:
                return
            generation, forgets = generation_of(count), False
        raise CacheUnavailable("its counter moves on and on")

    def _commands(self, part: str, generation: int, batch: Batch, *, forgets: bool) -> list[Command]:
        news = f"{part}writes"
        commands: list[Command] = []
        if forgets:
            commands += ("INCRBY", news, GENERATION), ("PUBLISH", news, self._notice(Told("", None, None)))
        for told in batch.items:
            commands += (("SET", key_of(part, generation, each), "", "EX", TOMBSTONE_S) for each in told.ids or ())
            commands += ("INCR", news), ("PUBLISH", news, self._notice(told))
        return commands

    def _notice(self, told: Told) -> bytes:
        self._number += 1
        return write_notice(Notice(self._name, self._number, told.shard, told.ids, told.position))


def key_of(part: str, generation: int, memory_id: MemoryId) -> str:
    """Where a memory's record is kept, or its tombstone."""
    return f"{part}m:{generation:x}:{memory_id}"


def _whole(count: object) -> int:
    """The counter's value; 0 if there is none, or what is none."""
    return int(count) if isinstance(count, bytes) and count.isdigit() else 0


async def _nothing() -> bool:
    """There is nobody to tell."""
    return False
