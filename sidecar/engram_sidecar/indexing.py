"""A draft to what the store indexes of it, without holding up the loop."""

import asyncio
from dataclasses import dataclass
from typing import Final

from engram_sidecar import jsontext
from engram_sidecar.records import Draft
from engram_sidecar.terms import Lexer, to_tsvector_text

MAX_QUERY_LEXEMES: Final = 64  # each is an index lookup on every shard; a question has a dozen
INLINE_CHARS: Final = 8_192  # about 2 ms of work; a longer text goes to a thread


@dataclass(frozen=True, slots=True)
class Indexed:
    """The searchable form of a text: tsvector input and the number of its words."""

    terms: str
    term_count: int


class Indexer:
    """Makes the searchable form for one tenant. A thread gets a lexer of its own, as a stemmer keeps a state."""

    def __init__(self, tenant: str) -> None:
        self._tenant = tenant
        self._lexer = Lexer(tenant)

    async def index(self, draft: Draft) -> Indexed:
        """Of the content and of every string in the value."""
        if len(draft.content) + len(draft.value) <= INLINE_CHARS:
            return _index(self._lexer, draft)
        return await asyncio.to_thread(_index, Lexer(self._tenant), draft)

    def lexemes(self, query: str) -> tuple[str, ...]:
        """The distinct lexemes of a query, in order, the first MAX_QUERY_LEXEMES; none if it holds stop words only."""
        return tuple(self._lexer.count([query]))[:MAX_QUERY_LEXEMES]


def _index(lexer: Lexer, draft: Draft) -> Indexed:
    texts = [draft.content]
    if draft.value != "null":
        texts.extend(jsontext.strings(jsontext.parse_stored(draft.value)))
    counts = lexer.count(texts)
    return Indexed(to_tsvector_text(counts), counts.total())
