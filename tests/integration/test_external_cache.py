"""A tenant of a cluster whose Redis is somebody else's: its login, what it does without one, and its end."""

import base64
from dataclasses import replace
from typing import Any

import pytest

from engram_contract.credentials import Credentials
from engram_contract.names import API_VERSION, CREDENTIALS_FILE, TENANT_KIND, cache_part, tenant_objects, tenant_role
from engram_contract.spec import ClusterSpec
from engram_operator.clients.kube import MEMORY_CLUSTERS, MEMORY_TENANTS, NAMESPACES, SECRETS
from engram_operator.events import Recorder
from engram_operator.leadership import Leadership, Term
from engram_operator.manifests.credentials import build_credentials_secret
from engram_operator.manifests.meta import Owner
from engram_operator.manifests.redis import OPERATOR_USER
from engram_operator.metrics import OperatorMetrics
from engram_operator.reconcile.hands import new_credentials
from engram_operator.reconcile.observe import cache_of, observe_shards
from engram_operator.reconcile.tenant import TenantReconciler
from engram_operator.reconcile.watchdog import Watchdog
from engram_operator.workqueue import Key
from engram_sidecar.redisdoor import Door
from tests.harness import CLUSTER, NUMBERS, PASSWORD, RealServer
from tests.operator_stage import Store
from tests.redis_server import PASSWORD as WORD
from tests.redis_server import RedisServer

NOW_S = 1_767_225_600.0
CACHE = {"provider": "External", "secretRef": {"name": "cache", "key": "url"}}


class Stage:
    """A store with an External cluster and one tenant, whose reconciler leads."""

    def __init__(self, server: RealServer, cache: dict[str, Any], **spec: object) -> None:
        self.name = f"cached{next(NUMBERS)}"
        self.role = tenant_role("ns", self.name)
        self.store = Store()
        self.store.put(NAMESPACES, {"metadata": {"name": "ns"}})
        shards: dict[str, Any] = {"provider": "External", "shards": 1}
        external = [{"id": "s0", "secretRef": {"name": "s0", "key": "dsn"}}]
        body: dict[str, Any] = {"metadata": {"name": "mem", "namespace": "ns", "generation": 1}}
        body |= {"apiVersion": API_VERSION, "kind": "MemoryCluster"}
        self.cluster = self.store.put(MEMORY_CLUSTERS, body | {"spec": shards | {"external": external, "cache": cache}})
        self.secret("s0", "dsn", f"postgresql://postgres:{PASSWORD}@127.0.0.1:{server.admin.port}")
        owner = Owner("ns", "mem", self.cluster["metadata"]["uid"])
        whole = replace(new_credentials(), cluster_id=CLUSTER)
        self.store.put(SECRETS, build_credentials_secret(self.spec, owner, whole))
        metadata = {"name": self.name, "namespace": "ns", "generation": 1}
        tenant = {"apiVersion": API_VERSION, "kind": TENANT_KIND, "metadata": metadata}
        self.store.put(MEMORY_TENANTS, tenant | {"spec": {"clusterRef": {"name": "mem"}, "isolation": "Strict"} | spec})
        leadership = Leadership(object(), "me", lambda: 0.0)  # type: ignore[arg-type]  # it is never run
        leadership.term = Term(lambda: 0.0, 100.0)
        recorder = Recorder(self.store, lambda: NOW_S, "me", lambda: 1.0, lambda: None)
        watchdog = Watchdog(self.store, leadership, None, recorder, OperatorMetrics(), wall_clock=lambda: NOW_S)
        self.reconciler = TenantReconciler(self.store, leadership, recorder, watchdog, wall_clock=lambda: NOW_S)

    @property
    def spec(self) -> ClusterSpec:
        return ClusterSpec.from_resource(self.cluster)

    def secret(self, name: str, key: str, text: str) -> None:
        data = {key: base64.b64encode(text.encode()).decode()}
        self.store.put(SECRETS, {"metadata": {"name": name, "namespace": "ns"}, "data": data})

    async def settle(self) -> str:
        """What the tenant's condition says once there is nothing to do."""
        for _ in range(10):
            outcome = await self.reconciler.reconcile(Key(TENANT_KIND, "ns", self.name))
            if outcome.result != "acted":
                break
        ready = self.store.get(MEMORY_TENANTS, "ns", self.name)["status"]["conditions"][0]
        assert (ready["type"], ready["status"]) == ("Ready", "True"), ready["message"]
        return str(ready["message"])

    @property
    def login(self) -> Credentials:
        """What its sidecars are given."""
        data = self.store.get(SECRETS, "ns", tenant_objects(self.name))["data"]
        return Credentials.from_json(base64.b64decode(data[CREDENTIALS_FILE]).decode())


