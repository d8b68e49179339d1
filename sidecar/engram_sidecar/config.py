"""The tenant's configuration: the files of one folder as values, the one in force, and the watch that replaces it.

    map.json  policy.json  credentials.json  [keys.json]  --watch-->  InForce  <--  a newer map that a shard told

Promises
1. A reader gets a whole Config and keeps it for its request.
2. Nothing goes back: neither the map's epoch nor the generation of policy, credentials or keys. Only where a shard
refuses the passwords in force, credentials of a lower generation are taken: their Secret was lost and made anew.
3. A file that cannot be read or is wrong leaves what was in force. Each new fault is logged once and stays in `faults`
   until the file is mended. The fence keeps old maps harmless.
4. What is in force is at most POLL_S seconds and one look behind the files.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeVar

from engram_contract.credentials import Credentials, Keyring
from engram_contract.names import CREDENTIALS_FILE, KEYS_FILE, MAP_FILE, POLICY_FILE
from engram_contract.parse import Refused
from engram_contract.policy import Policy
from engram_contract.redisurl import RedisPlace
from engram_contract.shardmap import ShardMap
from engram_sidecar.errors import AgentNotAllowed, BadConfig
from engram_sidecar.identity import Identity
from engram_sidecar.trust import is_bundle

log = logging.getLogger(__name__)

POLL_S: Final = 1.0  # the kubelet swaps the mounted link; a stat costs microseconds

Part = ShardMap | Policy | Credentials | Keyring
Stamp = tuple[int, int, int] | None
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Config:
    """What a configuration folder holds. `header` names it to those who get an answer."""

    shard_map: ShardMap
    policy: Policy
    credentials: Credentials
    keyring: Keyring | None = None
    header: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "header", ", ".join(f"{name}={number}" for name, number in self.generations.items()))

    @property
    def generations(self) -> dict[str, int]:
        """Which map, policy, credentials and keys these are; without a keyring the last is missing."""
        keys = {} if self.keyring is None else {"keys": self.keyring.current}
        return {
            "map": self.shard_map.epoch,
            "policy": self.policy.generation,
            "credentials": self.credentials.generation,
            **keys,
        }


def _credentials(text: str) -> Credentials:
    credentials = Credentials.from_json(text)
    if credentials.ca and not is_bundle(credentials.ca):
        raise Refused("ca", "holds no certificates in PEM")
    if cache := credentials.cache:
        try:
            RedisPlace.from_url(cache.url)
        except ValueError as error:
            raise Refused("cache.url", str(error)) from None
        if cache.ca and not is_bundle(cache.ca):
            raise Refused("cache.ca", "holds no certificates in PEM")
    return credentials


_PARSERS: Final[Mapping[str, Callable[[str], Part]]] = MappingProxyType(
    {
        MAP_FILE: ShardMap.from_json,
        POLICY_FILE: Policy.from_json,
        CREDENTIALS_FILE: _credentials,
        KEYS_FILE: Keyring.from_json,
    }
)
FILES: Final = tuple(_PARSERS)


def read_config(folder: Path) -> Config:
    """The files of a configuration folder. Raises BadConfig that names the file and the reason."""
    shard_map = _read(folder / MAP_FILE, ShardMap.from_json)
    policy = _read(folder / POLICY_FILE, Policy.from_json)
    credentials = _read(folder / CREDENTIALS_FILE, _credentials)
    keys = folder / KEYS_FILE
    keyring = _read(keys, Keyring.from_json) if keys.exists() else None
    if credentials.role != shard_map.tenant:
        reason = f"{folder / CREDENTIALS_FILE}: the role {credentials.role} is not the map's tenant {shard_map.tenant}"
        raise BadConfig(reason)
    return Config(shard_map, policy, credentials, keyring)


def _read(path: Path, parse: Callable[[str], Value]) -> Value:
    try:
        return parse(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = f"{path}: {error.strerror if isinstance(error, OSError) else 'not UTF-8'}"
        raise BadConfig(reason) from error
    except Refused as error:
        raise BadConfig(f"{path}: {error}") from error


class InForce:
    """The configuration in force, whether it admits this pod, and what is wrong with the files now."""

    def __init__(
        self, config: Config, identity: Identity | None = None, is_locked_out: Callable[[], bool] = lambda: False
    ) -> None:
        self.config = config
        self.identity = identity
        self._is_locked_out = is_locked_out
        self.refusal = self._judged(config.policy)
        self.faults: dict[str, str] = {}
        self._told: list[Callable[[Config], None]] = []

    def subscribe(self, told: Callable[[Config], None]) -> None:
        """`told` is called with each configuration that comes into force."""
        self._told.append(told)

    def offer(self, part: Part) -> bool:
        """True if the part is in force now and was not before. Raises BadConfig that says why it cannot be.

        A map that is not newer is no fault: a shard may have told the newer one first.
        """
        changed = _with(self.config, part, is_locked_out=self._is_locked_out())
        if changed == self.config:
            return False
        self.config = changed
        self.refusal = self._judged(changed.policy)
        log.info("configuration replaced", extra={"part": type(part).__name__, "config": changed.header})
        for told in self._told:
            told(changed)
        return True

    def judge(self, file: str, reason: str | None) -> None:
        """Keeps the file's fault, or that it has none. A new one is logged."""
        before = self.faults.pop(file, None)
        if reason is not None:
            self.faults[file] = reason
        if reason == before:
            return
        if reason is None:
            log.info("configuration file is right again", extra={"file": file})
        else:
            log.warning("configuration file not taken", extra={"file": file, "reason": reason})

    def _judged(self, policy: Policy) -> AgentNotAllowed | None:
        return None if self.identity is None else self.identity.refused_by(policy)


