"""What is under our own test cluster: the processes of its node and their mounts. On another cluster a test skips."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.layout import INSIDE_VARIABLE
from tests.e2e.stage import DEADLINE_S


def pid_of(program: str) -> int:
    """The process of the node that runs `program`. Skips where the cluster is not our own."""
    state = os.environ.get(INSIDE_VARIABLE)
    if not state:
        pytest.skip(f"{program} can be reached on our own test cluster only")
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it has ended since
        if Path(words[0]).name == program and any(f"{state}/" in word for word in words):
            return int(folder.name)
    raise AssertionError(f"no {program} of {state}")


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of the node that lives in memory; `path` is where the kubelet sees it."""

    kubelet: int
    path: Path

    def resize(self, size_mib: int) -> None:
        """It is full when it holds so much."""
        self.enter("mount", "-o", f"remount,size={size_mib}m", str(self.path))

    def enter(self, *command: str) -> None:
        """Runs a command among the kubelet's mounts."""
        nsenter = ("nsenter", f"--mount=/proc/{self.kubelet}/ns/mnt", "--")
        subprocess.run([*nsenter, *command], check=True, timeout=DEADLINE_S)


@contextmanager
def disk_of(size_mib: int) -> Iterator[Disk]:
    """A disk of this size, empty and gone afterwards."""
    kubelet = pid_of("kubelet")
    disk = Disk(kubelet, Path(os.environ[INSIDE_VARIABLE]) / "disk")
    disk.enter("mkdir", "-p", str(disk.path))
    disk.enter("mount", "-t", "tmpfs", "-o", f"size={size_mib}m,mode=0777", "tmpfs", str(disk.path))
    try:
        yield disk
    finally:
        disk.enter("umount", str(disk.path))
        disk.enter("rmdir", str(disk.path))
