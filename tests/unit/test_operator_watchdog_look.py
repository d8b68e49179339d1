"""The watchdog against a store: what it reads, what it writes, what it tells."""

from dataclasses import replace
from typing import Any

import pytest

from engram_contract.names import INJECT_LABEL, TENANT_KIND
from engram_contract.spec import TenantSpec
from engram_operator.clients.kube import DEPLOYMENTS, EVENTS, MEMORY_TENANTS, NAMESPACES, OWNED, REPLICA_SETS, Manifest
from engram_operator.errors import ApiRefused, LostLease
from engram_operator.events import Recorder
from engram_operator.injection import Sidecar, build_patch
from engram_operator.leadership import Leadership, Term
from engram_operator.metrics import OperatorMetrics
from engram_operator.plan.sidecars import Generations, Published, Report
from engram_operator.reconcile.tenant import TenantReconciler
from engram_operator.reconcile.watchdog import Watchdog, Watched
from engram_operator.settings import Injection
from engram_operator.workqueue import Key
from tests.operator_stage import Store, patched

Json = dict[str, Any]
NOW_S = 1_767_225_600.0
EARLIER = "2025-12-31T20:00:00Z"
SIDECAR = Sidecar("engram-sidecar:2", "IfNotPresent", {"limits": {"memory": "256Mi"}})
OLD = Sidecar("engram-sidecar:1", "IfNotPresent", {"limits": {"memory": "256Mi"}})
FILES = Generations(epoch=3, policy=7, credentials=2, keys=1)
AVAILABLE = {"availableReplicas": 2, "conditions": [{"type": "Available", "lastTransitionTime": EARLIER}]}


class Stage:
    """A store with a tenant, an injector, and pods of a ReplicaSet `web`; a watchdog that leads."""

    def __init__(self, *, injection: bool = True, **spec: object) -> None:
        self.store = Store()
        self.store.put(NAMESPACES, {"metadata": {"name": "ns"}})
        metadata = {"name": "team", "namespace": "ns", "generation": 1, "creationTimestamp": EARLIER}
        body = {"apiVersion": "engram.dev/v1alpha1", "kind": TENANT_KIND, "metadata": metadata}
        self.resource = self.store.put(MEMORY_TENANTS, body | {"spec": {"clusterRef": {"name": "mem"}} | spec})
        self.injector("engram-injector", AVAILABLE)
        self.web = self.store.put(
            REPLICA_SETS, {"metadata": {"name": "web", "namespace": "ns"}, "spec": {"replicas": 2}}
        )
        self.metrics = OperatorMetrics()
        self.leadership = Leadership(object(), "me", lambda: 0.0)  # type: ignore[arg-type]  # it is never run
        self.leadership.term = Term(lambda: 0.0, 100.0)
        recorder = Recorder(self.store, lambda: NOW_S, "me", lambda: 1.0, lambda: None)
        known = Injection("sys", "engram-injector", SIDECAR) if injection else None
        self.published: Published | None = Published(FILES, NOW_S - 600, NOW_S - 3600)
        self.reports: list[Report] = []
        self.watchdog = Watchdog(self.store, self.leadership, known, recorder, self.metrics, wall_clock=lambda: NOW_S)

    def injector(self, name: str, status: Json) -> None:
        self.store.put(DEPLOYMENTS, {"metadata": {"name": name, "namespace": "sys"}, "status": status})

    def pod(self, name: str, sidecar: Sidecar | None = None) -> Manifest:
        """A ready pod of `web`."""
        owner = {"kind": "ReplicaSet", "name": "web", "uid": self.web["metadata"]["uid"], "controller": True}
        metadata = {"name": name, "namespace": "ns", "labels": {INJECT_LABEL: "true"}, "creationTimestamp": EARLIER}
        status: Json = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        body: Json = {"metadata": {**metadata, "ownerReferences": [owner]}, "spec": {"containers": [{"name": "app"}]}}
        if sidecar is not None:
            body = patched(body, build_patch(body, "team", sidecar))
            said = {"name": "engram", "ready": True, "started": True, "state": {"running": {}}, "containerID": name}
            status["initContainerStatuses"] = [said]
        stored = self.store.put(OWNED["Pod"], body | {"status": status})
        if sidecar is not None:
            self.reports.append(Report(name, stored["metadata"]["uid"], FILES))
        return stored

    async def look(self) -> Watched:
        self.store.writes.clear()
        reports = {each.pod: each for each in self.reports}
        return await self.watchdog.look(TenantSpec.from_resource(self.resource), self.resource, self.published, reports)

    def written(self) -> list[tuple[str, str]]:
        return [(verb, path.rpartition("/")[2]) for verb, path in self.store.writes if "/events" not in path]

    def told(self) -> list[tuple[str, str]]:
        events = [
            each for path, each in self.store.objects.items() if path.startswith(EVENTS.prefix) and "note" in each
        ]
        return [(each["type"], each["reason"]) for each in events]


