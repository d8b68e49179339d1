"""The configuration in force: nothing goes back, a replaced file is taken, a wrong one is not and is told once."""

import asyncio
import contextlib
import logging
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engram_contract.caching import Caching
from engram_contract.credentials import CacheLogin, Credentials, DataKey, Keyring
from engram_contract.policy import Agent, Policy
from engram_contract.shardmap import Node, Shard, ShardMap, Strategy, first_map
from engram_sidecar.config import FILES, Config, InForce, Part, Watched, read_config, watch
from engram_sidecar.errors import BadConfig
from engram_sidecar.identity import Identity
from tests.harness import tenant_spec

PATIENCE_S = 20  # a hang fails; nothing waits for it
KEY = b64encode(bytes(32)).decode()
MAP = replace(
    first_map("t_a", Strategy.USER, [Shard("s0", "engram", (Node("a", "localhost", 5432),))]),
    epoch=5,
)
POLICY = replace(tenant_spec("a").policy(), generation=3)
CREDENTIALS = Credentials("t_a", ("one",), generation=2)
KEYRING = Keyring(1, (DataKey(1, KEY),), KEY)
NEW_KEYRING = Keyring(2, (DataKey(1, KEY), DataKey(2, KEY)), KEY)
CONFIG = Config(MAP, POLICY, CREDENTIALS)
NEWER: tuple[Part, ...] = (
    replace(MAP, epoch=6),
    replace(POLICY, generation=4),
    replace(CREDENTIALS, generation=3, passwords=("one", "two")),
    KEYRING,
)


def write(folder: Path, *parts: Part) -> None:
    """Each part into its file, as the kubelet does: the new one is there at once, whole."""
    files = dict(zip((ShardMap, Policy, Credentials, Keyring), FILES, strict=True))
    for part in parts:
        later = folder / "later"
        later.write_text(part.to_json(), "utf-8")
        later.replace(folder / files[type(part)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the configuration."""
    write(tmp_path, MAP, POLICY, CREDENTIALS)
    return tmp_path


class Heard(logging.Handler):
    """Keeps the warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []
        self.came = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self.came.set()


@contextlib.contextmanager
def warnings_heard() -> Iterator[Heard]:
    """The warnings of the room while inside."""
    heard, logger = Heard(), logging.getLogger("engram_sidecar.config")
    logger.addHandler(heard)
    try:
        yield heard
    finally:
        logger.removeHandler(heard)


# What is offered


@pytest.mark.parametrize(
    ("candidate", "taken"),
    [
        (MAP, False),
        (replace(MAP, epoch=4), False),
        (replace(MAP, strategy=Strategy.TIME), False),
        (replace(MAP, epoch=6), True),
        (replace(MAP, epoch=2**63 - 1), True),
        (replace(MAP, epoch=6, strategy=Strategy.TIME), True),
        (POLICY, False),
        (replace(POLICY, audit=False), True),  # the operator's plans changed, not the tenant
        (replace(POLICY, generation=4), True),
        (replace(POLICY, cache=Caching(local_entries=5)), True),  # its cluster's change leaves its generation alone
        (replace(POLICY, generation=1, created_s=9), True),  # of a MemoryTenant that was made anew
        (CREDENTIALS, False),
        (replace(CREDENTIALS, ca="another"), True),
        (replace(CREDENTIALS, generation=3), True),
        (KEYRING, True),
    ],
)
def test_what_is_new_is_taken_and_told(candidate: Part, taken: bool) -> None:
    in_force, told = InForce(CONFIG), list[Config]()
    in_force.subscribe(told.append)
    assert in_force.offer(candidate) is taken
    assert told == ([in_force.config] if taken else [])
    parts = (in_force.config.shard_map, in_force.config.policy, in_force.config.credentials, in_force.config.keyring)
    assert (candidate in parts) is (taken or candidate in (MAP, POLICY, CREDENTIALS))


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (replace(MAP, tenant="t_b", epoch=9), "the map is of tenant t_b"),
        (replace(POLICY, generation=2), "the generation 2 is older than 3"),
        (replace(CREDENTIALS, generation=1), "the generation 1 is older than 2"),
        (replace(CREDENTIALS, role="t_b", generation=9), "the role t_b is not the map's tenant"),
        (KEYRING, "the current key 1 is older than 2"),
    ],
)
def test_what_is_older_or_anothers_is_refused_with_the_reason(candidate: Part, reason: str) -> None:
    config = replace(CONFIG, keyring=NEW_KEYRING)
    in_force = InForce(config)
    with pytest.raises(BadConfig, match=reason):
        in_force.offer(candidate)
    assert in_force.config is config


