"""The settings of a local Postgres: what local mode needs, what the manifest asks for, modest defaults. Pure.

Source: PostgreSQL manual, 19.1.2 (the form of a settings file).
"""

from collections.abc import Mapping
from typing import Final

HOST: Final = "127.0.0.1"

# What the manifest cannot change. The log holds no statement and no row: a memory may be in it.
FIXED: Final[Mapping[str, str]] = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",  # a socket's path may have 107 bytes, and data directories lie deep
    "wal_level": "logical",
    "password_encryption": "scram-sha-256",
    "logging_collector": "off",
    "log_destination": "stderr",
    "lc_messages": "C",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_statement": "none",
    "log_min_duration_statement": "-1",
    "log_min_duration_sample": "-1",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "fsync": "on",
    "full_page_writes": "on",
}
# Where Postgres finds its own files: never ours to set, nor the manifest's.
PLACES: Final = frozenset({"port", "data_directory", "config_file", "hba_file", "ident_file", "external_pid_file"})
# A laptop runs several of these.
DEFAULTS: Final[Mapping[str, str]] = {"max_wal_size": "512MB", "max_connections": "100"}


def build_settings(port: int, parameters: Mapping[str, str]) -> str:
    """The text of the settings file: ours win over the user's, which win over our defaults."""
    refused = refused_parameters(parameters)
    asked = {name.lower(): value for name, value in parameters.items() if name not in refused}
    merged = {**DEFAULTS, **asked, **FIXED, "port": str(port)}
    lines = (f"{name} = {_quoted(value)}" for name, value in merged.items())
    return (
        "# Written by `engram up` at each start; parameters belong in spec.postgres.parameters.\n"
        + "\n".join(lines)
        + "\n"
    )


def refused_parameters(parameters: Mapping[str, str]) -> tuple[str, ...]:
    """The names of the manifest's parameters that local mode sets itself."""
    return tuple(name for name in parameters if name.lower() in FIXED or name.lower() in PLACES)


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"
