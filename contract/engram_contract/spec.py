"""The two resources, parsed once at the border: `ClusterSpec.from_resource(body)`, `TenantSpec.from_resource(body)`.

Both raise BadSpec(path, reason). This is the room's front door; the files behind it: resource.py (the outside of a
resource), spec_cluster.py, spec_parts.py and selector.py (MemoryCluster), spec_tenant.py (MemoryTenant).
"""

from engram_contract.resource import BadSpec
from engram_contract.selector import LabelSelector
from engram_contract.spec_cluster import ClusterSpec, ExternalShard, Provider, ShardOverride, ShardSpec
from engram_contract.spec_parts import CacheProvider, SecretKeyRef, SecretRef
from engram_contract.spec_tenant import ClusterRef, ReclaimPolicy, SidecarUpgrade, TenantSpec

__all__ = [
    "BadSpec",
    "CacheProvider",
    "ClusterRef",
    "ClusterSpec",
    "ExternalShard",
    "LabelSelector",
    "Provider",
    "ReclaimPolicy",
    "SecretKeyRef",
    "SecretRef",
    "ShardOverride",
    "ShardSpec",
    "SidecarUpgrade",
    "TenantSpec",
]
