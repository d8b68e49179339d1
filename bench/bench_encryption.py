"""What encryption costs a put: the time of sealing and of the value's tokens, as a part of the whole put's.

Puts by the sidecar's own pipeline into a real shard, one after another and without HTTP, so the true part is smaller.
Beside it the same as a part of the loop's processor time, and the same puts of a tenant that does not encrypt.
"""

import asyncio
import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from engram_contract.policy import Limits
from engram_contract.resilience import Resilience
from engram_contract.slots import MemoryId
from engram_sidecar.config import InForce, read_config
from engram_sidecar.gate import Gate
from engram_sidecar.guard import Guard
from engram_sidecar.pipeline import Pipeline, World
from engram_sidecar.records import Draft, Put
from engram_sidecar.sealing import Sealer, Vault
from engram_sidecar.store import Store
from rows import Row
from tests.harness import KEYRING, RealServer, create_tenant, no_recall, server_folder

PUTS = 100
ROUNDS = 3
TIMEOUT_S = 10.0
BAR_RATIO = 0.1  # of the put's processor time
SENTENCE = "The agent met the customer about the invoice of the third quarter and promised an answer by friday. "
SIZES = {"1 KB": 1_000, "8 KB": 8_000}


class Clock:
    """What passes within what is measured: time, and this thread's processor time."""

    def __init__(self) -> None:
        self.passed_s = self.worked_s = 0.0

    def __enter__(self) -> None:
        """The time begins."""
        self.passed_s -= time.perf_counter()
        self.worked_s -= time.thread_time()

    def __exit__(self, *_: object) -> None:
        """The time ends."""
        self.worked_s += time.thread_time()
        self.passed_s += time.perf_counter()


class TimedSealer(Sealer):
    """Notes what sealing takes, and the tokens: they are made once more here, as the indexer makes them unseen."""

    clock: Clock

    async def seal(self, memory_id: MemoryId, draft: Draft) -> bytes | None:
        """The envelope."""
        if not self.encrypts:
            return None
        with self.clock:
            self.tokens.of_value(draft.value)
            return await super().seal(memory_id, draft)


class TimedVault(Vault):
    """Gives one sealer, whose time is noted."""

    def __init__(self, tenant: str, clock: Clock, *, encrypts: bool) -> None:
        self._only = TimedSealer(tenant, KEYRING, os.urandom, lambda *_: None, encrypts=encrypts)
        self._only.clock = clock

    @property
    def sealer(self) -> Sealer:
        """The only one."""
        return self._only


async def spent(folder: Path, size: int, *, encrypts: bool) -> tuple[Clock, Clock]:
    """For PUTS puts of memories of this size, and for sealing within them."""
    config = read_config(folder)
    config = replace(config, policy=replace(config.policy, encryption=encrypts))
    store, sealing, whole = Store(config.credentials), Clock(), Clock()
    vault = TimedVault(config.shard_map.tenant, sealing, encrypts=encrypts)
    world = World(time.time, time.monotonic, os.urandom)
    gate = Gate(store, Resilience)
    guard = Guard(gate, Resilience, lambda _: None, lambda _: None)
    pipeline = Pipeline(guard, InForce(config), vault, no_recall(config, guard), Limits(), world)
    value = json.dumps({"customer": "acme", "amount": 17.5, "open": True, "tags": ["invoice", "q3"]})
    draft = Draft((SENTENCE * (size // len(SENTENCE) + 1))[: size - len(value)], value, user="ada")
    slot = (await pipeline.ids_for(None)).new_id(draft).slot
    try:
        await pipeline.put(Put(MemoryId(slot, uuid4()), draft))
        sealing.passed_s = sealing.worked_s = 0.0
        with whole:
            for _ in range(PUTS):
                await pipeline.put(Put(MemoryId(slot, uuid4()), draft))
    finally:
        await gate.close()
        await store.close()
    return whole, sealing


def measure() -> Iterator[Row]:
    """Per size: the part of sealing, and the ratio of both puts."""
    with server_folder() as folder, TemporaryDirectory() as config:
        server = RealServer.create(folder / "s0", 18)
        try:
            asyncio.run(create_tenant("bench", [server], Path(config)))
            for name, size in SIZES.items():
                clear, sealed, sealing = [], [], []
                for _ in range(ROUNDS):
                    clear.append(asyncio.run(spent(Path(config), size, encrypts=False))[0])
                    whole, part = asyncio.run(spent(Path(config), size, encrypts=True))
                    sealed.append(whole)
                    sealing.append(part)
                put_s, part_s = sum(each.passed_s for each in sealed), sum(each.passed_s for each in sealing)
                put_work_s, part_work_s = sum(each.worked_s for each in sealed), sum(each.worked_s for each in sealing)
                yield Row.at_most(f"put.sealing.{name}", part_s / put_s, "ratio", BAR_RATIO, "the whole put's time")
                yield Row.shown(
                    f"put.sealing_cpu.{name}", part_work_s / put_work_s, "ratio", "the sidecar's processor time of it"
                )
                clear_s = sum(each.passed_s for each in clear)
                yield Row.shown(f"put.sealed.{name}", put_s / clear_s, "ratio", "the same put in the clear")
                clear_work_s = sum(each.worked_s for each in clear)
                peer = "the same put in the clear, processor time"
                yield Row.shown(f"put.sealed_cpu.{name}", put_work_s / clear_work_s, "ratio", peer)
        finally:
            server.stop("immediate")
