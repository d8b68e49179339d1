"""Tenants on a cluster with poolers: agents write while passwords, certificates and the states of shards change.

One MemoryCluster of two shards, TLS and a pooler before each, two tenants, an agent's pod for each.
"""

import base64
import json
import socket
import ssl
import struct
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import pytest

from engram_contract import names
from engram_contract.names import POOLER_PORT, POSTGRES_PORT, ROTATE_ANNOTATION
from tests.e2e import load, memory
from tests.e2e.agents import (
    AGENT,
    APP_PORT,
    SHARDS,
    TENANT,
    agent_pod,
    fetch_map,
    forwarded,
    nudge,
    patch_tenant,
    start_agent,
    wait_tenant,
)
from tests.e2e.cluster import Cluster, CommandFailed
from tests.harness import Http

Json = dict[str, Any]
SECOND: Final = "clerk"
EVERY_S: Final = 0.05
CERTIFICATE_S: Final = 300.0  # the kubelet's two minutes, and as long again until it is read
HEARD_S: Final = 150.0  # the kubelet brings a file within two minutes
SSL_REQUEST: Final = struct.pack("!ii", 8, 80877103)  # Postgres manual, 54.7


@pytest.fixture(scope="module")
def home(cluster: Cluster, release: str) -> Iterator[str]:
    """Two tenants, each with an agent's pod."""
    with agent_pod(cluster, pooler={"enabled": True}) as namespace:
        memory.apply(cluster, memory.build_tenant(namespace, SECOND, isolation="Moderate"))
        wait_tenant(cluster, namespace, SECOND)
        start_agent(cluster, namespace, SECOND, SECOND)
        yield namespace


@pytest.fixture(scope="module")
def agent(cluster: Cluster, home: str) -> Iterator[Http]:
    """The first tenant's sidecar."""
    with asking(cluster, home, AGENT) as http:
        yield http


@contextmanager
def asking(cluster: Cluster, namespace: str, pod: str) -> Iterator[Http]:
    with forwarded(cluster, namespace, pod, APP_PORT) as port:
        http = Http(port)
        yield http
        http.close()


def remember(http: Http) -> Json:
    made = http("POST", "/v1/memories", {"content": "x", "user": f"user-{uuid.uuid4()}"})
    assert made.status == 201, made.body
    found: Json = made.json
    return found


@dataclass
class Asking:
    """An agent that writes without a pause, and what was refused."""

    number: int = 0
    failed: list[str] = field(default_factory=list)
    slowest_s: float = 0.0

    def run(self, http: Http, is_over: threading.Event) -> None:
        """Twenty writes a second, if they are answered so fast."""
        while not is_over.wait(EVERY_S):
            began_s = time.monotonic()
            answer = http("POST", "/v1/memories", {"content": "x", "user": f"user-{self.number}"})
            self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)
            self.number += 1
            if answer.status != 201:
                self.failed.append(f"{answer.status} {answer.body[:200]!r}")


@contextmanager
def agent_writes(cluster: Cluster, namespace: str) -> Iterator[Asking]:
    is_over, told = threading.Event(), Asking()
    with asking(cluster, namespace, AGENT) as http:
        thread = threading.Thread(target=told.run, args=(http, is_over))
        thread.start()
        try:
            yield told
        finally:
            is_over.set()
            thread.join()


def login(
    cluster: Cluster, namespace: str, user: str, word: str, *, port: int = POSTGRES_PORT, mode: str = "require"
) -> str:
    """Which user a login over the network is, by the name of the Service."""
    place = f"host=memory-s0-rw.{namespace}.svc port={port} user={user} dbname=engram sslmode={mode} connect_timeout=5"
    place += " sslrootcert=/etc/engram/tls/ca.crt"
    command = ("env", f"PGPASSWORD={word}", "psql", place, "-XAtqc", "SELECT current_user")
    return cluster.kubectl("exec", "-n", namespace, "memory-s0-0", "-c", "postgres", "--", *command).strip()


def refusal(cluster: Cluster, namespace: str, user: str, word: str, **more: Any) -> str:  # noqa: ANN401  as `login`
    with pytest.raises(CommandFailed) as failed:
        login(cluster, namespace, user, word, **more)
    return str(failed.value)


def credentials(cluster: Cluster, namespace: str, tenant: str) -> Json:
    path = f"/api/v1/namespaces/{namespace}/secrets/{names.tenant_objects(tenant)}"
    data = cluster.request("GET", path)[1]["data"]
    found: Json = json.loads(base64.b64decode(data[names.CREDENTIALS_FILE]))
    return found


# ------------------------------------------------------------------------------------------------------------- pooler


