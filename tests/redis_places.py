"""Real Redis of several servers: a primary with its replica and a Sentinel, and a Cluster of four nodes."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as NoConnection

from engram_contract.credentials import CacheLogin
from engram_contract.slots import SLOTS, slot_of
from engram_operator.manifests.redis import OPERATOR_USER
from tests.ports import free_port
from tests.redis_server import PASSWORD, Program, RedisServer, redis_server, tls_of

NAME: Final = "main"
NOBODY: Final = "127.0.0.1:1"
TRUSTED: Final = {"masteruser": OPERATOR_USER, "masterauth": PASSWORD, "repl-diskless-sync-delay": "0"}
SENTINEL: Final = """bind 127.0.0.1
dir {folder}
sentinel resolve-hostnames yes
sentinel announce-hostnames yes
sentinel monitor {name} localhost {primary} 1
sentinel auth-user {name} {user}
sentinel auth-pass {name} {password}
sentinel down-after-milliseconds {name} 500
sentinel failover-timeout {name} 10000
"""
# A step of a failover that takes longer than its timeout ends it, and one that was asked for is not begun again.
# It looks more often than in earnest. Not its ping-period: five of these is how old what it knows of a replica may be.
HASTE: Final = ("info-period", 100, "ask-period", 100, "publish-period", 200)
NODE_TIMEOUT_MS: Final = 1_000


async def until(is_so: Callable[[], Awaitable[bool]], timeout_s: float = 30.0) -> None:
    """Returns once it is so; a test that hangs fails."""
    async with asyncio.timeout(timeout_s):
        while not await is_so():  # noqa: ASYNC110  it is another program that changes
            await asyncio.sleep(0.02)


@dataclass(frozen=True)
class Watched:
    """Two servers, of which one is the primary, and the Sentinel that sees to it."""

    servers: tuple[RedisServer, RedisServer]
    port: int
    process: "subprocess.Popen[bytes]"

    @property
    def scheme(self) -> str:
        """Of its URL, without the form."""
        return self.servers[0].scheme

    def login(self, role: str, ca: str = "") -> CacheLogin:
        """By a Sentinel that is gone, and the one that is there."""
        return CacheLogin(f"{self.scheme}+sentinel://{NOBODY},localhost:{self.port}/{NAME}", role, (PASSWORD,), ca)

    async def admit(self, role: str) -> None:
        """At both: users are not replicated."""
        for server in self.servers:
            await server.admit(role)

    async def ask(self, *command: str | int) -> Any:  # noqa: ANN401  each command has its own answer
        """What the Sentinel answers."""
        async with Redis(port=self.port, protocol=2, decode_responses=True, **tls_of(self.scheme)) as client:
            return await client.execute_command("SENTINEL", *command)  # type: ignore[no-untyped-call]

    async def primary(self) -> RedisServer:
        """Whom the Sentinel names."""
        _, port = await self.ask("GET-MASTER-ADDR-BY-NAME", NAME)
        return next(each for each in self.servers if each.port == int(port))

    async def is_ready(self) -> bool:
        """Whether the replica is in step, and the Sentinel knows it and has found it well."""
        _, replica = self.servers
        told = await replica.run("INFO", "replication")
        known = await self.ask("REPLICAS", NAME)
        return told.get("master_link_status") == "up" and "slave" in str(known) and "s_down" not in str(known)


@contextmanager
def watched(program: Program, folder: Path, settings: Mapping[str, str] | None = None) -> Iterator[Watched]:
    """A primary, a replica and a Sentinel for a block; not ready yet."""
    with ExitStack() as stack:
        names = ("first", "second")
        both = [
            stack.enter_context(redis_server(program, folder / name, {**TRUSTED, **(settings or {})})) for name in names
        ]
        home = folder / "sentinel"
        home.mkdir()
        port = free_port()
        said = SENTINEL.format(folder=home, name=NAME, primary=both[0].port, user=OPERATOR_USER, password=PASSWORD)
        ports = {"port": "0", "tls-port": str(port)} if settings else {"port": str(port)}
        lines = (f"{name} {value}\n" for name, value in {**ports, **(settings or {})}.items())
        (home / "sentinel.conf").write_text("".join(lines) + said)
        command = [program.path, str(home / "sentinel.conf"), "--sentinel"]
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(command, env=dict(program.environment), stdout=log, stderr=log)
        try:
            yield Watched((both[0], both[1]), port, process)
        finally:
            process.kill()
            process.wait()


@asynccontextmanager
async def replicated(stage: Watched) -> AsyncIterator[Watched]:
    """The same, ready."""
    first, second = stage.servers
    await second.run("REPLICAOF", "localhost", first.port)

    async def is_listening() -> bool:
        try:
            await stage.ask("DEBUG", *HASTE)
        except NoConnection:
            return False
        return True

    await until(is_listening)
    await until(stage.is_ready)
    yield stage


@dataclass(frozen=True)
class Nodes:
    """A Cluster: the first node has one tenant's slot, the last is its replica."""

    servers: Sequence[RedisServer]
    slot: int

    def login(self, role: str) -> CacheLogin:
        """By a node that is not there, and two that have other slots than the tenant's."""
        seeds = ",".join((NOBODY, *(f"127.0.0.1:{each.port}" for each in self.servers[1:3])))
        return CacheLogin(f"redis+cluster://{seeds}", role, (PASSWORD,))

    async def admit(self, role: str) -> None:
        """At all: users are not replicated."""
        for server in self.servers:
            await server.admit(role)

    async def move(self, giver: RedisServer, taker: RedisServer) -> None:
        """The slot and what is in it go from one node to the other, as `redis-cli --cluster reshard` does it."""
        ids = {each.port: (await each.run("CLUSTER", "MYID")).decode() for each in (giver, taker)}
        await taker.run("CLUSTER", "SETSLOT", self.slot, "IMPORTING", ids[giver.port])
        await giver.run("CLUSTER", "SETSLOT", self.slot, "MIGRATING", ids[taker.port])
        while keys := await giver.run("CLUSTER", "GETKEYSINSLOT", self.slot, 100):
            login = ("AUTH2", OPERATOR_USER, PASSWORD)
            await giver.run("MIGRATE", "127.0.0.1", taker.port, "", 0, 5000, "REPLACE", *login, "KEYS", *keys)
        for each in (taker, giver):
            await each.run("CLUSTER", "SETSLOT", self.slot, "NODE", ids[taker.port])


