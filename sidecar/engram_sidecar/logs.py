"""One line of text per log record: the constant message, each `extra` field beside it, and the trace of its request."""

import logging
from typing import Final, TextIO

from engram_sidecar.timing import trace_id

# What every record has; whatever else is on a record came with `extra`.
_USUAL: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class Lines(logging.Formatter):
    """Time, level, logger, message, and the extra fields as name=value."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  the library's name
        """The line without a traceback."""
        trace = f" trace_id={found!r}" if (found := trace_id()) else ""
        extra = "".join(f" {name}={value!r}" for name, value in vars(record).items() if name not in _USUAL)
        return super().formatMessage(record) + extra + trace


def log_lines(stream: TextIO, level: int) -> None:
    """Sends every logger of the process to `stream`."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Lines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
