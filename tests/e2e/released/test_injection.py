"""Agents' pods and the injector, on a cluster: who gets a sidecar, what it can do at once, and what it never harms."""

import base64
import http
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from engram_contract.names import (
    AGENT_LABEL,
    ENV_CERTIFICATE_S,
    ENV_CONFIG_DIR,
    ENV_URL,
    HTTP_PORT_ANNOTATION,
    INJECT_LABEL,
    INJECTED_LABEL,
    SIDECAR_CONTAINER,
)
from engram_operator.clients import x509
from tests.e2e import injectors, load, memory, shards
from tests.e2e.agents import TENANT, wait_tenant
from tests.e2e.cluster import Cluster
from tests.e2e.releases import NAMESPACE, RELEASE, image

Json = dict[str, Any]
OPERATORS: Final = 2
ADMITTED_S: Final = 1.0
# Stores one memory and reads it back, at once and without a second try: whoever starts after the sidecar may do that.
STORE_AND_READ: Final = """
import json, os, urllib.request
url = os.environ['ENGRAM_URL'] + '/v1/memories'
body = json.dumps({'content': 'hello', 'user': 'ann'}).encode()
ask = urllib.request.Request(url, body, {'Content-Type': 'application/json'})
made = json.load(urllib.request.urlopen(ask, timeout=10))
read = json.load(urllib.request.urlopen(url + '/' + made['id'], timeout=10))
print('read', read['content'], flush=True)
"""
# Asks its memory fifty times a second and never twice, also while it ends; leaves what it saw in that very memory.
BUSY: Final = """
import http.client, json, os, signal, time
from urllib.parse import urlsplit
url, name, over, failed, answered = urlsplit(os.environ['ENGRAM_URL']), os.environ['HOSTNAME'], [], [], 0
signal.signal(signal.SIGTERM, lambda *_: over.append(time.monotonic()))
connection = http.client.HTTPConnection(url.hostname, url.port, timeout=10)
def ask(method, key, content=None):
    body = None if content is None else json.dumps({'content': content})
    place = '/v1/items?namespace=busy&key=' + key
    connection.request(method, place, body, {'Content-Type': 'application/json'} if body else {})
    answer = connection.getresponse()
    answer.read()
    return answer.status
ask('PUT', 'one', 'x')
while not over or time.monotonic() - over[0] < 2:
    try:
        status = ask('GET', 'one') if answered % 10 else ask('PUT', 'one', 'x')
    except (OSError, http.client.HTTPException) as error:
        status = repr(error)
        connection.close()
    answered += 1
    if status not in (200, 201):
        failed.append(status)
    time.sleep(0.02)
ask('PUT', name, json.dumps({'answered': answered, 'failed': failed}))
"""
READ_ALL: Final = """
import json, os, urllib.request
url = os.environ['ENGRAM_URL'] + '/v1/memories?namespace=busy&limit=1000'
found = json.load(urllib.request.urlopen(url, timeout=10))['memories']
print(json.dumps({each['key']: json.loads(each['content']) for each in found if each['key'] != 'one'}))
"""
FOR_EVER: Final = "import time; time.sleep(3600)"
# All that a process of the app's container can see of the sidecar beside it.
SPY: Final = """
import glob, json, os
seen = {'folder': os.path.exists('/etc/engram'), 'env': sorted(n for n in os.environ if n.startswith('ENGRAM_'))}
seen['processes'] = sorted(int(each) for each in os.listdir('/proc') if each.isdigit())
seen['files'] = glob.glob('/proc/[0-9]*/root/etc/engram/*')
print(json.dumps(seen))
"""


def build_container(script: str, name: str = "app") -> Json:
    """A container that runs a few lines of Python."""
    return {
        "name": name,
        "image": image("sidecar"),  # any image with Python
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", script],
        "securityContext": shards.RESTRICTED,
    }


