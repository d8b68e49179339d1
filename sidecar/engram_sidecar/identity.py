"""Who the sidecar's pod is: its ServiceAccount, and the agent that it may be. Pure.

Promise: with an identity, what is stored carries the pod's own agent; a request can leave the agent out or name that
one, never another.
"""

from dataclasses import dataclass, replace

from engram_contract.policy import Policy
from engram_sidecar.errors import AgentNotAllowed, Flaw, Unprocessable
from engram_sidecar.records import Operation, Patch, Put


@dataclass(frozen=True, slots=True)
class Identity:
    """The agent, and the ServiceAccount whose pod it is."""

    agent: str
    service_account: str

    def refused_by(self, policy: Policy) -> AgentNotAllowed | None:
        """Why this pod gets no answer under the policy; None if it does."""
        if policy.admits(self.agent, self.service_account):
            return None
        return AgentNotAllowed(self.agent, self.service_account)

    def signed_put(self, put: Put, place: str = "") -> Put:
        """The put with the pod's agent. Raises Unprocessable if it names another one."""
        self._refuse_another(put.draft.agent, place)
        return replace(put, draft=replace(put.draft, agent=self.agent))

    def signed_patch(self, patch: Patch) -> Patch:
        """The patch with the pod's agent: what it changes is the pod's word from then on. Raises Unprocessable."""
        self._refuse_another(patch.patch.get("agent"), patch.place)
        return replace(patch, patch={**patch.patch, "agent": self.agent})

    def signed(self, operation: Operation, place: str) -> Operation:
        """One operation of a batch, whose memory stands at `place`, with the pod's agent. Raises Unprocessable."""
        match operation:
            case Put():
                return self.signed_put(operation, place)
            case Patch():
                return self.signed_patch(operation)
            case _:
                return operation

    def _refuse_another(self, named: object, place: str) -> None:
        if named is not None and named != self.agent:
            raise Unprocessable(Flaw(f"{place}/agent", f"is not the agent of this pod, which is {self.agent}"))


@dataclass(frozen=True, slots=True)
class Pod:
    """The pod that the sidecar runs in, as it reports itself to its shard."""

    name: str
    uid: str
