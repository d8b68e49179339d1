"""What `engram up` decides: tables, without a disk or a process."""

from dataclasses import replace
from typing import Any

import pytest

from engram_cli import localplan
from engram_cli.errors import Failure, Misuse
from engram_cli.localplan import ShardSeen, Start
from engram_cli.pgsettings import build_settings, refused_parameters
from engram_cli.ports import choose_port, ports_from
from engram_cli.state import BadState, LocalState, ShardRecord, TenantRecord
from engram_contract.policy import Isolation
from engram_contract.shardmap import ShardMap, ShardState
from engram_contract.spec import ClusterSpec, TenantSpec
from engram_operator.plan import maps

API = "engram.dev/v1alpha1"
EXTERNAL = {"id": "s0", "secretRef": {"name": "dsn", "key": "s0"}}
PORTS = {f"s{number}": 20_000 + number for number in range(4)}


def cluster(**spec: Any) -> ClusterSpec:  # noqa: ANN401
    """A cluster agents/local."""
    metadata = {"name": "local", "namespace": "agents"}
    return ClusterSpec.from_resource(
        {"apiVersion": API, "kind": "MemoryCluster", "metadata": metadata, "spec": {"shards": 2} | spec}
    )


def tenant(name: str = "support", namespace: str = "agents", **spec: Any) -> TenantSpec:  # noqa: ANN401
    """A tenant of agents/local."""
    body = {"clusterRef": {"name": "local", "namespace": "agents"}} | spec
    metadata = {"name": name, "namespace": namespace}
    return TenantSpec.from_resource({"apiVersion": API, "kind": "MemoryTenant", "metadata": metadata, "spec": body})


def state(*tenants: TenantSpec, old: LocalState | None = None, **spec: Any) -> LocalState:  # noqa: ANN401
    """What the data directory remembers after a run with these manifests."""
    return localplan.plan_state(old, cluster(**spec), tenants, 18, "uid")


def override(shard_id: str, **members: Any) -> dict[str, Any]:  # noqa: ANN401
    """A spec with one shard that differs."""
    return {"shardOverrides": [{"id": shard_id, **members}]}


def test_a_first_run_remembers_whose_it_is() -> None:
    made = state(tenant())
    assert made == LocalState(
        "agents/local",
        "uid",
        18,
        "User",
        (ShardRecord("s0"), ShardRecord("s1")),
        (TenantRecord("agents", "support", "Strict"),),
    )
    assert LocalState.from_json(made.to_json()) == made


def test_a_second_run_keeps_uid_ports_and_tenants_that_left() -> None:
    first = state(tenant(), tenant("sales")).with_shard(ShardRecord("s1", 23_456, 1, has_vector=True))
    second = localplan.plan_state(first, cluster(), [tenant()], 18, "another uid")
    assert (second.uid, second.shards) == (first.uid, first.shards)
    assert localplan.left_out(second, [tenant()]) == ("agents/sales",)


@pytest.mark.parametrize(
    ("spec", "version", "tenants", "line"),
    [
        ({"shards": 3}, 18, [], "spec.shards: the data directory has 2 shards, not 3: resharding is not there yet"),
        ({"shards": 1}, 18, [], "spec.shards: the data directory has 2 shards, not 1: the others hold memories"),
        ({}, 16, [], "the data directory holds data of Postgres 18, not 16"),
        ({"shardingStrategy": "Time"}, 18, [], "spec.shardingStrategy: is Time, but the stored memories lie by User"),
        ({}, 18, [tenant(isolation="Moderate")], "tenant agents/support: spec.isolation: is Moderate, but"),
    ],
)
def test_what_would_hide_memories_is_refused(
    spec: dict[str, Any], version: int, tenants: list[TenantSpec], line: str
) -> None:
    with pytest.raises(Misuse) as refused:
        localplan.plan_state(state(tenant()), cluster(**spec), tenants, version, "uid")
    assert str(refused.value).startswith(line)


