"""Where the time of a request goes: told in `Server-Timing` to whoever asks, and to a tracer that is on.

What is asked by nobody is not measured: then each part costs the look at one context variable. The recorder travels in
the context of the task, as patience.py's deadline does, so no function on the way has to hand it on.

Source: Server Timing, W3C Working Draft, for the form of the header.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

MAX_SPANS: Final = 64  # of one request; what comes beyond is in the sums alone
MAX_METRICS: Final = 32  # in the header


@dataclass(frozen=True, slots=True)
class Span:
    """One part of a request, in monotonic seconds. `detail`: the name of a query; `failure`: the class of an error."""

    name: str
    shard: str
    detail: str
    began_s: float
    ended_s: float
    failure: str = ""


class Recorder:
    """The parts of one request: their sums by name and shard, and the first MAX_SPANS of them one by one."""

    def __init__(self) -> None:
        self.sums_s: dict[tuple[str, str], float] = {}
        self.spans: list[Span] = []

    def add(self, span: Span) -> None:
        """One part has ended."""
        key = (span.name, span.shard)
        self.sums_s[key] = self.sums_s.get(key, 0.0) + span.ended_s - span.began_s
        if len(self.spans) < MAX_SPANS:
            self.spans.append(span)


@dataclass(frozen=True, slots=True)
class Current:
    """What is known of the request that this task answers: its recorder, if it has one, and its trace's id."""

    recorder: Recorder | None = None
    trace_id: str = ""


_NOBODY: Final = Current()
_CURRENT: ContextVar[Current] = ContextVar("timing", default=_NOBODY)


def begin(recorder: Recorder | None, trace_id: str = "") -> None:
    """From now on this task answers another request, which is measured if there is a recorder."""
    _CURRENT.set(Current(recorder, trace_id) if recorder is not None or trace_id else _NOBODY)


def trace_id() -> str:
    """The id of the trace that this task's request is part of; empty if it is of none."""
    return _CURRENT.get().trace_id


def recorder() -> Recorder | None:
    """The recorder of the request that this task answers, if it has one."""
    return _CURRENT.get().recorder


@contextmanager
def shared(recorders: Sequence[Recorder | None]) -> Iterator[None]:
    """The parts of the block, which this task does for several requests, are parts of each that has a recorder."""
    told = [each for each in recorders if each is not None]
    own = Recorder() if told else None
    begin(own)
    try:
        yield
    finally:
        for span in () if own is None else own.spans:
            for each in told:
                each.add(span)


class part:  # noqa: N801  used like a function
    """The block is a part of the request."""

    __slots__ = ("_began_s", "_detail", "_name", "_recorder", "_shard")

    def __init__(self, name: str, shard: str = "", detail: str = "") -> None:
        self._recorder = _CURRENT.get().recorder
        self._name, self._shard, self._detail = name, shard, detail
        self._began_s = 0.0

    def __enter__(self) -> None:
        """It begins."""
        if self._recorder is not None:
            self._began_s = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, _error: object, _trace: object) -> None:
        """It has ended."""
        if self._recorder is not None:
            failure = "" if kind is None else kind.__name__
            span = Span(self._name, self._shard, self._detail, self._began_s, time.monotonic(), failure)
            self._recorder.add(span)


def server_timing(recorder: Recorder, total_s: float) -> str:
    """The whole first, then the sum of each part. Parts may overlap, as shards are asked at once."""
    metrics = [f"total;dur={1000 * total_s:.3f}"]
    for (name, shard), seconds in recorder.sums_s.items():
        description = f';desc="{shard}"' if shard else ""
        metrics.append(f"{name};dur={1000 * seconds:.3f}{description}")
    return ", ".join(metrics[:MAX_METRICS])
