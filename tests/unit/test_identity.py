"""Who a pod is: whom the policy admits, and whose memories it stores."""

from dataclasses import replace
from uuid import UUID

import pytest

from engram_contract.policy import Agent
from engram_contract.slots import MemoryId
from engram_sidecar.errors import Unprocessable
from engram_sidecar.identity import Identity
from engram_sidecar.records import Delete, Draft, Get, Patch, Put
from tests.harness import tenant_spec

ID = MemoryId(7, UUID("017f22e2-79b0-7cc3-98c4-dc0c0c07398f"))
BOT = Identity("bot", "default")
POLICY = tenant_spec("a").policy()


@pytest.mark.parametrize(
    ("identity", "agents", "is_admitted"),
    [
        (Identity("default", "default"), (), True),
        (BOT, (), False),
        (BOT, (Agent("bot", "default"),), True),
        (BOT, (Agent("b*", "*"),), True),
        (BOT, (Agent("bot"),), False),
        (Identity("default", "default"), (Agent("bot", "default"),), False),
    ],
)
def test_the_policy_says_which_pods_are_answered(
    identity: Identity, agents: tuple[Agent, ...], is_admitted: bool
) -> None:
    refusal = identity.refused_by(replace(POLICY, allowed_agents=agents))
    assert (refusal is None) is is_admitted
    if refusal is not None:
        assert (refusal.agent, refusal.service_account) == (identity.agent, identity.service_account)
        assert identity.agent in str(refusal)
        assert identity.service_account in str(refusal)


@pytest.mark.parametrize("named", [None, "bot"])
def test_what_is_stored_carries_the_pods_agent(named: str | None) -> None:
    put = BOT.signed(Put(ID, Draft(content="x", agent=named)), "")
    assert put == Put(ID, Draft(content="x", agent="bot"))
    patch = BOT.signed(Patch(ID, {"content": "x"} if named is None else {"content": "x", "agent": named}), "")
    assert patch == Patch(ID, {"content": "x", "agent": "bot"})


def test_a_patch_cannot_take_the_agent_away() -> None:
    assert BOT.signed_patch(Patch(ID, {"agent": None})).patch == {"agent": "bot"}


@pytest.mark.parametrize("named", ["", "Bot", "other", 5, ["bot"], {}])
def test_another_agent_is_refused_at_its_place(named: object) -> None:
    with pytest.raises(Unprocessable) as refused:
        BOT.signed_patch(Patch(ID, {"agent": named}, place="/operations/3/memory"))
    assert [flaw.place for flaw in refused.value.flaws] == ["/operations/3/memory/agent"]
    if isinstance(named, str):
        with pytest.raises(Unprocessable) as refused:
            BOT.signed_put(Put(ID, Draft(agent=named)))
        assert [flaw.place for flaw in refused.value.flaws] == ["/agent"]


@pytest.mark.parametrize("operation", [Get(ID), Delete(ID)])
def test_reads_and_deletes_are_left_as_they_are(operation: Get | Delete) -> None:
    assert BOT.signed(operation, "") is operation
