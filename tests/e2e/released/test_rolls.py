"""What changes a shard's pods is done one by one, the primary last, under a writer; a bad change stops at one pod."""

import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, Final

from engram_contract.names import UPDATE_ANNOTATION
from tests.e2e import load, memory
from tests.e2e.audits import Audit
from tests.e2e.cluster import Cluster
from tests.e2e.released import MEMBERS
from tests.e2e.releases import install

Json = dict[str, Any]
NO_IMAGE: Final = "localhost/engram-postgres:is-nowhere"
CHANGE_GAP_S: Final = 15.0  # a switchover takes two to four seconds on an idle machine
STATEFULSET: Final = "memory-s0"


def uids(cluster: Cluster, namespace: str) -> dict[str, str]:
    return {name: each["metadata"]["uid"] for name, each in load.pods(cluster, namespace).items()}


def under_load(cluster: Cluster, namespace: str, what: str, change: Callable[[], object]) -> None:
    """A change that is carried out while a writer writes to the -rw Service; no row is lost."""
    with load.writing(cluster, namespace) as writer:
        began_s = time.time()
        change()
        memory.wait_ready(cluster, namespace)
        ended_s = time.time()
        time.sleep(1)
        written = writer.written()
        assert writer.lost(written) == []
    gap_s = written.gap_s(began_s, ended_s)
    load.report(f"{what}: {ended_s - began_s:.0f} s, longest gap {gap_s:.2f} s, {len(written.rows)} rows, 0 lost")
    assert gap_s < CHANGE_GAP_S


def deeds(audit: Audit, namespace: str) -> list[str]:
    """What the operator did that interrupts somebody, in order: pods that it deleted, switchovers it asked for."""
    found = []
    for write in audit.writes():
        if write.namespace != namespace or write.code >= 300:
            continue
        if (write.verb, write.resource) == ("delete", "pods"):
            found.append(f"restart {write.name}")
        elif write.resource == "configmaps" and write.name == f"{STATEFULSET}-failover":
            found.append("switchover")
    return found


def test_an_image_that_is_nowhere_costs_one_pod(cluster: Cluster, home: str) -> None:
    before, primary = uids(cluster, home), load.leader(cluster, home)
    with load.writing(cluster, home) as writer:
        began_s = time.time()
        memory.patch(cluster, home, {"postgres": {"image": NO_IMAGE}})

        def told() -> Json:
            found = memory.condition(memory.fetch(cluster, home), "Degraded")
            return found if found.get("reason") == "PodStuck" else {}

        degraded = cluster.wait_until("Degraded", told)
        time.sleep(10)  # in which a second pod would go
        after = uids(cluster, home)
        assert len({name for name in before if after.get(name) != before[name]}) == 1
        body = memory.fetch(cluster, home)
        assert load.leader(cluster, home) == primary
        assert memory.condition(body, "ShardsReady")["status"] == "True"
        assert memory.condition(body, "Ready")["status"] == "False"
        assert "is-nowhere" in degraded["message"]
        undone_s = time.time()
        memory.patch(cluster, home, {"postgres": {"image": None}})
        memory.wait_ready(cluster, home)
        healed_s = time.time()
        written = writer.written()
        assert writer.lost(written) == []
    assert uids(cluster, home)[primary] == before[primary]
    gap_s = written.gap_s(began_s, healed_s)
    load.report(f"no such image: one pod, Degraded {degraded['message']!r}, longest gap {gap_s:.2f} s")
    load.report(f"healed {healed_s - undone_s:.0f} s after it was taken back")
    assert gap_s < CHANGE_GAP_S


def test_a_newer_operator_restarts_no_pod_until_it_may(cluster: Cluster, home: str) -> None:
    """A pull secret of the installation is in every pod's template, so it stands for all that a newer version adds."""
    audit, before = Audit(), load.restarts(cluster, home)
    path = f"/apis/apps/v1/namespaces/{home}/statefulsets/{STATEFULSET}"
    template = cluster.request("GET", path)[1]["spec"]["template"]
    install(cluster, imagePullSecrets=[{"name": "of-the-newer-version"}])

    def held() -> str:
        return str(memory.fetch(cluster, home)["status"].get("update") or "")

    told = cluster.wait_until("what is held back", held)
    memory.wait_ready(cluster, home)
    assert deeds(audit, home) == []
    assert load.restarts(cluster, home) == before
    assert cluster.request("GET", path)[1]["spec"]["template"] == template
    load.report(f"upgrade: 0 restarts, 0 templates changed; status.update {told!r}")
    audit.mark()
    primary = load.leader(cluster, home)
    annotation = {"metadata": {"annotations": {UPDATE_ANNOTATION: "now"}}}

    def update() -> None:
        assert cluster.request("PATCH", memory.path_of(home), annotation)[0] == 200
        cluster.wait_until("nothing to be held back", lambda: not held())

    under_load(cluster, home, "template roll", update)
    done = deeds(audit, home)
    load.report(f"in this order: {done}, the primary was {primary}")
    replicas = sorted(set(before) - {primary}, reverse=True)
    assert done == [*(f"restart {name}" for name in replicas), "switchover", f"restart {primary}"]
    assert not {uid for uid, _ in load.restarts(cluster, home).values()} & {uid for uid, _ in before.values()}


