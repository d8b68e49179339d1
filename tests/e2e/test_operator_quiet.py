"""A cluster that is as it should be: not one write; what somebody spoils is back within seconds, and nothing else."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pytest

from tests.e2e import memory
from tests.e2e.audits import Audit, history
from tests.e2e.cluster import POLL_S, Cluster
from tests.e2e.judges import differences, live_objects, snapshot
from tests.e2e.operators import Operator, Operators, tell

IDLE_S: Final = 45.0
LONG_IDLE_S: Final = 600.0
REPAIR_S: Final = 5.0
QUIET_S: Final = 6.0  # twice the pause after which an operator that waits for something looks again
CONFIG: Final = "memory-s0-patroni"
SERVICE: Final = "memory-s0-ro"
Json = dict[str, Any]


@dataclass
class Home:
    """A cluster that is Ready and the operator that keeps it."""

    operators: Operators
    namespace: str
    operator: Operator

    @property
    def cluster(self) -> Cluster:
        """The Kubernetes below."""
        return self.operators.cluster

    def restart(self) -> None:
        """Another operator leads, which knows nothing yet."""
        self.operator.kill()
        self.operator = self.operators.lead()
        self.operator.wait_reconciled()

    def path(self, plural: str, name: str, api: str = "/api/v1") -> str:
        """Where an object is."""
        return f"{api}/namespaces/{self.namespace}/{plural}/{name}"

    def settle(self, audit: Audit) -> None:
        """Ready, as the builders have it, and quiet."""
        memory.wait_ready(self.cluster, self.namespace)
        self.cluster.wait_until("no differences", lambda: not differences(self.operators, self.namespace))
        end_s = time.monotonic() + 60
        while True:
            audit.mark()
            time.sleep(QUIET_S)
            written = audit.writes()
            if not written:
                return
            assert time.monotonic() < end_s, written


@pytest.fixture(scope="module")
def home(operators: Operators) -> Iterator[Home]:
    """One shard with one member, Ready."""
    with operators.cluster.namespace("quiet") as namespace:
        operator = operators.lead()
        memory.apply(operators.cluster, memory.build_memory(namespace, **memory.ALONE))
        memory.wait_ready(operators.cluster, namespace)
        yield Home(operators, namespace, operator)
        operators.kill_all()


def seconds_until(what: str, is_so: Callable[[], object]) -> float:
    began_s = time.monotonic()
    while not is_so():
        assert time.monotonic() - began_s < 60, f"waited 60 s for {what}"
        time.sleep(POLL_S / 4)
    return time.monotonic() - began_s


def test_kubectl_wait_for_ready_is_exact(home: Home) -> None:
    with history(home.cluster, home.namespace) as seen:
        for number in range(3):
            memory.patch(home.cluster, home.namespace, {"postgres": {"parameters": {"work_mem": f"{5 + number}MB"}}})
            wait = ("wait", "--for=condition=Ready", "memorycluster/memory", "-n", home.namespace, "--timeout=120s")
            home.cluster.kubectl(*wait)
            assert differences(home.operators, home.namespace) == []
        assert seen.stale_writes() == []
        assert max(each.generation for each in seen.moments) >= 3
        tell(f"{len(seen.moments)} versions of the object, none of them wrongly Ready")


def test_what_is_settled_is_left_alone(home: Home) -> None:
    be_quiet(home, IDLE_S)


@pytest.mark.soak
def test_what_is_settled_is_left_alone_for_ten_minutes(home: Home) -> None:
    be_quiet(home, LONG_IDLE_S)


def be_quiet(home: Home, idle_s: float) -> None:
    audit = Audit()
    home.settle(audit)
    before = snapshot(home.cluster, home.namespace)
    audit.mark()
    for number in range(5):
        if number % 2:
            home.restart()
        else:
            label = {"metadata": {"labels": {"example.com/touched": str(number)}}}
            assert home.cluster.request("PATCH", home.path("services", SERVICE), label)[0] == 200
            time.sleep(2)
    home.cluster.request(
        "PATCH", home.path("services", SERVICE), {"metadata": {"labels": {"example.com/touched": None}}}
    )
    time.sleep(idle_s)
    told = [(each.verb, each.resource, each.name, each.body.get("status")) for each in audit.writes()]
    tell(f"{len(told)} writes in 5 resyncs and {idle_s} s; {len(audit.all_writes())} of the Lease")
    assert told == []
    assert snapshot(home.cluster, home.namespace) == before


def test_what_somebody_spoils_is_repaired_within_seconds(home: Home) -> None:
    audit = Audit()
    home.settle(audit)
    took: dict[str, float] = {}
    service, config = home.path("services", SERVICE), home.path("configmaps", CONFIG)
    scale = home.path("statefulsets", "memory-s0", "/apis/apps/v1") + "/scale"

    def fixed() -> bool:
        return not differences(home.operators, home.namespace)

    foreign = {"metadata": {"labels": {"example.com/team": "search"}, "annotations": {"example.com/note": "ours"}}}
    assert home.cluster.request("PATCH", service, foreign)[0] == 200
    assert home.cluster.request(
        "PATCH",
        service,
        {
            "spec": {"ports": None},
            "metadata": {"labels": {"engram.dev/cluster": "memory", "app.kubernetes.io/name": "spoiled"}},
        },
    )[0] in {200, 422}
    took["label of ours"] = seconds_until("the label", fixed)
    kept = home.cluster.request("GET", service)[1]["metadata"]
    assert (kept["labels"]["example.com/team"], kept["annotations"]["example.com/note"]) == ("search", "ours")
    assert home.cluster.request("DELETE", service)[0] == 200
    took["deleted Service"] = seconds_until("the Service", fixed)
    assert home.cluster.request("PATCH", config, {"data": {"10-patroni.yml": "spoiled", "foreign": "kept"}})[0] == 200
    took["ConfigMap"] = seconds_until("the ConfigMap", fixed)
    assert home.cluster.request("PATCH", scale, {"spec": {"replicas": 0}})[0] == 200
    took["scaled StatefulSet"] = seconds_until("the size", fixed)
    tell(json.dumps({name: round(each, 2) for name, each in took.items()}))
    assert max(took.values()) < REPAIR_S
    memory.wait_ready(home.cluster, home.namespace)


def test_what_somebody_adds_to_a_selector_or_a_binding_goes_again(home: Home) -> None:
    """It would cut off the shard, open it, or give others Patroni's rights."""
    more, here = {"foo": "bar"}, f"namespaces/{home.namespace}"
    binding = f"/apis/rbac.authorization.k8s.io/v1/{here}/rolebindings/memory-shards"
    subjects = home.cluster.request("GET", binding)[1]["subjects"]
    stranger = {"kind": "ServiceAccount", "name": "default", "namespace": home.namespace}
    added: dict[str, Json] = {
        home.path("services", SERVICE): {"spec": {"selector": more}},
        f"/apis/policy/v1/{here}/poddisruptionbudgets/memory-s0": {"spec": {"selector": {"matchLabels": more}}},
        f"/apis/networking.k8s.io/v1/{here}/networkpolicies/memory-shards": {
            "spec": {"podSelector": {"matchLabels": more}}
        },
        binding: {"subjects": [*subjects, stranger]},
    }
    for path, body in added.items():
        assert home.cluster.request("PATCH", path, body)[0] == 200
    home.cluster.wait_until("all of it to go", lambda: not differences(home.operators, home.namespace), REPAIR_S)
    assert home.cluster.request("GET", binding)[1]["subjects"] == subjects
    assert all("bar" not in json.dumps(home.cluster.request("GET", path)[1]["spec"]) for path in list(added)[:3])


