"""The keys of a tenant's data: made once, wrapped by the cluster's key, kept beside the cluster.

The copy in the tenant's own Secret is what sidecars read; it goes with the tenant. This one stays with the volumes, so
a tenant that is made again under its name opens what it stored. Where it is there and does not open, nothing is made in
its place: with another key everything would be lost.
"""

import base64
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Final

from engram_contract.credentials import MAX_KEYS, DataKey, Keyring
from engram_contract.names import KEYS_FILE, ROTATE_KEY_ANNOTATION
from engram_contract.spec import ClusterSpec
from engram_operator.clients.kube import SECRETS, Kube, Manifest
from engram_operator.clients.sealing import new_key, unwrapped, wrapped
from engram_operator.errors import KeyUnreadable
from engram_operator.leadership import Term
from engram_operator.manifests.meta import Owner
from engram_operator.manifests.tenant import build_key_secret, key_secret
from engram_operator.reconcile.writing import left_s

CURRENT: Final = "current"
INDEX: Final = "index"
KEY: Final = "key-"
FIELD_MANAGER: Final = "engram-operator-keys"


@dataclass(frozen=True, slots=True)
class KeyPlace:
    """Whose keys: a tenant's role in a cluster, with the key that wraps them."""

    cluster: ClusterSpec
    owner: Owner
    role: str
    wrapping_key: str = field(repr=False)

    def manifest(self, ring: Keyring, request: str) -> Manifest:
        """The Secret that holds these keys."""
        data = _data(ring, self.role, self.wrapping_key, request)
        return build_key_secret(self.cluster, self.owner, self.role, data)


@dataclass(frozen=True, slots=True)
class Kept:
    """The tenant's keys, and why one more that was asked for was not made; empty if nothing was refused."""

    ring: Keyring
    refusal: str = ""


async def keep_keyring(
    kube: Kube, term: Term, place: KeyPlace, asked: str, mounted: Keyring | None, published: int
) -> Kept:
    """The tenant's keys, made if there are none, with one more if `asked` is a new request.

    `mounted` are those in the tenant's own Secret: where the lasting copy is lost, it is made from them. `published` is
    the newest version that sidecars were ever given: keys that have lost one up to it are not taken.

    Raises KeyUnreadable, ApiError, LostLease.
    """
    secret = await kube.find(SECRETS, place.cluster.namespace, key_secret(place.cluster.name, place.role))
    if secret is None:
        ring = _first_keyring(place, mounted, published)
        await kube.create(SECRETS, place.cluster.namespace, place.manifest(ring, asked), timeout_s=left_s(term))
        return Kept(ring)
    ring, handled = read_keyring(secret, place, published)
    if asked in ("", handled):
        return Kept(ring)
    if ring.current == MAX_KEYS:
        way = f"key {MAX_KEYS}, the last that there is room for, stays in force. Take the annotation away"
        return Kept(ring, f"{ROTATE_KEY_ANNOTATION} is not carried out: {way}")
    version = ring.current + 1
    ring = replace(ring, current=version, keys=(*ring.keys, DataKey(version, new_key())))
    manifest = place.manifest(ring, asked)
    manifest["metadata"]["resourceVersion"] = secret["metadata"]["resourceVersion"]
    await kube.apply(SECRETS, manifest, FIELD_MANAGER, timeout_s=left_s(term))
    return Kept(ring)


def _first_keyring(place: KeyPlace, mounted: Keyring | None, published: int) -> Keyring:
    """The keys where the lasting copy is not there. Raises KeyUnreadable."""
    lasting = key_secret(place.cluster.name, place.role)
    if mounted is not None:
        versions = [each.version for each in mounted.keys]
        _check_whole(versions, mounted.current, published, f"{lasting} is lost, and {KEYS_FILE} in the tenant's own")
        return mounted
    if published:
        way = "Restore one of them; or, for new keys, delete the MemoryTenant and make it again"
        raise KeyUnreadable(f"Secret {lasting} and {KEYS_FILE} of the tenant's own Secret are both lost. {way}")
    return Keyring(1, (DataKey(1, new_key()),), new_key())


def _check_whole(versions: Collection[int], current: int, published: int, name: str) -> None:
    """Nothing; raises KeyUnreadable if a version is missing: what it encrypted could not be read any more."""
    newest = max(*versions, min(published, MAX_KEYS), 0)
    if newest > MAX_KEYS:
        raise KeyUnreadable(f"Secret {name} is damaged. Restore it")
    missing = [str(each) for each in range(1, newest + 1) if each not in versions]
    if missing:
        numbers = f"version{'s' if len(missing) > 1 else ''} {', '.join(missing)}"
        raise KeyUnreadable(f"Secret {name} has lost {numbers} of the keys. Restore it: nothing is made in their place")
    if current != newest:
        raise KeyUnreadable(f"Secret {name} names {current} as current and not the newest, {newest}. Restore it")


def read_keyring(secret: Manifest, place: KeyPlace, published: int) -> tuple[Keyring, str]:
    """The keys in a Secret, and the request that the newest was made for. Raises KeyUnreadable."""
    name = secret["metadata"]["name"]
    try:
        data = {name: base64.b64decode(text).decode() for name, text in (secret.get("data") or {}).items()}
        current, index = _number(data[CURRENT]), data[INDEX]
        versions = sorted(_number(name.removeprefix(KEY)) for name in data if name.startswith(KEY))
    except (ValueError, LookupError) as error:
        raise KeyUnreadable(f"Secret {name} is damaged. Restore it") from error
    _check_whole(versions, current, published, name)

    def opened(text: str, *purpose: str) -> str:
        return unwrapped(place.wrapping_key, text, place.role, *purpose)

    keys = tuple(DataKey(each, opened(data[f"{KEY}{each}"], KEY, str(each))) for each in versions)
    return Keyring(current, keys, opened(index, INDEX)), data.get("request", "")


def _number(text: str) -> int:
    """The version that this text is. Raises ValueError for what is none of ours."""
    number = int(text)
    if text != str(number) or not 1 <= number <= MAX_KEYS:
        raise ValueError("no version of a key")
    return number


def _data(ring: Keyring, role: str, wrapping_key: str, request: str) -> dict[str, str]:
    keys = {f"{KEY}{each.version}": wrapped(wrapping_key, each.key, role, KEY, str(each.version)) for each in ring.keys}
    whole = {CURRENT: str(ring.current), INDEX: wrapped(wrapping_key, ring.index, role, INDEX), **keys}
    return whole | ({"request": request} if request else {})
