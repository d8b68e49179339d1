"""Pods that injection missed are told and, if asked, made anew; running pods get a newer sidecar and do not notice.

One MemoryCluster of one shard and one member, one tenant, Deployments of a few pods that ask their memory all the time.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from engram_contract import names
from engram_contract.names import ADMIN_PORT, CONTROL_ADMIN_PORT, SIDECAR_CONTAINER
from tests.e2e import load, memory, shards
from tests.e2e.agents import TENANT, fetch_tenant, nudge, patch_tenant, wait_tenant
from tests.e2e.audits import Audit
from tests.e2e.cluster import POLL_S, Cluster, holds
from tests.e2e.releases import IMAGES, NAMESPACE, REGISTRY, TAG, image, install, need_image

Json = dict[str, Any]
ASKER: Final = Path(__file__).parent.with_name("asker.py")
WEB: Final = "web"
ALONE: Final = "alone"
STUBBORN: Final = "stubborn"
NEVER_PUBLISHED: Final = 1_000  # generations that no edit of the tenant comes to
PATIENCE_S: Final = 60.0  # of the app's client
ADMITTED_S: Final = 1.0
TOLD_S: Final = 60.0  # the look at pods comes every 20 s
STEPS_S: Final = 360.0
RENEWED_S: Final = 360.0  # for its configuration a pod goes `fileGraceSeconds` after the change
SILENT_S: Final = 360.0  # three minutes without a report, and some until somebody looks
QUIET_S: Final = 20.0


@pytest.fixture(scope="module")
def home(cluster: Cluster, release: str) -> Iterator[str]:
    """A tenant that can be served, in a namespace for `restricted` pods only."""
    with cluster.namespace("watched") as namespace:
        memory.restrict(cluster, namespace)
        memory.apply(
            cluster,
            memory.build_memory(namespace, **memory.ALONE),
            memory.build_tenant(namespace, TENANT, plan="Enterprise"),
        )
        memory.wait_ready(cluster, namespace)
        wait_tenant(cluster, namespace)
        yield namespace


def template(name: str) -> Json:
    """A pod that asks its memory all the time."""
    container = {
        "name": "app",
        "image": image("sidecar"),  # any image with Python
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", ASKER.read_text(), str(PATIENCE_S)],
        "env": [{"name": names.ENV_URL, "value": f"http://127.0.0.1:{names.HTTP_PORT}"}],
        "securityContext": shards.RESTRICTED,
    }
    spec = {"securityContext": shards.RESTRICTED_POD, "terminationGracePeriodSeconds": 2, "containers": [container]}
    return {"metadata": {"labels": {names.INJECT_LABEL: "true", "app": name}}, "spec": spec}


def deployment(namespace: str, name: str, replicas: int) -> Json:
    spec = {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template(name)}
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}


def budget(namespace: str, name: str, available: int) -> Json:
    spec = {"minAvailable": available, "selector": {"matchLabels": {"app": name}}}
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": metadata, "spec": spec}


def pods(cluster: Cluster, namespace: str, app: str) -> dict[str, Json]:
    """The living pods of an app."""
    found = cluster.request("GET", f"/api/v1/namespaces/{namespace}/pods", labelSelector=f"app={app}")[1]["items"]
    return {each["metadata"]["name"]: each for each in found if "deletionTimestamp" not in each["metadata"]}


def sidecar_image(pod: Json) -> str:
    """The sidecar's image by the pod's spec; empty without a sidecar."""
    containers = pod["spec"].get("initContainers") or ()
    return next((each["image"] for each in containers if each["name"] == SIDECAR_CONTAINER), "")


def scale(cluster: Cluster, component: str, replicas: int) -> None:
    """So many pods of the injector or the operator are there, and ready."""
    name = f"engram-{component}"
    cluster.kubectl("scale", "deployment", "-n", NAMESPACE, name, f"--replicas={replicas}")
    path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{name}"

    def is_so() -> bool:
        selector = f"app.kubernetes.io/component={component}"
        there = cluster.request("GET", f"/api/v1/namespaces/{NAMESPACE}/pods", labelSelector=selector)[1]["items"]
        available = cluster.request("GET", path)[1]["status"].get("availableReplicas", 0)
        return bool(len(there) == available == replicas)

    cluster.wait_until(f"{replicas} of {name}", is_so)


def condition(cluster: Cluster, namespace: str, kind: str, reason: str = "") -> Json:
    """The condition of the tenant, if its reason is this one."""
    found = memory.condition(fetch_tenant(cluster, namespace), kind)
    return found if not reason or found.get("reason") == reason else {}


def wait_condition(cluster: Cluster, namespace: str, kind: str, reason: str, deadline_s: float = TOLD_S) -> Json:
    """The condition once its reason is this one."""
    return cluster.wait_until(reason, lambda: condition(cluster, namespace, kind, reason), deadline_s)


def metric(cluster: Cluster, name: str) -> float:
    """The highest that any of the operator's pods says; they are two, and one leads."""
    selector = "app.kubernetes.io/component=operator"
    found = cluster.request("GET", f"/api/v1/namespaces/{NAMESPACE}/pods", labelSelector=selector)[1]["items"]
    return max(
        (scraped(cluster, NAMESPACE, each["metadata"]["name"], CONTROL_ADMIN_PORT, name) for each in found), default=0.0
    )


