"""The Postgres image under Patroni, as a StatefulSet made by hand: it replicates, fails over and loses nothing.

And the same from the other base, with the Postgres of a wheel: what both can do is asked of both.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.e2e import load, shards
from tests.e2e.cluster import Cluster
from tests.e2e.releases import image, need_image

SHARD: Final = "s0"
WRITES_S: Final = 20  # a take-over, with time before and after it
WRITER: Final = Path(__file__).with_name("writer.py")
# A try for the lock meets a conflict: what a leader says of it that renews its lock, by the seconds left to it;
# and who takes a lock that ran out, by whose it was, whose it is now, and whether somebody wrote it in between.
CONFLICT: Final = """
import sys, time
from types import SimpleNamespace
from patroni.dcs.kubernetes import Kubernetes, KubernetesError, k8s_client
from patroni.utils import Retry
def conflict(**kwargs):
    raise k8s_client.rest.ApiException(status=409, reason='Conflict')
def patch(*args, retry, **kwargs):
    return retry(conflict)
def other(*args, **kwargs):
    return SimpleNamespace(metadata=SimpleNamespace(annotations={'leader': 'other'}, resource_version='2'))
class Leader(Kubernetes):
    leader_path, _name, _namespace = 'memory-s0-leader', 'me', 'home'
    _patch_or_create = staticmethod(patch)
    def __init__(self, left_s):
        self._retry = Retry(deadline=left_s, max_delay=1, max_tries=-1)
        self._api = SimpleNamespace(read_namespaced_kind=other)
        self._kinds = SimpleNamespace(set=lambda name, kind: None)
for left_s in (5.0, 0.5):
    try:
        print(Leader(left_s)._update_leader_with_retry({'leader': 'me'}, '1', []))
    except KubernetesError as error:
        print(error.value)
class Taker(Leader):
    _ttl, _leader_resource_version, _Kubernetes__ips = 20, '1', []
    def __init__(self, left_s, was, now, renewed):
        super().__init__(left_s)
        lock = SimpleNamespace(annotations={'leader': now, 'renewTime': renewed}, resource_version='2')
        self._api = SimpleNamespace(read_namespaced_kind=lambda *args, **kwargs: SimpleNamespace(metadata=lock))
        self._kinds = self._pods = SimpleNamespace(get=lambda name: None, kill_stream=lambda: None)
        self._leader_observed_record = {'leader': was, 'renewTime': 'before'}
for found in ((5.0, 'me', 'me', 'since'), (5.0, 'me', 'me', 'before'), (5.0, 'me', 'other', 'since'),
              (0.5, 'me', 'me', 'since'), (0.5, 'other', 'me', 'since')):
    try:
        print(Taker(*found).attempt_to_acquire_leader())
    except KubernetesError as error:
        print(error.value)
"""


@pytest.fixture(scope="module")
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace that enforces Pod Security `restricted`, with a shard of two members."""
    with restricted(cluster, "shard") as name:
        shards.create_shard(cluster, name, SHARD, members=2)
        yield name


@pytest.fixture(scope="module")
def wheel(cluster: Cluster) -> Iterator[str]:
    """As `namespace`, with the image that has its Postgres from a wheel."""
    ours = need_image("postgres-wheel")
    with restricted(cluster, "wheel") as name:
        manifests = json.dumps(list(shards.build_shard(name, SHARD, members=2)))
        shards.apply(cluster, json.loads(manifests.replace(f'"{image("postgres")}"', f'"{ours}"')))
        wait_members(cluster, name)
        yield name


@contextmanager
def restricted(cluster: Cluster, prefix: str) -> Iterator[str]:
    with cluster.namespace(prefix) as name:
        cluster.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
        yield name


def wait_members(cluster: Cluster, namespace: str) -> None:
    """Both members are ready, and one is the primary."""
    cluster.wait_until("both members", lambda: len(shards.ready(cluster, namespace, SHARD)) == 2)
    cluster.wait_until("a primary", lambda: shards.primary(cluster, namespace, SHARD))


def sql(cluster: Cluster, namespace: str, pod: str, query: str) -> str:
    """What psql answers in a member, as the superuser over its local socket."""
    psql = ("/opt/postgres/bin/psql", "-h", "/tmp", "-U", "postgres", "-tAc", query)  # noqa: S108
    return cluster.kubectl("exec", "-n", namespace, pod, "-c", "postgres", "--", *psql).strip()


def start_writer(cluster: Cluster, namespace: str, name: str) -> None:
    """The writer is at work: its first row is acknowledged."""
    host = f"{SHARD}-rw.{namespace}.svc"
    container = {
        "name": "writer",
        "image": image("postgres"),  # has a driver of Postgres
        "imagePullPolicy": "IfNotPresent",
        "command": ["/opt/patroni/bin/python", "-c", WRITER.read_text(), host, shards.PASSWORD, str(WRITES_S)],
        "securityContext": shards.RESTRICTED,
    }
    spec = {"restartPolicy": "Never", "securityContext": shards.RESTRICTED_POD, "containers": [container]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace}, "spec": spec}
    cluster.kubectl("apply", "-f", "-", input=json.dumps(pod))
    is_written = re.compile(r"^\d", re.MULTILINE).search  # what was refused before is told by a word
    cluster.wait_until("the first row", lambda: bool(is_written(log(cluster, namespace, name))))


def log(cluster: Cluster, namespace: str, pod: str) -> str:
    """What the pod has said so far; nothing before it starts."""
    status, text = cluster.fetch("GET", f"/api/v1/namespaces/{namespace}/pods/{pod}/log")
    return text if status == 200 else ""


