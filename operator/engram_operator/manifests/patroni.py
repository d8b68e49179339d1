"""What Patroni is told: a file that every member of a shard reads, and the configuration that they share.

- The local file (10-patroni.yml) has what is of the pod itself: addresses, folders, certificates, who may connect.
  Patroni takes it over the shared configuration, so nothing that a user may set stands in it.
- The shared configuration is the annotation `config` of the ConfigMap <scope>-config. It is there before the first
  member: a bootstrap section would count once only, and a member that started without it would be asynchronous. So the
  local file has no `bootstrap.dcs`; a member that finds neither ends at once, and is started again.
- Patroni writes that annotation once itself, after the bootstrap, as compact JSON with the members in the order in
  which it read them. Ours has that form, so both write the same text.

Pure. Sources: Patroni 4.1, YAML and dynamic configuration settings; `Config._build_effective_configuration`,
`Ha.bootstrap`, `Ha.post_bootstrap`.
"""

import json
from typing import Any, Final

from engram_contract.names import PATRONI_PORT, POSTGRES_PORT, PRIMARY_ROLE, ROLE_LABEL, SCOPE_LABEL
from engram_contract.shardmap import MAX_NODES
from engram_contract.spec_cluster import ClusterSpec
from engram_contract.spec_parts import GIB, MIB, VolumeReclaim
from engram_operator.manifests.credentials import (
    CA_FILE,
    CERTIFICATE_FILE,
    KEY_FILE,
    REPLICATORS,
    TLS_DIR,
)
from engram_operator.manifests.meta import Manifest, Owner, build_meta, digest_of
from engram_operator.manifests.names import LOCAL_FILE, POOLER_FILE, ShardNames
from engram_operator.manifests.pooler import SOCKETS_DIR, build_pooler_file

DATA_DIR: Final = "/data"
REPLICA_ROLE: Final = "replica"
TTL_S: Final = 20  # Patroni's minimum: how long a lost primary costs writes
LOOP_WAIT_S: Final = 2
RETRY_S: Final = 5  # LOOP_WAIT_S + 2 * RETRY_S must not exceed TTL_S
CONNECTIONS: Final = 100
UNPOOLED_CONNECTIONS: Final = 40  # past the pooler: the operator, replication, migrations
# Every member twice (a clone takes two), and moves between shards. The same for every spec: a change needs a restart.
SENDERS: Final = 2 * MAX_NODES + 16
SETTINGS: Final = "engram.settings"  # of no effect in Postgres: names the shared configuration that a server has read
READY_LAG_BYTES: Final = 16 * MIB  # a replica further behind is not ready, and takes over only if it is synchronous


def build_local(spec: ClusterSpec) -> str:
    """10-patroni.yml: what is of the pod itself. JSON is YAML."""
    return json.dumps(_local(spec), indent=1)


def _local(spec: ClusterSpec) -> dict[str, Any]:
    return {
        "kubernetes": {
            "use_endpoints": False,  # deprecated by Kubernetes; ConfigMaps do the same
            "role_label": ROLE_LABEL,
            "leader_label_value": PRIMARY_ROLE,
            "follower_label_value": REPLICA_ROLE,
        },
        "restapi": {"listen": f"0.0.0.0:{PATRONI_PORT}"},
        "bootstrap": {"initdb": [{"encoding": "UTF8"}, {"locale": "C"}, "data-checksums"]},
        "postgresql": {
            "listen": f"0.0.0.0:{POSTGRES_PORT}",
            "bin_dir": "/opt/postgres/bin",
            "data_dir": f"{DATA_DIR}/postgres",
            "pgpass": "/tmp/pgpass",  # noqa: S108  a volume of the pod
            "use_unix_socket": True,
            "use_unix_socket_repl": False,
            "basebackup": [{"checkpoint": "fast"}],  # a spread one keeps a new replica waiting for minutes
            "parameters": _own_parameters(spec),
            "pg_hba": _who_may_connect(spec),
        },
    }


def _own_parameters(spec: ClusterSpec) -> dict[str, Any]:
    """Postgres' settings that are places in the pod."""
    files = {"ssl_cert_file": CERTIFICATE_FILE, "ssl_key_file": KEY_FILE, "ssl_ca_file": CA_FILE}
    tls = {name: f"{TLS_DIR}/{file}" for name, file in files.items()}
    return {
        "unix_socket_directories": SOCKETS_DIR,
        **({"ssl": "on", **tls} if spec.postgres.tls.enabled else {}),
    }


def _who_may_connect(spec: ClusterSpec) -> list[str]:
    """pg_hba.conf: over the socket our two containers, which alone mount its folder; over the network by password."""
    kind = "hostssl" if spec.postgres.tls.enabled else "host"
    return [
        "local all all trust",
        f"{kind} all all all scram-sha-256",
        *(f"{kind} replication {role} all scram-sha-256" for role in REPLICATORS.values()),
        *(["hostnossl all all all reject"] if spec.postgres.tls.enabled else []),
    ]


