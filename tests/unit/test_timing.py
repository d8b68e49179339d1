"""What is measured of a request, by whom, and how it is told."""

import asyncio
import io
import logging

import pytest

from engram_sidecar import timing
from engram_sidecar.logs import Lines
from engram_sidecar.timing import MAX_METRICS, MAX_SPANS, Recorder, Span, part, server_timing


def test_without_a_recorder_nothing_is_kept() -> None:
    timing.begin(None)
    with part("db", "s0"):
        pass
    assert timing.trace_id() == ""


async def test_parts_of_tasks_that_a_request_began_are_its_own() -> None:
    async def ask(shard: str) -> None:
        with part("db", shard, "get_map"):
            await asyncio.sleep(0)

    async def answer(recorder: Recorder, *shards: str) -> None:
        timing.begin(recorder)
        await asyncio.gather(*(ask(shard) for shard in shards))

    first, second = Recorder(), Recorder()
    await asyncio.gather(answer(first, "s0", "s1"), answer(second, "s2"))
    assert ({*first.sums_s}, {*second.sums_s}) == ({("db", "s0"), ("db", "s1")}, {("db", "s2")})
    assert {(span.detail, span.failure) for span in first.spans} == {("get_map", "")}


def test_a_part_that_fails_is_kept_with_the_class_of_its_error() -> None:
    recorder = Recorder()
    timing.begin(recorder)
    with pytest.raises(KeyError), part("db", "s0"):
        raise KeyError("a secret")
    timing.begin(None)
    assert [span.failure for span in recorder.spans] == ["KeyError"]


def test_sums_are_whole_and_spans_and_header_bounded() -> None:
    recorder = Recorder()
    for number in range(1_000):
        recorder.add(Span("db", f"s{number % 50}", "", number, number + 0.001))
    assert len(recorder.spans) == MAX_SPANS
    header = server_timing(recorder, 1.5)
    assert header.startswith('total;dur=1500.000, db;dur=20.000;desc="s0", db;dur=20.000;desc="s1"')
    assert len(header.split(", ")) == MAX_METRICS


def test_a_line_of_the_log_names_the_trace_of_its_request() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Lines())
    logger = logging.getLogger("engram_sidecar.test")
    logger.addHandler(handler)
    timing.begin(None, "4bf9")
    logger.warning("request failed", extra={"operation": "store"})
    timing.begin(None)
    logger.warning("no request")
    logger.removeHandler(handler)
    first, second = stream.getvalue().splitlines()
    assert first.endswith("request failed operation='store' trace_id='4bf9'")
    assert second.endswith("no request")


async def test_what_is_asked_for_several_requests_is_a_part_of_each() -> None:
    first, second = Recorder(), Recorder()
    timing.begin(first)

    async def ask() -> None:
        with timing.shared([first, None, second]), part("db", "s0", "get_memories"):
            pass

    await asyncio.create_task(ask())
    with part("encode"):
        pass
    timing.begin(None)
    assert [span.name for span in first.spans] == ["db", "encode"]
    assert [(span.name, span.detail) for span in second.spans] == [("db", "get_memories")]
