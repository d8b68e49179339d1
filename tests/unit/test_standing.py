"""Which replicas may answer a read: by what was known before it, by one clock, and by the newest history alone."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_contract.session import UNKNOWN, Position
from engram_sidecar.standing import CARRY_S, NEAR_S, Look, Standing, Wanted

WANTED = Wanted(epoch=3, floor=Position(1, 100), bound_s=10.0)
REPLICA = Look(is_replica=True, timeline=1, lsn=100, epoch=3, asked_s=20.0)
PRIMARY = Look(is_replica=False, timeline=1, lsn=100, epoch=3, asked_s=20.0)


def standing(primary: Look = PRIMARY, **replicas: Look) -> Standing:
    found = Standing()
    found.take("primary", primary)
    for name, look in replicas.items():
        found.take(name, look)
    return found


@pytest.mark.parametrize(
    ("look", "wanted", "is_eligible"),
    [
        pytest.param(REPLICA, WANTED, True, id="it has reached the floor"),
        pytest.param(replace(REPLICA, lsn=99), WANTED, False, id="a byte behind the floor"),
        pytest.param(replace(REPLICA, timeline=2), WANTED, False, id="a later timeline"),
        pytest.param(REPLICA, replace(WANTED, floor=Position(2, 50)), False, id="an earlier timeline"),
        pytest.param(REPLICA, replace(WANTED, floor=UNKNOWN), False, id="nobody knows where the session is"),
        pytest.param(REPLICA, replace(WANTED, epoch=4), False, id="it has an older map than the reader"),
        pytest.param(replace(REPLICA, epoch=4), WANTED, True, id="it has a newer map: its rows of ownership tell"),
        pytest.param(replace(REPLICA, lsn=99), replace(WANTED, floor=None), False, id="behind all that is known"),
        pytest.param(REPLICA, replace(WANTED, floor=None), True, id="any state within the bound"),
        pytest.param(replace(REPLICA, timeline=None), WANTED, False, id="it never said on which timeline it is"),
    ],
)
def test_a_replica_may_answer_if_what_is_known_of_it_covers_the_session(
    look: Look, wanted: Wanted, is_eligible: bool
) -> None:
    assert standing(r0=look).eligible(wanted, 21.0) == (["r0"] if is_eligible else [])


def test_a_primary_is_no_replica() -> None:
    assert standing().eligible(replace(WANTED, floor=None), 20.0) == []


def test_a_replica_shows_what_was_committed_when_its_primary_was_no_further() -> None:
    found = standing(replace(PRIMARY, lsn=100, asked_s=20.0))
    for asked_s, lsn in [(21.0, 200), (22.0, 300), (23.0, 400)]:
        found.take("primary", replace(PRIMARY, lsn=lsn, asked_s=asked_s))
    found.take("r0", replace(REPLICA, lsn=299, asked_s=23.0))
    assert found.behind_s("r0", 23.5) == 2.5
    found.take("r0", replace(REPLICA, lsn=300, asked_s=24.0))
    assert found.behind_s("r0", 24.0) == 2.0


def test_a_primary_that_nobody_writes_to_keeps_its_replicas_fresh() -> None:
    found = standing(r0=REPLICA)
    found.take("primary", replace(PRIMARY, asked_s=60.0))
    assert found.behind_s("r0", 60.5) == 0.5


@pytest.mark.parametrize("is_eventual", [True, False])
def test_replicas_age_while_nobody_hears_of_the_primary(is_eventual: bool) -> None:
    found = standing(r0=REPLICA)
    found.lose("primary")
    found.take("r0", replace(REPLICA, lsn=120, asked_s=29.0))
    wanted = replace(WANTED, floor=None if is_eventual else WANTED.floor)
    assert found.eligible(wanted, 29.9) == ["r0"]
    assert found.eligible(wanted, 30.1) == []


def test_a_node_that_does_not_answer_is_not_asked() -> None:
    found = standing(r0=REPLICA)
    found.lose("r0")
    assert found.eligible(WANTED, 20.0) == []


def test_a_replica_that_lost_its_primary_is_for_a_while_on_the_timeline_of_before() -> None:
    found = standing(r0=REPLICA)
    found.take("r0", replace(REPLICA, timeline=None, asked_s=20.5))
    assert found.eligible(WANTED, 20.6) == ["r0"]
    found.take("r0", replace(REPLICA, timeline=None, asked_s=20.6 + CARRY_S))
    assert found.eligible(WANTED, 20.7 + CARRY_S) == []


def test_a_replica_that_went_back_in_its_log_is_on_no_known_timeline() -> None:
    found = standing(r0=REPLICA)
    found.take("r0", replace(REPLICA, timeline=None, lsn=99, asked_s=20.5))
    assert found.eligible(replace(WANTED, floor=None), 20.6) == []


def test_a_primary_that_was_left_behind_measures_nothing() -> None:
    found = standing(r0=REPLICA)
    found.take("new", replace(PRIMARY, timeline=2, lsn=110, asked_s=21.0))
    found.take("primary", replace(PRIMARY, lsn=500, asked_s=22.0))
    assert found.timeline == 2
    assert found.behind_s("r0", 22.0) is None
    assert found.eligible(WANTED, 22.0) == []
    found.take("r0", replace(REPLICA, timeline=2, lsn=110, asked_s=22.0))
    assert found.behind_s("r0", 22.0) == 1.0


@pytest.mark.parametrize(
    ("wanted", "now_s", "near"),
    [
        pytest.param(replace(WANTED, floor=Position(1, 150)), 21.0, "r1", id="the one that is furthest"),
        pytest.param(replace(WANTED, epoch=9), 21.0, "r1", id="its map may have come"),
        pytest.param(replace(WANTED, floor=Position(1, 150)), 20.1 + NEAR_S, None, id="all stand still"),
        pytest.param(replace(WANTED, floor=Position(2, 150)), 21.0, None, id="another timeline"),
        pytest.param(replace(WANTED, floor=UNKNOWN), 21.0, None, id="no place that anybody knows"),
    ],
)
def test_only_a_replica_that_may_have_caught_up_is_looked_at_again(
    wanted: Wanted, now_s: float, near: str | None
) -> None:
    found = standing(r0=replace(REPLICA, lsn=100), r1=replace(REPLICA, lsn=140))
    assert found.nearest(wanted, now_s) == near


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 3), st.integers(0, 9)), max_size=40), st.integers(0, 9))
def test_what_a_replica_is_said_to_show_it_shows(told: list[tuple[bool, int, int]], floor: int) -> None:
    """A history of looks, each a second after the other: no replica is eligible for what it was not seen to have."""
    found, last, primaries = Standing(), None, list[tuple[float, int, int]]()
    for second, (is_replica, timeline, lsn) in enumerate(told):
        look = Look(is_replica, timeline, lsn, 3, float(second))
        found.take("r" if is_replica else "p", look)
        if is_replica:
            last = look
        else:
            primaries.append((float(second), timeline, lsn))
    now_s, wanted = float(len(told)), Wanted(3, Position(2, floor), 5.0)
    if not found.eligible(wanted, now_s):
        return
    assert last is not None
    assert (last.timeline, last.lsn >= floor) == (2, True)
    assert found.timeline == 2
    assert any(now_s - at_s <= 5.0 and timeline == 2 and lsn <= last.lsn for at_s, timeline, lsn in primaries)
