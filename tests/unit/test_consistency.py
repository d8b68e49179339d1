"""A request's session: what its headers ask for, what it must see, and what its answer says."""

import asyncio
from collections.abc import Sequence

import pytest

from engram_contract.session import UNKNOWN, Position, Token, mark_of
from engram_contract.shardmap import Node, Shard, ShardMap, Strategy, first_map
from engram_sidecar.consistency import Floors, Level, Session, join_sessions, session_of_request
from engram_sidecar.errors import BadRequest

NODES = (Node("n0", "localhost", 1), Node("n1", "localhost", 2))
MAP = first_map(
    "t_a",
    Strategy.USER,
    [Shard("s0", "engram", NODES[:1], members=NODES), Shard("s1", "engram", NODES[:1])],
)


@pytest.fixture
def floors() -> Floors:
    found = Floors()
    found.follow(MAP)
    return found


def session(floors: Floors, *tokens: Token | str, levels: Sequence[str] = ()) -> Session:
    found = Session(floors)
    found.read_headers(levels, [str(each) for each in tokens], 1.0)
    return found


def token_of(answered: Session) -> Token:
    return Token.parse(answered.headers()["Engram-Session"])


def at(lsn: int, timeline: int = 1) -> Position:
    return Position(timeline, lsn)


def told(position: Position, epoch: int = 1) -> Token:
    return Token(epoch, {mark_of("s0"): position})


@pytest.mark.parametrize(
    ("levels", "level"),
    [([], Level.SESSION), (["strong"], Level.STRONG), ([" Eventual "], Level.EVENTUAL), (["session"], Level.SESSION)],
)
def test_a_request_reads_as_its_header_says(floors: Floors, levels: list[str], level: Level) -> None:
    assert session(floors, levels=levels).level is level


@pytest.mark.parametrize(
    ("levels", "tokens", "header"),
    [
        (["linearizable"], [], "Engram-Consistency"),
        ([""], [], "Engram-Consistency"),
        (["strong", "eventual"], [], "Engram-Consistency"),
        ([], ["?"], "Engram-Session"),
        ([], [""], "Engram-Session"),
        ([], [f"{Token()},"], "Engram-Session"),
        ([], [str(told(at(1))), "AAAA"], "Engram-Session"),
    ],
)
def test_a_header_that_cannot_be_read_is_named(
    floors: Floors, levels: list[str], tokens: list[str], header: str
) -> None:
    with pytest.raises(BadRequest, match=header):
        Session(floors).read_headers(levels, tokens, 1.0)


def test_several_tokens_are_one_session(floors: Floors) -> None:
    one, other = told(at(5)), told(at(7))
    assert session(floors, one, other).floor("s0") == session(floors, f"{other}, {one}").floor("s0") == at(7)


def test_without_a_token_all_has_to_be_seen_that_this_sidecar_wrote(floors: Floors) -> None:
    assert session(floors).floor("s0") == UNKNOWN
    writer = session(floors)
    writer.reached("s0", at(50), writer.ticket())
    assert session(floors).floor("s0") == at(50)
    assert session(floors, told(at(20))).floor("s0") == at(20), "a token says itself what its session wrote"


def test_a_token_moves_no_floor_of_others(floors: Floors) -> None:
    known = session(floors)
    known.reached("s0", at(50), known.ticket())
    session(floors, told(at(1 << 60, 9), epoch=99))
    assert session(floors).floor("s0") == at(50)
    assert session(floors).epoch == 1


def test_a_floor_never_goes_back(floors: Floors) -> None:
    first = session(floors)
    first.reached("s0", at(50), first.ticket())
    late = session(floors)
    late.reached("s0", at(40), late.ticket())
    assert session(floors).floor("s0") == at(50)


