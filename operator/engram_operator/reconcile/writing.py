"""How every reconciler writes: within the term, and a status only where it says something else."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from engram_contract.names import API_VERSION, PROTECTED_LABEL
from engram_operator.clients.kube import CALL_TIMEOUT_S, OWNED, Kube, Manifest, Resource
from engram_operator.errors import ApiNotFound
from engram_operator.leadership import Term

STATUS_MANAGER: Final = "engram-operator-status"


def left_s(term: Term) -> float:
    """A write's deadline: what is left of the term, and no more than a usual call. Raises LostLease."""
    return min(term.check(), CALL_TIMEOUT_S)


async def remove(kube: Kube, term: Term, manifest: Manifest, field_manager: str) -> None:
    """The object is gone, the very one that was observed.

    Admission refuses to delete what is labelled as protected, us too: so the label goes first.
    """
    kind, metadata = manifest["kind"], manifest["metadata"]
    if (metadata.get("labels") or {}).get(PROTECTED_LABEL) == "true":
        opened = {"apiVersion": manifest["apiVersion"], "kind": kind}
        opened["metadata"] = {name: metadata[name] for name in ("name", "namespace", "uid")}
        opened["metadata"]["labels"] = {PROTECTED_LABEL: "false"}
        await kube.apply(OWNED[kind], opened, field_manager, timeout_s=left_s(term))
    await delete(kube, term, kind, metadata)


async def delete(kube: Kube, term: Term, kind: str, metadata: Mapping[str, Any]) -> None:
    """The object of this namespace, name and uid, which nothing protects, is gone."""
    place = (metadata["namespace"], metadata["name"], metadata["uid"])
    with suppress(ApiNotFound):  # gone is what was wanted
        await kube.delete(OWNED[kind], *place, timeout_s=left_s(term))


async def write_status(
    kube: Kube, term: Term, kind: tuple[Resource, str], resource: Manifest, status: dict[str, Any]
) -> None:
    """The status is as given; a write only if it was not. `kind` is as the paths and as a manifest say it."""
    if is_same_status(resource.get("status") or {}, status):
        return
    manifest = {
        "apiVersion": API_VERSION,
        "kind": kind[1],
        "metadata": {name: resource["metadata"][name] for name in ("name", "namespace", "uid")},
        "status": status,
    }
    await kube.apply_status(kind[0], manifest, STATUS_MANAGER, timeout_s=left_s(term))


def is_same_status(before: object, after: object) -> bool:
    """Whether both say the same; what says nothing does not count."""
    return bool(_without_empty(before) == _without_empty(after))


def _without_empty(value: Any) -> Any:  # noqa: ANN401  JSON has no narrower type
    """The value without members that the API server may drop or that say nothing."""
    if isinstance(value, dict):
        kept = {name: _without_empty(each) for name, each in value.items()}
        return {name: each for name, each in kept.items() if each not in ("", None, [], {})}
    if isinstance(value, list):
        return [_without_empty(each) for each in value]
    return value