def reason(watched: Watched, kind: str = "SidecarsInjected") -> tuple[bool | None, str]:
    found = next(each for each in watched.verdicts if each.type == kind)
    return found.holds, found.reason


RESTART: Json = {"watchdog": {"enabled": True, "restart": True}}
IN_PLACE: Json = {"sidecar": {"upgrade": "InPlace"}}


async def test_where_nothing_is_missing_nothing_is_written() -> None:
    stage = Stage(**RESTART, **IN_PLACE)
    stage.pod("a", SIDECAR)
    stage.pod("b", SIDECAR)
    watched = await stage.look()
    assert (reason(watched), reason(watched, "SidecarsCurrent")) == ((True, "AllInjected"), (True, "AllCurrent"))
    assert (watched.again_s, watched.waits, stage.store.writes) == (None, (), [])


async def test_missed_pods_are_counted_and_told_and_left_alone() -> None:
    stage = Stage()
    stage.pod("a")
    stage.pod("b", OLD)
    watched = await stage.look()
    assert watched.status["missedPods"] == ["a"]
    assert watched.status["sidecars"] == {"pods": 2, "missed": 1, "outdated": 1, "oldConfig": 0, "silent": 0} | {
        "applied": {"epoch": 3, "policy": 7, "credentials": 2, "keys": 1}
    }
    assert reason(watched) == (False, "PodsMissed")
    assert (stage.written(), stage.told()) == ([], [("Warning", "PodsMissed")])
    text = stage.metrics.render().decode()
    assert 'engram_pods{state="missed"} 1.0' in text
    assert 'engram_pods{state="injected"} 1.0' in text
    stage.watchdog.forget(Key(TENANT_KIND, "ns", "team"))
    assert "engram_pods{" not in stage.metrics.render().decode()


async def test_the_next_pod_goes_when_the_one_before_is_back() -> None:
    stage = Stage(**RESTART)
    stage.pod("a")
    stage.pod("b")
    first = await stage.look()
    assert stage.written() == [("evict", "a")]
    assert first.done == ("evict pod a of ReplicaSet web (it has no sidecar)",)
    assert (reason(first), stage.told()) == ((False, "Restarting"), [("Normal", "EvictPod")])
    await stage.look()
    assert stage.written() == []
    del stage.store.objects[OWNED["Pod"].path("ns", "a")]
    await stage.look()
    assert stage.written() == [], "its controller still owes a pod"
    stage.pod("c", SIDECAR)
    await stage.look()
    assert stage.written() == [("evict", "b")]
    assert "engram_sidecar_evictions_total 2.0" in stage.metrics.render().decode()


async def test_a_budget_that_holds_is_said() -> None:
    stage = Stage(**RESTART)
    stage.pod("a")
    stage.pod("b")
    stage.store.held = {"a"}
    watched = await stage.look()
    assert (reason(watched), stage.told()) == ((False, "DisruptionBudget"), [("Warning", "DisruptionBudget")])
    assert [wait.reason for wait in watched.waits] == ["DisruptionBudget"]
    assert "a disruption budget keeps a" in watched.verdicts[0].message
    assert (watched.done, stage.metrics.render().decode().count("engram_sidecar_evictions_total 0.0")) == ((), 1)


@pytest.mark.parametrize("status", [{}, {"availableReplicas": 0}])
async def test_while_no_injector_answers_nothing_is_evicted(status: Json) -> None:
    stage = Stage(**RESTART)
    stage.pod("a")
    stage.injector("engram-injector", status)
    assert reason(await stage.look()) == (False, "InjectorDown")
    assert stage.written() == []


async def test_without_an_injector_pods_are_told_and_no_more() -> None:
    stage = Stage(injection=False, **RESTART, **IN_PLACE)
    stage.pod("a")
    stage.pod("b", OLD)
    watched = await stage.look()
    assert (reason(watched), reason(watched, "SidecarsCurrent")[1]) == ((False, "InjectorDown"), "InjectorDisabled")
    assert stage.written() == []


async def test_what_serves_by_something_old_and_what_does_not_tell_is_counted_named_and_told() -> None:
    stage = Stage()
    for name in ("current", "old", "mute"):
        stage.pod(name, SIDECAR)
    running = stage.store.get(OWNED["Pod"], "ns", "mute")["status"]["initContainerStatuses"][0]
    running["state"] = {"running": {"startedAt": EARLIER}}
    stage.reports[1] = replace(stage.reports[1], told=replace(FILES, keys=0))
    del stage.reports[2]
    watched = await stage.look()
    assert (watched.status["oldConfigPods"], watched.status["silentPods"]) == (["old"], ["mute"])
    counted = {name: watched.status["sidecars"][name] for name in ("pods", "oldConfig", "silent")}
    assert counted == {"pods": 3, "oldConfig": 1, "silent": 1}
    assert watched.status["sidecars"]["applied"]["keys"] == 0
    assert reason(watched, "SidecarsCurrent") == (False, "OldConfig")
    text = stage.metrics.render().decode()
    assert 'engram_pods{state="old_config"} 1.0' in text
    assert 'engram_pods{state="silent"} 1.0' in text
    assert (stage.written(), stage.told()) == ([], [("Warning", "OldConfig")])
    stage.published = None
    assert reason(await stage.look(), "SidecarsCurrent") == (None, "NotHeard")
    assert "silent" not in stage.metrics.render().decode().partition("# TYPE engram_pods")[2]


