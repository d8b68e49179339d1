"""Three operators, one leads: a leader that was stopped in the middle of its work never writes again."""

import itertools
import signal
import time
from typing import Final

from tests.e2e import memory
from tests.e2e.audits import Audit, Write
from tests.e2e.judges import differences
from tests.e2e.operators import Operator, Operators, tell

TAKEN_S: Final = 20.0
AFTER_S: Final = 10.0  # more than a renewal's pause and a call


def leader_of(operators: Operators) -> Operator:
    """The process that the Lease names."""
    pod = operators.holder().partition("_")[0]
    return next(each for each in operators.started if each.name == pod)


def terms_of(writes: list[Write]) -> list[tuple[str, float, float]]:
    """Who wrote, from when to when, in the order of the first write."""
    agents = sorted({each.agent for each in writes})
    moments = {agent: [each.at_s for each in writes if each.agent == agent] for agent in agents}
    return sorted(((agent, min(at), max(at)) for agent, at in moments.items()), key=lambda term: term[1])


def test_a_stopped_leader_is_replaced_and_does_not_write_when_it_goes_on(operators: Operators) -> None:
    cluster, audit = operators.cluster, Audit()
    with cluster.namespace("leaders") as namespace:
        operators.lead()
        for _ in range(2):
            operators.start().wait_line('"following')
        memory.apply(cluster, memory.build_memory(namespace, **memory.NOWHERE))
        cluster.wait_until("the objects", lambda: not differences(operators, namespace), 60)
        old = leader_of(operators)
        numbers = itertools.count(10)

        def edit() -> None:
            memory.patch(cluster, namespace, {"postgres": {"parameters": {"work_mem": f"{next(numbers)}MB"}}})

        edit()
        time.sleep(0.1)  # in the middle of it
        old.signal(signal.SIGSTOP)
        stopped_s, stopped_at_s = time.monotonic(), time.time()
        cluster.wait_until("another leader", lambda: leader_of(operators) is not old, TAKEN_S + 10)
        taken_s = time.monotonic() - stopped_s
        edit()
        cluster.wait_until("its work", lambda: not differences(operators, namespace), 60)
        old.signal(signal.SIGCONT)
        went_on_at_s = time.time()
        status = old.wait_end(AFTER_S)
        edit()
        cluster.wait_until("the last edit", lambda: not differences(operators, namespace), 60)
        writes = audit.writes()
        late = [each for each in audit.all_writes(f"engram-operator/{old.name}") if each.at_s > stopped_at_s + 1]
        terms = terms_of(writes)
        operators.kill_all()
        tell(
            f"taken after {taken_s:.1f} s; the old one ended with {status}, {time.time() - went_on_at_s:.1f} s; {terms}"
        )
        assert taken_s < TAKEN_S
        assert (status, late) == (1, [])
        assert len(terms) == 2
        assert all(before[2] < after[1] for before, after in itertools.pairwise(terms))
