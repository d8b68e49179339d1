"""The environment to values, once, at the door."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

ROOTS_DATA_DIR: Final = Path("/var/lib/engram")


def default_data_dir(environ: Mapping[str, str], uid: int) -> Path:
    """Where data lies unless it is told: /var/lib/engram for root, else by the XDG Base Directory Specification."""
    if uid == 0:
        return ROOTS_DATA_DIR
    data_home = environ.get("XDG_DATA_HOME", "")
    # The specification has relative paths ignored.
    base = Path(data_home) if os.path.isabs(data_home) else Path(environ.get("HOME") or "~") / ".local" / "share"  # noqa: PTH117
    return base / "engram"
