"""Tests that share one release of the chart: a package, which is what pytest can keep something for."""

from typing import Final

MEMBERS: Final = 3  # of the shard that they share