def test_settings_that_need_a_restart_go_up_and_down(cluster: Cluster, home: str) -> None:
    before = uids(cluster, home)
    for count in ("120", "90"):
        under_load(cluster, home, f"max_connections {count}", partial(set_connections, cluster, home, count))
    assert uids(cluster, home) == before


def set_connections(cluster: Cluster, namespace: str, count: str) -> None:
    """So many for each member, and `Ready` is of that: the moment it is True, every member runs with them."""
    memory.patch(cluster, namespace, {"postgres": {"parameters": {"max_connections": count}}})
    memory.wait_ready(cluster, namespace)
    members = load.pods(cluster, namespace)
    assert {memory.sql(cluster, namespace, pod, "SHOW max_connections") for pod in members} == {count}


def test_encryption_is_turned_off_and_on_as_a_roll(cluster: Cluster, home: str) -> None:
    before = uids(cluster, home)
    for enabled in (False, True):
        change = {"postgres": {"tls": {"enabled": enabled}}}
        under_load(cluster, home, f"tls {enabled}", partial(memory.patch, cluster, home, change))
        after = uids(cluster, home)
        assert all(after[name] != before[name] for name in before)
        before = after


def test_a_setting_that_nobody_takes_is_told_by_its_name(cluster: Cluster, home: str) -> None:
    before = load.restarts(cluster, home)
    wrong = {
        "log_timezone": "Mars",
        "max_locks_per_transaction": "5",
        "no_such_setting": "1",
        "work_mem": "potato",
    }
    memory.patch(cluster, home, {"postgres": {"parameters": wrong}})

    def all_told() -> bool:
        degraded = memory.condition(memory.fetch(cluster, home), "Degraded")
        named = all(f"spec.postgres.parameters.{name}" in degraded["message"] for name in wrong)
        return named and degraded["reason"] == "SettingsRefused"

    cluster.wait_until("what is refused", all_told)
    assert memory.condition(memory.fetch(cluster, home), "ShardsReady")["status"] == "True"
    memory.patch(cluster, home, {"postgres": {"parameters": dict.fromkeys(wrong)}})
    memory.wait_ready(cluster, home)
    assert load.restarts(cluster, home) == before


def test_members_go_and_come_without_the_loss_of_a_row(cluster: Cluster, home: str) -> None:
    audit = Audit()
    led: list[str] = []

    def there_and_back() -> None:
        for count in (0, MEMBERS - 1):
            memory.patch(cluster, home, {"replicas": count})
            memory.wait_ready(cluster, home)
            led.append(load.leader(cluster, home))
            assert len(load.pods(cluster, home)) == count + 1

    under_load(cluster, home, "2 to 0 to 2 replicas", there_and_back)
    sizes = [
        write.body["spec"]["replicas"] for write in audit.writes() if is_size(write.resource, write.body, write.name)
    ]
    load.report(f"sizes {sizes}, deeds {deeds(audit, home)}, leaders {led}")
    assert all(before - after <= 1 for before, after in pairwise([MEMBERS, *sizes]))
    assert led[0] == "memory-s0-0"


def is_size(resource: str, body: Json, name: str) -> bool:
    return resource == "statefulsets" and name == STATEFULSET and "replicas" in body.get("spec", {})


def test_a_drain_takes_one_member_at_a_time(cluster: Cluster, home: str) -> None:
    """By the API that `kubectl drain` uses; on one node every pod has to come back where it was."""
    load.wait_whole(cluster, home, MEMBERS)
    first, second, _ = load.pods(cluster, home)
    assert evict(cluster, home, first)[0] == 201
    status, answer = evict(cluster, home, second)
    assert (status, answer["reason"]) == (429, "TooManyRequests")
    assert "disruption budget" in answer["message"]
    load.wait_whole(cluster, home, MEMBERS)
    cluster.wait_until("the next one's turn", lambda: evict(cluster, home, second)[0] == 201)
    load.wait_whole(cluster, home, MEMBERS)


def evict(cluster: Cluster, namespace: str, pod: str) -> tuple[int, Json]:
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
    return cluster.request("POST", f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction", body)
