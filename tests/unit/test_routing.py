"""Where a request goes: the state of the shard decides, and a search asks no more shards than it has to."""

from collections.abc import Callable

import pytest

from engram_contract.placement import user_slot
from engram_contract.shardmap import Node, Shard, ShardMap, ShardState, Strategy, first_map, restated
from engram_contract.slots import SLOTS
from engram_sidecar.errors import ShardReadOnly, ShardUnavailable
from engram_sidecar.records import Selection
from engram_sidecar.routing import MAINTENANCE, place_to_read, place_to_write, primary, shards_to_search
from engram_sidecar.store import Place

TENANT = "t_0123456789abcdef0123456789abcdef"
ACTIVE, READONLY, RESTING = ShardState
Locate = Callable[[ShardMap, int], Place]


def shards(*states: ShardState) -> list[Shard]:
    return [
        Shard(f"s{at}", f"db{at}", (Node(f"s{at}-0", "a", 5432), Node(f"s{at}-1", "b", 5433)), state=state)
        for at, state in enumerate(states)
    ]


def map_of(*states: ShardState, strategy: Strategy = Strategy.USER) -> ShardMap:
    return restated(first_map(TENANT, strategy, shards(*[ACTIVE] * len(states))), shards(*states))


def test_the_primary_is_the_first_node_with_the_shards_database() -> None:
    assert primary(shards(ACTIVE)[0]) == Place("s0", Node("s0-0", "a", 5432), "db0")


@pytest.mark.parametrize("locate", [place_to_read, place_to_write])
def test_a_slot_is_asked_of_its_owner(locate: Locate) -> None:
    shard_map = map_of(ACTIVE, ACTIVE)
    assert [locate(shard_map, slot).shard for slot in (0, SLOTS // 2 - 1, SLOTS // 2, SLOTS - 1)] == [
        "s0", "s0", "s1", "s1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("state", "locate", "error"),
    [
        (ACTIVE, place_to_read, None),
        (ACTIVE, place_to_write, None),
        (READONLY, place_to_read, None),
        (READONLY, place_to_write, ShardReadOnly),
        (RESTING, place_to_read, ShardUnavailable),
        (RESTING, place_to_write, ShardUnavailable),
    ],
)
def test_the_state_of_the_owner_decides(state: ShardState, locate: Locate, error: type[ShardReadOnly] | None) -> None:
    shard_map = map_of(state, ACTIVE)
    assert locate(shard_map, SLOTS - 1).shard == "s1"
    if error is None:
        assert locate(shard_map, 0).shard == "s0"
        return
    with pytest.raises(error) as raised:
        locate(shard_map, 0)
    assert raised.value.shard == "s0"


@pytest.mark.parametrize("locate", [place_to_read, place_to_write])
def test_maintenance_is_said_with_a_time_to_try_again(locate: Locate) -> None:
    with pytest.raises(ShardUnavailable) as raised:
        locate(map_of(RESTING), 0)
    assert (raised.value.reason, raised.value.retry_after_s) == (MAINTENANCE, 30)


@pytest.mark.parametrize("user", ["ada", "bob", "\u8336", "x" * 256])
def test_a_search_by_user_asks_the_users_shard_alone(user: str) -> None:
    shard_map = map_of(ACTIVE, ACTIVE, ACTIVE)
    [asked] = shards_to_search(shard_map, Selection(user=user, agent="a", namespace=("n",)))
    assert asked is shard_map.shard_of(user_slot(TENANT, user))


@pytest.mark.parametrize("selection", [Selection(), Selection(agent="a"), Selection(session="s", type="t")])
def test_without_a_user_every_shard_is_asked(selection: Selection) -> None:
    assert [shard.id for shard in shards_to_search(map_of(ACTIVE, ACTIVE, ACTIVE), selection)] == ["s0", "s1", "s2"]


@pytest.mark.parametrize("strategy", [Strategy.CONTENT, Strategy.TIME, Strategy.TYPE])
def test_where_a_users_memories_lie_apart_every_shard_is_asked(strategy: Strategy) -> None:
    shard_map = map_of(ACTIVE, ACTIVE, strategy=strategy)
    assert len(shards_to_search(shard_map, Selection(user="ada"))) == 2


@pytest.mark.parametrize("state", [READONLY, RESTING])
def test_once_scattered_a_search_by_user_asks_every_shard_for_good(state: ShardState) -> None:
    scattered = map_of(ACTIVE, state)
    assert len(shards_to_search(scattered, Selection(user="ada"))) == 2
    assert len(shards_to_search(restated(scattered, shards(ACTIVE, ACTIVE)), Selection(user="ada"))) == 2


def test_a_shard_without_slots_is_not_asked() -> None:
    shard_map = restated(first_map(TENANT, Strategy.TIME, shards(ACTIVE)), shards(ACTIVE, ACTIVE))
    assert [shard.id for shard in shards_to_search(shard_map, Selection())] == ["s0"]


def test_a_shard_in_maintenance_is_asked_for_so_that_the_answer_names_it() -> None:
    assert [shard.id for shard in shards_to_search(map_of(RESTING, ACTIVE), Selection())] == ["s0", "s1"]
