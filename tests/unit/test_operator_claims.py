"""Pods that ask for a memory of nobody are counted by namespace, and a few of them told, once."""

from typing import Any

import pytest

from engram_contract.names import INJECT_LABEL, MANAGED_BY, MANAGED_BY_LABEL, TENANT_ANNOTATION
from engram_operator.claims import MAX_NAMESPACES, Claims
from engram_operator.clients.kube import EVENTS, MEMORY_TENANTS, NAMESPACES, OWNED
from engram_operator.events import Recorder
from engram_operator.injection import Sidecar, build_patch
from engram_operator.metrics import OperatorMetrics
from engram_operator.plan.conditions import time_of
from engram_operator.plan.unclaimed import find_unclaimed
from engram_operator.plan.watchdog import SHOWN
from tests.operator_stage import Store, patched

Json = dict[str, Any]
NOW_S = 1_767_225_600.0
SIDECAR = Sidecar("engram-sidecar:1", "IfNotPresent", {})
OF_TEAM = {TENANT_ANNOTATION: "team"}


def pod(name: str = "a", *, age_s: float = 3600.0, phase: str = "Running", **metadata: Any) -> Json:  # noqa: ANN401  its members
    whole = {"labels": {INJECT_LABEL: "true"}, "namespace": "ns", "uid": f"uid-{name}", **metadata}
    created = {"creationTimestamp": time_of(NOW_S - age_s)}
    return {"metadata": {"name": name, **created, **whole}, "spec": {"containers": []}, "status": {"phase": phase}}


def injected() -> Json:
    before = pod()
    found: Json = patched(before, build_patch(before, "team", SIDECAR))
    return found


@pytest.mark.parametrize(
    ("manifest", "tenants", "reason"),
    [
        (pod(), ["team"], ""),
        (pod(), [], "has no MemoryTenant;"),
        (pod(), ["other", "team"], "has several MemoryTenants;"),
        (pod(annotations=OF_TEAM), ["other", "team"], ""),
        (pod(annotations=OF_TEAM), ["other"], "has no MemoryTenant 'team'"),
        (pod(annotations={TENANT_ANNOTATION: "x" * 250_000}), ["other"], f"has no MemoryTenant '{'x' * 63}'"),
        (pod(age_s=9.0), [], ""),
        (pod(phase="Succeeded"), [], ""),
        (pod(deletionTimestamp=time_of(NOW_S)), [], ""),
        (pod(labels={}), [], ""),
        (pod(labels={INJECT_LABEL: "false"}), [], ""),
        (injected(), [], ""),
    ],
)
def test_a_pod_is_nobodys_that_asks_and_whose_tenant_is_not_clear(
    manifest: Json, tenants: list[str], reason: str
) -> None:
    found = find_unclaimed("ns", tenants, [manifest], is_wide=False, now_s=NOW_S)
    assert len(found) == bool(reason)
    assert all(reason in each.reason and len(each.reason) < 300 for each in found)


def test_where_the_namespace_asks_every_pod_does_but_shards() -> None:
    pods = [
        pod("a", labels={}),
        pod("b", labels={MANAGED_BY_LABEL: MANAGED_BY}),
        pod("c", labels={INJECT_LABEL: "false"}),
    ]
    assert [each.name for each in find_unclaimed("ns", [], pods, is_wide=True, now_s=NOW_S)] == ["a"]


class Stage:
    """A store with namespaces and pods; who looks there."""

    def __init__(self) -> None:
        self.store, self.metrics = Store(), OperatorMetrics()
        recorder = Recorder(self.store, lambda: NOW_S, "me", lambda: 1.0, lambda: None)
        self.claims = Claims(self.store, recorder, self.metrics, lambda: NOW_S)

    def pods(self, namespace: str, count: int, **metadata: Any) -> None:  # noqa: ANN401  members of a manifest
        self.store.put(NAMESPACES, {"metadata": {"name": namespace}})
        for number in range(count):
            self.store.put(OWNED["Pod"], pod(f"p{number:02}", **metadata | {"namespace": namespace}))

    def tenant(self, namespace: str, name: str) -> None:
        self.store.put(MEMORY_TENANTS, {"metadata": {"namespace": namespace, "name": name}})

    def told(self) -> list[tuple[str, str]]:
        events = [each for path, each in self.store.objects.items() if path.startswith(EVENTS.prefix)]
        found = [each["regarding"] for each in events if each.get("reason") == "NoTenant"]
        return [(each["namespace"], each["name"]) for each in found]

    def counted(self) -> list[str]:
        text = self.metrics.render().decode()
        return [line for line in text.splitlines() if line.startswith("engram_unclaimed_pods{")]


async def test_pods_of_nobody_are_counted_by_namespace_and_the_first_are_told_once() -> None:
    stage = Stage()
    stage.pods("none", SHOWN + 3)
    stage.pods("two", 1)
    stage.tenant("two", "a")
    stage.tenant("two", "b")
    stage.pods("one", 1)
    stage.tenant("one", "a")
    asked = {"none": {""}, "one": {""}, "two": {""}, "gone": {""}}
    for _ in range(3):
        await stage.claims.look(asked)
        assert stage.counted() == [
            f'engram_unclaimed_pods{{pod_namespace="none"}} {SHOWN + 3}.0',
            'engram_unclaimed_pods{pod_namespace="two"} 1.0',
        ]
        assert stage.told() == [*(("none", f"p{number:02}") for number in range(SHOWN)), ("two", "p00")]
    stage.tenant("none", "a")
    await stage.claims.look(asked)
    assert len(stage.counted()) == 1
    await stage.claims.look({})
    assert stage.counted() == []


async def test_where_nobody_asks_in_vain_nothing_is_asked_for() -> None:
    stage = Stage()
    await stage.claims.look({})
    assert stage.store.timeouts == []
    stage.tenant("one", "a")
    await stage.claims.look({"one": {"", "a"}})
    assert len(stage.store.timeouts) == 1


async def test_of_very_many_namespaces_some_are_told() -> None:
    stage = Stage()
    names = [f"ns{number}" for number in range(MAX_NAMESPACES + 5)]
    for name in names:
        stage.pods(name, 1)
    await stage.claims.look({name: {""} for name in names})
    assert len(stage.counted()) == len(stage.told()) == MAX_NAMESPACES
