"""Every name on which the two planes must agree: group, kinds, labels, files, ports, environment, roles.

Promises: no other file of the planes spells the API domain or an environment variable of ours. Pure; standard
library only.
"""

import hashlib
from typing import Final

GROUP: Final = "engram.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
CLUSTER_KIND: Final = "MemoryCluster"
TENANT_KIND: Final = "MemoryTenant"
CLUSTERS: Final = "memoryclusters"  # the kinds as paths of the API spell them
TENANTS: Final = "memorytenants"

INJECT_LABEL: Final = f"{GROUP}/inject"
AGENT_LABEL: Final = f"{GROUP}/agent"
TENANT_ANNOTATION: Final = f"{GROUP}/tenant"
PROTECTED_LABEL: Final = f"{GROUP}/protected"
INJECTED_LABEL: Final = f"{GROUP}/injected"  # set by the injector: what watches and selects pods with a sidecar
SIDECAR_HASH_ANNOTATION: Final = f"{GROUP}/sidecar-hash"  # which sidecar was injected, as a digest of its container
SIDECAR_BEFORE_ANNOTATION: Final = f"{GROUP}/sidecar-before"  # of an upgrade in place: container it ends, image

# How a pod tunes its own sidecar; docs/sidecar.md has them as a table.
CPU_REQUEST_ANNOTATION: Final = f"{GROUP}/sidecar-cpu-request"
CPU_LIMIT_ANNOTATION: Final = f"{GROUP}/sidecar-cpu-limit"
MEMORY_REQUEST_ANNOTATION: Final = f"{GROUP}/sidecar-memory-request"
MEMORY_LIMIT_ANNOTATION: Final = f"{GROUP}/sidecar-memory-limit"
LOG_LEVEL_ANNOTATION: Final = f"{GROUP}/sidecar-log-level"
DRAIN_ANNOTATION: Final = f"{GROUP}/sidecar-drain-seconds"
HTTP_PORT_ANNOTATION: Final = f"{GROUP}/http-port"
ADMIN_PORT_ANNOTATION: Final = f"{GROUP}/admin-port"

# On every object that the operator makes. MANAGED_BY selects what it watches; Patroni's own ConfigMaps have only the
# cluster and the shard, because they change with every beat of its heart.
MANAGED_BY_LABEL: Final = "app.kubernetes.io/managed-by"
MANAGED_BY: Final = "engram-operator"
CLUSTER_LABEL: Final = f"{GROUP}/cluster"
SHARD_LABEL: Final = f"{GROUP}/shard"
SCOPE_LABEL: Final = f"{GROUP}/scope"  # a shard's members and Patroni's ConfigMaps, and nothing else of the shard
TENANT_LABEL: Final = f"{GROUP}/tenant"
ROLE_LABEL: Final = "role"  # written by Patroni on the pods of a shard: primary or replica
PRIMARY_ROLE: Final = "primary"
APPLIED_ANNOTATION: Final = f"{GROUP}/applied"  # the digest of the manifest that was applied last
SHAPE_ANNOTATION: Final = f"{GROUP}/shape"  # on a StatefulSet: what its pods and claims were made from

STAGED_ANNOTATION: Final = f"{GROUP}/staged-at"  # on a tenant's Secret: since when it holds two passwords, Unix seconds
KEY_OF_LABEL: Final = f"{GROUP}/key-of"  # on the Secret of a tenant's keys: the tenant's role
ERASE_FINALIZER: Final = f"{GROUP}/erase"

# What a user may ask of a cluster beside its spec: a new value is a new request.
ROTATE_ANNOTATION: Final = f"{GROUP}/rotate-credentials"  # of a cluster and of a tenant
ROTATE_KEY_ANNOTATION: Final = f"{GROUP}/rotate-key"  # of a tenant: the key of its data
UPDATE_ANNOTATION: Final = f"{GROUP}/update"

POSTGRES_PORT: Final = 5432
POOLER_PORT: Final = 6432
PATRONI_PORT: Final = 8008
REDIS_PORT: Final = 6379

# Outside the ranges of other sidecars (3500, 4140-4191, 9090, 15000-15090, 50001): both may stand in one pod.
HTTP_PORT: Final = 7711
ADMIN_PORT: Final = 7712

ENV_URL: Final = "ENGRAM_URL"
ENV_HTTP_PORT: Final = "ENGRAM_HTTP_PORT"
ENV_ADMIN_PORT: Final = "ENGRAM_ADMIN_PORT"
ENV_HOST: Final = "ENGRAM_HOST"
ENV_CONFIG_DIR: Final = "ENGRAM_CONFIG_DIR"
ENV_LOG_LEVEL: Final = "ENGRAM_LOG_LEVEL"
ENV_DRAIN_S: Final = "ENGRAM_DRAIN_SECONDS"
# Who the sidecar's pod is: each a field of the pod, which the admission policy holds to just that.
ENV_AGENT: Final = "ENGRAM_AGENT"  # the label engram.dev/agent; empty without it
ENV_SERVICE_ACCOUNT: Final = "ENGRAM_SERVICE_ACCOUNT"
ENV_POD_UID: Final = "ENGRAM_POD_UID"
ENV_OTLP_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"  # the standard's; what else it has, the SDK reads

