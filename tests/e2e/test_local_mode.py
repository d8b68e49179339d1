"""`engram up` and its neighbours, as a user runs them."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engram import Engram, Memory, NotFound, Unavailable
from engram_contract import names
from tests.e2e.stage import (
    DEADLINE_S,
    QUICKSTART,
    READY,
    TWO_TENANTS,
    Stage,
    engram,
    environment,
    free_port,
    the_error,
    wait_until,
)


def test_what_was_stored_is_there_at_the_next_up(fresh: Stage) -> None:
    first = fresh.up()
    with Engram(fresh.url) as memories:
        stored = [memories.create(content=f"tea number {n}", user=f"user {n}") for n in range(50)]
        named = memories.put_item(["profile"], "city", user="ada", value={"name": "Rome"})
        shards = memories.shards(count=True)
    assert [each.slots for each in shards] == [8192, 8192]
    assert sum(each.memories or 0 for each in shards) == 51
    assert all(each.memories for each in shards)
    assert first.end(signal.SIGINT) == 0
    second = fresh.up()
    with Engram(fresh.url) as memories:
        assert [memories.get(each.id) for each in stored] == stored
        assert memories.get_item(["profile"], "city", user="ada") == named
        assert memories.search("number", user="user 7").hits[0].memory == stored[7]
        assert memories.shards().epoch == shards.epoch
    assert second.end() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_all_and_leaves_no_process(stage: Stage, number: signal.Signals) -> None:
    program = stage.up()
    assert len(stage.processes()) > 3
    assert program.end(number) == 0
    assert stage.processes() == []
    assert sorted(line for line in program.lines if line.endswith(": stopped")) == ["s0: stopped", "s1: stopped"]
    assert "Traceback" not in program.output


def test_a_signal_while_it_starts_stops_all_too(fresh: Stage) -> None:
    for phase in ("making an empty Postgres", "starting", "migrating"):
        program = fresh.start()
        program.wait_line(phase)
        assert program.end(signal.SIGINT) == 0
        assert fresh.processes() == []
        assert (READY in program.output, "Traceback" in program.output) == (False, False)
    assert fresh.up().end() == 0


def test_a_run_under_nohup_outlives_its_terminal(stage: Stage) -> None:
    with ignoring(signal.SIGHUP):
        program = stage.up()
    program.process.send_signal(signal.SIGHUP)
    with Engram(stage.url) as memories:
        assert memories.create(content="still here").version == 1
    assert program.end() == 0


def test_a_run_whose_listener_goes_serves_on_and_stops_all(stage: Stage) -> None:
    command = [sys.executable, "-m", "engram_cli", "up", "-f", str(QUICKSTART), "--data-dir", str(stage.data_dir)]
    process = subprocess.Popen(
        [*command, "--port", str(stage.port)], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    with Engram(stage.url) as memories:
        memories.wait_ready(DEADLINE_S)
        assert memories.create(content="to nobody").version == 1
    process.terminate()
    assert process.wait(DEADLINE_S) == 0
    assert stage.processes() == []


@contextmanager
def ignoring(number: signal.Signals) -> Iterator[None]:
    """Programs that are started within this block ignore the signal, as under nohup."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


def test_a_second_signal_hurries_and_loses_nothing(stage: Stage) -> None:
    program = stage.up()
    with Engram(stage.url) as memories:
        stored = memories.create(content="in a hurry")
    program.process.send_signal(signal.SIGTERM)
    program.wait_line("stopping")
    assert program.end(signal.SIGTERM) == 0
    assert stage.processes() == []
    stage.up()
    with Engram(stage.url) as memories:
        assert memories.get(stored.id) == stored


def test_down_stops_a_running_up_and_may_be_repeated(stage: Stage) -> None:
    program = stage.up()
    done = stage.run("down")
    assert (done.returncode, done.stdout) == (0, "nothing runs; the memories are kept\n")
    assert done.stderr == f"stopping engram up (pid {program.process.pid})\n"
    assert program.wait() == 0
    assert stage.processes() == []
    assert stage.run("down").returncode == 0


