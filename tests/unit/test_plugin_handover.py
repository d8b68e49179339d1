"""When a switchover may be asked for, with what it is refused, and how its end is known."""

import json
from typing import Any

import pytest

from engram_cli.clusterview import read_cluster
from engram_cli.errors import CliError, Failure, Misuse
from engram_cli.handover import Handover, LiveShard, Stage, choose_shard, fate, judge, plan_handover, read_shard

Json = dict[str, Any]
SCOPE = "mem-s0"
MIB = 1 << 20
AHEAD = 500 * MIB
VIEW = read_cluster(
    {
        "metadata": {"name": "mem", "namespace": "dev", "generation": 1},
        "spec": {},
        "status": {"shards": [{"id": "s0"}, {"id": "s1"}]},
    }
)


def pod(number: int, *, is_ready: bool = True, behind: int | None = 0, role: str = "replica", **more: object) -> Json:
    said = {"role": role, "state": "running"} | ({} if behind is None else {"xlog_location": AHEAD - behind})
    return {
        "kind": "Pod",
        "metadata": {
            "name": f"{SCOPE}-{number}",
            "uid": f"uid-{number}",
            "creationTimestamp": "2026-11-21T15:00:00Z",
            "labels": {"role": role},
            "annotations": {"status": json.dumps(said)},
            **more,
        },
        "status": {"conditions": [{"type": "Ready", "status": str(is_ready)}]},
    }


def config_map(part: str, **annotations: str) -> Json:
    return {"kind": "ConfigMap", "metadata": {"name": f"{SCOPE}-{part}", "annotations": annotations}}


def live(*pods: Json, leader: str = f"{SCOPE}-0", sync: str | None = None, request: str = "") -> LiveShard:
    items = [*pods, config_map("leader", leader=leader, optime=str(AHEAD))]
    if sync is not None:
        items.append(config_map("sync", leader=leader, sync_standby=sync))
        items.append(config_map("config", config=json.dumps({"synchronous_mode": True})))
    if request:
        items.append(config_map("failover", leader=leader, member=request))
    return read_shard(items, SCOPE)


LEADS = pod(0, role="primary")


@pytest.mark.parametrize(
    ("seen", "to", "candidate"),
    [
        (live(LEADS, pod(1)), None, "mem-s0-1"),
        (live(LEADS, pod(1)), "mem-s0-1", "mem-s0-1"),
        (live(LEADS, pod(1, behind=5 * MIB), pod(2)), None, "mem-s0-2"),
        (live(LEADS, pod(1, behind=5 * MIB), pod(2)), "mem-s0-1", "mem-s0-1"),
        (live(LEADS, pod(1), pod(2, behind=9), sync="mem-s0-2"), None, "mem-s0-2"),
        (live(LEADS, pod(1, is_ready=False), pod(2, behind=9)), None, "mem-s0-2"),
    ],
)
def test_the_candidate_is_the_one_that_was_named_or_the_best(seen: LiveShard, to: str | None, candidate: str) -> None:
    handover = plan_handover(VIEW, "s0", seen, to)
    assert (handover.primary, handover.candidate, handover.scope) == ("mem-s0-0", candidate, SCOPE)


