"""The two kinds on a real API server: what it takes and refuses, and what kubectl shows of them.

tests/unit judges the same schemas with an interpreter; what only a real one shows is here, the cost of a rule among it.
"""

import http
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from engram_contract.names import API_VERSION, CLUSTER_KIND, TENANT_KIND
from engram_operator.clients import kube
from tests.e2e.cluster import CRDS, Cluster
from tests.e2e.crd_corpus import (
    PLURAL,
    Answer,
    Case,
    Json,
    folder,
    is_same_place,
    is_taken_by_contract,
    refusals,
    refused,
    resource,
    taken,
    written,
)

WRITTEN = list(written())
BAD_WRITTEN = [case for case in WRITTEN if case.refused and case.old is None]
BAD_MADE = list(refused())
GOOD = [case for case in [*WRITTEN, *taken()] if not case.refused and case.old is None]
CHANGES = [case for case in WRITTEN if case.old is not None]
SHORT = {CLUSTER_KIND: "mc", TENANT_KIND: "mt"}
ROOTS = {crd["spec"]["names"]["kind"]: crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"] for crd in CRDS}
CRD_FOLDER = kube.CRDS.path(None)
# What `kubectl apply` without --server-side keeps a copy of in an annotation, and all annotations may have 256 KiB.
MAX_CRD_BYTES = 200_000


def why(case: Case) -> str:
    return case.why[:160]


@pytest.fixture(scope="module")
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace for the objects of this file, where both kinds are as crds/ has them."""
    cluster.apply_crds()
    with cluster.namespace("crds") as name:
        yield name


@pytest.fixture(scope="module")
def answers(cluster: Cluster, namespace: str) -> dict[str, Answer]:
    """What the API server says to every object of the corpus, and to every change of one, asked once."""

    def ask(case: Case) -> Answer:
        path = folder(case.kind, namespace)
        return cluster.request("POST", path, case.body, dryRun="All", fieldValidation="Strict")

    def change(number: int, case: Case) -> Answer:
        """Of a stored object, which a paused operator need not build."""
        path, name = folder(case.kind, namespace), f"change-{number}"
        idle = {"paused": True} if case.kind == CLUSTER_KIND else {}
        status, stored = cluster.request("POST", path, resource(case.kind, case.old | idle, name))
        assert status == http.HTTPStatus.CREATED, stored.get("message")
        body = resource(case.kind, case.spec | idle, name)
        body["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"]
        return cluster.request("PUT", f"{path}/{name}", body, fieldValidation="Strict")

    told = {case.why: ask(case) for case in [*BAD_WRITTEN, *BAD_MADE, *GOOD]}
    return told | {case.why: change(number, case) for number, case in enumerate(CHANGES)}


# ---------------------------------------------------------------------------------------------------------- the corpus


def test_the_corpus_is_large_and_each_case_is_another() -> None:
    assert len(BAD_WRITTEN) + len(BAD_MADE) >= 200
    assert len(GOOD) >= 100
    everything = [*BAD_WRITTEN, *BAD_MADE, *GOOD, *CHANGES]
    assert len({case.why for case in everything}) == len(everything)
    bodies = {json.dumps([case.body, case.old], sort_keys=True) for case in [*BAD_WRITTEN, *BAD_MADE, *CHANGES]}
    assert len(bodies) > 0.95 * len([*BAD_WRITTEN, *BAD_MADE, *CHANGES])  # some are both written and made


@pytest.mark.parametrize("case", BAD_WRITTEN, ids=why)
def test_a_bad_object_is_refused_at_its_place(case: Case, answers: dict[str, Answer]) -> None:
    status, answer = answers[case.why]
    assert status in (http.HTTPStatus.UNPROCESSABLE_ENTITY, http.HTTPStatus.BAD_REQUEST), answer.get("message")
    assert any(is_same_place(path, case.refused) for path in refusals(answer)), answer.get("message")
    assert not is_taken_by_contract(case)


@pytest.mark.parametrize("case", BAD_MADE, ids=why)
def test_what_a_schema_forbids_is_refused_by_this_very_rule(case: Case, answers: dict[str, Answer]) -> None:
    status, answer = answers[case.why]
    is_stranger = case.says == "unknown field"
    assert status == (http.HTTPStatus.BAD_REQUEST if is_stranger else http.HTTPStatus.UNPROCESSABLE_ENTITY), answer.get(
        "message"
    )
    assert case.says in refusals(answer).get(case.refused, ""), answer.get("message")
    assert not is_taken_by_contract(case)


@pytest.mark.parametrize("case", GOOD, ids=why)
def test_a_good_object_is_taken(case: Case, answers: dict[str, Answer]) -> None:
    status, answer = answers[case.why]
    assert status == http.HTTPStatus.CREATED, answer.get("message")


def rules(schema: Json) -> Iterator[Json]:
    yield from schema.get("x-kubernetes-validations", ())
    for part in [*schema.get("properties", {}).values(), *filter(None, [schema.get("items")])]:
        yield from rules(part)


def test_every_rule_refuses_something(answers: dict[str, Answer]) -> None:
    said = "\n".join(text for _, answer in answers.values() for text in refusals(answer).values())
    messages = {rule["message"] for schema in ROOTS.values() for rule in rules(schema)}
    assert {message for message in messages if message not in said} == set()


@pytest.mark.parametrize("case", CHANGES, ids=why)
def test_a_change_is_taken_or_refused_at_its_place(case: Case, answers: dict[str, Answer]) -> None:
    status, answer = answers[case.why]
    if case.refused:
        assert status == http.HTTPStatus.UNPROCESSABLE_ENTITY, answer.get("message")
        assert any(is_same_place(path, case.refused) for path in refusals(answer)), answer.get("message")
    else:
        assert status == http.HTTPStatus.OK, answer.get("message")


# --------------------------------------------------------------------------------------------------- what kubectl shows


@pytest.fixture(scope="module")
def shown(cluster: Cluster, namespace: str) -> None:
    """A cluster and a tenant with a status."""
    backup = (datetime.now(UTC) - timedelta(days=3, minutes=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    ready = {"type": "Ready", "status": "True", "reason": "Told", "message": "", "lastTransitionTime": backup}
    moving = ready | {"type": "ReshardingActive", "status": "False"}
    objects = (
        (
            resource(CLUSTER_KIND, {"shards": 2, "paused": True}, "shown"),
            {"ready": "2/2", "phase": "Running", "lastBackupTime": backup, "conditions": [ready, moving]},
        ),
        (
            resource(TENANT_KIND, {"clusterRef": {"name": "shown"}, "plan": "Pro"}, "guest"),
            {"usage": {"memories": 17}, "mapEpoch": 4, "conditions": [ready]},
        ),
    )
    for body, observed in objects:
        path = folder(body["kind"], namespace)
        assert cluster.request("POST", path, body)[0] == http.HTTPStatus.CREATED
        path = f"{path}/{body['metadata']['name']}/status"
        status, answer = cluster.request("PATCH", path, {"status": observed})
        assert status == http.HTTPStatus.OK, answer.get("message")


def table(cluster: Cluster, namespace: str, kind: str, name: str, *more: str) -> dict[str, str]:
    """The columns that kubectl prints of one object."""
    header, row = cluster.kubectl("get", SHORT[kind], name, "-n", namespace, *more).splitlines()
    names = re.findall(r"\S+(?: \S+)*\s*", header)  # a column is as wide as its title with the blanks behind it
    starts = [header.index(each) for each in names]
    ends = [*starts[1:], len(row)]
    return {each.strip(): row[start:end].strip() for each, start, end in zip(names, starts, ends, strict=True)}


def test_kubectl_get_shows_what_a_person_asks_first(cluster: Cluster, namespace: str, shown: None) -> None:
    row = table(cluster, namespace, CLUSTER_KIND, "shown")
    assert re.fullmatch(r"\d+s", row.pop("AGE"))
    assert row == {"NAME": "shown", "SHARDS": "2", "READY": "2/2", "PHASE": "Running", "LAST BACKUP": "3d"}
    row = table(cluster, namespace, TENANT_KIND, "guest")
    assert re.fullmatch(r"\d+s", row.pop("AGE"))
    assert row == {
        "NAME": "guest",
        "CLUSTER": "shown",
        "ISOLATION": "Strict",
        "PLAN": "Pro",
        "READY": "True",
        "MEMORIES": "17",
    }


def test_kubectl_get_wide_shows_more(cluster: Cluster, namespace: str, shown: None) -> None:
    row = table(cluster, namespace, CLUSTER_KIND, "shown", "-o", "wide")
    assert (row["VERSION"], row["RESHARDING"]) == ("18", "False")
    assert table(cluster, namespace, TENANT_KIND, "guest", "-o", "wide")["EPOCH"] == "4"


def test_both_kinds_answer_to_the_category_and_to_short_names(cluster: Cluster, namespace: str, shown: None) -> None:
    seen = cluster.kubectl("get", "memory", "-n", namespace, "-o", "name").split()
    assert {"memorycluster.engram.dev/shown", "memorytenant.engram.dev/guest"} <= set(seen)
    both = cluster.kubectl("get", "mc/shown", "mt/guest", "-n", namespace, "-o", "name").split()
    assert both == ["memorycluster.engram.dev/shown", "memorytenant.engram.dev/guest"]


def sections(schema: Json, path: str) -> Iterator[tuple[str, Json]]:
    """Everything that has members, with its path as `kubectl explain` takes it."""
    if "properties" in schema:
        yield path, schema["properties"]
    for name, part in schema.get("properties", {}).items():
        if name != "metadata":
            yield from sections(part.get("items", part), f"{path}.{name}")


SECTIONS = [each for kind, schema in ROOTS.items() for each in sections(schema, SHORT[kind])]
# The API server describes these itself, for every kind alike.
STANDARD = ("apiVersion", "kind", "metadata")


@pytest.mark.parametrize(("path", "members"), SECTIONS, ids=[path for path, _ in SECTIONS])
def test_every_member_is_described(path: str, members: Json) -> None:
    short = [name for name, part in members.items() if name not in STANDARD and len(part["description"]) < 15]
    assert short == []


@pytest.fixture(scope="module")
def published(cluster: Cluster, namespace: str) -> None:
    """The API server has published both schemas, which it does a moment after it judges by them."""

    def is_published() -> bool:
        _, text = cluster.fetch("GET", f"/openapi/v3/apis/{API_VERSION}")
        return all(f'"kind":"{kind}"' in text.replace(" ", "") for kind in PLURAL)

    cluster.wait_until("both schemas to be published", is_published)


@pytest.mark.parametrize(("path", "members"), SECTIONS, ids=[path for path, _ in SECTIONS])
def test_kubectl_explains_every_member(path: str, members: Json, cluster: Cluster, published: None) -> None:
    told = " ".join(cluster.kubectl("explain", path).split())
    for name, part in members.items():
        if name not in STANDARD:
            assert re.search(rf" {name} <[^>]+>.*? {re.escape(part['description'])}", told), (name, told)


# -------------------------------------------------------------------------------------------------------- their health


@pytest.mark.parametrize("crd", CRDS, ids=lambda crd: crd["metadata"]["name"])
def test_a_crd_is_accepted_without_a_reservation(crd: Json, cluster: Cluster, namespace: str) -> None:
    status, stored = cluster.request("GET", f"{CRD_FOLDER}/{crd['metadata']['name']}")
    assert status == http.HTTPStatus.OK
    conditions = {each["type"]: each["status"] for each in stored["status"]["conditions"]}
    assert (conditions["NamesAccepted"], conditions["Established"]) == ("True", "True")
    assert conditions.get("NonStructuralSchema", "False") == "False"
    assert stored["status"]["storedVersions"] == [crd["spec"]["versions"][0]["name"]]


@pytest.mark.parametrize("crd", CRDS, ids=lambda crd: crd["metadata"]["name"])
def test_a_crd_is_small_enough_for_a_plain_kubectl_apply(crd: Json, cluster: Cluster, namespace: str) -> None:
    assert len(json.dumps(crd)) < MAX_CRD_BYTES
    cluster.kubectl("apply", "--dry-run=server", "-f", "-", input=json.dumps(crd))
