"""What a tenant's pods mount, beside the MemoryTenant: a Secret with its login, a ConfigMap with map and policy. Pure.

Both bear the tenant's label, so a cluster in the same namespace never takes them for its own, and are owned by the
MemoryTenant: a pod of a tenant that is gone does not start with what was true once.
"""

import base64
import json

from engram_contract.names import (
    API_VERSION,
    CREDENTIALS_FILE,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    MAP_FILE,
    POLICY_FILE,
    TENANT_KIND,
    TENANT_LABEL,
    tenant_objects,
)
from engram_contract.shardmap import ShardMap
from engram_contract.spec import TenantSpec
from engram_operator.manifests.meta import INSTANCE_LABEL, NAME_LABEL, Manifest


def build_tenant_secret(tenant: TenantSpec, uid: str, role: str, passwords: tuple[str, ...], ca: str) -> Manifest:
    """The login of the tenant's sidecars. Without TLS there is no `ca`."""
    login = {"role": role, "passwords": list(passwords)} | ({"ca": ca} if ca else {})
    text = base64.b64encode((json.dumps(login, sort_keys=True) + "\n").encode()).decode()
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": _meta(tenant, uid),
        "data": {CREDENTIALS_FILE: text},
    }


def build_tenant_config(tenant: TenantSpec, uid: str, shard_map: ShardMap) -> Manifest:
    """The map and the policy as this operator knows them."""
    data = {MAP_FILE: shard_map.to_json() + "\n", POLICY_FILE: tenant.policy().to_json() + "\n"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _meta(tenant, uid), "data": data}


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
