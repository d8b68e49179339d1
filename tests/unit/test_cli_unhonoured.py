"""No field of a manifest is ignored silently."""

from collections.abc import Iterator
from typing import Any

import pytest

from engram_cli.unhonoured import CLUSTER_GAPS, HONOURED, TENANT_GAPS, gaps_of
from engram_contract.kinds import Items
from engram_contract.parse import RESOURCE, Section, members_of
from engram_contract.spec import ClusterSpec, TenantSpec

API = "engram.dev/v1alpha1"
SILENT = {
    "MemoryCluster": {
        "shards": 1,
        "replicas": 0,
        "cache": {"provider": "None"},
        "backup": {"suspend": True},
        "retention": {"archiveAfter": "0s", "deleteAfter": "0s"},
        "deletionProtection": False,
    },
    "MemoryTenant": {
        "clusterRef": {"name": "local"},
        "encryption": {"enabled": False},
        "audit": {"enabled": False},
        "plan": "Enterprise",
        "retention": "0s",
    },
}


def resource(kind: str, **spec: Any) -> dict[str, Any]:  # noqa: ANN401
    """A resource that asks for nothing that local mode does not do, but for `spec`."""
    return {"apiVersion": API, "kind": kind, "metadata": {"name": "local"}, "spec": SILENT[kind] | spec}


def leaves(cls: type, prefix: str = "") -> Iterator[str]:
    """The path of each field of a resource, as the manifest writes it."""
    for member in members_of(cls):
        if prefix == "" and member.field in {"namespace", "name"}:
            continue
        path = f"{prefix}{member.name(RESOURCE)}"
        kind = member.kind.item if isinstance(member.kind, Items) else member.kind
        if isinstance(kind, Section):
            yield from leaves(kind.cls, f"{path}.")
        else:
            yield path


@pytest.mark.parametrize(("kind", "cls"), [("MemoryCluster", ClusterSpec), ("MemoryTenant", TenantSpec)])
def test_every_field_is_honoured_or_said(kind: str, cls: type) -> None:
    gaps = {f"{kind}.{path}" for gap in (*CLUSTER_GAPS, *TENANT_GAPS) for path in gap.paths}
    known = {path for path in HONOURED | gaps if path.startswith(kind)}
    fields = {f"{kind}.{path}" for path in leaves(cls)}
    covered = {field for field in fields if any(field == path or field.startswith(f"{path}.") for path in known)}
    assert fields - covered == set()
    unused = {path for path in HONOURED if path.startswith(kind)} - {
        path for path in HONOURED if any(field == path or field.startswith(f"{path}.") for field in fields)
    }
    assert unused == set()


def said(kind: str, **spec: Any) -> list[str]:  # noqa: ANN401
    """What is said of a manifest with this spec."""
    body = resource(kind, **spec)
    if kind == "MemoryCluster":
        return list(gaps_of(ClusterSpec.from_resource(body), []))
    return list(gaps_of(ClusterSpec.from_resource(resource("MemoryCluster")), [TenantSpec.from_resource(body)]))


def test_a_manifest_that_asks_for_nothing_special_is_silent() -> None:
    assert said("MemoryCluster") == []
    assert said("MemoryTenant") == []


@pytest.mark.parametrize(
    ("kind", "spec", "line"),
    [
        ("MemoryCluster", {"replicas": 1}, "spec.replicas: each shard is one Postgres without replicas"),
        ("MemoryCluster", {"storage": {"size": "20Gi"}}, "spec.storage: "),
        ("MemoryCluster", {"postgres": {"resources": {"requests": {"cpu": "1"}}}}, "spec.postgres.resources: "),
        (
            "MemoryCluster",
            {"postgres": {"parameters": {"logging_collector": "on"}}},
            "spec.postgres.parameters.",
        ),
        ("MemoryCluster", {"postgres": {"image": "engram:1"}}, "spec.postgres.image: "),
        ("MemoryCluster", {"scheduling": {"nodeSelector": {"disk": "ssd"}}}, "spec.scheduling: "),
        ("MemoryCluster", {"updatePolicy": "Automatic"}, "spec.updatePolicy: "),
        ("MemoryCluster", {"pooler": {"enabled": True}}, "spec.pooler: "),
        ("MemoryCluster", {"cache": {}}, "spec.cache.provider: there is no Redis"),
        ("MemoryCluster", {"backup": {}}, "spec.backup: no backups are made"),
        ("MemoryCluster", {"retention": {}}, "spec.retention: "),
        ("MemoryCluster", {"access": {"namespaceSelector": {"matchLabels": {"a": "b"}}}}, "spec.access: "),
        ("MemoryCluster", {"deletionProtection": True}, "spec.deletionProtection: "),
        ("MemoryCluster", {"paused": True}, "spec.paused: "),
        (
            "MemoryTenant",
            {"encryption": {}},
            "tenant default/local: spec.encryption: memories are encrypted, and their keys lie beside",
        ),
        ("MemoryTenant", {"audit": {}}, "tenant default/local: spec.audit: "),
        ("MemoryTenant", {"retention": "30d"}, "tenant default/local: spec.retention: "),
        ("MemoryTenant", {"compliance": ["GDPR"]}, "tenant default/local: spec.compliance: NONE"),
        ("MemoryTenant", {"allowedAgents": [{"name": "a"}]}, "tenant default/local: spec.allowedAgents: "),
        (
            "MemoryTenant",
            {"embedding": {"url": "http://localhost:1/v1", "model": "m", "dimensions": 3}},
            "tenant default/local: spec.embedding: ",
        ),
        ("MemoryTenant", {"reclaimPolicy": "Delete"}, "tenant default/local: spec.reclaimPolicy: "),
        ("MemoryTenant", {"watchdog": {"restart": True}}, "tenant default/local: spec.watchdog: "),
        ("MemoryTenant", {"sidecar": {"upgrade": "InPlace"}}, "tenant default/local: spec.sidecar: "),
    ],
)
def test_what_is_asked_for_and_not_done_is_one_line(kind: str, spec: dict[str, Any], line: str) -> None:
    lines = said(kind, **spec)
    assert len(lines) == 1
    assert lines[0].startswith(line)


def test_each_gap_stands_in_the_table_above() -> None:
    marks = test_what_is_asked_for_and_not_done_is_one_line.pytestmark
    lines = [row[2] for row in marks[0].args[1]]
    for gap in (*CLUSTER_GAPS, *TENANT_GAPS):
        assert any(f"spec.{gap.paths[0]}: " in line for line in lines)


def test_one_sentence_for_several_tenants_is_said_once() -> None:
    cluster = ClusterSpec.from_resource(resource("MemoryCluster"))
    body = resource("MemoryTenant", audit={})
    tenants = [TenantSpec.from_resource(body | {"metadata": {"name": f"t{number}"}}) for number in range(5)]
    assert list(gaps_of(cluster, tenants)) == [
        "tenants default/t0, default/t1, default/t2 and 2 more: spec.audit: no audit log is kept"
    ]
