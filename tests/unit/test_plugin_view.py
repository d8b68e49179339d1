"""What `kubectl engram` shows: golden trees at a width of 100, tables, JSON, and what is said of an old status.

To make the golden files anew: python -m tests.unit.test_plugin_view (from the checkout), then read them.
"""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from engram_cli.clusterlines import Sign, cluster_line, cluster_sign, list_row, member_row, shard_row, size
from engram_cli.clusterscreen import ClusterScreen
from engram_cli.clusterview import OPERATOR_PATIENCE_S, age, cluster_json, notices, read_cluster, seconds_of
from engram_cli.handover import lead_notices

GOLDEN = Path(__file__).resolve().parent / "golden" / "plugin"
WIDTH = 100
NOW_S = seconds_of("2026-11-21T16:00:00Z") or 0.0
MADE, CHANGED = "2026-11-21T15:00:00Z", "2026-11-21T15:59:50Z"
Json = dict[str, Any]


def condition(kind: str, status: str, reason: str, message: str, generation: int = 1) -> Json:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "observedGeneration": generation,
        "lastTransitionTime": "2026-11-21T15:50:00Z",
    }


def conditions(**other: tuple[str, str, str]) -> list[Json]:
    """Those of a ready cluster with a backup, but for `other`: status, reason, message by type."""
    usual = {
        "Ready": ("True", "Ready", "all 1 shards serve with all their members"),
        "Progressing": ("False", "Settled", "nothing is left to do"),
        "Degraded": ("False", "AsExpected", "nothing is wrong"),
        "ShardsReady": ("True", "AllServe", "all shards serve"),
        "BackupHealthy": ("True", "Fresh", "the last backup is 2 hours old"),
        "ReshardingActive": ("False", "NoMove", "no slots are moving"),
        "Paused": ("False", "NotAsked", "the operator works on the cluster"),
    }
    return [condition(kind, *said) for kind, said in (usual | other).items()]


def member(name: str, role: str = "replica", **other: object) -> Json:
    return {"name": name, "role": role, "ready": True, "timeline": 1, "lagBytes": 0, "message": ""} | other


def shard(shard_id: str = "s0", **other: object) -> Json:
    scope = f"mem-{shard_id}"
    return {
        "id": shard_id,
        "state": "Active",
        "ready": "True",
        "primary": f"{scope}-1",
        "slots": 16384,
        "postgresVersion": "18.6",
        "schemaVersion": "0001_pre_initial",
        "sizeBytes": 31457280,
        "message": "",
        "members": [member(f"{scope}-0", "sync_standby"), member(f"{scope}-1", "primary")],
    } | other


def resource(status: Json | None = None, generation: int = 1, **spec: object) -> Json:
    writes = [
        {"manager": "kubectl", "time": MADE if generation == 1 else CHANGED, "fieldsV1": {"f:spec": {}}},
        {"manager": "op", "time": "2026-11-21T15:59:59Z", "subresource": "status", "fieldsV1": {"f:status": {}}},
    ]
    metadata = {"name": "mem", "namespace": "dev", "generation": generation, "creationTimestamp": MADE}
    return {"metadata": metadata | {"managedFields": writes}, "spec": spec, **({"status": status} if status else {})}


def status_of(phase: str, ready: str, said: list[Json], shards: list[Json], **other: object) -> Json:
    observed = {"observedGeneration": 1, "phase": phase, "ready": ready, "tenants": 2, "update": "", "orphans": []}
    return observed | {"conditions": said, "shards": shards} | other