def scraped(cluster: Cluster, namespace: str, pod: str, port: int, name: str) -> float:
    """What a pod says of itself; 0 if it says nothing."""
    text = cluster.fetch("GET", f"/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy/metrics")[1]
    found = [float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name + " ")]
    return max(found, default=0.0)


def app_status(pod: Json) -> Json:
    found: Json = next(each for each in pod["status"]["containerStatuses"] if each["name"] == "app")
    return found


def asked(cluster: Cluster, namespace: str, pod: str) -> Json:
    """What the app's client has come to."""
    lines = cluster.kubectl("logs", "-n", namespace, pod, "-c", "app", "--tail=1").splitlines()
    found: Json = json.loads(lines[-1]) if lines else {}
    return found


def fewest_ready(cluster: Cluster, namespace: str, app: str, until: Callable[[], bool]) -> int:
    """The lowest number of ready pods of an app that was seen before something was so."""
    fewest, end_s = len(pods(cluster, namespace, app)), time.monotonic() + STEPS_S
    while not until():
        assert time.monotonic() < end_s, (fetch_tenant(cluster, namespace)["status"], fewest)
        fewest = min(fewest, sum(holds(pod, "Ready") for pod in pods(cluster, namespace, app).values()))
        time.sleep(POLL_S)
    return fewest


# ---------------------------------------------------------------------------------------------------------- pods missed


def admit_while_nobody_injects(cluster: Cluster, namespace: str) -> list[float]:
    """A Deployment's three pods and one of its own are made without a sidecar; the seconds that some more took."""
    scale(cluster, "injector", 0)
    path = f"/api/v1/namespaces/{namespace}/pods"
    lone = template(ALONE)
    lone["metadata"]["name"] = ALONE
    assert cluster.request("POST", path, lone)[0] == 201
    memory.apply(cluster, budget(namespace, WEB, 3), deployment(namespace, WEB, 3))
    took_s = []
    for _ in range(10):
        began_s = time.monotonic()
        status, body = cluster.request(
            "POST", path, {**lone, "metadata": {**lone["metadata"], "name": "x"}}, dryRun="All"
        )
        took_s.append(time.monotonic() - began_s)
        assert (status, sidecar_image(body)) == (201, "")

    def are_ready() -> bool:
        return [holds(pod, "Ready") for pod in pods(cluster, namespace, WEB).values()] == [True] * 3

    cluster.wait_until("three ready pods", are_ready)
    assert {sidecar_image(pod) for pod in pods(cluster, namespace, WEB).values()} == {""}
    return took_s


def has_applied(cluster: Cluster, namespace: str) -> bool:
    status = fetch_tenant(cluster, namespace)["status"]
    published = {name: status["published"][name] for name in ("policy", "credentials", "keys")}
    applied = (status.get("sidecars") or {}).get("applied") or {}
    return bool(
        published | {"epoch": status["mapEpoch"]} == {name: applied.get(name) for name in (*published, "epoch")}
    )


