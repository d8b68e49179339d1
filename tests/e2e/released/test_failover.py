"""A primary is killed, deleted and frozen, and the API server is away, under a writer: short gaps, and no loss.

Short: a few events; long (soak): fifty kills, ten freezes, five deletes by force, a minute without the API server.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Final

import pytest

from tests.e2e import load, memory
from tests.e2e.cluster import Cluster
from tests.e2e.machine import pid_of
from tests.e2e.released import MEMBERS

KILL_P99_S: Final = 5.0
FREEZE_GAP_S: Final = 30.0  # Patroni gives a silent primary 20 s
AWAY_GAP_S: Final = 2.0  # one that steps down and leads again takes about three
# What to freeze: Patroni alone, every process of Postgres, or both. PID 1 is Patroni's own init, which cannot be.
SIGNAL: Final = """
import os, signal, sys
def name(pid):
    try:
        return open(f'/proc/{pid}/cmdline').read().replace('\\0', ' ')
    except OSError:
        return ''
def is_patroni(text):
    return '/patroni' in text.split(' -c ')[0] and 'python' in text
def is_postgres(text):
    return text.startswith('postgres:') or text.startswith('/opt/postgres/bin/postgres') or '/bin/postgres ' in text
wanted = {'Patroni': [is_patroni], 'Postgres': [is_postgres], 'both': [is_postgres, is_patroni]}[sys.argv[1]]
pids = [int(pid) for pid in os.listdir('/proc') if pid.isdigit() and int(pid) not in (1, os.getpid())]
found = [pid for pid in pids if any(each(name(pid)) for each in wanted)]
for pid in found:
    os.kill(pid, getattr(signal, sys.argv[2]))
