"""A world for plans: what API server, StatefulSet controller, kubelet and Patroni make of an operator's steps.

As simple as the plan's own view of them: pods start or stick, Patroni elects, copies and switches over, one step of
time after another. Every write of the plan is judged while it is done.
"""

import copy
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from engram_contract.names import CLUSTER_LABEL, SCOPE_LABEL, SHARD_LABEL
from engram_contract.spec import ClusterSpec
from engram_operator.manifests.credentials import PLACEHOLDER
from engram_operator.manifests.meta import digest_of
from engram_operator.manifests.patroni import SETTINGS
from engram_operator.manifests.site import Site
from engram_operator.plan.cluster import plan_cluster
from engram_operator.plan.observed import Database, Loaded, Observed, Silence, TenantSeen
from engram_operator.plan.report import Round, build_status
from engram_operator.plan.roles import marks_of
from engram_operator.plan.steps import (
    Apply,
    Note,
    PrepareShard,
    ReloadFiles,
    Remove,
    RestartPod,
    RestartPostgres,
    Step,
    Switchover,
    TurnRoles,
    Wait,
)

Json = dict[str, Any]
NAMESPACE, CLUSTER = "ns", "mem"
SITE = Site("engram-system", (("app", "operator"),), "engram-postgres:1", "redis:8")
BAD_IMAGE = "broken:1"
START_ROUNDS = 2  # a pod is ready so many rounds after it was made
MOMENT = "2026-01-01T00:00:00Z"


def spec_of(**spec: object) -> ClusterSpec:
    """A cluster without TLS and cache: certificates and Redis have no part here."""
    whole = {"postgres": {"tls": {"enabled": False}}, "cache": {"provider": "None"}, "replicas": 1} | spec
    metadata = {"name": CLUSTER, "namespace": NAMESPACE}
    return ClusterSpec.from_resource(
        {"apiVersion": "engram.dev/v1alpha1", "kind": "MemoryCluster", "metadata": metadata, "spec": whole}
    )


