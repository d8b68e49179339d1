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
PAUSE_IMAGE: Final = "localhost/engram-pause"


@dataclass(frozen=True, slots=True)
class Tree:
    """An image that is a Debian by debootstrap, and nothing else. `suite` may be newer than debootstrap."""

    image: str
    suite: str
    packages: tuple[str, ...]

    @property
    def tag(self) -> str:
        """Its full name."""
        return f"{self.image}:{digest(self.suite, *self.packages)}"


# In place of python:3.11-slim-bookworm.
PYTHON: Final = Tree("localhost/engram-base", "bookworm", ("python3", "python3-venv", "ca-certificates"))
# The first Debian with Postgres 18.
NEWER: Final = Tree("localhost/engram-debian", "forky", ("ca-certificates",))
# As in Docker's own Debian, for every apt-get that follows.
NO_APT_CACHE: Final = """\
RUN printf '%s\\n' 'DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb"; };' \
    'Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache "";' >/etc/apt/apt.conf.d/no-cache
"""
# In place of postgres:18-bookworm. The user comes first, because Debian's package would choose a number of its own.
# And as bookworm's Python, that of forky takes an authority whose certificate does not say what it is for: the test
# cluster's is one (pki.py), and so are some real ones.
POSTGRES: Final = """\
RUN set -eu; \
    groupadd -g 999 postgres; useradd -u 999 -g 999 -d /var/lib/postgresql -M -s /bin/bash postgres; \
    mkdir -p /etc/postgresql-common/createcluster.d; \
    echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.d/none.conf; \
    apt-get update; \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends postgresql-18; \
    rm -rf /var/lib/apt/lists/*; \
    mkdir /usr/local/lib/lenient; \
    echo 'import _ssl, ssl; _ssl.VERIFY_X509_STRICT = ssl.VERIFY_X509_STRICT = ssl.VerifyFlags(0)' \
        >/usr/local/lib/lenient/sitecustomize.py
ENV PYTHONPATH=/usr/local/lib/lenient
ENV PATH=/usr/lib/postgresql/18/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
CMD ["postgres"]
"""
# In place of redis:8, whose user, folder and command these are.
REDIS: Final = """\
RUN set -eu; \
    groupadd -g 999 redis; useradd -u 999 -g 999 -d /data -M -s /usr/sbin/nologin redis; \
    apt-get update; \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends redis-server; \
    rm -rf /var/lib/apt/lists/*; \
    install -d -o 999 -g 999 /data
USER 999:999
WORKDIR /data
EXPOSE 6379
ENTRYPOINT ["/bin/sh", "-c", "case \\"$1\\" in -* | *.conf) set -- redis-server \\"$@\\";; esac; exec \\"$@\\"", "--"]
CMD ["redis-server"]
"""


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
    """The full name of the base with Python."""
    return PYTHON.tag


def postgres_base_tag() -> str:
    """The full name of the base with Postgres."""
    return f"localhost/engram-postgres-base:{digest(on_newer(POSTGRES))}"


def on_newer(steps: str) -> str:
    """The Dockerfile that takes the steps on the newer Debian."""
    return f"FROM {NEWER.tag}\n{NO_APT_CACHE}{steps}"


def pause_tag(source: bytes) -> str:
    """The full name of the image that holds a pod's namespaces."""
    return f"{PAUSE_IMAGE}:{digest(source)}"


def digest(*parts: str | bytes) -> str:
    """Twelve hex digits of the parts."""
    whole = b"\0".join(part.encode() if isinstance(part, str) else part for part in parts)
    return hashlib.sha256(whole).hexdigest()[:12]
