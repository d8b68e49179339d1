"""The injector's certificates: when which is made, that nobody is cut off meanwhile, and that spoiling is repaired."""

import base64
from dataclasses import dataclass, replace

import pytest

from engram_operator.certificates import CertificateKeeper, PublicationWatch
from engram_operator.clients import x509
from engram_operator.clients.kube import SECRETS, WEBHOOK_CONFIGS, Manifest
from engram_operator.errors import ApiNotFound, ApiUnavailable, BadCertificate, LostLease
from engram_operator.leadership import Term
from engram_operator.metrics import OperatorMetrics
from engram_operator.plan.certificates import (
    BACKDATE_S,
    CA_S,
    DAY_S,
    LIFETIMES,
    OVERLAP_S,
    RENEW_SERVING_S,
    SERVING_S,
    SHORTEST_SERVING_S,
    Certificate,
    Lifetimes,
    Step,
    Stored,
    plan_certificates,
)
from engram_operator.plan.publication import plan_publication
from engram_operator.settings import Webhook
from tests.operator_stage import Store

NAMES = ("injector.engram.svc", "injector.engram.svc.cluster.local")
NOW_S = 1_800_000_000.0
CA = Certificate("ca", NOW_S - 2 * DAY_S, NOW_S + 300 * DAY_S)
OLD_CA = replace(CA, fingerprint="old")
SERVING = Certificate("serving", NOW_S - 2 * DAY_S, NOW_S + 88 * DAY_S, NAMES, "ca")
ALONE = Stored((CA,), SERVING)
BOTH = Stored((CA, OLD_CA), SERVING)
SHORT_CA = replace(CA, not_after_s=NOW_S + LIFETIMES.rotate_ca_s - 1)


@pytest.mark.parametrize(
    ("stored", "published", "step"),
    [
        (None, {"ca"}, Step.START_OVER),
        (ALONE, {"ca"}, Step.KEEP),
        (ALONE, set(), Step.KEEP),  # publishing again is no change of the Secret
        (Stored((replace(CA, not_after_s=NOW_S),), SERVING), {"ca"}, Step.START_OVER),
        (Stored((SHORT_CA,), SERVING), {"ca"}, Step.ROTATE_CA),
        (Stored((SHORT_CA,), None), {"ca"}, Step.RENEW_SERVING),
        (Stored((CA,), None), set(), Step.RENEW_SERVING),
        (Stored((CA,), replace(SERVING, signer="")), {"ca"}, Step.RENEW_SERVING),
        (Stored((CA,), replace(SERVING, dns_names=NAMES[:1])), {"ca"}, Step.RENEW_SERVING),
        (Stored((CA,), replace(SERVING, not_after_s=NOW_S - 1)), {"ca"}, Step.RENEW_SERVING),
        (Stored((CA,), replace(SERVING, not_before_s=NOW_S + 1)), {"ca"}, Step.RENEW_SERVING),
        (Stored((CA,), replace(SERVING, not_after_s=NOW_S + RENEW_SERVING_S - 1)), {"ca"}, Step.RENEW_SERVING),
        (Stored((CA, OLD_CA), replace(SERVING, signer="old")), {"old"}, Step.KEEP),  # told nobody yet: wait
        (Stored((CA, OLD_CA), replace(SERVING, signer="old")), {"ca", "old"}, Step.RENEW_SERVING),
        (BOTH, {"ca", "old"}, Step.PRUNE),
        (Stored((CA, OLD_CA), replace(SERVING, not_before_s=NOW_S - OVERLAP_S)), {"ca", "old"}, Step.KEEP),
    ],
)
def test_the_next_step_follows_from_what_is_stored_and_published(
    stored: Stored | None, published: set[str], step: Step
) -> None:
    assert plan_certificates(stored, frozenset(published), NAMES, NOW_S) is step


@pytest.mark.parametrize("serving_s", [SHORTEST_SERVING_S, 3_600.0, DAY_S, SERVING_S])
def test_a_ca_outlives_what_it_signs_however_short_their_lives(serving_s: float) -> None:
    lifetimes = Lifetimes.of_serving(serving_s)
    assert lifetimes.rotate_ca_s > lifetimes.serving_s
    assert lifetimes.ca_s > lifetimes.rotate_ca_s + lifetimes.overlap_s
    assert lifetimes.backdate_s < lifetimes.renew_serving_s < lifetimes.serving_s
    assert lifetimes.overlap_s >= 30, "an injector reads its Secret every ten seconds"


def test_the_usual_lives_are_the_longest() -> None:
    assert Lifetimes.of_serving(SERVING_S) == LIFETIMES == Lifetimes()


def test_publishing_touches_the_bundle_of_the_named_webhook_alone() -> None:
    config = {"webhooks": [{"name": "a", "clientConfig": {"caBundle": "eA=="}}, {"name": "b", "clientConfig": {}}]}
    assert plan_publication(config, b"x") == [
        {"op": "test", "path": "/webhooks/1/name", "value": "b"},
        {"op": "add", "path": "/webhooks/1/clientConfig/caBundle", "value": "eA=="},
    ]
    assert plan_publication({}, b"x") == []


