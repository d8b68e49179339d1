"""The environment to a value, once, at the door."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engram_contract.kinds import SUBDOMAIN_PATTERN
from engram_contract.names import (
    ADMIN_PORT,
    ENV_ADMIN_PORT,
    ENV_AGENT,
    ENV_CONFIG_DIR,
    ENV_DRAIN_S,
    ENV_HOST,
    ENV_HTTP_PORT,
    ENV_LOG_LEVEL,
    ENV_OTLP_ENDPOINT,
    ENV_POD_NAME,
    ENV_POD_UID,
    ENV_SERVICE_ACCOUNT,
    HTTP_PORT,
)
from engram_sidecar.errors import BadConfig
from engram_sidecar.identity import Identity, Pod
from engram_sidecar.tracing import Tracing

log = logging.getLogger(__name__)

OTLP_PROTOCOL: Final = "http/protobuf"
SERVICE: Final = "engram-sidecar"
HIGHEST_PORT: Final = 65_535
LONGEST_DRAIN_S: Final = 3_600
DRAIN_S: Final = 10  # twice a request: whatever runs when the stop comes may end
LOG_LEVELS: Final = {
    name.lower(): logging.getLevelNamesMapping()[name] for name in ("DEBUG", "INFO", "WARNING", "ERROR")
}
_LABEL_VALUE: Final = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"  # as Kubernetes takes one
_NAME: Final = SUBDOMAIN_PATTERN
_UID: Final = r"[-A-Za-z0-9]{1,63}"


@dataclass(frozen=True, slots=True)
class Settings:
    """How one sidecar runs. Port 0 lets the system choose.

    The interface listens on loopback only, `host` (and `::1` beside 127.0.0.1); probes and metrics on `admin_host`.
    Without an `identity` every agent is answered and a memory's agent is the caller's word: local mode. Without a `pod`
    the sidecar reports itself to no shard.
    """

    config_dir: Path
    host: str = "127.0.0.1"
    http_port: int = HTTP_PORT
    admin_host: str = "127.0.0.1"
    admin_port: int = ADMIN_PORT
    request_timeout_s: float = 5.0  # a store that takes longer is no better than one that is gone
    body_timeout_s: float = 20.0  # 8 MiB at 400 KiB/s
    drain_timeout_s: float = DRAIN_S
    log_level: int = logging.INFO
    identity: Identity | None = None
    pod: Pod | None = None
    tracing: Tracing | None = None

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Settings":
        """The settings of a process. Raises BadConfig with the variable's name."""
        folder = environ.get(ENV_CONFIG_DIR)
        if not folder:
            reason = f"{ENV_CONFIG_DIR} must name the folder of map, policy and credentials"
            raise BadConfig(reason)
        return cls(
            config_dir=Path(folder),
            http_port=_whole(environ, ENV_HTTP_PORT, HTTP_PORT, HIGHEST_PORT, "a port"),
            admin_host=environ.get(ENV_HOST) or "127.0.0.1",
            admin_port=_whole(environ, ENV_ADMIN_PORT, ADMIN_PORT, HIGHEST_PORT, "a port"),
            drain_timeout_s=_whole(environ, ENV_DRAIN_S, DRAIN_S, LONGEST_DRAIN_S, "whole seconds"),
            log_level=_log_level(environ),
            identity=_identity(environ),
            pod=_pod(environ),
            tracing=_tracing(environ),
        )


def _identity(environ: Mapping[str, str]) -> Identity | None:
    account = _text(environ, ENV_SERVICE_ACCOUNT, _NAME, "the name of a ServiceAccount")
    label = _text(environ, ENV_AGENT, _LABEL_VALUE, "the value of a label")
    if not account:
        if label:
            raise BadConfig(f"{ENV_AGENT} needs {ENV_SERVICE_ACCOUNT} beside it: an agent is a ServiceAccount's")
        return None
    return Identity(label or account, account)


def _pod(environ: Mapping[str, str]) -> Pod | None:
    name = _text(environ, ENV_POD_NAME, _NAME, "the name of a pod")
    uid = _text(environ, ENV_POD_UID, _UID, "the uid of a pod")
    return Pod(name, uid) if name else None


def _log_level(environ: Mapping[str, str]) -> int:
    text = environ.get(ENV_LOG_LEVEL) or "info"
    level = LOG_LEVELS.get(text.lower())
    if level is None:
        raise BadConfig(f"{ENV_LOG_LEVEL} must be one of {', '.join(LOG_LEVELS)}, not {text[:20]!r}")
    return level


def _tracing(environ: Mapping[str, str]) -> Tracing | None:
    """Where spans are sent, as OpenTelemetry's variables say.

    They may be another injector's, so one that cannot be ends nothing: it is told and passed over, as their
    specification asks (OpenTelemetry, Environment Variable Specification).
    """
    base, own = environ.get(ENV_OTLP_ENDPOINT, ""), environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "")
    exporter = environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    if not (base or own) or exporter != "otlp" or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    endpoint = own or base.rstrip("/") + "/v1/traces"
    spoken = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if spoken not in (None, "", OTLP_PROTOCOL):
        log.warning("no traces are sent: the protocol is %s, and must be %s", spoken[:20], OTLP_PROTOCOL)
        return None
    if re.fullmatch(r"https?://[^\s/?#]+(/[^\s]*)?", endpoint) is None:
        log.warning("no traces are sent: %s is no http or https URL", ENV_OTLP_ENDPOINT)
        return None
    is_named = "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return Tracing(endpoint, environ.get("OTEL_SERVICE_NAME") or ("" if is_named else SERVICE))


def _text(environ: Mapping[str, str], name: str, pattern: str, form: str) -> str:
    text = environ.get(name, "")
    if text and (len(text) > 253 or re.fullmatch(pattern, text) is None):  # noqa: PLR2004  the longest name of an object
        raise BadConfig(f"{name} must be {form}, not {text[:60]!r}")
    return text


def _whole(environ: Mapping[str, str], name: str, default: int, highest: int, form: str) -> int:
    text = environ.get(name) or str(default)
    is_number = text.isascii() and text.isdigit() and len(text) <= len(str(highest))
    if not (is_number and int(text) <= highest):
        reason = f"{name} must be {form}, 0 to {highest}, not {text[:20]!r}"
        raise BadConfig(reason)
    return int(text)