def test_missed_pods_are_told_and_made_anew_within_their_budget(cluster: Cluster, home: str) -> None:
    took_s = admit_while_nobody_injects(cluster, home)
    load.report(f"no injector: {len(took_s)} pods admitted, the slowest in {max(took_s):.3f} s")
    assert max(took_s) < ADMITTED_S
    began_s = time.monotonic()
    before = pods(cluster, home, WEB)
    expected = sorted([ALONE, *before])
    cluster.wait_until(
        "missed pods in the status",
        lambda: sorted(fetch_tenant(cluster, home)["status"].get("missedPods") or ()) == expected,
        TOLD_S,
    )
    load.report(f"told {time.monotonic() - began_s:.1f} s after they were ready")
    assert fetch_tenant(cluster, home)["status"]["sidecars"]["missed"] == 4
    assert condition(cluster, home, "SidecarsInjected")["reason"] == "PodsMissed"
    assert metric(cluster, 'engram_pods{state="missed"}') == 4.0

    ask_for_restarts(cluster, home)
    wait_condition(cluster, home, "SidecarsInjected", "InjectorDown")
    scale(cluster, "injector", 2)

    def is_held() -> bool:
        return "a disruption budget keeps" in condition(cluster, home, "SidecarsInjected").get("message", "")

    cluster.wait_until("the budget to be told", is_held, TOLD_S)
    assert pods(cluster, home, WEB).keys() == before.keys()

    memory.apply(cluster, budget(home, WEB, 2))
    began_s = time.monotonic()

    def is_whole() -> bool:
        found = pods(cluster, home, WEB).values()
        return len(found) == 3 and all(sidecar_image(pod) and holds(pod, "Ready") for pod in found)

    fewest = fewest_ready(cluster, home, WEB, is_whole)
    load.report(f"3 pods made anew in {time.monotonic() - began_s:.0f} s, {fewest} or more ready meanwhile")
    assert fewest >= 2
    cluster.wait_until(
        "the lone pod alone", lambda: fetch_tenant(cluster, home)["status"].get("missedPods") == [ALONE], TOLD_S
    )
    said = condition(cluster, home, "SidecarsInjected")
    assert (said["status"], said["reason"]) == ("False", "PodsMissed")
    assert "it has no controller that would make it anew" in said["message"]
    assert metric(cluster, "engram_sidecar_evictions_total") == 3.0
    cluster.kubectl("delete", "pod", "-n", home, ALONE, "--wait=false")
    wait_condition(cluster, home, "SidecarsInjected", "AllInjected")
    # A sidecar says so every minute, and every minute the operator looks.
    cluster.wait_until("all sidecars to have what is published", lambda: has_applied(cluster, home), 3 * TOLD_S)
    audit = Audit()
    time.sleep(QUIET_S * 2)
    # The shard's size, which the MemoryCluster's status tells, grows by what sidecars report.
    others = [write for write in audit.writes() if not write.is_of_lease and write.resource != "memoryclusters/status"]
    assert [write for write in others if write.namespace == home] == []


def ask_for_restarts(cluster: Cluster, namespace: str) -> None:
    patch_tenant(cluster, namespace, {"spec": {"watchdog": {"restart": True}}})


def test_pods_of_nobody_are_counted_by_namespace_and_told(cluster: Cluster, release: str) -> None:
    with cluster.namespace("nobodys") as namespace:
        memory.restrict(cluster, namespace)
        pod = template(ALONE)
        pod["metadata"]["name"] = ALONE
        assert cluster.request("POST", f"/api/v1/namespaces/{namespace}/pods", pod)[0] == 201
        series = f'engram_unclaimed_pods{{pod_namespace="{namespace}"}}'
        cluster.wait_until("the pod to be counted", lambda: metric(cluster, series) == 1.0, TOLD_S)

        def told() -> list[str]:
            events = cluster.request("GET", f"/apis/events.k8s.io/v1/namespaces/{namespace}/events")[1]["items"]
            return [each["note"] for each in events if each["reason"] == "NoTenant"]

        cluster.wait_until("it to be told", lambda: bool(told()), TOLD_S)  # beside the count, not before it
        (said,) = told()
        assert f"namespace {namespace} has no MemoryTenant" in said
        cluster.kubectl("delete", "pod", "-n", namespace, ALONE, "--wait=false")
        cluster.wait_until("nobody to be counted", lambda: metric(cluster, series) == 0.0, TOLD_S)


# ------------------------------------------------------------------------------------------------- old configurations


def policies(cluster: Cluster, namespace: str, app: str) -> set[float]:
    """Which policies the sidecars of an app have in force."""
    series = 'engram_config_generation{file="policy"}'
    return {scraped(cluster, namespace, pod, ADMIN_PORT, series) for pod in pods(cluster, namespace, app)}


def forge_policy(cluster: Cluster, namespace: str, app: str) -> None:
    """The pods of an app take up a policy that nobody published; the operator, who would undo it at once, is away."""
    path = f"/api/v1/namespaces/{namespace}/configmaps/{names.tenant_objects(TENANT)}"
    scale(cluster, "operator", 0)
    forged = json.loads(cluster.request("GET", path)[1]["data"][names.POLICY_FILE])
    forged["generation"] += NEVER_PUBLISHED
    assert cluster.request("PATCH", path, {"data": {names.POLICY_FILE: json.dumps(forged)}})[0] == 200

    def is_taken() -> bool:
        for pod in pods(cluster, namespace, app):
            nudge(cluster, namespace, pod)
        return policies(cluster, namespace, app) == {forged["generation"]}

    cluster.wait_until("the forged policy in all pods", is_taken, STEPS_S)
    scale(cluster, "operator", 2)


