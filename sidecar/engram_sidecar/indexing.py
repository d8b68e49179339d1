"""A draft to what the store indexes of it, without holding up the loop."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from engram_sidecar import jsontext
from engram_sidecar.judging import Tokens
from engram_sidecar.records import Draft
from engram_sidecar.terms import Lexer, to_tsvector_text
from engram_sidecar.timing import part

MAX_QUERY_LEXEMES: Final = 64  # each is an index lookup on every shard; a question has a dozen
INLINE_CHARS: Final = 8_192  # about 2 ms of work; a longer text goes to a thread


@dataclass(frozen=True, slots=True)
class Indexed:
    """The searchable form of a text: tsvector input, with the tokens of the value, and the number of its words."""

    terms: str
    term_count: int


class Indexer:
    """Makes the searchable form for one tenant. A thread gets a lexer of its own, as a stemmer keeps a state.

    With `tokens`, those of the value stand beside the words.
    """

    def __init__(self, tenant: str, index_key: bytes = b"", tokens: Tokens | None = None) -> None:
        self._make_lexer = partial(Lexer, tenant, index_key)
        self._lexer = self._make_lexer()
        self._tokens = tokens
        self._turn = asyncio.Lock()

    async def index(self, draft: Draft) -> Indexed:
        """Of the content and of every string in the value."""
        with part("index"):
            if len(draft.content) + len(draft.value) <= INLINE_CHARS:
                return _index(self._lexer, self._tokens, draft)
            return await asyncio.to_thread(_index, self._make_lexer(), self._tokens, draft)

    async def index_all(self, drafts: Sequence[Draft]) -> list[Indexed]:
        """Of each, in order.

        One batch after another, so that one is at the store while the next is indexed; and other tasks go on between
        two drafts: sixteen batches of 500 take the loop for seconds, in which no connection gets its answer.
        """
        async with self._turn:
            indexed = []
            for draft in drafts:
                indexed.append(await self.index(draft))
                await asyncio.sleep(0)
            return indexed

    def lexemes(self, query: str) -> tuple[str, ...]:
        """The distinct lexemes of a query, in order, the first MAX_QUERY_LEXEMES; none if it holds stop words only."""
        return tuple(self._lexer.count([query]))[:MAX_QUERY_LEXEMES]


def _index(lexer: Lexer, tokens: Tokens | None, draft: Draft) -> Indexed:
    texts = [draft.content]
    if draft.value != "null":
        texts.extend(jsontext.strings(jsontext.parse_stored(draft.value)))
    counts = lexer.count(texts)
    beside = [] if tokens is None else [f"'{token}'" for token in tokens.of_value(draft.value)]
    return Indexed(" ".join([to_tsvector_text(counts), *beside]), counts.total())
