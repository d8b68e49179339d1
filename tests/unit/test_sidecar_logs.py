"""A log line of the sidecar: the message, and beside it what the record carries."""

import io
import logging

from engram_sidecar.logs import Lines


def test_a_line_tells_its_fields_beside_the_message() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Lines())
    record = logging.makeLogRecord({"name": "engram_sidecar.config", "levelname": "WARNING", "msg": "not taken %s"})
    record.args = ("now",)
    record.file, record.reason = "map.json", "a b\nc"
    handler.emit(record)
    [line] = stream.getvalue().splitlines()
    assert line.endswith(r"WARNING engram_sidecar.config not taken now file='map.json' reason='a b\nc'")
