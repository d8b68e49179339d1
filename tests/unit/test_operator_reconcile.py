"""One reconcile of a MemoryCluster against a store: what is written, what is left alone, what is said."""

from typing import Any

import pytest

from engram_contract.names import CLUSTER_KIND, CLUSTER_LABEL, SCOPE_LABEL, SHARD_LABEL
from engram_operator.clients.kube import MEMORY_CLUSTERS, NAMESPACES, OWNED, Manifest
from engram_operator.controller import Outcome
from engram_operator.errors import ApiUnavailable, LostLease
from engram_operator.events import Recorder
from engram_operator.leadership import Leadership, Term
from engram_operator.manifests.site import Site
from engram_operator.metrics import OperatorMetrics
from engram_operator.reconcile.cluster import ClusterReconciler
from engram_operator.workqueue import Key
from tests.operator_stage import Store

KEY = Key(CLUSTER_KIND, "ns", "mem")
SITE = Site("engram-system", (("app", "operator"),), "engram-postgres:1", "redis:8")
SPEC: dict[str, Any] = {"postgres": {"tls": {"enabled": False}}, "replicas": 0}


class Stage:
    """A store with one MemoryCluster, and a reconciler that leads."""

    def __init__(self, **spec: object) -> None:
        self.store = Store()
        self.store.put(NAMESPACES, {"metadata": {"name": "ns"}})
        self.apply(spec)
        self.metrics = OperatorMetrics()
        self.leadership = Leadership(object(), "me", lambda: 0.0)  # type: ignore[arg-type]  # it is never run
        self.leadership.term = Term(lambda: 0.0, 100.0)
        recorder = Recorder(self.store, lambda: 0.0, "me", lambda: 1.0, lambda: None)
        self.reconciler = ClusterReconciler(
            self.store, self.leadership, SITE, recorder, self.metrics, lambda: 1_767_225_600.0
        )

    def apply(self, spec: dict[str, object], generation: int = 1) -> None:
        metadata = {"name": "mem", "namespace": "ns", "generation": generation}
        body = {"apiVersion": "engram.dev/v1alpha1", "kind": CLUSTER_KIND, "metadata": metadata, "spec": SPEC | spec}
        self.store.put(MEMORY_CLUSTERS, body)

    async def run(self) -> Outcome:
        self.store.writes.clear()
        return await self.reconciler.reconcile(KEY)

    async def settle(self) -> Outcome:
        """The outcome once a run writes nothing more than Events."""
        for _ in range(6):
            outcome = await self.run()
            if not self.written():
                return outcome
        raise AssertionError(self.store.writes)

    def written(self) -> list[str]:
        return [path for _, path in self.store.writes if "/events" not in path]

    def condition(self, kind: str) -> tuple[str, str]:
        conditions = self.store.get(MEMORY_CLUSTERS, "ns", "mem")["status"]["conditions"]
        found = next(each for each in conditions if each["type"] == kind)
        return found["status"], found["reason"]


async def test_a_cluster_becomes_objects_and_then_nothing_is_written() -> None:
    stage = Stage()
    outcome = await stage.settle()
    assert outcome.result == "waiting"
    kinds = {path.split("/")[-2] for path in stage.store.objects if "/namespaces/ns/" in path}
    assert kinds >= {"statefulsets", "services", "secrets", "configmaps", "roles", "networkpolicies"}
    assert stage.condition("Ready") == ("False", "NoMembers")
    assert stage.store.get(NAMESPACES, None, "ns")["metadata"]["labels"] == {"engram.dev/protected": "true"}


async def test_somebody_elses_object_is_never_touched() -> None:
    stage = Stage()
    stage.store.put(OWNED["Service"], {"metadata": {"name": "mem-pods", "namespace": "ns"}, "spec": {"mine": True}})
    await stage.settle()
    assert stage.store.get(OWNED["Service"], "ns", "mem-pods")["spec"] == {"mine": True}
    assert stage.condition("Degraded") == ("True", "NameTaken")


@pytest.mark.parametrize("field", ["paused", "planOnly"])
async def test_held_back_nothing_is_written_but_the_status_and_that_once(field: str) -> None:
    stage = Stage(**{field: True})
    await stage.run()
    assert stage.written() == [f"{MEMORY_CLUSTERS.path('ns', 'mem')}/status"]
    status = stage.store.get(MEMORY_CLUSTERS, "ns", "mem")["status"]
    assert any("apply StatefulSet mem-s0" in line for line in status["plan"])
    await stage.run()
    assert stage.written() == []
    stage.apply({}, generation=2)
    await stage.settle()
    assert "plan" not in stage.store.get(MEMORY_CLUSTERS, "ns", "mem")["status"]