ENV_POD_NAME: Final = "ENGRAM_POD_NAME"  # also of the control plane's processes

# The control plane's processes: what the chart tells the operator and the injector.
ENV_NAMESPACE: Final = "ENGRAM_NAMESPACE"
ENV_FILE_GRACE_S: Final = "ENGRAM_FILE_GRACE_SECONDS"
ENV_PLANS: Final = "ENGRAM_PLANS"  # the quotas of each plan, as JSON
ENV_TLS_SECRET: Final = "ENGRAM_TLS_SECRET"  # noqa: S105  the name of a variable
ENV_LEASE: Final = "ENGRAM_LEASE"
ENV_WEBHOOK_CONFIG: Final = "ENGRAM_WEBHOOK_CONFIG"
ENV_WEBHOOK_SERVICE: Final = "ENGRAM_WEBHOOK_SERVICE"
ENV_WEBHOOK_PORT: Final = "ENGRAM_WEBHOOK_PORT"
ENV_CERTIFICATE_S: Final = "ENGRAM_CERTIFICATE_SECONDS"  # the life of the webhook's; shorter than usual in tests
ENV_INJECTOR: Final = "ENGRAM_INJECTOR"  # the injector's Deployment; empty without one
ENV_SIDECAR_IMAGE: Final = "ENGRAM_SIDECAR_IMAGE"
ENV_SIDECAR_PULL_POLICY: Final = "ENGRAM_SIDECAR_PULL_POLICY"
ENV_SIDECAR_RESOURCES: Final = "ENGRAM_SIDECAR_RESOURCES"
ENV_SIDECAR_OTLP: Final = "ENGRAM_SIDECAR_OTLP_ENDPOINT"
ENV_POSTGRES_IMAGE: Final = "ENGRAM_POSTGRES_IMAGE"
ENV_REDIS_IMAGE: Final = "ENGRAM_REDIS_IMAGE"
ENV_PULL_POLICY: Final = "ENGRAM_PULL_POLICY"
ENV_PULL_SECRETS: Final = "ENGRAM_PULL_SECRETS"  # names, separated by commas
ENV_OPERATOR_LABELS: Final = "ENGRAM_OPERATOR_LABELS"  # of the operator's own pods: name=value, separated by commas
CONTROL_ADMIN_PORT: Final = 8080
WEBHOOK_PORT: Final = 9443
WEBHOOK_PATH: Final = "/mutate"  # for pods that ask by their own label
NAMESPACE_WEBHOOK_PATH: Final = "/mutate-namespace"  # for pods of a namespace that asks for all of its pods

# The files of a sidecar's configuration directory: a mount in a cluster, a folder in local mode.
MAP_FILE: Final = "map.json"
POLICY_FILE: Final = "policy.json"
CREDENTIALS_FILE: Final = "credentials.json"
KEYS_FILE: Final = "keys.json"

# The sidecar in a pod: one native sidecar, which alone mounts the tenant's Secret and ConfigMap.
SIDECAR_CONTAINER: Final = "engram"
ADMIN_PORT_NAME: Final = "engram-admin"
CONFIG_VOLUME: Final = "engram-config"
CONFIG_DIR: Final = "/etc/engram"

SCHEMA: Final = "engram"
SHARED_DATABASE: Final = "engram"
OWNER_ROLE: Final = "engram_owner"
TENANT_GROUP_ROLE: Final = "engram_tenant"

# Class EG is free: the SQL standard leaves classes that begin with E to T to implementations, PostgreSQL uses F0,
# HV, P0 and XX.
FENCE_SQLSTATE: Final = "EG001"
QUOTA_SQLSTATE: Final = "EG002"

# A response names the configuration that it was made with: `map=3, policy=7, credentials=2, keys=1`.
CONFIG_HEADER: Final = "Engram-Config"
# Which reads a request accepts (`session`, `strong`, `eventual`), and what its session has written and seen.
CONSISTENCY_HEADER: Final = "Engram-Consistency"
SESSION_HEADER: Final = "Engram-Session"

# A write that carries a key happens once; the answer to its repetition says that it is one.
IDEMPOTENCY_HEADER: Final = "Idempotency-Key"
REPLAYED_HEADER: Final = "Idempotency-Replayed"

PROBLEM_BASE: Final = f"https://{GROUP}/problems/"


def length_prefixed(*parts: str) -> bytes:
    """The parts as bytes in which no part can reach into the next: two different tuples never give the same bytes."""
    encoded = (part.encode() for part in parts)
    return b"".join(len(part).to_bytes(4, "big") + part for part in encoded)


def tenant_objects(name: str) -> str:
    """The name of a tenant's Secret (credentials) and of its ConfigMap (map, policy), in the tenant's namespace."""
    return f"engram-tenant-{name}"


def tenant_role(namespace: str, name: str) -> str:
    """The Postgres role of a tenant, which is also the value of every `tenant` column.

    A hash, because Postgres cuts names at 63 bytes without an error; 34 characters.
    """
    return "t_" + hashlib.sha256(length_prefixed(namespace, name)).hexdigest()[:32]


def cache_part(role: str) -> str:
    """By what a tenant's keys and channels in Redis begin: the braces put all of them into one slot of a Cluster."""
    return f"{{{role}}}:"
