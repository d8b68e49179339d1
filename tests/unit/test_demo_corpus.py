"""The demo's text: what is a speech, who says it and where."""

import pytest

from examples.demo.corpus import read_corpus, read_play
from examples.demo.story import FAMOUS

PLAY = """# Hamlet

## ACT I

### SCENE I. Elsinore. A platform.

_FRANCISCO at his post. Enter to him
BERNARDO_

**BERNARDO**
Who's there?

**FRANCISCO**
_[Aside]_
Nay, answer me:
stand\\-- and unfold yourself.

_Exit_

**GHOST**
*[Rises.]*

### SCENE II. The same.

**HAMLET**
A little more than kin.
"""


def test_a_speech_has_its_speaker_scene_and_lines_without_stage_directions() -> None:
    found = [(s.speaker, s.session, s.number, s.content) for s in read_play("hamlet", PLAY)]
    first = "hamlet, ACT I, SCENE I. Elsinore. A platform."
    assert found == [
        ("BERNARDO", first, 1, "Who's there?"),
        ("FRANCISCO", first, 2, "Nay, answer me:\nstand-- and unfold yourself."),
        ("HAMLET", "hamlet, ACT I, SCENE II. The same.", 3, "A little more than kin."),
    ]


def test_the_corpus_is_whole() -> None:
    speeches = read_corpus()
    assert len(speeches) == 31_354
    assert len({speech.play for speech in speeches}) == 38
    assert len({(speech.play, speech.number) for speech in speeches}) == len(speeches)
    assert min(len(speech.content) for speech in speeches) > 0
    assert max(len(speech.session.encode()) for speech in speeches) <= 256


def test_a_part_of_the_corpus_is_the_plays_that_are_named() -> None:
    part = read_corpus(["the-tempest", "hamlet", "hamlet"])
    assert part == tuple(speech for speech in read_corpus() if speech.play in {"hamlet", "the-tempest"})


def test_a_play_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(FileNotFoundError, match=r"no play 'hamlett'; there are .*hamlet, .*, two-gentlemen-of-verona"):
        read_corpus(["hamlett"])


def test_every_famous_line_is_in_its_play() -> None:
    speeches = read_corpus({play for _, play, _, _ in FAMOUS})
    for _, play, speaker, words in FAMOUS:
        assert any((s.play, s.speaker) == (play, speaker) and words in s.content for s in speeches), play