@dataclass
class World:
    """Everything outside the operator. `judged` are the steps that were taken, for a test to look at."""

    now_s: float = 1_767_225_600.0
    objects: dict[tuple[str, str], Json] = field(default_factory=dict)
    databases: dict[str, Database] = field(default_factory=dict)
    tenants: tuple[TenantSeen, ...] = ()
    expandable: bool = True
    status: Json = field(default_factory=dict)
    generation: int = 1
    annotations: dict[str, str] = field(default_factory=dict)
    site: Site = SITE
    taken: list[Step] = field(default_factory=list)
    _made: int = 0

    def observe(self) -> Observed:
        """What the shell would have read."""
        metadata = {"name": CLUSTER, "namespace": NAMESPACE, "uid": "u", "generation": self.generation}
        shards = {each["metadata"]["labels"][SHARD_LABEL] for each in self._of("StatefulSet")}
        silent: dict[str, Database | Silence] = {shard: Silence("it has no primary") for shard in shards}
        asked = {shard: told for shard, told in self.databases.items() if self._primary(shard)}
        return Observed(
            resource={"metadata": metadata | {"annotations": self.annotations}, "status": copy.deepcopy(self.status)},
            objects=copy.deepcopy(self.objects),
            databases=silent | asked,
            namespace=copy.deepcopy(self.objects.get(("Namespace", NAMESPACE), {"metadata": {"name": NAMESPACE}})),
            has_protected_sibling=False,
            expandable={"": self.expandable},
            credentials=PLACEHOLDER,
            certificates=None,
            tenants=self.tenants,
            now_s=self.now_s,
            loaded={each["metadata"]["name"]: self._loaded(each) for each in self._of("Pod")},
        )

    def round(self, spec: ClusterSpec) -> Round:
        """One reconcile and two seconds of the world; what it came to."""
        seen = self.observe()
        plan = plan_cluster(spec, seen, self.site)
        done: list[Step] = []
        waits: list[tuple[str, Wait]] = []
        notes: list[tuple[str, Note]] = []
        for track in plan.tracks:
            for step in track.steps:
                if isinstance(step, Wait):
                    waits.append((track.name, step))
                    break
                if isinstance(step, Note):
                    notes.append((track.name, step))
                    continue
                self._act(step)
                done.append(step)
        ended = Round(tuple(done), tuple(waits), tuple(notes))
        self.status = build_status(spec, seen, plan, ended)
        self.taken += done
        self.live(2.0)
        return ended

    def settle(self, spec: ClusterSpec, rounds: int = 80) -> Round:
        """The last round, once nothing is done and nothing moves any more."""
        ended = self.round(spec)
        for _ in range(rounds):
            if not ended.done and all(wait.is_fault for _, wait in ended.waits):
                return ended
            ended = self.round(spec)
        raise AssertionError(f"not settled: {ended}")

    # -- what the cluster does ------------------------------------------------------------------------------------

    def live(self, seconds: float) -> None:
        """Time goes on: pods are made and get ready, Patroni elects and switches over."""
        self.now_s += seconds
        for live in self._of("StatefulSet"):
            self._control(live)
        for pod in self._of("Pod"):
            self._start(pod)
        for live in self._of("StatefulSet"):
            self._elect(live["metadata"]["name"])

    def kill_primary(self, shard: str = "s0") -> None:
        """The primary's pod is gone."""
        primary = self._primary(shard)
        if primary is not None:
            del self.objects["Pod", primary["metadata"]["name"]]

    def _control(self, live: Json) -> None:
        name, spec = live["metadata"]["name"], live["spec"]
        live["metadata"]["generation"] = self._generation(live)
        live["status"] = {
            "observedGeneration": live["metadata"]["generation"],
            "updateRevision": digest_of(spec["template"]),
        }
        for index in range(spec["replicas"]):
            if ("Pod", f"{name}-{index}") not in self.objects:
                self._make_pod(live, f"{name}-{index}")
        for pod in self._of("Pod"):
            ordinal = int(pod["metadata"]["name"].rpartition("-")[2])
            if pod["metadata"]["labels"][SCOPE_LABEL] == name and ordinal >= spec["replicas"]:
                del self.objects["Pod", pod["metadata"]["name"]]

    def _generation(self, live: Json) -> int:
        mark = digest_of(live["spec"])
        if live.get("mark") != mark:
            live["mark"] = mark
            live["generation"] = live.get("generation", 0) + 1
        return int(live["generation"])

    def _make_pod(self, live: Json, name: str) -> None:
        self._made += 1
        template = live["spec"]["template"]
        labels = dict(template["metadata"]["labels"]) | {"controller-revision-hash": digest_of(template)}
        self.objects["Pod", name] = {
            "kind": "Pod",
            "image": template["spec"]["containers"][0]["image"],
            "age": 0,
            "metadata": {"name": name, "uid": f"uid-{self._made}", "labels": labels, "creationTimestamp": MOMENT},
            "status": {"podIP": "10.0.0.1", "conditions": [_ready(self.now_s, is_ready=False)]},
        }
        self._claim(live, name)

    def _claim(self, live: Json, pod: str) -> None:
        template = copy.deepcopy(live["spec"]["volumeClaimTemplates"][0])
        name = f"data-{pod}"
        if ("PersistentVolumeClaim", name) not in self.objects:
            template["kind"] = "PersistentVolumeClaim"
            template["metadata"] |= {"name": name, "namespace": NAMESPACE, "uid": f"claim-{name}"}
            template["metadata"]["labels"] = dict(live["metadata"]["labels"])
            self.objects["PersistentVolumeClaim", name] = template

    def _start(self, pod: Json) -> None:
        if pod["image"] == BAD_IMAGE:
            waiting = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
            pod["status"]["containerStatuses"] = [{"name": "postgres", **waiting}]
            return
        pod["age"] += 1
        if pod["age"] >= START_ROUNDS and pod["status"]["conditions"][0]["status"] == "False":
            pod["status"]["conditions"] = [_ready(self.now_s, is_ready=True)]

    def _elect(self, scope: str) -> None:
        running = [each for each in self._of("Pod") if _is_running(each, scope)]
        names = [each["metadata"]["name"] for each in running]
        leader = self.objects.setdefault(("ConfigMap", f"{scope}-leader"), _config_map(scope, "leader"))
        asked = self.objects.get(("ConfigMap", f"{scope}-failover"))
        notes = leader["metadata"]["annotations"]
        if asked and (target := asked["metadata"]["annotations"].pop("member", None)) in names:
            asked["metadata"]["annotations"].clear()
            notes["leader"] = target
        if notes.get("leader") not in names:
            notes["leader"] = names[0] if names else ""
        notes["optime"] = "1000"
        config = self.objects.get(("ConfigMap", f"{scope}-config"), _config_map(scope, "config"))
        shared = json.loads(config["metadata"]["annotations"].get("config", "{}"))
        for pod in running:
            if shared and "deaf" not in pod:
                pod["read"] = shared["postgresql"]["parameters"][SETTINGS]
            is_leader = pod["metadata"]["name"] == notes["leader"]
            said = {"role": "primary" if is_leader else "sync_standby", "state": "running", "xlog_location": 1000}
            pod["metadata"]["annotations"] = {"status": json.dumps(said | pod.get("pending", {}))}
        if notes["leader"]:
            self.databases.setdefault(leader["metadata"]["labels"][SHARD_LABEL], _database(is_current=False))

    # -- what the operator does -----------------------------------------------------------------------------------

    def _act(self, step: Step) -> None:
        match step:
            case Apply(manifest):
                self._apply(manifest)
            case Remove(manifest):
                del self.objects[manifest["kind"], manifest["metadata"]["name"]]
                self._collect(manifest)
            case RestartPod(name):
                self._judge_restart(name)
                del self.objects["Pod", name]
            case RestartPostgres(name):
                self.objects["Pod", name].pop("pending", None)
            case ReloadFiles(shard):
                for pod in self.pods(shard):
                    self.objects["Pod", pod].pop("deaf", None)
            case Switchover(scope, _, candidate):
                request = self.objects.setdefault(("ConfigMap", f"{scope}-failover"), _config_map(scope, "failover"))
                request["metadata"]["annotations"] = {"member": candidate}
            case PrepareShard(shard):
                self.databases[shard] = _database(is_current=True)
            case TurnRoles(shard):
                self.databases[shard] = _database(is_current=True, marks=marks_of(PLACEHOLDER))
            case _:
                raise AssertionError(f"nobody expects {step}")

    def _collect(self, removed: Json) -> None:
        """What goes with its StatefulSet."""
        if removed["kind"] == "StatefulSet":
            scope = removed["metadata"]["name"]
            for pod in [each for each in self._of("Pod") if each["metadata"]["labels"][SCOPE_LABEL] == scope]:
                del self.objects["Pod", pod["metadata"]["name"]]

    def _apply(self, manifest: Json) -> None:
        key = manifest["kind"], manifest["metadata"]["name"]
        before = self.objects.get(key, {})
        after = copy.deepcopy(manifest)
        if key[0] == "StatefulSet" and before:
            self._judge_size(before, after)
            assert after["spec"]["volumeClaimTemplates"] == before["spec"]["volumeClaimTemplates"], "422"
        if key[0] == "PersistentVolumeClaim":
            before["spec"]["resources"]["requests"] |= after["spec"]["resources"]["requests"]
            before["metadata"].setdefault("labels", {}).update(after["metadata"].get("labels", {}))
            before["metadata"].setdefault("annotations", {}).update(after["metadata"].get("annotations", {}))
            return
        kept = {name: before[name] for name in ("status", "mark", "generation") if name in before}
        notes = before.get("metadata", {}).get("annotations", {}) | after["metadata"].get("annotations", {})
        after["metadata"]["annotations"] = notes
        self.objects[key] = after | kept

    def _judge_restart(self, name: str) -> None:
        """A pod is restarted only if every other member serves, or if it could not start anyway."""
        pod = self.objects["Pod", name]
        scope = pod["metadata"]["labels"][SCOPE_LABEL]
        others = [
            each for each in self._of("Pod") if each["metadata"]["labels"][SCOPE_LABEL] == scope and each is not pod
        ]
        if pod["image"] == BAD_IMAGE:
            return
        assert all(_is_running(each, scope) for each in others), f"{name} restarted beside a sick member"
        leads = self.objects["ConfigMap", f"{scope}-leader"]["metadata"]["annotations"]["leader"] == name
        assert not (leads and others), f"{name} leads and has replicas: it should have switched over"

    def _judge_size(self, before: Json, after: Json) -> None:
        have, want = before["spec"]["replicas"], after["spec"]["replicas"]
        scope = before["metadata"]["name"]
        if want < have:
            assert want == have - 1, "more than one member at a time"
            rest = [f"{scope}-{index}" for index in range(want)]
            assert all(_is_running(self.objects["Pod", name], scope) for name in rest), "the rest is not healthy"
            leader = self.objects["ConfigMap", f"{scope}-leader"]["metadata"]["annotations"]["leader"]
            assert leader in rest, "the primary was to go"

    def _loaded(self, pod: Json) -> Loaded:
        """Patroni reads what is new two seconds later, but Postgres knows of a restart before Patroni tells of it."""
        return Loaded(pod.get("read", ""), "pending" in pod, tuple(pod.get("refused", ())))

    # -- looking ---------------------------------------------------------------------------------------------------

    def _of(self, kind: str) -> list[Json]:
        return [each for key, each in sorted(self.objects.items()) if key[0] == kind]

    def _primary(self, shard: str) -> Json | None:
        scope = f"{CLUSTER}-{shard}"
        leader = self.objects.get(("ConfigMap", f"{scope}-leader"), {"metadata": {"annotations": {}}})
        pod = self.objects.get(("Pod", leader["metadata"]["annotations"].get("leader", "")))
        return pod if pod is not None and _is_running(pod, scope) else None

    def pods(self, shard: str = "s0") -> list[str]:
        """The names of a shard's pods."""
        return [e["metadata"]["name"] for e in self._of("Pod") if e["metadata"]["labels"][SHARD_LABEL] == shard]


def _ready(now_s: float, *, is_ready: bool) -> Json:
    moment = datetime.fromtimestamp(now_s, UTC).isoformat()
    return {"type": "Ready", "status": str(is_ready), "lastTransitionTime": moment}


def _is_running(pod: Json, scope: str) -> bool:
    is_ready: bool = pod["status"]["conditions"][0]["status"] == "True"
    return is_ready and pod["metadata"]["labels"][SCOPE_LABEL] == scope


def _config_map(scope: str, part: str) -> Json:
    labels = {CLUSTER_LABEL: CLUSTER, SCOPE_LABEL: scope, SHARD_LABEL: scope.rpartition("-")[2]}
    metadata = {"name": f"{scope}-{part}", "namespace": NAMESPACE, "labels": labels, "annotations": {}}
    return {"kind": "ConfigMap", "apiVersion": "v1", "metadata": metadata}


def _database(*, is_current: bool, marks: dict[str, str] | None = None) -> Database:
    return Database(
        "18.6", "0001_pre_initial", is_current, has_vector=True, size_bytes=1, owned_slots=0, marks=marks or {}
    )
