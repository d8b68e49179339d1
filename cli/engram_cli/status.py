"""`engram status`: what a data directory holds and what of it runs; asks the sidecars for counts if there are any."""

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from engram import AsyncEngram, EngramError, Shards
from engram_cli import server
from engram_cli.datadir import DataDir, holder, is_locked
from engram_cli.errors import Misuse
from engram_cli.report import Report, ShardReport, TenantReport
from engram_cli.server import Server
from engram_cli.state import LocalState, ShardRecord, TenantRecord

ASK_TIMEOUT_S: Final = 5.0


def gather_report(data: DataDir) -> Report:
    """The state of the data directory; raises Misuse if there is none."""
    state = data.read_state()
    if state is None:
        raise Misuse(f"there is no data directory at {data.path}: engram up makes it")
    is_up = is_locked(data)
    owner = holder(data) if is_up else None
    counts = asyncio.run(_ask_all(state.tenants)) if is_up else {}
    shards = tuple(_shard(data, each, counts) for each in state.shards)
    tenants = tuple(_tenant(each, counts.get(each.label)) for each in state.tenants)
    return Report(
        cluster=state.cluster,
        postgres_version=state.postgres_version,
        data_dir=str(data.path),
        state=_overall(state, shards, is_up=is_up),
        pid=owner.pid if owner else None,
        shards=shards,
        tenants=tenants,
    )


def _overall(state: LocalState, shards: tuple[ShardReport, ...], *, is_up: bool) -> str:
    if is_up:
        return "serving" if any(each.http_port for each in state.tenants) else "starting"
    return "shards only" if any(each.pid is not None for each in shards) else "stopped"


def _shard(data: DataDir, record: ShardRecord, counts: Mapping[str, Shards | None]) -> ShardReport:
    place = Server(data.shard(record.id))
    running = server.find_running(place)
    memories = {
        label: each.memories
        for label, shards in counts.items()
        for each in shards or ()
        if each.shard == record.id and each.memories is not None
    }
    return ShardReport(
        shard=record.id,
        state="running" if running else "stopped",
        port=running.port if running else record.port,
        pid=running.pid if running else None,
        size_bytes=sum(_sizes(place.directory)),
        schema_version=record.schema_version,
        has_vector=record.has_vector,
        memories=memories,
    )


def _tenant(record: TenantRecord, shards: Shards | None) -> TenantReport:
    counted = [each.memories for each in shards or ()]
    known = [each for each in counted if each is not None]
    return TenantReport(
        tenant=record.label,
        isolation=record.isolation,
        state="serving" if shards is not None else "stopped",
        url=f"http://localhost:{record.http_port}" if shards is not None else None,
        admin_port=record.admin_port if shards is not None else None,
        memories=sum(known) if counted and len(known) == len(counted) else None,
    )


async def _ask_all(tenants: tuple[TenantRecord, ...]) -> dict[str, Shards | None]:
    asked = await asyncio.gather(*(_ask(each) for each in tenants))
    return {each.label: answer for each, answer in zip(tenants, asked, strict=True)}


async def _ask(tenant: TenantRecord) -> Shards | None:
    """The shards as the tenant's sidecar sees them, or None if it does not answer."""
    if tenant.http_port is None:
        return None
    try:
        async with AsyncEngram(f"http://localhost:{tenant.http_port}", timeout_s=ASK_TIMEOUT_S) as memories:
            return await memories.shards(count=True)
    except EngramError:
        return None


def _sizes(directory: Path) -> Iterator[int]:
    """The bytes that each file takes on the disk; what cannot be read, or goes while we look, counts nothing."""
    for folder, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):
                yield (Path(folder) / name).lstat().st_blocks * 512