def test_paused_writes_the_status_alone_and_goes_on_exactly(home: Home) -> None:
    audit = Audit()
    home.settle(audit)
    memory.patch(home.cluster, home.namespace, {"paused": True})
    home.cluster.wait_until("Paused", lambda: memory.fetch(home.cluster, home.namespace)["status"]["phase"] == "Paused")
    audit.mark()
    before = snapshot(home.cluster, home.namespace)
    memory.patch(home.cluster, home.namespace, {"postgres": {"parameters": {"work_mem": "9MB"}}})
    home.cluster.request("DELETE", home.path("services", SERVICE))
    home.restart()
    told = home.cluster.wait_until("the plan", lambda: memory.fetch(home.cluster, home.namespace)["status"].get("plan"))
    time.sleep(QUIET_S)
    writes = {(each.verb, each.resource) for each in audit.writes()}
    tell(f"paused: {writes}; plan {told}")
    assert writes == {("patch", "memoryclusters/status")}
    assert live_objects(home.cluster, home.namespace).keys() == before.keys() - {("Service", SERVICE)}
    assert any(SERVICE in line for line in told)
    audit.mark()
    memory.patch(home.cluster, home.namespace, {"paused": False})
    memory.wait_ready(home.cluster, home.namespace)
    assert differences(home.operators, home.namespace) == []
    resumed = sorted({each.name for each in audit.writes() if each.resource != "memoryclusters/status"})
    tell(f"resumed: {resumed}")
    assert set(resumed) <= {SERVICE, "memory-s0-config", CONFIG, ""}


