"""The log of a run, in the data directory: what the planes log must not run through the lines that a person reads."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from typing import Final

from engram_cli.datadir import PRIVATE_MODE, DataDir, reason_of
from engram_cli.errors import Failure

MAX_BYTES: Final = 10 * 1024 * 1024
FORMAT: Final = "%(asctime)s %(levelname)s %(name)s %(message)s"


@contextmanager
def journal(data: DataDir) -> Iterator[None]:
    """Within this block everything that is logged goes to DATA/engram.log; raises Failure if it cannot be written."""
    try:
        handler = RotatingFileHandler(data.path / "engram.log", maxBytes=MAX_BYTES, backupCount=1, encoding="utf-8")
    except OSError as error:
        raise Failure(f"cannot write {data.path / 'engram.log'}: {reason_of(error)}") from error
    (data.path / "engram.log").chmod(PRIVATE_MODE)
    handler.setFormatter(logging.Formatter(FORMAT))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
