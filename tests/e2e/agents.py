"""An agent's pod on a cluster, with all that it needs: a MemoryCluster, a MemoryTenant, and an injected sidecar.

All of it is made by the operator and the injector of the installed release, as for a user.
"""

import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from engram_contract import names
from engram_contract.names import API_VERSION, TENANTS
from tests.e2e import memory, shards
from tests.e2e.cluster import Cluster
from tests.e2e.releases import image
from tests.e2e.stage import Program

Json = dict[str, Any]
SHARDS: Final = ("s0", "s1")
AGENT: Final = "agent"
TENANT: Final = "assistant"
APP_PORT: Final = 8711
LISTENS: Final = f"import socket; socket.create_connection(('127.0.0.1', {APP_PORT}))"
RELAY: Final = Path(__file__).with_name("relay.py")


@contextmanager
def forwarded(cluster: Cluster, namespace: str, pod: str, port: int) -> Iterator[int]:
    """A port of this machine's loopback that leads to one of a pod, on the pod's own localhost."""
    arguments = ["kubectl", "--context", cluster.context, "port-forward", "-n", namespace, f"pod/{pod}", f":{port}"]
    program = Program(arguments, dict(os.environ))
    try:
        line = program.wait_line("Forwarding from 127.0.0.1:")
        found = re.search(r"127\.0\.0\.1:(\d+)", line)
        assert found is not None, line
        yield int(found[1])
    finally:
        program.kill()


def tenant_path(namespace: str, name: str = TENANT) -> str:
    """The path of a MemoryTenant."""
    return f"/apis/{API_VERSION}/namespaces/{namespace}/{TENANTS}/{name}"


def fetch_tenant(cluster: Cluster, namespace: str, name: str = TENANT) -> Json:
    """The MemoryTenant as it is now."""
    return cluster.request("GET", tenant_path(namespace, name))[1]


def patch_tenant(cluster: Cluster, namespace: str, body: Json, name: str = TENANT) -> Json:
    """The MemoryTenant after a change of these members."""
    status, answer = cluster.request("PATCH", tenant_path(namespace, name), body)
    assert status == 200, answer
    return answer


def wait_tenant(cluster: Cluster, namespace: str, name: str = TENANT) -> Json:
    """The MemoryTenant once sidecars can serve it."""

    def ready() -> bool:
        return memory.is_ready(fetch_tenant(cluster, namespace, name))

    cluster.wait_until(f"tenant {name} to be Ready", ready, deadline_s=memory.READY_S)
    return fetch_tenant(cluster, namespace, name)


def fetch_map(cluster: Cluster, namespace: str, name: str = TENANT) -> Json:
    """The map that the tenant's pods mount."""
    path = f"/api/v1/namespaces/{namespace}/configmaps/{names.tenant_objects(name)}"
    found: Json = json.loads(cluster.request("GET", path)[1]["data"][names.MAP_FILE])
    return found


def build_agent(namespace: str, name: str = AGENT, tenant: str = "") -> Json:
    """A pod as an agent's author writes it: one label is all that it says of Engram, if there is but one tenant."""
    container = {
        "name": "app",
        "image": image("sidecar"),  # any image with Python: the test asks through it
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", RELAY.read_text(), str(APP_PORT), str(names.HTTP_PORT)],
        "startupProbe": {"exec": {"command": ["python3", "-c", LISTENS]}, "periodSeconds": 1, "failureThreshold": 60},
        "securityContext": shards.RESTRICTED,
    }
    metadata: Json = {"name": name, "namespace": namespace, "labels": {names.INJECT_LABEL: "true"}}
    if tenant:
        metadata["annotations"] = {names.TENANT_ANNOTATION: tenant}
    spec = {"securityContext": shards.RESTRICTED_POD, "terminationGracePeriodSeconds": 5, "containers": [container]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def start_agent(cluster: Cluster, namespace: str, name: str = AGENT, tenant: str = "") -> None:
    """The agent's pod is ready, and so is its sidecar. The injector may hear of a new tenant a moment late."""
    path = f"/api/v1/namespaces/{namespace}/pods"

    def is_injected() -> bool:
        status, pod = cluster.request("POST", path, build_agent(namespace, name, tenant))
        if status == 201 and pod["spec"].get("initContainers"):
            return True
        cluster.kubectl("delete", "pod", "-n", namespace, name, "--ignore-not-found", "--grace-period=0", "--force")
        return False

    cluster.wait_until("a pod with a sidecar", is_injected)
    cluster.kubectl("wait", "-n", namespace, f"pod/{name}", "--for=condition=Ready", "--timeout=120s")


def nudge(cluster: Cluster, namespace: str, pod: str = AGENT) -> None:
    """The kubelet looks at the pod now, and brings files that changed; by itself it takes up to two minutes."""
    annotations = {"example.com/nudged": secrets.token_hex(4)}
    cluster.request("PATCH", f"/api/v1/namespaces/{namespace}/pods/{pod}", {"metadata": {"annotations": annotations}})


@contextmanager
def agent_pod(cluster: Cluster, **spec: object) -> Iterator[str]:
    """The namespace of a ready agent, whose pod was given a sidecar; one tenant over two shards of one member each."""
    with cluster.namespace("agents") as namespace:
        memory.restrict(cluster, namespace)
        over: Json = {"shards": len(SHARDS), "replicas": 0, **spec}
        memory.apply(
            cluster, memory.build_memory(namespace, **over), memory.build_tenant(namespace, TENANT, plan="Enterprise")
        )
        memory.wait_ready(cluster, namespace)
        wait_tenant(cluster, namespace)
        start_agent(cluster, namespace)
        yield namespace
