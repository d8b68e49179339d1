"""`python -m engram_operator run|inject`: one process of the control plane, until SIGTERM, set up by the environment.

run      the operator: elects a leader, which keeps the injector's certificates
inject   the injector: the webhook that gives pods their sidecar
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final

from engram_operator.app import run_operator
from engram_operator.errors import BadSettings, DeafWatch, LostLease, PortTaken
from engram_operator.injector import run_injector
from engram_operator.logs import log_json
from engram_operator.settings import InjectorSettings, OperatorSettings

USAGE: Final = "usage: python -m engram_operator run|inject\n"
Run = Callable[[asyncio.Event], Coroutine[Any, Any, None]]


async def _until_signalled(run: Run) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await run(stop)


def _chosen(command: str) -> Run:
    """What the command runs. Raises BadSettings."""
    kubeconfig = os.environ.get("KUBECONFIG", "")
    if command == "run":
        operator = OperatorSettings.from_env(os.environ)
        return lambda stop: run_operator(operator, kubeconfig, stop)
    injector = InjectorSettings.from_env(os.environ)
    return lambda stop: run_injector(injector, kubeconfig, stop)


def main() -> int:
    """The exit status: 0 after an orderly end, 1 if it cannot start or lost its term, 2 for no such command."""
    if sys.argv[1:] not in (["run"], ["inject"]):
        sys.stderr.write(USAGE)
        return 2
    log_json(sys.stderr)
    try:
        asyncio.run(_until_signalled(_chosen(sys.argv[1])))
    except (BadSettings, PortTaken) as error:
        sys.stderr.write(f"engram-operator: {error}\n")
        return 1
    except (LostLease, DeafWatch) as error:
        said = "lease lost" if isinstance(error, LostLease) else "a watch is deaf"
        logging.getLogger("engram_operator").critical(said, extra={"reason": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
