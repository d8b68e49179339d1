"""A program of the tests that runs the operator's own `main`, once for each line of JSON that it reads.

It imports the operator once and forks for each line, so an operator that dies at every write is back in a tenth of a
second. A child differs from `python -m engram_operator run` in three things alone:

1. Names below `.svc` are found by asking the API server, because this machine knows nothing of the cluster's DNS.
2. Each write is a line of its log; it may be told to die at its n-th one: `answered`, when the answer was read, or
   `torn`, at some moment while the request is on its way.
3. Its User-Agent has its name, so that the audit log tells processes apart.

A line is {"log": path, "env": {...}}; what it answers are {"pid": n} and, when that has ended, {"pid": n, "status": s}.
When its standard input ends, every child ends.
"""

import asyncio
import ctypes
import http.client
import json
import os
import random
import re
import select
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from kubernetes.aio.client import ApiClient

import engram_operator.app  # noqa: F401  loaded before the forks
from engram_operator.__main__ import main
from engram_operator.clients.kube import Kube

API: Final = "LAUNCHER_API"  # the socket of a `kubectl proxy`
DIE: Final = "LAUNCHER_DIE"  # answered:N or torn:N
NAME: Final = "ENGRAM_POD_NAME"
POD_NAME: Final = re.compile(r"([a-z0-9-]+)\.[a-z0-9-]+\.([a-z0-9-]+)\.svc(?:\.cluster\.local)?")
SERVICE_NAME: Final = re.compile(r"([a-z0-9-]+)\.([a-z0-9-]+)\.svc(?:\.cluster\.local)?")
TORN_S: Final = 0.03  # about what a write takes
KILLED: Final = 9
PR_SET_PDEATHSIG: Final = 1
TICK_S: Final = 0.02


# ----------------------------------------------------------------------------------------------------------- the child


class _Unix(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(os.environ[API])


def _fetch(path: str) -> dict[str, Any]:
    connection = _Unix("localhost")
    try:
        connection.request("GET", path)
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    return answer


def _address_of(host: str) -> str:
    """What the cluster's DNS would say. Raises gaierror."""
    if found := POD_NAME.fullmatch(host):
        address = _fetch(f"/api/v1/namespaces/{found[2]}/pods/{found[1]}").get("status", {}).get("podIP")
    elif found := SERVICE_NAME.fullmatch(host):
        address = _fetch(f"/api/v1/namespaces/{found[2]}/services/{found[1]}").get("spec", {}).get("clusterIP")
    else:
        return host
    if not address:
        raise socket.gaierror(socket.EAI_NONAME, f"{host} is not known")
    return str(address)


def _resolve_cluster_names() -> None:
    usual = asyncio.BaseEventLoop.getaddrinfo

    async def getaddrinfo(self: asyncio.BaseEventLoop, host: Any, port: Any, **more: Any) -> Any:  # noqa: ANN401
        known = await self.run_in_executor(None, _address_of, host) if isinstance(host, str) else host
        return await usual(self, known, port, **more)

    asyncio.BaseEventLoop.getaddrinfo = getaddrinfo  # type: ignore[method-assign]


def _count_writes(die: str) -> None:
    usual = Kube._exchange
    how, _, number = die.partition(":")
    written = 0

    async def exchange(self: Kube, call: Any, timeout_s: float) -> tuple[int, bytes]:  # noqa: ANN401
        nonlocal written
        if call.method == "GET" or "/leases" in call.path or call.path.endswith("/events"):
            return await usual(self, call, timeout_s)
        written += 1
        is_last = number == str(written)
        sys.stderr.write(f"write {written} {call.method} {call.path}\n")
        if is_last and how == "torn":
            asyncio.get_running_loop().call_later(random.uniform(0, TORN_S), os._exit, KILLED)
        answer = await usual(self, call, timeout_s)
        if is_last and how == "answered":
            os._exit(KILLED)
        return answer

    Kube._exchange = exchange  # type: ignore[method-assign]


def _name_in_user_agent() -> None:
    def write(self: ApiClient, value: str) -> None:
        self.default_headers["User-Agent"] = f"{value}/{os.environ[NAME]}"

    setattr(ApiClient, "user_agent", property(lambda self: self.default_headers["User-Agent"], write))  # noqa: B010  mypy


def run(order: dict[str, Any]) -> int:
    """One operator, to its end."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    with Path(order["log"]).open("ab", buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(order["env"])
    _resolve_cluster_names()
    _count_writes(os.environ.get(DIE, ""))
    _name_in_user_agent()
    sys.argv[1:] = ["run"]
    return main()


# ---------------------------------------------------------------------------------------------------------- the parent


def _say(**told: int) -> None:
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


def _reap() -> None:
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            _say(pid=pid, status=os.waitstatus_to_exitcode(status))


def serve() -> None:
    """Forks for each line, until there are no more."""
    buffer = b""
    while True:
        _reap()
        if not select.select([0], [], [], TICK_S)[0]:
            continue
        read = os.read(0, 65_536)
        if not read:
            return
        *lines, buffer = (buffer + read).split(b"\n")
        for line in lines:
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    status = run(json.loads(line))
                finally:
                    os._exit(status)
            _say(pid=pid)


if __name__ == "__main__":
    serve()
