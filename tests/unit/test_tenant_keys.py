"""The keys of a tenant's data: made once, never made anew over others, and none of them is lost unseen."""

import base64
import copy
from collections.abc import Callable

import pytest

from engram_contract.credentials import MAX_KEYS, DataKey, Keyring
from engram_contract.names import API_VERSION, CLUSTER_KIND
from engram_contract.spec import ClusterSpec
from engram_operator.clients.kube import SECRETS, Manifest
from engram_operator.clients.sealing import new_key
from engram_operator.errors import KeyUnreadable
from engram_operator.leadership import Term
from engram_operator.manifests.meta import Owner
from engram_operator.manifests.tenant import key_secret
from engram_operator.reconcile.keys import Kept, KeyPlace, keep_keyring
from tests.operator_stage import Store

ROLE = "t_x"
CLUSTER = ClusterSpec.from_resource(
    {"apiVersion": API_VERSION, "kind": CLUSTER_KIND, "metadata": {"name": "mem", "namespace": "ns"}, "spec": {}}
)
Damage = Callable[[Manifest], object]


class Stage:
    """An API server with what a tenant's keys are kept in."""

    def __init__(self) -> None:
        self.api, self.published = Store(), 0
        self.place = KeyPlace(CLUSTER, Owner("ns", "mem", "u"), ROLE, new_key())

    async def keep(self, asked: str = "", mounted: Keyring | None = None) -> Kept:
        term = Term(lambda: 0.0, 100.0)
        kept = await keep_keyring(self.api, term, self.place, asked, mounted, self.published)
        self.published = kept.ring.current
        return kept

    async def rotate(self, times: int) -> Kept:
        kept = [await self.keep(f"request {number}") for number in range(times)]
        return kept[-1]

    @property
    def secret(self) -> Manifest:
        return self.api.get(SECRETS, "ns", key_secret("mem", ROLE))

    def lose(self) -> None:
        del self.api.objects[SECRETS.path("ns", key_secret("mem", ROLE))]


def versions(ring: Keyring) -> list[int]:
    return [each.version for each in ring.keys]


async def test_each_request_is_one_more_version() -> None:
    stage = Stage()
    first = (await stage.keep()).ring
    kept = await stage.rotate(2)
    assert (versions(kept.ring), kept.ring.current, kept.refusal) == ([1, 2, 3], 3, "")
    assert kept.ring.keys[0] == first.keys[0]
    assert await stage.keep("request 1") == kept


async def test_a_rotation_too_many_is_refused_and_the_tenant_goes_on() -> None:
    stage = Stage()
    await stage.keep()
    last = await stage.rotate(MAX_KEYS - 1)
    before = copy.deepcopy(stage.secret)
    kept = await stage.keep("one too many")
    assert kept.ring == last.ring
    assert kept.ring.current == MAX_KEYS
    assert "engram.dev/rotate-key" in kept.refusal
    assert str(MAX_KEYS) in kept.refusal
    assert stage.secret == before
    assert await stage.keep() == last, "without the request there is nothing to refuse"


def take(*names: str) -> Damage:
    return lambda data: [data.pop(name) for name in names]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (take("key-1"), "version 1 "),
        (take("key-2"), "version 2 "),
        (take("key-1", "key-3"), "versions 1, 3 "),
        (take("key-4"), "version 4 "),
        (take("key-1", "key-2", "key-3", "key-4"), "versions 1, 2, 3, 4 "),
        (lambda data: data.update({"key-6": data["key-4"]}), "version 5 "),
        (lambda data: data.update(current=base64.b64encode(b"2").decode()) or take("key-3", "key-4")(data), "3, 4 "),
        (lambda data: data.update(current=base64.b64encode(b"1").decode()), "current"),
        (lambda data: data.update(current=base64.b64encode(b"9" * 400).decode()), "damaged"),
        (lambda data: data.update({"key-65": data["key-4"]}), "damaged"),
        (lambda data: data.update({f"key-{10**30}": data["key-4"]}), "damaged"),
        (lambda data: data.update({"key-04": data["key-4"]}), "damaged"),
        (take("current"), "damaged"),
    ],
)
async def test_keys_that_are_not_all_there_are_refused_and_nothing_is_written(damage: Damage, said: str) -> None:
    stage = Stage()
    await stage.keep()
    await stage.rotate(3)
    damage(stage.secret["data"])
    before = copy.deepcopy(stage.secret)
    for asked in ("", "another"):
        with pytest.raises(KeyUnreadable) as refused:
            await stage.keep(asked)
        assert said in str(refused.value)
        assert key_secret("mem", ROLE) in str(refused.value)
    assert stage.secret == before


async def test_the_lasting_copy_is_made_from_the_mounted_one_only_if_that_is_whole() -> None:
    stage = Stage()
    await stage.keep()
    ring = (await stage.rotate(2)).ring
    stage.lose()
    for kept in (ring.keys[1:], ring.keys[:2], (*ring.keys, DataKey(2**63 - 1, new_key()))):
        with pytest.raises(KeyUnreadable):
            await stage.keep(mounted=Keyring(kept[-1].version, kept, ring.index))
    with pytest.raises(KeyUnreadable, match="both"):
        await stage.keep()
    assert stage.api.objects == {}
    assert (await stage.keep(mounted=ring)).ring == ring


async def test_a_tenant_of_which_nothing_was_published_gets_new_keys() -> None:
    stage = Stage()
    assert versions((await stage.keep()).ring) == [1]
