"""What a tenant's pods mount, beside the MemoryTenant: a Secret with its login, a ConfigMap with map and policy. Pure.

Both bear the tenant's label, so a cluster in the same namespace never takes them for its own, and are owned by the
MemoryTenant: a pod of a tenant that is gone does not start with what was true once.
"""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from engram_contract.credentials import Credentials, Keyring
from engram_contract.names import (
    API_VERSION,
    CREDENTIALS_FILE,
    KEY_OF_LABEL,
    KEYS_FILE,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    MAP_FILE,
    POLICY_FILE,
    ROTATE_ANNOTATION,
    STAGED_ANNOTATION,
    TENANT_KIND,
    TENANT_LABEL,
    tenant_objects,
)
from engram_contract.policy import Policy
from engram_contract.shardmap import ShardMap
from engram_contract.spec import ClusterSpec, TenantSpec
from engram_operator.manifests.credentials import build_lasting_meta, build_secret
from engram_operator.manifests.meta import INSTANCE_LABEL, NAME_LABEL, Manifest, Owner

_SECONDS: Final = "[0-9]{1,11}"  # since 1970, as we write them: anything else is somebody else's


@dataclass(frozen=True, slots=True)
class Stored:
    """What the Secret holds, the request that it was made for, and since when it holds two passwords (Unix seconds)."""

    credentials: Credentials
    request: str = ""
    staged_s: float | None = None


def build_tenant_secret(tenant: TenantSpec, uid: str, stored: Stored, keyring: Keyring) -> Manifest:
    """The login of the tenant's sidecars and the keys of its data, with the request that the password was made for."""
    staged = {} if stored.staged_s is None else {STAGED_ANNOTATION: f"{int(stored.staged_s)}"}
    request = {ROTATE_ANNOTATION: stored.request} if stored.request else {}
    files = {CREDENTIALS_FILE: stored.credentials.to_json(), KEYS_FILE: keyring.to_json()}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": _meta(tenant, uid) | {"annotations": request | staged},
        "data": {name: base64.b64encode((text + "\n").encode()).decode() for name, text in files.items()},
    }


def read_tenant_secret(secret: Manifest | None) -> Stored | None:
    """What `build_tenant_secret` put there; None if it is damaged."""
    metadata = (secret or {}).get("metadata") or {}
    annotations = metadata.get("annotations") or {}
    staged = annotations.get(STAGED_ANNOTATION, "")
    try:
        credentials = Credentials.from_json(_file_in(secret, CREDENTIALS_FILE))
    except ValueError:  # no base64, no UTF-8, no credentials
        return None
    staged_s = float(staged) if re.fullmatch(_SECONDS, staged, re.ASCII) else None
    return Stored(credentials, annotations.get(ROTATE_ANNOTATION, ""), staged_s)


def read_tenant_keys(secret: Manifest | None) -> Keyring | None:
    """The keys that `build_tenant_secret` put there; None if there are none, or damaged ones."""
    try:
        return Keyring.from_json(_file_in(secret, KEYS_FILE))
    except ValueError:  # no base64, no UTF-8, no keys
        return None


def _file_in(secret: Manifest | None, name: str) -> str:
    """The text of a file in a Secret, empty if there is none. Raises ValueError."""
    text = ((secret or {}).get("data") or {}).get(name) or ""
    return base64.b64decode(text, validate=True).decode()


def build_tenant_config(tenant: TenantSpec, uid: str, shard_map: ShardMap, policy: Policy) -> Manifest:
    """The map and the policy as this operator knows them."""
    data = {MAP_FILE: shard_map.to_json() + "\n", POLICY_FILE: policy.to_json() + "\n"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _meta(tenant, uid), "data": data}


def build_key_secret(cluster: ClusterSpec, owner: Owner, role: str, data: Mapping[str, str]) -> Manifest:
    """The lasting copy of the keys of a tenant's data, wrapped by the cluster's key, beside the cluster.

    It lives as long as the volumes, like the cluster's own passwords: the tenant's Secret goes with the tenant. It has
    no label of the cluster, because the cluster's plan is not what asks for it.
    """
    labels = {NAME_LABEL: "engram", INSTANCE_LABEL: cluster.name, MANAGED_BY_LABEL: MANAGED_BY, KEY_OF_LABEL: role}
    meta = build_lasting_meta(cluster, key_secret(cluster.name, role), owner, labels)
    return build_secret(meta, {name: base64.b64encode(text.encode()).decode() for name, text in data.items()})


def key_secret(cluster: str, role: str) -> str:
    """The name of the Secret of a tenant's keys; `role` is a hash, so no two tenants share it."""
    return f"{cluster}-key-{role.removeprefix('t_')}"


def _meta(tenant: TenantSpec, uid: str) -> Manifest:
    owner = {
        "apiVersion": API_VERSION,
        "kind": TENANT_KIND,
        "name": tenant.name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }
    labels = {
        NAME_LABEL: "engram",
        INSTANCE_LABEL: tenant.name,
        MANAGED_BY_LABEL: MANAGED_BY,
        TENANT_LABEL: tenant.name,
    }
    return {
        "name": tenant_objects(tenant.name),
        "namespace": tenant.namespace,
        "labels": labels,
        "ownerReferences": [owner],
    }
