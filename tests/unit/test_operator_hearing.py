"""Whether a watch is deaf: the rule as a table, and the looks around it over a list in memory, in virtual time."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from engram_operator.clients.kube import Kube, Resource
from engram_operator.errors import ApiError, ApiUnavailable, DeafWatch
from engram_operator.hearing import Hearing
from engram_operator.metrics import OperatorMetrics
from engram_operator.plan.hearing import GRACE_S, LOOK_S, Place, Version, Watched, deaf_fault, plan_look
from tests.operator_stage import run_virtually

PODS = Watched("", "v1", "pods", "app=x")
CLUSTERS = Watched("engram.dev", "v1alpha1", "memoryclusters")
A: Place = ("default", "a")
B: Place = ("default", "b")
V1, V2 = ("uid", "1"), ("uid", "2")


@pytest.mark.parametrize(
    ("listed", "heard", "delivered", "before", "after"),
    [
        ({}, {}, set(), {}, {}),
        ({A: V1}, {A: V1}, set(), {}, {}),
        ({A: V1}, {}, set(), {}, {A: 100.0}),  # a new object
        ({A: V2}, {A: V1}, set(), {}, {A: 100.0}),  # a change
        ({A: ("other", "1")}, {A: V1}, set(), {}, {A: 100.0}),  # deleted and made anew
        ({}, {A: V1}, set(), {}, {A: 100.0}),  # a deletion
        ({A: V2}, {A: V1}, set(), {A: 80.0}, {A: 80.0}),  # still
        ({A: ("uid", "3")}, {A: V1}, set(), {A: 80.0}, {A: 80.0}),  # still, and changed once more
        ({A: V2}, {A: V2}, set(), {A: 80.0}, {}),  # delivered by now
        ({}, {}, set(), {A: 80.0}, {}),  # unheard of, and gone again
        ({A: V2}, {A: ("uid", "3")}, {A}, {}, {}),  # changed while it was listed
        ({}, {A: V1}, {A}, {}, {}),  # made while it was listed
        ({A: V1, B: V2}, {A: V1, B: V1}, {A}, {}, {B: 100.0}),
    ],
)
def test_what_is_unheard_after_a_look(
    listed: dict[Place, Version],
    heard: dict[Place, Version],
    delivered: set[Place],
    before: dict[Place, float],
    after: dict[Place, float],
) -> None:
    assert plan_look(listed, heard, delivered, before, 100.0) == after


@pytest.mark.parametrize(
    ("watched", "unheard", "fault"),
    [
        (PODS, {}, None),
        (PODS, {A: 100.0 - GRACE_S}, None),
        (PODS, {A: 60.0, B: 69.0}, "the watch of pods has not delivered default/a for 40 s (2 unheard)"),
        (
            CLUSTERS,
            {("", "c"): 0.0},
            "the watch of memoryclusters.engram.dev has not delivered c for 100 s (1 unheard)",
        ),
    ],
)
def test_a_watch_is_deaf_when_an_object_is_unheard_for_longer_than_the_grace(
    watched: Watched, unheard: dict[Place, float], fault: str | None
) -> None:
    assert deaf_fault(watched, unheard, 100.0) == fault


class Listed(Kube):
    """An API server that lists what `versions` holds. While `fault` is set, half of a list and then the fault."""

    def __init__(self) -> None:
        self.versions: dict[Place, Version] = {}
        self.asked: list[tuple[str, str]] = []
        self.fault: ApiError | None = None
        self.on_list: Callable[[], None] = lambda: None

    async def fetch_metadata(
        self, resource: Resource, selector: str, *, namespace: str | None = None, timeout_s: float = 10.0
    ) -> AsyncIterator[dict[str, Any]]:
        self.asked.append((resource.path(namespace), selector))
        for (home, name), (uid, version) in list(self.versions.items()):
            yield metadata(home, name, uid, version)
        self.on_list()
        if self.fault is not None:
            raise self.fault


def metadata(namespace: str, name: str, uid: str, version: str) -> dict[str, Any]:
    return {"namespace": namespace, "name": name, "uid": uid, "resourceVersion": version}


class Stage:
    """A list, a hearing, and how long it lived. `put` is what the API server has, `deliver` what the watch brings."""

    def __init__(self) -> None:
        self.kube = Listed()
        self.enqueued: list[tuple[float, Place]] = []
        loop = asyncio.get_running_loop()
        self.time = loop.time
        self.hearing = Hearing(
            self.kube, [PODS], lambda _, place: self.enqueued.append((loop.time(), place)), loop.time
        )

    def put(self, place: Place, version: str) -> None:
        self.kube.versions[place] = ("uid", version)

    def deliver(self, event: str | None, place: Place, version: str) -> None:
        self.hearing.hear(PODS, event, {"metadata": metadata(*place, "uid", version)})


def play(script: Callable[[Stage], Awaitable[None]]) -> tuple[Stage, float | None]:
    """The stage after 300 s, and when the watch was found deaf, if it was."""

    async def run() -> tuple[Stage, float | None]:
        stage = Stage()
        acting = asyncio.ensure_future(script(stage))
        try:
            async with asyncio.timeout(300.0):
                await stage.hearing.run()
        except DeafWatch:
            return stage, stage.time()
        except TimeoutError:
            return stage, None
        finally:
            acting.cancel()
            await asyncio.gather(acting, return_exceptions=True)
        raise AssertionError("ended by itself")

    return run_virtually(run())


def test_a_watch_that_delivers_everything_is_never_called_deaf() -> None:
    async def script(stage: Stage) -> None:
        stage.put(A, "1")
        stage.deliver(None, A, "1")
        await asyncio.sleep(50.0)
        stage.put(A, "2")
        stage.deliver("MODIFIED", A, "2")
        await asyncio.sleep(50.0)
        del stage.kube.versions[A]
        stage.deliver("DELETED", A, "3")

    stage, deaf_s = play(script)
    assert (deaf_s, stage.enqueued) == (None, [])
    assert stage.kube.asked[0] == ("/api/v1/pods", "app=x")
    assert stage.hearing.proofs[PODS].age_s() <= LOOK_S


@pytest.mark.parametrize("version", ["", "2"])
def test_an_edit_or_a_deletion_that_is_not_delivered_is_reconciled_at_the_next_look_and_ends_the_process(
    version: str,
) -> None:
    async def script(stage: Stage) -> None:
        stage.put(A, "1")
        stage.deliver(None, A, "1")
        await asyncio.sleep(LOOK_S + 1)
        del stage.kube.versions[A]
        if version:
            stage.put(A, version)

    stage, deaf_s = play(script)
    assert stage.enqueued[0] == (2 * LOOK_S, A)
    assert deaf_s == 4 * LOOK_S  # 59 s after the edit: the look that finds it, and the first one after the grace
    assert "watch of pods has not delivered default/a" in (stage.hearing.fault or "")


def test_an_object_that_changes_all_the_time_is_not_called_unheard_while_it_is_delivered() -> None:
    async def script(stage: Stage) -> None:
        for number in range(1000):
            stage.put(A, str(number + 1))  # the watch lags behind the list, always
            stage.deliver("MODIFIED", A, str(number))
            await asyncio.sleep(0.7)

    assert play(script)[1] is None


def test_an_object_that_changes_all_the_time_and_is_not_delivered_is_heard_of() -> None:
    async def script(stage: Stage) -> None:
        for number in range(1000):
            stage.put(A, str(number))
            await asyncio.sleep(0.7)

    assert play(script)[1] == 3 * LOOK_S


def test_a_late_delivery_is_a_sign_of_life() -> None:
    async def script(stage: Stage) -> None:
        stage.put(A, "1")
        await asyncio.sleep(2 * LOOK_S + 5)
        stage.deliver("ADDED", A, "1")

    stage, deaf_s = play(script)
    assert deaf_s is None
    assert stage.enqueued == [(LOOK_S, A), (2 * LOOK_S, A)]


def test_what_is_delivered_while_a_list_is_on_its_way_is_not_held_against_the_watch() -> None:
    async def script(stage: Stage) -> None:
        def arrive() -> None:
            stage.deliver("ADDED", A, "7")
            stage.deliver("ADDED", B, "8")

        stage.put(A, "1")
        stage.kube.on_list = arrive

    stage, _ = play(script)
    assert stage.enqueued == []


def test_an_api_server_that_was_away_does_not_make_a_watch_deaf() -> None:
    async def script(stage: Stage) -> None:
        stage.put(A, "1")
        await asyncio.sleep(LOOK_S + 1)
        stage.kube.fault = ApiUnavailable("503")
        await asyncio.sleep(100.0)
        stage.kube.fault = None
        await asyncio.sleep(LOOK_S + 1)
        stage.deliver(None, A, "1")

    stage, deaf_s = play(script)
    assert deaf_s is None
    assert [seconds for seconds, _ in stage.enqueued] == [20.0, 140.0]


def test_the_age_of_a_watch_grows_while_it_is_not_proved() -> None:
    async def script(stage: Stage) -> None:
        stage.kube.fault = ApiUnavailable("503")

    stage, _ = play(script)
    proof = stage.hearing.proofs[PODS]
    assert proof.age_s() == 300.0
    metrics = OperatorMetrics()
    metrics.show_watch_age(str(PODS), proof.age_s)
    assert b'engram_operator_watch_age_seconds{resource="pods"} 300.0' in metrics.render()
