"""Objects older than a rule on a real API server: what may still be done to them, and what the rule stops.

Kubernetes passes over a rule at a value that a change leaves as it was ("ratcheting"), so a rule that comes later must
stand as deep as it can: one at the root of a resource would stop labels, finalizers and the operator's status.
https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#validation-ratcheting
"""

import copy
import http
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import pytest

from engram_contract.names import CLUSTER_KIND, TENANT_KIND
from tests.e2e.cluster import CRDS, Cluster
from tests.e2e.crd_corpus import PLURAL, Answer, Json, folder, is_same_place, refusals, resource


def loosened(schema: Json) -> Json:
    """The schema as if hardly a rule had been made yet: types and defaults, and what spec must be."""
    kept = {
        name: value for name, value in schema.items() if name not in ("x-kubernetes-validations", "required", "enum")
    }
    kept = {name: value for name, value in kept.items() if not re.match("m(in|ax)|pattern|x-kubernetes-list", name)}
    if "properties" in kept:
        kept["properties"] = {name: loosened(part) for name, part in kept["properties"].items()}
    for name in ("items", "additionalProperties"):
        if name in kept:
            kept[name] = loosened(kept[name])
    return kept


def loosened_crd(crd: Json) -> Json:
    """The CRD of an earlier day, under the same name."""
    old = copy.deepcopy(crd)
    schema = old["spec"]["versions"][0]["schema"]
    schema["openAPIV3Schema"] = loosened(schema["openAPIV3Schema"])
    return old


@dataclass(frozen=True, slots=True)
class Old:
    """A spec from before the rules, a change of it, and where the change is refused, "" if nowhere."""

    spec: Json
    change: Json
    refused: str = ""


BAD_IN_MANY_PLACES: Json = {
    "replicas": 99,
    "shardingStrategy": "Roulette",
    "shardOverrides": [{"id": "s7", "weight": 5000, "state": "Lost"}],
    "provider": "External",
    "storage": {"size": "1Mi"},
    "postgres": {"version": 9, "parameters": {"Port": "1"}, "resources": {"requests": {"cpu": "1M"}}},
    "cache": {"url": "redis://a", "secretRef": {"name": "a"}},
    "backup": {"schedule": "sometimes", "s3": {"prefix": "\u00e9"}},
    "access": {"namespaceSelector": {"matchExpressions": [{"key": "-", "operator": "Like"}]}},
}
KEY_TWICE: Json = {"shards": 2, "shardOverrides": [{"id": "s0"}, {"id": "s0", "weight": 5000}]}
OLD_CLUSTERS = {
    "a value beside the bad one": Old({"replicas": 99}, {"paused": True}),
    "the bad value to a good one": Old({"replicas": 99}, {"replicas": 2}),
    "the bad value to another bad one": Old({"replicas": 99}, {"replicas": 98}, "spec.replicas"),
    "a word that is none to another such": Old(
        {"cache": {"provider": "x"}}, {"cache": {"provider": "y"}}, "spec.cache"
    ),
    "a text beside a bad one": Old({"backup": {"schedule": "sometimes"}}, {"backup": {"suspend": True}}),
    "a text that a rule refuses": Old({"storage": {"size": "1Mi"}}, {"storage": {"size": "2Mi"}}, "spec.storage.size"),
    "beside a section that a rule refuses": Old({"cache": {"url": "redis://a"}}, {"paused": True}),
    "within a section that a rule refuses": Old(
        {"cache": {"url": "redis://a"}}, {"cache": {"ttl": "2h"}}, "spec.cache.provider"
    ),
    # The rules on spec compare shards with lists, and stand where both are: any change of spec wakes them.
    "anything in a spec that a rule refuses": Old(
        {"shardOverrides": [{"id": "s5"}]}, {"paused": True}, "spec.shardOverrides"
    ),
    "the spec that a rule refuses to a good one": Old({"shardOverrides": [{"id": "s5"}]}, {"shards": 6}),
    "beside a required member that is absent": Old({"backup": {"s3": {"region": "a"}}}, {"backup": {"suspend": True}}),
    "within what lacks a required member": Old(
        {"backup": {"s3": {"region": "a"}}}, {"backup": {"s3": {"region": "b"}}}, "spec.backup.s3.bucket"
    ),
    "an item of a map beside a bad one": Old(
        {"shards": 2, "shardOverrides": [{"id": "s0", "weight": 5000}, {"id": "s1"}]},
        {"shardOverrides": [{"id": "s0", "weight": 5000}, {"id": "s1", "weight": 2}]},
    ),
    "an item of an atomic list beside a bad one": Old(
        {"access": {"namespaceSelector": {"matchExpressions": [{"key": "-", "operator": "Exists"}]}}},
        {
            "access": {
                "namespaceSelector": {
                    "matchExpressions": [{"key": "-", "operator": "Exists"}, {"key": "a", "operator": "Exists"}]
                }
            }
        },
        "spec.access.namespaceSelector.matchExpressions[0].key",
    ),
    "a setting beside one that is now Engram's": Old(
        {"postgres": {"parameters": {"port": "1"}}},
        {"postgres": {"parameters": {"port": "1", "work_mem": "8MB"}}},
        "spec.postgres.parameters",
    ),
}
OLD_TENANTS = {
    "a tenant's value beside a bad one": Old({"retention": "a month"}, {"plan": "Pro"}),
    "a tenant's bad value to another": Old({"retention": "a month"}, {"retention": "a year"}, "spec.retention"),
    "a tenant that a rule refuses": Old(
        {"compliance": ["HIPAA"], "encryption": {"enabled": False}}, {"plan": "Pro"}, "spec.encryption.enabled"
    ),
}
OLD = [(CLUSTER_KIND, what, old) for what, old in OLD_CLUSTERS.items()]
OLD += [(TENANT_KIND, what, old) for what, old in OLD_TENANTS.items()]


