"""What must be there before a cluster can start: Debian's packages, programs built from Go modules, base images.

Promises: each thing is made once for its recipe and kept in the cache; one that was interrupted is made anew, because a
thing gets its name only when it is whole. Nothing of the machine is changed but the packages that were missing.
"""

import ctypes
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from tests.cluster import recipe
from tests.cluster.layout import HERE, SYSTEM_PROGRAMS, Layout

PR_SET_PDEATHSIG: Final = 1
CLEAN_UP_S: Final = 10.0

SCRIPT: Final = "/usr/share/debootstrap/scripts/sid"  # for a suite that this machine's debootstrap is too old to know
DATES: Final = ("Acquire::Check-Valid-Until ", "Acquire::Check-Date ")
POLICY: Final = Path("/usr/sbin/policy-rc.d")
# Debian's way to install a service without starting it; our own text is known again, if we were killed over it.
NO_SERVICES: Final = "#!/bin/sh\n# of Engram's test cluster, while it installs packages\nexit 101\n"
GO_VERSION: Final = (1, 24)
CGROUPS: Final = Path("/sys/fs/cgroup")
NAMESPACES: Final = ("unshare", "--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc")
UNSUITABLE: Final = {"overlay", "ramfs", "nfs", "nfs4"}  # no overlay mount can have its files there


class CannotRun(Exception):
    """This machine cannot run a test cluster; the message says why, in words for a person."""


def check_rights() -> None:
    """Nothing; raises CannotRun where nobody could run a cluster, or this user cannot."""
    if sys.platform != "linux":
        raise CannotRun(f"the test cluster needs Linux, this is {sys.platform}")
    if os.geteuid() != 0:
        raise CannotRun("the test cluster needs root: it makes namespaces, mounts and control groups")


