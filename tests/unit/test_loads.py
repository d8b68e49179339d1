"""What was shown of late: as long as its writer may be about to tell, unless L2 has it; and what that costs."""

import time

from engram_sidecar.loads import RECENT_S, Loads

KEY, OTHER = b"a", b"b"


def test_a_state_is_news_for_a_while_after_each_time_it_was_shown() -> None:
    loads = Loads[None]()
    assert not loads.is_new(KEY, 100.0)
    for later_s in range(5):
        loads.note_shown(KEY, "1-1", 100.0 + later_s)
    assert loads.is_new(KEY, 104.0 + RECENT_S - 0.1)
    assert not loads.is_new(KEY, 104.0 + RECENT_S)


def test_a_state_that_l2_has_is_no_news_again_and_another_one_is() -> None:
    loads = Loads[None]()
    loads.note_shown(KEY, "1-1", 100.0)
    loads.note_there(KEY, "1-1")
    loads.note_shown(KEY, "1-1", 104.0)
    assert not loads.is_new(KEY, 100.0 + RECENT_S)
    for at_s, tag in ((104.0, "2-1"), (106.0, "2-1"), (108.0, ""), (110.0, "")):  # made and removed between, perhaps
        loads.note_shown(KEY, tag, at_s)
        loads.note_there(KEY, "1-1")  # of before
        assert loads.is_new(KEY, at_s + RECENT_S - 0.1)


def test_what_was_shown_long_ago_is_forgotten_and_news_when_it_is_shown_again() -> None:
    loads = Loads[None]()
    loads.note_shown(KEY, "1-1", 100.0)
    loads.note_there(KEY, "1-1")
    loads.note_shown(OTHER, "1-1", 101.0)
    loads.note_shown(KEY, "1-1", 110.0)
    assert loads.is_new(KEY, 110.0 + RECENT_S - 0.1)
    assert not loads.is_new(OTHER, 110.0)


def test_forgetting_many_at_once_costs_no_more_for_each_than_forgetting_few() -> None:
    def cost_s(count: int) -> float:
        loads = Loads[None]()
        for number in range(count):
            loads.note_shown(number.to_bytes(4), "1-1", 100.0)
        began_s = time.process_time()
        loads.note_shown(KEY, "1-1", 200.0)
        return (time.process_time() - began_s) / count

    assert min(cost_s(100_000) for _ in range(3)) < 10 * max(cost_s(1_000) for _ in range(3))
