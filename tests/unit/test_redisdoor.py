"""The door to Redis without one: nothing is imported, nobody is asked, and a failure says nothing that is secret."""

import asyncio
import subprocess
import sys
from uuid import UUID

import pytest

from engram_contract.credentials import CacheLogin
from engram_contract.slots import MemoryId
from engram_sidecar.bulletin import Bulletin
from engram_sidecar.errors import CacheUnavailable
from engram_sidecar.redisdoor import LIMITS, Door
from engram_sidecar.remote import Remote

WITHOUT_LOGIN = """
import asyncio, sys
import engram_sidecar.app
from engram_sidecar.bulletin import Bulletin
from engram_sidecar.redisdoor import Door
from engram_sidecar.remote import Remote

async def main():
    door = Door()
    bulletin = Bulletin(door, print, print)
    remote = Remote(door, bulletin, lambda: 60, lambda: False, lambda: 0.0)
    bulletin.adopt(None)
    running = asyncio.create_task(bulletin.run())
    await bulletin.tell("s0", [], None)
    assert (bulletin.sound_s, bulletin.writes, bulletin.is_owing, remote.ticket()) == (None, None, False, None)
    running.cancel()
    await asyncio.wait([running])
    await door.close()

asyncio.run(main())
assert not {"redis", "hiredis"} & {name.split(".")[0] for name in sys.modules}
"""
# Nobody listens on port 1 of loopback, and what is there to see in an error must not be seen.
NOWHERE = CacheLogin("redis://127.0.0.1:1", "t_secret", ("secret",))


def test_a_sidecar_without_a_login_has_not_imported_the_driver() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_LOGIN], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


async def test_without_a_login_a_call_fails_at_once() -> None:
    door = Door()
    with pytest.raises(CacheUnavailable, match="no login"):
        await door.mget(["a"])
    with pytest.raises(CacheUnavailable, match="no login"):
        async with door.subscribed(["a"], 1.0):
            pass
    await door.close()


async def test_a_failure_names_no_address_and_no_secret_and_opens_the_breaker() -> None:
    door = Door()
    door.adopt(NOWHERE)
    said = set()
    for _ in range(LIMITS.failures + 1):
        with pytest.raises(CacheUnavailable) as failed:
            await door.run([("GET", "a")])
        said.add(str(failed.value))
    assert said <= {"no connection", "no answer in time", "it failed again and again and is left alone"}
    await door.close()


async def test_what_cannot_be_told_is_owed_and_fails_nobody() -> None:
    door = Door()
    flushes: list[int] = []
    bulletin = Bulletin(door, lambda *_: None, lambda: flushes.append(1))
    remote = Remote(door, bulletin, lambda: 60, lambda: False, lambda: 0.0)
    bulletin.adopt(NOWHERE)
    running = asyncio.create_task(bulletin.run())
    await bulletin.tell("s0", [MemoryId(1, UUID(int=2))], None)
    assert bulletin.is_owing
    assert (bulletin.late, bulletin.sound_s, remote.ticket()) == (1, None, None)
    running.cancel()
    await asyncio.wait([running])
    assert flushes == []  # nothing was ever heard, so nothing that was cached rested on it
    await door.close()
