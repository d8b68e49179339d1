"""An AdmissionReview of `admission.k8s.io/v1` to what is asked, and what is answered to a review. Pure.

Promise: the answer allows the pod, always. What keeps a pod from its memory is a warning, which `kubectl` shows to
whoever made the pod and the API server puts into its audit log.
Source: kubernetes.io, Dynamic Admission Control; a warning above 256 characters may be cut.
"""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from engram_contract.kinds import LABEL_PATTERN
from engram_contract.names import INJECT_LABEL, TENANT_ANNOTATION
from engram_operator.errors import BadReview
from engram_operator.injection import Operation, Sidecar, build_patch, find_obstacle

API_VERSION: Final = "admission.k8s.io/v1"
KIND: Final = "AdmissionReview"
WARNING_CHARS: Final = 256
LABEL_CHARS: Final = 63
UID_CHARS: Final = 128  # an API server's are 36
# What the injector walks through: a list in the pod's spec, and the lists in each of its members.
CONTAINER_LISTS: Final = ("env", "ports", "volumeMounts", "volumeDevices")
LISTS: Final = {
    "containers": CONTAINER_LISTS,
    "initContainers": CONTAINER_LISTS,
    "ephemeralContainers": CONTAINER_LISTS,
    "volumes": (),
}


@dataclass(frozen=True, slots=True)
class Review:
    """One question of the API server: may this pod be made, and how should it look."""

    uid: str
    namespace: str
    pod: Mapping[str, Any]
    is_creation: bool

    @classmethod
    def from_json(cls, body: bytes | bytearray) -> "Review":
        """Raises BadReview, also for what no API server would send: the port is open to more than API servers."""
        try:
            document = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise BadReview("the body is no JSON") from error
        request = document.get("request") if isinstance(document, dict) else None
        if not isinstance(request, dict) or (document.get("apiVersion"), document.get("kind")) != (API_VERSION, KIND):
            raise BadReview(f"the body is no {KIND} of {API_VERSION} with a request")
        uid, namespace, pod = request.get("uid"), request.get("namespace", ""), request.get("object")
        if not (isinstance(uid, str) and 0 < len(uid) <= UID_CHARS):
            raise BadReview(f"the request has no uid of at most {UID_CHARS} characters")
        if not (isinstance(namespace, str) and is_label(namespace)):
            raise BadReview("the request's namespace is no name of one")
        kind = request.get("kind")
        is_pod = isinstance(kind, dict) and (kind.get("group", ""), kind.get("kind")) == ("", "Pod")
        is_creation = is_pod and request.get("operation") == "CREATE" and not request.get("subResource")
        return cls(uid, namespace, _checked_pod(pod) if is_creation else {}, is_creation)

    @property
    def wants_memory(self) -> bool:
        """Whether the pod asks for the sidecar. The webhook's selector asks the same."""
        return self.is_creation and _metadata(self.pod, "labels").get(INJECT_LABEL) == "true"

    @property
    def tenant(self) -> str:
        """The MemoryTenant that the pod names; empty if it leaves the choice to us."""
        return str(_metadata(self.pod, "annotations").get(TENANT_ANNOTATION) or "")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is answered: operations on the pod, or a warning why there are none. Both may be empty."""

    operations: tuple[Operation, ...] = ()
    warning: str = ""

    def to_json(self, uid: str) -> bytes:
        """The AdmissionReview that answers the request `uid`."""
        response: dict[str, Any] = {"uid": uid, "allowed": True}
        if self.operations:
            patch = json.dumps(self.operations, separators=(",", ":"))
            response |= {"patchType": "JSONPatch", "patch": base64.b64encode(patch.encode()).decode()}
        if self.warning:
            response["warnings"] = [f"Engram: no memory for this pod: {self.warning}"[:WARNING_CHARS]]
        return json.dumps({"apiVersion": API_VERSION, "kind": KIND, "response": response}).encode()


def is_label(text: str) -> bool:
    """Whether a namespace or a MemoryTenant can have this name."""
    return len(text) <= LABEL_CHARS and re.fullmatch(LABEL_PATTERN, text) is not None


def judge(review: Review, tenants: Sequence[str], sidecar: Sidecar) -> Verdict:
    """The answer. `tenants` are those that the pod may mean: the one it names if it exists, else its namespace's."""
    if not review.wants_memory:
        return Verdict()
    obstacle = find_obstacle(review.pod) or _find_doubt(review, tenants)
    if obstacle:
        return Verdict(warning=obstacle)
    return Verdict(operations=build_patch(review.pod, tenants[0], sidecar))


def _find_doubt(review: Review, tenants: Sequence[str]) -> str | None:
    """Why the pod's tenant is not clear."""
    if review.tenant and not tenants:
        named = review.tenant[:LABEL_CHARS]
        return f"namespace {review.namespace} has no MemoryTenant {named!r}; create it or mend {TENANT_ANNOTATION}"
    if not tenants:
        return f"namespace {review.namespace} has no MemoryTenant; create one, then create the pod again"
    if len(tenants) > 1:
        return f"namespace {review.namespace} has several MemoryTenants; name one in the annotation {TENANT_ANNOTATION}"
    return None


def _checked_pod(pod: object) -> Mapping[str, Any]:
    """The pod, if it has a pod's shape wherever the injector looks. Raises BadReview."""
    found = _mapping(pod, "object")
    metadata = _mapping(found.get("metadata"), "metadata")
    for kind in ("labels", "annotations"):
        if not all(isinstance(value, str) for value in _mapping(metadata.get(kind), kind).values()):
            raise BadReview(f"the pod's {kind} are not all texts")
    spec = _mapping(found.get("spec"), "spec")
    for kind in ("os", "resources"):
        _mapping(spec.get(kind), kind)
    for kind, inner in LISTS.items():
        for member in _members(spec.get(kind), kind):
            for name in inner:
                _members(member.get(name), name)
    return found


def _mapping(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict | None):
        raise BadReview(f"the pod's {name} is no object")
    return value or {}


def _members(value: object, name: str) -> Sequence[Mapping[str, Any]]:
    if not isinstance(value, list | None) or not all(isinstance(each, dict) for each in value or ()):
        raise BadReview(f"the pod's {name} is no list of objects")
    return value or ()


def _metadata(pod: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    metadata = pod.get("metadata") or {}
    return metadata.get(kind) or {}