STUCK = 'ImagePullBackOff: Back-off pulling image "registry.example/postgres:19"'
MOVES = ("False", "Working", "apply StatefulSet mem-s0 (it is missing)")
BLOCKED = ("NotShrinkable", "shards is 1, and s1 still owns 8192 slots")
READY = status_of("Ready", "1/1", conditions(), [shard()])
CASES: dict[str, Json] = {
    "ready": resource(READY),
    "no-status": resource(),
    "old-status": resource(READY, generation=3),
    "creating": resource(
        status_of(
            "Creating",
            "0/1",
            conditions(
                Ready=("False", "PodNotReady", "mem-s0-0 is not ready yet"),
                Progressing=("True", "Working", "apply StatefulSet mem-s0 (it is missing); mem-s0-0 is not ready yet"),
                ShardsReady=("False", "SomeDoNot", "s0 do not serve"),
                BackupHealthy=("Unknown", "NotYet", "this version makes no backups yet"),
            ),
            [
                {
                    "id": "s0",
                    "state": "Active",
                    "ready": "Unknown",
                    "primary": "",
                    "slots": 0,
                    "message": "mem-s0-0 is not ready yet",
                    "members": [{"name": "mem-s0-0", "role": "", "ready": False, "message": ""}],
                }
            ],
        )
    ),
    "degraded": resource(
        status_of(
            "Degraded",
            "1/2",
            conditions(
                Ready=("False", "PodStuck", f"mem-s1-0: {STUCK}"),
                Degraded=("True", "PodStuck", f"mem-s1-0: {STUCK}"),
                ShardsReady=("False", "SomeDoNot", "s1 do not serve"),
                BackupHealthy=("False", "NoTarget", "spec.backup names neither s3 nor local: there is no backup"),
            ),
            [
                shard(
                    members=[
                        member("mem-s0-0", lagBytes=73 << 20, timeline=2),
                        member("mem-s0-1", "primary", timeline=2),
                    ],
                    sizeBytes=5 << 30,
                ),
                shard(
                    "s1",
                    ready="False",
                    primary="",
                    state="ReadOnly",
                    message=f"mem-s1-0: {STUCK}",
                    members=[
                        {"name": f"mem-s1-{n}", "role": "replica", "ready": False, "message": STUCK} for n in range(2)
                    ],
                ),
            ],
        )
    ),
    "blocked": resource(
        status_of(
            "Blocked",
            "1/1",
            conditions(Ready=("False", *BLOCKED), Degraded=("True", *BLOCKED)),
            [shard(slots=8192), shard("s1", slots=8192)],
            update="Postgres 18.7 instead of 18.6",
            orphans=[{"name": "s1", "reason": "OwnsSlots", "message": "it owns 8192 slots, which nothing moves yet"}],
        )
    ),
    "paused": resource(
        status_of(
            "Paused",
            "1/1",
            conditions(
                Ready=("False", "Paused", "the plan is not carried out"),
                Paused=("True", "Asked", "nothing is written while spec.paused is set"),
            ),
            [shard()],
            plan=[f"apply ConfigMap mem-s{number}-patroni (data.10-patroni.yml)" for number in range(12)],
        ),
        paused=True,
    ),
}


def rendered(name: str, width: int = WIDTH) -> str:
    """The tree of a case as a terminal without colours shows it."""
    view = read_cluster(CASES[name])
    out = io.StringIO()
    screen = ClusterScreen(out, io.StringIO())
    screen._out = Console(file=out, width=width, highlight=False)
    screen.tree(cluster_line(view, tuple(notices(view, NOW_S)), NOW_S))
    return "".join(line.rstrip() + "\n" for line in out.getvalue().splitlines())


@pytest.mark.parametrize("name", CASES)
def test_a_tree_is_as_its_golden_file(name: str) -> None:
    assert rendered(name) == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("width", [40, 80])
def test_a_narrow_terminal_gets_every_word_and_no_longer_lines(name: str, width: int) -> None:
    narrow = rendered(name, width)
    assert max(len(line) for line in narrow.splitlines()) <= width

    def letters(text: str) -> str:
        return "".join(each for each in text if each not in " \n│├└─")

    assert letters(narrow) == letters(rendered(name))


@pytest.mark.parametrize(
    ("name", "sign", "is_ready"),
    [
        ("ready", Sign.GOOD, True),
        ("no-status", Sign.UNKNOWN, False),
        ("old-status", Sign.WARN, False),
        ("creating", Sign.BUSY, False),
        ("degraded", Sign.BAD, False),
        ("blocked", Sign.BAD, False),
        ("paused", Sign.WARN, False),
    ],
)
def test_only_a_status_of_the_present_spec_can_be_ready(name: str, sign: Sign, is_ready: bool) -> None:
    view = read_cluster(CASES[name])
    assert cluster_sign(view) is sign
    assert view.is_ready is is_ready


