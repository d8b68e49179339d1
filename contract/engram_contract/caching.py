"""What a sidecar's two cache levels may take, as the tenant's policy carries it from the cluster's `spec.cache`.

The defaults stand here, for the resource as for policies of an older operator. Pure; standard library only. Where they
come from: docs/decisions/0016-the-first-cache-level.md.
"""

from dataclasses import dataclass
from typing import Annotated, Final

from engram_contract.kinds import MAX_INT64, Whole

MAX_LOCAL_ENTRIES: Final = 10_000_000
MIN_LOCAL_BYTES: Final = 1 << 20
MAX_LOCAL_BYTES: Final = 16 << 30
_SECONDS: Final = Whole(0, MAX_INT64)


@dataclass(frozen=True, slots=True)
class Caching:
    """The first level is local to the sidecar, the second shared by all of the tenant's: its part of Redis.

    Of the two bounds of the first level the one that is met first counts; 0 entries turn it off. A time of 0 s is until
    the entry is evicted.
    """

    local_entries: Annotated[int, Whole(0, MAX_LOCAL_ENTRIES)] = 100_000  # so many that the bytes decide
    local_capacity_bytes: Annotated[int, Whole(MIN_LOCAL_BYTES, MAX_LOCAL_BYTES)] = 32 << 20
    local_ttl_s: Annotated[int, _SECONDS] = 300
    shared_ttl_s: Annotated[int, _SECONDS] = 3_600


DEFAULT_CACHING: Final = Caching()
