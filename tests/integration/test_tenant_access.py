"""A tenant whose cluster does not admit its namespace any more: its access ends, and all that it stored stays."""

import json
from typing import Any, Final

import pytest

from engram_operator.clients import postgres
from engram_operator.clients.kube import MEMORY_CLUSTERS, NAMESPACES, Manifest, Resource
from engram_operator.errors import ApiError
from tests.harness import wait_ended
from tests.operator_stage import Store
from tests.tenant_stage import Servers, Stage, own_session

TEAM: Final = {"matchLabels": {"team": "agents"}}
INSERT: Final = (
    "INSERT INTO engram.memories (tenant, slot, id, namespace, type, content, value, created, updated, version,"
    " terms, term_count) VALUES ($1, 0, gen_random_uuid(), '{}', 'x', 'kept', 'null', now(), now(), 1, '', 0)"
)


def message(stage: Stage) -> str:
    return str(next(each for each in stage.status()["conditions"] if each["type"] == "Ready")["message"])


async def admitted(servers: Servers, api: Store | None = None) -> Stage:
    """A tenant of another namespace than its cluster's, admitted by a label, with a memory on the first shard."""
    stage = Stage(servers, TEAM, api)
    stage.label(team="agents")
    await stage.settle()
    assert stage.ready() == ("True", "Ready")
    async with servers[0].session(stage.status()["database"]) as connection:
        await connection.execute(INSERT, stage.role)
    return stage


async def is_out(stage: Stage) -> bool:
    """Whether no shard takes the tenant's password."""
    return not await stage.can_login(stage.credentials.passwords[0])


@pytest.mark.parametrize("how", ["label", "selector", "no selector"])
async def test_access_that_is_revoked_ends_at_once_and_comes_back_with_everything(servers: Servers, how: str) -> None:
    stage = await admitted(servers)
    password, published = stage.credentials.passwords[0], stage.status()["published"]
    async with own_session(servers[0], stage) as open_one, own_session(servers[1], stage) as open_two:
        pids = open_one.get_server_pid(), open_two.get_server_pid()
        if how == "label":
            stage.label(team="strangers")
        else:
            other = {"access": {"namespaceSelector": {"matchLabels": {"team": "others"}}}}
            stage.set_cluster(**(other if how == "selector" else {}))
        outcome = await stage.run()
        for server, pid in zip(servers, pids, strict=True):
            await wait_ended(server, pid)
    assert stage.ready() == ("False", "NotAdmitted")
    assert "spec.access.namespaceSelector" in message(stage)
    assert "its memories stay" in message(stage)
    assert {line.split()[-1] for line in outcome.done} == {"s0", "s1"}
    assert [each.split(":")[0] for each in stage.events()] == ["AccessEnded"]
    assert await is_out(stage)
    stage.now_s += 10
    again = await stage.run()
    assert (again.result, again.done, stage.api.writes) == ("waiting", (), [])
    if how == "label":
        stage.label(team="agents")
    else:
        stage.set_cluster(access={"namespaceSelector": TEAM})
    await stage.run()
    assert stage.ready() == ("True", "Ready")
    assert await stage.can_login(password)
    await stage.settle()
    assert stage.status()["published"] == published
    async with own_session(servers[0], stage) as connection:
        assert await connection.fetchval("SELECT content FROM engram.memories") == "kept"


async def test_what_cannot_be_looked_at_shuts_out_nobody(servers: Servers) -> None:
    stage = await admitted(servers)
    namespace = stage.api.objects.pop(NAMESPACES.path(None, stage.namespace))
    with pytest.raises(ApiError):
        await stage.run()
    assert not await is_out(stage)
    stage.api.put(NAMESPACES, namespace)
    cluster = stage.api.objects.pop(MEMORY_CLUSTERS.path(stage.home, "mem"))
    await stage.run()
    assert stage.ready() == ("False", "ClusterNotFound")
    assert not await is_out(stage)
    spoilt = json.loads(json.dumps(cluster))
    spoilt["spec"]["access"] = {"namespaceSelector": {"matchLabels": {"team": 5}}}
    stage.api.put(MEMORY_CLUSTERS, spoilt)
    await stage.run()
    assert stage.ready() == ("False", "ClusterRefused")
    assert not await is_out(stage)


