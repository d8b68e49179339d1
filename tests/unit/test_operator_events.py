"""Kubernetes Events: few of them, about the right object, and never in the way of the work."""

import asyncio
from typing import Any

import pytest

from engram_operator.clients.kube import EVENTS, Resource
from engram_operator.controller import Controller, Outcome
from engram_operator.errors import ApiRefused, LostLease
from engram_operator.events import BURST, NOTE_CHARS, REFILL_S, REMEMBERED, REPEAT_S, About, Recorder
from engram_operator.metrics import OperatorMetrics
from engram_operator.workqueue import Key, WorkQueue
from tests.operator_stage import Store, run_virtually

ABOUT = About("engram.dev/v1alpha1", "MemoryCluster", "default", "a", "uid-a")


class Stage:
    """A recorder over a store; its clock is `now_s`."""

    def __init__(self) -> None:
        self.store = Store()
        self.now_s = 1_800_000_000.0
        self.leads = True
        self.metrics = OperatorMetrics()
        self.recorder = Recorder(self.store, lambda: self.now_s, "pod-1", self._check, self.metrics.count_event_dropped)

    def _check(self) -> None:
        if not self.leads:
            raise LostLease("over")

    def events(self) -> list[dict[str, Any]]:
        return list(self.store.objects.values())

    def dropped(self) -> float | None:
        return self.metrics.registry.get_sample_value("engram_operator_events_dropped_total")


async def test_an_event_says_what_happened_to_which_object_and_who_says_it() -> None:
    stage = Stage()
    manifest = {
        "apiVersion": "engram.dev/v1alpha1",
        "kind": "MemoryCluster",
        "metadata": {"name": "a", "namespace": "default", "uid": "uid-a"},
    }
    await stage.recorder.record(About.of(manifest), "Warning", "ShardLost", "s1 does not answer")
    (event,) = stage.events()
    assert event["regarding"] == {
        "apiVersion": "engram.dev/v1alpha1",
        "kind": "MemoryCluster",
        "namespace": "default",
        "name": "a",
        "uid": "uid-a",
    }
    said = {name: event[name] for name in ("type", "reason", "note", "reportingInstance", "eventTime")}
    assert said == {
        "type": "Warning",
        "reason": "ShardLost",
        "note": "s1 does not answer",
        "reportingInstance": "pod-1",
        "eventTime": "2027-01-15T08:00:00.000000Z",
    }
    assert event["metadata"]["namespace"] == "default"


async def test_an_event_about_a_cluster_scoped_object_lies_in_default_and_a_long_name_and_note_are_cut() -> None:
    stage = Stage()
    about = About("v1", "Namespace", "", "x" * 199 + "." + "y" * 40, "uid")
    await stage.recorder.record(about, "Normal", "Seen", "n" * 2000)
    (event,) = stage.events()
    assert event["metadata"]["namespace"] == "default"
    assert "namespace" not in event["regarding"]
    assert len(event["note"]) == NOTE_CHARS
    assert EVENTS.path("default", event["metadata"]["name"])


async def test_the_same_is_said_once_in_ten_minutes() -> None:
    stage = Stage()
    for _ in range(60):
        await stage.recorder.record(ABOUT, "Normal", "Ready", "ready")
        stage.now_s += REPEAT_S / 60
    assert len(stage.events()) == 1
    await stage.recorder.record(ABOUT, "Normal", "Ready", "ready")
    await stage.recorder.record(ABOUT, "Normal", "Ready", "another")
    await stage.recorder.record(About("v1", "Pod", "default", "p", "uid-p"), "Normal", "Ready", "ready")
    assert len(stage.events()) == 4
    assert stage.dropped() == 0.0


async def test_of_one_object_fewer_than_twenty_events_are_written_in_any_hour() -> None:
    stage = Stage()
    written: list[float] = []
    for number in range(3 * 3600):
        before = len(stage.events())
        await stage.recorder.record(ABOUT, "Warning", "Failed", f"try {number}")
        written += [stage.now_s] * (len(stage.events()) - before)
        stage.now_s += 1.0
    assert max(sum(1 for other in written if 0 <= other - each < 3600) for each in written) < 20
    assert len(written) == BURST + int((3 * 3600 - 1) // REFILL_S)
    assert stage.dropped() == 3 * 3600 - len(written)


def test_a_thousand_failing_reconciles_of_an_hour_create_fewer_than_twenty_events() -> None:
    stage = Stage()
    key = Key("MemoryCluster", "default", "a")
    runs: list[float] = []

    async def reconcile(key: Key) -> Outcome:
        stage.now_s = 1_800_000_000.0 + asyncio.get_running_loop().time()
        runs.append(stage.now_s)
        await stage.recorder.record(ABOUT, "Warning", "ApplyFailed", f"attempt {len(runs)}")
        raise ApiRefused("403")

    async def run() -> None:
        clock = asyncio.get_running_loop().time
        queue = WorkQueue(clock, lambda seconds: seconds)
        controller = Controller(queue, {key.kind: reconcile}, lambda: None, stage.metrics, clock)
        running = asyncio.create_task(controller.run(1))
        for _ in range(1000):  # an object that somebody edits all the time, so that no backoff holds it
            queue.add(key)
            await asyncio.sleep(3.5)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run_virtually(run())
    assert len(runs) >= 1000
    assert len(stage.events()) < 20


async def test_a_clock_that_goes_back_neither_opens_nor_closes_the_tap() -> None:
    stage = Stage()
    for number in range(BURST + 5):
        await stage.recorder.record(ABOUT, "Normal", "Said", str(number))
        stage.now_s -= 3600.0
    assert len(stage.events()) == BURST


async def test_an_event_that_is_refused_is_no_failure() -> None:
    stage = Stage()
    stage.store.fault = ApiRefused("create events: 403")
    await stage.recorder.record(ABOUT, "Normal", "Ready", "ready")
    assert stage.events() == []


async def test_without_the_term_nothing_is_written() -> None:
    stage = Stage()
    stage.leads = False
    with pytest.raises(LostLease):
        await stage.recorder.record(ABOUT, "Normal", "Ready", "ready")
    assert stage.store.writes == []


class Nothing(Store):
    """Takes everything and keeps nothing."""

    async def create(
        self, resource: Resource, namespace: str | None, manifest: dict[str, Any], *, timeout_s: float = 10.0
    ) -> dict[str, Any]:
        return manifest


async def test_what_is_remembered_is_bounded() -> None:
    recorder = Recorder(Nothing(), lambda: 0.0, "pod-1", lambda: None, lambda: None)
    for number in range(REMEMBERED + 100):
        await recorder.record(About("v1", "Pod", "default", "p", f"uid-{number}"), "Normal", "Ready", "ready")
    assert len(recorder._said._values) == len(recorder._buckets._values) == REMEMBERED