@dataclass(slots=True)
class Aged:
    """A cluster whose objects were stored before the rules came."""

    cluster: Cluster
    namespace: str
    names: dict[str, str] = field(default_factory=dict)

    def store(self, kind: str, spec: Json, name: str) -> None:
        if kind == TENANT_KIND:
            spec = {"clusterRef": {"name": "memory"}} | spec
        status, answer = self.cluster.request("POST", folder(kind, self.namespace), resource(kind, spec, name))
        assert status == http.HTTPStatus.CREATED, answer.get("message")

    def patch(self, kind: str, name: str, change: Json, part: str = "") -> Answer:
        return self.cluster.request("PATCH", f"{folder(kind, self.namespace)}/{name}{part}", change)

    def judges(self, kind: str, status: int) -> bool:
        """Whether the API server already answers a bad object with this status."""
        spec = {"clusterRef": {"name": "A"}, "retention": "never"} if kind == TENANT_KIND else {"shards": 0}
        body = resource(kind, spec, "probe")
        return self.cluster.request("POST", folder(kind, self.namespace), body, dryRun="All")[0] == status

    def wait_judges(self, status: int) -> None:
        for kind in PLURAL:
            self.cluster.wait_until(f"the new schema of {kind}", partial(self.judges, kind, status))

    @contextmanager
    def before_the_rules(self) -> Iterator[None]:
        """The CRDs are loosened within, and as crds/ has them after."""
        try:
            for crd in CRDS:
                self.cluster.apply_crd(loosened_crd(crd))
            self.wait_judges(http.HTTPStatus.CREATED)
            yield
        finally:
            self.cluster.apply_crds()
        self.wait_judges(http.HTTPStatus.UNPROCESSABLE_ENTITY)


@pytest.fixture(scope="module")
def aged(cluster: Cluster) -> Iterator[Aged]:
    """Objects that the rules of today refuse, stored before there were any."""
    cluster.apply_crds()
    with cluster.namespace("aged") as namespace:
        aged = Aged(cluster, namespace)
        with aged.before_the_rules():
            for number, (kind, what, old) in enumerate(OLD):
                aged.names[what] = f"old-{number}"
                aged.store(kind, old.spec, aged.names[what])
            aged.store(CLUSTER_KIND, BAD_IN_MANY_PLACES, "bad.in.many-places")
            aged.store(CLUSTER_KIND, KEY_TWICE, "key-twice")
        yield aged


def test_an_object_older_than_the_rules_would_be_refused_today(aged: Aged) -> None:
    body = resource(CLUSTER_KIND, BAD_IN_MANY_PLACES, "bad.in.many-places")
    status, answer = aged.cluster.request("POST", folder(CLUSTER_KIND, aged.namespace), body, dryRun="All")
    assert status == http.HTTPStatus.UNPROCESSABLE_ENTITY
    assert len(refusals(answer)) > 10


@pytest.mark.parametrize(
    ("change", "part"),
    [
        pytest.param({"metadata": {"labels": {"team": "agents"}}}, "", id="a label"),
        pytest.param({"metadata": {"annotations": {"note": "old"}}}, "", id="an annotation"),
        pytest.param({"metadata": {"finalizers": ["engram.dev/e2e"]}}, "", id="a finalizer"),
        pytest.param({"metadata": {"finalizers": None}}, "", id="no finalizer"),
        pytest.param({"status": {"phase": "Old", "ready": "0/1"}}, "/status", id="the status"),
    ],
)
def test_an_old_object_that_is_bad_all_over_still_takes(change: Json, part: str, aged: Aged) -> None:
    status, answer = aged.patch(CLUSTER_KIND, "bad.in.many-places", change, part)
    assert status == http.HTTPStatus.OK, answer.get("message")


@pytest.mark.parametrize(("kind", "what", "old"), [pytest.param(*row, id=row[1]) for row in OLD])
def test_an_old_object_takes_a_label_and_what_its_change_does_not_touch(
    kind: str, what: str, old: Old, aged: Aged
) -> None:
    name = aged.names[what]
    assert aged.patch(kind, name, {"metadata": {"labels": {"team": "agents"}}})[0] == http.HTTPStatus.OK
    status, answer = aged.patch(kind, name, {"spec": old.change})
    if old.refused:
        assert status == http.HTTPStatus.UNPROCESSABLE_ENTITY, answer.get("message")
        assert any(is_same_place(path, old.refused) for path in refusals(answer)), answer.get("message")
    else:
        assert status == http.HTTPStatus.OK, answer.get("message")


def test_a_key_twice_in_a_map_is_the_one_thing_that_stops_even_a_label(aged: Aged) -> None:
    """Kubernetes finds an item's old self by its key, so the second looks changed: never make a list a map later."""
    status, answer = aged.patch(CLUSTER_KIND, "key-twice", {"metadata": {"labels": {"team": "agents"}}})
    assert status == http.HTTPStatus.UNPROCESSABLE_ENTITY
    assert "spec.shardOverrides[1].weight" in refusals(answer), answer.get("message")
    good = {"spec": {"shardOverrides": [{"id": "s0", "weight": 500}]}}
    assert aged.patch(CLUSTER_KIND, "key-twice", good)[0] == http.HTTPStatus.OK
