"""Stages: a data directory of its own for each test, and one that the tests of a file share."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.stage import Stage, free_port


def _new_stage() -> Stage:
    # Not pytest's own directory: only its owner may pass that, and Postgres may run as another user.
    folder = Path(tempfile.mkdtemp(prefix="engram-e2e-"))
    folder.chmod(0o755)
    return Stage(folder / "data", free_port())


@pytest.fixture
def fresh() -> Iterator[Stage]:
    """A data directory that is not there yet."""
    stage = _new_stage()
    yield stage
    stage.clean_up()


@pytest.fixture(scope="module")
def _made() -> Iterator[Stage]:
    stage = _new_stage()
    stage.up().end()
    yield stage
    stage.clean_up()


@pytest.fixture
def stage(_made: Stage) -> Iterator[Stage]:
    """A data directory made from the quickstart, shared by the tests of a file; nothing runs before and after."""
    yield _made
    for program in _made.programs:
        program.kill()
    _made.programs.clear()
    _made.run("down")
    assert _made.processes() == []
