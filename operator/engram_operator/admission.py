"""An AdmissionReview of `admission.k8s.io/v1` to what is asked, and what is answered to a review. Pure.

Promise: the answer allows the pod, always. What keeps a pod from its memory is a warning, which `kubectl` shows to
whoever made the pod and the API server puts into its audit log.
Source: kubernetes.io, Dynamic Admission Control; a warning above 256 characters may be cut.
"""

import base64
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from engram_contract.kinds import LABEL_PATTERN
from engram_contract.names import AGENT_LABEL, INJECT_LABEL, MANAGED_BY, MANAGED_BY_LABEL, TENANT_ANNOTATION
from engram_contract.parse import RESOURCE, Refused
from engram_contract.policy import ALLOWED_AGENTS, Agent, is_admitted
from engram_operator.errors import BadReview
from engram_operator.injection import Operation, Sidecar, build_patch, find_obstacle

API_VERSION: Final = "admission.k8s.io/v1"
KIND: Final = "AdmissionReview"
WARNING_CHARS: Final = 256
LABEL_CHARS: Final = 63
DEFAULT_ACCOUNT: Final = "default"  # of a pod that names none
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
class Candidate:
    """A MemoryTenant as far as admission must know it. `flaw` says why its list of agents cannot be read."""

    name: str
    allowed_agents: tuple[Agent, ...] = ()
    flaw: str = ""

    @classmethod
    def from_resource(cls, body: Mapping[str, Any]) -> "Candidate":
        """The candidate of any resource with a name. What is not needed is not read: it is the operator's business."""
        name, spec = str(body["metadata"]["name"]), body.get("spec")
        if "deletionTimestamp" in body["metadata"]:
            return cls(name, flaw="it is being deleted")
        if _is_shut_out(body.get("status")):
            return cls(name, flaw="its MemoryCluster does not admit this namespace (spec.access.namespaceSelector)")
        given = spec.get("allowedAgents") if isinstance(spec, dict) else None
        try:
            agents = ALLOWED_AGENTS.read([] if given is None else given, RESOURCE)
        except Refused as refused:
            return cls(name, flaw=str(refused.under("spec.allowedAgents")))
        return cls(name, tuple(each for each in agents if isinstance(each, Agent)))

    def find_refusal(self, agent: str, account: str) -> str | None:
        """Why a pod of this ServiceAccount may not be this agent here; None if it may."""
        if self.flaw:
            return f"of MemoryTenant {self.name}, {self.flaw}"
        if is_admitted(self.allowed_agents, agent, account):
            return None
        asked = f"agent {agent} of ServiceAccount {account[:LABEL_CHARS]}"
        if self.allowed_agents:
            return f"MemoryTenant {self.name} does not admit {asked} (spec.allowedAgents)"
        return f"MemoryTenant {self.name} has no spec.allowedAgents, so it does not admit {asked}"


def _is_shut_out(status: object) -> bool:
    """Whether the operator said so: a pod would wait for a Secret that never comes. Other faults pass."""
    conditions = status.get("conditions") if isinstance(status, dict) else None
    return any(
        isinstance(each, dict) and (each.get("type"), each.get("reason")) == ("Ready", "NotAdmitted")
        for each in (conditions if isinstance(conditions, list) else ())
    )


@dataclass(frozen=True, slots=True)
class Review:
    """One question of the API server: may this pod be made, and how should it look.

    `is_namespace_wide` if it came because the pod's namespace asks for all of its pods.
    """

    uid: str
    namespace: str
    pod: Mapping[str, Any]
    is_creation: bool
    is_namespace_wide: bool = False

    @classmethod
    def from_json(cls, body: bytes | bytearray, *, is_namespace_wide: bool = False) -> "Review":
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
        return cls(uid, namespace, _checked_pod(pod) if is_creation else {}, is_creation, is_namespace_wide)

    @property
    def wants_memory(self) -> bool:
        """Whether the pod, or its namespace for it, asks for the sidecar. The webhooks' selectors ask the same."""
        labels = _metadata(self.pod, "labels")
        return self.is_creation and wants_memory(labels, is_namespace_wide=self.is_namespace_wide)

    @property
    def tenant(self) -> str:
        """The MemoryTenant that the pod names; empty if it leaves the choice to us."""
        return str(_metadata(self.pod, "annotations").get(TENANT_ANNOTATION) or "")

    @property
    def account(self) -> str:
        """The pod's ServiceAccount."""
        return str((self.pod.get("spec") or {}).get("serviceAccountName") or DEFAULT_ACCOUNT)

    @property
    def agent(self) -> str:
        """Which agent the pod is: as its label says, else its ServiceAccount."""
        return str(_metadata(self.pod, "labels").get(AGENT_LABEL) or self.account)


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


def judge(review: Review, candidates: Sequence[Candidate], sidecar: Sidecar) -> Verdict:
    """The answer. The candidates are those that the pod may mean: the one it names if it exists, else two at most."""
    if not review.wants_memory:
        return Verdict()
    obstacle = find_obstacle(review.pod, sidecar) or find_doubt(review.namespace, review.tenant, candidates)
    if obstacle:
        return Verdict(warning=obstacle)
    (tenant,) = candidates
    refusal = tenant.find_refusal(review.agent, review.account)
    if refusal:
        return Verdict(warning=refusal)
    return Verdict(operations=build_patch(review.pod, tenant.name, sidecar))


def wants_memory(labels: Mapping[str, Any], *, is_namespace_wide: bool) -> bool:
    """Whether a pod of these labels asks for the sidecar, or its namespace for it (`is_namespace_wide`)."""
    own = labels.get(INJECT_LABEL)
    # A shard in such a namespace would wait for its own tenant.
    is_asked_for = is_namespace_wide and own != "false" and labels.get(MANAGED_BY_LABEL) != MANAGED_BY
    return own == "true" or is_asked_for


def find_doubt(namespace: str, named: str, candidates: Collection[object]) -> str | None:
    """Why the tenant of a pod that names this one, or none, is not clear, for whoever made it; None if it is."""
    if named and not candidates:
        shown = named[:LABEL_CHARS]
        return f"namespace {namespace} has no MemoryTenant {shown!r}; create it or mend {TENANT_ANNOTATION}"
    if not candidates:
        return f"namespace {namespace} has no MemoryTenant; create one, then create the pod again"
    if len(candidates) > 1:
        return f"namespace {namespace} has several MemoryTenants; name one in the annotation {TENANT_ANNOTATION}"
    return None


def _checked_pod(pod: object) -> Mapping[str, Any]:
    """The pod, if it has a pod's shape wherever the injector looks. Raises BadReview."""
    found = _mapping(pod, "object")
    metadata = _mapping(found.get("metadata"), "metadata")
    for kind in ("labels", "annotations"):
        if not all(isinstance(value, str) for value in _mapping(metadata.get(kind), kind).values()):
            raise BadReview(f"the pod's {kind} are not all texts")
    spec = _mapping(found.get("spec"), "spec")
    if not isinstance(spec.get("serviceAccountName"), str | None):
        raise BadReview("the pod's serviceAccountName is no text")
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