def build_pod(name: str, script: str, *, labels: Json | None = None, **spec: object) -> Json:
    """A pod as an agent's author writes it, with the label that asks unless others are given."""
    metadata: Json = {"name": name, "labels": {INJECT_LABEL: "true"} if labels is None else labels}
    whole = {
        "securityContext": shards.RESTRICTED_POD,
        "terminationGracePeriodSeconds": 5,
        "restartPolicy": "Never",
        "containers": [build_container(script)],
        **spec,
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": whole}


def build_deployment(name: str, labels: Json) -> Json:
    """An agent that stores and reads when it starts, and stays."""
    pod = build_pod(name, STORE_AND_READ + FOR_EVER, labels=labels | {"app": name}, restartPolicy="Always")
    template = {"metadata": {"labels": pod["metadata"]["labels"]}, "spec": pod["spec"]}
    spec = {"replicas": 1, "selector": {"matchLabels": {"app": name}}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}


def create(cluster: Cluster, namespace: str, manifest: Json, plural: str = "pods", **query: str) -> Json:
    """The object as it was made."""
    api = "api/v1" if manifest["apiVersion"] == "v1" else f"apis/{manifest['apiVersion']}"
    status, made = cluster.request("POST", f"/{api}/namespaces/{namespace}/{plural}", manifest, **query)
    assert status == http.HTTPStatus.CREATED, made
    return made


def sidecars(pod: Json) -> int:
    """How many it has."""
    return sum(each["name"] == SIDECAR_CONTAINER for each in pod["spec"].get("initContainers") or ())


def wait_ended(cluster: Cluster, namespace: str, *names: str) -> dict[str, Json]:
    """The pods once all have ended, each by its name."""

    def ended() -> dict[str, Json]:
        found = cluster.request("GET", f"/api/v1/namespaces/{namespace}/pods")[1]["items"]
        pods = {each["metadata"]["name"]: each for each in found if each["metadata"]["name"] in names}
        return pods if all(each["status"]["phase"] in ("Succeeded", "Failed") for each in pods.values()) else {}

    return cluster.wait_until(f"the end of {names}", ended, 300.0)


@pytest.fixture(scope="module")
def home(cluster: Cluster, release: str) -> Iterator[str]:
    """A namespace for `restricted` pods that asks for all of its pods, with one tenant on one shard."""
    with cluster.namespace("injected") as namespace:
        memory.restrict(cluster, namespace)
        cluster.kubectl("label", "namespace", namespace, f"{INJECT_LABEL}=true")
        agents = [{"name": "default"}, {"name": "bot-*", "serviceAccount": "default"}]
        tenant = memory.build_tenant(namespace, TENANT, plan="Enterprise", allowedAgents=agents)
        memory.apply(cluster, memory.build_memory(namespace, **memory.ALONE), tenant)
        memory.wait_ready(cluster, namespace)
        wait_tenant(cluster, namespace)
        yield namespace


@pytest.mark.parametrize("labels", [{INJECT_LABEL: "true"}, {}], ids=["by its label", "by its namespace"])
def test_an_agent_stores_and_reads(cluster: Cluster, home: str, labels: Json) -> None:
    name = "labelled" if labels else "plain"
    create(cluster, home, build_deployment(name, labels), "deployments")
    cluster.kubectl("rollout", "status", f"deployment/{name}", "-n", home, "--timeout=120s")
    logs = ("logs", "-n", home, f"deployment/{name}", "-c", "app")
    cluster.wait_until("the memory to be read", lambda: "read hello" in cluster.kubectl(*logs))
    (pod,) = cluster.request("GET", f"/api/v1/namespaces/{home}/pods", labelSelector=f"app={name}")[1]["items"]
    assert pod["metadata"]["labels"][INJECTED_LABEL] == "true"
    assert sidecars(pod) == 1
    assert not [each for each in pod["status"]["containerStatuses"] if each["restartCount"]]


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.soak)])
def test_a_rolling_restart_at_200_requests_a_second_fails_none(cluster: Cluster, home: str, rounds: int) -> None:
    """The sidecar is there before the app and after it: four pods, fifty requests a second each, none asked twice."""
    name, replicas = f"busy-{rounds}", 4
    deployment = build_deployment(name, {INJECT_LABEL: "true"})
    deployment["spec"] |= {"replicas": replicas}
    pod = deployment["spec"]["template"]["spec"]
    pod |= {"containers": [build_container(BUSY)], "terminationGracePeriodSeconds": 20}
    create(cluster, home, deployment, "deployments")
    rollout = ("rollout", "status", f"deployment/{name}", "-n", home, "--timeout=300s")
    cluster.kubectl(*rollout, deadline_s=310)
    for _ in range(rounds):
        cluster.kubectl("rollout", "restart", f"deployment/{name}", "-n", home)
        cluster.kubectl(*rollout, deadline_s=310)
    exec_ = ("exec", "-n", home, f"deployment/{name}", "-c", "app", "--", "python3", "-c", READ_ALL)

    def told() -> Json:
        found = {pod: each for pod, each in json.loads(cluster.kubectl(*exec_)).items() if pod.startswith(name)}
        return found if len(found) == replicas * rounds else {}

    found = cluster.wait_until("what each pod of before left", told)
    answered, failed = sum(each["answered"] for each in found.values()), [each["failed"] for each in found.values()]
    load.report(
        f"rolling restart, {rounds} times: {answered} requests of {len(found)} pods, {sum(map(len, failed))} failed"
    )
    assert failed == [[]] * replicas * rounds
    cluster.kubectl("delete", "deployment", "-n", home, name, "--wait=false")