def test_down_of_what_never_was_is_fine(tmp_path: Path) -> None:
    done = engram("down", "--data-dir", str(tmp_path / "none"))
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_status_tells_what_runs_and_what_is_there(stage: Stage) -> None:
    program = stage.up()
    with Engram(stage.url) as memories:
        memories.create(content="one")
        count = sum(each.memories or 0 for each in memories.shards(count=True))
    serving = stage.status()
    assert (serving["state"], serving["pid"], serving["cluster"]) == ("serving", program.process.pid, "default/memory")
    assert [each["pid"] for each in serving["shards"]] == [stage.postmaster("s0"), stage.postmaster("s1")]
    assert [(each["state"], each["has_vector"]) for each in serving["shards"]] == [("running", True)] * 2
    assert all(each["size_bytes"] > 1_000_000 and each["schema_version"] >= 1 for each in serving["shards"])
    assert sum(each["memories"]["default/assistant"] for each in serving["shards"]) == count
    (tenant,) = serving["tenants"]
    assert (tenant["url"], tenant["memories"]) == (f"http://localhost:{stage.port}", count)
    program.kill()
    alone = stage.status()
    assert (alone["state"], alone["pid"], alone["tenants"][0]["state"]) == ("shards only", None, "stopped")
    stage.run("down")
    stopped = stage.status()
    assert stopped["state"] == "stopped"
    assert [(each["state"], each["pid"]) for each in stopped["shards"]] == [("stopped", None)] * 2
    table = stage.run("status").stdout
    assert "cluster default/memory, Postgres 18, stopped" in table


def test_a_stopped_shard_fails_by_name_while_the_other_serves_and_comes_back(stage: Stage) -> None:
    program = stage.up()
    with Engram(stage.url) as memories:
        stored = [memories.create(content=f"of {n}", user=f"shard test {n}") for n in range(20)]
        assert {each.shard for each in stored} == {"s0", "s1"}
        done = stage.run("stop", "s1")
        assert (done.returncode, done.stdout) == (0, "s1: stopped\n")
        assert "shard s1 is down" in program.wait_line("shard s1 is down")
        for each in stored:
            if each.shard == "s0":
                assert memories.get(each.id) == each
            else:
                with pytest.raises(Unavailable) as raised:
                    memories.get(each.id)
                assert raised.value.shard == "s1"
        page = memories.page(limit=1000)
        assert (page.complete, [each.shard for each in page.failed_shards]) == (False, ["s1"])
        assert stage.run("stop", "s1").stdout == "s1: was not running\n"
        assert "s1: started" in stage.run("start", "s1").stdout
        program.wait_line("shard s1 is up again")
        until_up(memories, stored)
        assert [memories.get(each.id) for each in stored] == stored
        assert "s1: already running" in stage.run("start", "s1").stdout


def until_up(memories: Engram, stored: list[Memory]) -> None:
    """Returns when all are read: what failed is left alone, and looked at every half second."""
    deadline_s = time.monotonic() + 15
    while True:
        try:
            for each in stored:
                memories.get(each.id)
        except Unavailable:
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        else:
            return


@pytest.mark.parametrize("command", ["stop", "start"])
def test_an_unknown_shard_is_one_line(stage: Stage, command: str) -> None:
    assert the_error(stage.run(command, "s9"), 2) == "there is no shard 's9'; there are s0, s1"


def test_a_second_up_on_the_same_data_is_refused_and_the_first_goes_on(stage: Stage) -> None:
    first = stage.up()
    second = engram("up", "-f", str(QUICKSTART), "--data-dir", str(stage.data_dir), "--port", str(free_port()))
    line = the_error(second, 1)
    assert f"is in use by `engram up` (pid {first.process.pid}); stop it with: engram down" in line
    with Engram(stage.url) as memories:
        assert memories.shards().epoch >= 1