async def test_a_pod_with_an_old_configuration_is_evicted_if_the_tenant_asks_for_restarts() -> None:
    stage = Stage(**RESTART)
    stage.pod("a", SIDECAR)
    stage.pod("b", SIDECAR)
    stage.reports[1] = replace(stage.reports[1], told=replace(FILES, policy=6))
    stage.store.held = {"b"}
    watched = await stage.look()
    assert (reason(watched), reason(watched, "SidecarsCurrent")) == ((True, "AllInjected"), (False, "DisruptionBudget"))
    stage.store.held = set()
    watched = await stage.look()
    assert watched.done == ("evict pod b of ReplicaSet web (its sidecar serves by an old configuration)",)
    assert (stage.written(), reason(watched, "SidecarsCurrent")) == ([("evict", "b")], (False, "Restarting"))


async def test_an_upgrade_in_place_is_one_patch_of_one_pod() -> None:
    stage = Stage(**IN_PLACE)
    stage.pod("a", OLD)
    stage.pod("b", OLD)
    await stage.look()
    assert stage.written() == [("patch", "a")]
    assert stage.store.get(OWNED["Pod"], "ns", "a")["spec"]["initContainers"][0]["image"] == SIDECAR.image
    watched = await stage.look()
    assert (stage.written(), reason(watched, "SidecarsCurrent")) == ([], (False, "Upgrading"))
    stage.store.get(OWNED["Pod"], "ns", "a")["status"]["initContainerStatuses"][0]["containerID"] = "another"
    await stage.look()
    assert stage.written() == [("patch", "b")]
    assert stage.told() == [("Normal", "UpgradeSidecar"), ("Normal", "UpgradeSidecar")]


async def test_what_cannot_be_looked_at_is_unknown_and_keeps_what_was_told() -> None:
    stage = Stage()
    kept = {"missedPods": ["x"], "silentPods": ["y"], "oldConfigPods": ["z"], "sidecars": {"missed": 1}}
    stage.resource["status"] = kept | {"phase": "Ready"}
    stage.store.fault = ApiRefused("list pods: 403")
    watched = await stage.look()
    assert reason(watched) == (None, "NotLookedAt")
    assert watched.status == kept
    assert "403" in watched.waits[0].message


async def test_a_term_that_is_over_evicts_nobody() -> None:
    stage = Stage(**RESTART)
    stage.pod("a")
    stage.pod("b")
    assert stage.leadership.term is not None
    stage.leadership.term.end()
    with pytest.raises(LostLease):
        await stage.look()
    assert stage.written() == []


async def test_its_parts_are_added_to_the_tenants_status() -> None:
    stage = Stage()
    stage.pod("a", SIDECAR)
    watched = await stage.look()
    status = watched.added_to({"phase": "Ready", "conditions": [{"type": "Ready"}]}, stage.resource, NOW_S)
    assert [each["type"] for each in status["conditions"]] == ["Ready", "SidecarsInjected", "SidecarsCurrent"]
    assert (status["phase"], status["sidecars"]["pods"]) == ("Ready", 1)


async def test_a_tenant_that_waits_for_its_cluster_has_its_pods_looked_at_and_then_nothing_is_written() -> None:
    stage = Stage()
    stage.pod("a")
    recorder = Recorder(stage.store, lambda: NOW_S, "me", lambda: 1.0, lambda: None)
    reconciler = TenantReconciler(stage.store, stage.leadership, recorder, stage.watchdog, wall_clock=lambda: NOW_S)
    key = Key(TENANT_KIND, "ns", "team")
    outcome = await reconciler.reconcile(key)
    assert "there is no MemoryCluster ns/mem" in outcome.waits[0]
    status = stage.store.get(MEMORY_TENANTS, "ns", "team")["status"]
    reasons = {each["type"]: each["reason"] for each in status["conditions"]}
    assert reasons["Ready"] == "ClusterNotFound"
    assert (reasons["SidecarsInjected"], status["missedPods"]) == ("PodsMissed", ["a"])
    stage.store.writes.clear()
    await reconciler.reconcile(key)
    assert stage.store.writes == []
    del stage.store.objects[MEMORY_TENANTS.path("ns", "team")]
    assert (await reconciler.reconcile(key)).result == "gone"
    assert "engram_pods{" not in stage.metrics.render().decode()
