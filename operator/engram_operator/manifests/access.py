"""What the shards' pods may do in the cluster: what Patroni needs, and nothing else.

`create`, `list` and `watch` cannot be bound to names (their requests carry none); all that changes something is. A
right to patch any pod would be a right to run any image in its place.

Pure. Source: Patroni 4.1, `patroni/dcs/kubernetes.py`: every call of the API there.
"""

from collections.abc import Mapping
from typing import Final

from engram_operator.manifests.meta import POSTGRES, Manifest, Owner, build_labels, build_meta
from engram_operator.manifests.names import ClusterNames

RBAC: Final = "rbac.authorization.k8s.io"


def build_access(names: ClusterNames, owner: Owner, members: Mapping[str, int]) -> tuple[Manifest, ...]:
    """The shards' ServiceAccount, its Role and the binding of both; `members` by shard, those that are to go too."""
    meta = build_meta(names.namespace, names.shards, build_labels(names.cluster, POSTGRES), owner)
    # The token is mounted where a pod asks for it, not in every pod that uses the account.
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta, "automountServiceAccountToken": False}
    role = {"apiVersion": f"{RBAC}/v1", "kind": "Role", "metadata": meta, "rules": build_rules(names, members)}
    binding = {
        "apiVersion": f"{RBAC}/v1",
        "kind": "RoleBinding",
        "metadata": meta,
        "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": names.shards},
        "subjects": [{"kind": "ServiceAccount", "name": names.shards, "namespace": names.namespace}],
    }
    return account, role, binding


def build_rules(names: ClusterNames, members: Mapping[str, int]) -> list[Manifest]:
    """Patroni's rights, each with what it is for."""
    states = [name for shard in members for name in names.shard(shard).dcs]
    pods = [names.shard(shard).pod(index) for shard, count in members.items() for index in range(count)]
    return [
        # To follow the state of the shard.
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list", "watch"]},
        # To begin it: of the four only -config is there before the first member.
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create"]},
        # To change it (patch), and after a conflict to see who else did (get).
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": states, "verbs": ["get", "patch"]},
        # To find the other members.
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
        # To write a member's role and state on its own pod.
        {"apiGroups": [""], "resources": ["pods"], "resourceNames": pods, "verbs": ["patch"]},
    ]
