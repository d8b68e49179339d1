"""What can go wrong for a caller of the client: one leaf for each different reaction, carrying what the reaction needs.

EngramError
  NotFound          there is no such memory
  NotModified       the copy you have is current (only with `if_none_match` on a read)
  Conflict          somebody else changed it: read again, then decide
  Superseded        this write was done before, under its key, and the memory is another one by now: read it
  ReadOnlyShard     this memory cannot be written for now; it can be read
  Refused           the request is wrong and will stay wrong: `pointers` say where
  AgentNotAllowed   the tenant does not allow this pod's agent: nothing is answered until its policy does
  QuotaExceeded     the tenant is full: remove memories or raise its `limit`; trying again will not help
  RolledBack        another operation of the same batch failed: nothing of this one was stored
  Unavailable       try again after `retry_after_s`
  OutcomeUnknown    the connection broke before the answer: a write may have happened or not
    DeadlineExceeded  the time was up before the answer
  NotReachable      nothing listens there: nothing was sent
  UnexpectedAnswer  not an answer of a sidecar, or a fault in it: report it
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pointer:
    """A place in the body (RFC 6901; empty for the whole of it) or a query parameter, and what is wrong there."""

    pointer: str
    detail: str


class EngramError(Exception):
    """Root of the client's errors. `status` is the HTTP status, or 0 if there was no answer."""

    def __init__(self, detail: str, *, status: int = 0) -> None:
        """An error a person can read."""
        super().__init__(detail)
        self.detail = detail
        self.status = status


class NotFound(EngramError):
    """No memory has this id or name (or it has expired, or it is another tenant's)."""


class NotModified(EngramError):
    """The memory still has the ETag given as `if_none_match`: use the copy you have."""


class Conflict(EngramError):
    """`if_match` or `if_none_match` did not hold, so nothing was written.

    `etag` is the memory's current one where the sidecar told it.
    """

    def __init__(self, detail: str, *, status: int = 0, etag: str | None = None) -> None:
        """A conflict with what is stored under `etag`."""
        super().__init__(detail, status=status)
        self.etag = etag


class Superseded(EngramError):
    """The write happened when it was sent first with its idempotency key; what it stored was changed or removed since.

    `id` and `etag` tell which memory it was, in which state.
    """

    def __init__(self, detail: str, *, status: int = 0, id: str, etag: str) -> None:  # noqa: A002  as of a Memory
        """The outcome of a write that is told again."""
        super().__init__(detail, status=status)
        self.id = id
        self.etag = etag


class ReadOnlyShard(EngramError):
    """The memory lies on a shard that takes no writes now. Reads of it go on."""

    def __init__(self, detail: str, *, status: int = 0, shard: str | None = None) -> None:
        """A refusal of `shard`."""
        super().__init__(detail, status=status)
        self.shard = shard


class Refused(EngramError):
    """The request is wrong; sending it again will not help.

    `pointers` name the members at fault; `limit` is the bound that was passed, in the unit the detail says.
    With `status` 0 the client itself refused it and sent nothing.
    """

    def __init__(
        self, detail: str, *, status: int = 0, pointers: tuple[Pointer, ...] = (), limit: int | None = None
    ) -> None:
        """A refusal with its places."""
        places = "; ".join(f"{each.pointer or '(whole body)'}: {each.detail}" for each in pointers)
        super().__init__(f"{detail} ({places})" if places else detail, status=status)
        self.pointers = pointers
        self.limit = limit


class AgentNotAllowed(EngramError):
    """The tenant's policy does not let this pod be this agent."""

    def __init__(
        self, detail: str, *, status: int = 0, agent: str | None = None, service_account: str | None = None
    ) -> None:
        """A refusal of the pod, not of the request."""
        super().__init__(detail, status=status)
        self.agent = agent
        self.service_account = service_account


class QuotaExceeded(EngramError):
    """Nothing was stored: the tenant's `quota` of "memories" or "bytes" is used up, of which it may have `limit`."""

    def __init__(self, detail: str, *, status: int = 0, quota: str | None = None, limit: int | None = None) -> None:
        """A refusal for want of room."""
        super().__init__(detail, status=status)
        self.quota = quota
        self.limit = limit


class RolledBack(EngramError):
    """The operation was right, but another write of the batch on the same shard failed, so both were undone."""


class Unavailable(EngramError):
    """A shard or the sidecar cannot answer now. Nothing was stored; wait `retry_after_s` seconds and try again."""

    def __init__(self, detail: str, *, status: int = 0, retry_after_s: float = 1.0, shard: str | None = None) -> None:
        """An outage of `shard`, or of the whole sidecar where it is None."""
        super().__init__(detail, status=status)
        self.retry_after_s = retry_after_s
        self.shard = shard


class OutcomeUnknown(EngramError):
    """No answer came. A read can be repeated; before a write is repeated, read what is there."""


class DeadlineExceeded(OutcomeUnknown):
    """The time was up: the client's `timeout_s` (status 0) or the sidecar's own deadline (504)."""


class NotReachable(EngramError):
    """No sidecar listens at `url`. Nothing was sent."""

    def __init__(self, detail: str, *, url: str) -> None:
        """An address without a listener."""
        super().__init__(detail)
        self.url = url


class UnexpectedAnswer(EngramError):
    """The answer is none of the sidecar's forms, or a 500: another program on this port, or a fault to report."""
