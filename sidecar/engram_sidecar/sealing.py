"""Encryption of memories as the data plane uses it: the keyring and the policy in force to what seals and opens.

Promises
1. A tenant whose policy encrypts stores nothing in the clear: without a key a write is refused (KeyMissing).
2. What cannot be opened is refused, counted and told, and shown by no answer: not as text, not as an empty memory.
3. A request has one Sealer throughout: what is indexed for it and what is sealed belong together.
"""

import asyncio
import base64
import hashlib
import json
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

from engram_contract.credentials import Keyring
from engram_contract.names import length_prefixed
from engram_contract.slots import MemoryId
from engram_sidecar.config import Config
from engram_sidecar.envelope import NONCE_BYTES, Bound, Keys
from engram_sidecar.errors import KeyMissing, SealBroken
from engram_sidecar.idempotency import Claim, Once, digest
from engram_sidecar.indexing import Indexer
from engram_sidecar.judging import Tokens
from engram_sidecar.records import Draft, Memory
from engram_sidecar.timing import part
from engram_sidecar.wire import encode

KIND: Final = "memory"
SEARCH: Final = "search"
# Beyond this AES-GCM would hold the loop for more than about .5 ms (64 KiB: 50 us, 1 MiB: .5 to 2 ms); beside it the
# interpreter is free, as the cipher drops the GIL.
INLINE_BYTES: Final = 262_144
EACH_BYTES: Final = 8_192  # a short one and what is done around it take as long as so much of a long one

Refusal = KeyMissing | SealBroken
Work = ParamSpec("Work")
Done = TypeVar("Done")


class Sealer:
    """Seals and opens one tenant's memories, by one keyring and one word of the policy."""

    def __init__(
        self,
        tenant: str,
        keyring: Keyring | None,
        random_bytes: Callable[[int], bytes],
        on_refused: Callable[[MemoryId, Refusal], None],
        *,
        encrypts: bool,
    ) -> None:
        self.encrypts = encrypts
        self._keys = Keys(keyring)
        index = b"" if keyring is None else base64.b64decode(keyring.index)
        self.tokens = Tokens(hashlib.blake2b(tenant.encode(), key=index, person=b"engram-filters").digest())
        self._index = index
        self.indexer = Indexer(tenant, index, self.tokens if encrypts else None)
        self._tenant = tenant
        self._random_bytes = random_bytes
        self._on_refused = on_refused
        self._unpaused_bytes = 0

    def claim(self, once: Once, agent: str) -> Claim:
        """What stands for an agent's key and its request in a shard.

        Who has not the tenant's index key cannot try out a dictionary.
        """
        owner = length_prefixed(self._tenant, agent)
        asked = length_prefixed(*once.request)
        return Claim(digest(self._index, owner, once.key.encode()), digest(self._index, owner, asked))

    @property
    def key_version(self) -> int:
        """Under which key memories are stored now; 0 for under none, and where there is no key to encrypt with."""
        return self._keys.current if self.encrypts else 0

    def has_key(self, version: int) -> bool:
        """Whether what is under this key can be opened; 0 is under none."""
        return version == 0 or version in self._keys

    async def seal(self, memory_id: MemoryId, draft: Draft) -> bytes | None:
        """The envelope of content and value; None if they are stored as they are. Raises KeyMissing."""
        if not self.encrypts:
            return None
        nonce, texts = self._random_bytes(NONCE_BYTES), (draft.content, draft.value)
        with part("seal"):
            size = len(draft.content) + len(draft.value)
            return await self._run(size, self._keys.seal, self._bound(memory_id), texts, nonce)

    def search_name(self, asked: bytes) -> str:
        """What stands for a search where its results are kept. Who has not the index key cannot try out words."""
        return digest(self._index, self._tenant.encode(), asked).hex

    async def seal_text(self, name: str, first: str, second: str) -> bytes:
        """Two texts that are kept under this name; as they are, if the tenant's are. Raises KeyMissing."""
        if not self.encrypts:
            return encode((first, second))
        nonce, bound = self._random_bytes(NONCE_BYTES), Bound(self._tenant, SEARCH, name)
        return await self._run(len(second), self._keys.seal, bound, (first, second), nonce)

    async def open_text(self, name: str, sealed: bytes) -> tuple[str, str]:
        """What `seal_text` sealed. Raises KeyMissing, SealBroken, ValueError."""
        if not self.encrypts:
            match json.loads(sealed):
                case [str() as first, str() as second]:
                    return first, second
            raise ValueError(name)
        return await self._run(len(sealed), self._keys.open, Bound(self._tenant, SEARCH, name), sealed)

    async def open(self, memory: Memory) -> Memory:
        """The memory in the clear. Raises KeyMissing, SealBroken, which are told."""
        try:
            return await self.open_quietly(memory)
        except (KeyMissing, SealBroken) as refusal:
            self._on_refused(memory.id, refusal)
            raise

    async def open_quietly(self, memory: Memory) -> Memory:
        """As `open`, of what need not be right: nobody is told."""
        if memory.sealed is None:
            return memory
        content, value = await self._texts(memory.id, memory.sealed)
        return memory.opened(content, value)

    async def _texts(self, memory_id: MemoryId, envelope: bytes) -> tuple[str, str]:
        with part("open"):
            return await self._run(len(envelope), self._keys.open, self._bound(memory_id), envelope)

    async def _run(self, size: int, work: Callable[Work, Done], *args: Work.args, **named: Work.kwargs) -> Done:
        """What the work gives: on the loop if it is short, else beside it."""
        if await self._is_inline(size):
            return work(*args, **named)
        return await asyncio.to_thread(work, *args, **named)

    async def _is_inline(self, size: int) -> bool:
        """True for what is short enough for the loop; of many short ones, other tasks go on between two."""
        self._unpaused_bytes += size + EACH_BYTES
        if self._unpaused_bytes > INLINE_BYTES:
            self._unpaused_bytes = 0
            await asyncio.sleep(0)
        return size <= INLINE_BYTES

    def _bound(self, memory_id: MemoryId) -> Bound:
        return Bound(self._tenant, KIND, str(memory_id))


class Vault:
    """Gives each request the Sealer of the configuration in force."""

    def __init__(
        self,
        config: Callable[[], Config],
        random_bytes: Callable[[int], bytes],
        on_refused: Callable[[MemoryId, Refusal], None],
    ) -> None:
        self._config = config
        self._random_bytes = random_bytes
        self._on_refused = on_refused
        self._made_of: tuple[Keyring | None, bool] | None = None
        self._sealer: Sealer | None = None

    @property
    def sealer(self) -> Sealer:
        """The present one; it is made anew when keyring or policy say something else."""
        config = self._config()
        of = (config.keyring, config.policy.encryption)
        if self._sealer is None or self._made_of != of:
            self._sealer = Sealer(
                config.shard_map.tenant,
                config.keyring,
                self._random_bytes,
                self._on_refused,
                encrypts=config.policy.encryption,
            )
            self._made_of = of
        return self._sealer
