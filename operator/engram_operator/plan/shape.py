"""What of a StatefulSet may change now: a newer operator restarts no pod until it may. Pure.

The StatefulSet carries, as an annotation, what its template was made from: a digest of the part of the spec that shapes
pods (`inputs`), the template as it was applied, and the claim templates, which Kubernetes never lets change.

    same inputs, OnChange  --> the old template stays; what the newer one would change is told in status
    other inputs           --> the new template, with whatever a newer operator adds
    Automatic              --> the new template
"""

import copy
import json
from collections.abc import Mapping
from typing import Any

from engram_contract.names import SHAPE_ANNOTATION, UPDATE_ANNOTATION
from engram_contract.spec import ClusterSpec
from engram_contract.spec_parts import UpdatePolicy
from engram_operator.manifests.meta import digest_of
from engram_operator.plan.drift import first_difference
from engram_operator.plan.steps import Manifest


def inputs_of(spec: ClusterSpec, annotations: Mapping[str, str]) -> str:
    """The digest of what a user asks for and pods are made from; the update annotation counts as an ask."""
    asked = (spec.postgres.image, spec.postgres.resources, spec.postgres.tls, spec.scheduling, spec.pooler)
    return digest_of({"asked": repr(asked), "update": annotations.get(UPDATE_ANNOTATION, "")})


def plan_shape(desired: Manifest, live: Manifest | None, inputs: str, policy: UpdatePolicy) -> tuple[Manifest, str]:
    """The StatefulSet to apply, and what of the desired template is held back ("" if nothing)."""
    kept = _kept(live)
    result = copy.deepcopy(desired)
    spec = result["spec"]
    if live is not None:
        spec["volumeClaimTemplates"] = kept.get("claims") or _claims_of(live)
    held = ""
    if kept.get("inputs") == inputs and policy is UpdatePolicy.ON_CHANGE and "template" in kept:
        held = _said(spec["template"], kept["template"])
        spec["template"] = kept["template"]
    shape = {"inputs": inputs, "template": spec["template"], "claims": spec["volumeClaimTemplates"]}
    note = json.dumps(shape, sort_keys=True, separators=(",", ":"))
    result["metadata"].setdefault("annotations", {})[SHAPE_ANNOTATION] = note
    return result, held


def _said(wanted: Manifest, kept: Manifest) -> str:
    if wanted == kept:
        return ""
    place = first_difference(wanted, kept) or first_difference(kept, wanted) or ""
    return f"the pods' template differs at {place.lstrip('.')}"


def _kept(live: Manifest | None) -> Mapping[str, Any]:
    """What the StatefulSet remembers; nothing if somebody spoiled it, and then the pods get the present template."""
    if live is None:
        return {}
    text = (live["metadata"].get("annotations") or {}).get(SHAPE_ANNOTATION)
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _claims_of(live: Manifest) -> list[Manifest]:
    """The claim templates as they stand, without what the API server added."""
    claims = copy.deepcopy(live["spec"].get("volumeClaimTemplates") or [])
    for claim in claims:
        claim.pop("status", None)
        claim["spec"].pop("volumeMode", None)
        claim["metadata"].pop("creationTimestamp", None)
    return claims