WEBHOOK = Webhook("engram-injector-tls", "engram-injector", NAMES)


@dataclass
class Stage:
    """A keeper, the store that it writes to, and the time on its wall."""

    store: Store
    keeper: CertificateKeeper
    wall_s: list[float]
    term: Term

    @property
    def secret(self) -> Manifest:
        return self.store.get(SECRETS, "engram", WEBHOOK.tls_secret)

    @property
    def data(self) -> dict[str, bytes]:
        return x509.decoded(self.secret["data"])

    @property
    def config(self) -> Manifest:
        return self.store.get(WEBHOOK_CONFIGS, None, WEBHOOK.config_name)

    @property
    def published(self) -> bytes:
        (bundle,) = {webhook["clientConfig"]["caBundle"] for webhook in self.config["webhooks"]}
        return base64.b64decode(bundle)

    async def round(self) -> list[str]:
        """The verbs of what one round wrote."""
        before = len(self.store.writes)
        await self.keeper.round(self.term)
        return [verb for verb, _ in self.store.writes[before:]]


@pytest.fixture
def stage() -> Stage:
    store = Store()
    webhooks = [
        {"name": name, "failurePolicy": "Ignore", "clientConfig": {"service": {"name": "injector"}}} for name in "ab"
    ]
    store.put(WEBHOOK_CONFIGS, {"metadata": {"name": WEBHOOK.config_name, "labels": {"a": "b"}}, "webhooks": webhooks})
    wall_s = [NOW_S]
    keeper = CertificateKeeper(store, "engram", WEBHOOK, lambda: wall_s[0], OperatorMetrics())
    return Stage(store, keeper, wall_s, Term(lambda: 0.0, 5.0))


async def test_the_first_round_makes_everything_and_the_next_writes_nothing(stage: Stage) -> None:
    assert await stage.round() == ["patch", "patch"]
    stored = x509.read_stored(stage.data)
    assert stored.serving is not None
    assert (stored.serving.dns_names, stored.serving.signer) == (NAMES, stored.ca.fingerprint)
    assert (stage.secret["type"], set(stage.data)) == ("kubernetes.io/tls", {"tls.crt", "tls.key", "ca.crt", "ca.key"})
    assert stage.published == stage.data["ca.crt"]
    assert stage.config["metadata"]["labels"] == {"a": "b"}
    assert all(webhook["failurePolicy"] == "Ignore" for webhook in stage.config["webhooks"])
    assert await stage.round() == []
    assert max(stage.store.timeouts[-3:]) <= 10.0


async def test_an_emptied_bundle_is_published_again(stage: Stage) -> None:
    await stage.round()
    stage.config["webhooks"][1]["clientConfig"].pop("caBundle")
    assert await stage.round() == ["patch"]
    assert stage.published == stage.data["ca.crt"]


async def test_a_deleted_secret_is_made_anew_and_what_injectors_still_serve_stays_trusted(stage: Stage) -> None:
    await stage.round()
    old = stage.data
    del stage.store.objects[SECRETS.path("engram", WEBHOOK.tls_secret)]
    assert await stage.round() == ["patch", "patch"]
    assert stage.data["tls.crt"] != old["tls.crt"]
    assert old["ca.crt"] in stage.published
    for _ in range(10):
        del stage.store.objects[SECRETS.path("engram", WEBHOOK.tls_secret)]
        await stage.round()
    assert stage.published.count(b"BEGIN CERTIFICATE") == x509.MAX_BUNDLE
    stage.wall_s[0] += 2 * DAY_S
    await stage.round()
    assert stage.published.count(b"BEGIN CERTIFICATE") == 1


async def test_an_operator_that_does_not_lead_sees_whether_the_ca_is_published(stage: Stage) -> None:
    watch = PublicationWatch(stage.store, "engram", WEBHOOK)
    assert "not published yet" in (await watch.look() or "")
    await stage.round()
    assert await watch.look() is None
    bundle = stage.config["webhooks"][1]["clientConfig"].pop("caBundle")
    assert "has not the CA" in (await watch.look() or "")
    stage.config["webhooks"][1]["clientConfig"]["caBundle"] = bundle
    del stage.store.objects[SECRETS.path("engram", WEBHOOK.tls_secret)]
    stage.store.put(SECRETS, {"metadata": {"name": WEBHOOK.tls_secret, "namespace": "engram"}, "data": {"ca.crt": "%"}})
    assert "not published" in (await watch.look() or "")
    assert len(stage.store.writes) == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ca.crt", b"garbage"),
        ("ca.crt", b""),
        ("ca.key", b"garbage"),
        ("ca.key", x509.make_ca(NOW_S).key),
        ("tls.crt", b"garbage"),
        ("tls.key", x509.make_ca(NOW_S).key),
        ("tls.key", b""),
    ],
)
async def test_a_spoiled_secret_is_replaced(stage: Stage, key: str, value: bytes) -> None:
    await stage.round()
    stage.secret["data"][key] = base64.b64encode(value).decode()
    assert "patch" in await stage.round()
    stored = x509.read_stored(stage.data)
    assert stored.serving is not None
    assert stage.published == stage.data["ca.crt"]
    assert await stage.round() == []