def test_pods_with_a_configuration_that_is_not_published_are_told_and_made_anew_within_their_budget(
    cluster: Cluster, home: str
) -> None:
    ask_for_restarts(cluster, home)
    memory.apply(cluster, budget(home, STUBBORN, 3), deployment(home, STUBBORN, 3))

    def are_ready() -> bool:
        found = pods(cluster, home, STUBBORN).values()
        return len(found) == 3 and all(sidecar_image(pod) and holds(pod, "Ready") for pod in found)

    cluster.wait_until("three ready pods with a sidecar", are_ready, STEPS_S)
    before = pods(cluster, home, STUBBORN)
    forge_policy(cluster, home, STUBBORN)

    def are_told() -> bool:
        return {*before} <= {*(fetch_tenant(cluster, home)["status"].get("oldConfigPods") or ())}

    cluster.wait_until("the pods in the status", are_told, STEPS_S)
    count = fetch_tenant(cluster, home)["status"]["sidecars"]["oldConfig"]
    assert count >= 3
    assert metric(cluster, 'engram_pods{state="old_config"}') == count
    said = condition(cluster, home, "SidecarsCurrent")
    assert said["status"] == "False"
    assert "serve by an old configuration" in said["message"]

    def is_held() -> bool:
        return "a disruption budget keeps" in condition(cluster, home, "SidecarsCurrent").get("message", "")

    cluster.wait_until("the budget to be told", is_held, RENEWED_S)
    assert pods(cluster, home, STUBBORN).keys() == before.keys()
    memory.apply(cluster, budget(home, STUBBORN, 2))
    began_s = time.monotonic()

    def is_cured() -> bool:
        published = fetch_tenant(cluster, home)["status"]["published"]["policy"]
        return (
            not {*before} & {*pods(cluster, home, STUBBORN)}
            and are_ready()
            and (policies(cluster, home, STUBBORN) == {published})
        )

    fewest = fewest_ready(cluster, home, STUBBORN, is_cured)
    load.report(
        f"3 old configurations cured in {time.monotonic() - began_s:.0f} s, {fewest} or more pods ready meanwhile"
    )
    assert fewest >= 2
    wait_condition(cluster, home, "SidecarsCurrent", "AllCurrent", STEPS_S)
    status = fetch_tenant(cluster, home)["status"]
    assert (status.get("oldConfigPods") or [], status["sidecars"]["oldConfig"]) == ([], 0)
    assert metric(cluster, "engram_sidecar_evictions_total") >= 3.0  # the operators are others than before


def test_sidecars_that_cannot_tell_are_silent_and_left_alone(cluster: Cluster, home: str) -> None:
    ask_for_restarts(cluster, home)
    database = fetch_tenant(cluster, home)["status"]["database"]
    memory.apply(cluster, deployment(home, STUBBORN, 3))
    wait_condition(cluster, home, "SidecarsCurrent", "AllCurrent", STEPS_S)
    before = pods(cluster, home, STUBBORN)

    def permit(word: str) -> None:
        memory.sql(cluster, home, "memory-s0-0", f"{word} engram_tenant", database)

    began_s = time.monotonic()
    permit("REVOKE EXECUTE ON FUNCTION engram.report_sidecar FROM")
    try:
        said = wait_condition(cluster, home, "SidecarsCurrent", "Silent", SILENT_S)
        load.report(f"told to be silent {time.monotonic() - began_s:.0f} s after the shard took no more reports")
        assert said["status"] == "Unknown"
        cluster.wait_until(
            "all silent pods",
            lambda: {*before} <= {*(fetch_tenant(cluster, home)["status"].get("silentPods") or ())},
            SILENT_S,
        )
        assert metric(cluster, 'engram_pods{state="silent"}') >= 3
        time.sleep(QUIET_S)  # in which one would go
        assert pods(cluster, home, STUBBORN).keys() == before.keys()
    finally:
        permit("GRANT EXECUTE ON FUNCTION engram.report_sidecar TO")
    wait_condition(cluster, home, "SidecarsCurrent", "AllCurrent", SILENT_S)
    cluster.kubectl("delete", "deployment", "-n", home, STUBBORN)


