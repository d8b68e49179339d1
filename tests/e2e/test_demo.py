"""The demo's main job, as `make demo` runs it, over a part of its text: one that broke fails here first."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.demo import story
from tests.e2e.stage import DEADLINE_S, ROOT, environment
from tests.harness import server_folder

PLAY = "hamlet"


def demo(folder: Path, *plays: str) -> subprocess.CompletedProcess[str]:
    """The demo, with its data below the folder."""
    return subprocess.run(
        [sys.executable, "-m", "examples.demo", *plays],
        cwd=ROOT,
        env=environment() | {"TMPDIR": str(folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


@pytest.fixture
def folder() -> Iterator[Path]:
    with server_folder() as found:
        yield found


def test_a_play_is_stored_found_and_outlives_the_loss_of_a_shard(folder: Path) -> None:
    done = demo(folder, PLAY)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    steps = {
        name.strip(): int(count.replace(",", ""))
        for name, count in re.findall(r"^│ (.+?) +│ +([\d,]+) │ \w+ +│ [\d.]+ +│", done.stdout, re.MULTILINE)
    }
    stored = steps["store, in batches"]
    assert stored > 1_000
    assert steps["read each back by its id"] == steps[f"after the start of {story.LOST}: read all again"] == stored
    assert steps["search famous lines"] == 2
    assert steps[f"{story.LOST} stopped: read a sample"] > 500
    assert list(folder.iterdir()) == [], "nothing is left behind"


def test_a_play_that_is_not_there_is_said_before_anything_starts(folder: Path) -> None:
    done = demo(folder, "hamlett")
    assert done.returncode == 1
    assert "no play 'hamlett'" in done.stdout
    assert list(folder.iterdir()) == []