def url_of(redis: RedisServer, user: str = OPERATOR_USER) -> str:
    return f"redis://{user}:{WORD}@127.0.0.1:{redis.port}\n"


@pytest.mark.usefixtures("patient_calls")
async def test_a_tenant_gets_a_login_that_works_and_leaves_nothing(
    servers: tuple[RealServer, RealServer], redis: RedisServer
) -> None:
    stage = Stage(servers[0], CACHE, reclaimPolicy="Delete")
    stage.secret("cache", "url", url_of(redis))
    assert "without" not in await stage.settle()
    login = stage.login.cache
    assert login is not None
    assert (login.url, login.user) == (f"redis://127.0.0.1:{redis.port}", stage.role)
    door = Door()
    door.adopt(login)
    async with door.subscribed([f"{cache_part(stage.role)}b"], 5.0):  # it waits for the connection, a call does not
        assert await door.fill(f"{cache_part(stage.role)}a", b"x", 60_000)
    await door.close()

    await redis.run("ACL", "DELUSER", stage.role)  # as a Redis that was started anew
    await stage.settle()
    assert await redis.run("ACL", "GETUSER", stage.role) is not None
    stage.store.get(MEMORY_TENANTS, "ns", stage.name)["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    await stage.reconciler.reconcile(Key(TENANT_KIND, "ns", stage.name))
    assert await redis.run("ACL", "GETUSER", stage.role) is None
    assert await redis.run("DBSIZE") == 0


@pytest.mark.parametrize(
    ("user", "text", "said", "has_login"),
    [
        ("poor", None, "permissions", True),
        ("nobody", None, "invalid username-password", True),
        ("", "redis://127.0.0.1:1", "key url of Secret cache has no user and password before the host", False),
        ("", "http://user:hush@a", "key url of Secret cache is not redis://host", False),
        ("", "", "Secret cache is not there", False),
    ],
)
async def test_without_a_right_to_make_users_a_tenant_is_served_and_its_condition_says_why(
    servers: tuple[RealServer, RealServer], redis: RedisServer, user: str, text: str | None, said: str, has_login: bool
) -> None:
    await redis.run("ACL", "SETUSER", "poor", "on", f">{WORD}", "~*", "&*", "+@all", "-acl|setuser")
    stage = Stage(servers[0], CACHE)
    if text != "":
        stage.secret("cache", "url", text or url_of(redis, user))
    message = await stage.settle()
    assert message.startswith("sidecars can serve the tenant; without the second cache level: ")
    assert said in message
    assert "hush" not in message
    assert (stage.login.cache is not None) is has_login

    stage.secret("cache", "url", url_of(redis))
    assert "without" not in await stage.settle()
    assert await redis.run("ACL", "GETUSER", stage.role) is not None


async def test_with_an_address_alone_there_is_no_login_and_no_fault(servers: tuple[RealServer, RealServer]) -> None:
    stage = Stage(servers[0], {"provider": "External", "url": "redis+cluster://127.0.0.1:1"})
    assert "without" not in await stage.settle()
    assert stage.login.cache is None
    seen = await observe_shards(stage.store, stage.cluster, stage.spec, lambda: NOW_S)
    assert await cache_of(stage.store, stage.spec, seen) is None
