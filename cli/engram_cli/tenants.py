"""Tenants in the shards: schema, roles and maps, and the configuration directory that a sidecar reads.

Promises
1. Order: schema, role, map in every shard, then the files. So a file never names what a shard does not know.
2. The newest map wins, wherever it is found: a crash between a shard and the file loses nothing.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from engram_cli.datadir import PRIVATE_DIRECTORY_MODE, DataDir, make_directory, write_atomic
from engram_cli.errors import Failure
from engram_cli.localplan import plan_map, shares_differ
from engram_cli.pgsettings import HOST
from engram_cli.server import SUPERUSER
from engram_cli.state import LocalState, ShardRecord
from engram_contract import names
from engram_contract.credentials import Credentials, DataKey, Keyring
from engram_contract.policy import LOCAL_QUOTAS
from engram_contract.shardmap import BadMap, ShardMap
from engram_contract.spec import ClusterSpec, TenantSpec
from engram_operator.clients import postgres, tenancy
from engram_operator.clients.connection import Admin
from engram_operator.clients.postgres import ShardIdentity
from engram_operator.clients.sealing import new_key, seal_of
from engram_operator.errors import FenceBusy, OperatorError
from engram_operator.plan.maps import tenant_database
from engram_operator.plan.migrations import MigrationConflict
from engram_operator.plan.quotas import plan_quotas

FENCE_ATTEMPTS: Final = 5  # each waits two seconds for writers of a sidecar that runs on its own


@dataclass(frozen=True, slots=True)
class Tenants:
    """The tenants of one run, in the shards of one data directory that all answer."""

    data: DataDir
    state: LocalState
    cluster: ClusterSpec
    specs: tuple[TenantSpec, ...]
    password: str

    async def migrate(self, phase: Callable[[str, str], None]) -> LocalState:
        """Schema and roles are in every shard; the state with what was found there. Raises Failure."""
        passwords = {self._label(spec): self._read_or_make_password(spec) for spec in self.specs}
        state = self.state
        for record in await asyncio.gather(*(self._migrate_shard(each, passwords, phase) for each in state.shards)):
            state = state.with_shard(record)
        return state

    async def publish(self, note: Callable[[str], None]) -> dict[str, ShardMap]:
        """The map of each tenant, by `namespace/name`: every shard and the sidecar know it. Raises Failure."""
        maps = {}
        for spec in self.specs:
            maps[self._label(spec)] = await self._publish_one(spec)
        crooked = [label for label, shard_map in maps.items() if shares_differ(shard_map)]
        if crooked:
            note(
                f"the slots of {', '.join(crooked)} do not lie as states and weights ask: "
                "they stay where they are, resharding is not there yet"
            )
        return maps

    async def _migrate_shard(
        self, record: ShardRecord, passwords: Mapping[str, str], phase: Callable[[str, str], None]
    ) -> ShardRecord:
        admin, identity = self._admin(record), ShardIdentity(self.state.uid, record.id)
        phase(record.id, "migrating")
        with _translated(f"shard {record.id}"):
            await postgres.close_databases(admin)
            databases = dict.fromkeys(self._database(spec) for spec in self.specs)
            seen = [await postgres.migrate(admin, database, identity) for database in databases]
            phase(record.id, "tenants")
            for spec in self.specs:
                await postgres.apply_tenant(admin, self._database(spec), self._role(spec), passwords[self._label(spec)])
        if not seen:
            return record
        version = min(each.schema_version for each in seen)
        has_vector = all(each.has_vector for each in seen)
        return ShardRecord(record.id, record.port, version, has_vector)

    async def _publish_one(self, spec: TenantSpec) -> ShardMap:
        folder = self.data.tenant(spec.namespace, spec.name)
        shard_ports = {each.id: each.port for each in self.state.shards if each.port is not None}
        with _translated(f"tenant {self._label(spec)}"):
            known = [each async for each in self._known_maps(spec)]
            shard_map = plan_map(spec, self.cluster, shard_ports, known)
            await self._level_quota(spec, shard_map)  # before a shard takes its memories
            await self._keep_keyring(spec, shard_map)
            for shard in shard_map.shards:
                record = self.state.shard(shard.id)
                if record is not None:
                    await _through_the_fence(partial(postgres.publish_map, self._admin(record), record.id, shard_map))
        policy = spec.policy(LOCAL_QUOTAS, cache=self.cluster.cache.caching)
        write_atomic(folder / names.POLICY_FILE, policy.to_json() + "\n")
        write_atomic(folder / names.MAP_FILE, shard_map.to_json() + "\n")
        return shard_map

    async def _level_quota(self, spec: TenantSpec, shard_map: ShardMap) -> None:
        place = (self._database(spec), self._role(spec))
        admins = {each.id: self._admin(each) for each in self.state.shards}
        order = [shard.id for shard in shard_map.shards]
        seen = {shard: (await tenancy.fetch_tenant(admins[shard], *place, 0)).holding for shard in order}
        for step in plan_quotas(spec.policy().quota, order, seen):
            await tenancy.level_quota(admins[step.shard], *place, step, seal_of(self.password))

    async def _keep_keyring(self, spec: TenantSpec, shard_map: ShardMap) -> None:
        """There are keys for the tenant's data. New ones are made only for who has nothing that old ones would open."""
        path = self.data.tenant(spec.namespace, spec.name) / names.KEYS_FILE
        try:
            Keyring.from_json(path.read_text("utf-8"))
        except FileNotFoundError:
            for shard in shard_map.shards:
                record = self.state.shard(shard.id)
                place = (self._database(spec), self._role(spec))
                if record is not None and await tenancy.has_sealed(self._admin(record), *place):
                    reason = f"{path} is gone, and shard {shard.id} holds memories that only its keys open: restore it"
                    raise Failure(reason) from None
            keyring = Keyring(1, (DataKey(1, new_key()),), new_key())
            write_atomic(path, keyring.to_json() + "\n")
        except (OSError, ValueError) as error:
            raise Failure(
                f"{path} cannot be read, and the memories that it encrypted not without it: {error}"
            ) from error

    async def _known_maps(self, spec: TenantSpec) -> AsyncIterator[ShardMap]:
        try:
            text = (self.data.tenant(spec.namespace, spec.name) / names.MAP_FILE).read_text("utf-8")
            yield ShardMap.from_json(text)
        except (OSError, BadMap):
            pass  # the shards know it too
        for record in self.state.shards:
            found = await postgres.fetch_map(self._admin(record), self._database(spec), self._role(spec))
            if found is not None:
                yield found

    def _read_or_make_password(self, spec: TenantSpec) -> str:
        folder = self.data.tenant(spec.namespace, spec.name)
        make_directory(folder, PRIVATE_DIRECTORY_MODE)
        path = folder / names.CREDENTIALS_FILE
        try:
            written = Credentials.from_json(path.read_text("utf-8"))
            if written.role == self._role(spec):
                return written.passwords[0]
        except (OSError, ValueError):
            pass  # absent or damaged: a new password is as good, the role gets it in a moment
        password = secrets.token_hex(32)
        write_atomic(path, Credentials(self._role(spec), (password,)).to_json() + "\n")
        return password

    def _admin(self, record: ShardRecord) -> Admin:
        if record.port is None:
            raise Failure(f"shard {record.id} has no port")
        return Admin(HOST, record.port, SUPERUSER, self.password)

    def _database(self, spec: TenantSpec) -> str:
        return tenant_database(self._role(spec), spec.isolation)

    def _role(self, spec: TenantSpec) -> str:
        return names.tenant_role(spec.namespace, spec.name)

    def _label(self, spec: TenantSpec) -> str:
        return f"{spec.namespace}/{spec.name}"


async def _through_the_fence(publish: Callable[[], Awaitable[None]]) -> None:
    """Publishes, again while writers hold the tenant; raises FenceBusy if they never leave."""
    for _ in range(FENCE_ATTEMPTS - 1):
        try:
            return await publish()
        except FenceBusy:
            continue
    return await publish()


@contextmanager
def _translated(where: str) -> Iterator[None]:
    """Errors of the operator's room as a Failure that says where."""
    try:
        yield
    except FenceBusy as error:
        raise Failure(f"{where}: its writers do not pause for a new map: is another sidecar busy?") from error
    except (OperatorError, MigrationConflict) as error:
        raise Failure(f"{where}: {error}") from error