async def test_a_term_that_is_over_writes_nothing() -> None:
    stage = Stage()
    assert stage.leadership.term is not None
    stage.leadership.term.end()
    with pytest.raises(LostLease):
        await stage.run()
    assert stage.written() == []


async def test_an_api_server_that_is_away_ends_the_run() -> None:
    stage = Stage()
    stage.store.fault = ApiUnavailable("away")
    with pytest.raises(ApiUnavailable):
        await stage.run()


async def test_a_spec_that_is_not_understood_is_refused_by_its_field() -> None:
    stage = Stage(shards=0)
    outcome = await stage.run()
    assert outcome.result == "refused"
    assert "spec.shards" in outcome.waits[0]
    assert stage.condition("Ready") == ("False", "BadSpec")


async def test_what_nobody_asks_for_any_more_goes_and_what_is_protected_is_opened_first() -> None:
    stage = Stage()
    await stage.settle()
    assert any(path.endswith("/statefulsets/mem-redis") for path in stage.store.objects)
    stage.store.objects[OWNED["StatefulSet"].path("ns", "mem-redis")]["metadata"]["labels"]["engram.dev/protected"] = (
        "true"
    )
    stage.apply({"cache": {"provider": "None"}}, generation=2)
    await stage.run()
    paths = [(verb, path.rpartition("/")[2]) for verb, path in stage.store.writes if "statefulsets" in path]
    assert paths == [("patch", "mem-redis"), ("delete", "mem-redis")]
    assert not [path for path in stage.store.objects if "redis" in path]


async def test_a_cluster_that_is_gone_or_going_is_left_alone() -> None:
    stage = Stage()
    del stage.store.objects[MEMORY_CLUSTERS.path("ns", "mem")]
    assert await stage.run() == Outcome("gone")
    stage.apply({})
    stage.store.get(MEMORY_CLUSTERS, "ns", "mem")["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert await stage.run() == Outcome("gone")
    assert stage.written() == []


def part(kind: str, name: str, **metadata: object) -> Manifest:
    """An object of the cluster's first shard."""
    labels = {CLUSTER_LABEL: "mem", SHARD_LABEL: "s0", SCOPE_LABEL: "mem-s0"}
    return {"kind": kind, "metadata": {"name": name, "namespace": "ns", "uid": name, "labels": labels} | metadata}


async def test_a_lock_that_a_member_made_in_its_last_moment_goes_after_it() -> None:
    stage = Stage()
    del stage.store.objects[MEMORY_CLUSTERS.path("ns", "mem")]
    stage.store.put(OWNED["ConfigMap"], part("ConfigMap", "mem-s0-leader"))
    stage.store.put(OWNED["ConfigMap"], part("ConfigMap", "mem-s0-mine"))
    stage.store.put(OWNED["ConfigMap"], part("ConfigMap", "mem-s0-sync", ownerReferences=[{"uid": "other"}]))
    member = stage.store.put(OWNED["Pod"], part("Pod", "mem-s0-0"))
    volume = part("PersistentVolumeClaim", "data-mem-s0-0", deletionTimestamp="2026-01-01T00:00:00Z")
    stage.store.put(OWNED["PersistentVolumeClaim"], volume)
    assert (await stage.run()).result == "waiting"
    del stage.store.objects[OWNED["Pod"].path("ns", member["metadata"]["name"])]
    assert (await stage.run()).result == "waiting"
    assert stage.written() == []
    del stage.store.objects[OWNED["PersistentVolumeClaim"].path("ns", "data-mem-s0-0")]
    assert await stage.run() == Outcome("gone", done=("remove ConfigMap mem-s0-leader",))
    assert stage.written() == [OWNED["ConfigMap"].path("ns", "mem-s0-leader")]
    assert await stage.run() == Outcome("gone")


async def test_the_lock_of_a_cluster_whose_volumes_are_kept_is_kept() -> None:
    stage = Stage()
    del stage.store.objects[MEMORY_CLUSTERS.path("ns", "mem")]
    stage.store.put(OWNED["ConfigMap"], part("ConfigMap", "mem-s0-leader"))
    stage.store.put(OWNED["PersistentVolumeClaim"], part("PersistentVolumeClaim", "data-mem-s0-0"))
    assert await stage.run() == Outcome("gone")
    assert stage.written() == []


async def test_the_conditions_are_counted() -> None:
    stage = Stage()
    await stage.settle()
    text = stage.metrics.render().decode()
    assert 'engram_operator_clusters{condition="ShardsReady",status="False"} 1.0' in text
    del stage.store.objects[MEMORY_CLUSTERS.path("ns", "mem")]
    await stage.run()
    assert "engram_operator_clusters{" not in stage.metrics.render().decode()
