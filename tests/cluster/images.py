"""The project's images: built as a user builds them, then handed to the node."""

import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.cluster import recipe
from tests.cluster.install import buildah
from tests.cluster.layout import ROOT, Layout

PROJECT: Final = ("operator", "sidecar", "postgres")
CERTIFICATES: Final = "/etc/ssl/certs"
PIP_CONFIG: Final = "[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n"


def project_tag(name: str) -> str:
    """The tag under which the tests know an image of this checkout."""
    return f"localhost/engram-{name}:test"


def build(at: Layout, name: str) -> str:
    """The tag of an image of this checkout, built from its Dockerfile on the local base."""
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as pip:
        pip.write(PIP_CONFIG)
        pip.flush()
        # The machine's own certificates, for downloads during the build only; nothing of them stays in the image.
        mounts = ("-v", f"{CERTIFICATES}:{CERTIFICATES}:ro", "-v", f"{pip.name}:/etc/pip.conf:ro")
        source = ("-f", str(ROOT / f"Dockerfile.{name}"), str(ROOT))
        base = ("--build-arg", f"BASE_IMAGE={recipe.base_tag()}")
        buildah(at, "build", "-q", "--layers", "--pull-never", "-t", project_tag(name), *base, *mounts, *source)
    return project_tag(name)


def load(at: Layout, tag: str) -> None:
    """The node has the image."""
    with tempfile.TemporaryDirectory(dir=at.state) as folder:
        archive = Path(folder, "image.tar")
        buildah(at, "push", "-q", tag, f"oci-archive:{archive}:{tag}")
        command = ["ctr", "--address", str(at.socket), "--namespace", "k8s.io", "images", "import", str(archive)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=at.environment(os.environ))


def build_and_load(at: Layout, names: tuple[str, ...]) -> dict[str, float]:
    """The seconds that each image took; the node has them all."""
    took_s = {}
    for name in names:
        begun_s = time.monotonic()
        load(at, build(at, name))
        took_s[name] = time.monotonic() - begun_s
    return took_s
