"""The keeper of the injector's certificates, one Secret and its CAs in the webhook configuration; and who watches it.

A round reads both, takes one step of `plan/certificates.py`, publishes, and writes nothing that is right already. The
next round goes on from what it finds, so a crash anywhere, a deleted Secret or an emptied caBundle is repaired then.
"""

import asyncio
import base64
import binascii
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from engram_operator.clients import x509
from engram_operator.clients.kube import SECRETS, WEBHOOK_CONFIGS, Kube, Manifest
from engram_operator.errors import ApiError, ApiNotFound, BadCertificate, LostLease
from engram_operator.leadership import Leadership, Term
from engram_operator.metrics import OperatorMetrics
from engram_operator.plan.certificates import DAY_S, LIFETIMES, Lifetimes, Step, Stored, plan_certificates
from engram_operator.plan.publication import plan_publication
from engram_operator.settings import Webhook

ROUND_S: Final = 10.0
LOOK_S: Final = 10.0
RETRY_S: Final = 1.0  # while we wait for what the leader does within seconds
FIELD_MANAGER: Final = "engram-operator-certificates"
SECRET_TYPE: Final = "kubernetes.io/tls"  # noqa: S105  the name of a type

log = logging.getLogger(__name__)


class CertificateKeeper:
    """Keeps what `webhook` names, while this process leads. `trouble` says why it is not in place, None if it is."""

    def __init__(
        self,
        kube: Kube,
        namespace: str,
        webhook: Webhook,
        wall_clock: Callable[[], float],
        metrics: OperatorMetrics,
    ) -> None:
        self._kube = kube
        self._namespace = namespace
        self._webhook = webhook
        self._wall_clock = wall_clock
        self._metrics = metrics
        self.trouble: str | None = "the certificate was not looked at yet"
        self._not_after_s = 0.0
        metrics.show_certificate_days_left(self._days_left)

    async def run(self, leadership: Leadership) -> None:
        """A round every ROUND_S while we lead; sooner after we became the leader."""
        while True:
            term = leadership.term
            if term is not None:
                await self._try_round(term)
            await asyncio.sleep(ROUND_S if term is not None else 1.0)

    async def _try_round(self, term: Term) -> None:
        try:
            await self.round(term)
        except (ApiError, BadCertificate) as error:
            self.trouble = f"the webhook's certificate is not in place: {error}"
            log.warning("certificate round failed", extra={"reason": str(error)})
        except LostLease:
            log.info("certificate round given up: the term is over")
        else:
            self.trouble = None

    async def round(self, term: Term) -> None:
        """One step, if one is due, and what it means for the webhook configuration. Raises ApiError, LostLease."""
        config = await self._kube.fetch(WEBHOOK_CONFIGS, None, self._webhook.config_name)
        secret = await self._kube.find(SECRETS, self._namespace, self._webhook.tls_secret)
        data, stored = _read(secret)
        published = _published(config)
        now_s = self._wall_clock()
        names, lifetimes = self._webhook.dns_names, self._webhook.lifetimes
        step = plan_certificates(stored, x509.fingerprints(published), names, now_s, lifetimes)
        if step is not Step.KEEP:
            data = changed_certificates(step, data, published, names, now_s, lifetimes)
            await self._write_secret(term, secret, data)
            log.info("certificates changed", extra={"step": step.value, "secret": self._webhook.tls_secret})
        self._not_after_s = x509.read_served(data).not_after_s
        self._metrics.set_certificate_expiry(self._not_after_s)
        operations = plan_publication(config, data[x509.BUNDLE_KEY])
        if operations:
            left_s = term.check()
            name = self._webhook.config_name
            await self._kube.patch(WEBHOOK_CONFIGS, name, operations, FIELD_MANAGER, timeout_s=left_s)
            log.info("CA bundle published", extra={"webhook_config": name})

    def _days_left(self) -> float:
        """Of the certificate that was seen last; 0 before the first."""
        return (self._not_after_s - self._wall_clock()) / DAY_S if self._not_after_s else 0.0

    async def _write_secret(self, term: Term, secret: Manifest | None, data: Mapping[str, bytes]) -> None:
        """Creates or changes the Secret, over the version that was read."""
        metadata = {"name": self._webhook.tls_secret, "namespace": self._namespace}
        if secret is not None and (secret.get("type") != SECRET_TYPE or secret.get("immutable")):
            # Neither can be changed in place.
            uid = secret["metadata"]["uid"]
            await self._kube.delete(SECRETS, self._namespace, metadata["name"], uid, timeout_s=term.check())
            log.warning("secret of another type deleted", extra={"secret": metadata["name"]})
        elif secret is not None:
            metadata["resourceVersion"] = secret["metadata"]["resourceVersion"]
        manifest = {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": SECRET_TYPE,
            "metadata": metadata,
            "data": {name: base64.b64encode(value).decode() for name, value in data.items()},
        }
        await self._kube.apply(SECRETS, manifest, FIELD_MANAGER, timeout_s=term.check())


