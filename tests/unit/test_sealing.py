"""Who seals and opens: by the keyring and the policy in force, and what is told of what cannot be opened."""

import base64
import os
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest

from engram_contract.credentials import Credentials, DataKey, Keyring
from engram_contract.names import API_VERSION, TENANT_KIND
from engram_contract.shardmap import Node, Shard, Strategy, first_map
from engram_contract.slots import MemoryId
from engram_contract.spec import TenantSpec
from engram_sidecar.config import Config
from engram_sidecar.envelope import key_version
from engram_sidecar.errors import KeyMissing, SealBroken
from engram_sidecar.records import Draft, Memory
from engram_sidecar.sealing import INLINE_BYTES, Refusal, Vault
from engram_sidecar.wire import memory_document

ID = MemoryId(7, UUID("017f22e2-79b0-7cc3-98c4-dc0c0c07398f"))
NOON = datetime(2026, 5, 31, 12, tzinfo=UTC)
MANIFEST = {
    "apiVersion": API_VERSION,
    "kind": TENANT_KIND,
    "metadata": {"name": "support", "namespace": "agents"},
    "spec": {"clusterRef": {"name": "local"}},
}
SHARD = Shard("s0", "engram", (Node("n", "localhost", 5432),))
POLICY = TenantSpec.from_resource(MANIFEST).policy()
CONFIG = Config(first_map("t_a", Strategy.USER, (SHARD,), "default"), POLICY, Credentials("t_a", ("x",)))


def keyring(current: int, *versions: int) -> Keyring:
    """Keys that are each their version, 32 times."""
    keys = tuple(DataKey(each, base64.b64encode(bytes([each]) * 32).decode()) for each in versions)
    return Keyring(current, keys, base64.b64encode(bytes(32)).decode())


class Stage:
    """A vault whose configuration changes."""

    def __init__(self, *, encrypts: bool = True, keys: Keyring | None = None) -> None:
        self.config = replace(CONFIG, policy=replace(POLICY, encryption=encrypts), keyring=keys)
        self.refused: list[tuple[MemoryId, Refusal]] = []
        self.vault = Vault(lambda: self.config, os.urandom, lambda *refused: self.refused.append(refused))

    async def stored(self, draft: Draft, memory_id: MemoryId = ID) -> Memory:
        """The memory as the store would give it back."""
        sealed = await self.vault.sealer.seal(memory_id, draft)
        shown = draft if sealed is None else Draft()
        return Memory(
            memory_id,
            (),
            None,
            "episodic",
            None,
            None,
            None,
            shown.content,
            shown.value,
            None,
            NOON,
            NOON,
            None,
            1,
            sealed,
        )  # fmt: skip


@pytest.mark.parametrize("content", ["", "tea", "x" * (INLINE_BYTES + 1)], ids=["empty", "short", "beside the loop"])
async def test_what_was_sealed_is_opened(content: str) -> None:
    stage = Stage(keys=keyring(2, 1, 2))
    memory = await stage.stored(Draft(content, '{"a":1}'))
    assert memory.sealed is not None
    assert key_version(memory.sealed) == 2
    opened = await stage.vault.sealer.open(memory)
    assert (opened.content, opened.value, opened.sealed) == (content, '{"a":1}', None)
    assert stage.refused == []


async def test_a_policy_that_does_not_encrypt_seals_nothing_and_opens_what_is_sealed() -> None:
    stage = Stage(keys=keyring(1, 1))
    sealed = await stage.stored(Draft("tea"))
    stage.config = replace(stage.config, policy=replace(POLICY, encryption=False))
    assert (await stage.stored(Draft("tea"))).sealed is None
    assert (await stage.vault.sealer.open(sealed)).content == "tea"
    assert stage.vault.sealer.key_version == 0


async def test_without_a_key_nothing_is_sealed() -> None:
    stage = Stage()
    with pytest.raises(KeyMissing):
        await stage.stored(Draft("tea"))


async def test_another_key_is_used_as_soon_as_it_is_in_force() -> None:
    stage = Stage(keys=keyring(1, 1))
    before = stage.vault.sealer
    assert stage.vault.sealer is before
    old = await stage.stored(Draft("tea"))
    stage.config = replace(stage.config, keyring=keyring(2, 1, 2))
    new = await stage.stored(Draft("tea"))
    assert [key_version(each.sealed or b"") for each in (old, new)] == [1, 2]
    assert (await stage.vault.sealer.open(old)).content == "tea"
    assert stage.vault.sealer.indexer.lexemes("tea") == before.indexer.lexemes("tea")
    assert [stage.vault.sealer.has_key(version) for version in (0, 1, 2, 3)] == [True, True, True, False]


async def test_what_cannot_be_opened_is_told_with_its_memory() -> None:
    stage = Stage(keys=keyring(1, 1))
    memory = await stage.stored(Draft("tea"))
    moved = replace(memory, id=MemoryId(8, ID.uuid))
    with pytest.raises(SealBroken):
        await stage.vault.sealer.open(moved)
    stage.config = replace(stage.config, keyring=keyring(2, 2))
    with pytest.raises(KeyMissing):
        await stage.vault.sealer.open(memory)
    assert [(id_, type(why)) for id_, why in stage.refused] == [(moved.id, SealBroken), (ID, KeyMissing)]


async def test_what_nobody_opened_is_never_shown_as_empty() -> None:
    memory = await Stage(keys=keyring(1, 1)).stored(Draft("tea"))
    with pytest.raises(ValueError, match=str(ID)):
        memory_document(memory, "s0")
    assert "sealed" not in repr(memory)


async def test_words_and_tokens_are_hashed_with_the_index_key() -> None:
    ours, theirs = Stage(keys=keyring(1, 1)), Stage(keys=replace(keyring(1, 1), index=keyring(5, 5).keys[0].key))
    draft = Draft("zeppelin", '{"a":1}')
    indexed = [await stage.vault.sealer.indexer.index(draft) for stage in (ours, theirs, Stage(encrypts=False))]
    assert len({each.terms for each in indexed}) == 3
    assert ["'=" in each.terms for each in indexed] == [True, True, False]
    assert {each.term_count for each in indexed} == {1}


@pytest.mark.parametrize("encrypts", [True, False])
async def test_two_texts_come_back_under_their_name(encrypts: bool) -> None:
    sealer = Stage(encrypts=encrypts, keys=keyring(1, 1)).vault.sealer
    sealed = await sealer.seal_text("a name", "3", "{}")
    assert await sealer.open_text("a name", sealed) == ("3", "{}")
    assert (b"{}" in sealed) is not encrypts


@pytest.mark.parametrize("kept", [b"5", b"null", b'["1"]', b"[1,2]", b'["1","2","3"]', b"garbage"])
async def test_what_is_no_pair_of_texts_is_said_to_be_none(kept: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  whatever it says
        await Stage(encrypts=False).vault.sealer.open_text("a name", kept)