def test_a_pod_declines_and_a_shard_is_never_asked(cluster: Cluster, home: str) -> None:
    declined = build_pod("declined", FOR_EVER, labels={INJECT_LABEL: "false"})
    assert sidecars(create(cluster, home, declined, dryRun="All")) == 0
    assert sidecars(cluster.request("GET", f"/api/v1/namespaces/{home}/pods/memory-s0-0")[1]) == 0


@pytest.mark.parametrize(("agent", "count"), [("bot-7", 1), ("boss", 0)])
def test_only_agents_that_the_tenant_admits_are_injected(cluster: Cluster, home: str, agent: str, count: int) -> None:
    pod = build_pod("named", FOR_EVER, labels={INJECT_LABEL: "true", AGENT_LABEL: agent})
    assert sidecars(create(cluster, home, pod, dryRun="All")) == count


@pytest.mark.parametrize("starts", [5, pytest.param(50, marks=pytest.mark.soak)])
def test_an_init_container_finds_the_memory_at_its_start(cluster: Cluster, home: str, starts: int) -> None:
    names = [f"start-{number}-of-{starts}" for number in range(starts)]
    setup = [build_container(STORE_AND_READ, "setup")]
    began_s = time.monotonic()
    for first in range(0, starts, 5):  # five at a time: the node is small
        for name in names[first : first + 5]:
            create(cluster, home, build_pod(name, "print()", initContainers=setup))
        wait_ended(cluster, home, *names[first : first + 5])
    pods = wait_ended(cluster, home, *names)
    failed = [name for name, pod in pods.items() if pod["status"]["phase"] != "Succeeded"]
    load.report(f"{starts} starts, {len(failed)} refused, {(time.monotonic() - began_s) / starts:.1f} s each")
    assert len(pods) == starts
    assert failed == []


def test_a_job_completes(cluster: Cluster, home: str) -> None:
    pod = build_pod("once", STORE_AND_READ)
    template = {"metadata": {"labels": pod["metadata"]["labels"]}, "spec": pod["spec"]}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "once"}, "spec": {"template": template}}
    create(cluster, home, job, "jobs")
    cluster.kubectl("wait", "-n", home, "job/once", "--for=condition=Complete", "--timeout=120s")


def test_the_app_sees_nothing_of_what_the_sidecar_knows(cluster: Cluster, home: str) -> None:
    create(cluster, home, build_pod("spy", SPY))
    (pod,) = wait_ended(cluster, home, "spy").values()
    assert sidecars(pod) == 1
    seen = json.loads(cluster.kubectl("logs", "-n", home, "spy", "-c", "app"))
    assert {*seen.pop("env")} - {ENV_CONFIG_DIR} == {ENV_URL}, "the image that stands for the app's brings the other"
    assert seen == {"folder": False, "processes": [1], "files": []}, "it is alone with itself"


def test_a_tuned_sidecar_serves_on_its_port(cluster: Cluster, home: str) -> None:
    pod = build_pod("tuned", STORE_AND_READ)
    pod["metadata"]["annotations"] = {HTTP_PORT_ANNOTATION: "8711"}
    made = create(cluster, home, pod)
    assert {"name": ENV_URL, "value": "http://127.0.0.1:8711"} in made["spec"]["containers"][0]["env"]
    assert wait_ended(cluster, home, "tuned")["tuned"]["status"]["phase"] == "Succeeded"


# ------------------------------------------------------------------------------------------------------ other injectors