def test_a_plan_that_is_only_shown_makes_nothing(home: Home) -> None:
    audit = Audit()
    cluster = home.cluster
    with cluster.namespace("shown") as namespace:
        memory.apply(cluster, memory.build_memory(namespace, planOnly=True, **memory.NOWHERE))
        told = cluster.wait_until("the plan", lambda: memory.fetch(cluster, namespace).get("status", {}).get("plan"))
        time.sleep(3)
        writes = {(each.verb, each.resource) for each in audit.writes() if each.namespace == namespace}
        assert writes == {("patch", "memoryclusters/status")}
        assert live_objects(cluster, namespace) == {}
        assert "PlanOnly" in cluster.kubectl("get", "memorycluster", "-n", namespace)
        shown = cluster.kubectl("get", "memorycluster", "memory", "-n", namespace, "-o", "jsonpath={.status.plan[*]}")
        tell(f"{len(told)} lines of plan")
        assert "StatefulSet memory-s0" in shown
        memory.patch(cluster, namespace, {"planOnly": False})
        cluster.wait_until("the objects", lambda: not differences(home.operators, namespace))
        made = {name for _, name in live_objects(cluster, namespace)}
        assert all(
            any(name in line for line in told) for name in made - {"memory-ca", "memory-tls", "memory-credentials"}
        )


TAKEN: Final[tuple[tuple[str, str, Json], ...]] = (  # in the order in which they stand in the way
    ("secrets", "memory-credentials", {"stringData": {"superuser": "theirs"}}),
    ("secrets", "memory-ca", {"stringData": {"ca.crt": "theirs"}}),
    ("configmaps", "memory-s0-patroni", {"data": {"theirs": "yes"}}),
    ("services", "memory-s0-rw", {"spec": {"ports": [{"port": 1}]}}),
)


def test_what_is_somebody_elses_is_named_and_not_touched(home: Home) -> None:
    cluster = home.cluster
    with cluster.namespace("taken") as namespace:
        folder = f"/api/v1/namespaces/{namespace}"
        theirs: dict[str, Json] = {}
        for kind, name, body in TAKEN:
            status, theirs[name] = cluster.request("POST", f"{folder}/{kind}", {"metadata": {"name": name}, **body})
            assert status == 201, theirs[name]
        memory.apply(cluster, memory.build_memory(namespace, **memory.NOWHERE))

        def told() -> str:
            found = memory.condition(memory.fetch(cluster, namespace), "Degraded")
            return str(found.get("message", "")) if found.get("status") == "True" else ""

        for kind, name, _ in TAKEN:
            cluster.wait_until(f"{name} in the condition", lambda name=name: name in told(), 30)  # type: ignore[misc]
            assert "does not belong to memory" in told()
            path = f"{folder}/{kind}/{name}"
            now = cluster.request("GET", path)[1]
            assert now["metadata"]["resourceVersion"] == theirs[name]["metadata"]["resourceVersion"]
            assert cluster.request("DELETE", path)[0] == 200
        took_s = seconds_until("it to go on", lambda: not differences(home.operators, namespace))
        tell(f"went on {took_s:.1f} s after the last was gone")
