"""What the objects of a cluster are called. The longest name of the longest cluster is still a label: 63 characters.

Promises: no two objects of a kind in one namespace have the same name, whatever the clusters are called. A cluster
`a-s0` has a Secret `a-s0-patroni`, the cluster `a` a ConfigMap of this name; a test holds that it comes no nearer.

Pure.
"""

from dataclasses import dataclass
from typing import Final

from engram_contract.names import CLUSTER_LABEL, SCOPE_LABEL, SHARD_LABEL

CLUSTER_DOMAIN: Final = "cluster.local"
DATA_VOLUME: Final = "data"
TLS_VOLUME: Final = "tls"
LOCAL_FILE: Final = "10-patroni.yml"  # Patroni reads all files of its folder, in this order
CREDENTIALS_FILE: Final = "20-credentials.yml"
POOLER_FILE: Final = "pgbouncer.ini"


@dataclass(frozen=True, slots=True)
class ClusterNames:
    """The objects of a whole cluster."""

    cluster: str
    namespace: str

    @property
    def credentials(self) -> str:
        """The Secret of all passwords."""
        return f"{self.cluster}-credentials"

    @property
    def ca(self) -> str:
        """The Secret of the CA that signs the shards' certificates."""
        return f"{self.cluster}-ca"

    @property
    def patroni(self) -> str:
        """The Secret of the passwords that Patroni reads."""
        return f"{self.cluster}-patroni"

    @property
    def tls(self) -> str:
        """The Secret of the certificate that all members have."""
        return f"{self.cluster}-tls"

    @property
    def pods(self) -> str:
        """The headless Service, in which every member has a name."""
        return f"{self.cluster}-pods"

    @property
    def dns_names(self) -> tuple[str, ...]:
        """Every name under which a member may be dialled, for the certificate: the same for any number of shards.

        It is good for any Service of the namespace, but who trusts its CA dials this cluster alone.
        """
        within = (f"*.{self.pods}.{self.namespace}.svc", f"*.{self.namespace}.svc")
        return tuple(sorted((*within, *(f"{name}.{CLUSTER_DOMAIN}" for name in within), "localhost")))

    @property
    def shards(self) -> str:
        """The shards' ServiceAccount, Role, RoleBinding and NetworkPolicy."""
        return f"{self.cluster}-shards"

    @property
    def redis(self) -> str:
        """Redis' StatefulSet, Service, Secret and NetworkPolicy."""
        return f"{self.cluster}-redis"

    @property
    def redis_host(self) -> str:
        """Where Redis is dialled."""
        return f"{self.redis}.{self.namespace}.svc"

    def shard(self, shard_id: str) -> "ShardNames":
        """The objects of one shard."""
        return ShardNames(self.cluster, self.namespace, shard_id)


@dataclass(frozen=True, slots=True)
class ShardNames:
    """The objects of one shard."""

    cluster: str
    namespace: str
    id: str

    @property
    def scope(self) -> str:
        """The StatefulSet, the PDB, and what Patroni calls its cluster."""
        return f"{self.cluster}-{self.id}"

    @property
    def rw(self) -> str:
        """The Service of the primary."""
        return f"{self.scope}-rw"

    @property
    def ro(self) -> str:
        """The Service of the replicas."""
        return f"{self.scope}-ro"

    @property
    def patroni(self) -> str:
        """The ConfigMap of the files that Patroni and the pooler read."""
        return f"{self.scope}-patroni"

    @property
    def config(self) -> str:
        """Patroni's own ConfigMap of the configuration that all members share."""
        return f"{self.scope}-config"

    @property
    def dcs(self) -> tuple[str, ...]:
        """Every ConfigMap in which Patroni keeps its state."""
        return tuple(f"{self.scope}-{part}" for part in ("config", "failover", "leader", "sync"))

    @property
    def patroni_labels(self) -> dict[str, str]:
        """What Patroni puts on its ConfigMaps beside the scope; without the label by which the operator watches."""
        return {CLUSTER_LABEL: self.cluster, SHARD_LABEL: self.id}

    @property
    def selector(self) -> dict[str, str]:
        """The members' pods, and no other pod of the shard."""
        return {SCOPE_LABEL: self.scope}

    def pod(self, index: int) -> str:
        """A member."""
        return f"{self.scope}-{index}"

    def claim(self, index: int) -> str:
        """A member's volume."""
        return f"{DATA_VOLUME}-{self.pod(index)}"

    def host(self, index: int) -> str:
        """A member's name in DNS, also before it is ready."""
        return f"{self.pod(index)}.{ClusterNames(self.cluster, self.namespace).pods}.{self.namespace}.svc"