def test_credentials_go_back_only_where_those_in_force_are_refused() -> None:
    """The Secret was deleted: the operator made it anew, and counts from the beginning."""
    refused: list[bool] = []
    in_force, anew = InForce(CONFIG, is_locked_out=lambda: bool(refused)), replace(CREDENTIALS, generation=1)
    with pytest.raises(BadConfig):
        in_force.offer(anew)
    refused.append(True)
    assert in_force.offer(anew)
    assert in_force.config.credentials is anew


def test_the_epoch_never_goes_back() -> None:
    in_force = InForce(CONFIG)
    taken = [in_force.offer(replace(MAP, epoch=epoch)) for epoch in (7, 6, 7, 9, 8)]
    assert taken == [True, False, False, True, False]
    assert in_force.config.shard_map.epoch == 9


def test_the_header_names_what_is_in_force() -> None:
    assert CONFIG.header == "map=5, policy=3, credentials=2"
    assert replace(CONFIG, keyring=NEW_KEYRING).header == "map=5, policy=3, credentials=2, keys=2"


def test_a_policy_that_admits_the_pod_again_ends_the_refusal() -> None:
    in_force = InForce(CONFIG, Identity("bot", "default"))
    assert "agent bot" in str(in_force.refusal)
    in_force.offer(replace(POLICY, generation=4, allowed_agents=(Agent("bot", "default"),)))
    assert in_force.refusal is None
    in_force.offer(replace(POLICY, generation=5))
    assert in_force.refusal is not None


# The files


def test_a_folder_is_read_whole_and_the_keys_may_be_absent(folder: Path) -> None:
    assert read_config(folder) == CONFIG
    write(folder, KEYRING)
    assert read_config(folder) == replace(CONFIG, keyring=KEYRING)


async def test_files_are_taken_together_and_one_by_one(folder: Path) -> None:
    in_force, watched = InForce(read_config(folder)), Watched(folder)
    for part in NEWER:
        write(folder, part)
        await watched.look(in_force)
    assert in_force.config.header == "map=6, policy=4, credentials=3, keys=1"
    write(folder, replace(MAP, epoch=7), replace(POLICY, generation=5), NEW_KEYRING)
    await watched.look(in_force)
    assert in_force.config.header == "map=7, policy=5, credentials=3, keys=2"
    assert in_force.faults == {}


async def test_a_file_that_does_not_change_is_not_read_again(folder: Path) -> None:
    in_force, watched = InForce(CONFIG), Watched(folder)
    await watched.look(in_force)
    in_force.offer(replace(MAP, epoch=9))  # as a shard told it
    await watched.look(in_force)
    assert (in_force.config.shard_map.epoch, in_force.faults) == (9, {})


