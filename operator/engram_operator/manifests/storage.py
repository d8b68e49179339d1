"""What the operator changes in a volume claim that the StatefulSet made: its size and its protection. Pure."""

from engram_contract.names import PROTECTED_LABEL
from engram_operator.manifests.meta import Manifest, quantity_of_bytes


def build_claim(claim: Manifest, size_bytes: int, *, is_protected: bool) -> Manifest:
    """The claim, this very one by its uid, with this size. Unprotected is said aloud, over a `true` of before."""
    metadata = claim["metadata"]
    place = {name: metadata[name] for name in ("name", "namespace", "uid")}
    is_marked = is_protected or PROTECTED_LABEL in (metadata.get("labels") or {})
    labels = {"labels": {PROTECTED_LABEL: "true" if is_protected else "false"}} if is_marked else {}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": place | labels,
        "spec": {"resources": {"requests": {"storage": quantity_of_bytes(size_bytes)}}},
    }
