"""Placement: names that never collide, slots that follow from the name alone, new memories on Active shards only."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_contract.names import length_prefixed
from engram_contract.placement import Name, Traits, named_id, routing_key, slot_for_new, user_slot
from engram_contract.shardmap import NoActiveShard, Node, Shard, ShardMap, ShardState, Strategy, first_map, restated
from engram_contract.slots import SLOTS, slot_of

TENANT = "t_0123456789abcdef0123456789abcdef"
ACTIVE, READONLY, MAINTENANCE = ShardState
MAY = datetime(2026, 5, 31, 23, 59, tzinfo=UTC)
TRAITS = Traits(user="ada", content="tea", type="semantic", created=MAY)

# Few characters, so that parts of different names are often made of the same text.
few = st.text("ab", max_size=3)
names = st.builds(Name, st.none() | few, st.lists(few, max_size=3).map(tuple), few)
states = st.tuples(*[st.sampled_from(ShardState)] * 4)


def shards(*their_states: ShardState) -> list[Shard]:
    return [
        Shard(f"s{at}", "engram", (Node("a", "localhost", 5432),), state=state) for at, state in enumerate(their_states)
    ]


MAP = first_map(TENANT, Strategy.USER, shards(ACTIVE, ACTIVE, ACTIVE, ACTIVE))


# --------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a", "b"), ("ab",)),
        (("a", "b"), ("ab", "")),
        (("a", "b"), ("", "ab")),
        ((), ("",)),
        (("",), ("", "")),
        (("a\x00\x00\x00\x01b",), ("a", "b")),
        (("\u00e9",), ("e\u0301",)),
    ],
)
def test_no_part_reaches_into_the_next(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    assert length_prefixed(*one) != length_prefixed(*other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Name("u", ("a", "b"), "k"), Name("u", ("ab",), "k")),
        (Name("u", ("a",), "b"), Name("u", (), "ab")),
        (Name("u", ("a",), "b"), Name("u", ("a", "b"), "")),
        (Name(None, (), "k"), Name("", (), "k")),
        (Name(None, ("u",), "k"), Name("u", (), "k")),
        (Name(None, (), "k"), Name("shared", (), "k")),
        (Name("user", (), "k"), Name(None, ("user",), "k")),
        (Name("u", ("1", "k"), "x"), Name("u", ("1",), "k")),
    ],
)
def test_names_that_look_alike_are_two(one: Name, other: Name) -> None:
    assert one.to_bytes() != other.to_bytes()
    assert named_id(Strategy.USER, TENANT, one).uuid != named_id(Strategy.USER, TENANT, other).uuid


@settings(max_examples=50)
@given(names, names)
def test_two_names_never_have_the_same_bytes(one: Name, other: Name) -> None:
    assert (one.to_bytes() == other.to_bytes()) == (one == other)


@settings(max_examples=50)
@given(st.lists(few, max_size=4), st.lists(few, max_size=4))
def test_two_lists_of_parts_never_have_the_same_bytes(one: list[str], other: list[str]) -> None:
    assert (length_prefixed(*one) == length_prefixed(*other)) == (one == other)


# A caller finds a named memory by computing its id. If one of these values changes, every named memory that was stored
# before is lost to its name: then a new version of ids is needed, not new values here.
@pytest.mark.parametrize(
    ("strategy", "name", "expected"),
    [
        (Strategy.USER, Name("ada", ("notes", "2026"), "tea"), "39ed-259571f4-544b-816d-bca3-601edfde5b22"),
        (Strategy.USER, Name(None, (), "tea"), "1978-2d20672c-8b6f-863f-b993-bb6ecab052b6"),
        (Strategy.CONTENT, Name("ada", ("notes", "2026"), "tea"), "392e-259571f4-544b-816d-bca3-601edfde5b22"),
        (Strategy.TIME, Name("ada", ("notes", "2026"), "tea"), "392e-259571f4-544b-816d-bca3-601edfde5b22"),
        (Strategy.TYPE, Name("\u00e9", ("",), "\U0001f375"), "2b33-bddd4c13-32ef-8ca3-9ed7-85192bd25575"),
    ],
)
def test_the_id_of_a_name_is_what_it_was_in_every_version(strategy: Strategy, name: Name, expected: str) -> None:
    assert str(named_id(strategy, TENANT, name)) == expected


@settings(max_examples=50)
@given(st.sampled_from(Strategy), names, states)
def test_a_named_memory_stays_where_its_name_says_whatever_the_states(
    strategy: Strategy, name: Name, their_states: tuple[ShardState, ...]
) -> None:
    before = first_map(TENANT, strategy, shards(ACTIVE, ACTIVE, ACTIVE, ACTIVE))
    after = restated(before, shards(*their_states))
    slot = named_id(strategy, TENANT, name).slot
    assert 0 <= slot < SLOTS
    assert before.shard_of(slot).id == after.shard_of(slot).id


@settings(max_examples=50)
@given(names)
def test_two_tenants_never_share_an_id(name: Name) -> None:
    assert named_id(Strategy.TIME, TENANT, name).uuid != named_id(Strategy.TIME, "t_other", name).uuid


# --------------------------------------------------------------------------------------------------------------- users


@settings(max_examples=50)
@given(st.text(min_size=1), st.lists(few, max_size=3).map(tuple), st.text(), st.text())
def test_under_the_strategy_user_all_of_a_users_memories_share_a_slot(
    user: str, namespace: tuple[str, ...], key: str, content: str
) -> None:
    home = user_slot(TENANT, user)
    traits = replace(TRAITS, user=user, content=content)
    assert named_id(Strategy.USER, TENANT, Name(user, namespace, key)).slot == home
    assert slot_for_new(MAP, routing_key(Strategy.USER, TENANT, traits)) == home


def test_memories_without_a_user_share_one_fixed_slot() -> None:
    assert user_slot(TENANT, None) == slot_of(routing_key(Strategy.USER, TENANT, replace(TRAITS, user=None)))


def test_named_memories_without_a_user_spread_over_the_slots() -> None:
    slots = {named_id(Strategy.USER, TENANT, Name(None, (), str(number))).slot for number in range(100)}
    assert len(slots) > 90


@pytest.mark.parametrize("strategy", [Strategy.CONTENT, Strategy.TIME, Strategy.TYPE])
def test_under_other_strategies_the_name_of_a_users_memory_spreads(strategy: Strategy) -> None:
    slots = {named_id(strategy, TENANT, Name("ada", (), str(number))).slot for number in range(100)}
    assert len(slots) > 90


# ---------------------------------------------------------------------------------------------------------- strategies


@pytest.mark.parametrize(
    ("strategy", "matter"),
    [
        (Strategy.USER, {"user"}),
        (Strategy.CONTENT, {"content"}),
        (Strategy.TIME, {"created"}),
        (Strategy.TYPE, {"type"}),
    ],
)
def test_a_strategy_looks_at_its_own_trait_only(strategy: Strategy, matter: set[str]) -> None:
    other = {"user": "bob", "content": "rum", "type": "episodic", "created": datetime(2026, 6, 1, tzinfo=UTC)}
    key = routing_key(strategy, TENANT, TRAITS)
    changed = {n for n, v in other.items() if routing_key(strategy, TENANT, replace(TRAITS, **{n: v})) != key}  # type: ignore[arg-type]  # each value fits its member
    assert changed == matter


def test_memories_of_one_month_stay_together() -> None:
    early = replace(TRAITS, created=datetime(2026, 5, 1, tzinfo=UTC))
    assert routing_key(Strategy.TIME, TENANT, early) == routing_key(Strategy.TIME, TENANT, TRAITS)


def test_equal_traits_of_two_strategies_or_tenants_are_two_keys() -> None:
    alike = Traits(user="x", content="x", type="x", created=MAY)
    keys = {routing_key(strategy, tenant, alike) for strategy in Strategy for tenant in ("t_a", "t_b")}
    assert len(keys) == 2 * len(Strategy)


# --------------------------------------------------------------------------------------------------------- new memories


@settings(max_examples=50)
@given(st.binary(), states)
def test_a_new_memory_goes_to_an_active_shard_and_home_if_home_is_active(
    key: bytes, their_states: tuple[ShardState, ...]
) -> None:
    shard_map = restated(MAP, shards(*their_states))
    if ACTIVE not in their_states:
        with pytest.raises(NoActiveShard):
            slot_for_new(shard_map, key)
        return
    slot = slot_for_new(shard_map, key)
    assert slot == slot_for_new(shard_map, key)
    assert shard_map.shard_of(slot).state is ACTIVE
    if shard_map.shard_of(slot_of(key)).state is ACTIVE:
        assert slot == slot_of(key)


@pytest.mark.parametrize("resting", [READONLY, MAINTENANCE])
def test_what_a_resting_shard_does_not_take_spreads_over_the_others(resting: ShardState) -> None:
    shard_map = restated(MAP, shards(ACTIVE, resting, ACTIVE, resting))
    keys = [str(number).encode() for number in range(4000)]
    homeless = [key for key in keys if shard_map.shard_of(slot_of(key)).state is resting]
    slots = [slot_for_new(shard_map, key) for key in homeless]
    taken = Counter(shard_map.shard_of(slot).id for slot in slots)
    assert set(taken) == {"s0", "s2"}
    assert abs(taken["s0"] - taken["s2"]) < len(slots) / 10
    assert len(set(slots)) > 0.8 * len(slots)


def test_an_active_shard_without_slots_takes_nothing() -> None:
    shard_map = restated(first_map(TENANT, Strategy.USER, shards(ACTIVE)), shards(READONLY, ACTIVE))
    with pytest.raises(NoActiveShard, match="nowhere to go"):
        slot_for_new(shard_map, b"key")


def test_every_open_slot_can_be_given() -> None:
    shard_map = ShardMap.from_json(restated(MAP, shards(READONLY, ACTIVE, READONLY, ACTIVE)).to_json())
    [first, last] = [r for r in shard_map.ranges if r.shard in {"s1", "s3"}]
    keys = (str(number).encode() for number in range(60_000))
    given_away = {slot_for_new(shard_map, key) for key in keys if slot_of(key) < first.first}
    edges = (first.first, first.last, last.first, last.last)
    assert min(given_away) - first.first < 8
    assert last.last - max(given_away) < 8
    assert all(edges[0] <= slot <= edges[1] or edges[2] <= slot <= edges[3] for slot in given_away)
