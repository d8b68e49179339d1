"""What every tier shares: where the checkout is, how properties are searched, when the long forms run.

Fixtures of one tier live in that tier's own conftest; nothing here opens a socket or starts a process.
"""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Asserts in what several tiers share explain themselves as those in tests do.
pytest.register_assert_rewrite("tests.behaviour", "tests.harness")

IS_LONG = os.environ.get("ENGRAM_SOAK") == "1"
# No deadline per example: on a shared core wall time says nothing of the code; faulthandler_timeout catches a hang.
# Each run looks at the same examples, so that a change is judged by what it changes; the long form looks for new ones.
settings.register_profile("engram", deadline=None, print_blob=True, derandomize=not IS_LONG)
settings.load_profile("engram")


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of this checkout."""
    return Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `soak` run only in the long form; else each says how to run it."""
    if IS_LONG:
        return
    leave_out = pytest.mark.skip(reason="long form: make soak K=NAME")
    for item in items:
        if "soak" in item.keywords:
            item.add_marker(leave_out)
