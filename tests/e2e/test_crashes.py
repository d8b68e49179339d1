"""kill -9 of any part: the next `up` survives, and what was acknowledged before is there after."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from engram import Engram, NotReachable, OutcomeUnknown, Unavailable
from tests.e2e.stage import Load, Stage, check_nothing_lost, free_port, wait_until

ENOUGH = 150  # acknowledged writes on each side of a kill: the load is well under way


def kill_all(pids: list[int]) -> None:
    """Ends these processes at once."""
    for pid in pids:
        with suppress(ProcessLookupError):  # it went with another one
            os.kill(pid, signal.SIGKILL)


def test_engram_up_is_killed_in_a_load_and_the_next_one_adopts_its_shards(stage: Stage) -> None:
    program = stage.up()
    load = Load(stage.url, "up killed")
    with load.running():
        load.wait_acknowledged(ENOUGH)
        program.kill()
        load.wait_error()
    before = [stage.postmaster("s0"), stage.postmaster("s1")]
    program = stage.up()
    assert "s0: already running" in program.output
    assert [stage.postmaster("s0"), stage.postmaster("s1")] == before
    check_nothing_lost(stage.url, load)


def test_a_shard_is_killed_in_a_load_and_started_again_beside_the_running_up(stage: Stage) -> None:
    program = stage.up()
    load = Load(stage.url, "shard killed")
    with load.running():
        load.wait_acknowledged(ENOUGH)
        os.kill(stage.postmaster("s1"), signal.SIGKILL)
        program.wait_line("shard s1 is down")
        error = load.wait_error()
        while type(error) is OutcomeUnknown:  # a write that was under way when the shard died
            error = load.wait_error()
        assert isinstance(error, Unavailable)
        load.wait_acknowledged(ENOUGH)  # the other shard serves on
        done = stage.run("start", "s1")
        assert done.returncode == 0, done.stderr
        program.wait_line("shard s1 is up again")
        load.wait_acknowledged(ENOUGH)
    with Engram(stage.url) as memories:  # whoever looked while it was down left it alone, and looks every half second
        wait_until("whole listings", lambda: memories.page(limit=1).complete)
    check_nothing_lost(stage.url, load)


def test_a_shard_is_killed_and_the_next_up_finds_all(stage: Stage) -> None:
    program = stage.up()
    load = Load(stage.url, "shard killed, then up ended")
    with load.running():
        load.wait_acknowledged(ENOUGH)
        os.kill(stage.postmaster("s0"), signal.SIGKILL)
        load.wait_error()
    assert program.end() == 0
    assert stage.processes() == []
    stage.up()
    check_nothing_lost(stage.url, load)


def test_everything_is_killed_at_once_as_by_a_power_cut(stage: Stage) -> None:
    program = stage.up()
    load = Load(stage.url, "all killed")
    with load.running():
        load.wait_acknowledged(ENOUGH)
        kill_all([program.process.pid, *stage.processes()])
        assert isinstance(load.wait_error(), Exception)
    program.wait()
    wait_until("the end of all processes", lambda: stage.processes() == [])
    stage.up()
    check_nothing_lost(stage.url, load)


def test_a_standalone_sidecar_is_killed_in_a_load_and_its_successor_finds_all(stage: Stage) -> None:
    stage.up()
    port = free_port()
    sidecar = stage.sidecar("default.assistant", port)
    load = Load(f"http://127.0.0.1:{port}", "sidecar killed")
    with load.running():
        load.wait_acknowledged(ENOUGH)
        sidecar.kill()
        load.wait_error()
        stage.sidecar("default.assistant", port)
        load.wait_acknowledged(ENOUGH)
    assert not any(isinstance(error, NotReachable) for error in load.errors[:1])
    check_nothing_lost(load.url, load)
    check_nothing_lost(stage.url, load)


def test_a_shard_is_killed_under_a_standalone_sidecar(stage: Stage) -> None:
    program = stage.up()
    port = free_port()
    sidecar = stage.sidecar("default.assistant", port)
    load = Load(f"http://127.0.0.1:{port}", "shard under sidecar")
    with load.running():
        load.wait_acknowledged(ENOUGH)
        os.kill(stage.postmaster("s0"), signal.SIGKILL)
        assert isinstance(load.wait_error(), Exception)
        program.wait_line("shard s0 is down")
        assert stage.run("start", "s0").returncode == 0
        load.wait_acknowledged(ENOUGH)
    check_nothing_lost(load.url, load)
    assert sidecar.end() == 0


def made_by_initdb(stage: Stage) -> list[str]:
    """The unfinished data directories."""
    return [each.name for each in (stage.data_dir / "shards").glob("*/pgdata.*")]


@pytest.mark.parametrize("with_initdb", [True, False], ids=["with its initdb", "alone"])
def test_engram_up_is_killed_while_initdb_runs(fresh: Stage, with_initdb: bool) -> None:
    program = fresh.start()
    wait_until("initdb", lambda: bool(made_by_initdb(fresh)))
    left = fresh.processes() if with_initdb else []
    program.kill()
    kill_all(left)
    fresh.up()
    with Engram(fresh.url) as memories:
        stored = memories.create(content="after all")
        assert memories.get(stored.id) == stored
        assert [each.slots for each in memories.shards()] == [8192, 8192]
    wait_until("the sweep of half a directory", lambda: made_by_initdb(fresh) == [])


def test_engram_up_is_killed_at_every_step_of_its_start(fresh: Stage) -> None:
    """Each run begins where the one before was killed and comes one step further."""
    for line in ("note: ", "s1: making", "s0: starting", "s1: migrating", "s0: tenants", "s1: map", "sidecar"):
        program = fresh.start()
        program.wait_line(line)
        program.kill()
    fresh.up()
    with Engram(fresh.url) as memories:
        stored = [memories.create(content="x", user=f"u{n}") for n in range(8)]
        assert {each.shard for each in memories.list()} == {"s0", "s1"}
        assert [memories.get(each.id) for each in stored] == stored
    assert (fresh.run("down").returncode, fresh.processes()) == (0, [])


def test_engram_up_is_killed_at_random_times_again_and_again(fresh: Stage) -> None:
    for step in range(8):
        program = fresh.start()
        with suppress(subprocess.TimeoutExpired):
            program.process.wait(0.4 * step)
        program.kill()
    fresh.up()
    with Engram(fresh.url) as memories:
        stored = memories.create(content="still here")
    fresh.run("down")
    assert fresh.processes() == []
    fresh.up()
    with Engram(fresh.url) as memories:
        assert memories.get(stored.id) == stored


@pytest.mark.parametrize(
    "number", [os.getpid, lambda: 1, lambda: 2**22 + 5], ids=["the test's own", "init's", "nobody's"]
)
def test_a_pid_file_whose_number_is_another_programs_is_seen_through(stage: Stage, number: Callable[[], int]) -> None:
    stage.up()
    with Engram(stage.url) as memories:
        stored = memories.create(content="found", user="a")
    pid_file = stage.data_dir / "shards/s0/pgdata/postmaster.pid"
    text = pid_file.read_text()
    kill_all(stage.processes())
    wait_until("the end of all processes", lambda: stage.processes() == [])
    owner = pid_file.stat()
    pid_file.write_text("\n".join([str(number()), *text.split("\n")[1:]]))
    os.chown(pid_file, owner.st_uid, owner.st_gid)
    report = stage.status()
    assert [each["state"] for each in report["shards"]] == ["stopped", "stopped"]
    stage.up()
    with Engram(stage.url) as memories:
        assert memories.get(stored.id) == stored


@pytest.mark.parametrize("kept", ["", "{", '{"epoch": 0}'])
def test_a_lost_or_torn_map_is_taken_from_the_shards(stage: Stage, kept: str) -> None:
    stage.up()
    with Engram(stage.url) as memories:
        stored = memories.create(content="mapped")
        epoch = memories.shards().epoch
    stage.run("down")
    path = stage.data_dir / "tenants/default.assistant/map.json"
    path.unlink()
    if kept:
        path.write_text(kept)
    stage.up()
    with Engram(stage.url) as memories:
        assert (memories.shards().epoch, memories.get(stored.id)) == (epoch, stored)


def test_a_backend_that_outlives_its_postmaster_is_waited_for(stage: Stage) -> None:
    """A stopped process cannot notice that its postmaster is gone, as one that is deep in a computation does not."""
    stage.up()
    postmaster = stage.postmaster("s0")
    children = [pid for pid in stage.processes() if parent_of(pid) == postmaster]
    os.kill(children[0], signal.SIGSTOP)
    kill_all([each.process.pid for each in stage.programs] + [postmaster])
    program = stage.start()
    program.wait_line("s0: starting")
    end_s = time.monotonic() + 2
    wait_until("two seconds of a start that cannot go on", lambda: time.monotonic() > end_s)
    assert "s0: migrating" not in program.output
    os.kill(children[0], signal.SIGCONT)
    program.wait_line("Press Ctrl-C to stop.")
    assert program.end() == 0


def parent_of(pid: int) -> int:
    """The parent of a process, 0 if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:  # noqa: PTH123
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return 0
