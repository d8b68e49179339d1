"""Questions of the same while become one: what concurrent requests ask of a node goes in one statement.

A driver and a server do the same work for a statement whether it asks for one memory or for fifty, and a commit waits
for the same disk. So while a question is out to a node, what else is asked of it waits, and goes together when it has
come back, or when it takes longer than LATE_S; a request that is alone goes at once. (GraphQL's DataLoader, LangGraph's
store gather so.)

Promises
1. Each item gets its own answer or its own error; one that nobody waits for any more is not asked.
2. At most `most` items go together, in the order in which they came.
3. Nothing is kept of a node that is not asked: there is no list of nodes to clean.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

GATHERED: Final = 32  # memories in a statement at most: more would not be cheaper, and a lost answer costs them all
AT_ONCE: Final = 2  # questions that are out to a node at most
LATE_S: Final = 0.02  # a node that answers has done so, mostly; what waits shall not hang on one question

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Answer = TypeVar("Answer")

Ask = Callable[[Key, Sequence[Item]], Awaitable[Sequence[Answer | Exception]]]


@dataclass(slots=True)
class _Line(Generic[Item, Answer]):
    """What waits to be asked of one node, and how many questions are out."""

    waiting: deque[tuple[Item, "asyncio.Future[Answer]"]] = field(default_factory=deque)
    out: int = 0
    is_called: bool = False
    late: asyncio.TimerHandle | None = None  # when another question goes, though one is out


class Gatherer(Generic[Key, Item, Answer]):
    """Gathers items by their key. `ask` answers several of one key, in order; what it raises is the answer to each."""

    def __init__(self, ask: Ask[Key, Item, Answer], most: int) -> None:
        self._ask = ask
        self._most = most
        self._lines: dict[Key, _Line[Item, Answer]] = {}
        self._questions: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def waiting(self, key: Key) -> int:
        """How many items wait to be asked."""
        return len(self._lines[key].waiting) if key in self._lines else 0

    def lengths(self) -> Iterator[tuple[Key, int]]:
        """How many items wait of each key that is asked."""
        return ((key, len(line.waiting)) for key, line in self._lines.items())

    async def answer(self, key: Key, item: Item) -> Answer:
        """The answer to one item. Raises what its answer is, if it is an exception."""
        return await self.ask_for(key, item)

    def ask_for(self, key: Key, item: Item) -> "asyncio.Future[Answer]":
        """Where the answer to one item will be; who cancels it does not wait any more."""
        loop = asyncio.get_running_loop()
        line = self._lines.setdefault(key, _Line())
        future: asyncio.Future[Answer] = loop.create_future()
        line.waiting.append((item, future))
        if not line.out and not line.is_called:
            line.is_called = True
            loop.call_soon(self._send, key, line)  # what else is asked in this turn of the loop comes along
        elif line.late is None and line.out < AT_ONCE:
            line.late = loop.call_later(LATE_S, self._send, key, line)
        return future

    async def close(self) -> None:
        """Ends the questions that are out; what waits has no answer."""
        self._is_closed = True
        for line in self._lines.values():
            for _, future in line.waiting:
                future.cancel()
        for question in self._questions:
            question.cancel()
        await asyncio.gather(*self._questions, return_exceptions=True)

    def _send(self, key: Key, line: _Line[Item, Answer]) -> None:
        """Asks for what waits, if a question may go out."""
        line.is_called = False
        if line.late is not None:
            line.late.cancel()
            line.late = None
        group: list[tuple[Item, asyncio.Future[Answer]]] = []
        while line.waiting and len(group) < self._most:
            item, future = line.waiting.popleft()
            if not future.done():
                group.append((item, future))
        if group:
            line.out += 1
            question = asyncio.create_task(self._question(key, line, group))
            self._questions.add(question)
            question.add_done_callback(self._questions.discard)
        if line.waiting and line.out < AT_ONCE:  # there were more than go in one
            self._send(key, line)
        elif not line.out and self._lines.get(key) is line:
            del self._lines[key]

    async def _question(
        self, key: Key, line: _Line[Item, Answer], group: Sequence[tuple[Item, "asyncio.Future[Answer]"]]
    ) -> None:
        try:
            await self._answer(key, group)
        except asyncio.CancelledError:
            for _, future in group:
                future.cancel()
            raise
        finally:
            line.out -= 1
            if not line.is_called and not self._is_closed:
                line.is_called = True
                asyncio.get_running_loop().call_soon(self._send, key, line)  # with what has come by then

    async def _answer(self, key: Key, group: Sequence[tuple[Item, "asyncio.Future[Answer]"]]) -> None:
        pairs: list[tuple[tuple[Item, asyncio.Future[Answer]], Answer | Exception]]
        try:
            answers = await self._ask(key, [item for item, _ in group])
            pairs = list(zip(group, answers, strict=True))
        except Exception as failure:  # noqa: BLE001  it is each one's answer
            pairs = [(each, failure) for each in group]
        for (_, future), answer in pairs:
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
