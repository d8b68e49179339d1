"""The data directory: what is ours, what is a stranger's, and who holds it."""

import os
from pathlib import Path

import pytest

from engram_cli.account import Account, Directory, first_closed
from engram_cli.datadir import DataDir, holder, is_locked, locked, open_path, write_atomic
from engram_cli.errors import Failure, Misuse
from engram_cli.processes import Process, is_alive, started_ticks
from engram_cli.server import Server, find_running
from engram_cli.settings import default_data_dir
from engram_cli.state import LocalState, ShardRecord

STATE = LocalState("agents/local", "uid", 18, "User", (ShardRecord("s0"),))


def names(path: Path) -> list[str]:
    """What stands in a directory."""
    return sorted(each.name for each in path.iterdir())


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    data = DataDir(tmp_path / "d")
    assert data.read_state() is None
    data.create(0o700)
    assert data.read_state() is None
    data.write_state(STATE)
    data.create_parts(0o711)
    assert data.read_state() == STATE
    assert names(data.path) == ["engram.json", "secrets", "shards", "tenants"]
    assert [(data.path / each).stat().st_mode & 0o777 for each in names(data.path)] == [0o600, 0o700, 0o711, 0o700]


def test_a_strangers_directory_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(Misuse, match=r"not empty and not a data directory of engram \(it holds 'thesis.tex'\)"):
        DataDir(tmp_path).read_state()
    assert names(tmp_path) == ["thesis.tex"]
    with pytest.raises(Misuse, match="is not a directory"):
        DataDir(tmp_path / "thesis.tex").read_state()


def test_what_a_first_run_leaves_when_it_is_killed_is_ours(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    (tmp_path / ".engram.json.123.part").write_text('{"form')
    assert DataDir(tmp_path).read_state() is None


def test_a_damaged_marker_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "engram.json").write_text("{")
    with pytest.raises(Misuse, match=r"engram\.json is damaged: "):
        DataDir(tmp_path).read_state()


def test_the_password_is_made_once_and_missed_if_it_is_lost(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    data.create_parts(0o700)
    password = data.read_or_make_password()
    assert (len(password), data.read_or_make_password()) == (64, password)
    assert data.password_file.stat().st_mode & 0o777 == 0o600
    data.password_file.unlink()
    (data.shard("s0") / "pgdata").mkdir(parents=True)
    with pytest.raises(Failure, match="is missing: the shards cannot be opened without it"):
        data.read_or_make_password()


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_atomic(path, "one")
    write_atomic(path, "two")
    assert path.read_text() == "two"
    assert names(tmp_path) == ["f"]
    with pytest.raises(Failure, match="cannot write"):
        write_atomic(tmp_path / "absent" / "f", "x")


@pytest.mark.parametrize("name", ['a"b', "a$b", "a`b", "a\\b", "a\nb"])
def test_a_path_that_a_shell_would_change_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="which Postgres' own tools cannot take"):
        open_path(tmp_path / name)


def test_a_path_with_spaces_and_quotes_is_fine(tmp_path: Path) -> None:
    assert open_path(tmp_path / "it's mine; really").path == tmp_path / "it's mine; really"


def test_the_lock_says_who_holds_it(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    assert not is_locked(data)
    with locked(data):
        assert is_locked(data)
        assert holder(data) == Process(os.getpid(), started_ticks(os.getpid()))
        with (
            pytest.raises(Failure, match=rf"in use by `engram up` \(pid {os.getpid()}\); stop it with: engram down"),
            locked(data),
        ):
            pass
    assert not is_locked(data)
    assert holder(data) is None


def test_a_lock_that_nobody_holds_is_free_whatever_it_says(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    data.lock_file.write_text(f'{{"pid": {os.getpid()}, "started": 1}}')
    assert (is_locked(data), holder(data)) == (False, None)
    with locked(data):
        assert is_locked(data)


def test_a_number_that_another_program_has_now_is_not_the_process() -> None:
    started = started_ticks(os.getpid())
    assert is_alive(Process(os.getpid(), started))
    if started is not None:
        assert not is_alive(Process(os.getpid(), started - 1))
    assert not is_alive(Process(2**22 + 1, 1))


@pytest.mark.parametrize(
    "text", ["", "x\n", "{pid}\n", "{pid}\n/d\n1\nport\n", "4194305\n/d\n1\n5432\n\n127.0.0.1\n1 2\nready\n"]
)
def test_a_pid_file_without_a_living_postmaster_is_no_server(text: str, tmp_path: Path) -> None:
    pgdata = tmp_path / "pgdata"
    pgdata.mkdir()
    (pgdata / "postmaster.pid").write_text(text.format(pid=os.getpid()))
    assert find_running(Server(tmp_path)) is None


def test_a_living_program_that_is_at_home_elsewhere_is_no_server(tmp_path: Path) -> None:
    if not Path("/proc/self/cwd").exists():
        pytest.skip("this system does not tell where a process works")
    pgdata = tmp_path / "pgdata"
    pgdata.mkdir()
    (pgdata / "postmaster.pid").write_text(f"{os.getpid()}\n{pgdata}\n1\n5432\n\n127.0.0.1\n1 2\nready\n")
    assert find_running(Server(tmp_path)) is None


@pytest.mark.parametrize(
    ("modes", "closed"),
    [
        ([(0, 0, 0o755), (0, 0, 0o711)], None),
        ([(0, 0, 0o755), (0, 0, 0o700)], "/1"),
        ([(0, 0, 0o700), (0, 0, 0o700)], "/0"),
        ([(0, 5, 0o710)], None),
        ([(0, 5, 0o701)], "/0"),
        ([(7, 0, 0o100)], None),
        ([(7, 0, 0o011)], "/0"),
    ],
)
def test_the_first_directory_that_keeps_postgres_out_is_named(
    modes: list[tuple[int, int, int]], closed: str | None
) -> None:
    directories = [Directory(f"/{n}", uid, gid, mode) for n, (uid, gid, mode) in enumerate(modes)]
    assert first_closed(directories, Account(7, 5)) == closed


@pytest.mark.parametrize(
    ("environ", "uid", "path"),
    [
        ({"HOME": "/home/ada"}, 1000, "/home/ada/.local/share/engram"),
        ({"HOME": "/home/ada", "XDG_DATA_HOME": "/data"}, 1000, "/data/engram"),
        ({"HOME": "/home/ada", "XDG_DATA_HOME": "data"}, 1000, "/home/ada/.local/share/engram"),
        ({"HOME": "/root", "XDG_DATA_HOME": "/data"}, 0, "/var/lib/engram"),
        ({}, 1000, "~/.local/share/engram"),
    ],
)
def test_data_lies_where_the_system_says(environ: dict[str, str], uid: int, path: str) -> None:
    assert default_data_dir(environ, uid) == Path(path)
