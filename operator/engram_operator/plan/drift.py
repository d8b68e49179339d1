"""Whether an object is as its manifest says, without a write: what makes convergence silent.

An object is settled if it carries the digest of the manifest that was applied last, and every field of that manifest is
found in it unchanged. The digest shows fields that were taken out of a manifest; the comparison shows what others did.
What the manifest does not speak of is nobody's business here: defaults, other people's labels, injected containers.
Pure.
"""

import copy
from typing import Any, Final

from engram_contract.names import APPLIED_ANNOTATION
from engram_operator.manifests.meta import digest_of
from engram_operator.plan.steps import Apply, Manifest

# These have a meaning as a whole: one more label in a selector or one more subject of a binding changes everything. The
# API server gives each to one manager as a whole too (structType, mapType, listType atomic), so applying it mends it.
WHOLE: Final = frozenset(
    {"egress", "ingress", "matchLabels", "podSelector", "policyTypes", "rules", "selector", "subjects"}
)
# The keys by which server-side apply merges lists of objects; a list without one of them is compared item by item.
MERGE_KEYS: Final = ("name", "mountPath", "containerPort", "port", "uid", "topologyKey")


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
    """The path of the first field of `desired` that `live` has not, or has otherwise; None if there is none.

    JSON knows no other containers than dict and list; to ask for more (abc) made a reconcile five times as slow.
    """
    if isinstance(desired, dict):
        return _first_difference_of_dicts(desired, live, path)
    if isinstance(desired, list):
        return _first_difference_of_lists(desired, live, path)
    return None if desired == live and isinstance(desired, bool) == isinstance(live, bool) else path


def _first_difference_of_dicts(desired: dict[str, Any], live: object, path: str) -> str | None:
    if not isinstance(live, dict):
        return path
    for name, value in desired.items():
        if name not in live:
            return f"{path}.{name}"
        place = f"{path}.{name}"
        found = first_difference(value, live[name], place)
        if found is None and name in WHOLE and value != live[name]:
            found = place
        if found is not None:
            return found
    return None


def _first_difference_of_lists(desired: list[Any], live: object, path: str) -> str | None:
    if not isinstance(live, list):
        return path
    key = next((each for each in MERGE_KEYS if all(isinstance(item, dict) and each in item for item in desired)), None)
    if key is None and len(desired) != len(live):
        return path
    for index, item in enumerate(desired):
        place = f"{path}[{item[key] if key else index}]"
        found = _difference_to_twins(item, live, key, place) if key else first_difference(item, live[index], place)
        if found is not None:
            return found
    return None


def _difference_to_twins(item: dict[str, Any], live: list[Any], key: str, place: str) -> str | None:
    """None if one of the items with the same key has all; else what the first of them lacks."""
    twins = (each for each in live if isinstance(each, dict) and each.get(key) == item[key])
    differences = [first_difference(item, twin, place) for twin in twins]
    return None if None in differences else next(iter(differences), place)
