"""What the injector knows of tenants: from memory where that is proved, else by one call, and never old for long."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from engram_contract.names import API_VERSION, TENANT_KIND
from engram_operator.clients.kube import MEMORY_TENANTS, ApiAccess, Manifest
from engram_operator.errors import ApiUnavailable, DeafWatch
from engram_operator.metrics import InjectorMetrics
from engram_operator.plan.hearing import GRACE_S
from engram_operator.tenants import LOOK_S, PROOF_S, WATCHED, Tenants
from tests.operator_stage import Store


async def no_access() -> ApiAccess:
    raise AssertionError("nothing here watches")


@dataclass
class Stage:
    """Tenants, the store that they are in, the time, and what was asked of the store."""

    store: Store = field(default_factory=Store)
    now_s: list[float] = field(default_factory=lambda: [0.0])
    metrics: InjectorMetrics = field(default_factory=InjectorMetrics)

    def __post_init__(self) -> None:
        self.tenants = Tenants(self.store, no_access, self.metrics, lambda: self.now_s[0])

    def put(self, name: str, namespace: str = "agents", **spec: object) -> Manifest:
        """A tenant of which no watch tells."""
        metadata: dict[str, Any] = {"name": name, "namespace": namespace}
        manifest = {"apiVersion": API_VERSION, "kind": TENANT_KIND, "metadata": metadata, "spec": spec}
        return self.store.put(MEMORY_TENANTS, manifest)

    def deliver(self, manifest: Manifest, event: str | None = "ADDED") -> None:
        self.tenants.hear(WATCHED, event, manifest)

    async def names(self, wanted: str = "", namespace: str = "agents") -> tuple[list[str], int]:
        """The candidates, and how many calls they took."""
        before = len(self.store.timeouts)
        found = await self.tenants.candidates(namespace, wanted)
        return [each.name for each in found], len(self.store.timeouts) - before


@pytest.fixture
async def stage() -> Stage:
    """Two tenants in one namespace and one in another, delivered and proved."""
    made = Stage()
    for manifest in (made.put("a"), made.put("b"), made.put("c", "other")):
        made.deliver(manifest, None)
    await made.tenants.look()
    assert made.tenants.is_proved()
    return made


async def test_before_a_look_every_review_asks() -> None:
    stage = Stage()
    stage.deliver(stage.put("a"))
    assert await stage.names() == (["a"], 1)
    assert await stage.names("a") == (["a"], 1)
    assert stage.tenants.fault == "MemoryTenants were not listed yet"
    assert b"engram_injector_tenants_proved 0.0" in stage.metrics.render()


async def test_what_is_proved_is_answered_from_memory(stage: Stage) -> None:
    assert await stage.names() == (["a", "b"], 0)
    assert await stage.names("b") == (["b"], 0)
    assert await stage.names(namespace="other") == (["c"], 0)
    assert stage.tenants.fault is None
    text = stage.metrics.render().decode()
    assert 'engram_injector_lookups_total{source="memory"} 3.0' in text
    assert 'engram_injector_lookups_total{source="api"} 0.0' in text
    assert "engram_injector_tenants_proved 1.0" in text


async def test_what_is_not_known_is_asked_for_once(stage: Stage) -> None:
    stage.put("new", "empty")
    assert await stage.names(namespace="empty") == (["new"], 1)
    stage.put("late")
    assert await stage.names("late") == (["late"], 1)
    assert await stage.names("gone") == ([], 1)
    assert await stage.names("../../x") == ([], 0)


async def test_an_event_counts_at_once(stage: Stage) -> None:
    stage.deliver(stage.put("a", allowedAgents=[{"name": "clerk"}]), "MODIFIED")
    (tenant,) = await stage.tenants.candidates("agents", "a")
    assert [each.name for each in tenant.allowed_agents] == ["clerk"]
    stage.deliver(stage.store.objects.pop(MEMORY_TENANTS.path("agents", "b")), "DELETED")
    assert await stage.names() == (["a"], 0)
    assert await stage.names("b") == ([], 1)


async def test_a_tenant_with_a_bad_spec_stands_in_nobodys_way(stage: Stage) -> None:
    stage.deliver(stage.put("bad", "other", allowedAgents="x"))
    (tenant,) = await stage.tenants.candidates("other", "bad")
    assert "spec.allowedAgents" in tenant.flaw
    assert await stage.names("c", "other") == (["c"], 0)


@pytest.mark.parametrize("how", ["changed", "made", "deleted"])
async def test_a_change_that_no_watch_tells_is_found_by_the_next_look(stage: Stage, how: str) -> None:
    if how == "deleted":
        del stage.store.objects[MEMORY_TENANTS.path("agents", "b")]
    else:
        stage.put("b" if how == "changed" else "new")
    stage.now_s[0] += LOOK_S
    await stage.tenants.look()
    assert not stage.tenants.is_proved()
    wanted = {"changed": ["a", "b"], "made": ["a", "b"], "deleted": ["a"]}
    assert await stage.names() == (wanted[how], 1)
    assert await stage.names(namespace="other") == (["c"], 0), "the others are as proved as before"
    assert stage.tenants.fault is None, "a call does as well, so there is no reason to be away"


async def test_a_watch_that_stays_deaf_is_given_up(stage: Stage) -> None:
    stage.put("b")
    await stage.tenants.look()
    stage.now_s[0] += GRACE_S + 1
    with pytest.raises(DeafWatch, match="agents/b"):
        await stage.tenants.look()


async def test_an_old_proof_is_none(stage: Stage) -> None:
    stage.store.fault = ApiUnavailable("list: no answer")
    stage.now_s[0] += PROOF_S
    await stage.tenants.look()
    assert await stage.names() == (["a", "b"], 0)
    stage.now_s[0] += 0.1
    with pytest.raises(ApiUnavailable):
        await stage.tenants.candidates("agents", "")
    stage.store.fault = None
    assert await stage.names() == (["a", "b"], 1)
    await stage.tenants.look()
    assert await stage.names() == (["a", "b"], 0)


async def test_until_the_first_proof_the_reason_is_told() -> None:
    stage = Stage()
    stage.store.fault = ApiUnavailable("list: no answer")
    await stage.tenants.look()
    assert stage.tenants.fault == "MemoryTenants cannot be listed: list: no answer"
    stage.store.fault = None
    manifest = stage.put("a")
    await stage.tenants.look()
    assert stage.tenants.fault == "the watch of memorytenants.engram.dev has not delivered all of them yet"
    stage.deliver(manifest, None)
    await stage.tenants.look()
    assert stage.tenants.fault is None