@pytest.mark.parametrize("offset", [0, 1])
def test_a_port_that_is_taken_is_one_line_and_nothing_is_started(stage: Stage, offset: int) -> None:
    with socket.create_server(("127.0.0.1", stage.port + offset)):
        program = stage.start()
        assert program.wait() == 1
    taken = stage.port + offset
    assert program.lines[-2] == (
        f"engram: error: port {taken} is taken by another program: choose another one with --port"
    )
    assert stage.processes() == []


def test_each_tenant_has_its_own_port_and_sees_nothing_of_the_other(fresh: Stage) -> None:
    program = fresh.up(TWO_TENANTS)
    assert (
        "tenants default/clinic, default/helpdesk: spec.encryption: memories are encrypted, and their keys lie beside"
        in program.output
    )
    with Engram(fresh.url) as clinic, Engram(f"http://127.0.0.1:{fresh.port + 10}") as helpdesk:
        for owner, who in ((clinic, "clinic"), (helpdesk, "helpdesk")):
            for n in range(20):
                owner.create(content=f"secret of {who} {n}", user=f"user {n}")
            owner.put_item(["shared"], "name", value=who)
        theirs = {"clinic": list(clinic.list()), "helpdesk": list(helpdesk.list())}
        assert {who: len(found) for who, found in theirs.items()} == {"clinic": 21, "helpdesk": 21}
        for reader, who, other in ((clinic, "clinic", "helpdesk"), (helpdesk, "helpdesk", "clinic")):
            assert all(f"secret of {other}" not in each.content for each in theirs[who])
            assert reader.get_item(["shared"], "name").value == who
            assert all(other not in hit.memory.content for hit in reader.search("secret", limit=100))
            for each in theirs[other]:
                with pytest.raises(NotFound):
                    reader.get(each.id)
                assert reader.delete(each.id) is False
        assert len(list(clinic.list())) == len(list(helpdesk.list())) == 21


def test_tenants_may_be_chosen_and_those_without_a_manifest_are_kept(fresh: Stage) -> None:
    program = fresh.up(TWO_TENANTS, options=["--tenant", "default/helpdesk"])
    assert "default/clinic " not in program.output
    with Engram(fresh.url) as memories:
        stored = memories.create(content="kept")
    program.end()
    manifest = fresh.data_dir.parent / "one.yaml"
    manifest.write_text("---".join(TWO_TENANTS.read_text().split("---")[:2]))
    program = fresh.up(manifest)
    assert "note: tenant default/helpdesk stands in no manifest: its memories are kept and not served" in program.output
    program.end()
    fresh.up(TWO_TENANTS, options=["--tenant", "default/helpdesk"])
    with Engram(fresh.url) as memories:
        assert memories.get(stored.id) == stored


def changed(stage: Stage, old: str, new: str) -> Path:
    """The quickstart with one change."""
    manifest = stage.data_dir.parent / "changed.yaml"
    text = QUICKSTART.read_text()
    assert old in text
    manifest.write_text(text.replace(old, new))
    return manifest


def test_a_changed_state_is_published_as_a_new_epoch_to_every_shard(stage: Stage) -> None:
    stage.up().end()
    overrides = "shardOverrides: [{id: s1, state: ReadOnly, weight: 3}]"
    program = stage.up(changed(stage, "replicas: 0", f"replicas: 0\n  {overrides}"))
    assert "resharding is not there yet" in program.output
    with Engram(stage.url) as memories:
        shards = memories.shards()
        assert [(each.shard, each.state, each.weight, each.slots) for each in shards] == [
            ("s0", "Active", 1, 8192),
            ("s1", "ReadOnly", 3, 8192),
        ]
        assert {memories.create(content="x", user=f"u{n}").shard for n in range(20)} == {"s0"}
        epoch = shards.epoch
    program.end()
    stage.up()
    with Engram(stage.url) as memories:
        assert (memories.shards().epoch, memories.shards().scattered) == (epoch + 1, True)


