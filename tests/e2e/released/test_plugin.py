"""`kubectl engram` as a user runs it, on the shard of three members. The spec is left as it was found."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from tests.e2e.cluster import Cluster

Json = dict[str, Any]
Run = Callable[..., subprocess.CompletedProcess[str]]
DEADLINE_S: Final = 180.0
NAME: Final = "memory"


@pytest.fixture
def engram(cluster: Cluster, home: str, tmp_path: Path) -> Run:
    """`kubectl engram` with these arguments, in the namespace of the ready cluster; it is found on the PATH."""
    program = tmp_path / "kubectl-engram"
    program.write_text(f"#!{sys.executable}\nfrom engram_cli.plugin import main\nmain()\n", encoding="utf-8")
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    kubectl = shutil.which("kubectl") or "kubectl"

    def run(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        where = ("--context", cluster.context, "-n", home)
        command = [kubectl, "engram", *arguments, *where]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE_S, env=environment)
        assert done.returncode == status, done.stdout + done.stderr
        return done

    return run


def told(done: subprocess.CompletedProcess[str]) -> Json:
    """The JSON of a verb, which is all that stands on standard output."""
    answer: Json = json.loads(done.stdout)
    return answer


def test_the_tree_names_the_cluster_its_shards_and_their_members(engram: Run, home: str) -> None:
    tree = engram("status", NAME).stdout
    answer = told(engram("status", NAME, "-o", "json"))
    assert f"✓ {home}/{NAME}" in tree
    assert "\x1b" not in tree
    for shard in answer["shards"]:
        assert f"✓ {shard['id']}  {shard['state']}, primary {shard['primary']}" in tree
        assert all(member["name"] in tree for member in shard["members"])


def test_the_list_and_the_tables_tell_the_same(engram: Run, home: str) -> None:
    assert [each["name"] for each in told(engram("status", "-o", "json"))["clusters"]] == [NAME]
    assert NAME in engram("status").stdout
    shards = told(engram("shards", NAME, "-o", "json"))["shards"]
    table = engram("shards", NAME).stdout
    assert all(member["name"] in table for shard in shards for member in shard["members"])


def test_a_pause_and_its_end_are_told_by_the_operator_and_asked_for_once(engram: Run, home: str) -> None:
    assert told(engram("pause", NAME, "-o", "json"))["changed"] is True
    assert engram("pause", NAME).stdout == f"{NAME} is paused already\n"
    assert told(engram("plan", NAME, "-o", "json"))["steps"] == []
    assert "! Paused" in engram("status", NAME).stdout
    assert told(engram("resume", NAME, "-o", "json"))["changed"] is True
    assert engram("resume", NAME).stdout == f"{NAME} is not paused\n"


def test_a_plan_is_shown_before_it_is_carried_out(engram: Run, cluster: Cluster, home: str) -> None:
    assert told(engram("plan", NAME, "--turn-on", "-o", "json"))["steps"] == []
    path = f"/apis/engram.dev/v1alpha1/namespaces/{home}/memoryclusters/{NAME}"
    before = cluster.request("GET", path)[1]["spec"]["postgres"].get("parameters")
    cluster.request("PATCH", path, {"spec": {"postgres": {"parameters": {"work_mem": "5MB"}}}})
    assert told(engram("plan", NAME, "-o", "json"))["steps"] != []
    cluster.request("PATCH", path, {"spec": {"postgres": {"parameters": before}}})
    assert engram("plan", NAME, "--turn-off").stdout.startswith(f"{NAME} carries out its plan at once")


def test_a_switchover_is_done_when_the_command_ends_well(engram: Run, cluster: Cluster, home: str) -> None:
    done = told(engram("switchover", NAME, "s0", "--yes", "-o", "json"))
    leader = cluster.request("GET", f"/api/v1/namespaces/{home}/configmaps/{NAME}-s0-leader")[1]
    assert leader["metadata"]["annotations"]["leader"] == done["to"] != done["from"]
    said = engram("switchover", NAME, "s0", "--to", done["to"], "--yes", status=2).stderr
    assert said == f"error: {done['to']} is the primary of s0 already\n"


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (("status", "no-such-name"), 2, "there is no MemoryCluster no-such-name; did you mean"),
        (("switchover", "{name}", "s9", "--yes"), 2, "has no shard s9"),
        (("switchover", "{name}", "s0"), 2, "say --yes"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    engram: Run, home: str, arguments: tuple[str, ...], status: int, text: str
) -> None:
    said = engram(*(each.format(name=NAME) for each in arguments), status=status).stderr
    last = said.splitlines()[-1]
    assert last.startswith("error: ")
    assert text in last