def test_agents_write_through_the_pooler(cluster: Cluster, home: str, agent: Http) -> None:
    for tenant in (TENANT, SECOND):
        ports = {node["port"] for shard in fetch_map(cluster, home, tenant)["shards"] for node in shard["nodes"]}
        assert ports == {POOLER_PORT}
    with asking(cluster, home, SECOND) as other:
        made, theirs = remember(agent), remember(other)
        assert other("GET", f"/v1/memories/{made['id']}").status == 404
        assert agent("GET", f"/v1/memories/{theirs['id']}").status == 404
        assert agent("GET", f"/v1/memories/{made['id']}").status == 200


def test_the_pooler_takes_tenants_alone(cluster: Cluster, home: str) -> None:
    word = load.password(cluster, home)
    mine = credentials(cluster, home, SECOND)
    assert login(cluster, home, mine["role"], mine["passwords"][0], port=POOLER_PORT) == mine["role"]
    assert "failed" in refusal(cluster, home, mine["role"], "wrong", port=POOLER_PORT)
    assert "failed" in refusal(cluster, home, "postgres", word, port=POOLER_PORT)
    assert "SSL required" in refusal(
        cluster, home, mine["role"], mine["passwords"][0], port=POOLER_PORT, mode="disable"
    )


# -------------------------------------------------------------------------------------------- passwords, certificates


def test_passwords_change_under_load(cluster: Cluster, home: str) -> None:
    old = load.password(cluster, home)
    with load.writing(cluster, home) as writer, agent_writes(cluster, home) as told:
        began_s = time.time()
        assert (
            cluster.request("PATCH", memory.path_of(home), {"metadata": {"annotations": {ROTATE_ANNOTATION: "one"}}})[0]
            == 200
        )

        def is_over() -> bool:
            return bool(memory.fetch(cluster, home)["status"].get("rotation") == "one")

        cluster.wait_until("the rotation", is_over, deadline_s=memory.READY_S)
        ended_s = time.time()
        time.sleep(2)
        written = writer.written()
        assert writer.lost(written) == []
    new = load.password(cluster, home)
    load.report(
        f"rotation: {ended_s - began_s:.0f} s; {told.number} writes of the agent, {len(told.failed)} failed, slowest"
        f" {told.slowest_s * 1000:.0f} ms; {len(written.rows)} rows, {len(written.refused)} refused, longest gap"
        f" {written.gap_s(began_s, ended_s):.2f} s"
    )
    assert told.failed == []
    assert written.refused == ()
    assert told.number > 50
    assert new != old
    assert login(cluster, home, "postgres", new) == "postgres"
    assert "password authentication failed" in refusal(cluster, home, "postgres", old)


def test_a_tenants_password_changes_under_load_through_the_pooler(cluster: Cluster, home: str) -> None:
    before = credentials(cluster, home, TENANT)
    with agent_writes(cluster, home) as told:
        patch_tenant(cluster, home, {"metadata": {"annotations": {ROTATE_ANNOTATION: "one"}}})

        def after() -> Json:
            nudge(cluster, home)
            found = credentials(cluster, home, TENANT)
            is_over = len(found["passwords"]) == 1 and found["passwords"] != before["passwords"]
            return found if is_over else {}

        new = cluster.wait_until("the new password alone", after, HEARD_S)
        number = told.number
        cluster.wait_until("writes with it", lambda: told.number > number + 100)
    load.report(f"a tenant's password through poolers: {told.number} writes, {len(told.failed)} failed")
    assert told.failed == []
    role = new["role"]
    for shard in SHARDS:
        place = f"host=memory-{shard}-rw.{home}.svc port={POOLER_PORT} user={role} dbname={role} sslmode=require"
        for word, is_good in ((new["passwords"][0], True), (before["passwords"][0], False)):
            shell = f"PGPASSWORD={word} psql '{place} connect_timeout=5' -XAtqc 'SELECT 1' 2>&1 || true"
            said = cluster.kubectl("exec", "-n", home, "memory-s0-0", "-c", "postgres", "--", "sh", "-c", shell)
            assert (said.strip() == "1") is is_good, said


def test_only_the_clusters_own_certificate_is_served(cluster: Cluster, home: str) -> None:
    word = load.password(cluster, home)
    assert login(cluster, home, "postgres", word, mode="verify-full") == "postgres"
    assert "pg_hba.conf rejects" in refusal(cluster, home, "postgres", word, mode="disable")
    for port in (POSTGRES_PORT, POOLER_PORT):
        assert served(cluster, home, port)["subjectAltName"]


