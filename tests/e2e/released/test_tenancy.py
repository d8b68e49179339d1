"""Tenants from their first memory to their last: quota, usage, passwords and keys, and what stays when they go.

One MemoryCluster of two shards with a Redis, a tenant with two agents' pods, and tenants that come and go.
"""

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Final

import pytest

from engram_contract import names
from engram_contract.names import ROTATE_ANNOTATION, ROTATE_KEY_ANNOTATION, cache_part
from engram_operator.manifests.tenant import key_secret
from tests.e2e import load, memory
from tests.e2e.agents import (
    AGENT,
    APP_PORT,
    TENANT,
    agent_pod,
    fetch_tenant,
    forwarded,
    nudge,
    patch_tenant,
    start_agent,
    wait_tenant,
)
from tests.e2e.cluster import Cluster, holds
from tests.e2e.releases import IMAGES, install, need_image
from tests.harness import Http

Json = dict[str, Any]
SECOND: Final = "second"
GUEST: Final = "guest"
QUOTA: Final = 24
ROOMY: Final = 1_000_000  # more than what the other tests write, however fast the machine is
NUDGED_S: Final = 120.0


@pytest.fixture(scope="module")
def home(cluster: Cluster, release: str) -> Iterator[str]:
    """Two pods of one tenant, on two shards and a Redis."""
    repository, _, tag = need_image("redis").rpartition(":")
    install(cluster, images={**IMAGES, "redis": {"repository": repository, "tag": tag}})
    with agent_pod(cluster, cache={"provider": "Managed", "capacity": "16Mi"}) as namespace:
        start_agent(cluster, namespace, SECOND)
        yield namespace


@pytest.fixture(scope="module")
def agents(cluster: Cluster, home: str) -> Iterator[tuple[Http, Http]]:
    """The sidecars of both pods."""
    with ExitStack() as stack:
        found = []
        for pod in (AGENT, SECOND):
            http = Http(stack.enter_context(forwarded(cluster, home, pod, APP_PORT)))
            stack.callback(http.close)
            found.append(http)
        yield found[0], found[1]


def store(http: Http, number: int) -> int:
    return http("POST", "/v1/memories", {"content": f"memory {number}", "user": f"user-{number}"}).status


def secret_of(cluster: Cluster, namespace: str, name: str) -> Json:
    status, body = cluster.request("GET", f"/api/v1/namespaces/{namespace}/secrets/{name}")
    return body if status == 200 else {}


def credentials(cluster: Cluster, namespace: str, tenant: str = TENANT) -> Json:
    data = secret_of(cluster, namespace, names.tenant_objects(tenant))["data"]
    found: Json = json.loads(base64.b64decode(data[names.CREDENTIALS_FILE]))
    return found


def redis(cluster: Cluster, namespace: str, user: str, password: str, *command: str) -> str:
    words = ("redis-cli", "--no-auth-warning", "--user", user, "--pass", password, *command)
    return cluster.kubectl("exec", "-n", namespace, "memory-redis-0", "-c", "redis", "--", *words).strip()


# ---------------------------------------------------------------------------------------------------- quota and usage


