"""What must be there before a cluster can start: Debian's packages, programs built from Go modules, two base images.

Promises: each thing is made once for its recipe and kept in the cache; one that was interrupted is made anew, because a
thing gets its name only when it is whole. Nothing of the machine is changed but the packages that were missing.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.cluster import recipe
from tests.cluster.layout import HERE, Layout

POLICY: Final = Path("/usr/sbin/policy-rc.d")
NO_SERVICES: Final = "#!/bin/sh\nexit 101\n"  # Debian's way to install a service without starting it


class CannotRun(Exception):
    """This machine cannot run a test cluster; the message says why, in words for a person."""


def check_rights() -> None:
    """Nothing; raises CannotRun where nobody could run a cluster, or this user cannot."""
    if sys.platform != "linux":
        raise CannotRun(f"the test cluster needs Linux, this is {sys.platform}")
    if os.geteuid() != 0:
        raise CannotRun("the test cluster needs root: it makes namespaces, mounts and control groups")


def check_machine() -> None:
    """Nothing; raises CannotRun with the first reason why no cluster can run here."""
    check_rights()
    if not shutil.which("go"):
        raise CannotRun("the test cluster needs Go 1.24 or newer on PATH: Kubernetes is built from its modules")
    missing = missing_packages()
    if missing and not shutil.which("apt-get"):
        raise CannotRun(
            f"the test cluster needs these programs, and only apt-get could bring them: {' '.join(missing)}"
        )


def install(at: Layout) -> None:
    """Everything is in the cache; says what it does when that takes long. Raises CalledProcessError."""
    check_machine()
    _install_packages()
    at.programs.mkdir(parents=True, exist_ok=True)
    at.bin.mkdir(exist_ok=True)
    for build in recipe.plan_builds(kube_sources()):
        if not (at.programs / build.filename).exists():
            _say(f"building {build.name} (once; minutes)")
            _build(at, build)
        for name in recipe.KUBERNETES_PROGRAMS if build.name == "kube" else (build.name,):
            _link(at.bin / name, at.programs / build.filename)
    if not has_image(at, recipe.pause_tag(pause_source())):
        _build_pause(at)
    if not has_image(at, recipe.base_tag()):
        _say("making the base image (once; a minute)")
        _build_base(at)


def kube_sources() -> Mapping[str, bytes]:
    """The files that Kubernetes is built from here."""
    return {path.name: path.read_bytes() for path in sorted((HERE / "kube").iterdir())}


def pause_source() -> bytes:
    """The program of the container that holds a pod's namespaces."""
    return (HERE / "pause" / "main.go").read_bytes()


def has_image(at: Layout, tag: str) -> bool:
    """True if the store has the image."""
    return buildah(at, "inspect", "--type", "image", tag, check=False).returncode == 0


def buildah(at: Layout, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """What buildah answered; raises CalledProcessError with its words if it failed."""
    environ = {**os.environ, "BUILDAH_ISOLATION": "chroot"}  # works where limits may not be raised
    command = ("buildah", *at.images, *arguments)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    if check and done.returncode:
        _say(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        done.check_returncode()
    return done


def missing_packages() -> list[str]:
    """Debian's packages for the programs that are not there."""
    missing = [package for program, package in recipe.PACKAGES.items() if not shutil.which(program)]
    return missing + [recipe.CNI_PACKAGE] * (not Path(recipe.CNI_PLUGINS, "bridge").exists())


def _install_packages() -> None:
    if not (missing := missing_packages()):
        return
    _say(f"installing {' '.join(missing)}")
    subprocess.run(["apt-get", "update", "-qq"], check=True, stdout=subprocess.DEVNULL)
    with _no_services():
        subprocess.run(
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing],
            check=True,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            stdout=subprocess.DEVNULL,
        )


@contextmanager
def _no_services() -> Iterator[None]:
    """No package starts a service on the machine meanwhile; a policy that was there is put back."""
    before = POLICY.read_bytes() if POLICY.exists() else None
    POLICY.write_text(NO_SERVICES)
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        if before is None:
            POLICY.unlink()
        else:
            POLICY.write_bytes(before)


def _build(at: Layout, build: recipe.Build) -> None:
    with tempfile.TemporaryDirectory(dir=at.programs, prefix=".build-") as folder:
        flags = ["-trimpath", "-buildvcs=false", "-ldflags", " ".join(recipe.linker_flags(build.name))]
        environ = {**os.environ, "CGO_ENABLED": "0", "GOBIN": folder, "GOFLAGS": ""}
        if build.name == "kube":
            command, place = ["go", "build", *flags, "-o", f"{folder}/kube", "."], HERE / "kube"
        else:
            command, place = ["go", "install", *flags, recipe.TOOLS[build.name]], Path(folder)
        subprocess.run(command, check=True, cwd=place, env=environ)
        Path(folder, build.name).rename(at.programs / build.filename)


def _link(link: Path, target: Path) -> None:
    """The link points there, at every moment to one or the other."""
    fresh = link.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.rename(link)


def _build_pause(at: Layout) -> None:
    with tempfile.TemporaryDirectory() as folder:
        environ = {**os.environ, "CGO_ENABLED": "0"}
        command = ["go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", f"{folder}/pause", "."]
        subprocess.run(command, check=True, cwd=HERE / "pause", env=environ)
        (Path(folder) / "Dockerfile").write_text('FROM scratch\nCOPY pause /pause\nENTRYPOINT ["/pause"]\n')
        buildah(at, "build", "-q", "-t", recipe.pause_tag(pause_source()), folder)


def _build_base(at: Layout) -> None:
    """A Debian with Python and nothing else, from the mirror that this machine's own packages come from."""
    with tempfile.TemporaryDirectory(dir=at.cache) as folder:
        Path(folder).chmod(0o755)
        tree, log = Path(folder, "tree"), at.cache / "debootstrap.log"
        wanted = f"--include={','.join(recipe.BASE_PACKAGES)}"
        with log.open("w") as out:
            command = ["debootstrap", "--variant=minbase", wanted, recipe.SUITE, str(tree), *_mirror()]
            subprocess.run(command, check=True, stdout=out, stderr=out)
        for cached in (*tree.glob("var/cache/apt/archives/*.deb"), *tree.glob("var/lib/apt/lists/*_*")):
            cached.unlink()
        (Path(folder) / "Dockerfile").write_text('FROM scratch\nCOPY tree /\nCMD ["python3"]\n')
        buildah(at, "build", "-q", "-t", recipe.base_tag(), folder)


def _mirror() -> Iterator[str]:
    """The first address in apt's sources, if there is one; debootstrap knows its own default."""
    for path in (*sorted(Path("/etc/apt/sources.list.d").glob("*.sources")), Path("/etc/apt/sources.list")):
        for line in path.read_text().splitlines() if path.exists() else ():
            words = line.split()
            if words[:1] in (["URIs:"], ["deb"]):
                yield next(word for word in words[1:] if "://" in word)
                return


def _say(what: str) -> None:
    sys.stderr.write(f"test cluster: {what}\n")
    sys.stderr.flush()