@pytest.mark.soak
def test_a_new_certificate_is_served_under_load(cluster: Cluster, home: str) -> None:
    before = {port: served(cluster, home, port)["serialNumber"] for port in (POSTGRES_PORT, POOLER_PORT)}
    with load.writing(cluster, home) as writer, agent_writes(cluster, home) as told:
        began_s = time.time()
        path = f"/api/v1/namespaces/{home}/secrets/memory-ca"
        assert cluster.request("PATCH", path, {"data": {"tls.crt": None}})[0] == 200
        for port, serial in before.items():
            cluster.wait_until(
                f"a new certificate on {port}",
                partial(is_served_anew, cluster, home, port, serial),
                CERTIFICATE_S,
            )
            load.report(f"certificate on {port}: {time.time() - began_s:.0f} s")
        written = writer.written()
        assert writer.lost(written) == []
    load.report(f"{told.number} writes of the agent, {len(told.failed)} failed; {len(written.refused)} rows refused")
    assert told.failed == []
    assert written.refused == ()


def is_served_anew(cluster: Cluster, namespace: str, port: int, serial: str) -> bool:
    return bool(served(cluster, namespace, port)["serialNumber"] != serial)


def served(cluster: Cluster, namespace: str, port: int) -> Json:
    """The certificate of s0's first member, judged by the cluster's CA."""
    secret = cluster.request("GET", f"/api/v1/namespaces/{namespace}/secrets/memory-ca")[1]
    context = ssl.create_default_context(cadata=base64.b64decode(secret["data"]["ca.crt"]).decode())
    with (
        forwarded(cluster, namespace, "memory-s0-0", port) as local,
        socket.create_connection(("127.0.0.1", local), 10) as plain,
    ):
        plain.sendall(SSL_REQUEST)
        assert plain.recv(1) == b"S"
        with context.wrap_socket(plain, server_hostname=f"memory-s0-rw.{namespace}.svc") as wrapped:
            found: Json = dict(wrapped.getpeercert() or {})
            return found


# -------------------------------------------------------------------------------------------------- number and states


def test_a_shard_takes_no_changes_and_then_nothing_and_is_back(cluster: Cluster, home: str, agent: Http) -> None:
    kept: dict[str, str] = {}
    while kept.keys() != set(SHARDS):
        made = remember(agent)
        kept[made["shard"]] = made["id"]
    place = f"/v1/memories/{kept['s1']}"
    epoch = fetch_map(cluster, home)["epoch"]
    steps = [("ReadOnly", (200, 409)), ("Maintenance", (503, 503)), ("Active", (200, 200))]
    for state, wanted in steps:
        began_s = time.monotonic()
        memory.patch(cluster, home, {"shardOverrides": [{"id": "s1", "state": state}]})
        cluster.wait_until("the next map", lambda: fetch_map(cluster, home)["epoch"] > epoch)  # noqa: B023
        epoch = fetch_map(cluster, home)["epoch"]

        def statuses() -> tuple[int, int]:
            nudge(cluster, home)
            read, changed = agent("GET", place), agent("PATCH", place, {"importance": 0.5})
            return read.status, changed.status

        cluster.wait_until(f"{state} to be heard", lambda: statuses() == wanted, HEARD_S)  # noqa: B023
        load.report(f"{state}: epoch {epoch}, heard after {time.monotonic() - began_s:.1f} s")
        assert agent("PATCH", f"/v1/memories/{kept['s0']}", {"importance": 0.5}).status == 200
    memory.patch(cluster, home, {"shardOverrides": []})
    memory.wait_ready(cluster, home)


def test_the_number_of_shards_waits_for_moves_once_there_are_tenants(cluster: Cluster, home: str, agent: Http) -> None:
    for count, reason in ((3, "ReshardNeeded"), (1, "ShardsNotEmpty")):
        memory.patch(cluster, home, {"shards": count})

        def told() -> Json:
            body = memory.fetch(cluster, home)
            found = memory.condition(body, "Degraded")
            return body if (found.get("reason"), found.get("status")) == (reason, "True") else {}  # noqa: B023

        body = cluster.wait_until(reason, told)
        load.report(f"shards {count}: {memory.condition(body, 'Degraded')['message']}")
        assert [each["name"] for each in body["status"].get("orphans") or ()] == (["s1"] if count == 1 else [])
        sets = cluster.kubectl("get", "statefulset", "-n", home, "-o", "name").split()
        assert sorted(sets) == ["statefulset.apps/memory-s0", "statefulset.apps/memory-s1"]
        remember(agent)
        memory.patch(cluster, home, {"shards": 2})
        memory.wait_ready(cluster, home)
    assert not memory.fetch(cluster, home)["status"].get("orphans")
