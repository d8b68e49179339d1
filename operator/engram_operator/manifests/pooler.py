"""PgBouncer in front of one member: its file and its container.

It shares the member's socket folder, where Postgres trusts; so it needs no password but each client's verifier, which
it asks for as its own role through a function that runs as the owner.

Pure. Source: PgBouncer, config reference (1.21 and later: max_prepared_statements).
"""

from typing import Final

from engram_contract.names import POOLER_PORT, POSTGRES_PORT, SCHEMA, SHARED_DATABASE
from engram_contract.spec_cluster import ClusterSpec
from engram_contract.spec_parts import MIB
from engram_operator.manifests.credentials import CA_FILE, CERTIFICATE_FILE, KEY_FILE, TLS_DIR
from engram_operator.manifests.meta import Manifest, quantity_of_bytes, quantity_of_millis
from engram_operator.manifests.names import POOLER_FILE
from engram_operator.manifests.restricted import build_container_security, build_mounts, build_tcp_probe

CONFIG_DIR: Final = "/etc/pgbouncer"
REREAD_S: Final = 120
# It reads its certificate when it is told to, and nobody else may tell it: its console is closed to the network.
RUN: Final = f"while sleep {REREAD_S}; do kill -HUP 1; done & exec /opt/pgbouncer {CONFIG_DIR}/{POOLER_FILE}"
# The kubelet's SIGTERM makes it wait for its clients, which stay as long as they live (PgBouncer 1.23, changelog). On
# SIGINT it waits for their transactions, and whatever signal comes next ends it.
STOP: Final = "kill -INT 1; sleep 5"
SOCKETS_DIR: Final = "/sockets"
POOLER_ROLE: Final = "engram_pooler"
AUTH_QUERY: Final = f"SELECT rolname, verifier FROM {SCHEMA}.pooler_login($1)"  # noqa: S608  a constant
# The fence needs READ COMMITTED, whatever the role's own default was set to.
CONNECT_QUERY: Final = "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED"
CLIENTS: Final = 5_000  # two for each of 2,000 pods, and room; one costs about 2 KiB
QUERY_WAIT_S: Final = 2
LOGIN_RETRY_S: Final = 1
CPU_MILLIS: Final = 50
MEMORY_BYTES: Final = 64 * MIB


def build_pooler_file(spec: ClusterSpec) -> str:
    """pgbouncer.ini: one pool for each tenant's role, in transaction mode."""
    settings = {
        "listen_addr": "*",
        "listen_port": POOLER_PORT,
        "unix_socket_dir": "",  # the folder is Postgres' own
        "auth_type": "scram-sha-256",
        "auth_user": POOLER_ROLE,
        "auth_dbname": SHARED_DATABASE,
        "auth_query": AUTH_QUERY,
        "pool_mode": "transaction",
        "max_prepared_statements": 200,
        "max_client_conn": CLIENTS,
        "max_db_connections": spec.pooler.max_connections,
        # That a server is away is said before a sidecar loses its own patience (3 s for a connection), and that it is
        # back found soon: by default clients wait for two minutes, and after a failure it is not looked for 15 s.
        "query_wait_timeout": QUERY_WAIT_S,
        "server_login_retry": LOGIN_RETRY_S,
        # Sidecars ask for an isolation level, which connect_query sets; without this every one of them is refused.
        "ignore_startup_parameters": "extra_float_digits,default_transaction_isolation",
        "log_connections": 0,
        "log_disconnections": 0,
        **(_TLS if spec.postgres.tls.enabled else {}),
    }
    lines = [
        "[databases]",
        f"* = host={SOCKETS_DIR} port={POSTGRES_PORT} connect_query='{CONNECT_QUERY}'",
        "",
        "[pgbouncer]",
    ]
    return "\n".join([*lines, *(f"{name} = {value}".rstrip() for name, value in settings.items()), ""])


_TLS: Final = {
    "client_tls_sslmode": "require",
    "client_tls_cert_file": f"{TLS_DIR}/{CERTIFICATE_FILE}",
    "client_tls_key_file": f"{TLS_DIR}/{KEY_FILE}",
    "client_tls_ca_file": f"{TLS_DIR}/{CA_FILE}",
}


def build_pooler_container(image: Manifest, mounts: dict[str, str]) -> Manifest:
    """The pooler beside its Postgres; `image` is the image and how it is pulled."""
    memory = quantity_of_bytes(MEMORY_BYTES)
    return {
        "name": "pooler",
        **image,
        "command": ["/bin/sh", "-c", RUN],
        "lifecycle": {"preStop": {"exec": {"command": ["/bin/sh", "-c", STOP]}}},
        "ports": [{"name": "pooler", "containerPort": POOLER_PORT, "protocol": "TCP"}],
        "readinessProbe": build_tcp_probe(POOLER_PORT, period_s=5, tries=2),
        "livenessProbe": build_tcp_probe(POOLER_PORT, period_s=10, tries=6),
        "resources": {
            "requests": {"cpu": quantity_of_millis(CPU_MILLIS), "memory": memory},
            "limits": {"memory": quantity_of_bytes(4 * MEMORY_BYTES)},
        },
        "securityContext": build_container_security(),
        "volumeMounts": build_mounts(mounts, *(name for name in mounts if mounts[name] != SOCKETS_DIR)),
    }
