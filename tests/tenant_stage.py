"""A MemoryTenant on real servers, with the reconciler that keeps it; only the API server is a store in memory."""

import base64
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, Final
from uuid import uuid4

import asyncpg

from engram_contract.credentials import Credentials, Keyring
from engram_contract.names import (
    API_VERSION,
    CLUSTER_KIND,
    CREDENTIALS_FILE,
    KEYS_FILE,
    TENANT_KIND,
    tenant_objects,
    tenant_role,
)
from engram_contract.policy import PLAN_QUOTAS, Plan, Quota
from engram_contract.spec import ClusterSpec
from engram_operator.clients.kube import (
    EVENTS,
    MEMORY_CLUSTERS,
    MEMORY_TENANTS,
    NAMESPACES,
    SECRETS,
    Manifest,
)
from engram_operator.controller import Outcome
from engram_operator.events import Recorder
from engram_operator.leadership import Leadership, Term
from engram_operator.manifests.credentials import build_credentials_secret
from engram_operator.manifests.meta import Owner
from engram_operator.manifests.terms import Terms
from engram_operator.metrics import OperatorMetrics
from engram_operator.reconcile.hands import new_credentials
from engram_operator.reconcile.tenant import TenantReconciler
from engram_operator.reconcile.watchdog import Watchdog
from engram_operator.workqueue import Key
from tests.harness import CLUSTER, PASSWORD, RealServer
from tests.operator_stage import Store

NOW_S: Final = 1_800_000_000.0
PLANS: Final = {**PLAN_QUOTAS, Plan.FREE: Quota(memories=7, storage_bytes=5_000, requests_per_second=1)}
Servers = tuple[RealServer, RealServer]


class Stage:
    """An External cluster of both servers, and one tenant; with a selector, the tenant is of another namespace."""

    def __init__(
        self, servers: Servers, selector: Mapping[str, Any] | None = None, api: Store | None = None, **spec: object
    ) -> None:
        self.api, self.servers, self.now_s = api or Store(), servers, NOW_S
        self.name, self.annotations = f"team-{uuid4().hex[:8]}", dict[str, str]()
        self.namespace = f"ns-{uuid4().hex[:8]}"
        self.role = tenant_role(self.namespace, self.name)
        self.home = self.namespace if selector is None else f"{self.namespace}-home"
        self.spec: dict[str, object] = {"clusterRef": {"name": "mem", "namespace": self.home}, **spec}
        self.set_cluster(**({} if selector is None else {"access": {"namespaceSelector": selector}}))
        self._make_secrets()
        self.apply()
        leadership = Leadership(object(), "me", lambda: 0.0)  # type: ignore[arg-type]  # it is never run
        leadership.term = Term(lambda: 0.0, 100.0)
        recorder = Recorder(self.api, lambda: 0.0, "me", lambda: 1.0, lambda: None)
        terms = Terms(PLANS, 300.0)
        self.label()
        watchdog = Watchdog(self.api, leadership, None, recorder, OperatorMetrics(), wall_clock=lambda: self.now_s)
        self.reconciler = TenantReconciler(self.api, leadership, recorder, watchdog, terms, lambda: self.now_s)

    def _make_secrets(self) -> None:
        for number, server in enumerate(self.servers):
            self.lead(number, server.admin.port)
        # The servers are the whole run's: shards of the one cluster that the other tests use too.
        credentials = replace(new_credentials(), cluster_id=CLUSTER)
        owner = Owner(self.home, "mem", "u")
        self.api.put(SECRETS, build_credentials_secret(self.cluster, owner, credentials))

    def lead(self, number: int, port: int) -> None:
        """The DSN of a shard leads to this port."""
        dsn = f"postgresql://postgres:{PASSWORD}@127.0.0.1:{port}/?sslmode=disable"
        data = {"dsn": base64.b64encode(dsn.encode()).decode()}
        self.api.put(SECRETS, {"metadata": {"name": f"dsn-{number}", "namespace": self.home}, "data": data})

    def set_cluster(self, **spec: object) -> None:
        """The cluster is this beside what it always is."""
        external = [{"id": f"s{n}", "secretRef": {"name": f"dsn-{n}", "key": "dsn"}} for n in range(2)]
        metadata = {"name": "mem", "namespace": self.home, "generation": 1}
        whole = {"shards": 2, "provider": "External", "external": external, "cache": {"provider": "None"}, **spec}
        body = {"apiVersion": API_VERSION, "kind": CLUSTER_KIND, "metadata": metadata, "spec": whole}
        self.api.put(MEMORY_CLUSTERS, body)
        self.cluster = ClusterSpec.from_resource(body)

    def label(self, **labels: str) -> None:
        """The tenant's namespace has these labels alone."""
        self.api.put(NAMESPACES, {"metadata": {"name": self.namespace, "labels": labels}})

    def apply(self, *, is_deleted: bool = False, **spec: object) -> None:
        self.spec |= spec
        metadata: dict[str, Any] = {"name": self.name, "namespace": self.namespace, "generation": len(self.spec)}
        metadata["annotations"] = dict(self.annotations)
        with suppress(KeyError):
            known = self.tenant()
            metadata["finalizers"] = known["metadata"].get("finalizers", [])
            metadata |= {"deletionTimestamp": "2027-01-01T00:00:00Z"} if is_deleted else {}
        body = {"apiVersion": API_VERSION, "kind": TENANT_KIND, "metadata": metadata, "spec": self.spec}
        with suppress(KeyError):
            body["status"] = self.tenant()["status"]
        self.api.put(MEMORY_TENANTS, body)

    def tenant(self) -> Manifest:
        return self.api.get(MEMORY_TENANTS, self.namespace, self.name)

    async def run(self) -> Outcome:
        self.api.writes.clear()
        return await self.reconciler.reconcile(Key(TENANT_KIND, self.namespace, self.name))

    async def settle(self) -> Outcome:
        """The outcome once a run does nothing more."""
        for _ in range(8):
            outcome = await self.run()
            if outcome.result != "acted":
                return outcome
        raise AssertionError(self.api.writes)

    def file(self, name: str) -> str:
        secret = self.api.get(SECRETS, self.namespace, tenant_objects(self.name))
        return base64.b64decode(secret["data"][name]).decode()

    @property
    def credentials(self) -> Credentials:
        return Credentials.from_json(self.file(CREDENTIALS_FILE))

    @property
    def keyring(self) -> Keyring:
        return Keyring.from_json(self.file(KEYS_FILE))

    def status(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.tenant()["status"]
        return found

    def ready(self) -> tuple[str, str]:
        condition = next(each for each in self.status()["conditions"] if each["type"] == "Ready")
        return condition["status"], condition["reason"]

    def events(self) -> list[str]:
        found = [each for path, each in self.api.objects.items() if "/events/" in path and EVENTS.prefix in path]
        return [f"{each['reason']}: {each['note']}" for each in found]

    async def can_login(self, password: str) -> bool:
        try:
            connection = await self.servers[0].connect(self.role, self.role, password)
        except asyncpg.InvalidAuthorizationSpecificationError:
            return False
        await connection.close()
        return True


@asynccontextmanager
async def own_session(server: RealServer, stage: Stage) -> AsyncIterator[Any]:
    """A session of the tenant's own."""
    connection = await server.connect(stage.status()["database"], stage.role, stage.credentials.passwords[0])
    try:
        yield connection
    finally:
        await connection.close()
