"""How long the request that is being answered may still take: one deadline for all that it asks.

It begins with the request's first question to a shard, when the body has come, and all questions of one request share
it, also those that are asked at the same time. It travels in the context of the task, as a deadline travels in a call:
every function on the way would have to hand it on, and one that forgot would wait without end.
"""

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class Patience:
    """The request's deadline, in seconds of the loop's clock; None before its first question."""

    by_s: float | None = None
    latest_s: float = 0.0  # with all that it may wait for a primary
    size_bytes: int = 0  # of its body

    def begin(self, now_s: float, deadline_s: float, failover_s: float) -> float:
        """The deadline; it is set by the first question."""
        if self.by_s is None:
            self.by_s = now_s + deadline_s
            self.latest_s = self.by_s + failover_s
        return self.by_s

    def extend(self, waited_s: float) -> None:
        """The request waited for a primary: that is not taken from what it may ask."""
        if self.by_s is not None:
            self.by_s = min(self.by_s + waited_s, self.latest_s)


_CURRENT: ContextVar[Patience | None] = ContextVar("patience", default=None)


def begin_request() -> Patience:
    """The patience of the request that this task answers from now on."""
    patience = Patience()
    _CURRENT.set(patience)
    return patience


def of_request() -> Patience:
    """The patience of the request that is being answered; of no request, one of its own."""
    return _CURRENT.get() or Patience()
