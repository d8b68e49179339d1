"""The watches: kopf lists and watches, and tells every object that it sees. The only door of kopf.

kopf is no more than that here: `on.event` alone, which neither changes an object nor retries. Its finalizers,
annotations, peering, webhooks, Events and signal handlers are off; what is done about an event is decided elsewhere.

Promises
1. An event is handed on within milliseconds, in the order of its object's events. DELETED ends an object; None is an
   object of a list, with which a watch begins, also when it has to begin anew.
2. A watch that kopf gives up, or a kopf that ends, ends `run_watches` with DeafWatch. What kopf cannot see, an open
   stream that loses events, is the business of `hearing.py`.
3. Credentials are read anew at every login, and every 401 is followed by one.

Must never: run beside another kopf in one process, write to the API server, or take SIGTERM from the process.

What kopf 1.45.2 does about a fault (tests/integration/test_operator_watching.py has each): a reset or ended stream goes
on from its last version; ERROR 410 is followed by a new list; any other ERROR ends the watch; silence is cut after
INACTIVITY_S.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import kopf

from engram_contract.names import GROUP
from engram_operator.clients.kube import ApiAccess
from engram_operator.errors import DeafWatch
from engram_operator.plan.hearing import Watched

INACTIVITY_S: Final = 70.0  # the API server sends a bookmark every 60 s: a stream that is silent for longer is dead
# An int, because kopf sends its text and the API server takes no fraction. Below the idle limits of usual proxies.
STREAM_S: Final = 290
REQUEST_S: Final = 30.0  # for a list's chunk of CHUNK objects
CONNECT_S: Final = 10.0
CHUNK: Final = 500
MAX_PAUSE_S: Final = 10.0  # between tries: what comes back is watched again within this
WORKER_IDLE_S: Final = 0.1  # one kopf task for each object with events; kept for a moment, not for 5 s
RELOGIN_S: Final = 5.0  # before the same credentials are tried once more
CLOSE_S: Final = 5.0  # kopf gives its workers 2 s
IDENTITY: Final = "engram-operator"  # else kopf asks DNS, and fails where the user id has no name

FetchAccess = Callable[[], Awaitable[ApiAccess]]
OnEvent = Callable[[Watched, str | None, Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Timing:
    """What a test makes shorter."""

    inactivity_s: float = INACTIVITY_S
    relogin_s: float = RELOGIN_S


class Pauses:
    """Seconds between tries, without an end, spread, and anew for each request (kopf iterates it each time)."""

    def __iter__(self) -> Iterator[float]:
        pause_s = 0.5
        while True:
            pause_s = min(pause_s * 2, MAX_PAUSE_S)
            yield pause_s * random.uniform(0.5, 1.0)  # noqa: S311  nothing is secret here


async def run_watches(
    watched: Sequence[Watched],
    fetch_access: FetchAccess,
    on_event: OnEvent,
    timing: Timing = Timing(),
) -> None:
    """Watches until it is cancelled. Raises DeafWatch if a watch is given up, and whatever `on_event` raises."""
    if len({(each.group, each.version, each.plural) for each in watched}) < len(watched):
        raise ValueError("a resource is watched twice: kopf would join the selectors")
    logging.getLogger("kopf").setLevel(logging.WARNING)
    broken: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
    registry = kopf.OperatorRegistry()
    _register_login(registry, fetch_access, timing.relogin_s)
    for each in watched:
        _register(registry, each, on_event, broken)
    with _own_signals():
        tasks = await kopf.spawn_tasks(
            registry=registry,
            settings=_settings(watched, timing),
            standalone=True,
            clusterwide=True,
            identity=IDENTITY,  # type: ignore[arg-type]  # a str, whose NewType kopf does not export
        )
    try:
        done, _ = await asyncio.wait([*tasks, broken], return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _close(tasks)
    if broken.done():
        raise broken.result()
    errors = [each.exception() for each in done if not each.cancelled()]
    cause = next((error for error in errors if error is not None), None)
    raise DeafWatch(f"the watches ended: {cause!r}") from cause


def _settings(watched: Sequence[Watched], timing: Timing) -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.process.ultimate_exiting_timeout = None  # else kopf would kill -9 the process 10 minutes after its end
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.persistence.finalizer = f"{GROUP}/never"  # kopf removes its own usual one wherever it sees it
    settings.queueing.idle_timeout = WORKER_IDLE_S
    settings.queueing.error_delays = (1, 2, 4, 8, 16, 30)
    settings.networking.request_timeout = REQUEST_S
    settings.networking.connect_timeout = CONNECT_S
    settings.networking.error_backoffs = Pauses()
    settings.watching.connect_timeout = CONNECT_S
    settings.watching.server_timeout = STREAM_S
    settings.watching.inactivity_timeout = timing.inactivity_s
    settings.watching.chunk_size = CHUNK
    for each in watched:
        if each.selector:
            settings.watching.label_selectors[each.group, each.version, each.plural] = each.selector
    return settings


def _register_login(registry: kopf.OperatorRegistry, fetch_access: FetchAccess, relogin_s: float) -> None:
    last: list[ApiAccess] = []
    logins = 0

    async def login(**_: object) -> kopf.ConnectionInfo:
        nonlocal logins
        access = await fetch_access()
        if access in last:
            await asyncio.sleep(relogin_s)
            access = await fetch_access()
        last[:] = [access]
        logins += 1  # kopf never tries again what was refused and equals it: a 401 of a moment would be for good
        return _connection(access, priority=logins)

    kopf.on.login(registry=registry, errors=kopf.ErrorsMode.TEMPORARY, backoff=relogin_s)(login)


def _connection(access: ApiAccess, priority: int) -> kopf.ConnectionInfo:
    return kopf.ConnectionInfo(
        server=access.server,
        ca_path=access.ca_path,
        insecure=not access.is_verified,
        scheme=access.scheme,
        token=access.token,
        certificate_path=access.certificate_path,
        private_key_path=access.private_key_path,
        proxy_url=access.proxy_url,
        priority=priority,
    )


def _register(
    registry: kopf.OperatorRegistry, watched: Watched, on_event: OnEvent, broken: "asyncio.Future[Exception]"
) -> None:
    async def hand_on(event: Mapping[str, Any], **_: object) -> None:
        try:
            on_event(watched, event["type"], event["object"])
        except Exception as error:  # noqa: BLE001  kopf would log it and go on, and the event would be lost
            if not broken.done():
                broken.set_result(error)

    kopf.on.event(
        group=watched.group, version=watched.version, plural=watched.plural, id=str(watched), registry=registry
    )(hand_on)


@contextmanager
def _own_signals() -> Iterator[None]:
    """While kopf starts, it takes no signal handler: it asks for SIGINT and SIGTERM without a way to decline.

    Putting ours back afterwards would leave a moment in which SIGTERM stops only kopf.
    """
    loop = asyncio.get_running_loop()
    loop.add_signal_handler = lambda *_: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        del loop.add_signal_handler  # the method of the class is there again


async def _close(tasks: Collection["asyncio.Task[Any]"]) -> None:
    """Ends kopf's own tasks. Its `run_tasks` would end every task of this loop that is younger than kopf."""
    for task in tasks:
        task.cancel()
    ended, _ = await asyncio.wait(tasks, timeout=CLOSE_S)
    for task in ended:
        if not task.cancelled():
            task.exception()  # taken note of; the first of them was raised
