"""Whether everything that was told on the bulletin was heard: counts, beats and gaps.

    a notice:  INCR counter, PUBLISH           a beat:  GET counter = n, PUBLISH to the listener itself

Both happen at once in Redis, so a beat stands in the stream of messages at exactly the place where the counter was n.
Between two beats that came back, as many notices must have been heard as the counter grew: else one was lost.

Promises, of a stream in which nothing overtakes (one connection to one server) and whatever may be lost or come twice
1. A notice that was told and not heard is noticed at the first beat behind it that comes back: Verdict.GAP.
2. `sound_s` is a moment before which everything that was told was heard, or is behind a gap that was told.
3. A counter that went back, as another Redis answers, or an empty one, or one that lost its last second in a failover,
   is Verdict.BEHIND: nothing can be said before it is ahead of all that was ever counted.
4. It keeps at most MAX_BEATS beats and the last number of MAX_TELLERS tellers.

The counter's upper bits are the generation of what is kept in Redis: whoever moves them makes all of it unreachable.
Pure: every moment is an argument, in monotonic seconds.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

BEAT_S: Final = 1.0
OVERDUE_S: Final = 2.5  # two beats and the time for them to come back: one call may be lost
SOUND_S: Final = 3.0
FIRST_COUNT: Final = (
    1 << 40
)  # below: the counter is new. It begins at the microseconds of Unix time, so it never repeats
GENERATION_BITS: Final = 24
GENERATION: Final = 1 << GENERATION_BITS  # in counts; by writes alone one lasts for 16 million of them
MAX_BEATS: Final = 8
MAX_TELLERS: Final = 10_000  # more than sidecars of a tenant


class Verdict(StrEnum):
    """What a beat says."""

    WAITING = "waiting"  # one half of it is not here yet
    WHOLE = "whole"  # everything since the beat before was heard
    GAP = "gap"  # something was not, or this is the first beat: what is cached does not count, from here on it does
    BEHIND = "behind"  # the counter is to be moved ahead


@dataclass(slots=True)
class _Beat:
    """`count` is the counter's value, `heard` how many notices came before; None until they are there.

    `known`: the counter was at least this when the beat was sent.
    """

    sent_s: float
    known: int
    count: int | None = None
    heard: int | None = None


def generation_of(count: int) -> int:
    """The generation of what is kept in Redis while the counter has this value."""
    return count >> GENERATION_BITS


def is_new(count: int) -> bool:
    """Whether nobody has set the counter yet."""
    return count < FIRST_COUNT


class Tally:
    """What one subscription has heard. `is_listening`: there is one."""

    def __init__(self) -> None:
        self._beats: dict[int, _Beat] = {}
        self._tellers: dict[bytes, int] = {}
        self._heard = 0
        self._base: tuple[int, int] | None = None  # counter and notices heard, at the last beat that came back
        self._highest = 0
        self._sound_s: float | None = None
        self._settled_s = 0.0
        self.is_listening = False

    def begin(self, now_s: float) -> None:
        """A new subscription listens."""
        self.end()
        self._settled_s, self.is_listening = now_s, True

    def end(self) -> None:
        """Nobody listens any more, or nothing that was heard counts."""
        self.doubt()
        self._beats.clear()
        self._tellers.clear()
        self._heard, self.is_listening = 0, False

    def doubt(self) -> None:
        """Something that came was none of ours: nothing is known until the next beat comes back."""
        self._highest = self.known
        self._base = self._sound_s = None

    def hear(self, teller: bytes, number: int) -> None:
        """A notice came; one that came before is not counted again."""
        last = self._tellers.pop(teller, -1)  # and to the end of the line, so that the longest silent one is dropped
        self._tellers[teller] = max(last, number)
        self._heard += number > last
        if len(self._tellers) > MAX_TELLERS:
            del self._tellers[next(iter(self._tellers))]

    @property
    def known(self) -> int:
        """The counter is at least this, unless it went back: all that was heard was counted before."""
        if self._base is None:
            return self._highest
        count, heard = self._base
        return max(count + self._heard - heard, self._highest)

    def note_told(self, count: int, known: int) -> Verdict:
        """Our own notice made the counter this; `known` when it was sent."""
        if is_new(count) or count <= known:
            self.doubt()
            return Verdict.BEHIND
        self._highest = max(self._highest, count)
        return Verdict.WAITING

    @property
    def generation(self) -> int:
        """The generation of what is kept in Redis, as far as it is known."""
        return generation_of(self.known)

    def ahead(self, count: int, unix_us: int) -> int:
        """Where a counter that is behind has to go: beyond all that was ever counted, into another generation."""
        return max(unix_us if is_new(count) else 0, max(count, self.known) + GENERATION)

    def send(self, beat: int, now_s: float) -> None:
        """A beat is sent now; numbers rise."""
        self._beats[beat] = _Beat(now_s, self.known)
        while len(self._beats) > MAX_BEATS:
            del self._beats[next(iter(self._beats))]

    def note_count(self, beat: int, count: int) -> Verdict:
        """The beat found the counter at this value."""
        if (sent := self._beats.get(beat)) is None:
            return Verdict.WAITING
        sent.count = count
        return self._settled(beat)

    def note_beat(self, beat: int) -> Verdict:
        """The beat came back in the stream."""
        if (sent := self._beats.get(beat)) is None or sent.heard is not None:
            return Verdict.WAITING
        sent.heard = self._heard
        return self._settled(beat)

    def _settled(self, number: int) -> Verdict:
        beat = self._beats[number]
        if beat.count is None or beat.heard is None:
            return Verdict.WAITING
        for each in [each for each in self._beats if each <= number]:
            del self._beats[each]
        self._settled_s = max(self._settled_s, beat.sent_s)
        if is_new(beat.count) or beat.count < beat.known:
            self.doubt()
            return Verdict.BEHIND
        before, self._base = self._base, (beat.count, beat.heard)
        self._sound_s, self._highest = beat.sent_s, max(beat.count, self._highest)
        is_whole = before is not None and beat.count - before[0] == beat.heard - before[1]
        return Verdict.WHOLE if is_whole else Verdict.GAP

    def is_overdue(self, now_s: float) -> bool:
        """Whether no beat came back for so long that the subscription is given up."""
        return self.is_listening and now_s - self._settled_s > OVERDUE_S

    def sound_s(self, now_s: float) -> float | None:
        """The moment before which everything that was told was heard; None while that is not known."""
        return self._sound_s if self._sound_s is not None and now_s - self._sound_s <= SOUND_S else None

    def writes(self, now_s: float) -> int | None:
        """The counter as far as it is known here; None while it is not."""
        return None if self._base is None or self.sound_s(now_s) is None else self.known
