"""How much CPU and memory the process uses of what it may: its cgroup's limits, else the machine's.

One core is all of the CPU that there is for one event loop, unless the container has less. Sources: the kernel's
documentation of cgroup v2 (cpu.max, memory.max) and of /proc (self/statm, meminfo).
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from engram_sidecar.health import Used

LEAST_S: Final = 1.0  # of a shorter time the clocks say little: the last reading stands
_CGROUP = Path("/sys/fs/cgroup")
_PROC = Path("/proc")


class Meter:
    """Tells the use since it was asked last. Reads files that the kernel makes: 100 us, so beside the loop."""

    def __init__(
        self, cpu_s: Callable[[], float], monotonic_s: Callable[[], float], cgroup: Path = _CGROUP, proc: Path = _PROC
    ) -> None:
        self._cpu_s = cpu_s
        self._monotonic_s = monotonic_s
        self._cgroup = cgroup
        self._proc = proc
        self._since = (cpu_s(), monotonic_s())
        self._last: Used | None = None

    def read(self) -> Used:
        """The share of one core, or of the container's limit, since the last reading; and of the memory.

        Whoever asks within LEAST_S of a reading gets that one.
        """
        now = (self._cpu_s(), self._monotonic_s())
        if self._last is not None and now[1] - self._since[1] < LEAST_S:
            return self._last
        cpu_s, passed_s = (new - old for new, old in zip(now, self._since, strict=True))
        self._since = now
        cores = min(_cores(self._cgroup), 1.0)
        self._last = Used(100 * cpu_s / passed_s / cores if passed_s > 0 else None, self._memory_percent())
        return self._last

    def _memory_percent(self) -> float | None:
        try:
            resident = int((self._proc / "self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            return 100 * resident / self._limit_bytes()
        except (OSError, ValueError, IndexError, ZeroDivisionError):
            return None

    def _limit_bytes(self) -> int:
        try:
            return int((self._cgroup / "memory.max").read_text())
        except (OSError, ValueError):  # none here, or "max"
            lines = (self._proc / "meminfo").read_text().splitlines()
            return 1024 * int(next(line for line in lines if line.startswith("MemTotal:")).split()[1])


def _cores(cgroup: Path) -> float:
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return 1.0
