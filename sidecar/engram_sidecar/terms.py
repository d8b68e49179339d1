"""Words to lexemes: what of a text can be searched, made here so that Postgres and its logs see no words.

A text is normalised (NFKC, case folded), cut into runs of letters and digits, stripped of English stop words,
stemmed (Snowball English, Porter 2) and each stem hashed with the tenant's index key, where there is a keyring, else
with the tenant's name alone, which keeps words out of the server's logs and not from who tries out a dictionary. So
equal stems of two tenants are different lexemes, and one index over all tenants finds only one's own.

Promises: equal words give equal lexemes in every process and version; a lexeme is 11 characters of base64url; at
most MAX_LEXEMES per memory, the first in the text kept, so that a tsvector stays far below its limit of 1 MiB.
"""

import base64
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Final

import Stemmer

MAX_LEXEMES: Final = 16_384
MAX_WORD_CHARS: Final = 64  # beyond this it is an encoded blob, not a word
_CACHE_STEMS: Final = 50_000  # about 6 MB; the English of most tenants is smaller
PIECE_CHARS: Final = 65_536  # some 2 ms
_GAP: Final = re.compile("[\\s\x00-/:-@\\[-`{-\x7f\u3001\u3002]")  # of no word in any script
_WORD: Final = re.compile(r"[^\W_]+")
_ASCII_WORD: Final = re.compile(r"[0-9a-z]+")  # the same of lower-case ASCII, and five times as fast
# Letters and digits with the marks that belong to them (accents, vowel signs), which `\w` leaves out: at most eight
# on one, as more are no writing and normalising a long run of them takes quadratic time (Unicode UAX #15,
# stream-safe text).
_MARKS: Final = "".join(chr(code) for code in range(0x300, 0x10000) if unicodedata.category(chr(code)) in {"Mn", "Mc"})
_MARK: Final = re.compile(f"[{_MARKS}]")
_RUN: Final = re.compile(rf"(?:[^\W_][{_MARKS}]{{0,8}})+")
# Han, Hiragana and Katakana stand without spaces: each pair of neighbours is a word.
_UNSPACED: Final = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")

# The stop words of requirements 1.4 and the closed classes (articles, prepositions, conjunctions, pronouns,
# auxiliaries).
STOP_WORDS: Final = frozenset(
    """
    a about after again all am an and any are as at be because been before being between both but by can could did
    do does doing down during each few for from further had has have having he her here hers herself him himself his
    how i if in into is it its itself just me more most my myself no nor not now of off on once only or other our
    ours ourselves out over own same she should so some such than that the their theirs them themselves then there
    these they this those through to too under until up very was we were what when where which while who whom why
    will with would you your yours yourself yourselves d ll m re s t ve don
    """.split()  # noqa: SIM905  read as prose, not as 150 quoted lines
)

# How often a lexeme stands in a text -> its class, and A for five times and more: the migration names the same.
_CLASSES: Final = {1: "D", 2: "C", 3: "B", 4: "B"}


class Lexer:
    """Makes the lexemes of one tenant. Not for several threads at once: the stemmer keeps a state."""

    def __init__(self, tenant: str, index_key: bytes = b"") -> None:
        self._stemmer = Stemmer.Stemmer("english")
        name = tenant.encode()
        keyed = hashlib.blake2b(name, digest_size=32, key=index_key, person=b"engram-words")
        self._key = keyed.digest() if index_key else hashlib.sha256(name).digest()
        self._lexemes: dict[str, str] = {}

    def count(self, texts: Iterable[str]) -> Counter[str]:
        """Lexeme -> how often it stands in the texts; O(length)."""
        words = [word for word in chain.from_iterable(map(_words, _pieces(texts))) if len(word) <= MAX_WORD_CHARS]
        self._learn(set(words))
        counts = Counter(map(self._lexemes.__getitem__, words))
        del counts[""]
        return counts if len(counts) <= MAX_LEXEMES else Counter(dict(islice(counts.items(), MAX_LEXEMES)))

    def _learn(self, words: set[str]) -> None:
        """Makes the lexemes of these words that are not known; of so many known ones nothing is kept."""
        new = words.difference(self._lexemes)
        if len(self._lexemes) + len(new) > _CACHE_STEMS:
            self._lexemes.clear()
            new = words
        for word in new:
            self._lexemes[word] = self._make(word)

    def _make(self, word: str) -> str:
        """The word's lexeme; empty for what is not searched."""
        if word in STOP_WORDS:
            return ""
        stem = self._stemmer.stemWord(word)
        digest = hashlib.blake2b(stem.encode(), digest_size=8, key=self._key).digest()
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    """The texts, long ones cut at gaps between words: no other thread runs while C goes over one."""
    for text in texts:
        at = 0
        while len(text) - at > PIECE_CHARS and (gap := _GAP.search(text, at + PIECE_CHARS)):
            yield text[at : gap.start()]
            at = gap.start()
        yield text[at:]


def _words(text: str) -> Iterable[str]:
    """The words of a text, normalised and case folded, and runs that are too long for words; O(length)."""
    return _ASCII_WORD.findall(text.lower()) if text.isascii() else _words_of_any(text)


def _words_of_any(text: str) -> Iterator[str]:
    for run in _RUN.finditer(text):
        raw = run[0]
        if raw.isascii():
            yield raw.lower()
            continue
        plain = _plain(raw)
        for unspaced in _UNSPACED.finditer(plain):
            pair = unspaced[0]
            yield from (pair[at : at + 2] for at in range(max(len(pair) - 1, 1)))
        for part in _UNSPACED.split(plain):
            if len(part) <= MAX_WORD_CHARS:
                yield from _WORD.findall(part)


def _plain(run: str) -> str:
    """Compatibility forms and case folded; marks that compose with no letter are dropped, so that a word stays one."""
    normal = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", run).casefold())
    return normal if normal.isalnum() else _MARK.sub("", normal)


def to_tsvector_text(counts: Counter[str]) -> str:
    """The counts as tsvector input: one position per lexeme, labelled with the class of its frequency."""
    return " ".join([f"'{lexeme}':1{_CLASSES.get(count, 'A')}" for lexeme, count in counts.items()])
