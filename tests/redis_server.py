"""A real Redis for tests, that can be stopped, killed, paused and cut, with tenants' users as the operator makes them.

Where none is installed apt brings the one of this system, with the two libraries that only it needs, into a folder of
its own: nothing of the machine is changed, and no service is started.
"""

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Protocol

from redis.asyncio import Redis

from engram_contract.credentials import CacheLogin, Credentials
from engram_contract.names import CREDENTIALS_FILE, cache_part
from engram_operator.clients.cache import COMMANDS
from engram_operator.manifests.redis import OPERATOR_USER
from engram_sidecar.bulletin import Bulletin
from engram_sidecar.redisdoor import Door
from tests.harness import Tenant
from tests.ports import free_port

OLDEST: Final = 7
PACKAGES: Final = ("redis-tools", "liblzf1", "libjemalloc2")
LIBRARIES: Final = "usr/lib/x86_64-linux-gnu"
PASSWORD: Final = "of-one-test-run"  # noqa: S105  a server that lives for one run on loopback
START_S: Final = 10.0
STOP_S: Final = 10.0
FETCH_S: Final = 300


class NoRedis(Exception):
    """There is none, and none can be had; the message says why."""


@dataclass(frozen=True, slots=True)
class Program:
    """What runs Redis, and where its libraries are."""

    path: str
    environment: Mapping[str, str]


def prepare_redis(folder: Path) -> Program:
    """The program; whatever has to be unpacked for it lies in `folder`. Raises NoRedis."""
    installed = shutil.which("redis-server")
    if installed:
        found = Program(installed, dict(os.environ))
        if version_of(found) >= OLDEST:
            return found
    if not all(shutil.which(each) for each in ("apt-get", "dpkg-deb")):
        raise NoRedis("no Redis of 7 or later is installed, and only apt could bring one")
    root = folder / "redis"
    for package in _fetched():
        subprocess.run(["dpkg-deb", "-x", package, root], check=True)  # noqa: S607  found above
    # One program under several names, of which this package has all but the server's.
    program = root / "usr/bin/redis-server"
    program.symlink_to("redis-check-rdb")
    found = Program(str(program), {**os.environ, "LD_LIBRARY_PATH": str(root / LIBRARIES)})
    if version_of(found) < OLDEST:
        raise NoRedis("the Redis that apt brought is too old")
    return found


def version_of(program: Program) -> int:
    """The major number."""
    said = subprocess.run(
        [program.path, "--version"], env=program.environment, capture_output=True, text=True, check=True
    ).stdout
    return int(said.partition("v=")[2].partition(".")[0])


