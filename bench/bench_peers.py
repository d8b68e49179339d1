"""The sidecar under sixteen callers, beside LangGraph's AsyncPostgresStore under sixteen tasks, on the same Postgres.

The peer's figure is of its own process and knows no HTTP; the sidecar's is through HTTP from another process, with
encryption, the audit, quotas and the words of each text indexed. Both have one core, the load has the other, and
Postgres runs on both. Values are pieces of 1,000 characters of a real text. In turns, the median of ROUNDS counts.

The peer is installed from locks/peers.lock into an environment beside this file, once.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg

from engram import AsyncEngram, Operation
from engram_contract.names import ENV_ADMIN_PORT, ENV_CONFIG_DIR, ENV_HTTP_PORT
from engram_sidecar.config import read_config
from examples.demo.corpus import read_corpus
from examples.demo.local import LocalMode, free_port, local_mode
from rows import Row

HERE = Path(__file__).resolve().parent
LOCK = HERE.parent / "locks" / "peers.lock"
HOME = HERE.parent / ".venv" / "peers"

CALLERS = 16
VALUES = 10_000
VALUE_CHARS = 1_000
USERS = 50
PAGES = 7
BATCH = 500
ROUNDS = 3
TURN_S = 4.0
LIMIT = 10
READY_TIMEOUT_S = 180.0
DATABASE = "peers"
SERVER_CORE, LOAD_CORE = 0, 1

# Of the issue that asked for them: calls a second as a ratio to the peer's.
BARS = {"get": 3.0, "put": 1.0, "search": 2.0}


@dataclass(frozen=True, slots=True)
class Value:
    """What is stored on both sides."""

    user: str
    number: int
    text: str

    @property
    def fields(self) -> dict[str, Any]:
        """As a memory."""
        return {"user": self.user, "content": self.text, "value": {"page": self.number % PAGES}}

    @property
    def of_peer(self) -> tuple[str, int, dict[str, Any]]:
        """As LangGraph stores it."""
        return self.user, self.number, {"content": self.text, "page": self.number % PAGES}


def measure() -> Iterator[Row]:
    """The rows of this benchmark."""
    python = peer_python()
    text = "\n".join(speech.content for speech in read_corpus())
    values = [Value(f"user-{n % USERS}", n, text[n * VALUE_CHARS // 2 :][:VALUE_CHARS]) for n in range(VALUES)]
    with local_mode() as local:
        ids = asyncio.run(fill(local.url, values))
        dsn = asyncio.run(peer_database(local))
        peer = [python, str(HERE / "peer_langgraph.py"), dsn]
        stored = json.dumps([value.of_peer for value in values])
        run([*peer, "load", "0", "0"], stored)
        requests = requests_of(ids, values)
        with sidecar(local) as port:
            load = [sys.executable, str(HERE / "load.py"), "127.0.0.1", str(port)]
            how = [str(TURN_S), str(CALLERS)]
            for verb, bar in BARS.items():
                ours: list[dict[str, float]] = []
                theirs: list[float] = []
                for _ in range(ROUNDS):
                    ours.append(json.loads(run([*load, *how], json.dumps(requests[verb]), LOAD_CORE)))
                    theirs.append(float(run([*peer, verb, *how], stored, SERVER_CORE)))
                yield from to_rows(verb, bar, ours, theirs)


def to_rows(verb: str, bar: float, ours: Sequence[dict[str, float]], theirs: Sequence[float]) -> Iterator[Row]:
    """The ratio, and what it is made of."""
    rate = statistics.median(each["rate"] for each in ours)
    of_peer = statistics.median(theirs)
    peer = f"LangGraph's AsyncPostgresStore: {of_peer:,.0f} a second"
    yield Row.at_least(f"peers_{verb}_ratio", rate / of_peer, "times", bar, peer)
    yield Row.shown(f"peers_{verb}_rate", rate, "a second", peer)
    for name in ("p50_ms", "p99_ms"):
        figure = statistics.median(each[name] for each in ours)
        yield Row.shown(f"peers_{verb}_{name.removesuffix('_ms')}", figure, "ms", f"{CALLERS} callers, one core")


def peer_python() -> str:
    """The interpreter of the peers' environment, made when it is missing or of another lock."""
    python, stamp = HOME / "bin" / "python", HOME / "lock"
    lock = LOCK.read_text(encoding="utf-8")
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != lock:
        run([sys.executable, "-m", "venv", "--clear", str(HOME)])
        run([str(python), "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(LOCK)])
        stamp.write_text(lock, encoding="utf-8")
    return str(python)


async def fill(url: str, values: Sequence[Value]) -> list[str]:
    """The ids of the values in the sidecar's shards."""
    ids: list[str] = []
    async with AsyncEngram(url) as client:
        await client.wait_ready(READY_TIMEOUT_S)
        for first in range(0, len(values), BATCH):
            result = await client.batch(Operation.create(**each.fields) for each in values[first : first + BATCH])
            ids.extend(outcome.memory.id for outcome in result if outcome.memory is not None)
    return ids


async def peer_database(local: LocalMode) -> str:
    """The address of an empty database for the peer, on the server of the first shard."""
    [config_dir] = (local.data_dir / "tenants").iterdir()
    node = read_config(config_dir).shard_map.shards[0].nodes[0]
    password = (local.data_dir / "secrets" / "postgres").read_text(encoding="ascii").strip()
    address = f"postgresql://postgres:{quote(password)}@{node.host}:{node.port}"
    admin = await asyncpg.connect(f"{address}/postgres")
    await admin.execute(f"CREATE DATABASE {DATABASE}")
    await admin.close()
    return f"{address}/{DATABASE}"


def requests_of(ids: Sequence[str], values: Sequence[Value]) -> dict[str, list[str]]:
    """Whole requests of each kind."""
    return {
        # A strong read is asked of the shard: what the sidecar keeps is bench_hits.py's.
        "get": [request("GET", f"/v1/memories/{memory}", consistency="strong") for memory in ids],
        "put": [
            request("PUT", f"/v1/memories/{memory}", each.fields) for memory, each in zip(ids, values, strict=True)
        ],
        "search": [
            request("POST", "/v1/search", {"user": each.user, "filter": {"value": {"page": page}}, "limit": LIMIT})
            for each in values[:USERS]
            for page in range(PAGES)
        ],
    }


def request(method: str, target: str, body: object = None, consistency: str = "session") -> str:
    """The text of a request, of ASCII only."""
    head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n"
    if consistency != "session":
        head += f"Engram-Consistency: {consistency}\r\n"
    if body is None:
        return f"{head}\r\n"
    payload = json.dumps(body)
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n{payload}"


@contextmanager
def sidecar(local: LocalMode, folder: Path | None = None) -> Iterator[int]:
    """The port of a sidecar as it runs in a pod, on one core, with the local tenant's configuration or the folder's."""
    [config_dir] = (local.data_dir / "tenants").iterdir() if folder is None else [folder]
    port = free_port()
    admin_port = port + 1
    ports = {ENV_CONFIG_DIR: str(config_dir), ENV_HTTP_PORT: str(port), ENV_ADMIN_PORT: str(admin_port)}
    command = on_core(SERVER_CORE, [sys.executable, "-m", "engram_sidecar"])
    process = subprocess.Popen(command, env=os.environ | ports, stderr=subprocess.DEVNULL)  # noqa: S603  our own
    try:
        while not is_ready(admin_port):
            if process.poll() is not None:
                reason = f"the sidecar ended with status {process.returncode}"
                raise RuntimeError(reason)
        yield port
    finally:
        process.terminate()
        process.wait()


def is_ready(port: int) -> bool:
    """Whether the sidecar says so."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1) as answer:
            return bool(answer.status == 200)  # noqa: PLR2004
    except (urllib.error.URLError, OSError):
        return False


def on_core(core: int, command: Sequence[str]) -> list[str]:
    """The command on one core; on a machine of one it shares it."""
    return ["taskset", "-c", str(core), *command] if (os.cpu_count() or 1) > core else [*command]


def run(command: Sequence[str], given: str = "", core: int | None = None) -> str:
    """What the command prints. Raises CalledProcessError."""
    whole = command if core is None else on_core(core, command)
    return subprocess.run(whole, input=given, text=True, check=True, stdout=subprocess.PIPE).stdout  # noqa: S603
