"""How many members a shard's StatefulSet should have now: more at once, fewer with care. Pure.

Promise: a member goes only when all others are healthy, one at a time, and never the primary.
"""

from engram_operator.plan.rollout import Crew, plan_switchover, wait_for
from engram_operator.plan.steps import Step, Wait


def plan_members(crew: Crew, wanted: int, present: int) -> tuple[int, tuple[Step, ...]]:
    """The number of members to ask for, and what has to come first if that is not `wanted` yet."""
    if present <= wanted:
        return wanted, ()
    last = present - 1
    rest = tuple(each for each in crew.members if each.ordinal < last)
    sick = tuple(each for each in rest if not each.is_healthy)
    if sick:
        return present, (wait_for(sick, crew.now_s),)
    if len(rest) < last:
        return present, (Wait("RestNotHealthy", f"{crew.scope}: a member goes only when all others are there", 5.0),)
    if any(each.name == crew.leader.name for each in rest):
        return last, ()
    if crew.primary is None:  # its pod went by itself, so who leads next is not known yet
        return present, (Wait("NoPrimary", f"{crew.scope}: a member goes only while another one leads", 2.0),)
    return present, tuple(plan_switchover(crew, rest, f"{crew.leader.name} is to go"))
