"""A sidecar's configuration that several tests begin with."""

from engram_contract.credentials import Credentials
from engram_contract.shardmap import Node, Shard, Strategy, first_map
from engram_sidecar.config import Config
from tests.harness import tenant_spec

SHARD = Shard("s0", "engram", (Node("s0-0", "127.0.0.1", 1),))


def a_config() -> Config:
    """A configuration of one shard, with nothing special."""
    policy = tenant_spec("a", encryption={"enabled": False}).policy()
    return Config(first_map("t_a", Strategy.USER, [SHARD], "default"), policy, Credentials("t_a", ("p",)))