def test_changed_parameters_reach_a_running_shard_and_a_wrong_one_is_named(stage: Stage) -> None:
    stage.up().kill()
    before = stage.postmaster("s0")
    program = stage.up(changed(stage, "replicas: 0", "postgres: {parameters: {work_mem: 7MB}}"))
    assert "s0: restarting with new parameters" in program.output
    assert stage.postmaster("s0") != before
    assert "work_mem = '7MB'" in (stage.data_dir / "shards/s0/pgdata/engram.conf").read_text()
    program.end()
    wrong = stage.start(changed(stage, "replicas: 0", "postgres: {parameters: {no_such_thing: 1}}"))
    assert wrong.wait() == 1
    assert 'unrecognized configuration parameter "no_such_thing"' in wrong.wait_line("engram: error: ")
    assert "Traceback" not in wrong.output
    assert stage.processes() == []


def test_postgres_16_serves_too_and_its_data_is_not_opened_by_18(fresh: Stage) -> None:
    program = fresh.up(options=["--postgres-version", "16"])
    with Engram(fresh.url) as memories:
        stored = memories.create(content="sixteen")
        assert memories.get(stored.id) == stored
    program.end()
    assert (fresh.data_dir / "shards/s0/pgdata/PG_VERSION").read_text() == "16\n"
    done = fresh.start()
    assert done.wait() == 2
    assert "the data directory holds data of Postgres 16, not 18" in done.wait_line("engram: error: ")


def test_a_shard_whose_port_was_taken_gets_another_and_everything_is_found(stage: Stage) -> None:
    program = stage.up()
    with Engram(stage.url) as memories:
        stored = [memories.create(content="moved", user=f"port {n}") for n in range(10)]
        epoch = memories.shards().epoch
    ports = {each["shard"]: each["port"] for each in stage.status()["shards"]}
    program.end()
    with socket.create_server(("127.0.0.1", ports["s0"])):
        program = stage.up()
        with Engram(stage.url) as memories:
            assert [memories.get(each.id) for each in stored] == stored
            assert memories.shards().epoch == epoch + 1
        now = {each["shard"]: each["port"] for each in stage.status()["shards"]}
        assert (now["s0"] != ports["s0"], now["s1"]) == (True, ports["s1"])
        program.end()


def test_secrets_are_private(stage: Stage) -> None:
    secret = [stage.data_dir / "secrets/postgres", *(stage.data_dir / "tenants/default.assistant").iterdir()]
    assert {each.name for each in secret} >= {"postgres", names.CREDENTIALS_FILE, names.KEYS_FILE}
    for path in secret:
        assert (path.stat().st_mode & 0o077, path.stat().st_uid) == (0, os.geteuid())
    password = secret[0].read_text().strip()
    program = stage.up()
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in stage.processes()]
    assert not any(password.encode() in each for each in commands)
    assert password not in program.output


def test_version_and_help_answer() -> None:
    assert engram("version").returncode == 0
    done = engram("--help")
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("up", "down", "status", "stop", "start", "version"))


def test_a_manifest_comes_by_standard_input(tmp_path: Path) -> None:
    done = engram("up", "-f", "-", "--data-dir", str(tmp_path / "d"), stdin="kind: MemoryCluster\n")
    assert the_error(done, 2) == ("-: document 1 (MemoryCluster): not a resource: apiVersion or kind is missing")


def test_the_ends_of_a_run_are_waited_for(stage: Stage) -> None:
    program = stage.up()
    program.process.send_signal(signal.SIGTERM)
    program.wait_line("stopping")
    done = stage.run("down")
    assert done.returncode == 0
    wait_until("the end of engram up", lambda: program.process.poll() == 0)
    assert stage.processes() == []