@pytest.mark.parametrize(
    ("seen", "to", "kind", "text"),
    [
        (live(), None, Failure, "s0 has no pods at present"),
        (live(LEADS), None, Failure, "s0 has no replica: nobody could take over from mem-s0-0"),
        (live(LEADS, pod(1), leader=""), None, Failure, "s0 has no primary at present"),
        (live(LEADS, pod(1), request="mem-s0-1"), None, Failure, "a switchover of s0 is asked for already"),
        (live(LEADS, pod(1)), "mem-s0-2", Misuse, r"no member mem-s0-2 \(did you mean mem-s0-1\?\); it has mem-s0-0,"),
        (live(LEADS, pod(1)), "mem-s0-0", Misuse, "mem-s0-0 is the primary of s0 already"),
        (live(LEADS, pod(1, is_ready=False)), "mem-s0-1", Failure, "mem-s0-1 cannot take over: it is not ready"),
        (live(LEADS, pod(1, deletionTimestamp="x")), "mem-s0-1", Failure, "its pod is about to end"),
        (live(LEADS, pod(1), pod(2), sync="mem-s0-2"), "mem-s0-1", Failure, r"not a synchronous standby \(mem-s0-2\)"),
        (live(LEADS, pod(1), sync=""), "mem-s0-1", Failure, r"not a synchronous standby \(none at present\)"),
        (live(LEADS, pod(1), sync=""), None, Failure, "no member of s0 can take over at present: mem-s0-1 it is not a"),
        (live(LEADS, pod(1, behind=17 * MIB)), "mem-s0-1", Failure, "17 MiB behind, 16 MiB at most"),
        (live(LEADS, pod(1, behind=None)), "mem-s0-1", Failure, "nobody knows how far it is behind"),
    ],
)
def test_what_stands_in_the_way_is_named(seen: LiveShard, to: str | None, kind: type[CliError], text: str) -> None:
    with pytest.raises(kind, match=text):
        plan_handover(VIEW, "s0", seen, to)


def test_a_shard_must_be_one_of_the_cluster() -> None:
    assert choose_shard(VIEW, "s1") == "mem-s1"
    with pytest.raises(Misuse, match=r"mem has no shard s2; it has s0, s1"):
        choose_shard(VIEW, "s2")


def test_databases_of_others_are_not_switched_over() -> None:
    view = read_cluster(
        {"metadata": {"name": "mem", "namespace": "dev", "generation": 1}, "spec": {"provider": "External"}}
    )
    with pytest.raises(Misuse, match="provider External"):
        choose_shard(view, "s0")


def test_a_shard_that_no_status_names_yet_is_looked_for_among_the_pods() -> None:
    view = read_cluster({"metadata": {"name": "mem", "namespace": "dev", "generation": 1}, "spec": {}})
    assert choose_shard(view, "s0") == "mem-s0"


ASKED = Handover("dev", "mem", "s0", SCOPE, "mem-s0-0", "mem-s0-1", 0, is_synchronous=True)
NEW = pod(1, role="primary")


@pytest.mark.parametrize(
    ("seen", "stage"),
    [
        (live(LEADS, pod(1), request="mem-s0-1"), Stage.ASKED),
        (live(LEADS, pod(1), leader="", request="mem-s0-1"), Stage.BETWEEN),
        (live(LEADS, pod(1), leader="mem-s0-1", request="mem-s0-1"), Stage.LEADING),
        (live(LEADS, pod(1), leader="mem-s0-1"), Stage.LEADING),
        (live(pod(0), NEW, leader="mem-s0-1"), Stage.DONE),
        (live(LEADS, NEW, leader="mem-s0-1"), Stage.DONE),
        (live(LEADS, pod(1)), Stage.REFUSED),
        (live(LEADS, pod(1), leader="mem-s0-2"), Stage.ANOTHER),
    ],
)
def test_what_became_of_a_switchover_is_read_from_the_live_objects(seen: LiveShard, stage: Stage) -> None:
    assert judge(ASKED, seen) is stage


@pytest.mark.parametrize(
    ("seen", "stage", "text"),
    [
        (live(LEADS, pod(1)), Stage.REFUSED, "Patroni refused: mem-s0-0 still leads s0; kubectl logs -n dev mem-s0-0"),
        (live(LEADS, leader="mem-s0-2"), Stage.ANOTHER, "mem-s0-2 leads s0 now, not mem-s0-1"),
        (live(LEADS, request="x"), Stage.ASKED, "not done within 60 s: mem-s0-0 leads s0; the request still stands"),
        (live(LEADS, leader=""), Stage.BETWEEN, "not done within 60 s: nobody leads s0; kubectl logs"),
    ],
)
def test_a_switchover_that_did_not_get_done_says_where_to_look(seen: LiveShard, stage: Stage, text: str) -> None:
    assert str(fate(ASKED, stage, seen, 60.0)).startswith(text)