print(len(found))
"""


def kill(cluster: Cluster, namespace: str, primary: str) -> None:
    load.kill_postgres(cluster, namespace, primary)


def delete(cluster: Cluster, namespace: str, primary: str) -> None:
    cluster.kubectl("delete", "pod", "-n", namespace, primary, "--wait=false")


def force(cluster: Cluster, namespace: str, primary: str) -> None:
    cluster.kubectl("delete", "pod", "-n", namespace, primary, "--wait=false", "--force", "--grace-period=0")


def is_new(cluster: Cluster, namespace: str, pod: str, uid: str) -> bool:
    found = load.pods(cluster, namespace).get(pod)
    return found is not None and found["metadata"]["uid"] != uid


def lose_primaries(
    cluster: Cluster, namespace: str, ways: list[Callable[[Cluster, str, str], None]]
) -> dict[str, list[float]]:
    """The gap of each event by its way, after it was seen that no acknowledged row is lost."""
    windows: list[tuple[str, float, float]] = []
    with load.writing(cluster, namespace, members=MEMBERS) as writer:
        for way in ways:
            load.wait_whole(cluster, namespace, MEMBERS)
            before = load.restarts(cluster, namespace)
            primary = load.leader(cluster, namespace)
            began_s = time.time()
            way(cluster, namespace, primary)
            if way is kill:
                time.sleep(2)  # nothing of the pod tells of it
            else:
                cluster.wait_until("another pod", partial(is_new, cluster, namespace, primary, before[primary][0]))
            load.wait_whole(cluster, namespace, MEMBERS)
            windows.append((way.__name__, began_s, time.time()))
        written = writer.written()
        assert writer.lost(written) == []
    gaps: dict[str, list[float]] = {}
    for name, began_s, ended_s in windows:
        gaps.setdefault(name, []).append(written.gap_s(began_s, ended_s))
    for name, found in gaps.items():
        load.report(f"{name}: {load.figures(found)}; {len(written.rows)} acknowledged rows, 0 lost")
    return gaps


def test_a_lost_primary_costs_seconds_and_no_row(cluster: Cluster, home: str) -> None:
    gaps = lose_primaries(cluster, home, [kill, delete] * 3)
    assert max(chain(*gaps.values())) < 2 * KILL_P99_S  # six say nothing of a percentile; the long form does


@pytest.mark.soak
def test_fifty_lost_primaries_cost_seconds_and_no_row(cluster: Cluster, home: str) -> None:
    gaps = lose_primaries(cluster, home, [kill, delete] * 25)
    whole = sorted(chain(*gaps.values()))
    load.report(f"all: {load.figures(whole)}")
    assert whole[int(len(whole) * 0.99)] < KILL_P99_S


@pytest.mark.soak
def test_a_primary_that_is_deleted_by_force_costs_no_row(cluster: Cluster, home: str) -> None:
    gaps = lose_primaries(cluster, home, [force] * 5)
    load.report(f"by force: {[round(each, 1) for each in gaps['force']]}")
    assert max(gaps["force"]) < FREEZE_GAP_S


def freeze_primaries(cluster: Cluster, namespace: str, what: list[str]) -> None:
    """Each time another member takes over; what the frozen one does when it thaws harms nothing."""
    gaps: list[float] = []
    with load.writing(cluster, namespace, members=MEMBERS) as writer:
        windows = []
        for each in what:
            load.wait_whole(cluster, namespace, MEMBERS)
            primary = load.leader(cluster, namespace)
            began_s = time.time()
            assert int(load.python(cluster, namespace, primary, SIGNAL, each, "SIGSTOP")) > 0
            try:
                cluster.wait_until("another leader", lambda: load.leader(cluster, namespace) not in {"", primary}, 60)  # noqa: B023
                time.sleep(3)  # in which two may write, if two can
            finally:
                load.python(cluster, namespace, primary, SIGNAL, each, "SIGCONT")
            load.wait_whole(cluster, namespace, MEMBERS)
            windows.append((began_s, time.time()))
        written = writer.written()
        assert writer.lost(written) == []
    gaps = [written.gap_s(*window) for window in windows]
    told = ", ".join(f"{name} {gap:.1f} s" for name, gap in zip(what, gaps, strict=True))
    load.report(f"frozen: {told}; terms {written.terms()}")
    assert max(gaps) < FREEZE_GAP_S
    # What was sent once another one had acknowledged was not acknowledged by the one of before.
    assert len(written.terms()) == len(what) + 1


def test_a_frozen_primary_is_replaced_and_two_never_acknowledge(cluster: Cluster, home: str) -> None:
    freeze_primaries(cluster, home, ["both"])


@pytest.mark.soak
def test_ten_frozen_primaries_are_replaced(cluster: Cluster, home: str) -> None:
    freeze_primaries(cluster, home, ["Patroni", "Postgres", "both", "Patroni", "Postgres"] * 2)


@contextmanager
def api_server_away() -> Iterator[None]:
    """The API server of our own test cluster answers nobody."""
    pid = pid_of("kube-apiserver")
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def be_without_api_server(cluster: Cluster, namespace: str, seconds: float) -> None:
    load.wait_whole(cluster, namespace, MEMBERS)
    memory.wait_ready(cluster, namespace)
    before, primary = load.restarts(cluster, namespace), load.leader(cluster, namespace)
    with load.writing(cluster, namespace, members=MEMBERS) as writer:
        began_s = time.time()
        with api_server_away():
            time.sleep(seconds)
        ended_s = time.time()
        cluster.wait_until("Ready again", lambda: memory.is_ready(memory.fetch(cluster, namespace)))
        time.sleep(5)
        load.wait_whole(cluster, namespace, MEMBERS)
        whole_s = time.time()
        written = writer.written()
        assert writer.lost(written) == []
    gap_s = written.gap_s(began_s, whole_s)
    rate = sum(began_s < each.at_s < ended_s for each in written.rows) / seconds
    load.report(f"without the API server for {seconds:.0f} s: longest gap {gap_s:.2f} s, {rate:.0f} rows a second")
    assert gap_s < AWAY_GAP_S
    assert load.restarts(cluster, namespace) == before
    assert load.leader(cluster, namespace) == primary


def test_writes_go_on_without_the_api_server(cluster: Cluster, home: str) -> None:
    be_without_api_server(cluster, home, 30)  # a lock that nobody renews ends after 20 s


@pytest.mark.soak
def test_writes_go_on_for_a_minute_without_the_api_server(cluster: Cluster, home: str) -> None:
    be_without_api_server(cluster, home, 60)
