"""docs/reference/metrics.md is what the sources declare; `python tests/unit/test_metrics_reference.py` writes it."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference" / "metrics.md"
ENDINGS = {"Counter": "_total", "Gauge": "", "Histogram": ""}
SOURCES = {
    "The sidecar": ("sidecar/engram_sidecar/metrics.py", "sidecar/engram_sidecar/cachemetrics.py"),
    "Operator and injector": ("operator/engram_operator/metrics.py",),
}
HEAD = """# Metrics

Made from the sources by `python tests/unit/test_metrics_reference.py`. All are on the dashboard
(`charts/engram/files/dashboard.json`).

A sidecar serves one tenant, so none of its metrics has a label for it: a scrape adds the pod and its namespace. Labels
are operations, templates of paths, nodes and outcomes, never a key, a path or a user; whatever is sent, the number of
series is bounded. `memory_store_size_bytes` and `engram_memories` are the whole tenant's, the same from each of its
sidecars: take the highest, not the sum.
"""


def declared(path: Path) -> Iterator[tuple[str, str, str, str]]:
    """(name, kind, labels, meaning) of each metric that a source file makes."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        kind = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
        if isinstance(node, ast.Call) and kind in ENDINGS:
            name, meaning, *rest = (ast.literal_eval(argument) for argument in node.args)
            yield name + ENDINGS[kind], kind.lower(), ", ".join(f"`{label}`" for label in next(iter(rest), ())), meaning


def build_reference() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, paths in SOURCES.items():
        found = sorted(each for path in paths for each in declared(ROOT / path))
        rows = [f"| `{name}` | {kind} | {labels} | {says} |" for name, kind, labels, says in found]
        head = ["| Metric | Kind | Labels | What it says |", "| --- | --- | --- | --- |"]
        parts.append("\n".join([f"\n## {title}\n", *head, *rows, ""]))
    return "".join(parts)


def test_the_reference_is_what_the_sources_declare() -> None:
    assert REFERENCE.read_text("utf-8") == build_reference(), "python tests/unit/test_metrics_reference.py"


if __name__ == "__main__":
    REFERENCE.write_text(build_reference(), "utf-8")