def written(cluster: Cluster, namespace: str, name: str) -> tuple[set[int], dict[str, Any]]:
    """The acknowledged numbers and the writer's last line, once it has ended."""
    cluster.kubectl("wait", "-n", namespace, f"pod/{name}", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=90s")
    *lines, last = log(cluster, namespace, name).strip().splitlines()
    return {int(line.split()[0]) for line in lines if line[0].isdigit()}, json.loads(last)


@pytest.mark.parametrize(("base", "tls"), [("namespace", "OpenSSL"), ("wheel", "")])
def test_the_image_has_what_a_shard_needs(
    cluster: Cluster, request: pytest.FixtureRequest, base: str, tls: str
) -> None:
    namespace = request.getfixturevalue(base)
    assert sql(cluster, namespace, f"{SHARD}-0", "SHOW server_version_num").startswith("18")
    assert sql(cluster, namespace, f"{SHARD}-0", "SHOW ssl_library") == tls
    extensions = sql(cluster, namespace, f"{SHARD}-0", "SELECT string_agg(name, ' ') FROM pg_available_extensions")
    assert "vector" in extensions.split()
    for program in ("barman-cloud-backup", "barman-cloud-wal-archive", "barman-cloud-restore", "patronictl"):
        cluster.kubectl("exec", "-n", namespace, f"{SHARD}-0", "--", f"/opt/patroni/bin/{program}", "--help")


@pytest.mark.parametrize("base", ["namespace", "wheel"])
def test_a_leader_steps_down_for_a_conflict_only_once_it_has_read_that_the_lock_is_not_its_own(
    cluster: Cluster, request: pytest.FixtureRequest, base: str
) -> None:
    said = load.python(cluster, request.getfixturevalue(base), f"{SHARD}-0", CONFLICT)
    unread = "no time to read who has the lock"
    assert said.splitlines()[-7:] == ["False", unread, "True", "False", "False", unread, "False"]


def test_the_pooler_knows_prepared_statements(cluster: Cluster, namespace: str) -> None:
    said = cluster.kubectl("exec", "-n", namespace, f"{SHARD}-0", "--", "/opt/pgbouncer", "--version")
    version = re.match(r"PgBouncer (\d+)\.(\d+)", said)
    assert version is not None
    assert (int(version[1]), int(version[2])) >= (1, 21)  # the first with max_prepared_statements
    assert "tls: OpenSSL" in said


def test_the_container_writes_only_where_it_must(cluster: Cluster, namespace: str) -> None:
    probe = (
        "import os, sys; sys.exit([d for d in ('/', '/opt', '/var', '/etc', '/usr') if os.access(d, os.W_OK)] != [])"
    )
    cluster.kubectl("exec", "-n", namespace, f"{SHARD}-0", "--", "/opt/patroni/bin/python", "-c", probe)
    assert cluster.kubectl("exec", "-n", namespace, f"{SHARD}-0", "--", "id", "-u").strip() == "999"


@pytest.mark.parametrize("base", ["namespace", "wheel"])
def test_the_second_member_is_a_synchronous_replica(
    cluster: Cluster, request: pytest.FixtureRequest, base: str
) -> None:
    namespace = request.getfixturevalue(base)
    leader = shards.primary(cluster, namespace, SHARD)
    assert leader is not None
    query = "SELECT string_agg(state || ' ' || sync_state, ',') FROM pg_stat_replication"
    name = leader["metadata"]["name"]
    cluster.wait_until(
        "a synchronous replica", lambda: sql(cluster, namespace, name, query) in {"streaming sync", "streaming quorum"}
    )


@pytest.mark.parametrize("how", ["in order", "by force", "its Postgres killed"])
def test_the_primary_is_lost_and_no_acknowledged_row_is(cluster: Cluster, namespace: str, how: str) -> None:
    lose_primary(cluster, namespace, how)


def test_nor_is_one_of_the_wheel(cluster: Cluster, wheel: str) -> None:
    lose_primary(cluster, wheel, "by force")


def lose_primary(cluster: Cluster, namespace: str, how: str) -> None:
    """The primary was lost under a writer and another, or itself, has every row that was acknowledged."""
    cluster.wait_until("both members", lambda: len(shards.ready(cluster, namespace, SHARD)) == 2)
    lost = shards.primary(cluster, namespace, SHARD)
    assert lost is not None
    name = lost["metadata"]["name"]
    sql(cluster, namespace, name, "DROP TABLE IF EXISTS t")
    writer = f"writer-{how.rsplit(' ', 1)[-1]}"
    start_writer(cluster, namespace, writer)
    if how == "its Postgres killed":
        load.kill_postgres(cluster, namespace, name)
    else:
        forced = ("--grace-period=0", "--force") if how == "by force" else ()
        cluster.kubectl("delete", "pod", "-n", namespace, name, "--wait=false", *forced)
        uid = lost["metadata"]["uid"]

        def is_taken_over() -> bool:
            leader = shards.primary(cluster, namespace, SHARD)
            return leader is not None and leader["metadata"]["uid"] != uid

        cluster.wait_until("another primary", is_taken_over)
    acknowledged, result = written(cluster, namespace, writer)
    leader = shards.primary(cluster, namespace, SHARD)
    assert leader is not None
    rows = sql(cluster, namespace, leader["metadata"]["name"], "SELECT string_agg(n::text, ' ') FROM t")
    assert acknowledged - {int(row) for row in rows.split()} == set()
    assert result["acknowledged"] == len(acknowledged) > 100
    print(f"{how}: {result}")  # noqa: T201  a figure for the proofs; nothing is asserted of a time
    cluster.wait_until("the lost member's return", lambda: len(shards.ready(cluster, namespace, SHARD)) == 2)
