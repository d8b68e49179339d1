"""What the test cluster is made of: every version, and the name that each built thing has in the cache. Pure.

A thing's name carries a digest of its recipe, so a changed version is built anew and an unchanged one never again.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

KUBERNETES: Final = (
    "1.34.4"  # the last minor release whose kubelet may run on cgroup v1, which some machines still have
)
KUBERNETES_PROGRAMS: Final = (
    *("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"),
)
TOOLS: Final = {
    "coredns": "github.com/coredns/coredns@v1.12.4",
    "helm": "helm.sh/helm/v3/cmd/helm@v3.22.0",
    "local-path-provisioner": "github.com/rancher/local-path-provisioner@v0.0.30",
}
# What a program says of itself, set by the linker as its own release does. Helm renders for the version it believes in.
KUBERNETES_MINOR: Final = KUBERNETES.split(".")[1]
STAMPS: Final = {
    "kube": {
        "k8s.io/component-base/version.gitVersion": f"v{KUBERNETES}",
        "k8s.io/component-base/version.gitMajor": "1",
        "k8s.io/component-base/version.gitMinor": KUBERNETES_MINOR,
    },
    "helm": {
        f"helm.sh/helm/v3/pkg/{package}.k8sVersion{part}": value
        for package in ("chartutil", "lint/rules")
        for part, value in (("Major", "1"), ("Minor", KUBERNETES_MINOR))
    },
}
# Debian's package for each program that is not built here.
PACKAGES: Final = {
    "buildah": "buildah",
    "containerd": "containerd",
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "iptables": "iptables",
    "openssl": "openssl",
    "promtool": "prometheus",  # for its rule tests alone; no service of it runs
    "runc": "runc",
}
CNI_PLUGINS: Final = "/usr/lib/cni"
CNI_PACKAGE: Final = "containernetworking-plugins"
SUITE: Final = "bookworm"
BASE_PACKAGES: Final = ("python3", "python3-venv", "ca-certificates")
BASE_IMAGE: Final = "localhost/engram-base"
PAUSE_IMAGE: Final = "localhost/engram-pause"


@dataclass(frozen=True, slots=True)
class Build:
    """One thing in the cache: `name`, and the digest of all that it is made from."""

    name: str
    digest: str

    @property
    def filename(self) -> str:
        """Where it lies in the cache's folder of programs."""
        return f"{self.name}-{self.digest}"


def plan_builds(kube_sources: Mapping[str, bytes]) -> tuple[Build, ...]:
    """The programs to build, Kubernetes first: it takes longest. `kube_sources` are the files of its Go module."""
    kube = Build("kube", digest(KUBERNETES, *(f"{name}:{digest(kube_sources[name])}" for name in sorted(kube_sources))))
    return (kube, *(Build(name, digest(module, *linker_flags(name))) for name, module in TOOLS.items()))


def linker_flags(name: str) -> tuple[str, ...]:
    """What the linker is told for a program: no symbols, and its stamps."""
    return ("-s", "-w", *(f"-X {variable}={value}" for variable, value in STAMPS.get(name, {}).items()))


def base_tag() -> str:
    """The base image's full name."""
    return f"{BASE_IMAGE}:{digest(SUITE, *BASE_PACKAGES)}"


def pause_tag(source: bytes) -> str:
    """The full name of the image that holds a pod's namespaces."""
    return f"{PAUSE_IMAGE}:{digest(source)}"


def digest(*parts: str | bytes) -> str:
    """Twelve hex digits of the parts."""
    whole = b"\0".join(part.encode() if isinstance(part, str) else part for part in parts)
    return hashlib.sha256(whole).hexdigest()[:12]