def _with(config: Config, part: Part, *, is_locked_out: bool) -> Config:
    """The configuration with the part in its place. Raises BadConfig for another tenant's, or for an older one."""
    match part:
        case ShardMap():
            if part.tenant != config.shard_map.tenant:
                raise BadConfig(f"the map is of tenant {part.tenant}, not of {config.shard_map.tenant}")
            return replace(config, shard_map=part) if part.epoch > config.shard_map.epoch else config
        case Policy():
            if part.age < config.policy.age:
                _refuse_older("generation", part.generation, config.policy.generation)
                raise BadConfig("the policy is of a MemoryTenant that was made before the one in force")
            return replace(config, policy=part)
        case Credentials():
            if part.role != config.shard_map.tenant:
                raise BadConfig(f"the role {part.role} is not the map's tenant {config.shard_map.tenant}")
            if not is_locked_out:
                _refuse_older("generation", part.generation, config.credentials.generation)
            return replace(config, credentials=part)
        case Keyring():
            if config.keyring is not None:
                _refuse_older("current key", part.current, config.keyring.current)
            return replace(config, keyring=part)


def _refuse_older(what: str, offered: int, present: int) -> None:
    if offered < present:
        raise BadConfig(f"the {what} {offered} is older than {present}, which stays in force")


async def watch(folder: Path, in_force: InForce) -> None:
    """Puts the folder's files into force whenever they change. Runs until cancelled."""
    watched = Watched(folder)
    while True:
        await watched.look(in_force)
        await asyncio.sleep(POLL_S)


class Watched:
    """A folder, and which state of each of its files was taken."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._taken: dict[str, Stamp] = {}

    async def look(self, in_force: InForce) -> None:
        """Offers what changed since the last look, and again what was wrong then. Parses beside the loop."""
        for file, (stamp, found) in (await asyncio.to_thread(self._read_changed)).items():
            try:
                if isinstance(found, BadConfig):
                    raise found
                if found is None:
                    _refuse_loss(file, in_force.config)
                else:
                    in_force.offer(found)
            except BadConfig as fault:
                in_force.judge(file, str(fault))
            else:
                in_force.judge(file, None)
                self._taken[file] = stamp

    def _read_changed(self) -> dict[str, tuple[Stamp, Part | BadConfig | None]]:
        """File -> its state, and what it holds: a part, a fault, or None for a file that is not there."""
        found: dict[str, tuple[Stamp, Part | BadConfig | None]] = {}
        for file, parse in _PARSERS.items():
            stamp = _stamp(self._folder / file)
            if file in self._taken and self._taken[file] == stamp:
                continue
            try:
                found[file] = (stamp, None if stamp is None else _read(self._folder / file, parse))
            except BadConfig as fault:
                found[file] = (stamp, fault)
        return found


def _refuse_loss(file: str, config: Config) -> None:
    """Only the keys may be absent, and only if there never were any: what they encrypted could not be read."""
    if file != KEYS_FILE or config.keyring is not None:
        raise BadConfig("the file is gone, what it held stays in force")


def _stamp(path: Path) -> Stamp:
    """What changes whenever the file is replaced or written; None if it is not there or cannot be looked at."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size
