"""Where the test cluster keeps things: what is built once (cache) and what one cluster leaves behind (state)."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.cluster.recipe import digest

SYSTEM_PROGRAMS: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # not on every root's PATH
HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[1]
CONTEXT: Final = "engram-test-cluster"
INSIDE_VARIABLE: Final = "ENGRAM_CLUSTER_INSIDE"  # by which `down` knows what was started by `run`
OUTSIDE_VARIABLE: Final = "ENGRAM_CLUSTER_OUTSIDE"  # the machine's network, for what `run` started and needs a download
NODE: Final = "node0"
NODE_IP: Final = "10.77.0.1"
POD_CIDR: Final = "10.244.0.0/24"
SERVICE_CIDR: Final = "10.96.0.0/16"
API_SERVICE_IP: Final = "10.96.0.1"


@dataclass(frozen=True, slots=True)
class Layout:
    """The two folders of a test cluster. The state's file system must carry overlay mounts (no tmpfs, no overlay)."""

    cache: Path
    state: Path

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Layout":
        """The folders that ENGRAM_CLUSTER_CACHE and ENGRAM_CLUSTER_STATE name, or the usual ones."""
        cache = environ.get("ENGRAM_CLUSTER_CACHE") or f"{environ.get('HOME') or '/root'}/.cache/engram-cluster"
        state = environ.get("ENGRAM_CLUSTER_STATE") or "/var/cache/engram-cluster"
        return cls(Path(cache).absolute(), Path(state).absolute())

    @property
    def programs(self) -> Path:
        """What was built: one file for each, named by its recipe."""
        return self.cache / "programs"

    @property
    def bin(self) -> Path:
        """Links to the programs of this recipe, by their plain names."""
        return self.cache / "bin"

    @property
    def scratch(self) -> Path:
        """What is half done. Whoever has the cache's lock next empties it."""
        return self.cache / "scratch"

    @property
    def images(self) -> tuple[str, ...]:
        """The options that give buildah a store of our own."""
        root, run = self.cache / "images", self.cache / "images-run"
        return ("--root", str(root), "--runroot", str(run), "--storage-driver", "overlay")

    @property
    def pki(self) -> Path:
        """Keys, certificates and kubeconfigs, made anew for each cluster."""
        return self.state / "pki"

    @property
    def logs(self) -> Path:
        """One file for each component, and the API server's audit log."""
        return self.state / "logs"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.pki / "admin.kubeconfig"

    @property
    def audit_log(self) -> Path:
        """Every write that the API server saw, one JSON object a line."""
        return self.logs / "audit.log"

    @property
    def socket(self) -> Path:
        """Where containerd answers."""
        return self.state / "containerd.sock"

    @property
    def cgroup(self) -> str:
        """The control group below which every pod's lies; of its own for each state folder."""
        return f"engram-{digest(str(self.state))}"

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The environment of what runs against the cluster: its programs first on PATH, its kubeconfig, its context."""
        return {
            **environ,
            "PATH": os.pathsep.join((str(self.bin), environ.get("PATH", os.defpath), *SYSTEM_PROGRAMS)),
            "KUBECONFIG": str(self.kubeconfig),
            "KUBECACHEDIR": str(self.state / "kubectl"),
            INSIDE_VARIABLE: str(self.state),
            "ENGRAM_E2E_CONTEXT": CONTEXT,
            "ENGRAM_E2E_AUDIT_LOG": str(self.audit_log),
        }
