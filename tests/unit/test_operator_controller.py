"""The loop around a reconciler: one line and one count per run, when it runs again, what ends it; in virtual time."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import pytest

from engram_operator.controller import Controller, Outcome
from engram_operator.errors import ApiRefused, ApiUnavailable, LostLease
from engram_operator.metrics import OperatorMetrics
from engram_operator.workqueue import Key, WorkQueue
from tests.operator_stage import run_virtually

KEY = Key("MemoryCluster", "default", "a")
Reconcile = Callable[[Key], Awaitable[Outcome]]


class Script:
    """A reconciler that gives or raises these in turn, the last one for ever. `began_s` is when each run began."""

    def __init__(self, *steps: Outcome | Exception, took_s: float = 0.0) -> None:
        self._steps = list(steps)
        self._took_s = took_s
        self.began_s: list[float] = []

    async def __call__(self, key: Key) -> Outcome:
        self.began_s.append(round(asyncio.get_running_loop().time(), 3))
        await asyncio.sleep(self._took_s)
        step = self._steps.pop(0) if len(self._steps) > 1 else self._steps[0]
        if isinstance(step, Exception):
            raise step
        return step


class Lines(logging.Handler):
    """The records of the controller's logger."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def lines() -> Iterator[Lines]:
    logger = logging.getLogger("engram_operator.controller")
    handler = Lines()
    level, propagates = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)
    logger.propagate = propagates


def play(
    script: Reconcile, for_s: float, metrics: OperatorMetrics | None = None, term: Callable[[], object] = lambda: 1.0
) -> None:
    """Runs a controller with one key for so long."""

    async def run() -> None:
        clock = asyncio.get_running_loop().time
        queue = WorkQueue(clock, lambda seconds: seconds)
        controller = Controller(queue, {KEY.kind: script}, term, metrics or OperatorMetrics(), clock)
        queue.add(KEY)
        with suppress(TimeoutError):
            async with asyncio.timeout(for_s):
                await controller.run(2)

    run_virtually(run())


@pytest.mark.parametrize(
    ("outcome", "began_s"),
    [
        (Outcome("settled"), [0.0, 300.0, 600.0]),
        (Outcome("acted", again_s=200.0), [0.0, 200.0, 400.0, 600.0]),
        (Outcome("waiting", again_s=900.0), [0.0, 300.0, 600.0]),
        (Outcome("refused"), [0.0, 300.0, 600.0]),
        (Outcome("gone", again_s=5.0), [0.0]),
    ],
)
def test_a_key_comes_back_after_what_it_asks_for_and_after_the_resync_at_the_latest(
    outcome: Outcome, began_s: list[float]
) -> None:
    script = Script(outcome)
    play(script, 700.0)
    assert script.began_s == began_s


@pytest.mark.parametrize("error", [ApiUnavailable("503"), ValueError("ours")])
def test_failures_back_off_to_half_a_minute_and_a_success_forgives(error: Exception, lines: Lines) -> None:
    script = Script(*[error] * 7, Outcome("settled", again_s=10.0), error, Outcome("settled"))
    play(script, 150.0)
    assert script.began_s == [0.0, 1.0, 3.0, 7.0, 15.0, 31.0, 61.0, 91.0, 101.0, 102.0]


def test_the_api_server_may_ask_for_a_longer_pause() -> None:
    error = ApiUnavailable("429")
    error.retry_after_s = 45.0
    script = Script(error)
    play(script, 100.0)
    assert script.began_s == [0.0, 45.0, 90.0]


WAITS = Outcome("waiting", again_s=10.0, waits=("replicas: 1 of 3 ready",))


def test_each_run_has_one_line_and_says_news_aloud(lines: Lines) -> None:
    other = Outcome("waiting", again_s=10.0, waits=("replicas: 2 of 3 ready",))
    acted = Outcome("acted", again_s=10.0, done=("applied StatefulSet a-s0",))
    play(Script(WAITS, WAITS, other, acted, Outcome("settled", again_s=10.0), took_s=0.5), 50.0)
    assert {line.getMessage() for line in lines.records} == {"reconciled"}
    said = [(line.levelname, line.result) for line in lines.records]
    assert said == [
        ("INFO", "waiting"),
        ("DEBUG", "waiting"),
        ("INFO", "waiting"),
        ("INFO", "acted"),
        ("DEBUG", "settled"),
    ]
    line = lines.records[0]
    assert (line.kind, line.namespace, line.object) == (KEY.kind, "default", "a")
    assert (line.done, line.waits, line.took_ms, line.again_s) == ((), WAITS.waits, 500, 10.0)


def test_an_expected_error_is_a_warning_and_a_fault_of_ours_has_its_traceback(lines: Lines) -> None:
    play(Script(ApiRefused("patch x: 403"), ValueError("ours"), Outcome("settled")), 10.0)
    assert [(line.levelname, line.getMessage()) for line in lines.records] == [
        ("WARNING", "reconcile failed"),
        ("ERROR", "reconcile broke"),
        ("DEBUG", "reconciled"),
    ]
    assert lines.records[0].reason == "patch x: 403"
    assert lines.records[1].exc_info[0] is ValueError


def test_every_run_is_counted_by_kind_and_result(lines: Lines) -> None:
    metrics = OperatorMetrics()
    play(Script(ApiRefused("x"), ValueError("ours"), Outcome("acted")), 10.0, metrics)
    counted: Mapping[str, float | None] = {
        result: metrics.registry.get_sample_value(
            "engram_operator_reconcile_seconds_count", {"kind": KEY.kind, "result": result}
        )
        for result in ("failed", "error", "acted")
    }
    assert counted == {"failed": 1.0, "error": 1.0, "acted": 1.0}
    assert b"engram_operator_queue_depth 0.0" in metrics.render()


def test_without_the_term_no_run_begins_and_the_process_is_to_end() -> None:
    def over() -> float:
        raise LostLease("over")

    script = Script(Outcome("settled"))
    with pytest.raises(LostLease):
        play(script, 10.0, term=over)
    assert script.began_s == []


def test_a_term_that_is_lost_in_a_run_ends_the_process() -> None:
    with pytest.raises(LostLease):
        play(Script(LostLease("over")), 10.0)


def test_a_key_of_a_kind_that_nobody_reconciles_is_a_fault_of_ours(lines: Lines) -> None:
    async def run() -> None:
        clock = asyncio.get_running_loop().time
        queue = WorkQueue(clock, lambda seconds: seconds)
        queue.add(KEY)
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await Controller(queue, {}, lambda: 1.0, OperatorMetrics(), clock).run(1)

    run_virtually(run())
    assert [line.getMessage() for line in lines.records] == ["reconcile broke"]
