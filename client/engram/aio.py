"""The asynchronous client: one HTTP session on the event loop that uses it. The only file that knows aiohttp.

Promises
1. A method returns its result or raises one EngramError; nothing of aiohttp comes out. Cancellation passes.
2. A write is sent once: where no answer came, OutcomeUnknown says so, and the caller decides. A GET is sent again once,
and so is a write with an `idempotency_key`, which happens once however often it is sent.
3. No proxy of the environment stands between an agent and its own sidecar.
4. A client is a session: it reads what it wrote, and nothing older than it saw, whichever replica answers.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar, Unpack, overload

import aiohttp
from yarl import URL

from engram import protocol
from engram.answers import Answer
from engram.discovery import base_url
from engram.errors import (
    DeadlineExceeded,
    NotFound,
    NotReachable,
    OutcomeUnknown,
    Unavailable,
)
from engram.protocol import Request, keyed
from engram.records import (
    AuditPage,
    BatchResult,
    Consistency,
    Item,
    ItemFields,
    Memory,
    MemoryFields,
    Operation,
    Page,
    SearchFields,
    SearchResult,
    Selection,
    Shards,
    Usage,
)
from engram.status import CacheStatistics, Cleared, Health, Metrics
from engram_contract.names import SESSION_HEADER
from engram_contract.session import Token

Result = TypeVar("Result")
Default = TypeVar("Default")

TIMEOUT_S: Final = 30.0  # three times what a sidecar waits for a failover (10 s), so its own answer comes first
POLL_S: Final = 0.1  # `wait_ready`: a sidecar starts in about a second
_RAISE: Final = object()


class AsyncEngram:
    """The memories of the tenant whose sidecar this process can reach.

    >>> async def remember() -> None:
    ...     async with AsyncEngram() as memories:
    ...         await memories.wait_ready()
    ...         first = await memories.create(content="Prefers window seats", user="ada")
    ...         changed = await memories.patch(first.id, importance=0.9, if_match=first.etag)
    ...         assert await memories.get(first.id) == changed
    """

    def __init__(self, url: str | None = None, *, timeout_s: float = TIMEOUT_S) -> None:
        """A client of the sidecar at `url`, else the one the environment names. Connects with the first request."""
        self.url = base_url(url, os.environ)
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None
        self._token = Token()

    async def __aenter__(self) -> Self:
        """This client."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the connections."""
        await self.close()

    async def close(self) -> None:
        """Closes the connections; the next request would open new ones."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def wait_ready(self, timeout_s: float = 60.0) -> Shards:
        """The shard map, as soon as the sidecar answers; raises the last error after `timeout_s`.

        Asks /v1/shards at the client's own address, not /readyz on the port for probes: so it needs no second address
        and proves the way that every later request takes. A shard that cannot be asked carries its `error`.
        """
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while True:
            try:
                return await self.shards()
            except (NotReachable, Unavailable, OutcomeUnknown):
                if asyncio.get_running_loop().time() + POLL_S > deadline_s:
                    raise
            await asyncio.sleep(POLL_S)

    async def create(self, *, idempotency_key: str | None = None, **fields: Unpack[MemoryFields]) -> Memory:
        """A new memory under an id that the sidecar makes.

        With an `idempotency_key`, here and in every other write: sent again within 24 hours, it is answered as at first
        and happens no second time. Superseded if what it stored is another by then.
        """
        return await self._send(keyed(protocol.build_create(fields), idempotency_key))

    async def put(
        self,
        memory_id: str,
        *,
        if_match: str | None = None,
        if_none_match: str | None = None,
        idempotency_key: str | None = None,
        **fields: Unpack[MemoryFields],
    ) -> Memory:
        """The memory under `memory_id` with exactly these members, new or replaced.

        `if_match` an ETag: only if it is still that version. `if_none_match="*"`: only if there is none. Else Conflict.
        """
        return await self._send(keyed(protocol.build_put(memory_id, fields, if_match, if_none_match), idempotency_key))

    @overload
    async def get(
        self, memory_id: str, *, if_none_match: str | None = None, consistency: Consistency | None = None
    ) -> Memory: ...
    @overload
    async def get(
        self,
        memory_id: str,
        *,
        if_none_match: str | None = None,
        consistency: Consistency | None = None,
        default: Default,
    ) -> Memory | Default: ...
    async def get(
        self,
        memory_id: str,
        *,
        if_none_match: str | None = None,
        consistency: Consistency | None = None,
        default: object = _RAISE,
    ) -> object:
        """The memory under `memory_id`; `default` if there is none, NotFound without a default.

        With the ETag of your copy as `if_none_match`, NotModified says that the copy is current.
        """
        return await self._read(memory_id, if_none_match, consistency, default)

    async def patch(
        self,
        memory_id: str,
        *,
        if_match: str | None = None,
        idempotency_key: str | None = None,
        **fields: Unpack[MemoryFields],
    ) -> Memory:
        """The memory after the change of the members given; `value` is merged (RFC 7396), the others are replaced."""
        return await self._send(keyed(protocol.build_patch(memory_id, fields, if_match), idempotency_key))

    async def delete(self, memory_id: str, *, if_match: str | None = None, idempotency_key: str | None = None) -> bool:
        """True if the memory was deleted, False if there was none."""
        return await self._send(keyed(protocol.build_delete(memory_id, if_match), idempotency_key))

    async def put_item(
        self,
        namespace: Sequence[str],
        key: str,
        *,
        user: str | None = None,
        if_match: str | None = None,
        if_none_match: str | None = None,
        idempotency_key: str | None = None,
        **fields: Unpack[ItemFields],
    ) -> Memory:
        """The memory of this name with exactly these members, new or replaced."""
        item = Item(tuple(namespace), key, user)
        return await self._send(keyed(protocol.build_put(item, fields, if_match, if_none_match), idempotency_key))

    @overload
    async def get_item(
        self,
        namespace: Sequence[str],
        key: str,
        *,
        user: str | None = None,
        if_none_match: str | None = None,
        consistency: Consistency | None = None,
    ) -> Memory: ...
    @overload
    async def get_item(
        self,
        namespace: Sequence[str],
        key: str,
        *,
        user: str | None = None,
        if_none_match: str | None = None,
        consistency: Consistency | None = None,
        default: Default,
    ) -> Memory | Default: ...
    async def get_item(
        self,
        namespace: Sequence[str],
        key: str,
        *,
        user: str | None = None,
        if_none_match: str | None = None,
        consistency: Consistency | None = None,
        default: object = _RAISE,
    ) -> object:
        """The memory of this name; `default` if there is none, NotFound without a default."""
        return await self._read(Item(tuple(namespace), key, user), if_none_match, consistency, default)

    async def patch_item(
        self,
        namespace: Sequence[str],
        key: str,
        *,
        user: str | None = None,
        if_match: str | None = None,
        idempotency_key: str | None = None,
        **fields: Unpack[ItemFields],
    ) -> Memory:
        """The memory of this name after the change of the members given."""
        return await self._send(
            keyed(protocol.build_patch(Item(tuple(namespace), key, user), fields, if_match), idempotency_key)
        )

    async def delete_item(
        self,
        namespace: Sequence[str],
        key: str,
        *,
        user: str | None = None,
        if_match: str | None = None,
        idempotency_key: str | None = None,
    ) -> bool:
        """True if the memory of this name was deleted, False if there was none."""
        return await self._send(
            keyed(protocol.build_delete(Item(tuple(namespace), key, user), if_match), idempotency_key)
        )

    async def list(
        self, *, limit: int | None = None, consistency: Consistency | None = None, **selection: Unpack[Selection]
    ) -> AsyncIterator[Memory]:
        """Every selected memory, newest first, fetched in pages of `limit`.

        Raises Unavailable where a shard cannot be asked: a listing with a hole would look whole. `page` gives the rest.
        """
        cursor: str | None = None
        while True:
            page = await self.page(limit=limit, cursor=cursor, consistency=consistency, **selection)
            for memory in whole(page):
                yield memory
            if page.next is None:
                return
            cursor = page.next

    async def page(
        self,
        *,
        limit: int | None = None,
        cursor: str | None = None,
        consistency: Consistency | None = None,
        **selection: Unpack[Selection],
    ) -> Page:
        """One page of the selected memories, newest first; `cursor` is the `next` of the page before."""
        return await self._send(protocol.build_page(selection, limit, cursor), consistency)

    async def search(
        self,
        query: str = "",
        *,
        limit: int | None = None,
        consistency: Consistency | None = None,
        **fields: Unpack[SearchFields],
    ) -> SearchResult:
        """The memories that fit `query` best among those selected; an empty query gives the newest."""
        return await self._send(protocol.build_search(query, fields, limit), consistency)

    async def batch(self, operations: Iterable[Operation], *, idempotency_key: str | None = None) -> BatchResult:
        """The outcomes of the operations, in their order; all or nothing on each shard that they touch."""
        return await self._send(keyed(protocol.build_batch(operations), idempotency_key))

    async def shards(self, *, count: bool = False) -> Shards:
        """The shard map that the sidecar routes by, on demand with the number of memories on each shard."""
        return await self._send(protocol.build_shards(count))

    async def usage(self) -> Usage:
        """What the tenant stores, of its quota and by type."""
        return await self._send(protocol.build_usage())

    async def audit(self, *, limit: int | None = None, before: str | None = None) -> AuditPage:
        """Recorded operations, newest first; `before` is the `next` of the page before."""
        return await self._send(protocol.build_audit(limit, before))

    async def health(self) -> Health:
        """How well the sidecar and its shards do, each really tried; also an unhealthy one answers."""
        return await self._send(protocol.build_health())

    async def metrics(self, *, namespaces: int | None = None) -> Metrics:
        """The sidecar's metrics; with so many of the tenant's fullest namespaces, which are counted now (1 to 100)."""
        return await self._send(protocol.build_metrics(namespaces))

    async def cache_statistics(self) -> CacheStatistics:
        """How the caches do since the sidecar's start, or since they were cleared here."""
        return await self._send(protocol.build_cache_statistics())

    async def clear_cache(self, memory_id: str | None = None) -> Cleared:
        """Drops what the tenant's sidecars keep: all of it, or of one memory. It costs speed only, and erases nothing.

        `shared` of the result says whether the other sidecars know.
        """
        return await self._send(protocol.build_clear_cache(memory_id))

    async def _read(
        self, target: str | Item, if_none_match: str | None, consistency: Consistency | None, default: object
    ) -> object:
        try:
            return await self._send(protocol.build_get(target, if_none_match), consistency)
        except NotFound:
            if default is _RAISE:
                raise
            return default

    async def _send(self, request: Request[Result], consistency: Consistency | None = None) -> Result:
        try:
            answer = await self._ask(request, consistency)
        except OutcomeUnknown as error:
            # A kept connection may have died with the sidecar that it led to. Asking again is harmless, writing is not,
            # unless a key says that it is the same write.
            if not (request.method == "GET" or request.is_repeatable) or isinstance(error, DeadlineExceeded):
                raise
            answer = await self._ask(request, consistency)
        return request.parse(answer)

    async def _ask(self, request: Request[Any], consistency: Consistency | None) -> Answer:
        """The answer, whatever its status."""
        url, sent = URL(self.url + request.target, encoded=True), self._token
        said = (*request.headers, *protocol.session_headers(sent, consistency))
        try:
            async with self._connected().request(
                request.method, url, headers=said, data=request.body, allow_redirects=False
            ) as response:
                headers = {name.lower(): value for name, value in response.headers.items()}
                self._token = protocol.next_token(self._token, sent, headers.get(SESSION_HEADER.lower()))
                return Answer(response.status, headers, await response.read())
        except TimeoutError as error:
            reason = f"no answer within {self._timeout.total} s: {request.method} {self.url}"
            raise DeadlineExceeded(reason) from error
        except aiohttp.ClientConnectorError as error:
            raise NotReachable(f"no sidecar at {self.url}: {error.strerror}", url=self.url) from error
        except aiohttp.ClientError as error:
            raise OutcomeUnknown(f"the connection broke before the answer: {error}") from error

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout, trust_env=False)
            # aiohttp sends PUT and DELETE a second time when a kept connection breaks: with If-Match the second one
            # fails although the first was done. There is no public switch; a test holds what this one does.
            self._session._retry_connection = False  # noqa: SLF001
        return self._session


def whole(page: Page) -> Page:
    """The page, if no shard is missing from it; raises Unavailable otherwise."""
    if page.complete:
        return page
    failed = page.failed_shards
    reasons = "; ".join(
        [*(f"{each.shard}: {each.reason}" for each in failed), *(f"{each.id}: {each.reason}" for each in page.refused)]
    )
    raise Unavailable(f"the listing is not complete: {reasons}", shard=failed[0].shard if failed else None)