def build_dynamic(spec: ClusterSpec) -> dict[str, Any]:
    """The configuration that all members share. What the user sets for Postgres wins over ours, but for SETTINGS."""
    shared = _shared(spec)
    shared["postgresql"]["parameters"][SETTINGS] = digest_of(shared)
    return shared


def settings_of(spec: ClusterSpec) -> str:
    """The value of SETTINGS in a server that has read the shared configuration of this spec."""
    return str(build_dynamic(spec)["postgresql"]["parameters"][SETTINGS])


def _shared(spec: ClusterSpec) -> dict[str, Any]:
    return {
        "ttl": TTL_S,
        "loop_wait": LOOP_WAIT_S,
        "retry_timeout": RETRY_S,
        "maximum_lag_on_failover": READY_LAG_BYTES,
        "failsafe_mode": True,  # without it an API server that is away ended all writes after 8 s
        # Without it a frozen Patroni lost acknowledged writes: its Postgres went on beside the new primary.
        "synchronous_mode": spec.replicas > 0,
        "primary_start_timeout": 30,  # a crashed primary comes back sooner than this, or a replica takes over
        "ignore_slots": [{"type": "logical", "plugin": "pgoutput"}],  # the moves' slots: Patroni drops strangers'
        "postgresql": {"use_pg_rewind": True, "use_slots": True, "parameters": _shared_parameters(spec)},
    }


def _shared_parameters(spec: ClusterSpec) -> dict[str, Any]:
    volume_bytes, memory_bytes = spec.storage.size_bytes, spec.postgres.resources.requests.memory_bytes
    return {
        "wal_level": "logical",  # moves between shards are logical replication
        "hot_standby": "on",
        "wal_log_hints": "on",  # what pg_rewind needs
        "max_connections": _connections(spec),
        "max_wal_senders": SENDERS,
        "max_replication_slots": SENDERS,
        "max_worker_processes": 16,  # 8 for the moves' appliers and copies, 8 for parallel queries
        "max_logical_replication_workers": 8,
        # WAL must never fill the volume: a slot that nobody reads is given up, and its move starts over.
        "max_slot_wal_keep_size": _megabytes(volume_bytes // 2),
        "max_wal_size": _megabytes(min(GIB, max(32 * MIB, volume_bytes // 8))),
        "min_wal_size": "32MB",  # two segments, its minimum; the default is more than a small volume's max_wal_size
        "wal_keep_size": _megabytes(min(128 * MIB, volume_bytes // 8)),
        "shared_buffers": _megabytes(max(16 * MIB, memory_bytes // 4)),
        # The default of 5 s leaves a primary that came back from a crash without a synchronous standby for that long:
        # Patroni lets it write alone, and nobody can take over from it if it is lost in this time.
        "wal_retrieve_retry_interval": "500ms",
        "password_encryption": "scram-sha-256",
        # No memory's content in the log: no statement, no parameter, and of an error the message alone, because its
        # DETAIL quotes rows.
        "log_statement": "none",
        "log_min_error_statement": "panic",
        "log_parameter_max_length": 0,
        "log_parameter_max_length_on_error": 0,
        "log_error_verbosity": "terse",
        **dict(spec.postgres.parameters),
    }


def _connections(spec: ClusterSpec) -> int:
    pooled = spec.pooler.max_connections + UNPOOLED_CONNECTIONS if spec.pooler.enabled else 0
    return max(CONNECTIONS, pooled)


def _megabytes(amount_bytes: int) -> str:
    return f"{amount_bytes // MIB}MB"


def build_files(spec: ClusterSpec, names: ShardNames, labels: dict[str, str], owner: Owner) -> Manifest:
    """The ConfigMap of the files that the containers of a member read."""
    pooler = {POOLER_FILE: build_pooler_file(spec)} if spec.pooler.enabled else {}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": build_meta(names.namespace, names.patroni, labels, owner),
        "data": {LOCAL_FILE: build_local(spec), **pooler},
    }


def build_config(spec: ClusterSpec, names: ShardNames, owner: Owner) -> Manifest:
    """Patroni's <scope>-config with the configuration that all members share. Only the annotation is ours.

    With reclaim policy Retain it outlives the cluster, because Patroni keeps there whose data it is (`initialize`).
    Without that, a new member with an empty volume could be first and begin another database beside the retained ones.
    """
    kept = None if spec.storage.reclaim_policy is VolumeReclaim.RETAIN else owner
    meta = build_meta(names.namespace, names.config, {**names.patroni_labels, SCOPE_LABEL: names.scope}, kept)
    config = json.dumps(build_dynamic(spec), separators=(",", ":"))
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {**meta, "annotations": {"config": config}}}