def _fetched() -> list[Path]:
    """The packages, fetched once on this machine."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "engram-redis"
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=cache.parent) as name:
            packages = Path(name) / "packages"
            packages.mkdir()
            apt = ["apt-get", "-qq", "-oAPT::Sandbox::User=root", "download", *PACKAGES]
            done = subprocess.run(apt, cwd=packages, capture_output=True, text=True, check=False, timeout=FETCH_S)
            if done.returncode:
                raise NoRedis("no Redis of 7 or later is installed, and apt brought none")
            try:
                packages.rename(cache)
            except OSError:
                if not cache.exists():  # else somebody else was faster
                    raise
    return sorted(cache.glob("*.deb"))


@dataclass
class RedisServer:
    """A Redis on loopback, which keeps nothing. `settings` are options of its own, such as those of TLS."""

    program: Program
    folder: Path
    port: int
    settings: Mapping[str, str] = field(default_factory=dict)
    process: "subprocess.Popen[bytes] | None" = None

    @classmethod
    def create(cls, program: Program, folder: Path, settings: Mapping[str, str] | None = None) -> "RedisServer":
        """A new server, started."""
        folder.mkdir(parents=True)
        server = cls(program, folder, free_port(), settings or {})
        server.start()
        return server

    @property
    def scheme(self) -> str:
        """Of its URL."""
        return "rediss" if "tls-cert-file" in self.settings else "redis"

    def start(self) -> None:
        """It answers, on the same port, and knows the operator alone."""
        digest = hashlib.sha256(PASSWORD.encode()).hexdigest()
        (self.folder / "users.acl").write_text(f"user default off\nuser {OPERATOR_USER} on #{digest} ~* &* +@all\n")
        ports = {"port": "0", "tls-port": str(self.port)} if self.scheme == "rediss" else {"port": str(self.port)}
        settings = {
            **ports, **self.settings, "bind": "127.0.0.1", "dir": str(self.folder), "save": "", "appendonly": "no",
            "aclfile": str(self.folder / "users.acl"), "maxmemory": "64mb", "maxmemory-policy": "allkeys-lru",
        }  # fmt: skip
        words = [word for name, value in settings.items() for word in (f"--{name}", value)]
        log = self.folder / "log"
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [self.program.path, *words], env=dict(self.program.environment), stdout=output, stderr=output
            )
        until_s = time.monotonic() + START_S
        while b"Ready to accept connections" not in log.read_bytes():
            assert self.process.poll() is None, log.read_text()
            assert time.monotonic() < until_s, log.read_text()
            time.sleep(0.01)

    def kill(self) -> None:
        """It is gone, as if the power went."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """It ends in order."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(how)
        self.process.wait(STOP_S)

    def pause(self) -> None:
        """It holds its connections and answers nobody."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on where it was."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def login(self, role: str, *passwords: str, ca: str = "", host: str = "127.0.0.1") -> CacheLogin:
        """How a tenant's sidecar logs in."""
        return CacheLogin(f"{self.scheme}://{host}:{self.port}", role, passwords or (PASSWORD,), ca)

    async def admit(self, role: str, *passwords: str) -> None:
        """The tenant's user is there, with what the operator lets it do and these passwords."""
        digests = (f"#{hashlib.sha256(each.encode()).hexdigest()}" for each in passwords or (PASSWORD,))
        rules = (
            "reset",
            "on",
            *digests,
            f"~{cache_part(role)}*",
            f"&{cache_part(role)}*",
            *(f"+{each}" for each in COMMANDS),
        )
        await self.run("ACL", "SETUSER", role, *rules)

    async def run(self, *command: str | bytes | int) -> Any:  # noqa: ANN401  each command has its own answer
        """What the operator gets for a command."""
        async with self.client(OPERATOR_USER) as client:
            return await client.execute_command(*command)  # type: ignore[no-untyped-call]

    def client(self, user: str, password: str = PASSWORD) -> Redis:
        """A client of the driver's own, logged in as this user."""
        return Redis(port=self.port, username=user, password=password, protocol=2, **tls_of(self.scheme))


def tls_of(scheme: str) -> dict[str, Any]:
    """The driver's options for a server of tests, which proves nothing."""
    return {"ssl": True, "ssl_cert_reqs": "none", "ssl_check_hostname": False} if scheme == "rediss" else {}


@contextmanager
def redis_server(program: Program, folder: Path, settings: Mapping[str, str] | None = None) -> Iterator[RedisServer]:
    """A Redis for a block."""
    server = RedisServer.create(program, folder, settings)
    try:
        yield server
    finally:
        server.kill()


async def share(redis: RedisServer, tenant: Tenant) -> None:
    """The tenant's sidecars have a login for it."""
    await redis.admit(tenant.role)
    path = tenant.config_dir / CREDENTIALS_FILE
    credentials = replace(Credentials.from_json(path.read_text()), cache=redis.login(tenant.role))
    path.write_text(credentials.to_json())


class Sidecar(Protocol):
    """What runs a bulletin over a door of its own."""

    bulletin: Bulletin
    door: Door


@asynccontextmanager
async def running(*sidecars: Sidecar) -> AsyncIterator[None]:
    """Their bulletins run, and none of them ends before the block does; then their doors are closed."""
    tasks = [asyncio.create_task(each.bulletin.run()) for each in sidecars]
    try:
        yield
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for each in sidecars:
            await each.door.close()


async def eventually(is_so: Any, timeout_s: float = 30.0) -> None:  # noqa: ANN401  any function without arguments
    """Returns once it is so; a test that hangs fails."""
    async with asyncio.timeout(timeout_s):
        while not is_so():  # noqa: ASYNC110  it is another program that changes
            await asyncio.sleep(0.005)