@contextmanager
def others(cluster: Cluster, namespace: str) -> Iterator[None]:
    """Two injectors of somebody else, one called before ours and one after it, for pods labelled `others`."""
    now_s = time.time()
    ca = x509.make_ca(now_s)
    pair = x509.make_serving(ca, (f"others.{namespace}.svc",), now_s)
    data = {"tls.crt": pair.certificate, "tls.key": pair.key}
    encoded = {name: base64.b64encode(text).decode() for name, text in data.items()}
    create(
        cluster,
        namespace,
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "others"}, "data": encoded},
        "secrets",
    )
    server = build_pod("others", Path(injectors.__file__).read_text(), labels={INJECT_LABEL: "false", "app": "others"})
    server["spec"]["volumes"] = [{"name": "tls", "secret": {"secretName": "others"}}]
    (container,) = server["spec"]["containers"]
    container["volumeMounts"] = [{"name": "tls", "mountPath": "/tls", "readOnly": True}]
    container["readinessProbe"] = {"tcpSocket": {"port": injectors.PORT}, "periodSeconds": 1}
    create(cluster, namespace, server)
    ports = {"ports": [{"port": 443, "targetPort": injectors.PORT}], "selector": {"app": "others"}}
    create(
        cluster,
        namespace,
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "others"}, "spec": ports},
        "services",
    )
    cluster.kubectl("wait", "-n", namespace, "pod/others", "--for=condition=Ready", "--timeout=60s")
    bundle = base64.b64encode(ca.certificate).decode()
    folder = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
    names = {"a-engram-e2e": "/before", "z-engram-e2e": "/after"}  # called in the order of their names
    try:
        for name, path in names.items():
            webhook = {
                "name": "others.example.com",
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "failurePolicy": "Ignore",  # its Service takes a moment to be there; the test waits for what it adds
                "reinvocationPolicy": "IfNeeded",
                "objectSelector": {"matchLabels": {"others": "true"}},
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
                "clientConfig": {
                    "caBundle": bundle,
                    "service": {"namespace": namespace, "name": "others", "path": path},
                },
            }
            status, answer = cluster.request("POST", folder, {"metadata": {"name": name}, "webhooks": [webhook]})
            assert status == http.HTTPStatus.CREATED, answer
        yield
    finally:
        for name in names:
            cluster.request("DELETE", f"{folder}/{name}")


def test_other_injectors_and_ours_leave_one_sidecar_that_all_can_use(cluster: Cluster, home: str) -> None:
    def made() -> Json:
        pod = build_pod("crowded", STORE_AND_READ, labels={INJECT_LABEL: "true", "others": "true"})
        return create(cluster, home, pod, dryRun="All")

    def has_both() -> bool:
        spec = made()["spec"]
        return {"mesh", "late"} <= {each["name"] for each in [*spec["containers"], *spec.get("initContainers", ())]}

    with others(cluster, home):
        cluster.wait_until("both webhooks to be called", has_both)
        # One that could not be called at first is called in the last round: then nobody is told of what it adds.
        pod = made()
    names = [each["name"] for each in pod["spec"]["initContainers"]]
    assert sorted(names) == [SIDECAR_CONTAINER, "mesh"]
    told = [ENV_URL in {each["name"] for each in one.get("env", ())} for one in pod["spec"]["containers"]]
    assert told == [True, True], "also the container that came after ours was called"
    assert [each["name"] for each in pod["spec"]["volumes"]].count("engram-config") == 1


# ------------------------------------------------------------------------------------------------------------- outages


@dataclass
class Making:
    """Pods that are made and thrown away, and how it went."""

    cluster: Cluster
    namespace: str
    missed: list[float] = field(default_factory=list)
    taken_s: list[float] = field(default_factory=list)

    def make(self, *, is_labelled: bool = True) -> Json:
        """A pod as it would be: admitted, how fast, and with a sidecar or not."""
        pod = build_pod("made", FOR_EVER, labels={INJECT_LABEL: "true" if is_labelled else "false"})
        began_s = time.monotonic()
        made = create(self.cluster, self.namespace, pod, dryRun="All")
        self.taken_s.append(time.monotonic() - began_s)
        if not sidecars(made):
            self.missed.append(time.time())
        return made

    def run(self, is_over: threading.Event) -> None:
        """Five pods a second, if they are admitted so fast."""
        while not is_over.wait(0.2):
            self.make()


