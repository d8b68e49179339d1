"""The memory that reviews may take: their bodies while they come in, and what JSON makes of them while they are judged.

Promises
1. All together never take more than `limit_bytes`.
2. Who goes over it pays first: the largest body that is still coming in is cut off, so a small one is always read.

Must never: wait for room. A review that waits is a pod that waits, and the API server has Ignore or Fail for that.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

from engram_operator.errors import TooBusy

# Text may take four bytes a character; a part is an object, an array or a member, of which the shortest is "{},".
BYTES_PER_CHAR: Final = 4
BYTES_PER_PART: Final = 100
FULL: Final = "more reviews come in than there is memory for"


def parsed_bytes(body: bytes | bytearray) -> int:
    """At most how many bytes the values in this JSON take."""
    parts = body.count(b"{") + body.count(b"[") + body.count(b",")
    return len(body) * BYTES_PER_CHAR + parts * BYTES_PER_PART


class Intake:
    """What is held now. `held_bytes` is never above `limit_bytes`."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._coming: dict[Callable[[], None], bytearray] = {}  # how each is cut off, and what came
        self._judged_bytes = 0

    @property
    def held_bytes(self) -> int:
        """What all of them take."""
        return self._judged_bytes + sum(map(len, self._coming.values()))

    async def read(
        self, next_chunk: Callable[[], Awaitable[bytes]], cut: Callable[[], None], max_bytes: int
    ) -> bytearray | None:
        """The body; None if it is above `max_bytes`. `cut` makes `next_chunk` raise, when others need the room.

        Raises TooBusy if it has to make the room itself.
        """
        body = bytearray()
        try:
            while chunk := await next_chunk():
                if len(body) + len(chunk) > max_bytes:
                    return None
                body += chunk
                self._coming[cut] = body
                self._make_room(cut)
        except BaseException:
            body.clear()  # at once: the error's traceback would keep it until the garbage is collected
            raise
        finally:
            self._coming.pop(cut, None)
        return body

    @contextmanager
    def judging(self, size_bytes: int) -> Iterator[None]:
        """Holds so many bytes while the block runs. Raises TooBusy if there is no room."""
        if self._judged_bytes + size_bytes > self._limit_bytes:
            raise TooBusy(FULL)  # before anybody is cut off for it in vain
        self._judged_bytes += size_bytes
        try:
            self._make_room(None)
            yield
        finally:
            self._judged_bytes -= size_bytes

    def _make_room(self, own: Callable[[], None] | None) -> None:
        while self.held_bytes > self._limit_bytes:
            largest = max(self._coming, key=lambda cut: len(self._coming[cut]), default=None)
            if largest is None or largest == own:
                raise TooBusy(FULL)
            self._coming.pop(largest).clear()
            largest()
