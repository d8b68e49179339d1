"""A read by id that the second cache level answers, beside aiohttp and redis-py put together by hand on the same Redis.

The sidecar's first level is off, so that each read asks Redis, and its tenant has no audit; what it reads is encrypted,
and it says Age, ETag and session. The peer sends what stands in Redis. Each has one core and the load the other, in
turns; the median of ROUNDS counts. MEMORIES memories of about 1 KB, which CALLERS callers read at random.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from bench_hits import TURN_S, loaded, without_audit
from bench_peers import READY_TIMEOUT_S, SERVER_CORE, Value, fill, on_core, request, sidecar

from engram_contract.caching import Caching
from engram_contract.credentials import Credentials
from engram_contract.names import CREDENTIALS_FILE, POLICY_FILE
from engram_contract.policy import Policy
from engram_operator.manifests.redis import OPERATOR_USER
from examples.demo.local import free_port, local_mode
from rows import Row
from tests.redis_server import PASSWORD, RedisServer, prepare_redis, redis_server

HERE = Path(__file__).resolve().parent
MEMORIES = 500
ROUNDS = 5
BAR = 0.75
SETTLE_S = 6.0  # who asked the shard of late asks it again
PEER_USER = "by_hand"


def measure() -> Iterator[Row]:
    """The rows of this benchmark."""
    with TemporaryDirectory() as name, redis_server(prepare_redis(Path(name)), Path(name) / "server") as redis:
        yield from beside(redis, Path(name) / "config")


def beside(redis: RedisServer, config: Path) -> Iterator[Row]:
    """The rows, with this Redis; the tenant's configuration goes into the folder."""
    with local_mode() as local:
        ids = asyncio.run(fill(local.url, [Value("ada", number, "x" * 700) for number in range(MEMORIES)]))
        asyncio.run(only_second_level(redis, without_audit(local, config)))
        paths = [f"/v1/memories/{memory}" for memory in ids]
        asked = json.dumps([request("GET", path) for path in paths])
        with sidecar(local, config) as port, by_hand(redis) as peer_port:
            bodies = [read(port, path) for path in paths]
            time.sleep(SETTLE_S)
            asyncio.run(put_all(redis, dict(zip(paths, bodies, strict=True))))
            before, ours, theirs = shared_hits(port), [], []
            for _ in range(ROUNDS):
                ours.append(loaded(port, asked)["rate"])
                theirs.append(loaded(peer_port, asked)["rate"])
            by_redis = (shared_hits(port) - before) / (sum(ours) * TURN_S)
            rate, peer_rate = statistics.median(ours), statistics.median(theirs)
            peer = f"redis-py and aiohttp by hand: {peer_rate:,.0f} a second"
            yield Row.at_least("shared_ratio", rate / peer_rate, "times", BAR, peer)
            yield Row.shown("shared_rate", rate, "a second", f"{by_redis:.1%} of them answered by Redis")


async def only_second_level(redis: RedisServer, config: Path) -> None:
    """The tenant of this configuration has a login for Redis, and its sidecars keep nothing themselves."""
    credentials = Credentials.from_json((config / CREDENTIALS_FILE).read_text(encoding="utf-8"))
    await redis.admit(credentials.role)
    credentials = replace(credentials, cache=redis.login(credentials.role))
    (config / CREDENTIALS_FILE).write_text(credentials.to_json(), encoding="utf-8")
    policy = Policy.from_json((config / POLICY_FILE).read_text(encoding="utf-8"))
    policy = replace(policy, cache=Caching(local_entries=0))
    (config / POLICY_FILE).write_text(policy.to_json(), encoding="utf-8")


async def put_all(redis: RedisServer, values: dict[str, bytes]) -> None:
    """What the peer reads, with its user."""
    await redis.run("ACL", "SETUSER", PEER_USER, "reset", "on", f">{PASSWORD}", "~/v1/*", "+get")
    async with redis.client(OPERATOR_USER) as client:
        await client.mset(values)


def read(port: int, path: str) -> bytes:
    """The body of an answer."""
    with urllib.request.urlopen(f"http://localhost:{port}{path}", timeout=READY_TIMEOUT_S) as answer:
        return bytes(answer.read())


def shared_hits(port: int) -> float:
    """How many reads the sidecar's second level answered so far; its probes are on the next port."""
    lines = read(port + 1, "/metrics").decode().splitlines()
    wanted = 'engram_cache_reads_total{level="shared",outcome="hit"}'
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(wanted))


@contextmanager
def by_hand(redis: RedisServer) -> Iterator[int]:
    """The port of the peer, on the servers' core."""
    port = free_port()
    script = [sys.executable, str(HERE / "peer_redis.py"), str(port), str(redis.port), PEER_USER, PASSWORD]
    process = subprocess.Popen(on_core(SERVER_CORE, script))  # noqa: S603  our own
    try:
        yield port
    finally:
        process.terminate()
        process.wait()
