"""Whether an object is as its manifest says, without a write: what makes convergence silent.

An object is settled if it carries the digest of the manifest that was applied last, and every field of that manifest is
found in it unchanged. The digest shows fields that were taken out of a manifest; the comparison shows what others did.
What the manifest does not speak of is nobody's business here: defaults, other people's labels, injected containers.
Pure.
"""

import copy
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from engram_contract.names import APPLIED_ANNOTATION
from engram_operator.plan.steps import Apply, Manifest

# The keys by which server-side apply merges lists of objects; a list without one of them is compared item by item.
MERGE_KEYS: Final = ("name", "mountPath", "containerPort", "port", "uid", "topologyKey")


def digest_of(manifest: Manifest) -> str:
    """Sixteen hex digits of the manifest."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]


def stamped(manifest: Manifest) -> Manifest:
    """The manifest with its own digest as an annotation."""
    result = copy.deepcopy(manifest)
    result["metadata"].setdefault("annotations", {})[APPLIED_ANNOTATION] = digest_of(manifest)
    return result


def plan_apply(manifest: Manifest, live: Manifest | None) -> Apply | None:
    """The step that brings the object there, or None if it is settled."""
    wanted = stamped(manifest)
    if live is None:
        return Apply(wanted, "it is missing")
    place = first_difference(wanted, live)
    return None if place is None else Apply(wanted, f"{place.lstrip('.')} differs")


def first_difference(desired: object, live: object, path: str = "") -> str | None:
    """The path of the first field of `desired` that `live` has not, or has otherwise; None if there is none."""
    if isinstance(desired, Mapping):
        if not isinstance(live, Mapping):
            return path
        for name, value in desired.items():
            place = f"{path}.{name}"
            found = first_difference(value, live[name], place) if name in live else place
            if found is not None:
                return found
        return None
    if isinstance(desired, list):
        return _first_difference_of_lists(desired, live, path)
    return None if desired == live and isinstance(desired, bool) == isinstance(live, bool) else path


def _first_difference_of_lists(desired: list[Any], live: object, path: str) -> str | None:
    if not isinstance(live, list):
        return path
    key = next(
        (each for each in MERGE_KEYS if all(isinstance(item, Mapping) and each in item for item in desired)), None
    )
    if key is None and len(desired) != len(live):
        return path
    for index, item in enumerate(desired):
        place = f"{path}[{item[key] if key else index}]"
        twin = _twin(item, live, key) if key else live[index]
        found = place if twin is None else first_difference(item, twin, place)
        if found is not None:
            return found
    return None


def _twin(item: Mapping[str, Any], live: list[Any], key: str) -> object:
    """The item of the live list with the same key; one that is equal, if several have it."""
    twins = [each for each in live if isinstance(each, Mapping) and each.get(key) == item[key]]
    settled = [each for each in twins if first_difference(item, each) is None]
    return next(iter(settled or twins), None)
