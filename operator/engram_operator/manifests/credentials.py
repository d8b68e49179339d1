"""The cluster's passwords and certificates as values, and the Secrets that hold them.

Promises
1. Credentials that were read are whole: a missing key, text that is no base64 or an unknown letter raises ValueError
   with the key's name, never with what stands there.
2. With reclaim policy Retain, what the volumes need to be opened again outlives the cluster: the passwords and the CA.
   (Roles and passwords lie in the volume; new ones would open nothing.)

The letter is which of two roles replicates: a rotation makes the other one, changes the letter, then drops the first.

Pure; passwords are arguments. Source: Patroni, YAML configuration (postgresql.authentication, restapi.authentication).
"""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Final

from engram_contract.names import PROTECTED_LABEL
from engram_contract.spec_cluster import ClusterSpec
from engram_contract.spec_parts import VolumeReclaim
from engram_operator.manifests.meta import CLUSTER, Manifest, Owner, build_labels, build_meta
from engram_operator.manifests.names import CREDENTIALS_FILE, ClusterNames

SUPERUSER: Final = "postgres"
RESTAPI_USER: Final = "engram"
REPLICATORS: Final = {"a": "replicator_a", "b": "replicator_b"}
REWINDERS: Final = {"a": "rewinder_a", "b": "rewinder_b"}
TLS_DIR: Final = "/etc/engram/tls"
CERTIFICATE_FILE: Final = "tls.crt"
KEY_FILE: Final = "tls.key"
CA_FILE: Final = "ca.crt"


@dataclass(frozen=True, slots=True)
class Credentials:
    """All passwords of a cluster; `letter` is a or b."""

    cluster_id: str
    superuser: str = field(repr=False)
    letter: str
    replication: str = field(repr=False)
    rewind: str = field(repr=False)
    restapi: str = field(repr=False)
    pooler: str = field(repr=False)
    redis: str = field(repr=False)
    superuser_previous: str = field(repr=False, default="")  # while a rotation has not reached every shard
    rotation: str = ""  # the request that these were made for
    key: str = field(repr=False, default="")  # that wraps the keys of tenants' data, in base64; never changes

    @classmethod
    def from_data(cls, data: Mapping[str, str]) -> "Credentials":
        """What the data of a Secret says; ValueError names the key that is missing or wrong."""
        known = [each for each in fields(cls) if each.default is MISSING or _key(each.name) in data]
        read = {each.name: _read(data, _key(each.name)) for each in known}
        if read["letter"] not in REPLICATORS:
            raise ValueError("the Secret's key letter is neither a nor b")
        return cls(**read)

    @property
    def data(self) -> dict[str, str]:
        """The same as the data of a Secret."""
        return {_key(name): _base64(value.encode()) for name, value in asdict(self).items() if value}


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate, its key, and the CAs by which it is to be judged; all PEM."""

    certificate: bytes
    key: bytes = field(repr=False)
    trusted: bytes  # more than one while the CA changes

    @classmethod
    def from_data(cls, data: Mapping[str, str]) -> "KeyPair":
        """What the data of a Secret says; ValueError names the key that is missing or wrong."""
        return cls(*(_read(data, key).encode() for key in (CERTIFICATE_FILE, KEY_FILE, CA_FILE)))


# What a plan is made with before there are passwords; nothing that is made with it is ever applied.
PLACEHOLDER: Final = Credentials("none", "none", "a", "none", "none", "none", "none", "none")


def build_credentials_secret(spec: ClusterSpec, owner: Owner, credentials: Credentials) -> Manifest:
    """All passwords, for the operator."""
    name = ClusterNames(spec.name, spec.namespace).credentials
    return build_secret(build_lasting_meta(spec, name, owner, build_labels(spec.name, CLUSTER)), credentials.data)


def build_keys_secret(spec: ClusterSpec, owner: Owner, data: Mapping[str, bytes]) -> Manifest:
    """The CA with its key, and what it signed: for the operator. The members get theirs in `build_tls_secret`."""
    name = ClusterNames(spec.name, spec.namespace).ca
    meta = build_lasting_meta(spec, name, owner, build_labels(spec.name, CLUSTER))
    return build_secret(meta, {name: _base64(pem) for name, pem in data.items()})


def build_lasting_meta(spec: ClusterSpec, name: str, owner: Owner, labels: Mapping[str, str]) -> Manifest:
    """The metadata of what lives as long as the volumes."""
    guard = {PROTECTED_LABEL: "true"} if spec.deletion_protection else {}
    is_kept = spec.storage.reclaim_policy is VolumeReclaim.RETAIN
    return build_meta(spec.namespace, name, {**labels, **guard}, None if is_kept else owner)


def build_patroni_secret(names: ClusterNames, owner: Owner, credentials: Credentials, *, has_tls: bool) -> Manifest:
    """The passwords that Patroni reads. `has_tls`: members demand each other's certificate."""
    text = build_credentials_file(credentials, has_tls=has_tls)
    meta = build_meta(names.namespace, names.patroni, build_labels(names.cluster, CLUSTER), owner)
    return build_secret(meta, {CREDENTIALS_FILE: _base64(text.encode())})


def build_tls_secret(names: ClusterNames, owner: Owner, pair: KeyPair) -> Manifest:
    """The certificate of the members, and the CAs by which they judge each other."""
    return _build_pair(build_meta(names.namespace, names.tls, build_labels(names.cluster, CLUSTER), owner), pair)


def build_secret(meta: Manifest, data: Mapping[str, str], kind: str = "Opaque") -> Manifest:
    """A Secret; `data` is base64."""
    return {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "type": kind, "data": dict(data)}


def build_credentials_file(credentials: Credentials, *, has_tls: bool) -> str:
    """20-credentials.yml: as whom Patroni speaks to Postgres, and who may give Patroni orders."""
    # Members dial each other by address, which no certificate names; that the cluster's CA signed it says enough.
    tls = {"sslmode": "verify-ca", "sslrootcert": f"{TLS_DIR}/{CA_FILE}"} if has_tls else {}
    users = {
        "superuser": (SUPERUSER, credentials.superuser),
        "replication": (REPLICATORS[credentials.letter], credentials.replication),
        "rewind": (REWINDERS[credentials.letter], credentials.rewind),
    }
    authentication = {role: {"username": user, "password": word, **tls} for role, (user, word) in users.items()}
    restapi = {"username": RESTAPI_USER, "password": credentials.restapi}
    return json.dumps(
        {"postgresql": {"authentication": authentication}, "restapi": {"authentication": restapi}}, indent=1
    )


def _build_pair(meta: Manifest, pair: KeyPair) -> Manifest:
    files = {CERTIFICATE_FILE: pair.certificate, KEY_FILE: pair.key, CA_FILE: pair.trusted}
    return build_secret(meta, {name: _base64(pem) for name, pem in files.items()}, kind="kubernetes.io/tls")


def _key(name: str) -> str:
    """The field as a key of the Secret: `cluster_id` is `cluster-id`."""
    return name.replace("_", "-")


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _read(data: Mapping[str, str], key: str) -> str:
    try:
        value = base64.b64decode(data[key], validate=True).decode()
    except KeyError:
        raise ValueError(f"the Secret has no key {key}") from None
    except (binascii.Error, UnicodeDecodeError):
        raise ValueError(f"the Secret's key {key} is no text in base64") from None
    if not value:
        raise ValueError(f"the Secret's key {key} is empty")
    return value
