"""The cluster's keys and certificates, made by openssl for the few hours that a cluster lives."""

import base64
import subprocess
from pathlib import Path
from typing import Final

from tests.cluster.components import alternative_names, build_kubeconfig
from tests.cluster.layout import NODE, NODE_IP, Layout

DAYS: Final = 30


def create_pki(at: Layout) -> None:
    """The folder of keys is complete; what was in it is made anew."""
    at.pki.mkdir(mode=0o700, parents=True, exist_ok=True)
    _key(at.pki / "sa.key")
    _openssl("ec", "-in", "sa.key", "-pubout", "-out", "sa.pub", folder=at.pki)
    _key(at.pki / "ca.key")
    authority = ("-x509", "-new", "-key", "ca.key", "-out", "ca.crt", "-subj", "/CN=engram-test-cluster")
    _openssl("req", *authority, "-days", str(DAYS), folder=at.pki)
    _certificate(at.pki, "apiserver", "/CN=kube-apiserver", *alternative_names())
    _certificate(at.pki, "admin", "/O=system:masters/CN=admin", "DNS:admin")
    _certificate(at.pki, "node", f"/O=system:nodes/CN=system:node:{NODE}", f"DNS:{NODE}", f"IP:{NODE_IP}")
    for user in ("admin", "node"):
        ca, certificate, key = (_base64(at.pki / name) for name in ("ca.crt", f"{user}.crt", f"{user}.key"))
        path = at.pki / f"{user}.kubeconfig"
        path.touch(mode=0o600)
        path.write_text(build_kubeconfig(user, ca, certificate, key))


def _key(path: Path) -> None:
    _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path.name, folder=path.parent)


def _certificate(folder: Path, name: str, subject: str, *alternatives: str) -> None:
    _key(folder / f"{name}.key")
    (folder / f"{name}.ext").write_text(f"subjectAltName={','.join(alternatives)}\n")
    _openssl("req", "-new", "-key", f"{name}.key", "-out", f"{name}.csr", "-subj", subject, folder=folder)
    signed = ("-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-out", f"{name}.crt")
    _openssl("x509", "-req", *signed, "-days", str(DAYS), "-extfile", f"{name}.ext", folder=folder)


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _openssl(*arguments: str, folder: Path) -> None:
    done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        message = f"openssl {arguments[0]} failed: {done.stderr.strip()}"
        raise RuntimeError(message)