def test_a_position_that_could_not_be_learned_ends_with_the_next_one_of_the_primary(floors: Floors) -> None:
    lost, early = session(floors), session(floors)
    ticket = early.ticket()
    lost.reached("s0", UNKNOWN, lost.ticket())
    early.reached("s0", at(60), ticket)
    assert session(floors).floor("s0") == UNKNOWN, "asked before the loss, so what was lost may lie behind it"
    assert token_of(lost).of("s0") == UNKNOWN
    of_replica = session(floors, told(at(10)))
    of_replica.reached("s0", at(61))
    assert session(floors).floor("s0") == UNKNOWN, "a replica does not know what was lost"
    later = session(floors, token_of(lost))
    later.reached("s0", at(62), later.ticket())
    assert session(floors).floor("s0") == token_of(later).of("s0") == at(62)


def test_the_primary_has_the_last_word_over_a_token(floors: Floors) -> None:
    forged = session(floors, told(at(1 << 60, 9)))
    forged.reached("s0", at(70), forged.ticket())
    assert token_of(forged).of("s0") == at(70)


def test_what_is_shown_to_a_session_takes_nothing_from_what_it_met_and_a_primary_that_it_asked_may(
    floors: Floors,
) -> None:
    shown = session(floors, told(at(9)))
    shown.reached("s0", at(5))
    assert token_of(shown) == told(at(9))
    assert shown.floor("s0") == at(9)
    asked = session(floors, told(at(9)))
    asked.reached("s0", at(5), asked.ticket())
    assert token_of(asked) == told(at(5)), "as the other one was of another history"


def test_an_answer_keeps_what_it_did_not_touch_and_drops_shards_that_are_gone(floors: Floors) -> None:
    gone = Token(1, {mark_of("s0"): at(5), mark_of("s1"): at(6), mark_of("s9"): at(7)})
    assert token_of(session(floors, gone)) == told(at(5))


def test_of_two_nodes_that_one_request_saw_the_later_one_counts(floors: Floors) -> None:
    both = session(floors)
    both.reached("s0", at(9))
    both.reached("s0", at(8))
    assert token_of(both).of("s0") == at(9)


def test_what_the_request_saw_itself_it_sees_again(floors: Floors) -> None:
    pages = session(floors, told(at(5)))
    pages.reached("s0", at(9))
    assert pages.floor("s0") == at(9)


def test_shards_without_replicas_have_no_position(floors: Floors) -> None:
    plain = session(floors, Token(1, {mark_of("s1"): at(5)}))
    assert not plain.has_replicas("s1")
    assert token_of(plain).positions == {}


def test_a_session_that_met_a_newer_map_says_so(floors: Floors) -> None:
    ahead = session(floors, told(at(5), epoch=8))
    assert ahead.epoch == token_of(ahead).epoch == 8


def test_with_a_new_map_nothing_is_known(floors: Floors) -> None:
    before = session(floors)
    before.reached("s0", at(5), before.ticket())
    late = session(floors)
    ticket = late.ticket()
    floors.follow(ShardMap(MAP.tenant, 2, MAP.strategy, MAP.shards, MAP.ranges))
    late.reached("s0", at(6), ticket)
    assert session(floors).floor("s0") == UNKNOWN


def test_the_oldest_part_of_an_answer_gives_its_age(floors: Floors) -> None:
    aged = session(floors)
    assert "Age" not in aged.headers()
    aged.is_as_old_as(0.0)
    assert aged.headers()["Age"] == "0"
    aged.is_as_old_as(1.2)
    aged.is_as_old_as(0.3)
    assert aged.headers()["Age"] == "2"


async def test_where_writes_of_several_requests_ended_is_told_to_each(floors: Floors) -> None:
    """In a task of its own, as the sidecar asks for several."""
    first, second, nobodys = session(floors), session(floors, told(at(90))), session_of_request()

    async def write() -> None:
        join_sessions([nobodys, first, second])
        joined = session_of_request()
        assert joined.has_replicas("s0")
        assert not joined.has_replicas("s1")
        joined.reached("s0", at(70), joined.ticket())

    await asyncio.create_task(write())
    assert session_of_request() is nobodys
    assert [token_of(each).of("s0") for each in (first, second)] == [at(70), at(70)]
    assert floors.of("s0") == at(70)
