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


@dataclass(frozen=True, slots=True)
class Review:
    """One question of the API server: may this pod be made, and how should it look."""

    uid: str
    namespace: str
    pod: Mapping[str, Any]
    is_creation: bool

    @classmethod
    def from_json(cls, body: bytes) -> "Review":
        """Raises BadReview."""
        try:
            document = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise BadReview("the body is no JSON") from error
        request = document.get("request") if isinstance(document, dict) else None
        if not isinstance(request, dict) or (document.get("apiVersion"), document.get("kind")) != (API_VERSION, KIND):
            raise BadReview(f"the body is no {KIND} of {API_VERSION} with a request")
        uid, namespace, pod = request.get("uid"), request.get("namespace", ""), request.get("object")
        if not (isinstance(uid, str) and uid and isinstance(namespace, str)):
            raise BadReview("the request has no uid or its namespace is no text")
        kind = request.get("kind")
        is_pod = isinstance(kind, dict) and (kind.get("group", ""), kind.get("kind")) == ("", "Pod")
        is_creation = is_pod and request.get("operation") == "CREATE" and not request.get("subResource")
        return cls(uid, namespace, pod if isinstance(pod, dict) else {}, is_creation)

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


def is_tenant_name(text: str) -> bool:
    """Whether a MemoryTenant can have this name."""
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


def _metadata(pod: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    metadata = pod.get("metadata") or {}
    return metadata.get(kind) or {}