def test_another_cluster_is_refused() -> None:
    other = replace(state(), cluster="agents/other")
    with pytest.raises(Misuse, match="belongs to the cluster agents/other, not to agents/local"):
        state(old=other)


@pytest.mark.parametrize(
    ("spec", "tenants", "line"),
    [
        ({"planOnly": True}, [], "spec.planOnly"),
        (
            {
                "provider": "External",
                "external": [{"id": f"s{n}", "secretRef": {"name": "dsn", "key": "k"}} for n in (0, 1)],
            },
            [],
            "spec.provider",
        ),
        ({}, [tenant(namespace="elsewhere")], "tenant elsewhere/support: the cluster agents/local takes no tenants"),
    ],
)
def test_what_local_mode_must_not_pretend_is_refused(
    spec: dict[str, Any], tenants: list[TenantSpec], line: str
) -> None:
    with pytest.raises(Misuse) as refused:
        localplan.check_manifests(cluster(**spec), tenants)
    assert str(refused.value).startswith(line)


def test_a_cluster_with_a_selector_takes_tenants_of_other_namespaces() -> None:
    localplan.check_manifests(cluster(access={"namespaceSelector": {}}), [tenant(namespace="elsewhere")])


@pytest.mark.parametrize(
    ("seen", "start"),
    [
        (ShardSeen(has_data=False, is_running=False, settings_changed=True), Start.INITIALIZE),
        (ShardSeen(has_data=True, is_running=False, settings_changed=False), Start.START),
        (ShardSeen(has_data=True, is_running=False, settings_changed=True), Start.START),
        (ShardSeen(has_data=True, is_running=True, settings_changed=True), Start.RESTART),
        (ShardSeen(has_data=True, is_running=True, settings_changed=False), Start.ADOPT),
    ],
)
def test_a_shard_gets_what_it_needs(seen: ShardSeen, start: Start) -> None:
    assert localplan.plan_shard(seen) is start


def test_tenants_are_served_as_asked() -> None:
    tenants = [tenant("a"), tenant("b"), tenant("c")]
    assert localplan.select_tenants(tenants, []) == tuple(tenants)
    assert [each.name for each in localplan.select_tenants(tenants, ["agents/c", "agents/a", "agents/c"])] == ["c", "a"]
    with pytest.raises(Misuse, match="--tenant x/y: the manifests hold agents/a, agents/b, agents/c"):
        localplan.select_tenants(tenants, ["x/y"])
    with pytest.raises(Misuse, match="nobody to serve"):
        localplan.select_tenants([], [])


def test_each_tenant_has_ports_of_its_own() -> None:
    endpoints = localplan.plan_endpoints([tenant("a"), tenant("b")], 7711)
    assert {label: (each.http_port, each.admin_port) for label, each in endpoints.items()} == {
        "agents/a": (7711, 7712),
        "agents/b": (7721, 7722),
    }


@pytest.mark.parametrize(("count", "port"), [(1, 0), (1, 65_535), (1, -1), (2, 65_530)])
def test_ports_beyond_the_last_are_refused(count: int, port: int) -> None:
    with pytest.raises(Misuse, match=f"^--port {port}: {count} tenants need"):
        localplan.plan_endpoints([tenant(f"t{number}") for number in range(count)], port)


def planned(*known: ShardMap, who: TenantSpec | None = None, **spec: Any) -> ShardMap:  # noqa: ANN401
    """The map of a tenant."""
    return localplan.plan_map(who or tenant(), cluster(**spec), PORTS, known)


def test_a_first_map_shares_the_slots_and_names_ports_and_the_tenants_own_database() -> None:
    first = planned()
    assert first.epoch == 1
    assert [first.slots_of(each.id) for each in first.shards] == [8192, 8192]
    assert [(each.nodes[0].host, each.nodes[0].port) for each in first.shards] == [
        ("127.0.0.1", 20_000),
        ("127.0.0.1", 20_001),
    ]
    assert {each.database for each in first.shards} == {first.tenant}


