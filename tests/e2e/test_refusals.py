"""What a user does wrong gets one clear line, and nothing is touched."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.e2e.stage import QUICKSTART, Stage, engram, free_port, the_error


def up(manifest: Path, data_dir: Path) -> subprocess.CompletedProcess[str]:
    """`engram up` that is expected to end by itself."""
    return engram("up", "-f", str(manifest), "--data-dir", str(data_dir), "--port", str(free_port()))


def listing(path: Path) -> dict[str, bytes]:
    """Every file below a directory with its content."""
    return {str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*") if each.is_file()}


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("shards: 2", "shards: two", "document 1 (MemoryCluster memory): spec.shards: 'two' is no whole number"),
        ("shards: 2", "shards: 0", "document 1 (MemoryCluster memory): spec.shards: "),
        ("shards: 2", "shard: 2", "document 1 (MemoryCluster memory): spec.shard: unknown field; did you mean shards?"),
        ("shards: 2", "shards: 2\n  shards: 3", ":8: the key 'shards' stands twice"),
        ("shards: 2", "shards: [2", ":8: "),
        (
            "kind: MemoryTenant",
            "kind: MemoryTenent",
            "document 2 (MemoryTenent assistant): kind: engram.dev has no 'MemoryTenent'",
        ),
        (
            "plan: Enterprise",
            "isolation: Loose",
            "(MemoryTenant assistant): spec.isolation: 'Loose' is none of",
        ),
        ("clusterRef:\n    name: memory", "clusterRef: {name: other}", "spec.clusterRef: refers to default/other"),
        ("replicas: 0", "planOnly: true", "spec.planOnly: local mode has no plan to show"),
        ("plan: Enterprise", "residency: mars", "tenant default/assistant: spec.residency: no shard"),
    ],
)
def test_a_bad_manifest_is_one_line(tmp_path: Path, old: str, new: str, line: str) -> None:
    text = QUICKSTART.read_text()
    assert old in text
    manifest = tmp_path / "bad.yaml"
    manifest.write_text(text.replace(old, new, 1))
    done = up(manifest, tmp_path / "data")
    assert line in the_error(done, 2)
    assert not (tmp_path / "data").exists()


def test_a_missing_manifest_is_one_line(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    assert the_error(up(missing, tmp_path / "data"), 2) == f"{missing}: cannot be read: No such file or directory"


def test_a_strangers_directory_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("dear")
    done = up(QUICKSTART, tmp_path)
    assert "is not empty and not a data directory of engram (it holds 'thesis.tex')" in the_error(done, 2)
    assert listing(tmp_path) == {"thesis.tex": b"dear"}
    for command in (["down"], ["status"], ["stop", "s0"], ["start", "s0"]):
        assert "not a data directory of engram" in the_error(engram(*command, "--data-dir", str(tmp_path)), 2)


def test_a_file_is_no_data_directory(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert the_error(up(QUICKSTART, file), 2) == f"{file} is not a directory"


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            "name: memory",
            "name: other",
            "belongs to the cluster default/memory, not to default/other",
        ),
        ("shards: 2", "shards: 3", "the data directory has 2 shards, not 3: resharding is not there yet"),
        ("shards: 2", "shards: 1", "the data directory has 2 shards, not 1: the others hold memories"),
        (
            "replicas: 0",
            "shardingStrategy: Time",
            "is Time, but the stored memories lie by User",
        ),
        ("replicas: 0", "postgres: {version: 16}", "holds data of Postgres 18, not 16"),
        ("plan: Enterprise", "isolation: Minimal", "tenant default/assistant: spec.isolation: is Minimal"),
    ],
)
def test_data_of_other_manifests_is_refused_and_not_touched(stage: Stage, old: str, new: str, line: str) -> None:
    manifest = stage.data_dir.parent / "other.yaml"
    manifest.write_text(QUICKSTART.read_text().replace(old, new))
    before = listing(stage.data_dir / "tenants"), stage.status()
    assert line in the_error(up(manifest, stage.data_dir), 2)
    assert (listing(stage.data_dir / "tenants"), stage.status()) == before


def test_a_marker_that_is_damaged_or_of_the_future_is_one_line(stage: Stage) -> None:
    marker = stage.data_dir / "engram.json"
    kept = marker.read_text()
    try:
        marker.write_text(kept[:20])
        assert "engram.json is damaged" in the_error(up(QUICKSTART, stage.data_dir), 2)
        marker.write_text(json.dumps(json.loads(kept) | {"format": 9}))
        line = the_error(stage.run("status"), 2)
        assert "has format 9; this version of engram reads format 1" in line
    finally:
        marker.write_text(kept)


def test_a_lost_password_is_one_line(stage: Stage) -> None:
    secret = stage.data_dir / "secrets" / "postgres"
    kept = secret.read_text()
    secret.unlink()
    try:
        program = stage.start()
        assert program.wait() == 1
        assert "is missing: the shards cannot be opened without it" in program.wait_line("engram: error: ")
        assert not secret.exists()
    finally:
        secret.write_text(kept)
        secret.chmod(0o600)


def test_a_directory_that_postgres_cannot_pass_is_named(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root runs Postgres as another user")
    tmp_path.chmod(0o700)
    done = up(QUICKSTART, tmp_path / "data")
    line = the_error(done, 1)
    assert "Postgres runs as user 'engram', which cannot pass " in line
    assert "choose a --data-dir elsewhere" in line


def test_a_place_where_nothing_can_be_written_is_one_line() -> None:
    line = the_error(up(QUICKSTART, Path("/proc/engram")), 1)
    assert "cannot make the directory /proc/engram" in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["up"],
        ["up", "-f", str(QUICKSTART), "--port", "x"],
        ["up", "-f", str(QUICKSTART), "--postgres-version", "9"],
        ["fly"],
    ],
)
def test_a_wrong_command_line_is_explained(arguments: list[str]) -> None:
    done = engram(*arguments)
    assert (done.returncode, "Traceback" in done.stderr, "Usage" in done.stderr) == (2, False, True)
