"""The behaviour suite, unchanged, against local mode and against an agent's pod with the sidecar that was injected."""

import json
import uuid
from collections.abc import Iterator

import pytest

from tests.behaviour import *  # noqa: F403  the suite is one; what differs is the fixture `http`
from tests.e2e import memory
from tests.e2e.agents import AGENT, APP_PORT, SHARDS, agent_pod, forwarded
from tests.e2e.cluster import Cluster
from tests.e2e.stage import new_stage
from tests.harness import Http


@pytest.fixture(scope="module")
def local_port() -> Iterator[int]:
    """Local mode with the quickstart's tenant."""
    stage = new_stage()
    stage.up()
    yield stage.port
    stage.clean_up()


@pytest.fixture(scope="module")
def namespace(cluster: Cluster, release: str) -> Iterator[str]:
    """Where the agent's pod runs, and its shards."""
    with agent_pod(cluster) as name:
        yield name


@pytest.fixture(scope="module")
def pod_port(cluster: Cluster, namespace: str) -> Iterator[int]:
    """The sidecar in an agent's pod, as the app beside it reaches it: on localhost."""
    with forwarded(cluster, namespace, AGENT, APP_PORT) as port:
        yield port


@pytest.fixture(params=["local_port", "pod_port"])
def http(request: pytest.FixtureRequest) -> Iterator[Http]:
    """Requests to one of the two."""
    client = Http(request.getfixturevalue(request.param))
    yield client
    client.close()


# Of a pod alone


def test_only_the_sidecar_sees_the_credentials(cluster: Cluster, namespace: str, pod_port: int) -> None:
    pod = cluster.request("GET", f"/api/v1/namespaces/{namespace}/pods/{AGENT}")[1]
    (sidecar,) = pod["spec"]["initContainers"]
    (app,) = pod["spec"]["containers"]
    assert {mount["name"] for mount in sidecar["volumeMounts"]} >= {"engram-config"}
    assert "engram-config" not in {mount["name"] for mount in app["volumeMounts"]}
    look = "import os; print(os.path.exists('/etc/engram'), os.environ['ENGRAM_URL'])"
    told = cluster.kubectl("exec", "-n", namespace, AGENT, "-c", "app", "--", "python3", "-c", look)
    assert told == "False http://127.0.0.1:7711\n"


def test_a_shard_whose_pod_is_gone_is_named_and_found_again(cluster: Cluster, namespace: str, pod_port: int) -> None:
    """Its address answers nothing any more, not even a refusal; the other shard goes on."""
    http = Http(pod_port)
    kept: dict[str, str] = {}  # shard -> a memory on it
    while kept.keys() != set(SHARDS):
        made = http("POST", "/v1/memories", {"content": "x", "user": f"user-{uuid.uuid4()}"}).json
        kept[made["shard"]] = made["id"]
    lost, left = SHARDS
    memory.patch(cluster, namespace, {"paused": True})  # or the operator would have the pod back at once
    cluster.wait_until("the operator to rest", lambda: memory.fetch(cluster, namespace)["status"]["phase"] == "Paused")
    pod = f"/api/v1/namespaces/{namespace}/pods/memory-{lost}-0"
    cluster.kubectl("scale", "-n", namespace, f"statefulset/memory-{lost}", "--replicas=0")
    cluster.wait_until("the pod to be gone", lambda: cluster.request("GET", pod)[0] == 404)
    for _ in range(10):
        gone = http("GET", f"/v1/memories/{kept[lost]}")
        assert gone.status == 503, gone.body
        assert lost in json.dumps(gone.json)
        assert "retry-after" in gone.headers
        assert http("GET", f"/v1/memories/{kept[left]}").status == 200
    memory.patch(cluster, namespace, {"paused": False})
    memory.wait_ready(cluster, namespace)
    cluster.wait_until("the memory again", lambda: http("GET", f"/v1/memories/{kept[lost]}").status == 200)
    http.close()
