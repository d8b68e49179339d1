"""An agent's pod on a cluster, with all that it needs: shards, a tenant on them, and the sidecar that was injected.

The shards, the tenant's Secret and its ConfigMap are made here by hand, with the operator's own code for the databases:
what the operator will do for a MemoryCluster and a MemoryTenant.
"""

import asyncio
import base64
import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from engram_contract import names
from engram_contract.shardmap import Node, Shard, Strategy, first_map
from engram_operator.clients import postgres
from engram_operator.clients.connection import Admin
from engram_operator.clients.postgres import ShardIdentity
from tests.e2e import shards
from tests.e2e.cluster import Cluster
from tests.e2e.releases import image
from tests.e2e.stage import Program
from tests.harness import CLUSTER, PASSWORD, tenant_spec

Json = dict[str, Any]
SHARDS: Final = ("s0", "s1")
AGENT: Final = "agent"
APP_PORT: Final = 8711
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


def create_tenant(cluster: Cluster, namespace: str, name: str) -> None:
    """The tenant is on every shard, and the objects that its pods mount are in the namespace."""
    role = names.tenant_role(namespace, name)
    parts = (
        Shard(shard, names.SHARED_DATABASE, (Node(f"{shard}-0", f"{shard}-rw.{namespace}.svc", shards.POSTGRES_PORT),))
        for shard in SHARDS
    )
    shard_map = first_map(role, Strategy.USER, tuple(parts), "default")
    for shard in SHARDS:
        with forwarded(cluster, namespace, f"{shard}-0", shards.POSTGRES_PORT) as port:
            admin = Admin("127.0.0.1", port, "postgres", shards.PASSWORD)
            asyncio.run(_prepare(admin, shard, role))
            asyncio.run(postgres.publish_map(admin, shard, shard_map))
    meta = {"name": names.tenant_objects(name), "namespace": namespace}
    credentials = json.dumps({"role": role, "passwords": [PASSWORD]}).encode()
    policy = tenant_spec(name).policy().to_json()
    shards.apply(
        cluster,
        [
            {
                "apiVersion": names.API_VERSION,
                "kind": names.TENANT_KIND,
                "metadata": {"name": name, "namespace": namespace},
                "spec": {"clusterRef": {"name": "memory"}},
            },
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": meta,
                "data": {names.CREDENTIALS_FILE: base64.b64encode(credentials).decode()},
            },
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": meta,
                "data": {names.MAP_FILE: shard_map.to_json(), names.POLICY_FILE: policy},
            },
        ],
    )


async def _prepare(admin: Admin, shard: str, role: str) -> None:
    await postgres.migrate(admin, names.SHARED_DATABASE, ShardIdentity(CLUSTER, shard))
    await postgres.apply_tenant(admin, names.SHARED_DATABASE, role, PASSWORD)


def build_agent(namespace: str) -> Json:
    """A pod as an agent's author writes it: one label is all that it says of Engram."""
    container = {
        "name": "app",
        "image": image("sidecar"),  # any image with Python: the test asks through it
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", RELAY.read_text(), str(APP_PORT), str(names.HTTP_PORT)],
        "securityContext": shards.RESTRICTED,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": AGENT, "namespace": namespace, "labels": {names.INJECT_LABEL: "true"}},
        "spec": {
            "securityContext": shards.RESTRICTED_POD,
            "terminationGracePeriodSeconds": 5,
            "containers": [container],
        },
    }


@contextmanager
def agent_pod(cluster: Cluster) -> Iterator[str]:
    """The namespace of a ready agent, whose pod was given a sidecar; one tenant over two shards."""
    with ExitStack() as stack:
        namespace = stack.enter_context(cluster.namespace("agents"))
        cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
        for shard in SHARDS:
            shards.create_shard(cluster, namespace, shard, members=1)
        create_tenant(cluster, namespace, "assistant")
        shards.apply(cluster, [build_agent(namespace)])
        cluster.kubectl("wait", "-n", namespace, f"pod/{AGENT}", "--for=condition=Ready", "--timeout=120s")
        yield namespace
