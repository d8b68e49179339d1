"""No edit is lost: many, at any time, the operator killed at some; what there is at last is what the last spec asks."""

import random
import time
from collections.abc import Callable
from typing import Any, Final

import pytest

from engram_contract.names import API_VERSION, CLUSTERS
from tests.e2e import memory
from tests.e2e.judges import differences
from tests.e2e.operators import Operators, tell
from tests.e2e.releases import need_image

EDITS: Final = 40
LONG_EDITS: Final = 500
SETTLED_S: Final = 90.0
LONG_SETTLED_S: Final = 600.0
KILL_RATIO: Final = 0.12  # of the edits
Json = dict[str, Any]
Edit = Callable[[random.Random], Json]


def parameters(chance: random.Random) -> Json:
    known = {"work_mem": f"{chance.randint(1, 9)}MB", "random_page_cost": f"1.{chance.randint(1, 9)}"}
    known |= {"max_connections": str(chance.choice([100, 110, 120]))}
    return {"postgres": {"parameters": {name: chance.choice([value, None]) for name, value in known.items()}}}


def weights(chance: random.Random) -> Json:
    return {"shardOverrides": chance.choice([None, [{"id": "s0", "weight": chance.randint(1, 9)}]])}


def cache(chance: random.Random) -> Json:
    external = {"provider": "External", "url": "redis://cache.example:6379/0", "secretRef": None}
    ours = {"provider": "Managed", "url": None, "capacity": chance.choice(["16Mi", "32Mi"])}
    return {"cache": chance.choice([{"provider": "None", "url": None}, external, ours])}


def pooler(chance: random.Random) -> Json:
    return {"pooler": {"enabled": chance.choice([True, False]), "maxConnections": chance.randint(20, 40)}}


def protection(chance: random.Random) -> Json:
    return {"deletionProtection": chance.choice([True, False])}


def resources(chance: random.Random) -> Json:
    limits = chance.choice([None, {"memory": "512Mi"}])
    return {"postgres": {"resources": {"requests": {"cpu": f"{chance.randint(30, 60)}m"}, "limits": limits}}}


def schedule(chance: random.Random) -> Json:
    return {"scheduling": {"antiAffinity": chance.choice(["Preferred", "Required"])}}


def pause(chance: random.Random) -> Json:
    return {"paused": chance.random() < 0.3, "planOnly": chance.random() < 0.1}


def replicas(chance: random.Random) -> Json:
    return {"replicas": chance.choice([0, 1])}


CHEAP: Final[tuple[Edit, ...]] = (parameters, weights, cache, pooler, protection, resources, schedule, pause)


def edit(operators: Operators, namespace: str, chance: random.Random, edits: tuple[Edit, ...]) -> None:
    """One change of the spec, or of the metadata, by whoever may be wrong; what the API server refuses is no edit."""
    path = f"/apis/{API_VERSION}/namespaces/{namespace}/{CLUSTERS}/memory"
    body: Json = {"spec": chance.choice(edits)(chance)}
    if chance.random() < 0.2:
        word = chance.choice([None, "x", "y"])
        body["metadata"] = {"labels": {"example.com/word": word}, "annotations": {"example.com/note": word}}
    status, answer = operators.cluster.request("PATCH", path, body)
    assert status in {200, 422}, answer


def storm(operators: Operators, namespace: str, count: int, edits: tuple[Edit, ...]) -> str:
    """So many edits at random times, with an operator that is killed at random ones; what to say of it."""
    seed = random.randrange(10**6)
    tell(f"seed {seed}")
    chance = random.Random(seed)
    operator, kills = operators.lead(), 0
    for _ in range(count):
        edit(operators, namespace, chance, edits)
        time.sleep(chance.choice([0, 0.05, 0.2, 0.6]))
        if chance.random() < KILL_RATIO:
            operator.kill()
            kills += 1
            if chance.random() < 0.5:  # an edit while nobody is there
                edit(operators, namespace, chance, edits)
            operators.free()
            operator = operators.start()
        assert operator.status is None, "\n".join(operator.lines[-20:])
    memory.patch(operators.cluster, namespace, {"paused": False, "planOnly": False})
    return f"{count} edits, {kills} kills, seed {seed}"


def settle(operators: Operators, namespace: str, deadline_s: float) -> float:
    """The seconds until the objects are those of the spec."""
    began_s, found = time.monotonic(), ["?"]
    while found:
        found = differences(operators, namespace)
        assert time.monotonic() < began_s + deadline_s, found
    return time.monotonic() - began_s


def test_the_last_of_many_edits_is_what_there_is(operators: Operators) -> None:
    """Without pods, so without fewer replicas: a member goes only when the others are healthy."""
    with operators.cluster.namespace("edits") as namespace:
        memory.apply(operators.cluster, memory.build_memory(namespace, **memory.NOWHERE))
        told = storm(operators, namespace, EDITS, CHEAP)
        took_s = settle(operators, namespace, SETTLED_S)
        operators.kill_all()
        tell(f"{told}; settled {took_s:.1f} s after the last")


@pytest.mark.soak
def test_the_last_of_hundreds_of_edits_is_what_there_is_with_real_shards(operators: Operators) -> None:
    need_image("redis")
    with operators.cluster.namespace("edits") as namespace:
        memory.apply(operators.cluster, memory.build_memory(namespace, **memory.ALONE))
        told = storm(operators, namespace, LONG_EDITS, (*CHEAP, replicas, replicas))
        took_s = settle(operators, namespace, LONG_SETTLED_S)
        # One node: a second member that must not be beside the first would wait for ever.
        memory.patch(operators.cluster, namespace, {"scheduling": {"antiAffinity": "Preferred"}})
        memory.wait_ready(operators.cluster, namespace, deadline_s=LONG_SETTLED_S)
        assert differences(operators, namespace) == []
        operators.kill_all()
        tell(f"{told}; settled {took_s:.1f} s after the last")
