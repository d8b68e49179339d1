"""What surrounds the operator's work: its environment, its log lines, what its probes say, how its loops end."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace

import pytest

from engram_contract import names
from engram_contract.policy import PLAN_QUOTAS, Plan, Quota
from engram_operator.app import CrdWatch
from engram_operator.clients.kube import CRDS, LEASES
from engram_operator.clients.leases import Leases
from engram_operator.errors import ApiConflict, ApiUnavailable, BadSettings, LostLease
from engram_operator.life import until_one_ends
from engram_operator.logs import JsonLines
from engram_operator.manifests.site import Site
from engram_operator.metrics import InjectorMetrics, OperatorMetrics
from engram_operator.plan.certificates import Lifetimes
from engram_operator.plan.lease import MAX_LEASE_S, stands_s
from engram_operator.plan.readiness import (
    OUR_CRDS,
    InjectorSeen,
    OperatorSeen,
    crd_fault,
    injector_fault,
    liveness_fault,
    operator_fault,
)
from engram_operator.settings import Identity, Injection, InjectorSettings, OperatorSettings
from engram_operator.tls import ServedCertificate
from tests.operator_stage import Store, run_virtually

POD = {names.ENV_NAMESPACE: "engram", names.ENV_POD_NAME: "engram-operator-5d9c-x7k2p"}
OPERATOR = POD | {
    names.ENV_LEASE: "engram-operator",
    names.ENV_TLS_SECRET: "engram-injector-tls",
    names.ENV_WEBHOOK_CONFIG: "engram-injector",
    names.ENV_WEBHOOK_SERVICE: "injector",
}
INJECTOR = POD | {names.ENV_TLS_SECRET: "engram-injector-tls", names.ENV_SIDECAR_IMAGE: "engram-sidecar:1"}


SHARDS = {
    names.ENV_POSTGRES_IMAGE: "engram-postgres:1",
    names.ENV_REDIS_IMAGE: "redis:8",
    names.ENV_OPERATOR_LABELS: "app=engram,part=operator",
    names.ENV_PULL_SECRETS: "one, two",
}


def test_the_plans_are_the_installations_and_the_usual_ones_where_it_is_silent() -> None:
    plans = json.dumps({"Free": {"memories": 7, "storage": "1Gi", "requestsPerSecond": 2}, "Pro": {"memories": 50}})
    terms = OperatorSettings.from_env(OPERATOR | SHARDS | {names.ENV_PLANS: plans}).terms
    assert terms.plans[Plan.FREE] == Quota(memories=7, storage_bytes=1 << 30, requests_per_second=2)
    assert terms.plans[Plan.PRO] == replace(PLAN_QUOTAS[Plan.PRO], memories=50)
    assert terms.plans[Plan.ENTERPRISE] == PLAN_QUOTAS[Plan.ENTERPRISE]
    assert terms.file_grace_s == 300
    assert OperatorSettings.from_env(OPERATOR | SHARDS).terms.plans == PLAN_QUOTAS


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        (names.ENV_PLANS, "{", "ENGRAM_PLANS: "),
        (names.ENV_PLANS, "[]", "Free, Pro, Enterprise"),
        (names.ENV_PLANS, '{"Gold": {}}', "Free, Pro, Enterprise"),
        (names.ENV_PLANS, '{"Free": {"memories": 0}}', r"Free\.memories"),
        (names.ENV_PLANS, '{"Free": {"storage": "lots"}}', r"Free\.storage"),
        (names.ENV_PLANS, '{"Free": {"rate": 1}}', r"Free\.rate"),
        (names.ENV_FILE_GRACE_S, "soon", "ENGRAM_FILE_GRACE_SECONDS"),
        (names.ENV_FILE_GRACE_S, "-1", "ENGRAM_FILE_GRACE_SECONDS"),
    ],
)
def test_wrong_terms_name_what_is_wrong(name: str, text: str, reason: str) -> None:
    with pytest.raises(BadSettings, match=reason):
        OperatorSettings.from_env(OPERATOR | SHARDS | {name: text})


def test_the_operators_environment_is_a_value() -> None:
    settings = OperatorSettings.from_env(OPERATOR | SHARDS)
    labels = (("app", "engram"), ("part", "operator"))
    assert settings.site == Site("engram", labels, "engram-postgres:1", "redis:8", "IfNotPresent", ("one", "two"))
    assert settings.identity == Identity("engram", POD[names.ENV_POD_NAME], 8080)
    assert settings.webhook is not None
    assert settings.webhook.dns_names == ("injector.engram.svc", "injector.engram.svc.cluster.local")


def test_an_operator_beside_an_injector_knows_its_sidecar() -> None:
    assert OperatorSettings.from_env(OPERATOR | SHARDS).injection is None
    settings = OperatorSettings.from_env(OPERATOR | SHARDS | INJECTOR | {names.ENV_INJECTOR: "engram-injector"})
    assert settings.injection == Injection("engram", "engram-injector", InjectorSettings.from_env(INJECTOR).sidecar)
    with pytest.raises(BadSettings, match=names.ENV_SIDECAR_IMAGE):
        OperatorSettings.from_env(OPERATOR | SHARDS | {names.ENV_INJECTOR: "engram-injector"})


def test_without_a_webhook_configuration_there_is_nothing_to_keep() -> None:
    environ = POD | SHARDS | {names.ENV_LEASE: "engram-operator", names.ENV_WEBHOOK_CONFIG: ""}
    assert OperatorSettings.from_env(environ).webhook is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (names.ENV_POSTGRES_IMAGE, ""),
        (names.ENV_REDIS_IMAGE, " "),
        (names.ENV_OPERATOR_LABELS, ""),
        (names.ENV_OPERATOR_LABELS, "app"),
        (names.ENV_OPERATOR_LABELS, "app=,part=x"),
        (names.ENV_PULL_POLICY, "Sometimes"),
    ],
)
def test_what_the_shards_need_is_checked_when_the_operator_starts(name: str, value: str) -> None:
    with pytest.raises(BadSettings, match=name):
        OperatorSettings.from_env(OPERATOR | SHARDS | {name: value})


def test_the_injectors_environment_has_defaults_for_the_sidecar() -> None:
    settings = InjectorSettings.from_env(INJECTOR)
    assert settings.webhook_port == 9443
    assert settings.sidecar.pull_policy == "IfNotPresent"
    assert settings.sidecar.resources == {
        "requests": {"cpu": "50m", "memory": "96Mi"},
        "limits": {"memory": "256Mi"},
    }


@pytest.mark.parametrize("text", ["c:4318", "ftp://c", "http://", "http://u:p@c", "http://c:4318/?a=b", " "])
def test_an_endpoint_of_traces_that_no_sidecar_could_use_is_refused(text: str) -> None:
    with pytest.raises(BadSettings, match=rf"^{names.ENV_SIDECAR_OTLP} must be an http or https URL"):
        InjectorSettings.from_env(INJECTOR | {names.ENV_SIDECAR_OTLP: text})


@pytest.mark.parametrize("text", ["", "http://collector.monitoring:4318", "https://otlp.example/base"])
def test_the_endpoint_of_traces_is_the_installations(text: str) -> None:
    assert InjectorSettings.from_env(INJECTOR | {names.ENV_SIDECAR_OTLP: text}).sidecar.otlp_endpoint == text


@pytest.mark.parametrize("text", ["119", "7776001", "-1", "120.5", "x" * 9_000])
def test_an_operator_takes_no_life_of_certificates_that_it_cannot_keep(text: str) -> None:
    with pytest.raises(BadSettings, match=rf"^{names.ENV_CERTIFICATE_S} must be whole seconds, 120 to 7776000"):
        OperatorSettings.from_env(OPERATOR | {names.ENV_CERTIFICATE_S: text})


@pytest.mark.parametrize(("text", "serving_s"), [("", 7_776_000.0), ("120", 120.0)])
def test_an_operator_is_told_how_long_certificates_live(text: str, serving_s: float) -> None:
    webhook = OperatorSettings.from_env(OPERATOR | SHARDS | {names.ENV_CERTIFICATE_S: text}).webhook
    assert webhook is not None
    assert webhook.lifetimes == Lifetimes.of_serving(serving_s)


@pytest.mark.parametrize("missing", [*sorted(OPERATOR.keys() - {names.ENV_WEBHOOK_CONFIG})])
def test_an_operator_without_a_variable_does_not_start_and_names_it(missing: str) -> None:
    with pytest.raises(BadSettings, match=rf"^{missing} "):
        OperatorSettings.from_env({**OPERATOR, missing: ""})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (names.ENV_NAMESPACE, "../x"),
        (names.ENV_NAMESPACE, "a.b"),
        (names.ENV_POD_NAME, "A"),
        (names.ENV_TLS_SECRET, "x" * 254),
        (names.ENV_ADMIN_PORT, "65536"),
        (names.ENV_WEBHOOK_PORT, "-1"),
        (names.ENV_SIDECAR_IMAGE, " "),
        (names.ENV_SIDECAR_PULL_POLICY, "always"),
        (names.ENV_SIDECAR_RESOURCES, "{"),
        (names.ENV_SIDECAR_RESOURCES, "[]"),
        (names.ENV_SIDECAR_RESOURCES, "{}"),
        (names.ENV_SIDECAR_RESOURCES, '{"claims": []}'),
        (names.ENV_SIDECAR_RESOURCES, '{"limits": {"memory": null}}'),
        (names.ENV_SIDECAR_RESOURCES, '{"limits": "256Mi"}'),
        (names.ENV_SIDECAR_RESOURCES, '{"limits": {"memory": "lots"}}'),
        (names.ENV_SIDECAR_RESOURCES, '{"limits": {"gpu": 1}}'),
        (names.ENV_SIDECAR_RESOURCES, '{"limits": {"memory": "64Mi"}, "requests": {"memory": "96Mi"}}'),
    ],
)
def test_an_injector_with_a_bad_variable_does_not_start_and_names_it(name: str, value: str) -> None:
    with pytest.raises(BadSettings, match=rf"^{name}\b"):
        InjectorSettings.from_env({**INJECTOR, name: value})


SEEN = OperatorSeen(answer_age_s=3.0, crd_faults=(), is_leader=True, certificate_fault=None, publication_fault=None)


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (SEEN, None),
        (replace(SEEN, answer_age_s=None), "the API server has not answered yet"),
        (replace(SEEN, answer_age_s=31.0), "the API server has not answered for 31 s"),
        (replace(SEEN, crd_faults=None), "the CRDs were not looked at yet"),
        (replace(SEEN, crd_faults=("a", "b")), "a; b"),
        (replace(SEEN, certificate_fault="why"), "why"),
        (replace(SEEN, certificate_fault="why", is_leader=False), None),
        (replace(SEEN, publication_fault="no CA"), "no CA"),
        (replace(SEEN, publication_fault="no CA", is_leader=False), "no CA"),
    ],
)
def test_an_operator_says_why_it_is_not_ready(seen: OperatorSeen, words: str | None) -> None:
    assert operator_fault(seen) == words


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (InjectorSeen(None, None), None),
        (InjectorSeen("certificate", "tenants"), "certificate"),
        (InjectorSeen(None, "tenants"), "tenants"),
    ],
)
def test_an_injector_says_why_it_is_not_ready(seen: InjectorSeen, words: str | None) -> None:
    assert injector_fault(seen) == words


def test_a_lease_loop_that_is_silent_for_a_minute_is_dead() -> None:
    assert liveness_fault(60.0) is None
    assert liveness_fault(61.0) == "the lease loop has not run for 61 s"


SERVED = {
    "spec": {"versions": [{"name": "v1alpha1", "served": True}]},
    "status": {"conditions": [{"type": "Established", "status": "True"}]},
}


@pytest.mark.parametrize(
    ("crd", "words"),
    [
        (SERVED, None),
        (None, "CRD x is not installed: kubectl apply -f crds/"),
        ({**SERVED, "spec": {"versions": [{"name": "v1", "served": True}]}}, "CRD x does not serve v1alpha1"),
        ({**SERVED, "spec": {"versions": [{"name": "v1alpha1", "served": False}]}}, "CRD x does not serve v1alpha1"),
        ({**SERVED, "status": {}}, "CRD x is not established yet"),
        ({}, "CRD x does not serve v1alpha1"),
    ],
)
def test_a_crd_that_does_not_serve_us_is_named(crd: dict[str, object] | None, words: str | None) -> None:
    found = crd_fault("x", crd)
    assert (found is None) if words is None else (found is not None and found.startswith(words))


async def test_the_watch_of_crds_finds_what_is_installed_later() -> None:
    store = Store()
    watch = CrdWatch(store)
    assert [await watch._fault(name) is None for name in OUR_CRDS] == [False, False]
    for name in OUR_CRDS:
        store.put(CRDS, {"metadata": {"name": name}, **SERVED})
    assert [await watch._fault(name) for name in OUR_CRDS] == [None, None]


async def test_a_lease_is_written_over_what_was_read_and_keeps_what_others_wrote() -> None:
    store = Store()
    ours, theirs = (Leases(store, "engram", "l", lambda: 0.0) for _ in range(2))
    assert await ours.fetch(1.0) is None
    made = await ours.write(None, "a", 1.0)
    assert (made.holder, made.transitions, made.lease_s) == ("a", 0, 15.0)
    store.get(LEASES, "engram", "l")["metadata"]["labels"] = {"kept": "yes"}
    read = await theirs.fetch(1.0)
    assert read == made
    taken = await theirs.write(read, "b", 1.0)
    assert (taken.holder, taken.transitions) == ("b", 1)
    stored = store.get(LEASES, "engram", "l")
    assert stored["metadata"]["labels"] == {"kept": "yes"}
    assert stored["spec"]["renewTime"] == "1970-01-01T00:00:00.000000Z"
    with pytest.raises(ApiConflict):
        await ours.write(made, "a", 1.0)
    with pytest.raises(ApiConflict):
        await ours.write(None, "a", 1.0)


async def test_a_garbled_lease_is_taken_all_the_same() -> None:
    store = Store()
    spec = {"holderIdentity": "x", "leaseTransitions": 2**31 - 1, "leaseDurationSeconds": 2**31 - 1}
    store.put(LEASES, {"metadata": {"name": "l", "namespace": "engram"}, "spec": spec})
    leases = Leases(store, "engram", "l", lambda: 0.0)
    read = await leases.fetch(1.0)
    assert read is not None
    assert stands_s(read) == MAX_LEASE_S
    taken = await leases.write(read, "a", 1.0)
    assert (taken.transitions, taken.lease_s) == (0, 15.0)


@pytest.mark.parametrize(("length", "is_name"), [(253, True), (254, False)])
def test_a_path_holds_no_name_that_no_object_can_have(length: int, is_name: bool) -> None:
    with nullcontext() if is_name else pytest.raises(ValueError, match="is no name"):
        LEASES.path("engram", "x" * length)


def test_a_certificate_that_is_not_there_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    certificate = ServedCertificate(Store(), "engram", "tls", lambda: 0.0, InjectorMetrics())

    async def run() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(60):
                await certificate.run()

    run_virtually(run())
    assert [record.message for record in caplog.records] == ["certificate not read"]


@pytest.fixture
def lines() -> Iterator[tuple[logging.Logger, io.StringIO]]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("engram_operator.test")
    logger.addHandler(handler)
    logger.propagate = False
    yield logger, stream
    logger.removeHandler(handler)
    logger.propagate = True


def test_a_log_record_is_one_line_with_its_fields(lines: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = lines
    logger.warning("lease not reached", extra={"reason": "two\nlines", "port": 8080, "other": {1}})
    (line,) = stream.getvalue().splitlines()
    record = json.loads(line)
    assert record.pop("time").endswith("Z")
    assert record == {
        "level": "warning",
        "logger": "engram_operator.test",
        "msg": "lease not reached",
        "reason": "two\nlines",
        "port": 8080,
        "other": "{1}",
    }


def test_a_traceback_stays_in_its_line(lines: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = lines
    error = ApiUnavailable("x")
    logger.error("failed", exc_info=error)
    (line,) = stream.getvalue().splitlines()
    assert "ApiUnavailable: x" in json.loads(line)["traceback"]


async def test_the_first_loop_that_ends_ends_all() -> None:
    ended: list[str] = []

    async def for_ever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("for ever")

    async def lose() -> None:
        await asyncio.sleep(0)
        raise LostLease("x")

    with pytest.raises(LostLease):
        await until_one_ends([for_ever(), lose()])
    await until_one_ends([for_ever(), asyncio.sleep(0)])
    assert ended == ["for ever", "for ever"]


def test_every_metric_is_there_under_its_name() -> None:
    operator, injector = OperatorMetrics(), InjectorMetrics()
    operator.set_leader(is_leader=True)
    operator.set_certificate_expiry(5.0)
    operator.show_certificate_days_left(lambda: 80.5)
    operator.count_request("get", "200")
    injector.observe_review("injected", 0.01)
    injector.set_certificate_expiry(6.0)
    injector.show_certificate_days_left(lambda: 79.0)
    injector.show_tenants_proved(lambda: True)
    injector.count_lookup("memory")
    told = (operator.render() + injector.render()).decode().splitlines()
    assert not [line for line in told if "_created" in line]
    assert {
        "engram_operator_leader 1.0",
        "engram_operator_certificate_expiry_seconds 5.0",
        'engram_operator_api_requests_total{code="200",verb="get"} 1.0',
        'engram_injector_reviews_total{result="injected"} 1.0',
        'engram_injector_reviews_total{result="warned"} 0.0',
        'engram_injector_reviews_total{result="bad"} 0.0',
        "engram_injector_review_seconds_count 1.0",
        "engram_injector_certificate_expiry_seconds 6.0",
        "engram_operator_certificate_days_left 80.5",
        "engram_injector_certificate_days_left 79.0",
        "engram_injector_tenants_proved 1.0",
        'engram_injector_lookups_total{source="memory"} 1.0',
        'engram_injector_lookups_total{source="api"} 0.0',
    } <= set(told)
