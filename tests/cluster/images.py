"""The project's images: built as a user builds them, then handed to the node."""

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.cluster import recipe
from tests.cluster.install import build_text, buildah, cache_alone
from tests.cluster.layout import ROOT, Layout

PROJECT: Final = ("operator", "sidecar", "postgres")
# What only some tests need, by name: the same Dockerfile on the other kind of base, what stands in for redis:8, and the
# sidecar as if it were another version.
BY_NAME: Final = ("postgres-wheel", "redis", "sidecar-next")
NEXT: Final = "FROM localhost/engram-sidecar:test\nLABEL org.opencontainers.image.version=next\n"
CERTIFICATES: Final = "/etc/ssl/certs"
KEPT: Final = 30  # untagged images: about three builds of the project's three
PIP_CONFIG: Final = "[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n"


def project_tag(name: str) -> str:
    """The tag under which the tests know an image of this checkout."""
    return f"localhost/engram-{name}:test"


def build(at: Layout, name: str) -> str:
    """The id of one of the images, now its tag's."""
    if name == "redis":
        return build_text(at, project_tag(name), recipe.on_newer(recipe.REDIS))
    if name == "sidecar-next":
        build(at, "sidecar")
        return build_text(at, project_tag(name), NEXT)
    base_tag = recipe.postgres_base_tag() if name == "postgres" else recipe.base_tag()
    return _build_from_dockerfile(at, project_tag(name), name.removesuffix("-wheel"), base_tag)


def _build_from_dockerfile(at: Layout, tag: str, part: str, base_tag: str) -> str:
    """The id of an image of this checkout, built from its Dockerfile on a local base."""
    with tempfile.NamedTemporaryFile("w", dir=at.scratch, suffix=".conf") as pip:
        pip.write(PIP_CONFIG)
        pip.flush()
        # The machine's own certificates, for downloads during the build only; nothing of them stays in the image.
        mounts = ("-v", f"{CERTIFICATES}:{CERTIFICATES}:ro", "-v", f"{pip.name}:/etc/pip.conf:ro")
        source = ("-f", str(ROOT / f"Dockerfile.{part}"), str(ROOT))
        base = ("--build-arg", f"BASE_IMAGE={base_tag}")
        built = buildah(at, "build", "-q", "--layers", "--pull-never", "-t", tag, *base, *mounts, *source)
    _forget_old(at)
    return built.stdout.strip()


def _forget_old(at: Layout) -> None:
    """Of untagged images, the layers of earlier builds, the newest stay: the next build starts from them."""
    listed = json.loads(buildah(at, "images", "--json", "--filter", "dangling=true").stdout or "null") or []
    for image in sorted(listed, key=lambda each: -each["created"])[KEPT:]:
        buildah(at, "rmi", image["id"], check=False)  # one that others are built on stays as long as they do


def load(at: Layout, image: str, tag: str) -> None:
    """The node has the image, an id or a name of the store, under the tag. Another checkout may have moved the tag."""
    with tempfile.TemporaryDirectory(dir=at.state) as folder:
        archive = Path(folder, "image.tar")
        buildah(at, "push", "-q", image, f"oci-archive:{archive}:{tag}")
        command = ["ctr", "--address", str(at.socket), "--namespace", "k8s.io", "images", "import", str(archive)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=at.environment(os.environ))


def build_and_load(at: Layout, names: tuple[str, ...]) -> dict[str, float]:
    """The seconds that each image took; the node has them all."""
    took_s = {}
    with cache_alone(at):
        for name in names:
            begun_s = time.monotonic()
            load(at, build(at, name), project_tag(name))
            took_s[name] = time.monotonic() - begun_s
    return took_s
