"""The environment of the operator and of the injector to values, once, at the door."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from engram_contract.kinds import LABEL_PATTERN, SUBDOMAIN_PATTERN
from engram_contract.names import (
    CONTROL_ADMIN_PORT,
    ENV_ADMIN_PORT,
    ENV_CERTIFICATE_S,
    ENV_FILE_GRACE_S,
    ENV_INJECTOR,
    ENV_LEASE,
    ENV_NAMESPACE,
    ENV_OPERATOR_LABELS,
    ENV_PLANS,
    ENV_POD_NAME,
    ENV_POSTGRES_IMAGE,
    ENV_PULL_POLICY,
    ENV_PULL_SECRETS,
    ENV_REDIS_IMAGE,
    ENV_SIDECAR_IMAGE,
    ENV_SIDECAR_OTLP,
    ENV_SIDECAR_PULL_POLICY,
    ENV_SIDECAR_RESOURCES,
    ENV_TLS_SECRET,
    ENV_WEBHOOK_CONFIG,
    ENV_WEBHOOK_PORT,
    ENV_WEBHOOK_SERVICE,
    WEBHOOK_PORT,
)
from engram_contract.parse import RESOURCE, Refused, parse
from engram_contract.policy import PLAN_QUOTAS, Plan, Quota
from engram_contract.quantities import bytes_of, millicores_of
from engram_contract.spec_tenant import QuotaSpec
from engram_operator.errors import BadSettings
from engram_operator.injection import Sidecar
from engram_operator.manifests.site import Site
from engram_operator.manifests.terms import FILE_GRACE_S, USUAL, Terms
from engram_operator.plan.certificates import LIFETIMES, SERVING_S, SHORTEST_SERVING_S, Lifetimes

HIGHEST_PORT: Final = 65_535
AMOUNTS: Final = {"cpu": millicores_of, "memory": bytes_of, "ephemeral-storage": bytes_of}
PULL_POLICIES: Final = ("Always", "IfNotPresent", "Never")
# Without a limit a leak would take the app's node with it. No CPU limit: throttling shows as latency of every answer.
DEFAULT_RESOURCES: Final = '{"requests":{"cpu":"50m","memory":"96Mi"},"limits":{"memory":"256Mi"}}'


@dataclass(frozen=True, slots=True)
class Identity:
    """Which process this is and where it serves probes and metrics. Port 0 lets the system choose."""

    namespace: str
    pod_name: str
    admin_port: int = CONTROL_ADMIN_PORT

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Identity":
        """Raises BadSettings with the variable's name."""
        return cls(
            namespace=_name(environ, ENV_NAMESPACE, LABEL_PATTERN),
            pod_name=_name(environ, ENV_POD_NAME, SUBDOMAIN_PATTERN),
            admin_port=_port(environ, ENV_ADMIN_PORT, CONTROL_ADMIN_PORT),
        )


@dataclass(frozen=True, slots=True)
class Webhook:
    """What the operator keeps for the injector: the Secret of its certificate, and where its CA is published."""

    tls_secret: str
    config_name: str
    dns_names: tuple[str, ...]
    lifetimes: Lifetimes = LIFETIMES


@dataclass(frozen=True, slots=True)
class Injection:
    """What the operator must know of the injector: its Deployment, and the sidecar that it puts into pods."""

    namespace: str
    deployment: str
    sidecar: Sidecar


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """How one operator runs. Without an injector there is no webhook and nothing to keep for it."""

    identity: Identity
    lease_name: str
    webhook: Webhook | None
    site: Site
    terms: Terms = USUAL
    injection: Injection | None = None

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "OperatorSettings":
        """The settings of an operator. Raises BadSettings with the variable's name."""
        identity = Identity.from_env(environ)
        return cls(
            identity=identity,
            lease_name=_name(environ, ENV_LEASE, SUBDOMAIN_PATTERN),
            webhook=_webhook(environ, identity.namespace) if environ.get(ENV_WEBHOOK_CONFIG) else None,
            site=_site(environ, identity.namespace),
            terms=Terms(_plans(environ), float(_whole(environ, ENV_FILE_GRACE_S, FILE_GRACE_S))),
            injection=_injection(environ, identity.namespace) if environ.get(ENV_INJECTOR) else None,
        )


