"""Lexemes: the same in every version, equal for equal words, apart for two tenants, never a word of the text."""

import re
import tracemalloc
import unicodedata
from collections import Counter
from typing import Final, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_sidecar import terms
from engram_sidecar.terms import MAX_LEXEMES, MAX_WORD_CHARS, STOP_WORDS, Lexer, to_tsvector_text

LEXER = Lexer("t_golden")
FORMS: Final[tuple[Literal["NFC", "NFD"], ...]] = ("NFC", "NFD")
TSVECTOR = re.compile(r"(?:'[A-Za-z0-9_-]{11}':1[A-D](?: (?!$)|$))*")


def lexemes(text: str) -> list[str]:
    return list(LEXER.count([text]))


# What is stored holds these hashes and nothing of the words. If one of these values changes, every memory that was
# stored before is found no more: then the index needs a new version and a new filling, not new values here.
@pytest.mark.parametrize(
    ("tenant", "word", "expected"),
    [
        ("t_golden", "tea", "ByPTMuLI5O0"),
        ("t_golden", "running", "9tMejZtZAK0"),
        ("t_golden", "stra\u00dfe", "8lbzfnM5JUc"),
        ("t_golden", "42", "ocQ0X5X1dWY"),
        ("t_golden", "\u8336", "G-Vleqornd4"),
        ("t_other", "tea", "PweztQjhfMY"),
    ],
)
def test_the_lexeme_of_a_word_is_what_it_was_in_every_version(tenant: str, word: str, expected: str) -> None:
    assert list(Lexer(tenant).count([word])) == [expected]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Tea", "tea"),
        ("TEA", "tea"),
        ("runs", "running"),
        ("memories", "memory"),
        ("connection", "connected"),
        ("Stra\u00dfe", "STRASSE"),
        ("\ufb01ne", "fine"),
        ("\uff34\uff45\uff41", "tea"),
        ("caf\u00e9", "cafe\u0301"),
        ("\u03a3\u03c4\u03b1\u03c2", "\u03c3\u03c4\u03b1\u03c3"),
        ("x\u00b2", "x2"),
        ("\u30ac\u30a4\u30c9", "\uff76\uff9e\uff72\uff84\uff9e"),
        ("0\uf900", "0\u8c48"),
        ("\u2167", "viii"),
        ("green-tea", "green tea"),
        ("snake_case", "snake case"),
        ("tea\u00a0pot", "tea pot"),
        ("don't panic", "panic"),
        ("a.b@example.com", "b example com"),
    ],
)
def test_words_that_are_read_as_equal_have_equal_lexemes(one: str, other: str) -> None:
    assert LEXER.count([one]) == LEXER.count([other]) != Counter()


@pytest.mark.parametrize(("one", "other"), [("tea", "teas9"), ("9", "09"), ("resume", "r\u00e9sum\u00e9"), ("c", "c2")])
def test_words_that_are_read_as_different_have_different_lexemes(one: str, other: str) -> None:
    assert LEXER.count([one]) != LEXER.count([other])


@pytest.mark.parametrize("text", ["", " ", "...", "_", "\u2603 \U0001f375", "\u0301", *sorted(STOP_WORDS)])
def test_without_a_word_there_is_no_lexeme(text: str) -> None:
    assert lexemes(text) == lexemes(text.upper()) == []


@settings(max_examples=50)
@given(st.text())
def test_two_tenants_share_no_lexeme(text: str) -> None:
    ours, theirs = LEXER.count([text]), Lexer("t_other").count([text])
    assert not ours.keys() & theirs.keys()
    assert list(ours.values()) == list(theirs.values())


@settings(max_examples=50)
@given(st.text(st.characters(codec="utf-8", max_codepoint=0xFFFF)), st.text())
def test_neither_normal_forms_nor_texts_before_make_a_difference(text: str, more: str) -> None:
    counts = LEXER.count([text])
    assert LEXER.count([text, more]) == counts + LEXER.count([more])
    assert Lexer("t_golden").count([text]) == counts
    for form in FORMS:
        assert LEXER.count([unicodedata.normalize(form, text)]) == counts