def test_without_any_injector_pods_are_admitted_at_once(cluster: Cluster, home: str) -> None:
    cluster.kubectl("scale", f"deployment/{RELEASE}-injector", "-n", NAMESPACE, "--replicas=0")
    label = "app.kubernetes.io/component=injector"
    pods = ("-n", NAMESPACE, "-l", label)
    try:
        cluster.kubectl("delete", "pods", *pods, "--grace-period=0", "--force")
        labelled, unrelated = Making(cluster, home), Making(cluster, home)
        cluster.wait_until("nobody to answer", lambda: not sidecars(labelled.make()))
        labelled = Making(cluster, home)
        for _ in range(20):
            labelled.make()
            unrelated.make(is_labelled=False)
    finally:
        cluster.kubectl("scale", f"deployment/{RELEASE}-injector", "-n", NAMESPACE, "--replicas=2")
        cluster.kubectl("rollout", "status", f"deployment/{RELEASE}-injector", "-n", NAMESPACE, "--timeout=180s")
    load.report(
        f"no injector: unrelated pods within {max(unrelated.taken_s) * 1000:.0f} ms, labelled ones within"
        f" {max(labelled.taken_s) * 1000:.0f} ms, {len(labelled.missed)} of {len(labelled.taken_s)} without a memory"
    )
    assert max(unrelated.taken_s) < ADMITTED_S
    assert len(labelled.missed) == len(labelled.taken_s), "Ignore admits them as they are"


@contextmanager
def short_lives(cluster: Cluster) -> Iterator[None]:
    """Certificates live two minutes."""
    deployment = f"deployment/{RELEASE}-operator"

    def told(value: str) -> None:
        cluster.kubectl("set", "env", deployment, f"{ENV_CERTIFICATE_S}{value}", "-n", NAMESPACE)
        cluster.kubectl("rollout", "status", deployment, "-n", NAMESPACE, "--timeout=180s")
        cluster.wait_until("the old operators to be gone", lambda: len(operators(cluster)) == OPERATORS)
        # The old ones would be kept until their end, which is months away.
        cluster.wait_until("the old certificate to go", lambda: forget(cluster))

    told("=120")
    try:
        yield
    finally:
        told("-")


def operators(cluster: Cluster) -> list[Json]:
    """Their pods, those that are ending too: one that leads still makes certificates of its own lifetime."""
    label = "app.kubernetes.io/component=operator"
    found: list[Json] = cluster.request("GET", f"/api/v1/namespaces/{NAMESPACE}/pods", labelSelector=label)[1]["items"]
    return found


def forget(cluster: Cluster) -> bool:
    path = f"/api/v1/namespaces/{NAMESPACE}/secrets/{RELEASE}-webhook-tls"
    before = cluster.request("GET", path)[1].get("data", {}).get("tls.crt")
    cluster.request("DELETE", path)

    def is_new() -> bool:
        status, body = cluster.request("GET", path)
        return status == http.HTTPStatus.OK and body["data"].get("tls.crt") not in (None, before)

    return cluster.wait_until("a new certificate", is_new)


def serving(cluster: Cluster) -> tuple[str, str]:
    """The certificate in the Secret, and its CAs; two empty texts while there is none."""
    data = cluster.request("GET", f"/api/v1/namespaces/{NAMESPACE}/secrets/{RELEASE}-webhook-tls")[1].get("data", {})
    return data.get("tls.crt", ""), data.get("ca.crt", "")


def renewed(cluster: Cluster, home: str, duration_s: float) -> tuple[int, int, Making]:
    """How many certificates and bundles were seen in this time, in which pods were made without a pause."""
    is_over, making = threading.Event(), Making(cluster, home)
    thread = threading.Thread(target=making.run, args=(is_over,))
    certificates, bundles = set[str](), set[str]()
    thread.start()
    try:
        end_s = time.monotonic() + duration_s
        while time.monotonic() < end_s:
            certificate, bundle = serving(cluster)
            certificates.add(certificate)
            bundles.add(bundle)
            time.sleep(1)
    finally:
        is_over.set()
        thread.join()
    return len(certificates - {""}), len(bundles - {""}), making


@pytest.mark.parametrize(
    ("duration_s", "count"), [(80.0, (2, 1)), pytest.param(1_200.0, (12, 4), marks=pytest.mark.soak)]
)
def test_certificates_are_renewed_and_no_pod_is_missed(
    cluster: Cluster, home: str, duration_s: float, count: tuple[int, int]
) -> None:
    with short_lives(cluster):
        certificates, bundles, making = renewed(cluster, home, duration_s)
    load.report(
        f"{duration_s:.0f} s: {certificates} certificates, {bundles} bundles of CAs; {len(making.taken_s)} pods made,"
        f" {len(making.missed)} missed, slowest {max(making.taken_s) * 1000:.0f} ms"
    )
    assert certificates >= count[0]
    assert bundles >= count[1]
    assert len(making.taken_s) > duration_s
    assert making.missed == []