@dataclass(frozen=True, slots=True)
class InjectorSettings:
    """How one injector runs."""

    identity: Identity
    tls_secret: str
    sidecar: Sidecar
    webhook_port: int = WEBHOOK_PORT
    linger_s: float = 2.0  # the endpoint's removal needs about a second to reach the API servers
    drain_timeout_s: float = 5.0  # the webhook's own timeout: nobody waits longer for a review

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "InjectorSettings":
        """The settings of an injector. Raises BadSettings with the variable's name."""
        return cls(
            identity=Identity.from_env(environ),
            tls_secret=_name(environ, ENV_TLS_SECRET, SUBDOMAIN_PATTERN),
            sidecar=_sidecar(environ),
            webhook_port=_port(environ, ENV_WEBHOOK_PORT, WEBHOOK_PORT),
        )


def _webhook(environ: Mapping[str, str], namespace: str) -> Webhook:
    service = _name(environ, ENV_WEBHOOK_SERVICE, LABEL_PATTERN)
    return Webhook(
        tls_secret=_name(environ, ENV_TLS_SECRET, SUBDOMAIN_PATTERN),
        config_name=_name(environ, ENV_WEBHOOK_CONFIG, SUBDOMAIN_PATTERN),
        dns_names=(f"{service}.{namespace}.svc", f"{service}.{namespace}.svc.cluster.local"),
        lifetimes=_lifetimes(environ),
    )


def _lifetimes(environ: Mapping[str, str]) -> Lifetimes:
    text = environ.get(ENV_CERTIFICATE_S) or str(int(SERVING_S))
    is_number = text.isascii() and text.isdigit() and len(text) <= len(str(int(SERVING_S)))
    if not (is_number and SHORTEST_SERVING_S <= int(text) <= SERVING_S):
        bounds = f"{SHORTEST_SERVING_S:.0f} to {SERVING_S:.0f}"
        raise BadSettings(f"{ENV_CERTIFICATE_S} must be whole seconds, {bounds}, not {text[:20]!r}")
    return Lifetimes.of_serving(float(text))


def _injection(environ: Mapping[str, str], namespace: str) -> Injection:
    return Injection(namespace, _name(environ, ENV_INJECTOR, SUBDOMAIN_PATTERN), _sidecar(environ))


def _sidecar(environ: Mapping[str, str]) -> Sidecar:
    """The sidecar of this installation: the injector makes it, the operator judges by it."""
    return Sidecar(
        image=_text(environ, ENV_SIDECAR_IMAGE),
        pull_policy=_pull_policy(environ, ENV_SIDECAR_PULL_POLICY),
        resources=_resources(environ),
        otlp_endpoint=_otlp_endpoint(environ),
    )


def _site(environ: Mapping[str, str], namespace: str) -> Site:
    pairs = [each.partition("=") for each in _words(environ, ENV_OPERATOR_LABELS)]
    if not pairs or any(not (name and value) for name, _, value in pairs):
        raise BadSettings(f"{ENV_OPERATOR_LABELS} must be labels as name=value, separated by commas")
    return Site(
        namespace=namespace,
        operator_labels=tuple((name, value) for name, _, value in pairs),
        postgres_image=_text(environ, ENV_POSTGRES_IMAGE),
        redis_image=_text(environ, ENV_REDIS_IMAGE),
        image_pull_policy=_pull_policy(environ, ENV_PULL_POLICY),
        image_pull_secrets=tuple(_words(environ, ENV_PULL_SECRETS)),
    )


def _plans(environ: Mapping[str, str]) -> Mapping[Plan, Quota]:
    """The quotas of each plan: those of the environment, the usual ones where it names none."""
    try:
        given = json.loads(environ.get(ENV_PLANS) or "{}")
        if not isinstance(given, dict) or not given.keys() <= {plan.value for plan in Plan}:
            raise BadSettings(f"{ENV_PLANS} must be an object with {', '.join(plan.value for plan in Plan)}")
        return {plan: _quota(plan, given.get(plan.value)) for plan in Plan}
    except ValueError as error:
        raise BadSettings(f"{ENV_PLANS}: {error}") from error


