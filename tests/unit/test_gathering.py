"""What concurrent requests ask of a node goes together, and each gets its own answer."""

import asyncio
from collections.abc import Sequence

import pytest

from engram_sidecar import gathering
from engram_sidecar.gathering import AT_ONCE, Gatherer

MOST = 4


class Node:
    """Answers each number with itself, negative ones with an error; a question waits while it is held."""

    def __init__(self) -> None:
        self.questions: list[tuple[str, list[int]]] = []
        self.free = asyncio.Event()
        self.free.set()

    async def ask(self, key: str, items: Sequence[int]) -> list[int | Exception]:
        self.questions.append((key, list(items)))
        await self.free.wait()
        if 0 in items:
            raise ConnectionError(key)
        return [ValueError(item) if item < 0 else item for item in items]


async def settled() -> None:
    """All that can go on without the node has."""
    for _ in range(20):
        await asyncio.sleep(0)


async def one_out_and_two_waiting() -> tuple[Node, Gatherer[str, int, int], list[asyncio.Task[int]]]:
    """Items 1, 2 and 3, asked of a node that does not answer yet."""
    node = Node()
    gatherer = Gatherer(node.ask, MOST)
    node.free.clear()
    asked = [asyncio.create_task(gatherer.answer("a", 1))]
    await settled()
    asked += [asyncio.create_task(gatherer.answer("a", item)) for item in (2, 3)]
    await settled()
    return node, gatherer, asked


async def test_who_is_alone_asks_at_once() -> None:
    node = Node()
    gatherer = Gatherer(node.ask, MOST)
    assert await gatherer.answer("a", 1) == 1
    assert await gatherer.answer("a", 2) == 2
    assert node.questions == [("a", [1]), ("a", [2])]


async def test_what_is_asked_while_a_question_is_out_goes_together_in_its_order() -> None:
    node, gatherer, asked = await one_out_and_two_waiting()
    assert node.questions == [("a", [1])]
    assert gatherer.waiting("a") == 2
    assert dict(gatherer.lengths()) == {"a": 2}
    node.free.set()
    assert await asyncio.gather(*asked) == [1, 2, 3]
    assert node.questions[1:] == [("a", [2, 3])]


async def test_what_waits_does_not_hang_on_one_question_that_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "LATE_S", 0.0)
    node = Node()
    gatherer = Gatherer(node.ask, MOST)
    node.free.clear()
    asked = []
    for item in range(1, 4 + AT_ONCE):
        asked.append(asyncio.create_task(gatherer.answer("a", item)))
        await asyncio.sleep(0.001)
    assert node.questions == [("a", [number]) for number in range(1, AT_ONCE + 1)], "so many, however late"
    node.free.set()
    assert await asyncio.gather(*asked) == list(range(1, 4 + AT_ONCE))


async def test_what_is_asked_in_the_turn_in_which_an_answer_comes_goes_along() -> None:
    node = Node()
    gatherer = Gatherer(node.ask, MOST)
    node.free.clear()
    first = gatherer.ask_for("a", 1)
    await settled()
    second = gatherer.ask_for("a", 2)
    first.add_done_callback(lambda _: asked.append(gatherer.ask_for("a", 3)))
    asked = [second]
    node.free.set()
    await first
    await settled()
    assert await asyncio.gather(*asked) == [2, 3]
    assert [items for _, items in node.questions] == [[1], [2, 3]]


async def test_who_ends_it_ends_the_questions_that_are_out() -> None:
    node = Node()
    gatherer = Gatherer(node.ask, MOST)
    node.free.clear()
    _ = gatherer.ask_for("a", 1)
    await settled()
    await gatherer.close()
    assert vars(gatherer)["_questions"] == set()


async def test_no_question_is_of_more_than_the_most() -> None:
    node = Node()
    gatherer = Gatherer(node.ask, MOST)
    count = 3 * MOST + 1
    assert await asyncio.gather(*(gatherer.answer("a", item) for item in range(1, count + 1))) == [*range(1, count + 1)]
    assert [len(items) for _, items in node.questions] == [MOST, MOST, MOST, 1]


async def test_nodes_are_asked_apart() -> None:
    node = Node()
    gatherer = Gatherer(node.ask, MOST)
    node.free.clear()
    asked = [asyncio.create_task(gatherer.answer(key, 1)) for key in ("a", "b", "a", "b")]
    await settled()
    assert node.questions == [("a", [1, 1]), ("b", [1, 1])]
    node.free.set()
    await asyncio.gather(*asked)


async def test_an_error_is_of_its_own_item_alone() -> None:
    node = Node()
    gatherer = Gatherer(node.ask, MOST)
    answers = await asyncio.gather(*(gatherer.answer("a", item) for item in (1, -2, 3)), return_exceptions=True)
    assert [repr(answer) for answer in answers] == ["1", "ValueError(-2)", "3"]


async def test_a_question_that_fails_is_the_failure_of_each_and_the_next_ones_are_asked() -> None:
    node = Node()
    gatherer = Gatherer(node.ask, 2)
    answers = await asyncio.gather(*(gatherer.answer("a", item) for item in (1, 0, 3, 4)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [ConnectionError, ConnectionError, int, int]


async def test_what_nobody_waits_for_any_more_is_not_asked() -> None:
    node, _, asked = await one_out_and_two_waiting()
    out, gone, last = asked
    gone.cancel()
    out.cancel()  # its question is out: the answer is thrown away
    await settled()
    node.free.set()
    await asyncio.wait(asked)
    assert last.result() == 3
    assert [items for _, items in node.questions] == [[1], [3]]
    with pytest.raises(asyncio.CancelledError):
        gone.result()


async def test_nothing_is_kept_of_a_node_that_is_not_asked() -> None:
    node = Node()
    gatherer = Gatherer(node.ask, MOST)
    await asyncio.gather(*(gatherer.answer(str(item % 7), item) for item in range(1, 100)), return_exceptions=True)
    await settled()
    assert vars(gatherer)["_lines"] == {}
    assert vars(gatherer)["_questions"] == set()