@pytest.mark.parametrize("change", [{"type": "Opaque"}, {"immutable": True}])
async def test_a_secret_that_cannot_be_changed_is_deleted_first(stage: Stage, change: dict[str, object]) -> None:
    bad = {"metadata": {"name": WEBHOOK.tls_secret, "namespace": "engram"}, "data": {}, **change}
    stage.store.put(SECRETS, bad)
    assert await stage.round() == ["delete", "patch", "patch"]
    assert stage.secret["type"] == "kubernetes.io/tls"
    assert "immutable" not in stage.secret


async def test_over_three_years_every_served_certificate_is_valid_and_signed_by_what_was_published_before(
    stage: Stage,
) -> None:
    await stage.round()
    served: set[str] = set()
    while stage.wall_s[0] < NOW_S + 3 * 365 * DAY_S:
        known_before = x509.fingerprints(stage.published)
        await stage.round()
        stored = x509.read_stored(stage.data)
        assert stored.serving is not None
        assert stored.serving.is_valid_at(stage.wall_s[0])
        assert stored.serving.signer in known_before
        assert stored.serving.not_after_s <= stored.ca.not_after_s
        served.add(stored.serving.fingerprint)
        stage.wall_s[0] += 10 if stored.serving.signer != stored.ca.fingerprint else 4 * DAY_S
    assert 3 * 365 / 90 < len(served) < 3 * 365 / 30


async def test_with_certificates_of_two_minutes_what_injectors_read_late_is_trusted_and_valid(stage: Stage) -> None:
    """An hour of rounds every ten seconds, beside an injector that reads twenty seconds late."""
    webhook = replace(WEBHOOK, lifetimes=Lifetimes.of_serving(120.0))
    stage.keeper = CertificateKeeper(stage.store, "engram", webhook, lambda: stage.wall_s[0], OperatorMetrics())
    await stage.round()
    read = [stage.data] * 3
    served: set[str] = set()
    for _ in range(360):
        stage.wall_s[0] += 10
        await stage.round()
        read = [*read[1:], stage.data]
        late = x509.read_stored({**read[0], "ca.crt": stage.published, "ca.key": stage.data["ca.key"]}).serving
        assert late is not None
        assert late.is_valid_at(stage.wall_s[0])
        assert late.signer, "its CA is still published"
        served.add(late.fingerprint)
    assert 360 * 10 / 120 <= len(served) <= 360 * 10 / 60


async def test_without_a_term_nothing_is_written(stage: Stage) -> None:
    stage.term.end()
    with pytest.raises(LostLease):
        await stage.round()
    assert stage.store.writes == []


async def test_no_write_outlasts_the_term(stage: Stage) -> None:
    await stage.round()
    assert stage.store.timeouts == [10.0, 10.0, 5.0, 5.0]  # two reads, two writes with what the term has left


@pytest.mark.parametrize("fault", [ApiUnavailable("get x: no answer"), ApiNotFound("get x: 404")])
async def test_a_failed_round_is_told_and_the_next_one_repairs(stage: Stage, fault: ApiUnavailable) -> None:
    stage.store.fault = fault
    await stage.keeper._try_round(stage.term)
    assert stage.keeper.trouble is not None
    assert "get x" in stage.keeper.trouble
    stage.store.fault = None
    await stage.keeper._try_round(stage.term)
    assert stage.keeper.trouble is None


def test_what_is_made_lasts_as_long_as_it_should() -> None:
    ca = x509.make_ca(NOW_S)
    pair = x509.make_serving(ca, NAMES, NOW_S)
    data = {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": ca.certificate, "ca.key": ca.key}
    stored = x509.read_stored(data)
    assert (stored.ca.not_before_s, stored.ca.not_after_s) == (NOW_S - BACKDATE_S, NOW_S - BACKDATE_S + CA_S)
    assert x509.read_served(data).not_after_s == NOW_S - BACKDATE_S + SERVING_S


@pytest.mark.parametrize("data", [{}, {"tls.crt": b""}, {"tls.crt": b"x", "tls.key": b"y"}])
def test_no_certificate_is_an_error_that_holds_no_key(data: dict[str, bytes]) -> None:
    with pytest.raises(BadCertificate):
        x509.read_served(data)


def test_what_is_no_base64_is_no_certificate() -> None:
    with pytest.raises(BadCertificate):
        x509.decoded({"tls.crt": "%%%"})