# What puts a file of the kind at a path; the last one puts nothing there.
BROKEN: dict[str, Callable[[Path], object]] = {
    "no JSON": lambda path: path.write_text('{"epoch": 6', "utf-8"),
    "no document of ours": lambda path: path.write_text('{"format": 1}', "utf-8"),
    "no text": lambda path: path.write_bytes(b"\xff\xfe"),
    "a folder": Path.mkdir,
    "nothing": Path.exists,
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("file", FILES)
async def test_a_wrong_file_leaves_what_was_in_force_and_is_told_once(folder: Path, file: str, kind: str) -> None:
    write(folder, KEYRING)
    config = read_config(folder)
    in_force, watched = InForce(config), Watched(folder)
    await watched.look(in_force)
    good = (folder / file).read_bytes()
    (folder / file).unlink()
    BROKEN[kind](folder / file)
    with warnings_heard() as heard:
        for _ in range(3):
            await watched.look(in_force)
    assert in_force.config is config
    assert list(in_force.faults) == [file]
    [record] = heard.records
    assert record.__dict__["file"] == file
    assert record.__dict__["reason"] == in_force.faults[file]
    if (folder / file).is_dir():
        (folder / file).rmdir()
    (folder / file).write_bytes(good)
    await watched.look(in_force)
    assert in_force.faults == {}


async def test_a_new_fault_is_told_again(folder: Path) -> None:
    in_force, watched = InForce(CONFIG), Watched(folder)
    with warnings_heard() as heard:
        for text in ("{", "{", '{"format": 1}'):
            (folder / FILES[0]).write_text(text)
            await watched.look(in_force)
    assert len(heard.records) == 2


async def test_no_secret_of_a_wrong_file_is_told(folder: Path) -> None:
    in_force = InForce(CONFIG)
    with warnings_heard() as heard:
        for text in ('{"format": 1, "role": "t_a", "passwords": ["hush"], "generation": "hush"}', '"hush"'):
            (folder / "credentials.json").write_text(text)
            await Watched(folder).look(in_force)
    assert len(heard.records) == 2
    assert all("hush" not in str(record.__dict__) for record in heard.records)


@pytest.mark.parametrize(
    ("url", "ca", "member"),
    [
        ("http://cache:6379", "", "cache.url"),
        ("redis://", "", "cache.url"),
        ("redis://cache:port", "", "cache.url"),
        ("redis://cache:99999", "", "cache.url"),
        ("redis://cache/first", "", "cache.url"),
        ("redis://cache?ssl_cert_reqs=none", "", "cache.url"),
        ("unix:///socket", "", "cache.url"),
        ("redis+sentinel://secret", "", "cache.url"),
        ("redis+cluster://secret/1", "", "cache.url"),
        ("rediss://cache", "no PEM", "cache.ca"),
        ("redis+sentinel://a:1,b/main", "", None),
        ("rediss+cluster://a:1,b", "", None),
        ("redis://cache", "", None),
        ("rediss://secret:secret@cache:6380/2", "", None),
        ("redis://[::1]:6379/", "", None),
    ],
)
def test_the_caches_login_is_checked_with_the_others(folder: Path, url: str, ca: str, member: str | None) -> None:
    cached = replace(CREDENTIALS, cache=CacheLogin(url, "t_a", ("secret",), ca))
    write(folder, cached)
    if member is None:
        assert read_config(folder).credentials == cached
        return
    with pytest.raises(BadConfig, match=rf"credentials.json: {member}") as refused:
        read_config(folder)
    assert "secret" not in str(refused.value)


async def test_keys_that_never_were_are_no_fault(folder: Path) -> None:
    in_force = InForce(CONFIG)
    await Watched(folder).look(in_force)
    assert in_force.faults == {}


# The one test here that waits for turns of the watch: up to two seconds.
async def test_the_watch_takes_a_swapped_link_also_after_a_broken_file(tmp_path: Path) -> None:
    """As the kubelet does: the files are links into a folder, which is another one at once."""
    for name, parts in (("first", (MAP, POLICY, CREDENTIALS)), ("second", NEWER)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, *parts)
    data, mount = tmp_path / "..data", tmp_path / "mount"
    data.symlink_to(tmp_path / "first")
    mount.mkdir()
    for file in FILES:
        (mount / file).symlink_to(data / file)
    in_force = InForce(read_config(mount))
    changed = asyncio.Event()
    in_force.subscribe(lambda config: changed.set() if config.generations.get("keys") == 1 else None)
    (tmp_path / "first" / FILES[0]).write_text("{")
    with warnings_heard() as heard:
        watching = asyncio.create_task(watch(mount, in_force))
        async with asyncio.timeout(PATIENCE_S):
            await heard.came.wait()
    async with asyncio.timeout(PATIENCE_S):
        swap = tmp_path / "swap"
        swap.symlink_to(tmp_path / "second")
        swap.replace(data)
        await changed.wait()
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    assert in_force.config.header == "map=6, policy=4, credentials=3, keys=1"