@contextmanager
def nodes(program: Program, folder: Path, role: str) -> Iterator[Nodes]:
    """Four nodes that do not know each other yet."""
    with ExitStack() as stack:
        servers = []
        for number in range(4):
            home = folder / f"n{number}"
            cluster = {
                "cluster-enabled": "yes", "cluster-port": str(free_port()),
                "cluster-config-file": str(folder / f"n{number}.conf"),
                "cluster-node-timeout": str(NODE_TIMEOUT_MS), "cluster-replica-validity-factor": "0",
            }  # fmt: skip
            servers.append(stack.enter_context(redis_server(program, home, {**TRUSTED, **cluster})))
        yield Nodes(servers, slot_of(role.encode()))


async def join(stage: Nodes) -> None:
    """They are one Cluster, and all of them know it."""
    first, *others = stage.servers
    slot, replica = stage.slot, others[-1]
    for each, epoch in zip(stage.servers, range(1, 5), strict=True):
        await each.run("CLUSTER", "SET-CONFIG-EPOCH", epoch)
    for each in others:
        await first.run("CLUSTER", "MEET", "127.0.0.1", each.port, each.settings["cluster-port"])
    for each, ends in zip(stage.servers, ((0, slot), (slot + 1, SLOTS - 2), (SLOTS - 1, SLOTS - 1)), strict=False):
        await each.run("CLUSTER", "ADDSLOTSRANGE", *ends)

    async def are_known() -> bool:
        told = [bytes(await each.run("CLUSTER", "INFO")) for each in stage.servers]
        return all(b"cluster_state:ok" in each and b"cluster_known_nodes:4" in each for each in told)

    await until(are_known)
    await replica.run("CLUSTER", "REPLICATE", (await first.run("CLUSTER", "MYID")).decode())

    async def is_in_step() -> bool:
        return bool((await replica.run("INFO", "replication")).get("master_link_status") == "up")

    await until(is_in_step)


async def all_known(stage: Nodes) -> None:
    """Every node has heard that the last one is a replica, which takes them some seconds."""

    async def is_told() -> bool:
        told = [str(await each.run("CLUSTER", "SLOTS")) for each in stage.servers]
        return all(str(stage.servers[-1].port) in each for each in told)

    await until(is_told)
