"""What was shown of late: as long as its writer may be about to tell, and no longer because it was read again."""

from engram_sidecar.loads import RECENT_S, Loads

KEY, OTHER = b"a", b"b"


def test_a_state_is_new_for_a_while_after_it_was_shown_first_however_often_it_is_read() -> None:
    loads = Loads[None]()
    assert not loads.is_new(KEY, 100.0)
    for later_s in range(5):
        loads.note_shown(KEY, "1-1", 100.0 + later_s)
    assert loads.is_new(KEY, 100.0 + RECENT_S - 0.1)
    assert not loads.is_new(KEY, 100.0 + RECENT_S)


def test_another_state_is_new_again_and_so_is_each_absence() -> None:
    loads = Loads[None]()
    for at_s, tag in ((100.0, "1-1"), (102.0, "2-1"), (104.0, ""), (106.0, "")):  # made and removed in between, perhaps
        loads.note_shown(KEY, tag, at_s)
        assert loads.is_new(KEY, at_s + RECENT_S - 0.1)


def test_a_state_that_was_shown_long_ago_is_new_when_it_is_shown_again() -> None:
    loads = Loads[None]()
    loads.note_shown(KEY, "1-1", 100.0)
    loads.note_shown(OTHER, "1-1", 101.0)
    loads.note_shown(KEY, "1-1", 110.0)
    assert loads.is_new(KEY, 110.0 + RECENT_S - 0.1)
    assert not loads.is_new(OTHER, 110.0)