def test_a_status_is_called_old_at_once_and_the_operator_missing_only_after_a_while() -> None:
    view = read_cluster(CASES["old-status"])
    changed_s = seconds_of(CHANGED)
    assert changed_s is not None
    early, late = (next(notices(view, changed_s + after)) for after in (5, OPERATOR_PATIENCE_S + 200))
    assert early == "the status is of generation 1, older than the spec's 3: the operator has not looked at it yet"
    assert late.endswith("the operator has not looked at it for 3m and does not seem to be at work")
    assert list(notices(read_cluster(CASES["ready"]), NOW_S)) == []


@pytest.mark.parametrize(
    ("leads", "since", "is_said"),
    [
        ("mem-s0-1", "2026-11-21T15:00:00+00:00", False),
        ("mem-s0-0", "2026-11-21T15:59:55+00:00", False),
        ("mem-s0-0", "2026-11-21T15:00:00+00:00", True),
        ("", "2026-11-21T15:00:00+00:00", False),
        ("mem-s0-0", "garbage", False),
    ],
)
def test_a_primary_that_the_status_does_not_know_after_a_while_says_that_the_operator_is_away(
    leads: str, since: str, is_said: bool
) -> None:
    config_map = {"metadata": {"name": "mem-s0-leader", "annotations": {"leader": leads, "acquireTime": since}}}
    said = list(lead_notices(read_cluster(CASES["ready"]), [config_map], NOW_S))
    whole = "mem-s0-0 leads s0 for 60m, and the status still names mem-s0-1: the operator does not seem to be at work"
    assert said == ([whole] if is_said else [])


def test_rows_tell_a_cluster_its_shards_and_its_members_in_short() -> None:
    view = read_cluster(CASES["degraded"])
    assert list_row(view, ())[:4] == ("mem", "Degraded", "1/2", "1")
    assert shard_row(view.shards[0])[:7] == (
        "s0",
        "Active",
        "mem-s0-1",
        "16384",
        "0001_pre_initial",
        "18.6",
        "5.0 GiB",
    )
    assert member_row(view.shards[0], view.shards[0].members[0])[:6] == (
        "s0",
        "mem-s0-0",
        "replica",
        "yes",
        "2",
        "73 MiB",
    )
    long = member_row(view.shards[1], view.shards[1].members[0])[6]
    assert long.endswith(" ...")
    assert len(long) <= 60


def test_the_json_of_a_cluster_is_what_the_documentation_names(checkout: Path) -> None:
    view = read_cluster(CASES["degraded"])
    told = json.loads(json.dumps(cluster_json(view, ("a",))))
    assert (told["ready"], told["current"], told["notices"], told["readyShards"]) == (False, True, ["a"], "1/2")
    assert told["conditions"][0]["since"] == "2026-11-21T15:50:00Z"
    assert told["shards"][0]["members"][0]["lagBytes"] == 73 << 20
    document = (checkout / "docs/kubectl-engram.md").read_text(encoding="utf-8")
    keys = {*told, *told["shards"][0], *told["shards"][0]["members"][0], *told["conditions"][0]}
    assert [key for key in sorted(keys) if f"`{key}`" not in document] == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(-5, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (172800, "2d")]
)
def test_ages_are_written_as_kubectl_does(seconds: float, text: str) -> None:
    assert age(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(None, ""), (0, "0 MiB"), (3 << 20, "3 MiB"), (1 << 30, "1.0 GiB")])
def test_sizes_have_their_unit(number: int | None, text: str) -> None:
    assert size(number) == text


def test_what_another_program_wrote_is_shown_as_text_and_not_as_markup() -> None:
    case = resource(status_of("Ready", "1/1", conditions(Ready=("True", "Ready", "[bold]x[/] [link")), []))
    view, out = read_cluster(case), io.StringIO()
    ClusterScreen(out, io.StringIO()).tree(cluster_line(view, (), NOW_S))
    assert "[bold]x[/] [link" in out.getvalue()


@contextmanager
def _latin() -> Iterator[io.TextIOWrapper]:
    with io.TextIOWrapper(io.BytesIO(), encoding="latin-1") as stream:
        yield stream


def test_a_terminal_without_unicode_gets_signs_that_it_has() -> None:
    view = read_cluster(CASES["degraded"])
    with _latin() as out:
        ClusterScreen(out, io.StringIO()).tree(cluster_line(view, (), NOW_S))
        out.seek(0)
        assert out.read().startswith("x dev/mem  Degraded")


if __name__ == "__main__":
    for each in CASES:
        (GOLDEN / f"{each}.txt").write_text(rendered(each), encoding="utf-8")
