"""The environment to a value, once, at the door."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engram_contract.names import ADMIN_PORT, ENV_ADMIN_PORT, ENV_CONFIG_DIR, ENV_HOST, ENV_HTTP_PORT, HTTP_PORT
from engram_sidecar.errors import BadConfig

HIGHEST_PORT = 65_535


@dataclass(frozen=True, slots=True)
class Settings:
    """How one sidecar runs. Port 0 lets the system choose.

    The interface listens on loopback only, `host` (and `::1` beside 127.0.0.1); probes and metrics on `admin_host`.
    """

    config_dir: Path
    host: str = "127.0.0.1"
    http_port: int = HTTP_PORT
    admin_host: str = "127.0.0.1"
    admin_port: int = ADMIN_PORT
    request_timeout_s: float = 5.0  # a store that takes longer is no better than one that is gone
    body_timeout_s: float = 20.0  # 8 MiB at 400 KiB/s
    drain_timeout_s: float = 10.0  # twice a request: whatever runs when the stop comes may end

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Settings":
        """The settings of a process. Raises BadConfig with the variable's name."""
        folder = environ.get(ENV_CONFIG_DIR)
        if not folder:
            reason = f"{ENV_CONFIG_DIR} must name the folder of map, policy and credentials"
            raise BadConfig(reason)
        return cls(
            config_dir=Path(folder),
            http_port=_port(environ, ENV_HTTP_PORT, HTTP_PORT),
            admin_host=environ.get(ENV_HOST) or "127.0.0.1",
            admin_port=_port(environ, ENV_ADMIN_PORT, ADMIN_PORT),
        )


def _port(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name) or str(default)
    is_number = text.isascii() and text.isdigit() and len(text) <= len(str(HIGHEST_PORT))
    if not (is_number and int(text) <= HIGHEST_PORT):
        reason = f"{name} must be a port, 0 to {HIGHEST_PORT}, not {text[:20]!r}"
        raise BadConfig(reason)
    return int(text)
