"""`engram down`, `engram stop` and `engram start`: what `engram up` made, ended and begun from another terminal."""

import os
import signal
import time
from contextlib import suppress
from typing import Final

from engram_cli import ports, server
from engram_cli.account import Account, find_account
from engram_cli.datadir import DataDir, holder, is_locked, locked
from engram_cli.embedded import Programs, prepare_programs
from engram_cli.errors import Failure, Misuse
from engram_cli.processes import is_alive
from engram_cli.screen import Screen
from engram_cli.server import Server
from engram_cli.state import LocalState

PATIENCE_S: Final = 40.0  # a drain takes 10 s, a fast stop of Postgres a checkpoint
POLL_S: Final = 0.05


def run_down(data: DataDir, screen: Screen) -> None:
    """Nothing of the data directory runs; done again, it does nothing. Raises CliError if something does not end."""
    state = data.read_state()
    if state is None:
        screen.print(f"nothing runs: there is no data directory at {data.path}")
        return
    if is_locked(data):
        _end_up(data, screen)
    with locked(data):
        running = [each.id for each in state.shards if server.find_running(Server(data.shard(each.id)))]
        programs = _programs(data, state) if running else None
        for shard_id in running:
            if programs is not None and server.stop(programs, Server(data.shard(shard_id))):
                screen.print(f"{shard_id}: stopped")
    screen.print("nothing runs; the memories are kept")


def run_stop(data: DataDir, shard_id: str, screen: Screen) -> None:
    """The shard does not run. Sessions are ended, what is committed is on the disk."""
    state = _state(data, shard_id)
    if server.stop(_programs(data, state), Server(data.shard(shard_id))):
        screen.print(f"{shard_id}: stopped")
    else:
        screen.print(f"{shard_id}: was not running")


def run_start(data: DataDir, shard_id: str, screen: Screen) -> None:
    """The shard runs, at the port that the maps name; raises CliError if it cannot."""
    state = _state(data, shard_id)
    place = Server(data.shard(shard_id))
    record = state.shard(shard_id)
    running = server.find_running(place)
    if running is not None:
        screen.print(f"{shard_id}: already running (pid {running.pid})")
        return
    if record is None or record.port is None or server.major_version(place) is None:
        raise Misuse(f"shard {shard_id} has no data yet: engram up makes it")
    if not ports.is_free(record.port):
        raise Failure(
            f"port {record.port} of shard {shard_id} is taken by another program: "
            "engram down, then engram up, which chooses another port"
        )
    started = server.start(_programs(data, state), place)
    screen.print(f"{shard_id}: started (pid {started.pid}, port {started.port})")


def _end_up(data: DataDir, screen: Screen) -> None:
    """`engram up` has ended: asked, and after a while asked to hurry; raises Failure if it does not."""
    owner = holder(data)
    if owner is None:
        raise Failure(f"the data directory {data.path} is in use, but not by an engram up that says its pid: try again")
    screen.say(f"stopping engram up (pid {owner.pid})")
    for _ in range(2):
        with suppress(ProcessLookupError):
            _signal(owner.pid)
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            if not is_alive(owner):
                return
            time.sleep(POLL_S)
    raise Failure(f"engram up (pid {owner.pid}) does not end: kill -9 {owner.pid}, then engram down again")


def _signal(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
    except PermissionError as error:
        raise Failure(f"engram up (pid {pid}) belongs to another user") from error


def _state(data: DataDir, shard_id: str) -> LocalState:
    state = data.read_state()
    if state is None:
        raise Misuse(f"there is no data directory at {data.path}")
    if state.shard(shard_id) is None:
        raise Misuse(f"there is no shard {shard_id!r}; there are {', '.join(each.id for each in state.shards)}")
    return state


def _programs(data: DataDir, state: LocalState) -> Programs:
    account: Account
    account, _ = find_account()
    return prepare_programs(state.postgres_version, account, data.path / "postgres")
