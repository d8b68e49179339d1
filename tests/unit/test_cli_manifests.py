"""Manifests: what is read, and the one line that each mistake gets."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from engram_cli.errors import Misuse
from engram_cli.manifests import Manifests, load_manifests, parse_documents, select_manifests

CLUSTER = """\
apiVersion: engram.dev/v1alpha1
kind: MemoryCluster
metadata: {name: local, namespace: agents}
spec: {shards: 2}
"""
TENANT = """\
apiVersion: engram.dev/v1alpha1
kind: MemoryTenant
metadata: {name: support, namespace: agents}
spec: {clusterRef: {name: local}}
"""
FOREIGN = "apiVersion: v1\nkind: Namespace\nmetadata: {name: agents}\n"


def read(*texts: str) -> Manifests:
    """The manifests of one file with these documents."""
    return select_manifests(list(parse_documents("file.yaml", "---\n".join(texts))))


def test_one_cluster_and_its_tenants_are_read_from_several_documents() -> None:
    other = TENANT.replace("support", "sales")
    manifests = read(CLUSTER, TENANT, other)
    assert manifests.cluster.name == "local"
    assert [each.name for each in manifests.tenants] == ["support", "sales"]
    assert manifests.skipped == ()


def test_files_and_standard_input_are_read_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("\ufeff" + CLUSTER, encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TENANT.encode())))
    assert len(load_manifests([str(file), "-"]).tenants) == 1


def test_what_is_not_ours_is_named_and_empty_documents_are_not() -> None:
    backup = "apiVersion: engram.dev/v1alpha1\nkind: MemoryBackup\nmetadata: {name: nightly}\n"
    manifests = read("", CLUSTER, "# only a comment\n", FOREIGN, TENANT, backup)
    assert manifests.skipped == ("Namespace agents", "MemoryBackup nightly")


@pytest.mark.parametrize(
    ("texts", "line"),
    [
        (["a: 1\na: 2\n"], "file.yaml:2: the key 'a' stands twice"),
        ([CLUSTER, "spec:\n  x: {b: 1, b: 2}\n"], "file.yaml:7: the key 'b' stands twice"),
        (["a: [1\nb: 2\n"], "file.yaml:2: "),
        (["a: !!python/object:os.system {}\n"], "file.yaml:1: could not determine a constructor"),
        (["a: \t- b\n"], "file.yaml:1: "),
        (["a: \u0000\n"], "file.yaml: not YAML: "),
        (["&a [*a]\n"], "file.yaml: document 1 (line 1): not a resource"),
        (["[" * 1_000], "file.yaml: nested too deeply"),
        (["just text\n"], "file.yaml: document 1 (line 1): not a resource"),
        (["kind: MemoryCluster\n"], "file.yaml: document 1 (MemoryCluster): not a resource"),
        ([], "local mode runs exactly one MemoryCluster; found: none"),
        ([TENANT], "local mode runs exactly one MemoryCluster; found: none"),
        (
            [CLUSTER, CLUSTER.replace("local", "two")],
            (
                "local mode runs exactly one MemoryCluster; found: file.yaml: document 1 (MemoryCluster agents/local), "
                "file.yaml: document 2 (MemoryCluster agents/two)"
            ),
        ),
        (
            [CLUSTER.replace("v1alpha1", "v2")],
            "file.yaml: document 1 (MemoryCluster agents/local): apiVersion: version 'v2' is not known; 'v1alpha1' is",
        ),
        (
            [CLUSTER.replace("engram.dev", "engram.io")],
            (
                "file.yaml: document 1 (MemoryCluster agents/local): apiVersion: is 'engram.io/v1alpha1', "
                "not 'engram.dev/v1alpha1'"
            ),
        ),
        (
            [CLUSTER, TENANT.replace("MemoryTenant", "MemoryTenent")],
            "file.yaml: document 2 (MemoryTenent agents/support): kind: engram.dev has no 'MemoryTenent'",
        ),
        (
            [CLUSTER, TENANT.replace("{clusterRef", "{isolation: Loose, clusterRef")],
            "file.yaml: document 2 (MemoryTenant agents/support): spec.isolation: ",
        ),
        ([CLUSTER.replace("2", "many")], "file.yaml: document 1 (MemoryCluster agents/local): spec.shards: "),
        (
            [CLUSTER, TENANT.replace("name: local", "name: other")],
            (
                "file.yaml: document 2 (MemoryTenant agents/support): spec.clusterRef: refers to agents/other; "
                "the cluster here is agents/local"
            ),
        ),
        (
            [CLUSTER, TENANT, TENANT],
            (
                "file.yaml: document 3 (MemoryTenant agents/support): stands twice; the other one: "
                "file.yaml: document 2 (MemoryTenant agents/support)"
            ),
        ),
    ],
)
def test_a_mistake_is_one_line_that_says_where(texts: list[str], line: str) -> None:
    with pytest.raises(Misuse) as raised:
        read(*texts)
    assert str(raised.value).startswith(line)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"\xff\xfe", "not UTF-8 at byte 0"),
        (b"#" * (16 * 1024 * 1024 + 1), "larger than 16777216 bytes"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(content: bytes | None, line: str, tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(Misuse) as raised:
        load_manifests([str(file)])
    assert str(raised.value) == f"{file}: {line}"


def test_a_billion_laughs_do_not_grow() -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 60))]
    document: Any = next(parse_documents("file.yaml", "\n".join(lines)))
    assert len(document.body["a59"]) == 9


def test_a_merge_key_is_no_twin() -> None:
    text = "base: &b {x: 1}\nmore: {<<: *b, x: 2}\n"
    assert next(parse_documents("file.yaml", text)).body["more"] == {"x": 2}