def _quota(plan: Plan, given: object) -> Quota:
    """Raises ValueError with the path of the member that is wrong."""
    usual = PLAN_QUOTAS[plan]
    if given is None:
        return usual
    try:
        own = parse(QuotaSpec, given, RESOURCE)
    except Refused as refused:
        raise refused.under(plan.value) from None
    return Quota(
        memories=own.memories or usual.memories,
        storage_bytes=own.storage_bytes or usual.storage_bytes,
        requests_per_second=own.requests_per_second or usual.requests_per_second,
    )


def _whole(environ: Mapping[str, str], name: str, default: float) -> int:
    text = environ.get(name) or f"{default:.0f}"
    if not (text.isascii() and text.isdigit() and len(text) < 10):  # noqa: PLR2004  thirty years
        raise BadSettings(f"{name} must be a whole number of seconds, not {text[:20]!r}")
    return int(text)


def _words(environ: Mapping[str, str], name: str) -> list[str]:
    return [word.strip() for word in environ.get(name, "").split(",") if word.strip()]


def _text(environ: Mapping[str, str], name: str) -> str:
    text = environ.get(name, "").strip()
    if not text:
        raise BadSettings(f"{name} must be set")
    return text


def _name(environ: Mapping[str, str], name: str, pattern: str) -> str:
    text = _text(environ, name)
    if len(text) > 253 or re.fullmatch(pattern, text) is None:  # noqa: PLR2004  the longest name of an object
        raise BadSettings(f"{name} must be a Kubernetes name, not {text[:60]!r}")
    return text


def _port(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name) or str(default)
    is_number = text.isascii() and text.isdigit() and len(text) <= len(str(HIGHEST_PORT))
    if not (is_number and int(text) <= HIGHEST_PORT):
        raise BadSettings(f"{name} must be a port, 0 to {HIGHEST_PORT}, not {text[:20]!r}")
    return int(text)


def _pull_policy(environ: Mapping[str, str], name: str) -> str:
    text = environ.get(name) or "IfNotPresent"
    if text not in PULL_POLICIES:
        raise BadSettings(f"{name} must be one of {', '.join(PULL_POLICIES)}, not {text[:20]!r}")
    return text


def _otlp_endpoint(environ: Mapping[str, str]) -> str:
    """Where sidecars send their traces; empty for nowhere."""
    text = environ.get(ENV_SIDECAR_OTLP, "")
    if text and re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", text) is None:
        raise BadSettings(f"{ENV_SIDECAR_OTLP} must be an http or https URL without a password, not {text[:20]!r}")
    return text


def _resources(environ: Mapping[str, str]) -> Mapping[str, Any]:
    """A ResourceRequirements that every API server takes: with a bad one, each injected pod would be refused."""
    text = environ.get(ENV_SIDECAR_RESOURCES) or DEFAULT_RESOURCES
    try:
        resources = json.loads(text)
    except ValueError as error:
        raise BadSettings(f"{ENV_SIDECAR_RESOURCES} must be JSON: {error}") from error
    if not (isinstance(resources, dict) and resources and resources.keys() <= {"requests", "limits"}):
        raise BadSettings(f"{ENV_SIDECAR_RESOURCES} must be an object with requests, limits or both")
    amounts = {part: _amounts(part, resources[part]) for part in resources}
    limits = amounts.get("limits", {})
    for name, amount in amounts.get("requests", {}).items():
        if amount > limits.get(name, amount):
            raise BadSettings(f"{ENV_SIDECAR_RESOURCES}: the request of {name} is above its limit")
    return resources


def _amounts(part: str, given: object) -> dict[str, int]:
    """The amounts of one part by name, in millicores and bytes."""
    try:
        if not isinstance(given, dict):
            raise BadSettings(f"{ENV_SIDECAR_RESOURCES}: {part} must be an object, such as {{cpu: 50m}}")
        return {name: AMOUNTS[name](str(amount)) for name, amount in given.items()}
    except KeyError as error:
        raise BadSettings(f"{ENV_SIDECAR_RESOURCES}: {part} may hold {', '.join(AMOUNTS)}, not {error}") from error
    except ValueError as error:
        raise BadSettings(f"{ENV_SIDECAR_RESOURCES}: {part}: {error}") from error
