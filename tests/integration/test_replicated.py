"""A commit that did not wait for its standby is no success: who takes over next may lack it."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from engram_sidecar.settings import Settings
from tests.harness import Answer, Http, RealServer, SidecarThread, create_tenant, server_folder

WAITING = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
STANDBY = "ALTER SYSTEM SET synchronous_standby_names = '{}'"


@pytest.fixture
def server() -> Iterator[RealServer]:
    with server_folder() as folder:
        found = RealServer.create(folder / "s0", 18)
        yield found
        found.stop("immediate")


async def wait_for(server: RealServer, standby: str) -> None:
    """Commits wait for this standby from now on; for none if it is empty."""
    async with server.session("postgres") as admin:
        await admin.execute("SET synchronous_commit = local")
        await admin.execute(STANDBY.format(standby))
        await admin.execute("SELECT pg_reload_conf()")
    if standby:
        await until_commits_wait(server)


async def until_commits_wait(server: RealServer) -> None:
    """The checkpointer, which is not waited for, tells the others when it has heard of the new setting."""
    async with server.session("postgres") as one, server.session("postgres") as admin:
        while True:
            commit = asyncio.create_task(one.execute("COMMENT ON DATABASE postgres IS 'commits'"))
            while not commit.done():
                if await admin.fetchval(WAITING):
                    await commit
                    return


async def cancel_until(server: RealServer, done: threading.Event) -> None:
    """Cancels every wait for a standby, as a person does who finds writes hanging."""
    async with server.session("postgres") as admin:
        while not done.is_set():
            await admin.execute(WAITING)
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("is_batch", [False, True], ids=["a put", "a batch"])
def test_a_write_whose_wait_for_the_standby_was_ended_may_be_lost(
    server: RealServer, tmp_path: Path, *, is_batch: bool
) -> None:
    tenant = asyncio.run(create_tenant("replicated", (server,), tmp_path))
    answers: list[Answer] = []
    done = threading.Event()
    settings = Settings(tenant.config_dir, http_port=0, admin_port=0)
    with SidecarThread(settings).running() as sidecar, contextlib.ExitStack() as ended:
        http = Http(sidecar.ports.http_port)
        ended.callback(http.close)
        body = {"content": "there"}
        assert http("POST", "/v1/memories", body).status == 201
        asyncio.run(wait_for(server, "nobody"))

        def write() -> None:
            operations = [{"op": "create", "memory": body}, {"op": "create", "memory": body}]
            path, sent = ("/v1/batch", {"operations": operations}) if is_batch else ("/v1/memories", body)
            answers.append(http("POST", path, sent))
            done.set()

        writer = threading.Thread(target=write)
        writer.start()
        asyncio.run(cancel_until(server, done))
        writer.join()
        asyncio.run(wait_for(server, ""))
        [answer] = answers
        problems = [each["problem"] for each in answer.json["results"]] if is_batch else [answer.json]
        for problem in problems:
            assert problem["status"] == 503
            assert problem["type"].endswith("/outcome-unknown")
            assert "standby" in problem["detail"]
        [shard] = http("GET", "/v1/shards", count="true").json["shards"]
        assert shard["memories"] == 1 + len(problems), "it stands where it was written"
