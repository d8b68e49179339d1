"""`python -m engram_sidecar`: one sidecar, configured by the environment, until SIGTERM or SIGINT."""

import asyncio
import gc
import logging
import os
import signal
import sys

import uvloop

from engram_sidecar.app import serving
from engram_sidecar.errors import BadConfig, PortTaken
from engram_sidecar.logs import log_lines
from engram_sidecar.settings import Settings


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with serving(settings) as sidecar:
        # What is there lives as long as the process; to look through it all again and again takes 30 ms each time.
        gc.freeze()
        logging.getLogger("engram_sidecar").info("serving on port %d", sidecar.http_port)
        await stop.wait()


def main() -> int:
    """The exit status: 0 after an orderly end, 1 if it cannot start."""
    try:
        settings = Settings.from_env(os.environ)
        log_lines(sys.stderr, settings.log_level)
        uvloop.run(_serve(settings))
    except (BadConfig, PortTaken) as error:
        sys.stderr.write(f"engram-sidecar: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
