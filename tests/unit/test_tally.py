"""Counting what is told on the bulletin: whatever is lost or comes twice, the next beat tells."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_sidecar.tally import (
    FIRST_COUNT,
    GENERATION,
    MAX_BEATS,
    MAX_TELLERS,
    OVERDUE_S,
    SOUND_S,
    Tally,
    Verdict,
    generation_of,
)

A, B = b"teller-a", b"teller-b"


def listening(count: int = FIRST_COUNT) -> Tally:
    """A tally whose first beat found this count."""
    tally = Tally()
    tally.begin(0.0)
    assert beat(tally, 0, count) is Verdict.GAP
    return tally


def beat(tally: Tally, number: int, count: int, sent_s: float | None = None) -> Verdict:
    """A beat that comes back at once."""
    tally.send(number, float(number) if sent_s is None else sent_s)
    assert tally.note_beat(number) is Verdict.WAITING
    return tally.note_count(number, count)


def test_before_the_first_beat_nothing_is_known() -> None:
    tally = Tally()
    assert (tally.is_listening, tally.sound_s(0.0), tally.writes(0.0)) == (False, None, None)
    tally.begin(0.0)
    assert (tally.is_listening, tally.sound_s(0.0), tally.writes(0.0)) == (True, None, None)


@pytest.mark.parametrize(
    ("heard", "counted", "verdict"),
    [
        ([], 0, Verdict.WHOLE),
        ([(A, 1)], 1, Verdict.WHOLE),
        ([(A, 1), (A, 2), (B, 1)], 3, Verdict.WHOLE),
        ([(A, 1), (A, 1), (A, 2)], 2, Verdict.WHOLE),  # twice
        ([(A, 2), (A, 1), (A, 2)], 2, Verdict.GAP),  # what comes late was missed
        ([(A, 1)], 2, Verdict.GAP),  # lost
        ([(A, 1), (A, 1)], 2, Verdict.GAP),  # one twice does not stand for another
        ([(A, 1)], 0, Verdict.BEHIND),  # told, and never counted: the counter is another one
        ([], GENERATION, Verdict.GAP),  # somebody moved it
    ],
)
def test_a_beat_tells_whether_all_was_heard(heard: list[tuple[bytes, int]], counted: int, verdict: Verdict) -> None:
    tally = listening()
    for teller, number in heard:
        tally.hear(teller, number)
    assert beat(tally, 1, FIRST_COUNT + counted) is verdict


def test_the_halves_of_a_beat_come_in_any_order() -> None:
    tally = listening()
    tally.send(1, 1.0)
    assert tally.note_count(1, FIRST_COUNT + 1) is Verdict.WAITING
    tally.hear(A, 1)
    assert tally.note_beat(1) is Verdict.WHOLE
    assert tally.sound_s(1.5) == 1.0


def test_what_comes_behind_the_beat_counts_for_the_next() -> None:
    tally = listening()
    tally.send(1, 1.0)
    assert tally.note_beat(1) is Verdict.WAITING
    tally.hear(A, 1)
    assert tally.note_count(1, FIRST_COUNT) is Verdict.WHOLE
    assert beat(tally, 2, FIRST_COUNT + 1) is Verdict.WHOLE


def test_a_beat_whose_count_never_came_is_passed_over() -> None:
    tally = listening()
    tally.send(1, 1.0)
    assert tally.note_beat(1) is Verdict.WAITING
    tally.hear(A, 1)
    assert beat(tally, 2, FIRST_COUNT + 1) is Verdict.WHOLE
    assert tally.note_count(1, FIRST_COUNT) is Verdict.WAITING


def test_a_gap_is_told_once() -> None:
    tally = listening()
    assert beat(tally, 1, FIRST_COUNT + 1) is Verdict.GAP
    assert beat(tally, 2, FIRST_COUNT + 1) is Verdict.WHOLE


def test_soundness_ends_with_the_beats() -> None:
    tally = listening()
    assert beat(tally, 1, FIRST_COUNT) is Verdict.WHOLE
    assert tally.sound_s(1.0 + SOUND_S) == 1.0
    assert tally.sound_s(1.1 + SOUND_S) is None
    assert tally.writes(1.1 + SOUND_S) is None


def test_a_subscription_without_beats_is_given_up() -> None:
    tally = listening()
    assert not tally.is_overdue(OVERDUE_S)
    assert tally.is_overdue(OVERDUE_S + 0.1)
    assert beat(tally, 1, FIRST_COUNT, OVERDUE_S) is Verdict.WHOLE
    assert not tally.is_overdue(OVERDUE_S + 0.1)
    tally.end()
    assert not tally.is_overdue(99.0)


def test_writes_follow_what_is_heard_and_what_we_told() -> None:
    tally = listening()
    assert tally.writes(0.0) == FIRST_COUNT
    tally.hear(A, 1)
    assert tally.writes(0.0) == FIRST_COUNT + 1
    assert tally.note_told(FIRST_COUNT + 3, tally.known) is Verdict.WAITING
    assert tally.writes(0.0) == FIRST_COUNT + 3
    tally.end()
    assert tally.writes(0.0) is None


@pytest.mark.parametrize("count", [0, 7, FIRST_COUNT - 1, FIRST_COUNT + 9])
def test_a_counter_that_went_back_is_moved_beyond_all_that_was_counted(count: int) -> None:
    tally = listening(FIRST_COUNT + 10)
    assert beat(tally, 1, count) is Verdict.BEHIND
    assert tally.sound_s(1.0) is None
    ahead = tally.ahead(count, unix_us=1 << 51)
    assert generation_of(ahead) > generation_of(FIRST_COUNT + 10)
    assert beat(tally, 2, ahead) is Verdict.GAP
    assert beat(tally, 3, ahead) is Verdict.WHOLE


def test_a_notice_of_ours_that_the_counter_did_not_pass_what_was_known_with_went_to_another_counter() -> None:
    tally = listening(FIRST_COUNT + 10)
    tally.hear(A, 1)
    assert tally.known == FIRST_COUNT + 11
    assert tally.note_told(FIRST_COUNT + 11, tally.known) is Verdict.BEHIND
    assert tally.writes(0.0) is None
    assert tally.known == FIRST_COUNT + 11


def test_what_is_told_while_a_beat_is_under_way_makes_no_counter_go_back() -> None:
    tally = listening()
    tally.send(1, 1.0)
    known = tally.known
    assert tally.note_told(FIRST_COUNT + 2, known) is Verdict.WAITING
    assert tally.note_told(FIRST_COUNT + 1, known) is Verdict.WAITING  # answers overtake each other
    assert tally.note_beat(1) is Verdict.WAITING
    assert tally.note_count(1, FIRST_COUNT) is Verdict.WHOLE
    assert tally.writes(1.0) == FIRST_COUNT + 2


def test_a_counter_that_nobody_set_is_set_to_the_time() -> None:
    tally = Tally()
    tally.begin(0.0)
    assert beat(tally, 1, 0) is Verdict.BEHIND
    assert tally.ahead(0, unix_us=1 << 51) == 1 << 51


def test_garbage_makes_the_next_beat_a_gap() -> None:
    tally = listening()
    tally.doubt()
    assert tally.sound_s(0.0) is None
    assert beat(tally, 1, FIRST_COUNT) is Verdict.GAP


def test_another_subscription_knows_nothing_of_the_one_before_but_how_far_the_counter_was() -> None:
    tally = listening(FIRST_COUNT + 10)
    tally.hear(A, 1)
    tally.begin(5.0)
    assert beat(tally, 6, FIRST_COUNT + 9) is Verdict.BEHIND
    assert beat(tally, 7, FIRST_COUNT + 20) is Verdict.GAP
    tally.hear(A, 1)  # not heard in this one
    assert beat(tally, 8, FIRST_COUNT + 21) is Verdict.WHOLE


def test_it_keeps_few_beats_and_few_tellers() -> None:
    tally = listening()
    for number in range(1, 3 * MAX_BEATS):
        tally.send(number, float(number))
    assert tally.note_count(1, FIRST_COUNT) is Verdict.WAITING
    for number in range(MAX_TELLERS + 5):
        tally.hear(number.to_bytes(8, "big"), 1)
    assert len(tally._tellers) == MAX_TELLERS
    assert len(tally._beats) == MAX_BEATS


BEAT = b"beat"
DOUBTS = {Verdict.GAP, Verdict.BEHIND}
Entry = tuple[bytes, int]


@dataclass
class World:
    """A Redis, one subscription to it of which some is under way, and what nobody may forget."""

    tally: Tally = field(default_factory=listening)
    count: int = FIRST_COUNT
    stream: list[Entry] = field(default_factory=list)
    arrived: list[Entry] = field(default_factory=list)  # notices
    counts: list[Entry] = field(default_factory=list)  # answers to beats that are under way
    told: list[Entry] = field(default_factory=list)
    heard: set[Entry] = field(default_factory=set)
    forgiven: set[Entry] = field(default_factory=set)  # a gap was told
    before: dict[int, set[Entry]] = field(default_factory=dict)  # beat -> what had been told
    verdict: Verdict = Verdict.WAITING

    def tell(self, number: int) -> None:
        self.count += 1
        self.told.append((b"teller-%d" % (number % 2), len(self.told) + 1))
        self.stream.append(self.told[-1])

    def lose(self, place: int) -> None:
        del self.stream[place : place + 1]

    def repeat(self, place: int) -> None:
        """Of what came: were the first of two lost, the beats between them would have overtaken it."""
        self.stream += self.arrived[-1 - place :][:1]

    def beat(self, number: int) -> None:
        beat = len(self.before) + 1
        self.before[beat] = set(self.told)
        self.tally.send(beat, float(beat))
        self.stream.append((BEAT, beat))
        if number % 3:  # else the answer is lost
            self.counts.append((BEAT, beat | self.count << 16))

    def arrive(self, number: int) -> None:
        arrived, self.stream = self.stream[:number], self.stream[number:]
        for teller, each in arrived:
            if teller == BEAT:
                self.judge(each, self.tally.note_beat(each))
            else:
                self.heard.add((teller, each))
                self.arrived.append((teller, each))
                self.tally.hear(teller, each)

    def answer(self, number: int) -> None:
        answers, self.counts = self.counts[:number], self.counts[number:]
        for _, each in answers:
            self.judge(each & 0xFFFF, self.tally.note_count(each & 0xFFFF, each >> 16))

    def judge(self, beat: int, verdict: Verdict) -> None:
        self.verdict = verdict
        if verdict is Verdict.WHOLE:
            assert self.before[beat] <= self.heard | self.forgiven
        if verdict in DOUBTS:
            self.forgiven |= self.before[beat]
        if verdict is Verdict.BEHIND:  # one that comes behind a beat that stood behind it is taken for one uncounted
            self.count = self.tally.ahead(self.count, 0)


ACTS = st.lists(
    st.tuples(st.sampled_from(["tell", "lose", "repeat", "beat", "arrive", "answer"]), st.integers(0, 6)), max_size=60
)


@settings(max_examples=600, deadline=None)
@given(ACTS)
def test_whatever_is_lost_or_late_or_twice_the_next_beat_that_comes_back_tells(acts: list[tuple[str, int]]) -> None:
    world = World()
    for act, number in acts:
        getattr(world, act)(number)
    world.answer(len(world.counts))
    world.arrive(len(world.stream))
    lost = set(world.told) - world.heard - world.forgiven
    world.beat(1)
    world.arrive(1)
    world.answer(1)
    assert world.verdict in (DOUBTS if lost else {Verdict.WHOLE, *DOUBTS})


@settings(max_examples=200, deadline=None)
@given(ACTS)
def test_without_a_loss_no_beat_is_a_gap(acts: list[tuple[str, int]]) -> None:
    world = World()
    for act, number in acts:
        if act != "lose":
            getattr(world, act)(number)
            assert world.verdict in {Verdict.WAITING, Verdict.WHOLE}