def check_machine(at: Layout) -> None:
    """Nothing; raises CannotRun with the first reason why no cluster can run here."""
    check_rights()
    probe = subprocess.run([*NAMESPACES, "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        raise CannotRun(f"the test cluster needs the right to make namespaces: {probe.stderr.strip()}")
    if not any(os.access(path, os.W_OK) and not _is_read_only(path) for path in (CGROUPS, CGROUPS / "pids")):
        raise CannotRun(f"the test cluster needs to make control groups, and {CGROUPS} is read-only")
    if (kind := _file_system(at.state)) in UNSUITABLE:
        raise CannotRun(f"the test cluster's state ({at.state}) lies on {kind}; name another in ENGRAM_CLUSTER_STATE")
    if _go_version() < GO_VERSION:
        raise CannotRun("the test cluster needs Go 1.24 or newer on PATH: Kubernetes is built from its modules")
    missing = missing_packages()
    if missing and not shutil.which("apt-get"):
        raise CannotRun(
            f"the test cluster needs these programs, and only apt-get could bring them: {' '.join(missing)}"
        )


def _is_read_only(path: Path) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def _file_system(path: Path) -> str:
    """The type of the file system that a path is on, or will be."""
    lines = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    above = [(len(words[1]), index, words[2]) for index, words in enumerate(lines) if path.is_relative_to(words[1])]
    return max(above)[2]


def _go_version() -> tuple[int, ...]:
    """Go's version, or nothing."""
    if not shutil.which("go"):
        return ()
    said = subprocess.run(["go", "env", "GOVERSION"], capture_output=True, text=True, check=False).stdout
    found = re.match(r"go(\d+)\.(\d+)", said)
    return tuple(int(part) for part in found.groups()) if found else ()


@contextmanager
def cache_alone(at: Layout) -> Iterator[None]:
    """For a block nobody else works on the cache; what a killed run left half done in it is gone."""
    at.scratch.parent.mkdir(parents=True, exist_ok=True)
    with (at.cache / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("waiting for another command that works on the cache")
            fcntl.flock(lock, fcntl.LOCK_EX)
        _sweep(at)
        yield


def _sweep(at: Layout) -> None:
    if at.scratch.exists():
        if shutil.which("buildah"):
            buildah(at, "rm", "--all", check=False)  # its containers hold mounts below the scratch folder too
        shutil.rmtree(at.scratch)
    at.scratch.mkdir()


def install(at: Layout) -> None:
    """Everything is in the cache; says what it does when that takes long. Raises CalledProcessError, CannotRun."""
    check_machine(at)
    with cache_alone(at):
        _install(at)


def _install(at: Layout) -> None:
    _install_packages()
    at.programs.mkdir(exist_ok=True)
    at.bin.mkdir(exist_ok=True)
    for build in recipe.plan_builds(kube_sources()):
        if not (at.programs / build.filename).exists():
            _say(f"building {build.name} (once; minutes)")
            _build(at, build)
        for name in recipe.KUBERNETES_PROGRAMS if build.name == "kube" else (build.name,):
            _link(at.bin / name, at.programs / build.filename)
    if not has_image(at, recipe.pause_tag(pause_source())):
        _build_pause(at)
    for tree in (recipe.PYTHON, recipe.NEWER):
        if not has_image(at, tree.tag):
            _say(f"making a Debian {tree.suite} (once; a minute)")
            _build_tree(at, tree)
    if not has_image(at, recipe.postgres_base_tag()):
        _say("making the base image with Postgres (once; a minute)")
        build_text(at, recipe.postgres_base_tag(), recipe.on_newer(recipe.POSTGRES))


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
    # `chroot` works where limits may not be raised; what is half done lies where the next command sweeps.
    environ = {**os.environ, "BUILDAH_ISOLATION": "chroot", "TMPDIR": str(at.scratch)}
    command = ["buildah", *at.images, *arguments]
    done = finish(command, env=environ, capture_output=True)
    if check and done.returncode:
        _say(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        done.check_returncode()
    return done


def finish(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    capture_output: bool = False,
) -> subprocess.CompletedProcess[str]:
    """What a command answered. It dies with us; when we are told to end, it is told too, and has time to clean up."""
    streams = subprocess.PIPE if capture_output else None
    process = subprocess.Popen(
        command,
        env=env,
        cwd=cwd,
        stdout=streams,
        stderr=streams,
        text=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509  one thread, and nothing but a system call
    )
    try:
        out, errors = process.communicate()
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit):  # the terminal has told the command of a Ctrl-C already
            process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=CLEAN_UP_S)
        raise
    finally:
        process.kill()
        process.wait()
    return subprocess.CompletedProcess(list(command), process.returncode, out, errors)


def die_with_parent() -> None:
    """This process is killed when its parent ends (prctl(2)); for `preexec_fn`."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def missing_packages() -> list[str]:
    """Debian's packages for the programs that are not there."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *SYSTEM_PROGRAMS))
    missing = [package for program, package in recipe.PACKAGES.items() if not shutil.which(program, path=path)]
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
    if missing := missing_packages():
        raise CannotRun(f"apt-get installed them, but their programs are not there: {' '.join(missing)}")


@contextmanager
def _no_services() -> Iterator[None]:
    """No package starts a service on the machine meanwhile; a policy that was there is put back."""
    before = POLICY.read_text() if POLICY.exists() else NO_SERVICES
    mode = POLICY.stat().st_mode if POLICY.exists() else 0o755
    POLICY.write_text(NO_SERVICES)
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        if before == NO_SERVICES:
            POLICY.unlink()
        else:
            POLICY.write_text(before)
            POLICY.chmod(mode)


def _build(at: Layout, build: recipe.Build) -> None:
    with tempfile.TemporaryDirectory(dir=at.scratch) as folder, (at.cache / "build.log").open("w") as log:
        flags = ["-trimpath", "-buildvcs=false", "-ldflags", " ".join(recipe.linker_flags(build.name))]
        environ = {**os.environ, "CGO_ENABLED": "0", "GOBIN": folder, "GOFLAGS": ""}
        if build.name == "kube":
            command, place = ["go", "build", *flags, "-o", f"{folder}/kube", "."], HERE / "kube"
        else:
            command, place = ["go", "install", *flags, recipe.TOOLS[build.name]], Path(folder)
        if subprocess.run(command, check=False, cwd=place, env=environ, stdout=log, stderr=log).returncode:
            raise CannotRun(f"{build.name} could not be built: {_tail(at.cache / 'build.log')}")
        Path(folder, build.name).rename(at.programs / build.filename)


def _tail(log: Path) -> str:
    """The last lines of a log, as one."""
    return " | ".join(log.read_text(errors="replace").strip().splitlines()[-5:])


def _link(link: Path, target: Path) -> None:
    """The link points there, at every moment to one or the other."""
    fresh = link.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.rename(link)


def _build_pause(at: Layout) -> None:
    with tempfile.TemporaryDirectory(dir=at.scratch) as folder:
        environ = {**os.environ, "CGO_ENABLED": "0"}
        command = ["go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", f"{folder}/pause", "."]
        subprocess.run(command, check=True, cwd=HERE / "pause", env=environ)
        (Path(folder) / "Dockerfile").write_text('FROM scratch\nCOPY pause /pause\nENTRYPOINT ["/pause"]\n')
        buildah(at, "build", "-q", "-t", recipe.pause_tag(pause_source()), folder)


def _build_tree(at: Layout, tree: recipe.Tree) -> None:
    """A Debian from the mirror that this machine's own packages come from, whose signature is checked."""
    with tempfile.TemporaryDirectory(dir=at.scratch) as folder:
        Path(folder).chmod(0o755)
        root, log = Path(folder, "tree"), at.cache / "debootstrap.log"
        wanted = f"--include={','.join(tree.packages)}"
        with log.open("w") as out:
            known = Path(SCRIPT).with_name(tree.suite).exists()
            source = (_mirror(), *(() if known else (SCRIPT,)))
            command = ["debootstrap", "--variant=minbase", wanted, tree.suite, str(root), *source]
            path = {"PATH": os.pathsep.join((os.environ.get("PATH", os.defpath), *SYSTEM_PROGRAMS))}
            subprocess.run(command, check=True, stdout=out, stderr=out, env=os.environ | path)
        for cached in (*root.glob("var/cache/apt/archives/*.deb"), *root.glob("var/lib/apt/lists/*_*")):
            cached.unlink()
        (root / "etc/apt/apt.conf.d/90machine").write_text(_apt_dates())
        build_text(at, tree.tag, "FROM scratch\nCOPY tree /\n", Path(folder))


def build_text(at: Layout, tag: str, dockerfile: str, folder: Path | None = None) -> str:
    """The id of the image that a Dockerfile's text makes, which is now its tag's. COPY takes from the folder."""
    with tempfile.TemporaryDirectory(dir=at.scratch) as empty:
        text = Path(empty, "Dockerfile")
        text.write_text(dockerfile)
        source = ("-f", str(text), str(folder or empty))
        return buildah(at, "build", "-q", "--layers", "--pull-never", "-t", tag, *source).stdout.strip()


def _apt_dates() -> str:
    """What this machine's apt says of an old Release file, for the apt of a tree: a mirror may be a frozen one."""
    said = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    return "".join(f"{line}\n" for line in said.splitlines() if line.startswith(DATES))


def _mirror() -> str:
    """The first address in apt's sources. Raises CannotRun if there is none."""
    for path in (*sorted(Path("/etc/apt/sources.list.d").glob("*.sources")), Path("/etc/apt/sources.list")):
        for line in path.read_text().splitlines() if path.exists() else ():
            words = line.split()
            addresses = [word for word in words[1:] if "://" in word]
            if words[:1] in (["URIs:"], ["deb"]) and addresses:
                return addresses[0]
    raise CannotRun("apt's sources name no mirror, from which the base images could be made")


def _say(what: str) -> None:
    sys.stderr.write(f"test cluster: {what}\n")
    sys.stderr.flush()
