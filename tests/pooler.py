"""A real PgBouncer before a test's server, configured as the operator configures it.

It has to be 1.21 or later (prepared statements in transaction mode). Debian 12 has an older one, so where no newer one
is installed that of Debian 13 is fetched by apt, with the libraries that it needs, into a folder of its own: nothing of
the machine is changed.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from engram_cli.account import find_account
from engram_contract.names import API_VERSION, CLUSTER_KIND, POOLER_PORT, POSTGRES_PORT
from engram_contract.spec import ClusterSpec
from engram_operator.clients.roles import keep_pooler
from engram_operator.manifests.pooler import POOLER_ROLE, SOCKETS_DIR, build_pooler_file
from tests.harness import PASSWORD, RealServer
from tests.ports import free_port

OLDEST: Final = (1, 21)
SUITE: Final = "trixie"
PACKAGES: Final = (
    "pgbouncer", "libc6", "libcares2", "libevent-2.1-7t64", "libpam0g", "libaudit1", "libcap-ng0", "libssl3t64",
    "zlib1g", "libzstd1", "libsystemd0", "libcap2",
)  # fmt: skip
KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
LIBRARIES: Final = "usr/lib/x86_64-linux-gnu"
START_S: Final = 10.0
STOP_S: Final = 10.0
FETCH_S: Final = 300


class NoPooler(Exception):
    """There is none, and none can be had; the message says why."""


def prepare_pooler(folder: Path) -> tuple[str, ...]:
    """The command that runs PgBouncer; whatever has to be unpacked for it lies in `folder`. Raises NoPooler."""
    installed = shutil.which("pgbouncer")
    if installed and version_of((installed,)) >= OLDEST:
        return (installed,)
    if not all(shutil.which(each) for each in ("apt-get", "dpkg-deb")):
        raise NoPooler("no PgBouncer of 1.21 or later is installed, and only apt could bring one")
    root = folder / "pgbouncer"
    for package in _fetched():
        subprocess.run(["dpkg-deb", "-x", package, root], check=True)  # noqa: S607  found above
    root.chmod(0o755)
    libraries = root / LIBRARIES
    command = (
        str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries), str(root / "usr/sbin/pgbouncer"),
    )  # fmt: skip
    if version_of(command) < OLDEST:
        raise NoPooler("the PgBouncer that apt brought is too old")
    return command


def version_of(command: Sequence[str]) -> tuple[int, int]:
    """Major and minor number."""
    said = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.match(r"PgBouncer (\d+)\.(\d+)", said)
    assert found is not None, said
    return int(found[1]), int(found[2])


def _fetched() -> list[Path]:
    """The packages, fetched once on this machine."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / f"engram-pooler-{SUITE}"
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=cache.parent) as name:
            _fetch(Path(name))
            try:
                (Path(name) / "packages").rename(cache)
            except OSError:
                if not cache.exists():  # else somebody else was faster
                    raise
    return sorted(cache.glob("*.deb"))


def _fetch(folder: Path) -> None:
    """The packages of the other Debian lie in `folder`/packages, from the mirror that this machine uses."""
    asked = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    mirrors = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()
    mirror = next((each for each in mirrors if "security" not in each), None)
    if mirror is None:
        raise NoPooler("no PgBouncer of 1.21 or later is installed, and apt knows no mirror")
    (folder / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror} {SUITE} main\n")
    for each in ("packages", "lists/partial", "cache/archives/partial"):
        (folder / each).mkdir(parents=True)
    options = {
        "Dir::Etc::sourcelist": folder / "sources.list", "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": folder / "lists", "Dir::Cache": folder / "cache", "APT::Sandbox::User": "root",
    }  # fmt: skip
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
    for step in (["update"], ["download", *PACKAGES]):
        done = subprocess.run(
            [*apt, *step], cwd=folder / "packages", capture_output=True, text=True, check=False, timeout=FETCH_S
        )
        if done.returncode:
            raise NoPooler(f"no PgBouncer of 1.21 or later is installed, and apt {step[0]} brought none")


@dataclass(frozen=True, slots=True)
class Pooler:
    """A running PgBouncer before one server."""

    port: int
    server: RealServer
    process: subprocess.Popen[bytes]


def cluster(connections: int) -> ClusterSpec:
    """A cluster whose pooler has so many connections to each database."""
    return ClusterSpec.from_resource(
        {
            "apiVersion": API_VERSION,
            "kind": CLUSTER_KIND,
            "metadata": {"name": "pooled", "namespace": "engram"},
            "spec": {
                "postgres": {"tls": {"enabled": False}},
                "pooler": {"enabled": True, "maxConnections": connections},
            },
        }
    )


@contextmanager
def pooler_before(server: RealServer, command: Sequence[str], folder: Path, connections: int = 20) -> Iterator[Pooler]:
    """PgBouncer with the operator's file; other than there it reaches its server by TCP, so it has a password."""
    account, _ = find_account()
    port = free_port()
    text = (
        build_pooler_file(cluster(connections))
        .replace(f"host={SOCKETS_DIR} port={POSTGRES_PORT}", f"host=127.0.0.1 port={server.admin.port}")
        .replace(f"listen_port = {POOLER_PORT}", f"listen_port = {port}")
        .replace("listen_addr = *", "listen_addr = 127.0.0.1")
    )
    folder.mkdir()
    (folder / "users.txt").write_text(f'"{POOLER_ROLE}" "{PASSWORD}"\n')
    (folder / "pgbouncer.ini").write_text(f"{text}auth_file = {folder}/users.txt\n")
    folder.chmod(0o755)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*command, folder / "pgbouncer.ini"], stdout=log, stderr=log, **account.switch)
        try:
            until_s = time.monotonic() + START_S
            while "process up" not in (folder / "log").read_text():
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < until_s, (folder / "log").read_text()
                time.sleep(0.02)
            yield Pooler(port, server, process)
        finally:
            process.send_signal(signal.SIGQUIT)  # at once; SIGTERM waits for the clients to leave
            process.wait(STOP_S)


async def admit_pooler(server: RealServer) -> None:
    """The server takes the pooler, which asks it who else it takes."""
    await keep_pooler(server.admin)
    async with server.session("postgres") as connection:
        await connection.execute(f"ALTER ROLE {POOLER_ROLE} PASSWORD '{PASSWORD}'")
