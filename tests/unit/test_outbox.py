"""What waits to be told: in order, bounded, and never forgotten without a word."""

from uuid import UUID

from engram_contract.session import Position
from engram_contract.slots import MemoryId
from engram_sidecar.outbox import BATCH_IDS, MAX_IDS, Outbox, Told


def told(number: int, ids: int = 1, shard: str = "s0", position: Position | None = None) -> Told:
    return Told(shard, tuple(MemoryId(0, UUID(int=number * 1_000 + each)) for each in range(ids)), position)


def test_it_gives_what_came_in_order_in_batches() -> None:
    outbox = Outbox()
    items = [told(number, 256) for number in range(5)]
    assert [outbox.add(each) for each in items] == [1, 2, 3, 4, 5]
    first, second = outbox.take(), outbox.take()
    assert sum(each.size for each in first.items) == BATCH_IDS
    assert (first.items + second.items, first.through, second.through) == (tuple(items), 4, 5)
    assert not outbox


def test_one_that_is_larger_than_a_batch_goes_alone() -> None:
    outbox = Outbox()
    outbox.add(told(1, BATCH_IDS + 1))
    outbox.add(told(2))
    assert [each.size for each in outbox.take().items] == [BATCH_IDS + 1]


def test_what_was_not_told_comes_before_what_came_since() -> None:
    outbox = Outbox()
    first, second = told(1), told(2)
    outbox.add(first)
    batch = outbox.take()
    outbox.add(second)
    outbox.put_back(batch)
    assert outbox.take().items == (first, second)


def test_too_much_becomes_one_notice_of_each_shard_with_its_latest_position() -> None:
    outbox = Outbox()
    for number in range(MAX_IDS // 100):
        outbox.add(told(number, 100, "s0", Position(1, number)))
    assert outbox
    last = outbox.add(told(999, 1, "s1"))
    batch = outbox.take()
    assert batch.forgets
    assert batch.items == (Told("s0", None, Position(1, MAX_IDS // 100 - 1)), Told("s1", None, None))
    assert batch.through == last
    assert not outbox


def test_what_overflows_while_it_is_told_is_not_lost() -> None:
    outbox = Outbox()
    outbox.add(told(1, 256, "s0", Position(2, 1)))
    batch = outbox.take()
    for number in range(MAX_IDS // 100):
        outbox.add(told(number, 100, "s1", Position(1, number)))
    outbox.put_back(batch)
    again = outbox.take()
    assert again.forgets
    assert set(again.items) == {
        Told("s0", None, Position(2, 1)), Told("s1", None, Position(1, MAX_IDS // 100 - 1))
    }  # fmt: skip


def test_that_everything_is_to_be_forgotten_waits_until_it_is_told() -> None:
    outbox = Outbox()
    outbox.forget()
    assert outbox
    batch = outbox.take()
    assert (batch.forgets, batch.items, bool(outbox)) == (True, (), False)
    outbox.put_back(batch)
    assert outbox.take().forgets