# -------------------------------------------------------------------------------------------------- upgrades in place


def release_sidecar(cluster: Cluster, part: str) -> str:
    """The release has another image of the sidecar; its name."""
    install(cluster, images=IMAGES | {"sidecar": {"repository": f"{REGISTRY}/engram-{part}", "tag": TAG}})
    return image(part)


def wait_images(cluster: Cluster, namespace: str, app: str, count: int, wanted: str) -> int:
    """The fewest pods that were ready until all were, with this image of the sidecar, and the tenant says so."""

    def is_done() -> bool:
        found = pods(cluster, namespace, app).values()
        are_so = [sidecar_image(pod) == wanted and holds(pod, "Ready") for pod in found] == [True] * count
        return are_so and bool(condition(cluster, namespace, "SidecarsCurrent", "AllCurrent"))

    return fewest_ready(cluster, namespace, app, is_done)


@pytest.mark.parametrize("count", [3, pytest.param(8, marks=pytest.mark.soak)])
def test_running_pods_get_a_newer_sidecar_and_no_request_fails(cluster: Cluster, home: str, count: int) -> None:
    need_image("sidecar-next")
    app = f"crew-{count}"
    patch_tenant(cluster, home, {"spec": {"sidecar": {"upgrade": "InPlace"}}})
    release_sidecar(cluster, "sidecar")
    memory.apply(cluster, deployment(home, app, count))
    wait_images(cluster, home, app, count, image("sidecar"))
    before = pods(cluster, home, app)

    newer = release_sidecar(cluster, "sidecar-next")
    began_s = time.monotonic()
    fewest = wait_images(cluster, home, app, count, newer)
    took_s = time.monotonic() - began_s
    after = pods(cluster, home, app)
    told = [asked(cluster, home, pod) for pod in after]
    load.report(
        f"{count} pods upgraded in place in {took_s:.0f} s, {fewest} or more ready; requests:"
        f" {sum(each['answered'] for each in told)} answered, {sum(each['repeated'] for each in told)} tried again,"
        f" {sum(each['failed'] for each in told)} failed, slowest {max(each['slowest_ms'] for each in told)} ms"
    )
    assert {name: pod["metadata"]["uid"] for name, pod in after.items()} == {
        name: pod["metadata"]["uid"] for name, pod in before.items()
    }
    assert {app_status(pod)["restartCount"] for pod in after.values()} == {0}
    assert {name: app_status(pod)["containerID"] for name, pod in after.items()} == {
        name: app_status(pod)["containerID"] for name, pod in before.items()
    }
    assert fewest >= count - 1
    assert [each["refusals"] for each in told] == [[]] * count
    assert any(each["repeated"] for each in told)


def test_an_image_that_does_not_start_stops_at_one_pod_and_a_better_one_heals(cluster: Cluster, home: str) -> None:
    app = "crew-3"
    need_image("sidecar-next")
    patch_tenant(cluster, home, {"spec": {"sidecar": {"upgrade": "InPlace"}}})
    good = release_sidecar(cluster, "sidecar-next")
    memory.apply(cluster, deployment(home, app, 3), deployment(home, WEB, 3))
    for each in (app, WEB):
        wait_images(cluster, home, each, 3, good)
    everybody = {**pods(cluster, home, app), **pods(cluster, home, WEB)}
    bad = release_sidecar(cluster, "sidecar-nowhere")
    said = wait_condition(cluster, home, "SidecarsCurrent", "UpgradeStuck", STEPS_S)
    load.report(f"no such image: {said['message'][:200]}")
    time.sleep(QUIET_S)  # in which a second pod would go

    def images() -> list[str]:
        return [sidecar_image(pod) for each in (app, WEB) for pod in pods(cluster, home, each).values()]

    assert sorted(set(images())) == sorted({good, bad})
    assert images().count(bad) == 1
    (stuck,) = [
        name for each in (app, WEB) for name, pod in pods(cluster, home, each).items() if sidecar_image(pod) == bad
    ]
    assert stuck in said["message"]
    began_s = time.monotonic()
    release_sidecar(cluster, "sidecar-next")
    for each in (app, WEB):
        wait_images(cluster, home, each, 3, good)
    load.report(f"healed {time.monotonic() - began_s:.0f} s after the better image, the release's own roll included")
    now = {**pods(cluster, home, app), **pods(cluster, home, WEB)}
    assert {pod["metadata"]["uid"] for pod in now.values()} == {pod["metadata"]["uid"] for pod in everybody.values()}
    assert {app_status(pod)["restartCount"] for pod in now.values()} == {0}
