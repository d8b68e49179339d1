"""The test cluster itself: it comes up from whatever was left, and goes without a trace.

These tests start a second one beside the one that the other tests use; both keep to namespaces of their own.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.cluster.install import CannotRun, check_machine
from tests.cluster.layout import INSIDE_VARIABLE, Layout
from tests.e2e.stage import ROOT, Program, wait_until

COMMAND: Final = [sys.executable, "-m", "tests.cluster"]
DEADLINE_S: Final = 300.0


@pytest.fixture
def second(cluster: object) -> Iterator[Layout]:
    """A state folder for one more cluster; nothing of it is there before or after. The first one proves that it can."""
    try:
        check_machine(Layout.from_env(os.environ))
    except CannotRun as reason:
        pytest.skip(str(reason))
    at = Layout(Layout.from_env(os.environ).cache, Path("/var/cache/engram-second"))
    yield at
    down = command(at, "down")
    assert down.returncode == 0, down.stderr


def environment(at: Layout) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "ENGRAM_E2E_CONTEXT"}
    return {**kept, "ENGRAM_CLUSTER_CACHE": str(at.cache), "ENGRAM_CLUSTER_STATE": str(at.state)}


def command(at: Layout, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One command of the program, which ends by itself."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment(at),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def traces(at: Layout) -> list[str]:
    """What there is of the cluster on this machine: processes, mounts in any namespace, control groups, files."""
    found = [str(at.state)] if at.state.exists() else []
    inside = f"{INSIDE_VARIABLE}={at.state}".encode()
    found += [f"control group {path}" for path in Path("/sys/fs/cgroup").glob(f"**/{at.cgroup}")]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            settings = (process / "environ").read_bytes().split(b"\0")
            mounts = (process / "mountinfo").read_text()
        except OSError:  # gone while we looked
            continue
        if process.name != str(os.getpid()) and (inside in settings or any(str(at.state) in word for word in words)):
            found.append(f"process {process.name}: {' '.join(words)[:120]}")
        if str(at.state) in mounts:
            found.append(f"mounts of process {process.name}")
    return found


def first_process(at: Layout) -> str:
    """The number of the process that holds the cluster."""
    wanted = ["-m", "tests.cluster.supervisor", str(at.state), ""]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            is_it = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")[1:] == wanted
            if is_it and (process / "status").read_text().split("NSpid:\t")[1].split("\n")[0].endswith("\t1"):
                return process.name
        except OSError:
            continue
    raise AssertionError("no first process")


def test_it_recovers_from_kill_9_at_any_depth_and_leaves_no_trace(second: Layout) -> None:
    # The command that holds the cluster is killed while the cluster comes up: the kernel ends the rest.
    starting = Program([*COMMAND, "session", "sleep", "1000"], environment(second))
    wait_until("the API server to start", (second.logs / "kube-apiserver.log").exists, DEADLINE_S)
    assert [trace for trace in traces(second) if trace.startswith("mounts")] != []
    os.kill(starting.process.pid, signal.SIGKILL)
    starting.wait()
    left = f"control group|{second.state}$"
    wait_until("its processes and mounts to be gone", lambda: all(re.search(left, trace) for trace in traces(second)))

    # From what is left, and from a first process that is killed, `up` makes a ready cluster; a second changes nothing.
    assert command(second, "up").returncode == 0
    was = first_process(second)
    again = command(second, "up")
    assert (again.returncode, first_process(second)) == (0, was), again.stderr
    os.kill(int(was), signal.SIGKILL)
    assert command(second, "status").stdout == "no cluster\n"
    up = command(second, "up")
    assert up.returncode == 0, up.stderr
    nodes = command(second, "run", "kubectl", "get", "nodes", "-o", "name")
    assert nodes.stdout == "node/node0\n", nodes.stderr

    # What a test started and nobody ended goes too, whatever its session and parent.
    command(second, "run", "sh", "-c", "setsid --fork sleep 1000 >/dev/null 2>&1")
    assert [trace for trace in traces(second) if "sleep 1000" in trace] != []
    down = command(second, "down")
    assert (down.returncode, down.stderr) == (0, "")
    assert traces(second) == []
    assert command(second, "down").returncode == 0


def test_a_strangers_folder_is_not_touched(second: Layout, tmp_path: Path) -> None:
    """Its name may be a mistake, or somebody else's trap: the settings that `down` restores are never a path of it."""
    victim = tmp_path / "victim"
    victim.write_text("1")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "sysctls.json").write_text(json.dumps({str(victim): 2}))
    (tmp_path / "link").symlink_to(tmp_path / "state")
    for name in ("state", "link", "victim"):
        for verb in ("down", "up"):
            refused = command(Layout(second.cache, tmp_path / name), verb)
            assert refused.returncode == 1
            assert "is no folder of a test cluster, and stays as it is" in refused.stderr
    assert victim.read_text() == "1"
    assert (tmp_path / "state" / "sysctls.json").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_session_that_is_told_to_end_leaves_no_trace(second: Layout, number: int) -> None:
    session = Program([*COMMAND, "session", "sleep", "1000"], environment(second))
    wait_until("the API server to start", (second.logs / "kube-apiserver.log").exists, DEADLINE_S)
    assert session.end(number) == 128 + number, session.output
    assert traces(second) == []


def test_two_commands_do_not_work_on_one_cluster_at_once(second: Layout) -> None:
    first = Program([*COMMAND, "up"], environment(second))
    wait_until("the first to begin", second.state.exists, DEADLINE_S)
    refused = command(second, "down")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "test cluster: another command is at work on this cluster; wait for its end\n"
    assert first.process.wait(DEADLINE_S) == 0, first.output
    first.wait()


@pytest.mark.parametrize("arguments", [[], ["help"], ["up", "now"], ["run"], ["images", "nobody"]])
def test_a_wrong_command_is_told_what_there_is(second: Layout, arguments: list[str]) -> None:
    wrong = command(second, *arguments)
    assert wrong.returncode == 2
    assert "images" in wrong.stderr or "sidecar" in wrong.stderr
    assert not second.state.exists()


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not here to drop root with")
def test_without_root_the_command_of_a_session_runs_and_is_told_why(tmp_path: Path) -> None:
    """As another user of the machine, with the Python that every user may run."""
    python = next((path for path in ("/usr/bin/python3.11", "/usr/bin/python3") if Path(path).exists()), None)
    if python is None:
        pytest.skip("no Python of the system's is here")
    shutil.copytree(
        ROOT / "tests" / "cluster", tmp_path / "tests" / "cluster", ignore=shutil.ignore_patterns("__pycache__")
    )
    for path in (tmp_path, *tmp_path.parents[: len(tmp_path.parts) - 3]):
        path.chmod(path.stat().st_mode | 0o055)
    asked = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", python, "-m", "tests.cluster"]
    plain = {"PATH": os.defpath, "HOME": str(tmp_path)}
    told = subprocess.run(
        [*asked, "session", "printenv", "ENGRAM_E2E_SKIP"],
        cwd=tmp_path,
        env=plain,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.stdout == "the test cluster needs root: it makes namespaces, mounts and control groups\n", told.stderr
    refused = subprocess.run([*asked, "up"], cwd=tmp_path, env=plain, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith("test cluster: the test cluster needs root")
