"""The synchronous client: the asynchronous one on a private event loop in a thread of its own.

So it works where a loop already runs (a notebook), and from many threads at once. Nothing else is decided here: each
method is the one of AsyncEngram with its arguments, its result and its errors.
"""

import asyncio
import threading
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, cast, overload

from engram.aio import TIMEOUT_S, AsyncEngram, whole
from engram.errors import EngramError
from engram.records import (
    AuditPage,
    BatchResult,
    Consistency,
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

Result = TypeVar("Result")
Default = TypeVar("Default")


class Engram:
    """The memories of the tenant whose sidecar this process can reach.

    >>> def remember() -> None:
    ...     with Engram() as memories:
    ...         memories.wait_ready()
    ...         memories.put_item(["profile"], "city", user="ada", value="Rome")
    ...         assert memories.get_item(["profile"], "city", user="ada").value == "Rome"
    """

    def __init__(self, url: str | None = None, *, timeout_s: float = TIMEOUT_S) -> None:
        """A client of the sidecar at `url`, else the one the environment names. Connects with the first request."""
        self._client = AsyncEngram(url, timeout_s=timeout_s)
        self._loop = asyncio.new_event_loop()
        # A daemon: a program that forgets to close must still be able to end.
        self._thread = threading.Thread(target=self._loop.run_forever, name="engram", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        """This client."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the connections and ends the thread."""
        self.close()

    @property
    def url(self) -> str:
        """The address of the sidecar."""
        return self._client.url

    def close(self) -> None:
        """Closes the connections and ends the thread; closing twice does nothing. A closed client answers no more."""
        if self._loop.is_closed():
            return
        self._run(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def wait_ready(self, timeout_s: float = 60.0) -> Shards:
        """The shard map, as soon as the sidecar answers; raises the last error after `timeout_s`."""
        return self._run(self._client.wait_ready(timeout_s))

    def create(self, *, idempotency_key: str | None = None, **fields: Unpack[MemoryFields]) -> Memory:
        """A new memory under an id that the sidecar makes."""
        return self._run(self._client.create(idempotency_key=idempotency_key, **fields))

    def put(
        self,
        memory_id: str,
        *,
        if_match: str | None = None,
        if_none_match: str | None = None,
        idempotency_key: str | None = None,
        **fields: Unpack[MemoryFields],
    ) -> Memory:
        """The memory under `memory_id` with exactly these members, new or replaced."""
        return self._run(
            self._client.put(
                memory_id, if_match=if_match, if_none_match=if_none_match, idempotency_key=idempotency_key, **fields
            )
        )

    @overload
    def get(
        self, memory_id: str, *, if_none_match: str | None = None, consistency: Consistency | None = None
    ) -> Memory: ...
    @overload
    def get(
        self,
        memory_id: str,
        *,
        if_none_match: str | None = None,
        consistency: Consistency | None = None,
        default: Default,
    ) -> Memory | Default: ...
    def get(
        self,
        memory_id: str,
        *,
        if_none_match: str | None = None,
        consistency: Consistency | None = None,
        **default: object,
    ) -> object:
        """The memory under `memory_id`; `default` if there is none, NotFound without a default."""
        given = cast("dict[str, Any]", default)
        return self._run(self._client.get(memory_id, if_none_match=if_none_match, consistency=consistency, **given))

    def patch(
        self,
        memory_id: str,
        *,
        if_match: str | None = None,
        idempotency_key: str | None = None,
        **fields: Unpack[MemoryFields],
    ) -> Memory:
        """The memory after the change of the members given."""
        return self._run(self._client.patch(memory_id, if_match=if_match, idempotency_key=idempotency_key, **fields))

    def delete(self, memory_id: str, *, if_match: str | None = None, idempotency_key: str | None = None) -> bool:
        """True if the memory was deleted, False if there was none."""
        return self._run(self._client.delete(memory_id, if_match=if_match, idempotency_key=idempotency_key))

    def put_item(
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
        return self._run(
            self._client.put_item(
                namespace,
                key,
                user=user,
                if_match=if_match,
                if_none_match=if_none_match,
                idempotency_key=idempotency_key,
                **fields,
            )
        )

    @overload
    def get_item(
        self,
        namespace: Sequence[str],
        key: str,
        *,
        user: str | None = None,
        if_none_match: str | None = None,
        consistency: Consistency | None = None,
    ) -> Memory: ...
    @overload
    def get_item(
        self,
        namespace: Sequence[str],
        key: str,
        *,
        user: str | None = None,
        if_none_match: str | None = None,
        consistency: Consistency | None = None,
        default: Default,
    ) -> Memory | Default: ...
    def get_item(
        self,
        namespace: Sequence[str],
        key: str,
        *,
        user: str | None = None,
        if_none_match: str | None = None,
        consistency: Consistency | None = None,
        **default: object,
    ) -> object:
        """The memory of this name; `default` if there is none, NotFound without a default."""
        given: dict[str, Any] = {"if_none_match": if_none_match, "consistency": consistency, **default}
        return self._run(self._client.get_item(namespace, key, user=user, **given))

    def patch_item(
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
        return self._run(
            self._client.patch_item(
                namespace, key, user=user, if_match=if_match, idempotency_key=idempotency_key, **fields
            )
        )

    def delete_item(
        self,
        namespace: Sequence[str],
        key: str,
        *,
        user: str | None = None,
        if_match: str | None = None,
        idempotency_key: str | None = None,
    ) -> bool:
        """True if the memory of this name was deleted, False if there was none."""
        return self._run(
            self._client.delete_item(namespace, key, user=user, if_match=if_match, idempotency_key=idempotency_key)
        )

    def list(
        self, *, limit: int | None = None, consistency: Consistency | None = None, **selection: Unpack[Selection]
    ) -> Iterator[Memory]:
        """Every selected memory, newest first, fetched in pages of `limit`; Unavailable where a shard is missing."""
        cursor: str | None = None
        while True:
            page = whole(self.page(limit=limit, cursor=cursor, consistency=consistency, **selection))
            yield from page
            if page.next is None:
                return
            cursor = page.next

    def page(
        self,
        *,
        limit: int | None = None,
        cursor: str | None = None,
        consistency: Consistency | None = None,
        **selection: Unpack[Selection],
    ) -> Page:
        """One page of the selected memories, newest first; `cursor` is the `next` of the page before."""
        return self._run(self._client.page(limit=limit, cursor=cursor, consistency=consistency, **selection))

    def search(
        self,
        query: str = "",
        *,
        limit: int | None = None,
        consistency: Consistency | None = None,
        **fields: Unpack[SearchFields],
    ) -> SearchResult:
        """The memories that fit `query` best among those selected; an empty query gives the newest."""
        return self._run(self._client.search(query, limit=limit, consistency=consistency, **fields))

    def batch(self, operations: Iterable[Operation], *, idempotency_key: str | None = None) -> BatchResult:
        """The outcomes of the operations, in their order; all or nothing on each shard that they touch."""
        return self._run(self._client.batch(operations, idempotency_key=idempotency_key))

    def shards(self, *, count: bool = False) -> Shards:
        """The shard map that the sidecar routes by, on demand with the number of memories on each shard."""
        return self._run(self._client.shards(count=count))

    def usage(self) -> Usage:
        """What the tenant stores, of its quota and by type."""
        return self._run(self._client.usage())

    def audit(self, *, limit: int | None = None, before: str | None = None) -> AuditPage:
        """Recorded operations, newest first; `before` is the `next` of the page before."""
        return self._run(self._client.audit(limit=limit, before=before))

    def health(self) -> Health:
        """How well the sidecar and its shards do, each really tried; also an unhealthy one answers."""
        return self._run(self._client.health())

    def metrics(self, *, namespaces: int | None = None) -> Metrics:
        """The sidecar's metrics; with so many of the tenant's fullest namespaces, which are counted now (1 to 100)."""
        return self._run(self._client.metrics(namespaces=namespaces))

    def cache_statistics(self) -> CacheStatistics:
        """How the caches do since the sidecar's start, or since they were cleared here."""
        return self._run(self._client.cache_statistics())

    def clear_cache(self, memory_id: str | None = None) -> Cleared:
        """Drops what the tenant's sidecars keep: all of it, or of one memory. It costs speed only, erases nothing."""
        return self._run(self._client.clear_cache(memory_id))

    def _run(self, call: Coroutine[Any, Any, Result]) -> Result:
        if self._loop.is_closed():
            call.close()
            raise EngramError("this client is closed")
        future = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C in the caller's thread ends the request too; a finished future ignores it
            raise
