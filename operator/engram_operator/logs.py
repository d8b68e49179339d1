"""One line of JSON per log record: the constant message, and each `extra` field beside it."""

import json
import logging
import time
from typing import Final, TextIO

# What every record has; whatever else is on a record came with `extra`.
_USUAL: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """A record as one line: time (UTC), level, logger, msg, the extra fields, and the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The line. A field that JSON does not know is written as its text."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _USUAL}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def log_json(stream: TextIO, level: int = logging.INFO) -> None:
    """Sends every logger of the process to `stream`."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