class Flickering(Store):
    """An API server whose namespaces lose their labels for one look, as between two edits."""

    flickers = False

    async def fetch(self, resource: Resource, namespace: str | None, name: str, *, timeout_s: float = 10.0) -> Manifest:
        found: dict[str, Any] = await super().fetch(resource, namespace, name, timeout_s=timeout_s)
        if resource is NAMESPACES and self.flickers:
            self.flickers = False
            found["metadata"]["labels"] = {}
        return found


async def test_one_look_is_not_enough_to_shut_a_tenant_out(servers: Servers) -> None:
    api = Flickering()
    stage = await admitted(servers, api=api)
    api.flickers = True
    assert (await stage.run()).result == "settled"
    assert stage.ready() == ("True", "Ready")


async def test_a_shard_that_is_away_is_shut_when_it_is_back(servers: Servers) -> None:
    stage = await admitted(servers)
    stage.lead(0, 1)
    stage.label()
    await stage.run()
    assert "s0" in message(stage)
    assert not await is_out(stage), "the shard that the helper asks was away"
    stage.lead(0, servers[0].admin.port)
    await stage.run()
    assert await is_out(stage)
    assert "s0" not in message(stage)


async def test_a_login_that_somebody_opened_by_hand_is_shut_within_a_minute(servers: Servers) -> None:
    stage = await admitted(servers)
    stage.label()
    await stage.run()
    async with servers[0].session("postgres") as connection:
        await connection.execute(f"ALTER ROLE {stage.role} LOGIN")
    stage.now_s += 30
    await stage.run()
    assert not await is_out(stage), "shards are not asked all the time"
    stage.now_s += 30
    await stage.run()
    assert await is_out(stage)


async def test_a_paused_cluster_is_left_alone(servers: Servers) -> None:
    stage = await admitted(servers)
    stage.label()
    stage.set_cluster(access={"namespaceSelector": TEAM}, paused=True)
    await stage.run()
    assert stage.ready() == ("False", "NotAdmitted")
    assert "paused" in message(stage)
    assert not await is_out(stage)


async def test_a_tenant_beside_its_cluster_is_never_concerned(servers: Servers) -> None:
    stage = Stage(servers)
    await stage.settle()
    stage.set_cluster(access={"namespaceSelector": TEAM})
    stage.label()
    assert (await stage.settle()).result == "settled"
    assert not await is_out(stage)


async def test_who_never_had_access_costs_no_shard_anything(servers: Servers) -> None:
    """Anybody may make MemoryTenants in a namespace of their own."""
    stage = Stage(servers, TEAM)
    for number in range(2):
        stage.lead(number, 1)
    await stage.run()
    assert stage.ready() == ("False", "NotAdmitted")
    assert "s0" not in message(stage)
    assert [path.rpartition("/")[2] for _, path in stage.api.writes] == ["status"]


async def test_who_keeps_its_own_role_changing_is_shut_out_all_the_same(servers: Servers) -> None:
    """An open transaction in which the role changes itself would keep the operator waiting for as long as it likes."""
    stage = await admitted(servers)
    async with own_session(servers[0], stage) as holder:
        await holder.execute(f"BEGIN; ALTER ROLE {stage.role} PASSWORD 'mine'")
        stage.label(team="strangers")
        await stage.run()
        await wait_ended(servers[0], holder.get_server_pid())
    assert await is_out(stage)
    assert not await stage.can_login("mine")
    stage.label(team="agents")
    await stage.settle()
    assert stage.ready() == ("True", "Ready")
    async with own_session(servers[0], stage) as holder:
        await holder.execute(f"BEGIN; ALTER ROLE {stage.role} PASSWORD 'mine'")
        async with own_session(servers[0], stage) as other:
            pid = other.get_server_pid()
            await postgres.apply_tenant(servers[0].admin, stage.status()["database"], stage.role, "ours")
            assert await other.fetchval("SELECT pg_backend_pid()") == pid, "who hinders nobody goes on"
        await wait_ended(servers[0], holder.get_server_pid())
    assert not await stage.can_login("mine")