class PublicationWatch:
    """Whether API servers can trust the injector: asked by every operator. `fault` says why not, None if they can."""

    def __init__(self, kube: Kube, namespace: str, webhook: Webhook) -> None:
        self._kube = kube
        self._namespace = namespace
        self._webhook = webhook
        self.fault: str | None = "the webhook configuration was not looked at yet"

    async def run(self) -> None:
        """Looks for ever."""
        while True:
            try:
                self.fault = await self.look()
            except ApiError as error:
                log.warning("webhook configuration not looked at", extra={"reason": str(error)})
            await asyncio.sleep(RETRY_S if self.fault else LOOK_S)

    async def look(self) -> str | None:
        """Why the CA of the Secret is not published; None if it is. Raises ApiError."""
        name = self._webhook.config_name
        try:
            config = await self._kube.fetch(WEBHOOK_CONFIGS, None, name)
            secret = await self._kube.fetch(SECRETS, self._namespace, self._webhook.tls_secret)
            wanted = x509.fingerprints(x509.decoded(secret.get("data")).get(x509.BUNDLE_KEY, b""))
        except ApiNotFound as error:
            return f"the webhook's CA is not published yet: {error}"
        except BadCertificate as error:
            return f"the webhook's CA is not published: {error}"
        if not wanted or not wanted <= x509.fingerprints(_published(config)):
            return f"MutatingWebhookConfiguration {name} has not the CA of the Secret yet; the leader publishes it"
        return None


def _read(secret: Manifest | None) -> tuple[dict[str, bytes], Stored | None]:
    """The data of the Secret and what it means; nothing of a Secret that is garbage, which is logged."""
    if secret is None:
        return {}, None
    try:
        data = x509.decoded(secret.get("data"))
        return data, x509.read_stored(data)
    except BadCertificate as error:
        log.warning("secret is garbage and will be replaced", extra={"reason": str(error)})
        return {}, None


def _published(config: Manifest) -> bytes:
    """The CAs that every webhook of the configuration was told; none if they were told different ones."""
    told = {str(_client_config(webhook).get("caBundle") or "") for webhook in config.get("webhooks") or ()}
    try:
        return base64.b64decode(told.pop()) if len(told) == 1 else b""
    except (binascii.Error, ValueError):
        return b""


def _client_config(webhook: Mapping[str, Any]) -> Mapping[str, Any]:
    return webhook.get("clientConfig") or {}


def changed_certificates(
    step: Step,
    data: Mapping[str, bytes],
    published: bytes,
    dns_names: tuple[str, ...],
    now_s: float,
    lifetimes: Lifetimes = LIFETIMES,
) -> dict[str, bytes]:
    """The Secret's data after a step."""
    if step is Step.KEEP:
        return dict(data)
    if step is Step.START_OVER:
        # Injectors go on with what they have until they read the new one: what was published stays beside it.
        ca = x509.make_ca(now_s, lifetimes)
        bundle = x509.joined((ca.certificate, *x509.still_valid(published, now_s)))
        serving = _serving(ca, dns_names, now_s, lifetimes)
        return {**serving, x509.BUNDLE_KEY: bundle, x509.CA_KEY_KEY: ca.key}
    own = x509.still_valid(data[x509.BUNDLE_KEY], now_s)
    if step is Step.ROTATE_CA:
        ca = x509.make_ca(now_s, lifetimes)
        return {**data, x509.BUNDLE_KEY: x509.joined((ca.certificate, *own)), x509.CA_KEY_KEY: ca.key}
    if step is Step.PRUNE:
        return {**data, x509.BUNDLE_KEY: own[0]}
    ca = x509.KeyPair(own[0], data[x509.CA_KEY_KEY])
    return {**data, **_serving(ca, dns_names, now_s, lifetimes)}


def _serving(ca: x509.KeyPair, dns_names: tuple[str, ...], now_s: float, lifetimes: Lifetimes) -> dict[str, bytes]:
    pair = x509.make_serving(ca, dns_names, now_s, lifetimes)
    return {x509.CERT_KEY: pair.certificate, x509.KEY_KEY: pair.key}
