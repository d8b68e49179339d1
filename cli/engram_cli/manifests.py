"""Manifests from files and standard input: the only file that knows YAML.

Promises
1. Each error is one line that says the file, the document and the field, or the file and the line.
2. A key that stands twice in a mapping is an error: YAML's own readers would silently keep the last.
3. What is not ours (a Namespace, a Secret) is named in `skipped`, so that it can be said.
"""

import sys
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml

from engram_cli.datadir import reason_of
from engram_cli.errors import Misuse
from engram_contract import names
from engram_contract.spec import BadSpec, ClusterSpec, TenantSpec

Spec = TypeVar("Spec")

STDIN: Final = "-"
MAX_BYTES: Final = 16 * 1024 * 1024  # thousands of tenants have a tenth of it
# Kinds of ours that act on a running cluster: local mode has none of it.
CLUSTER_ONLY: Final = ("MemoryBackup", "MemoryRestore")


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a file. `number` counts from 1, as does the line at which it begins."""

    file: str
    number: int
    line: int
    body: Any

    @property
    def label(self) -> str:
        """Where it is and what it says it is: `file.yaml: document 2 (MemoryTenant agents/support)`."""
        return f"{self.file}: document {self.number} ({self.title})"

    @property
    def title(self) -> str:
        """Kind, namespace and name as far as they are there, else the line."""
        body = _mapping(self.body)
        metadata = _mapping(body.get("metadata"))
        parts = [metadata.get("namespace"), metadata.get("name")]
        name = "/".join(str(part) for part in parts if part)
        return " ".join(str(part) for part in (body.get("kind"), name) if part) or f"line {self.line}"


@dataclass(frozen=True, slots=True)
class Manifests:
    """One cluster and its tenants; `skipped` are titles of documents that local mode has no use for."""

    cluster: ClusterSpec
    tenants: tuple[TenantSpec, ...]
    skipped: tuple[str, ...]


class _Loader(yaml.SafeLoader):
    """YAML without a mapping that says a thing twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002
        """The mapping; raises ConstructorError where a key stands twice."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                reason = f"the key {key.value!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, reason, key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else "")
        return super().construct_mapping(node, deep)


def load_manifests(files: Iterable[str]) -> Manifests:
    """The manifests of these files, `-` being standard input; raises Misuse."""
    documents = [document for file in files for document in parse_documents(file, _read(file))]
    return select_manifests(documents)


def parse_documents(file: str, text: str) -> Iterator[Document]:
    """The documents of a text that are not empty; raises Misuse naming the line."""
    try:
        for number, node in enumerate(yaml.compose_all(text, _Loader), 1):
            body = _construct(node)
            if body is not None:
                yield Document(file, number, node.start_mark.line + 1, body)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise Misuse(f"{file}:{mark.line + 1 if mark else 1}: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise Misuse(f"{file}: not YAML: {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise Misuse(f"{file}: nested too deeply") from error


def select_manifests(documents: Iterable[Document]) -> Manifests:
    """The one cluster and its tenants; raises Misuse."""
    of_kind: dict[str, list[Document]] = {names.CLUSTER_KIND: [], names.TENANT_KIND: []}
    skipped = []
    for document in documents:
        kind = _kind(document)
        if kind is None:
            skipped.append(document.title)
        else:
            of_kind[kind].append(document)
    clusters, tenants = of_kind[names.CLUSTER_KIND], of_kind[names.TENANT_KIND]
    if len(clusters) != 1:
        found = ", ".join(each.label for each in clusters) or "none"
        raise Misuse(f"local mode runs exactly one {names.CLUSTER_KIND}; found: {found}")
    cluster = _parse(clusters[0], ClusterSpec.from_resource)
    specs = [(each, _parse(each, TenantSpec.from_resource)) for each in tenants]
    _check_tenants(cluster, specs)
    return Manifests(cluster, tuple(spec for _, spec in specs), tuple(skipped))


def _read(file: str) -> str:
    try:
        data = sys.stdin.buffer.read(MAX_BYTES + 1) if file == STDIN else _read_file(Path(file))
    except OSError as error:
        raise Misuse(f"{file}: cannot be read: {reason_of(error)}") from error
    if len(data) > MAX_BYTES:
        raise Misuse(f"{file}: larger than {MAX_BYTES} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Misuse(f"{file}: not UTF-8 at byte {error.start}") from error


def _read_file(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _construct(node: yaml.Node) -> object:
    loader = _Loader("")
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _kind(document: Document) -> str | None:
    """The kind, if it is one that local mode reads, or None; raises Misuse for what looks like ours and is not."""
    body = document.body
    if not isinstance(body, dict):
        raise Misuse(f"{document.label}: not a resource: a mapping with apiVersion and kind is expected")
    group, _, version = str(body.get("apiVersion")).rpartition("/")
    kind = body.get("kind")
    if not isinstance(kind, str) or "apiVersion" not in body:
        raise Misuse(f"{document.label}: not a resource: apiVersion or kind is missing")
    if group != names.GROUP:
        if kind in {names.CLUSTER_KIND, names.TENANT_KIND}:
            raise Misuse(f"{document.label}: apiVersion: is {body['apiVersion']!r}, not {names.API_VERSION!r}")
        return None
    if version != names.VERSION:
        raise Misuse(f"{document.label}: apiVersion: version {version!r} is not known; {names.VERSION!r} is")
    if kind in {names.CLUSTER_KIND, names.TENANT_KIND}:
        return kind
    if kind in CLUSTER_ONLY:
        return None
    raise Misuse(f"{document.label}: kind: {names.GROUP} has no {kind!r}")


def _parse(document: Document, from_resource: Callable[[dict[str, Any]], Spec]) -> Spec:
    try:
        return from_resource(document.body)
    except BadSpec as error:
        raise Misuse(f"{document.label}: {error.path}: {error.reason}") from error


def _check_tenants(cluster: ClusterSpec, tenants: list[tuple[Document, TenantSpec]]) -> None:
    first: dict[tuple[str, str], Document] = {}
    for document, tenant in tenants:
        before = first.setdefault((tenant.namespace, tenant.name), document)
        if before is not document:
            raise Misuse(f"{document.label}: stands twice; the other one: {before.label}")
        reference = tenant.cluster_ref
        if (reference.namespace, reference.name) != (cluster.namespace, cluster.name):
            raise Misuse(
                f"{document.label}: spec.clusterRef: refers to {reference.namespace}/{reference.name}; "
                f"the cluster here is {cluster.namespace}/{cluster.name}"
            )