def test_two_pods_fill_a_quota_to_the_last_memory_and_usage_says_so(
    cluster: Cluster, home: str, agents: tuple[Http, Http]
) -> None:
    patch_tenant(cluster, home, {"spec": {"quota": {"memories": QUOTA}}})
    generation = fetch_tenant(cluster, home)["metadata"]["generation"]

    def is_heard() -> bool:
        for pod in (AGENT, SECOND):
            nudge(cluster, home, pod)
        return all(f"policy={generation}" in each("GET", "/v1/shards").headers["engram-config"] for each in agents)

    cluster.wait_until("the new quota in both pods", is_heard, NUDGED_S)
    statuses: list[int] = []

    def fill(http: Http, first: int) -> None:
        statuses.extend(store(http, number) for number in range(first, first + QUOTA))

    threads = [threading.Thread(target=fill, args=(http, 100 * index)) for index, http in enumerate(agents)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses.count(201) == QUOTA, statuses
    assert set(statuses) == {201, next(each for each in statuses if each != 201)}
    refused = agents[0]("POST", "/v1/memories", {"content": "one more", "user": "x"})
    assert refused.json["type"].endswith("/quota-exceeded")
    assert refused.json["limit"] == QUOTA
    kept = agents[0]("GET", "/v1/memories", limit=1).json["memories"][0]
    assert agents[1]("PATCH", f"/v1/memories/{kept['id']}", {"importance": 0.5}).status == 200

    def usage() -> Json:
        found: Json = fetch_tenant(cluster, home)["status"].get("usage") or {}
        return found if found.get("memories") == QUOTA else {}

    told = cluster.wait_until("usage in the status", usage)
    assert [(each["type"], each["memories"]) for each in told["byType"]] == [("episodic", QUOTA)]
    assert agents[0]("DELETE", f"/v1/memories/{kept['id']}").status == 204
    assert store(agents[1], 999) == 201
    patch_tenant(cluster, home, {"spec": {"quota": {"memories": ROOMY}}})
    wait_tenant(cluster, home)


# -------------------------------------------------------------------------------------------------- passwords and keys


def test_a_tenants_password_and_key_change_without_a_failed_request(
    cluster: Cluster, home: str, agents: tuple[Http, Http]
) -> None:
    before = credentials(cluster, home)
    keys = secret_of(cluster, home, names.tenant_objects(TENANT))["data"][names.KEYS_FILE]
    is_over, statuses = threading.Event(), list[int]()

    def write() -> None:
        writers, number = [Http(each.port) for each in agents], 0
        while not is_over.wait(0.05):
            number += 1
            statuses.append(store(writers[number % 2], 5000 + number))
        for each in writers:
            each.close()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        annotations = {ROTATE_ANNOTATION: "one", ROTATE_KEY_ANNOTATION: "one"}
        patch_tenant(cluster, home, {"metadata": {"annotations": annotations}})
        cluster.wait_until("two passwords", lambda: len(credentials(cluster, home)["passwords"]) == 2)

        def is_rotated() -> bool:
            for pod in (AGENT, SECOND):
                nudge(cluster, home, pod)
            return len(credentials(cluster, home)["passwords"]) == 1

        cluster.wait_until("the new password alone", is_rotated, NUDGED_S)
        after = credentials(cluster, home)
        published = fetch_tenant(cluster, home)["status"]["published"]

        def is_applied() -> bool:
            for pod in (AGENT, SECOND):
                nudge(cluster, home, pod)
            wanted = {f"credentials={after['generation']}", "keys=2"}
            return all(wanted <= {*each("GET", "/v1/shards").headers["engram-config"].split(", ")} for each in agents)

        cluster.wait_until("both pods to have it", is_applied, NUDGED_S)

        def is_told() -> bool:
            applied = fetch_tenant(cluster, home)["status"]["sidecars"].get("applied") or {}
            return bool((applied.get("credentials"), applied.get("keys")) == (after["generation"], 2))

        cluster.wait_until("the status to say so", is_told, NUDGED_S)
    finally:
        is_over.set()
        thread.join()
    load.report(f"rotation of a tenant: {len(statuses)} writes, {sum(each != 201 for each in statuses)} failed")
    assert {*statuses} == {201}
    assert len(statuses) > 100
    assert after["passwords"][0] not in before["passwords"]
    assert published["keys"] == 2
    assert secret_of(cluster, home, names.tenant_objects(TENANT))["data"][names.KEYS_FILE] != keys
    for word, is_good in ((before["passwords"][0], False), (after["passwords"][0], True)):
        assert can_login(cluster, home, after["role"], word) is is_good


def ask_as(cluster: Cluster, namespace: str, role: str, word: str, statement: str) -> str:
    """What the first shard answers to the role over the network, or why it does not."""
    place = f"host=memory-s0-rw.{namespace}.svc user={role} dbname={role} connect_timeout=5"
    shell = f"PGPASSWORD={word} psql '{place}' -XAtqc \"{statement}\" 2>&1 || true"
    return cluster.kubectl("exec", "-n", namespace, "memory-s0-0", "-c", "postgres", "--", "sh", "-c", shell).strip()


def can_login(cluster: Cluster, namespace: str, role: str, word: str) -> bool:
    """Whether the role gets in over the network with this password."""
    return ask_as(cluster, namespace, role, word, "SELECT 1") == "1"


def reasons(cluster: Cluster, namespace: str) -> set[str]:
    """Of the Events of a namespace."""
    return {each["reason"] for each in events_of(cluster, namespace)}


def events_of(cluster: Cluster, namespace: str) -> list[Json]:
    path = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"
    found: list[Json] = cluster.request("GET", path)[1]["items"]
    return found


def test_what_a_tenant_changed_of_its_own_login_is_set_right(
    cluster: Cluster, home: str, agents: tuple[Http, Http]
) -> None:
    login = credentials(cluster, home)
    role, word = login["role"], login["passwords"][0]
    changes = ("SET statement_timeout = 1", f"IN DATABASE {role} SET search_path = x", "PASSWORD 'mine'")
    statements = "; ".join(f"ALTER ROLE {role} {change}" for change in changes)
    assert ask_as(cluster, home, role, word, statements) == ""
    began_s = time.monotonic()
    cluster.wait_until("the password to be right again", lambda: can_login(cluster, home, role, word), NUDGED_S)
    load.report(f"a tenant's login set right after {time.monotonic() - began_s:.0f} s")
    assert ask_as(cluster, home, role, word, "SHOW statement_timeout") == "0"
    assert ask_as(cluster, home, role, word, "SHOW search_path") == '"$user", public'
    assert credentials(cluster, home) == login

    # What was found proves that it was wrong; by the time that one tries it, it may be right again.
    wrong = ("its password", "its setting search_path", "its setting statement_timeout")

    def is_told() -> bool:
        notes = [each["note"] for each in events_of(cluster, home) if each["reason"] == "LoginMended"]
        return any(all(each in note for each in wrong) for note in notes)

    cluster.wait_until("what was wrong to be told", is_told)

    def is_served() -> bool:
        return all(store(each, 7000) == 201 for each in agents)

    cluster.wait_until("both pods to store again", is_served)


def test_a_user_of_the_cache_reaches_its_own_keys_alone(cluster: Cluster, home: str) -> None:
    login = credentials(cluster, home)
    role, word = login["cache"]["user"], login["cache"]["passwords"][0]
    assert role == login["role"]
    part = cache_part(role)
    assert redis(cluster, home, role, word, "SET", f"{part}a", "1") == "OK"
    assert redis(cluster, home, role, word, "GET", f"{part}a") == "1"
    assert redis(cluster, home, role, word, "PUBLISH", f"{part}b", "x") == "0"
    for command in (
        ("GET", "t_other:a"), ("GET", role), ("GET", f"{role}:a"), ("PUBLISH", "t_other:b", "x"),
        ("KEYS", "*"), ("SCAN", "0"), ("ROLE",),
        ("RANDOMKEY",), ("DBSIZE",), ("FLUSHALL",), ("CONFIG", "GET", "*"), ("ACL", "LIST"), ("CLIENT", "LIST"),
        ("INFO",), ("MONITOR",), ("EVAL", "return 1", "0"), ("PUBSUB", "CHANNELS"),
    ):  # fmt: skip
        assert redis(cluster, home, role, word, *command).startswith("NOPERM"), command
    assert not is_user(cluster, home, role, "wrong")
    # It forgets its users with every start.
    path = f"/api/v1/namespaces/{home}/pods/memory-redis-0"
    before = cluster.request("GET", path)[1]["metadata"]["uid"]
    cluster.kubectl("delete", "pod", "-n", home, "memory-redis-0", "--grace-period=1")

    def is_another() -> bool:
        pod = cluster.request("GET", path)[1]
        return pod["metadata"].get("uid") not in {None, before} and holds(pod, "Ready")

    cluster.wait_until("another Redis", is_another)
    cluster.wait_until("the user again", lambda: is_user(cluster, home, role, word))


def is_user(cluster: Cluster, namespace: str, role: str, word: str) -> bool:
    return redis(cluster, namespace, role, word, "PING") == "PONG"


# --------------------------------------------------------------------------------------------------------- their end


@pytest.mark.parametrize("isolation", ["Strict", "Moderate"])
@pytest.mark.parametrize("policy", ["Retain", "Delete"])
def test_what_a_tenant_leaves_when_it_goes(cluster: Cluster, home: str, isolation: str, policy: str) -> None:
    name = f"{policy}-{isolation}".lower()
    tenant = memory.build_tenant(home, name, isolation=isolation, reclaimPolicy=policy)
    memory.apply(cluster, tenant)
    body = wait_tenant(cluster, home, name)
    role, database = body["status"]["role"], body["status"]["database"]
    assert (body["metadata"].get("finalizers") or []) == ([names.ERASE_FINALIZER] if policy == "Delete" else [])
    start_agent(cluster, home, name, name)
    with forwarded(cluster, home, name, APP_PORT) as port:
        http = Http(port)
        made = [http("POST", "/v1/memories", {"content": "x", "user": f"u{n}"}).json["id"] for n in range(6)]
        http.close()
    cluster.kubectl("delete", "pod", "-n", home, name, "--grace-period=1")
    cluster.kubectl("delete", "memorytenant", "-n", home, name, "--timeout=90s")
    has_role = f"SELECT count(*) FROM pg_roles WHERE rolname = '{role}'"
    rows = f"SELECT count(*) FROM engram.memories WHERE tenant = '{role}'"
    keys = key_secret("memory", role)
    if policy == "Retain":
        found = [memory.sql(cluster, home, f"memory-{shard}-0", rows, database) for shard in ("s0", "s1")]
        assert sum(map(int, found)) == 6
        assert secret_of(cluster, home, keys)
        memory.apply(cluster, tenant)
        wait_tenant(cluster, home, name)
        start_agent(cluster, home, name, name)
        with forwarded(cluster, home, name, APP_PORT) as port:
            http = Http(port)
            assert [http("GET", f"/v1/memories/{each}").status for each in made] == [200] * 6
            http.close()
        return
    for shard in ("s0", "s1"):
        pod = f"memory-{shard}-0"
        assert memory.sql(cluster, home, pod, has_role) == "0"
        databases = memory.sql(cluster, home, pod, "SELECT datname FROM pg_database").split()
        assert (database in databases) is (isolation == "Moderate")
        if isolation == "Moderate":
            assert memory.sql(cluster, home, pod, rows, database) == "0"
    assert not secret_of(cluster, home, keys)
    assert any(each["reason"] == "Erased" and "6 memories" in each["note"] for each in events_of(cluster, home))


def test_a_namespace_with_a_tenant_that_is_to_be_erased_ends(cluster: Cluster, release: str) -> None:
    """The tenant's cluster goes with it, so nothing is left that could be asked."""
    with cluster.namespace("ending") as namespace:
        memory.restrict(cluster, namespace)
        memory.apply(
            cluster,
            memory.build_memory(namespace, **memory.ALONE),
            memory.build_tenant(namespace, TENANT, reclaimPolicy="Delete"),
        )
        memory.wait_ready(cluster, namespace)
        wait_tenant(cluster, namespace)
        cluster.kubectl("delete", "namespace", namespace, "--timeout=60s")


def reason_of(cluster: Cluster, namespace: str, name: str) -> str:
    return str(memory.condition(fetch_tenant(cluster, namespace, name), "Ready").get("reason", ""))


def test_a_tenant_of_another_namespace_has_access_while_it_is_admitted(cluster: Cluster, home: str) -> None:
    with cluster.namespace("guests") as guests:
        memory.restrict(cluster, guests)
        tenant = memory.build_tenant(guests, GUEST)
        tenant["spec"]["clusterRef"]["namespace"] = home
        memory.apply(cluster, tenant)
        cluster.wait_until("NotAdmitted", lambda: reason_of(cluster, guests, GUEST) == "NotAdmitted")
        told = memory.condition(fetch_tenant(cluster, guests, GUEST), "Ready")["message"]
        assert told.startswith("spec.clusterRef: ")
        assert "spec.access.namespaceSelector" in told
        admitted = {"access": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": guests}}}}
        memory.patch(cluster, home, admitted)
        wait_tenant(cluster, guests, GUEST)
        start_agent(cluster, guests)
        with forwarded(cluster, guests, AGENT, APP_PORT) as port:
            http = Http(port)
            loses_access_and_has_it_again(cluster, (home, guests), http, admitted)
            http.close()
        memory.patch(cluster, home, {"access": None})
        memory.wait_ready(cluster, home)


def loses_access_and_has_it_again(cluster: Cluster, places: tuple[str, str], http: Http, admitted: Json) -> None:
    home, guests = places
    login = credentials(cluster, guests, GUEST)
    role, word = login["role"], login["passwords"][0]
    kept = http("POST", "/v1/memories", {"content": "kept", "user": "u"}).json["id"]
    assert can_login(cluster, home, role, word)
    began_s = time.monotonic()
    memory.patch(cluster, home, {"access": None})
    cluster.wait_until("NotAdmitted", lambda: reason_of(cluster, guests, GUEST) == "NotAdmitted")
    cluster.wait_until("AccessEnded", lambda: "AccessEnded" in reasons(cluster, guests))
    load.report(f"access ended {time.monotonic() - began_s:.1f} s after the selector went")
    assert "not permitted to log in" in ask_as(cluster, home, role, word, "SELECT 1")
    for shard in ("s0", "s1"):
        sessions = f"SELECT count(*) FROM pg_stat_activity WHERE usename = '{role}'"
        cluster.wait_until("no session", lambda: memory.sql(cluster, home, f"memory-{shard}-0", sessions) == "0")  # noqa: B023
    assert not is_user(cluster, home, login["cache"]["user"], login["cache"]["passwords"][0])
    assert http("GET", f"/v1/memories/{kept}").status in (503, 504)
    began_s = time.monotonic()
    memory.patch(cluster, home, admitted)
    wait_tenant(cluster, guests, GUEST)
    cluster.wait_until("the memory again", lambda: http("GET", f"/v1/memories/{kept}").status == 200)
    load.report(f"access again {time.monotonic() - began_s:.1f} s after the selector came back")
    assert credentials(cluster, guests, GUEST) == login