def test_a_word_is_counted_as_often_as_it_stands() -> None:
    counts = LEXER.count(["tea, Tea and teas", "a pot of tea"])
    assert counts == {lexemes("tea")[0]: 4, lexemes("pot")[0]: 1}
    assert list(counts) == lexemes("tea pot")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\u0915\u093f\u0924\u093e\u092c", 1),  # Hindi: vowel signs are marks, and belong to the word
        ("\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd", 1),  # Hebrew with points
        ("\u8336\u9053\u6559\u5ba4", 3),  # Chinese: each pair of neighbours
        ("\u8336", 1),
        ("\u8336tea\u9053", 3),
    ],
)
def test_a_script_with_marks_or_without_spaces_has_words_too(text: str, words: int) -> None:
    assert LEXER.count([text]).total() == words


def test_a_longer_run_than_a_word_can_be_is_left_out() -> None:
    assert len(lexemes("x" * MAX_WORD_CHARS)) == 1
    assert lexemes("x" * (MAX_WORD_CHARS + 1)) == []


def test_nothing_is_kept_of_runs_that_are_too_long_for_words() -> None:
    lexer = Lexer("t_golden")
    tracemalloc.start()
    try:
        for number in range(1_000):
            lexer.count([f"{number:x>8000}"])
        assert tracemalloc.get_traced_memory()[0] < 1 << 20
    finally:
        tracemalloc.stop()


def test_more_words_than_are_kept_make_no_difference() -> None:
    lexer, few, many = Lexer("t_golden"), "tea pot", " ".join(f"w{number}" for number in range(60_000))
    assert lexer.count([few, many]) == LEXER.count([few, many])
    assert lexer.count([few]) == LEXER.count([few])


def test_of_too_many_lexemes_the_first_are_kept_and_counted_on() -> None:
    words = [f"w{number}" for number in range(MAX_LEXEMES + 100)]
    kept = LEXER.count([" ".join(words), words[0], words[-1]])
    assert len(kept) == MAX_LEXEMES
    assert list(kept) == list(LEXER.count(words[:MAX_LEXEMES]))
    assert kept[lexemes(words[0])[0]] == 2
    assert lexemes(words[-1])[0] not in kept
    assert len(to_tsvector_text(kept)) < 1 << 20


# ------------------------------------------------------------------------------------------------------------ tsvector


@pytest.mark.parametrize(("count", "label"), [(1, "D"), (2, "C"), (3, "B"), (4, "B"), (5, "A"), (1000, "A")])
def test_a_frequency_is_told_by_its_class(count: int, label: str) -> None:
    assert to_tsvector_text(Counter({"AAAAAAAAAAA": count})) == f"'AAAAAAAAAAA':1{label}"


def test_no_lexemes_make_an_empty_text() -> None:
    assert to_tsvector_text(Counter()) == ""


@settings(max_examples=50)
@given(st.text() | st.text("'\\: teapo1A"))
def test_only_lexemes_and_labels_stand_in_the_text(text: str) -> None:
    assert TSVECTOR.fullmatch(to_tsvector_text(LEXER.count([text])))


def test_no_word_of_the_text_stands_in_it() -> None:
    text = "O'Brien's launch code: 000000 '); DROP TABLE memories; -- \\'quoted\\' passphrase"
    made = to_tsvector_text(LEXER.count([text])).lower()
    assert made.count(" ") == 9
    assert not [word for word in re.findall(r"\w{4,}", text.lower()) if word in made]


@given(
    st.lists(
        st.text(st.sampled_from("ab3\u00e9\u0301\u8336\u2167\u00a0\u2028\u3002 \n,[-_^{~")) | st.text(), max_size=3
    )
)
def test_a_long_text_has_the_lexemes_of_its_pieces_in_order(texts: list[str]) -> None:
    whole = list(LEXER.count(texts).items())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(terms, "PIECE_CHARS", 2)
        assert list(LEXER.count(texts).items()) == whole
