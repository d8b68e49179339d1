"""One loop around `reconcile(key)`: the term before it, one line of log after it, and when it runs again.

Promises
1. A run begins only within the term; LostLease passes through every layer here and ends the process.
2. Every run leaves one log line and one count. INFO when something was done, or when what the key waits for is not what
   its last line said; else DEBUG, so a quiet cluster has a quiet log.
3. A key that is not gone comes back after RESYNC_S at the latest; one that failed, after a pause that doubles.

Must never: know what a reconciler does, or keep a result for the next run.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from engram_operator.errors import ApiUnavailable, LostLease, OperatorError
from engram_operator.metrics import OperatorMetrics
from engram_operator.workqueue import Key, WorkQueue

RESYNC_S: Final = 300.0  # repairs what no event tells: a change outside the cluster, or an event of ours that was lost
BACKOFF_S: Final = 1.0  # after the first failure; twice as long after each further one
MAX_BACKOFF_S: Final = 30.0  # so that whatever comes back finds its objects served within half a minute

Result = Literal["settled", "acted", "waiting", "gone", "refused"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run came to. `done` and `waits` are lines for people: what was done, and why it is not finished.

    settled: there was nothing to do; acted: something was done; waiting: for something that `waits` names;
    gone: the object is not there any more; refused: the object asks for what it cannot have, as `waits` says.
    """

    result: Result
    again_s: float | None = None
    done: tuple[str, ...] = ()
    waits: tuple[str, ...] = ()


Reconcile = Callable[[Key], Awaitable[Outcome]]


class Controller:
    """Reconciles the keys of `queue`, each by the reconciler of its kind. `term_check` raises LostLease."""

    def __init__(
        self,
        queue: WorkQueue,
        reconcilers: Mapping[str, Reconcile],
        term_check: Callable[[], object],
        metrics: OperatorMetrics,
        clock: Callable[[], float],
    ) -> None:
        self._queue = queue
        self._reconcilers = reconcilers
        self._term_check = term_check
        self._metrics = metrics
        self._clock = clock
        self._waits: dict[Key, tuple[str, ...]] = {}  # of each key's last line, where there were any
        self._failures: dict[Key, int] = {}  # in a row
        metrics.show_queue(queue.depth, queue.oldest_s)

    async def run(self, workers: int) -> None:
        """Reconciles for ever, so many keys at a time. Raises LostLease when the term is over."""
        await self._queue.run(self._work, workers)

    async def _work(self, key: Key) -> float | None:
        """One run; the seconds until the next, or None if there is to be none."""
        self._term_check()
        began_s = self._clock()
        try:
            outcome = await self._reconcilers[key.kind](key)
        except LostLease:
            raise
        except OperatorError as error:
            self._metrics.observe_reconcile(key.kind, "failed", self._clock() - began_s)
            again_s = self._backoff_s(key, error)
            log.warning("reconcile failed", extra=_named(key) | {"reason": str(error), "again_s": again_s})
            return again_s
        except Exception as error:  # the outermost loop: a fault of ours in one object must not stop the others
            self._metrics.observe_reconcile(key.kind, "error", self._clock() - began_s)
            again_s = self._backoff_s(key, error)
            log.exception("reconcile broke", extra=_named(key) | {"again_s": again_s})
            return again_s
        return self._ended(key, outcome, self._clock() - began_s)

    def _ended(self, key: Key, outcome: Outcome, took_s: float) -> float | None:
        self._metrics.observe_reconcile(key.kind, outcome.result, took_s)
        self._failures.pop(key, None)
        is_gone = outcome.result == "gone"
        again_s = None if is_gone else min(RESYNC_S, RESYNC_S if outcome.again_s is None else outcome.again_s)
        is_news = bool(outcome.done) or outcome.waits != self._waits.get(key, ())
        fields: dict[str, object] = {"result": outcome.result, "done": outcome.done, "waits": outcome.waits}
        fields |= {"took_ms": round(took_s * 1000), "again_s": again_s}
        log.log(logging.INFO if is_news else logging.DEBUG, "reconciled", extra=_named(key) | fields)
        self._waits.pop(key, None)
        if outcome.waits and not is_gone:
            self._waits[key] = outcome.waits
        return again_s

    def _backoff_s(self, key: Key, error: Exception) -> float:
        """The pause after one more failure of this key; longer if the API server asked for it."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        pause_s = min(MAX_BACKOFF_S, BACKOFF_S * 2.0 ** min(failures, 16))
        return max(pause_s, error.retry_after_s) if isinstance(error, ApiUnavailable) else pause_s


def _named(key: Key) -> dict[str, object]:
    """The fields of every line about a key. `name` belongs to the record itself, so it is `object`'s."""
    return {"kind": key.kind, "namespace": key.namespace, "object": key.name}