@pytest.mark.parametrize(("isolation", "is_own"), [("Strict", True), ("Moderate", False), ("Minimal", False)])
def test_only_a_strict_tenant_has_a_database_of_its_own(isolation: str, is_own: bool) -> None:
    assert maps.tenant_database("t_x", Isolation(isolation)) == ("t_x" if is_own else "engram")


def test_the_same_manifests_give_the_very_map() -> None:
    assert planned(planned()) == planned()


def test_a_changed_state_is_a_new_epoch_with_the_same_slots() -> None:
    first = planned()
    second = planned(first, **override("s1", state="ReadOnly"))
    assert (second.epoch, second.ranges, second.shard("s1").state) == (2, first.ranges, ShardState.READONLY)
    assert planned(first, second).epoch == 3


def test_the_newest_known_map_is_restated_wherever_it_was() -> None:
    first = planned()
    newer = replace(first, epoch=7)
    assert planned(newer, first).epoch == planned(first, newer).epoch == 7


def test_changed_weights_move_nothing_and_are_seen() -> None:
    first = planned()
    heavier = planned(first, **override("s1", weight=3))
    assert heavier.ranges == first.ranges
    assert localplan.shares_differ(heavier)
    assert not localplan.shares_differ(first)
    assert not localplan.shares_differ(planned(**override("s1", weight=3)))


def test_a_tenant_lies_only_on_shards_of_its_residency() -> None:
    spec = override("s1", residency="eu")
    assert planned(who=tenant(residency="eu"), **spec).slots_of("s1") == 16_384
    assert planned(**spec).slots_of("s0") == 16_384
    with pytest.raises(Misuse, match=r"^tenant agents/support: spec\.residency: "):
        planned(who=tenant(residency="mars"), **spec)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", '{"format": 1}', '{"format": 2}', '{"format": 1, "shards": 3, "tenants": []}']
)
def test_a_text_that_is_no_state_is_said_to_be_none(text: str) -> None:
    with pytest.raises(BadState, match=r"is damaged|has format 2; this version of engram reads format 1"):
        LocalState.from_json(text)


@pytest.mark.parametrize(
    ("kept", "taken", "busy", "port"),
    [
        (20_005, set[int](), set[int](), 20_005),
        (20_005, set[int](), {20_005}, 20_000),
        (20_005, {20_005}, {20_000}, 20_001),
        (None, {20_000}, {20_001}, 20_002),
    ],
)
def test_a_shard_keeps_its_port_or_gets_a_free_one(
    kept: int | None, taken: set[int], busy: set[int], port: int
) -> None:
    assert choose_port(kept, range(20_000, 20_010), taken, lambda each: each not in busy) == port


def test_every_port_is_tried_once_before_the_search_ends() -> None:
    tried: list[int] = []

    def never_free(port: int) -> bool:
        tried.append(port)
        return False

    with pytest.raises(Failure, match="no port from 20000 to 29999 is free"):
        choose_port(None, ports_from(29_999), set(), never_free)
    assert sorted(tried) == list(range(20_000, 30_000))
    assert tried[0] == 29_999


def test_settings_are_ours_then_the_manifests_then_our_defaults() -> None:
    lines = build_settings(20_001, {"work_mem": "1'\\\n", "FSYNC": "off", "max_connections": "7"}).splitlines()
    settings = dict(line.split(" = ", 1) for line in lines[1:])
    assert settings["port"] == "'20001'"
    assert settings["work_mem"] == r"'1''\\\n'"
    assert settings["fsync"] == "'on'"
    assert settings["max_connections"] == "'7'"
    assert settings["max_wal_size"] == "'512MB'"
    assert settings["log_min_error_statement"] == "'panic'"
    assert refused_parameters({"work_mem": "1", "FSYNC": "off", "data_directory": "/"}) == ("FSYNC", "data_directory")
