"""What exact reads of replicas cost: a put that learns its position, a get that says how far it saw, a session's get.

In turns, so that a slow second of the machine meets all. The same tenant, once by a map that names the members of its
shard, a primary and a streaming replica, and once by one that does not: there nothing is asked beside.
"""

import asyncio
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from engram_contract.policy import LOCAL_QUOTAS
from engram_contract.shardmap import Node
from engram_operator.clients import postgres
from engram_sidecar.settings import Settings
from rows import Row
from tests.harness import (
    NO_CACHE,
    Http,
    RealServer,
    SidecarThread,
    Tenant,
    create_tenant,
    server_folder,
    tenant_spec,
    write_config,
)

ROUNDS = 5
CALLS = 300
WARM_S = 2.0
PLAIN: dict[str, object] = {"plan": "Enterprise", "audit": {"enabled": False}}
BAR_PUT = 1.6
BAR_PAIR = 2.0

Call = tuple[str, str, object]


def measure() -> Iterator[Row]:
    """The rows of this benchmark."""
    found = run()
    put, bare = found["put"], found["put, no members"]
    yield Row.at_most("replicas_put", put / bare, "times", BAR_PUT, f"without positions: {bare * 1e3:.3g} ms")
    get, bare = found["get"], found["get, no members"]
    yield Row.at_most("replicas_get", get / bare, "times", BAR_PUT, f"from the primary: {bare * 1e3:.3g} ms")
    pair, bare = found["pair"], found["pair, no members"]
    yield Row.at_most("replicas_pair", pair / bare, "times", BAR_PAIR, f"put and get, primary: {bare * 1e3:.3g} ms")


def run() -> dict[str, float]:
    """The median time of each call, in seconds."""
    with server_folder() as folder, TemporaryDirectory() as config:
        primary = RealServer.create(folder / "s0", 18)
        replica = primary.make_standby(folder / "s0-1")
        try:
            tenant = asyncio.run(
                create_tenant("bench", [primary], Path(config) / "plain", spec=PLAIN, caching=NO_CACHE)
            )
            members = asyncio.run(with_members(tenant, (primary, replica), Path(config) / "members"))
            plain = SidecarThread(Settings(tenant.config_dir, http_port=0, admin_port=0))
            known = SidecarThread(Settings(members, http_port=0, admin_port=0))
            with plain.running(), known.running():
                return turns({", no members": Http(plain.ports.http_port), "": Http(known.ports.http_port)})
        finally:
            primary.stop("immediate")
            replica.stop("immediate")


async def with_members(tenant: Tenant, servers: tuple[RealServer, ...], folder: Path) -> Path:
    """The folder of a sidecar whose map names the servers."""
    [shard] = tenant.shard_map.shards
    members = tuple(Node(f"s0-{at}", each.admin.host, each.admin.port) for at, each in enumerate(servers))
    shard_map = replace(tenant.shard_map, shards=(replace(shard, members=members),), epoch=2)
    await postgres.publish_map(servers[0].admin, "s0", shard_map)
    write_config(folder, shard_map, tenant_spec("bench", **PLAIN).policy(LOCAL_QUOTAS, cache=NO_CACHE))
    return folder


def turns(callers: dict[str, Http]) -> dict[str, float]:
    """Each call's median, of all turns."""
    times: dict[str, list[float]] = {}

    def timed(name: str, calls: list[Call], http: Http) -> None:
        began_s = time.perf_counter()
        for method, path, body in calls:
            http(method, path, body, key="k")
        times.setdefault(name, []).append(time.perf_counter() - began_s)

    put: Call = ("PUT", "/v1/items", {"content": "x" * 1_000})
    get: Call = ("GET", "/v1/items", None)
    for _ in range(ROUNDS):
        for suffix, http in callers.items():
            until_s = time.perf_counter() + WARM_S
            while time.perf_counter() < until_s:  # so that the replica is looked at
                http(*get, key="k")
            for name, calls in (("put", [put]), ("get", [get]), ("pair", [put, get])):
                for _ in range(CALLS):
                    timed(name + suffix, calls, http)
    return {name: statistics.median(each) for name, each in times.items()}
